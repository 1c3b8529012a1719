"""The mistakes of one row, each with its line."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.pictures.metadata import read_rows
from tests.pictures.samples import messages, only_message, write_rows


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"file_name": "b.png", "text": "two"', "not valid JSON (Expecting ',' delimiter, column 37)"),
        ('["b.png", "two"]', "found ['b.png', 'two'], not a JSON object"),
        ("1" * 5000, "JSON that cannot be read"),
        ("[" * 100_000, "JSON that cannot be read"),
        ('{"file_name": "b.png", "text": "two", "text": "three"}', "the key 'text' occurs twice"),
        ('{"file_name": "b.png"}', "no caption"),
        ('{"file_name": "b.png", "text": null}', "text is None"),
        ('{"file_name": "b.png", "text": NaN}', "text is nan"),
        ('{"file_name": "b.png", "text": 7}', "text is 7"),
        ('{"file_name": "b.png", "text": " \\t"}', "the caption is blank"),
        ('{"file_name": "b.png", "text": "2024-05-01T10:00"}', "the caption '2024-05-01T10:00' is only a date"),
        ('{"file_name": "b.png", "text": "bell\\u0007"}', "the caption 'bell\\x07' has a control character"),
        ('{"file_name": "b.png", "text": "\\ud800"}', "the caption '\\ud800' has a control character"),
        ('{"file_name": "b.png", "text": "two", "focus": [0.5, 1.5]}', "focus is [0.5, 1.5]"),
        ('{"file_name": "b.png", "text": "two", "focus": ["0.5", 1]}', "focus is ['0.5', 1]"),
        ('{"file_name": "b.png", "text": "two", "focus": [true, 1]}', "focus is [True, 1]"),
        ('{"file_name": "b.png", "text": "two", "focus": [NaN, 1]}', "focus is [nan, 1]"),
        ('{"file_name": "b.png", "text": "two", "focus": "centre"}', "focus is 'centre'"),
        ('{"file_name": "b.png", "text": "two", "box": [0, 0, 1]}', "box is [0, 0, 1]"),
        ('{"file_name": "b.png", "text": "two", "box": [0.5, 0, 0.5, 1]}', "box [0.5, 0, 0.5, 1] has no area"),
        ('{"file_name": "b.png", "text": "two", "box": [0, 0.9, 1, 0.1]}', "box [0, 0.9, 1, 0.1] has no area"),
        ('{"file_name": "b.png", "text": "two", "bbox": [0, 0, 9, 9]}', "the column 'bbox' is not read"),
        ('{"file_name": "b.png", "text": "two", "Focus": [0, 0]}', "the column 'Focus' is not read"),
        ('{"file_name": "b.png", "text": "two", "focus_point": 1}', "the column 'focus_point' is not read"),
    ],
)
def test_faulty_lines(folder: Path, line: str, found: str) -> None:
    write_rows(folder, {"file_name": "a.jpg", "text": "one"}, line)
    if "file_name" not in line:
        (folder / "b.png").unlink()
    message = only_message(folder, f"metadata.jsonl:2: {found}")
    assert len(message) < 400
    with pytest.raises(UserError) as raised:
        read_rows(folder)
    assert str(raised.value).endswith(message)


def test_a_caption_under_another_name(folder: Path) -> None:
    write_rows(folder, {"file_name": "a.jpg", "text": "one"}, {"file_name": "b.png", "prompt": "two"})
    assert only_message(folder, "metadata.jsonl:2: no caption. Rename the column 'prompt' to 'text'.")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("", "file_name is empty"),
        ("../raw/b.png", "file_name '../raw/b.png' leaves the folder"),
        ("/etc/b.png", "file_name '/etc/b.png' leaves the folder"),
        ("..\\b.png", "file_name '..\\\\b.png' leaves the folder"),
        ("sub/b.png", "file_name 'sub/b.png' lies in a subfolder; a set is one flat folder"),
        ("b\n.png", "file_name 'b\\n.png' has a control character"),
        ("b\0.png", "file_name 'b\\x00.png' has a control character"),
        ("\ud800.png", "file_name '\\ud800.png' has a control character"),
        (".b.png", "file_name '.b.png' begins with a dot"),
        ("a::b.png", "file_name 'a::b.png' contains '::'"),
        ("my test 2.png", "file_name 'my test 2.png' contains the word 'test'"),
        ("x" * 300 + ".png", "file_name 'xxx"),
        ("c.png", "the picture 'c.png' is missing"),
    ],
)
def test_invalid_file_names(folder: Path, name: str, found: str) -> None:
    (folder / "b.png").unlink()
    write_rows(folder, {"file_name": "a.jpg", "text": "one"}, {"file_name": name, "text": "two"})
    only_message(folder, f"metadata.jsonl:2: {found}")


def test_words_within_words_are_not_splits(folder: Path) -> None:
    for name in ("a.jpg", "b.png"):
        (folder / name).rename(folder / f"latest-{name}")
    write_rows(folder, {"file_name": "latest-a.jpg", "text": "one"}, {"file_name": "latest-b.png", "text": "two"})
    assert messages(folder) == []
