"""The parts of the CI report."""

import random

import pytest
from markdown_it import MarkdownIt

from pipeline.ci.changes import Change, steps_differ
from pipeline.ci.markdown import figures_part, inert, params_part, stages_part, strips_part
from pipeline.errors import printable


def test_the_worse_figures_come_first_and_nothing_breaks_the_table() -> None:
    rows = [Change("a.morph.endpoints_psnr", 1.0, 2.0), Change("b.morph.endpoints_psnr", 2.0, 1.5)]
    lines = figures_part([*rows, Change("c|d", "<b>", "x\ny")]).splitlines()
    assert lines[4] == "| `b.morph.endpoints_psnr` | 2 | 1.5 | -0.5 | 🔴 worse |"
    assert lines[5] == "| `a.morph.endpoints_psnr` | 1 | 2 | +1 | 🟢 better |"
    assert "| `c\\|d` | `<b>` | `x\\x0ay` |  |  |" in lines
    assert figures_part([]).endswith("unchanged")
    assert "| `morph.adain` | true | false |" in params_part([Change("morph.adain", True, False)])


HOSTILE = (
    "@octocat", "#1", "owner/name#2", "https://example.org/x", "www.example.org", "![a](https://example.org/a.png)",
    "[a](javascript:alert(1))", "<img src=x onerror=1>", "a | b", "a\r\nb", "a\rb", "`", "``", "a ` b", "` `` ```",
    "`a`", "a`", "\\", "a\\|b", "", " ", "**a**", "&#64;octocat", "\x1b[31m", "\u202egnp", "GH-3", "a" * 5000, "|",
)  # fmt: skip


def texts() -> list[str]:
    """What is hostile by hand, and by chance."""
    draw = random.Random(0)
    letters = "`|\\\r\n <>[]()!@#&*_~ab\x1b\u202e"
    return [*HOSTILE, *("".join(draw.choices(letters, k=draw.randint(1, 12))) for _ in range(2000))]


def test_foreign_text_is_only_ever_code() -> None:
    """By a CommonMark reader with GitHub's tables, in a line and in a table."""
    reader = MarkdownIt("commonmark").enable("table")
    for text in texts():
        (inline,) = [token for token in reader.parse(f"x {inert(text)} y") if token.type == "inline"]
        kinds = [token.type for token in inline.children]
        assert kinds == ["text", "code_inline", "text"], text
        assert inline.children[1].content.strip() == printable(text, 200).strip()
        table = params_part([Change(text, text, "z")]).partition("\n\n")[2]
        cells = [token for token in reader.parse(table) if token.type == "inline"]
        assert [cell.content for cell in cells[:3]] == ["key", "before", "now"] and len(cells) == 6, text
        for cell in cells[3:]:
            assert [token.type for token in cell.children] == ["code_inline"], text
        assert cells[3].children[0].content.strip() == printable(text, 200).strip()


def test_a_baseline_gets_no_verdict_and_is_folded_away() -> None:
    text = figures_part([Change("a.cross_fade.pdv", 1.0, 2.0)])
    assert "no figure of a morph is better or worse" in text and "worse |" not in text
    assert text.index("<details>") < text.index("cross_fade") < text.index("</details>")


def test_naturalness_gets_no_verdict_where_keyframes_are_strange_to_the_base() -> None:
    rows = [Change(f"{morph}.morph.naturalness", 0.9, 1.2) for morph in ("a", "b")]
    first = figures_part(rows, foreign=["a"]).partition("<details>")[0]
    assert "`b.morph.naturalness` | 0.9 | 1.2 | +0.3 | 🔴 worse" in first and "`a.morph.naturalness`" not in first
    assert "strange to the base: `a`." in first


@pytest.mark.parametrize(
    ("key", "other"),
    [("morph.frames", True), ("morphs.a.morph.frames", True), ("morphs.a.keyframes", True), ("morph.adain", False)],
)
def test_steps_of_other_frames_or_keyframes_are_not_compared(key: str, other: bool) -> None:
    assert steps_differ([Change("train.rank", 4, 8), Change(key, 1, 2)]) is other
    rows = [Change("a.morph.pdv", 0.1, 0.2), Change("a.morph.neighbours_max_over_mean", 2.0, 3.0)]
    first = figures_part(rows, other).partition("<details>")[0]
    assert "`a.morph.neighbours_max_over_mean` | 2 | 3 | +1 | 🔴 worse" in first
    assert ("`a.morph.pdv`" in first) is not other


def test_stages_that_changed_ran_and_the_others_were_skipped() -> None:
    before = {"prepare@a": {"outs": 1}, "train@a": {"deps": 1, "outs": 1}, "check": {"deps": 1, "outs": 1}, "old": {}}
    now = {
        "check": {"deps": 2, "outs": 1},
        "prepare@a": {"outs": 1},
        "train@a": {"deps": 2, "outs": 2},
        "new": {"outs": 3},
    }
    assert stages_part(before, now).splitlines() == [
        "**Ran, results changed:** `train@a`, `new`  ",
        "**Ran, results unchanged:** `check`  ",
        "**Skipped:** `prepare@a`  ",
        "**Removed:** `old`",
    ]
    assert stages_part(before, before).splitlines()[0].startswith("**Skipped:**")


def test_a_strip_that_is_not_there_does_not_hide_the_other() -> None:
    strips = {"a": {"before": None, "now": "a-now.webp"}, "b": None}
    assert strips_part(strips, "https://example.org/p/").split("\n\n") == [
        "### Morph `a`",
        "before: not in this machine's cache (`dvc pull` fetches it from a remote)",
        "now:",
        "![a, now](https://example.org/p/a-now.webp)",
        "### Morph `b`",
        "the same frames",
    ]
