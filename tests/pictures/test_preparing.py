"""A raw set becomes a prepared one, whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from pipeline.errors import UserError
from pipeline.pictures import preparing
from pipeline.pictures.preparing import LEDGER, prepare_picture, prepare_set
from tests.pictures.samples import HEIGHT, WIDTH, contents_of, noise, row, settings, swapped_profile


def test_a_picture_that_cannot_be_read_is_a_users_mistake(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: 0\.006144 megapixels, more than the 0\.006 allowed"):
        prepare_picture(tmp_path / "a.png", row(), settings(max_megapixels=0.006))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"a\.png: corrupt or truncated"):
        prepare_picture(tmp_path / "a.png", row(), settings())


def test_a_prepared_set_is_an_imagefolder(raw: Path, tmp_path: Path) -> None:
    prepare_set(raw, tmp_path / "deep" / "out", settings(), workers=1)
    folder = tmp_path / "deep" / "out"
    names = [json.loads(line)["file_name"] for line in (raw / "metadata.jsonl").read_text().split("\n")]
    ledger = [json.loads(line) for line in (folder / LEDGER).read_text().split("\n")[:-1]]
    assert [entry["source"] for entry in ledger] == names
    assert set(contents_of(folder)) == {*(entry["file_name"] for entry in ledger), "metadata.jsonl", LEDGER}
    loaded = load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    assert loaded.column_names == ["image", "text"]
    assert loaded["text"] == [f'"{number}" é\u2028\n; rm' for number in reversed(range(18))]
    for entry, example in zip(ledger, loaded, strict=True):
        image, expected = prepare_picture(raw / entry["source"], row(entry["source"]), settings())
        assert entry == expected
        assert (example["image"].mode, example["image"].size) == ("RGB", (WIDTH, HEIGHT))
        np.testing.assert_array_equal(np.asarray(example["image"]), np.asarray(image))


def test_pngs_hold_nothing_but_pixels(raw: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    profile = swapped_profile()
    Image.fromarray(noise()).save(raw / "0 dawn.JPG", exif=exif, icc_profile=profile, dpi=(300, 300), comment=b"c")
    (raw / "metadata.jsonl").write_text('{"file_name": "0 dawn.JPG", "text": "one"}\n')
    prepare_set(raw, tmp_path / "out", settings())
    data = (tmp_path / "out" / "0 dawn.png").read_bytes()
    chunks, at = [], 8
    while at < len(data):
        chunks.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}


def test_the_same_bytes_whatever_the_workers(raw: Path, tmp_path: Path) -> None:
    prepare_set(raw, tmp_path / "out", settings(), workers=1)
    alone = contents_of(tmp_path / "out")
    prepare_set(raw, tmp_path / "out", settings(), workers=2)
    assert contents_of(tmp_path / "out") == alone
    assert len(alone) == 20


def test_a_failure_leaves_the_old_set(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_set(raw, tmp_path / "out", settings(), workers=1)
    before = contents_of(tmp_path / "out")
    (raw / "2 été 山.webp").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"2 été 山\.webp: corrupt"):
        prepare_set(raw, tmp_path / "out", settings(width=64), workers=1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "prepare_picture", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_set(raw, tmp_path / "out", settings(width=64), workers=1)
    assert contents_of(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "out"}
