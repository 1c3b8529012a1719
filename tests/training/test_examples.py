import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.training import examples


def test_encoded_pictures_are_kept_until_the_picture_the_caption_or_the_code_is_another(
    tmp_path: Path, fresh_tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = fresh_tiny()
    pixels = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    one = examples.encode_example(base, "a", pixels, "a red hill", True, tmp_path)
    plain, encoded = examples._encode, []

    def spy(*arguments: Any) -> Any:
        encoded.append(arguments[2])
        return plain(*arguments)

    monkeypatch.setattr(examples, "_encode", spy)
    again = examples.encode_example(base, "a", pixels, "a red hill", True, tmp_path)
    assert encoded == [] and torch.equal(one.posterior.mean, again.posterior.mean)
    assert one.flipped and again.flipped and torch.equal(one.flipped.std, again.flipped.std)
    assert torch.equal(one.posterior.mean, base.encode(pixels[None].float() / 255).mean)
    assert torch.equal(one.flipped.mean, base.encode(pixels.flip(-1)[None].float() / 255).mean)
    examples.encode_example(base, "a", pixels, "a lake", True, tmp_path)
    examples.encode_example(base, "a", pixels.flip(0), "a hill", True, tmp_path)
    monkeypatch.setattr(examples, "code_digest", lambda patterns: "other code")
    examples.encode_example(base, "a", pixels, "a red hill", True, tmp_path)
    assert encoded == ["a lake", "a hill", "a red hill"]
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    examples.encode_example(base, "a", pixels, "a red hill", True, tmp_path)
    assert len(encoded) == 4


def test_the_cache_of_encoded_pictures_has_a_limit_but_for_those_in_use(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.safetensors").write_bytes(bytes(100))
        os.utime(tmp_path / f"{number}.safetensors", (1000 + number, 1000 + number))

    def left(limit: int, since: float) -> str:
        examples.forget_oldest(tmp_path, limit, since)
        return "".join(sorted(path.stem for path in tmp_path.iterdir()))

    assert left(500, 2000) == "01234"
    assert left(499, 2000) == "1234"
    assert left(0, 1003) == "34"
    assert left(100, 2000) == "4"
