"""The problems of a raw set as a whole: its pictures against its metadata."""

import math
import random
import unicodedata
from pathlib import Path

import pytest

from pipeline.pictures.imagefolder import find_problems
from pipeline.pictures.metadata import read_rows
from pipeline.pictures.rows import Row
from tests.pictures.samples import messages, only_message, write_picture, write_rows


def test_a_valid_set(folder: Path) -> None:
    (folder / "README.txt").write_text("notes are no pictures")
    (folder / ".hidden.jpg").write_text("nor is what is hidden")
    assert messages(folder) == []
    assert read_rows(folder) == (Row(file_name="a.jpg", text="one"), Row(file_name="b.png", text="two"))


def test_a_link_that_leaves_the_folder(folder: Path) -> None:
    (folder / "b.png").rename(folder.parent / "b.png")
    (folder.parent / "secret.png").write_text("not looked at, or it would be reported as no picture")
    (folder / "b.png").symlink_to("../secret.png")
    only_message(folder, "metadata.jsonl:2: 'b.png' is a link that leaves the folder")
    (folder / "b.png").unlink()
    (folder / "b.png").symlink_to("a.jpg")
    assert messages(folder) == []
    cache = folder.parent / ".dvc/cache/files/md5/ab" / ("c" * 30)
    cache.parent.mkdir(parents=True)
    (folder.parent / "b.png").rename(cache)
    (folder / "b.png").unlink()
    (folder / "b.png").symlink_to(cache)  # what DVC does with cache.type symlink
    assert messages(folder) == []


def test_missing_extra_and_misspelt_pictures(folder: Path) -> None:
    write_picture(folder / "mountain.jpg")
    write_picture(folder / "river.jpg")
    write_rows(
        folder,
        {"file_name": "a.jpg", "text": "one"},
        {"file_name": "B.PNG", "text": "two"},
        {"file_name": "mountian.jpg", "text": "three"},
        {"file_name": "lake.jpg", "text": "four"},
    )
    assert messages(folder) == [
        "metadata.jsonl:2: the picture 'B.PNG' is missing. Did you mean 'b.png'?",
        "metadata.jsonl:3: the picture 'mountian.jpg' is missing. Did you mean 'mountain.jpg'?",
        "metadata.jsonl:4: the picture 'lake.jpg' is missing. "
        "Correct the name, put the picture there, or remove the row.",
        "river.jpg: the picture has no row in metadata.jsonl. "
        'Add a row for it, {"file_name": "river.jpg", "text": "..."}, or move it away.',
    ]


def test_the_picture_of_a_broken_line_is_not_reported_as_one_without_a_row(folder: Path) -> None:
    write_rows(folder, {"file_name": "a.jpg", "text": "one"}, '{"file_name": "b.png", "text": "two}')
    assert len(messages(folder)) == 1


def test_the_same_name_in_two_unicode_spellings(folder: Path) -> None:
    composed, apart = "é.png", unicodedata.normalize("NFD", "é.png")
    (folder / "b.png").rename(folder / apart)
    write_rows(folder, {"file_name": "a.jpg", "text": "one"}, {"file_name": composed, "text": "two"})
    found = only_message(folder, f"metadata.jsonl:2: the picture '{composed}' is missing. ")
    assert found.endswith(f"The folder has it in another Unicode spelling: `mv -- '{apart}' '{composed}'`.")


def test_a_subfolder_with_pictures(folder: Path) -> None:
    (folder / "notes").mkdir()
    (folder / "more" / "deep").mkdir(parents=True)
    write_picture(folder / "more" / "deep" / "c.jpg")
    only_message(folder, "more: a subfolder with pictures; a set is one flat folder. ")


def test_captions_that_the_base_would_truncate(folder: Path) -> None:
    write_rows(folder, {"file_name": "a.jpg", "text": "one two"}, {"file_name": "b.png", "text": "one two three four"})
    assert messages(folder, caption_length=lambda text: (len(text.split()), 3)) == [
        "metadata.jsonl:2: the caption has 4 tokens, the base reads 3. Shorten it by 1 or more."
    ]


def test_every_problem_is_reported_at_once(folder: Path) -> None:
    write_picture(folder / "extra.jpg")
    (folder / "b.png").write_bytes(b"")
    write_rows(
        folder,
        "{",
        {"file_name": "a.jpg"},
        {"file_name": "b.png", "text": "long " * 9},
        {"file_name": "c.png", "text": "three", "focus": [2, 2]},
    )
    found = messages(folder, caption_length=lambda text: (len(text.split()), 5))
    starts = (
        "metadata.jsonl:1: not valid JSON",
        "metadata.jsonl:2: no caption",
        "metadata.jsonl:4: focus is [2, 2]",
        "metadata.jsonl:3: the caption has 9 tokens",
        "metadata.jsonl:4: the picture 'c.png' is missing",
        "extra.jpg: the picture has no row",
        "metadata.jsonl:3: 'b.png': the file is empty",
    )
    assert len(found) == len(starts)
    assert all(message.startswith(start) for message, start in zip(found, starts, strict=True)), found


def test_many_pictures_in_several_processes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"file_name": f"{number}.png", "text": "x"} for number in range(60)]
    for row in rows:
        write_picture(folder / str(row["file_name"]), (8, 8))
    for name in ("a.jpg", "b.png"):
        (folder / name).unlink()
    for number in (3, 41):
        (folder / f"{number}.png").write_bytes(b"broken")
    write_rows(folder, *rows)
    alone = find_problems(folder, max_megapixels=1, workers=1)
    assert [problem.where.rpartition(":")[2] for problem in alone] == ["4", "42"]
    assert find_problems(folder, max_megapixels=1, workers=2) == alone
    assert "Traceback" not in capsys.readouterr().err


def test_garbage_raises_nothing(folder: Path) -> None:
    chance = random.Random(7)
    values: list[object] = [
        None,
        True,
        -1,
        10**400,
        math.nan,
        math.inf,
        "",
        "\0",
        "é" * 300,
        "../x",
        [],
        [[[]]],
        {},
        {"": [None]},
    ]
    keys = ["file_name", "text", "focus", "box", "Box", "", "\x1b[2J", "é"]
    for _ in range(150):
        rows: list[object] = [
            {chance.choice(keys): chance.choice(values) for _ in range(4)} if chance.random() < 0.8 else values
            for _ in range(5)
        ]
        write_rows(folder, *rows, *(chance.choice(['{"a":', "\x00", "nul", "é", '{"file_name":"a.jpg","text":"x"}']),))
        for message in messages(folder):
            message.encode()  # no half of a surrogate pair
            assert message.isprintable()
            assert len(message) < 1000
    for length in (1, 10, 1000):
        (folder / "metadata.jsonl").write_bytes(chance.randbytes(length))
        assert messages(folder)
