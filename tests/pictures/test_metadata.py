"""metadata.jsonl as a file: whether it is there, its encoding, and rows that collide."""

import unicodedata
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.pictures.imagefolder import find_problems
from pipeline.pictures.metadata import read_rows
from pipeline.pictures.rows import Row
from tests.pictures.samples import messages, only_message, write_picture, write_rows


def test_rows_keep_the_order_of_the_file_and_know_focus_and_box(folder: Path) -> None:
    write_rows(
        folder,
        {"file_name": "b.png", "text": "two", "focus": [0, 0.25], "licence": {"of": ["anything"]}},
        "  \r",
        {"file_name": "a.jpg", "text": "un\u2028é", "box": [0.1, 0.2, 1, 1], "focus": None},
    )
    assert messages(folder) == []
    assert read_rows(folder) == (
        Row(file_name="b.png", text="two", focus=(0, 0.25)),
        Row(file_name="a.jpg", text="un\u2028é", box=(0.1, 0.2, 1, 1)),
    )


def test_missing_folder_and_missing_metadata(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    assert "the folder is missing" in str(find_problems(raw, max_megapixels=1)[0])
    assert "dvc pull" in str(find_problems(raw, max_megapixels=1)[0])
    raw.mkdir()
    assert only_message(raw, "metadata.jsonl: the file is missing. ")
    (raw / "metadata.csv").write_text("file_name,text\n")
    assert "Convert metadata.csv" in only_message(raw, "metadata.jsonl: the file is missing. ")
    (raw / "metadata.jsonl").mkdir()
    assert only_message(raw, "metadata.jsonl: not a file. ")
    (raw / "metadata.jsonl").rmdir()
    (raw / "metadata.jsonl").write_text("\n \n")
    assert only_message(raw, "metadata.jsonl: no rows. ")
    (tmp_path / "file").write_text("")
    assert "not a folder" in str(find_problems(tmp_path / "file", max_megapixels=1)[0])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"file_name": "a.jpg", "text": "caf\xe9"}\n', ":1: not UTF-8 text (byte 0xe9 in column 36)"),
        (b'\xef\xbb\xbf{"file_name": "a.jpg", "text": "one"}\n', ":1: the file begins with a byte order mark"),
        ('{"file_name": "a.jpg", "text": "one"}\n'.encode("utf-16"), ":1: UTF-16 text"),
        (b'{"file_name": "a.jpg", "text": "one"}\n\x00\x01\x02', ":2: a binary file, not text"),
    ],
)
def test_metadata_that_is_not_utf8(folder: Path, content: bytes, found: str) -> None:
    (folder / "metadata.jsonl").write_bytes(content)
    (folder / "b.png").unlink()
    if b"\xef" not in content:  # what follows the mark can be read
        (folder / "a.jpg").unlink()
    only_message(folder, f"metadata.jsonl{found}")
    with pytest.raises(UserError):
        read_rows(folder)


@pytest.mark.parametrize(
    ("one", "two", "found"),
    [
        ("a.jpg", "a.jpg", "'a.jpg' has a row on line 1 already"),
        ("a.jpg", "a.png", "'a.png' and 'a.jpg' of line 1 would both be prepared as one file, a.png"),
        ("a.jpg", "A.png", "'A.png' and 'a.jpg' of line 1 would both be prepared as one file, a.png"),
        ("é.jpg", unicodedata.normalize("NFD", "É.jpg"), "'É.jpg' and 'é.jpg' of line 1 would both"),
    ],
)
def test_rows_that_collide(folder: Path, one: str, two: str, found: str) -> None:
    for name in ("a.jpg", "b.png"):
        (folder / name).unlink()
    for name in {one, two}:
        write_picture(folder / name)
    write_rows(folder, {"file_name": one, "text": "one"}, {"file_name": two, "text": "two"})
    assert unicodedata.normalize("NFC", only_message(folder, "metadata.jsonl:2: ")).startswith(
        f"metadata.jsonl:2: {found}"
    )
