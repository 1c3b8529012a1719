"""What `check` says of a raw set."""

import json
import math
import os
import random
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.pictures.imagefolder import find_problems
from pipeline.pictures.metadata import read_rows
from pipeline.pictures.rows import Row


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A faultless set of two pictures."""
    folder = tmp_path / "raw"
    folder.mkdir()
    _picture(folder / "a.jpg")
    _picture(folder / "b.png")
    _write(folder, {"file_name": "a.jpg", "text": "one"}, {"file_name": "b.png", "text": "two"})
    return folder


def _picture(path: Path, size: tuple[int, int] = (64, 48)) -> None:
    noise = random.Random(0).randbytes(size[0] * size[1] * 3)  # so that the file is long enough to cut
    Image.frombytes("RGB", size, noise).save(path)


def _write(folder: Path, *rows: object) -> None:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _told(folder: Path, caption_length: Callable[[str], tuple[int, int]] | None = None) -> list[str]:
    problems = find_problems(folder, max_megapixels=1, caption_length=caption_length)
    return [str(problem).replace(f"{folder}/", "") for problem in problems]


def _only(folder: Path, start: str) -> str:
    """The one problem of a set, which must begin like this."""
    told = _told(folder)
    assert len(told) == 1, told
    assert told[0].startswith(start), told[0]
    return told[0]


def test_a_faultless_set(folder: Path) -> None:
    (folder / "README.txt").write_text("notes are no pictures")
    (folder / ".hidden.jpg").write_text("nor is what is hidden")
    assert _told(folder) == []
    assert read_rows(folder) == (Row(file_name="a.jpg", text="one"), Row(file_name="b.png", text="two"))


def test_rows_keep_the_order_of_the_file_and_know_focus_and_box(folder: Path) -> None:
    _write(
        folder,
        {"file_name": "b.png", "text": "two", "focus": [0, 0.25], "licence": {"of": ["anything"]}},
        "  \r",
        {"file_name": "a.jpg", "text": "un\u2028é", "box": [0.1, 0.2, 1, 1], "focus": None},
    )
    assert _told(folder) == []
    assert read_rows(folder) == (
        Row(file_name="b.png", text="two", focus=(0, 0.25)),
        Row(file_name="a.jpg", text="un\u2028é", box=(0.1, 0.2, 1, 1)),
    )


def test_missing_folder_and_missing_metadata(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    assert "the folder is missing" in str(find_problems(raw, max_megapixels=1)[0])
    assert "dvc pull" in str(find_problems(raw, max_megapixels=1)[0])
    raw.mkdir()
    assert _only(raw, "metadata.jsonl: the file is missing. ")
    (raw / "metadata.csv").write_text("file_name,text\n")
    assert "Convert metadata.csv" in _only(raw, "metadata.jsonl: the file is missing. ")
    (raw / "metadata.jsonl").mkdir()
    assert _only(raw, "metadata.jsonl: not a file. ")
    (raw / "metadata.jsonl").rmdir()
    (raw / "metadata.jsonl").write_text("\n \n")
    assert _only(raw, "metadata.jsonl: no rows. ")
    (tmp_path / "file").write_text("")
    assert "not a folder" in str(find_problems(tmp_path / "file", max_megapixels=1)[0])


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
    _write(folder, {"file_name": "a.jpg", "text": "one"}, line)
    if "file_name" not in line:
        (folder / "b.png").unlink()
    message = _only(folder, f"metadata.jsonl:2: {found}")
    assert len(message) < 400
    with pytest.raises(UserError) as raised:
        read_rows(folder)
    assert str(raised.value).endswith(message)


def test_a_caption_under_another_name(folder: Path) -> None:
    _write(folder, {"file_name": "a.jpg", "text": "one"}, {"file_name": "b.png", "prompt": "two"})
    assert _only(folder, "metadata.jsonl:2: no caption. Rename the column 'prompt' to 'text'.")


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
    _only(folder, f"metadata.jsonl{found}")
    with pytest.raises(UserError):
        read_rows(folder)


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
def test_names_that_cannot_be(folder: Path, name: str, found: str) -> None:
    (folder / "b.png").unlink()
    _write(folder, {"file_name": "a.jpg", "text": "one"}, {"file_name": name, "text": "two"})
    _only(folder, f"metadata.jsonl:2: {found}")


def test_words_within_words_are_no_splits(folder: Path) -> None:
    for name in ("a.jpg", "b.png"):
        (folder / name).rename(folder / f"latest-{name}")
    _write(folder, {"file_name": "latest-a.jpg", "text": "one"}, {"file_name": "latest-b.png", "text": "two"})
    assert _told(folder) == []


def test_a_link_that_leaves_the_folder(folder: Path) -> None:
    (folder / "b.png").rename(folder.parent / "b.png")
    (folder.parent / "secret.png").write_text("not looked at, or it would be said to be no picture")
    (folder / "b.png").symlink_to("../secret.png")
    _only(folder, "metadata.jsonl:2: 'b.png' is a link that leaves the folder")
    (folder / "b.png").unlink()
    (folder / "b.png").symlink_to("a.jpg")
    assert _told(folder) == []
    cache = folder.parent / ".dvc/cache/files/md5/ab" / ("c" * 30)
    cache.parent.mkdir(parents=True)
    (folder.parent / "b.png").rename(cache)
    (folder / "b.png").unlink()
    (folder / "b.png").symlink_to(cache)  # what DVC does with cache.type symlink
    assert _told(folder) == []


def test_missing_extra_and_misspelt_pictures(folder: Path) -> None:
    _picture(folder / "mountain.jpg")
    _picture(folder / "river.jpg")
    _write(
        folder,
        {"file_name": "a.jpg", "text": "one"},
        {"file_name": "B.PNG", "text": "two"},
        {"file_name": "mountian.jpg", "text": "three"},
        {"file_name": "lake.jpg", "text": "four"},
    )
    assert _told(folder) == [
        "metadata.jsonl:2: the picture 'B.PNG' is missing. Did you mean 'b.png'?",
        "metadata.jsonl:3: the picture 'mountian.jpg' is missing. Did you mean 'mountain.jpg'?",
        "metadata.jsonl:4: the picture 'lake.jpg' is missing. "
        "Correct the name, put the picture there, or remove the row.",
        "river.jpg: the picture has no row in metadata.jsonl. "
        'Add a row for it, {"file_name": "river.jpg", "text": "..."}, or move it away.',
    ]


def test_a_picture_of_a_broken_line_is_not_said_to_have_no_row(folder: Path) -> None:
    _write(folder, {"file_name": "a.jpg", "text": "one"}, '{"file_name": "b.png", "text": "two}')
    assert len(_told(folder)) == 1


def test_the_same_name_in_two_unicode_spellings(folder: Path) -> None:
    composed, apart = "é.png", unicodedata.normalize("NFD", "é.png")
    (folder / "b.png").rename(folder / apart)
    _write(folder, {"file_name": "a.jpg", "text": "one"}, {"file_name": composed, "text": "two"})
    told = _only(folder, f"metadata.jsonl:2: the picture '{composed}' is missing. ")
    assert told.endswith(f"The folder has it in another Unicode spelling: `mv -- '{apart}' '{composed}'`.")


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
        _picture(folder / name)
    _write(folder, {"file_name": one, "text": "one"}, {"file_name": two, "text": "two"})
    assert unicodedata.normalize("NFC", _only(folder, "metadata.jsonl:2: ")).startswith(f"metadata.jsonl:2: {found}")


def test_a_subfolder_with_pictures(folder: Path) -> None:
    (folder / "notes").mkdir()
    (folder / "more" / "deep").mkdir(parents=True)
    _picture(folder / "more" / "deep" / "c.jpg")
    _only(folder, "more: a subfolder with pictures; a set is one flat folder. ")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif", "avif", "jp2", "ppm"])
def test_truncated_pictures(folder: Path, suffix: str) -> None:
    path = folder / f"c.{suffix}"
    _picture(path)
    _write(folder, *({"file_name": name, "text": "x"} for name in ("a.jpg", "b.png", path.name)))
    assert _told(folder) == []
    whole = path.read_bytes()
    for share in (0.9, 0.5, 0.1):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "corrupt" in _only(folder, f"metadata.jsonl:3: 'c.{suffix}': ")


def test_pictures_that_are_none(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"")
    _only(folder, "metadata.jsonl:2: 'b.png': the file is empty. ")
    (folder / "b.png").write_text("<svg></svg>")
    _only(folder, "metadata.jsonl:2: 'b.png': corrupt, or not a picture of a known format (JPEG, PNG")
    (folder / "b.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # Pillow would run Ghostscript
    _only(folder, "metadata.jsonl:2: 'b.png': corrupt, or not a picture")
    (folder / "b.png").unlink()
    (folder / "b.png").mkdir()
    _only(folder, "metadata.jsonl:2: 'b.png' is not a file. ")
    (folder / "b.png").rmdir()
    os.mkfifo(folder / "b.png")  # reading it would wait for ever
    _only(folder, "metadata.jsonl:2: 'b.png' is not a file. ")


def _bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [1001, 12_000, 60_000])  # over ours; over Pillow's warning; over Pillow's error
def test_a_decompression_bomb_is_refused_by_its_header(
    folder: Path, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)
    (folder / "b.png").write_bytes(_bomb(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = _only(folder, "metadata.jsonl:2: 'b.png': ")
    assert f"{side * side / 1e6:.4g} megapixels, more than the 1 allowed" in told
    assert "prepare.max_megapixels" in told
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # the rest of the process keeps its own limit


def test_a_limit_above_pillows_own(folder: Path) -> None:
    (folder / "b.png").write_bytes(_bomb(20_000, 20_000))
    problems = find_problems(folder, max_megapixels=500)
    assert ["truncated" in problem.found for problem in problems] == [True]  # it was let through to the decoder


def test_captions_that_the_base_would_cut_off(folder: Path) -> None:
    _write(folder, {"file_name": "a.jpg", "text": "one two"}, {"file_name": "b.png", "text": "one two three four"})
    assert _told(folder, caption_length=lambda text: (len(text.split()), 3)) == [
        "metadata.jsonl:2: the caption has 4 tokens, the base reads 3. Shorten it by 1 or more."
    ]


def test_everything_is_told_at_once(folder: Path) -> None:
    _picture(folder / "extra.jpg")
    (folder / "b.png").write_bytes(b"")
    _write(
        folder,
        "{",
        {"file_name": "a.jpg"},
        {"file_name": "b.png", "text": "long " * 9},
        {"file_name": "c.png", "text": "three", "focus": [2, 2]},
    )
    told = _told(folder, caption_length=lambda text: (len(text.split()), 5))
    starts = (
        "metadata.jsonl:1: not valid JSON",
        "metadata.jsonl:2: no caption",
        "metadata.jsonl:4: focus is [2, 2]",
        "metadata.jsonl:3: the caption has 9 tokens",
        "metadata.jsonl:4: the picture 'c.png' is missing",
        "extra.jpg: the picture has no row",
        "metadata.jsonl:3: 'b.png': the file is empty",
    )
    assert len(told) == len(starts)
    assert all(message.startswith(start) for message, start in zip(told, starts, strict=True)), told


def test_many_pictures_in_several_processes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"file_name": f"{number}.png", "text": "x"} for number in range(60)]
    for row in rows:
        _picture(folder / str(row["file_name"]), (8, 8))
    for name in ("a.jpg", "b.png"):
        (folder / name).unlink()
    for number in (3, 41):
        (folder / f"{number}.png").write_bytes(b"broken")
    _write(folder, *rows)
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
        _write(folder, *rows, *(chance.choice(['{"a":', "\x00", "nul", "é", '{"file_name":"a.jpg","text":"x"}']),))
        for message in _told(folder):
            message.encode()  # no half of a surrogate pair
            assert message.isprintable()
            assert len(message) < 1000
    for length in (1, 10, 1000):
        (folder / "metadata.jsonl").write_bytes(chance.randbytes(length))
        assert _told(folder)
