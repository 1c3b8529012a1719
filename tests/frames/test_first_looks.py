from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.frames.first_looks import FirstLooks


def test_pictures_sort_along_the_morph_and_those_of_the_last_time_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    FirstLooks("alps")(0, 0.3, np.zeros((4, 6, 3), np.uint8))
    looks = FirstLooks("alps")
    for segment, alpha in ((1, 0.5), (0, 1.0), (0, 0.0625)):
        looks(segment, alpha, np.full((4, 6, 3), 100 * segment, np.uint8))
    names = sorted(path.name for path in Path(".work/previews/alps").iterdir())
    assert names == ["000-0.062500.png", "000-1.000000.png", "001-0.500000.png"]
    with Image.open(Path(".work/previews/alps") / names[2]) as image:
        assert image.size == (6, 4) and image.getpixel((0, 0)) == (100, 100, 100)
