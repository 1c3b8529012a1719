"""A picture is decoded once for each content, and never taken for whole when it might not be."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.pictures import integrity
from pipeline.pictures.integrity import find_faults
from pipeline.pictures.reading import load_picture
from pipeline.pictures.rows import Fault


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded, in order."""
    names: list[str] = []

    def load(path: Path, max_megapixels: float) -> object:
        names.append(path.name)
        return load_picture(path, max_megapixels)

    monkeypatch.setattr(integrity, "load_picture", load)
    return names


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Two whole pictures and a broken one."""
    paths = [tmp_path / "raw" / name for name in ("a.png", "b.png", "broken.png")]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        Image.effect_noise((40, 30), 50 + number).save(path)
    paths[2].write_bytes(paths[2].read_bytes()[:200])
    return paths


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "memory/set.txt"


def faults(paths: list[Path], memory: Path | None, max_megapixels: float = 1.0) -> dict[str, Fault]:
    found = find_faults(paths, max_megapixels, label="set", memory=memory)
    return {path.name: fault for path, fault in found.items()}


def test_what_was_whole_is_not_decoded_again_and_what_was_not_is(
    paths: list[Path], memory: Path, decoded: list[str]
) -> None:
    first = faults(paths, memory)
    assert list(first) == ["broken.png"] and "corrupt" in first["broken.png"][0]
    assert decoded == ["a.png", "b.png", "broken.png"]
    decoded.clear()
    assert faults(paths, memory) == first
    assert decoded == ["broken.png"]


def test_a_copy_under_another_name_is_known(paths: list[Path], memory: Path, decoded: list[str]) -> None:
    faults(paths, memory)
    decoded.clear()
    assert faults([paths[0].rename(paths[0].with_name("c.png"))], memory) == {}
    assert decoded == []


def test_other_bytes_are_decoded_whatever_the_time_stamp(paths: list[Path], memory: Path, decoded: list[str]) -> None:
    faults(paths, memory)
    decoded.clear()
    before = paths[0].stat()
    paths[0].write_bytes(paths[2].read_bytes())
    os.utime(paths[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "a.png" in faults(paths, memory)
    assert decoded == ["a.png", "broken.png"]


def test_another_limit_decodes_again(paths: list[Path], memory: Path, decoded: list[str]) -> None:
    faults(paths, memory)
    assert list(faults(paths, memory, max_megapixels=0.001)) == ["a.png", "b.png", "broken.png"]
    assert list(faults(paths, memory)) == ["broken.png"], "what was refused was kept as whole"


@pytest.mark.parametrize("change", ["code", "Pillow"])
def test_other_code_or_another_pillow_decodes_again(
    paths: list[Path], memory: Path, decoded: list[str], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults(paths, memory)
    decoded.clear()
    integrity._code_digest.cache_clear()
    if change == "code":
        room = memory.parent / "room"
        room.mkdir()
        (room / "reading.py").write_text("# other code")
        monkeypatch.setattr(integrity, "__file__", str(room / "integrity.py"))
    else:
        monkeypatch.setattr("PIL.__version__", "99.0")
    faults(paths, memory)
    integrity._code_digest.cache_clear()
    assert decoded == ["a.png", "b.png", "broken.png"]


def in_half(memory: Path) -> None:
    memory.write_bytes(memory.read_bytes()[: memory.stat().st_size // 2])


def as_folder(memory: Path) -> None:
    memory.unlink()
    memory.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda memory: memory.write_bytes(b""),
        lambda memory: memory.write_bytes(b"\xff\xfe\x00\n\n"),
        lambda memory: memory.write_text("\n\n\n"),
        lambda memory: memory.write_text("0" + memory.read_text()),
        in_half,
        as_folder,
    ],
)
def test_a_damaged_memory_is_harmless(
    paths: list[Path], memory: Path, decoded: list[str], damage: Callable[[Path], object]
) -> None:
    expected = faults(paths, memory)
    damage(memory)
    decoded.clear()
    assert faults(paths, memory) == expected
    assert "broken.png" in decoded and len(decoded) >= 2
    if memory.is_file():  # written anew
        decoded.clear()
        assert faults(paths, memory) == expected
        assert decoded == ["broken.png"]


def test_a_file_that_is_replaced_while_it_is_decoded_is_not_remembered(
    paths: list[Path], memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = paths[2].read_bytes()

    def load(path: Path, max_megapixels: float) -> object:
        picture = load_picture(path, max_megapixels)
        path.write_bytes(broken)
        return picture

    with monkeypatch.context() as patch:
        patch.setattr(integrity, "load_picture", load)
        faults(paths[:1], memory)
    assert list(faults(paths[:1], memory)) == ["a.png"]


def test_without_a_memory_nothing_is_kept(paths: list[Path], tmp_path: Path, decoded: list[str]) -> None:
    faults(paths, None)
    faults(paths, None)
    assert len(decoded) == 6 and [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_what_is_no_longer_there_is_forgotten(paths: list[Path], memory: Path) -> None:
    faults(paths, memory)
    before = len(memory.read_text().splitlines())
    faults(paths[1:], memory)
    assert (before, len(memory.read_text().splitlines())) == (3, 2)
