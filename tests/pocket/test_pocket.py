"""The pocket that ships with the repository is the one that its card describes."""

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.base.checking import base_digest
from pipeline.sections import BaseSection
from tests.declarations import ROOT

POCKET = ROOT / "models" / "pocket"
WEIGHTS = (
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_those_of_the_card_and_of_made_json(name: str) -> None:
    digest = hashlib.sha256((POCKET / name).read_bytes()).hexdigest()
    assert digest in (POCKET / "README.md").read_text(encoding="utf-8")
    assert json.loads((POCKET / "made.json").read_text(encoding="utf-8"))["weights"][name] == digest


def test_all_weights_together_are_at_most_36_megabytes() -> None:
    assert sum((POCKET / name).stat().st_size for name in WEIGHTS) <= 36_000_000


def test_the_controlnet_is_the_one_of_its_card_and_for_this_pocket() -> None:
    folder = ROOT / "models" / "pocket-canny"
    weights = folder / "diffusion_pytorch_model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in (folder / "README.md").read_text(encoding="utf-8")
    made = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    section = BaseSection(source=str(POCKET), revision=None, config=None, dtype="float32", clip_skip=0, adapters=())
    assert made["base"] == base_digest(section)
    assert sum((POCKET / name).stat().st_size for name in WEIGHTS) + weights.stat().st_size <= 46_000_000


def test_it_generates_landscapes_of_128_pixels_that_obey_the_time_of_day() -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(POCKET)
    pipe.set_progress_bar_config(disable=True)
    brightness = {}
    for time in ("by day", "at night"):
        caption = f"snowy mountains {time}, one ridge, a snowfield, no {'moon' if 'night' in time else 'sun'}"
        picture = pipe(caption, num_inference_steps=10, generator=torch.Generator().manual_seed(0)).images[0]
        assert picture.size == (128, 128)
        brightness[time] = picture.convert("L").resize((1, 1)).getpixel((0, 0))
    assert brightness["by day"] > brightness["at night"] + 60


def test_nothing_of_the_machine_that_made_it_is_in_its_files() -> None:
    for path in [*POCKET.rglob("*.json"), POCKET / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert "/root" not in text and "/home" not in text and str(Path.cwd()) not in text, path
