from pathlib import Path

import pytest

from pipeline.frames.cache import FrameCache, Made

MADE = Made([[0.0, 1 / 3, 1.0]], 0.987654)


@pytest.fixture
def cache(tmp_path: Path) -> FrameCache:
    """One with a folder of three frames, `a`."""
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        (frames / f"{number}.png").write_bytes(bytes([number]))
    cache = FrameCache(tmp_path / "cache")
    cache.add("a", frames, MADE)
    return cache


def test_what_was_added_comes_back_to_the_byte(cache: FrameCache, tmp_path: Path) -> None:
    assert cache.has("a") and not cache.has("b")
    assert cache.copy("a", tmp_path / "out") == MADE
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        f"{number}.png": bytes([number]) for number in range(3)
    }


@pytest.mark.parametrize("damage", ["gone", "frame gone", "frame empty", "facts cut", "facts a list"])
def test_what_is_not_whole_is_not_there_until_it_is_added_again(cache: FrameCache, tmp_path: Path, damage: str) -> None:
    known = tmp_path / "cache/a"
    if damage == "gone":
        known.rename(tmp_path / "away")
    elif damage == "frame gone":
        (known / "frames/1.png").unlink()
    elif damage == "frame empty":
        (known / "frames/1.png").write_bytes(b"")
    else:
        (known / "made.json").write_text('{"alphas": [' if damage == "facts cut" else "[]")
    assert not cache.has("a")
    cache.add("a", tmp_path / "frames", MADE)
    assert cache.has("a")
