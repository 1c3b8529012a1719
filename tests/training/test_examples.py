import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.base.device import precision_of
from pipeline.errors import UserError
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


def test_what_is_encoded_under_tf32_is_not_taken_for_float32(tmp_path: Path, fresh_tiny: Any) -> None:
    base, pixels = fresh_tiny(), torch.zeros(3, 32, 32).byte()
    examples.encode_example(base, "a", pixels, "a red hill", False, tmp_path)
    examples.encode_example(base, "a", pixels, "a red hill", False, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 and precision_of(torch.bfloat16) == "torch.bfloat16"
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        examples.encode_example(base, "a", pixels, "a red hill", False, tmp_path)
        assert len(list(tmp_path.iterdir())) == 2 and precision_of(torch.bfloat16) == "torch.bfloat16"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


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


def test_encoded_pictures_of_a_large_set_are_not_all_in_memory(
    tmp_path: Path, fresh_tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = fresh_tiny()
    examples._opened.cache_clear()
    pixels = torch.randint(256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()
    plain, read = examples._read, []

    def spy(path: Path) -> Any:
        read.append(path)
        return plain(path)

    made = [examples.encode_example(base, str(row), pixels[row], "a hill", False, tmp_path) for row in range(12)]
    assert all(isinstance(example.encoded, Path) for example in made)
    monkeypatch.setattr(examples, "_read", spy)
    for _ in range(2):
        for row, example in enumerate(made):
            assert torch.equal(example.posterior.mean, base.encode(pixels[row][None].float() / 255).mean)
            assert example.flipped is None and example.conditioning["embedding"].shape[0] == 1
    assert len(read) == 12  # a small set is read once
    assert examples._opened.cache_info().maxsize == examples.OPEN


def test_an_encoded_picture_that_is_gone_is_named(tmp_path: Path, fresh_tiny: Any) -> None:
    pixels = torch.zeros(3, 32, 32, dtype=torch.uint8)
    example = examples.encode_example(fresh_tiny(), "a", pixels, "a lake at noon", False, tmp_path)
    examples._opened.cache_clear()
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="deleted or damaged while it was needed. Run the same again"):
        example.posterior.sample(torch.Generator())
