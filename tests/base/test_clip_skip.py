"""The text encoder's last layers left out, against encoders that do not have them."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from pipeline.base.opening import open_base
from pipeline.base.protocol import Base
from pipeline.errors import UserError
from tests.tiny import build_tiny, build_tiny_xl, section, text_config

CAPTIONS = ["a red hill", ""]
LAYERS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny bases whose text encoders have three layers."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("deep")
    plain, large = build_tiny(), build_tiny_xl()
    plain.text_encoder = CLIPTextModel(text_config(plain.tokenizer, width=16, projection=16, layers=LAYERS))
    large.text_encoder = CLIPTextModel(text_config(large.tokenizer, width=16, projection=16, layers=LAYERS))
    second = text_config(large.tokenizer, width=24, projection=20, layers=LAYERS)
    large.text_encoder_2 = CLIPTextModelWithProjection(second)
    plain.save_pretrained(root / "plain")
    large.save_pretrained(root / "xl")
    return {"plain": root / "plain", "xl": root / "xl"}


def open_with(folder: Path, skip: int) -> Base:
    return open_base(section(folder, clip_skip=skip), torch.device("cpu"))


def shortened(encoder: nn.Module, layers: int) -> nn.Module:
    """The encoder without its last layers."""
    short = copy.deepcopy(encoder)
    inner = getattr(short, "text_model", short)
    inner.encoder.layers = inner.encoder.layers[: LAYERS - layers]
    return short


@pytest.mark.parametrize("skip", [1, 2])
def test_layers_left_out_are_an_encoder_without_them_and_with_the_last_norm(
    folders: dict[str, Path], skip: int
) -> None:
    whole = open_with(folders["plain"], 0)
    expected = replace(whole, text_encoder=shortened(whole.text_encoder, skip)).condition(CAPTIONS)
    found = open_with(folders["plain"], skip).condition(CAPTIONS)
    assert torch.allclose(found["embedding"], expected["embedding"], atol=1e-6)
    assert not torch.allclose(found["embedding"], whole.condition(CAPTIONS)["embedding"], atol=1e-2)


def test_of_sdxl_both_encoders_leave_it_out_and_the_pooled_caption_stays(folders: dict[str, Path]) -> None:
    whole, found = open_with(folders["xl"], 0), open_with(folders["xl"], 1).condition(["a red hill"])
    tokens = whole.tokenizer(["a red hill"], padding="max_length", truncation=True, return_tensors="pt").input_ids
    # By hand: of three layers the last is never used, and the one before is left out. No norm follows.
    encoders = [shortened(encoder, 2) for encoder in (whole.text_encoder, whole.text_encoder_2)]
    states = [encoder(tokens, output_hidden_states=True).hidden_states[-1] for encoder in encoders]
    assert torch.allclose(found["embedding"], torch.cat(states, dim=-1), atol=1e-6)
    plain = whole.condition(["a red hill"])
    assert torch.equal(found["pooled"], plain["pooled"])
    assert not torch.allclose(found["embedding"], plain["embedding"], atol=1e-2)


@pytest.mark.parametrize(("kind", "most"), [("plain", 2), ("xl", 1)])
def test_more_layers_than_there_are_to_spare_are_refused(folders: dict[str, Path], kind: str, most: int) -> None:
    open_with(folders[kind], most)
    said = rf"base\.clip_skip: {most + 1}, and a text encoder has 3 layers. It can be 0 to {most} for this base"
    with pytest.raises(UserError, match=said):
        open_with(folders[kind], most + 1)


def test_for_adapters_it_is_another_base(folders: dict[str, Path]) -> None:
    assert len({open_with(folders["plain"], skip).digest for skip in (0, 1, 2)}) == 3
