from pathlib import Path

import pytest

from pipeline.frames.cache import FrameCache, Made

MADE = Made([[0.0, 1 / 3, 1.0]], 0.987654)


@pytest.fixture
def calls(tmp_path: Path) -> list[Path]:
    return []


def fetch(tmp_path: Path, calls: list[Path], digest: str, target: str) -> tuple[Made, dict[str, bytes]]:
    def make(folder: Path) -> Made:
        calls.append(folder)
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.png").write_bytes(f"{digest} {number}".encode())
        return MADE

    made = FrameCache(tmp_path / "cache").fetch(digest, tmp_path / target, make)
    return made, {path.name: path.read_bytes() for path in (tmp_path / target).iterdir()}


def test_frames_are_made_once_for_each_digest(tmp_path: Path, calls: list[Path]) -> None:
    first = fetch(tmp_path, calls, "a", "one")
    assert first == (MADE, {f"{n}.png": f"a {n}".encode() for n in range(3)})
    assert fetch(tmp_path, calls, "a", "two") == first and len(calls) == 1
    other = fetch(tmp_path, calls, "b", "three")
    assert other[1]["0.png"] == b"b 0" and len(calls) == 2


@pytest.mark.parametrize("damage", ["gone", "frame gone", "frame empty", "facts cut", "facts a list"])
def test_what_is_not_whole_is_made_again(tmp_path: Path, calls: list[Path], damage: str) -> None:
    first = fetch(tmp_path, calls, "a", "one")
    known = tmp_path / "cache/a"
    if damage == "gone":
        known.rename(tmp_path / "away")
    elif damage == "frame gone":
        (known / "frames/1.png").unlink()
    elif damage == "frame empty":
        (known / "frames/1.png").write_bytes(b"")
    else:
        (known / "made.json").write_text('{"alphas": [' if damage == "facts cut" else "[]")
    assert fetch(tmp_path, calls, "a", "two") == first and len(calls) == 2
    assert fetch(tmp_path, calls, "a", "three") == first and len(calls) == 2, "and then known again"


def test_nothing_is_kept_of_frames_that_failed(tmp_path: Path) -> None:
    def fail(folder: Path) -> Made:
        folder.mkdir()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        FrameCache(tmp_path / "cache").fetch("a", tmp_path / "one", fail)
    assert not (tmp_path / "cache").exists()
