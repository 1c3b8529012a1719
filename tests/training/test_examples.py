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
