"""The README and the pages in docs/ tell the truth: their commands, params and recipes are those of the code."""

import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.main import get_command

from pipeline.cli import app
from pipeline.evaluation.lpips import COMMAND
from pipeline.params import Params
from pipeline.sections import BaseSection, MorphSection, PrepareSection, TrainSection
from tests.declarations import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["pip install -e . && dvc repro", "pip install -e '.[test]' && pytest"])
def test_ci_runs_the_two_commands_of_the_readme(command: str) -> None:
    assert re.search(rf"^{re.escape(command)}\s+#", README, re.MULTILINE)
    assert re.search(rf"^{re.escape(command)} \|\| exit 1\b", CI, re.MULTILINE)


def keys_of(section: Any) -> set[str]:
    return {field.alias or name for name, field in section.model_fields.items()}


def test_every_param_is_in_the_table() -> None:
    for name, field in Params.model_fields.items():
        if name in ("sets", "morphs", "edits"):
            continue
        for key in keys_of(field.annotation):
            assert f"`{name}.{key}`" in PAGES["params"], f"{name}.{key} is not in docs/params.md"


def test_no_param_in_the_table_is_made_up() -> None:
    for section, key in re.findall(
        r"`(base|refiner|prepare|train|sample|morph|edit|evaluate|pocket|machine|tracking)\.(\w+)`",
        README + "".join(text for page, text in PAGES.items() if page != "architecture"),  # that names code
    ):
        assert key in keys_of(Params.model_fields[section].annotation), f"{section}.{key}"


def test_the_stable_diffusion_block_changes_keys_that_are_there_to_valid_values() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGES["stable-diffusion"], re.DOTALL)
    changes = YAML(typ="safe").load(StringIO(block))
    shipped = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    sections = {"base": BaseSection, "prepare": PrepareSection, "train": TrainSection, "morph": MorphSection}
    assert changes.keys() == sections.keys()
    for name, section in sections.items():
        assert changes[name].keys() <= shipped[name].keys(), name
        changed = section(**{**shipped[name], **changes[name]})
        assert changed != section(**shipped[name]), name


def test_the_lines_for_a_set_of_your_own_are_valid() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGES["pictures"], re.DOTALL)
    added = YAML(typ="safe").load(StringIO(block))
    shipped = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert set(added["sets"]["holiday"]) == set(shipped["sets"]["alps"])
    assert set(added["morphs"]["holiday"]) == set(shipped["morphs"]["alps"])


def test_the_lines_of_the_example_are_a_morph_of_the_shipped_set() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGES["examples"], re.DOTALL)
    (morph,) = YAML(typ="safe").load(StringIO(block))["morphs"].values()
    shipped = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert set(morph) == set(shipped["morphs"]["alps"]) and shipped["sets"][morph["set"]]["adapter"] == "set"
    assert all((ROOT / "data/raw" / morph["set"] / name).is_file() for name in morph["keyframes"])
    assert MorphSection(**{**shipped["morph"], **morph["morph"]}) != MorphSection(**shipped["morph"])


def test_the_command_that_makes_the_weights_of_lpips_is_that_of_the_error_message() -> None:
    assert all(part in PAGES["figures"] for part in COMMAND.split(" && "))


def test_the_lines_of_python_make_a_film(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny base and its set instead of the pocket and the example, in fewer steps."""
    from tests.tiny import section

    (code,) = re.findall(r"```python\n(.*?)```", PAGES["python"], re.DOTALL)
    monkeypatch.chdir(ran)
    revision = section(ran / "bases/tiny").revision
    for shipped, tiny in {
        'source="models/pocket", revision=None': f'source="bases/tiny", revision="{revision}"',
        "/alps/": "/hills/", '"dawn"': '"red hill"', '"night"': '"blue"', "steps=10, inversion_steps=10": "2, 2",
        "frames=16": "frames=4", '"film.mp4"': f'"{tmp_path / "film.mp4"}"',
    }.items():  # fmt: skip
        assert shipped in code
        code = code.replace(shipped, tiny)
    exec(code, {})
    assert (tmp_path / "film.mp4").stat().st_size > 500


def test_every_command_is_told_somewhere() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    told = "".join((README, *PAGES.values())) + "".join(
        (ROOT / name).read_text(encoding="utf-8") for name in ("dvc.yaml", "models/dvc.yaml")
    )
    assert all(re.search(rf"morphline {name}\b", told) for name in commands)


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(README.splitlines()) <= 150
    assert all(f"(docs/{page}.md" in README for page in PAGES)


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name)
def test_every_local_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text) + re.findall(r'<img src="([^"]+)"', text)
    for target in targets:
        assert (page.parent / target).exists(), target
