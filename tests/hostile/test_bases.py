"""Bases whose files are anything: each is opened as it is or refused, in seconds, and no code of theirs runs."""

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.checking import base_digest, find_base_problems
from pipeline.base.opening import open_base
from pipeline.errors import UserError
from pipeline.sections import BaseSection
from tests.hostile.generators import changed_value, damaged, hostile, is_plain, json_values
from tests.single_files import write_single_file

CONFIGS = (
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json",
)  # fmt: skip
WEIGHTS = ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
SECONDS = 60


@pytest.fixture
def folder(tmp_path: Path, tiny_folders: dict[str, Path]) -> Path:
    return Path(shutil.copytree(tiny_folders["epsilon"], tmp_path / "base"))


def opened_or_refused(folder: Path, single: Path | None = None) -> None:
    """What every stage does with a base, after what `check` does; what they accept must work.

    single: the file with its weights, beside the folder with its configs.
    """
    started = time.monotonic()
    section = BaseSection(source=str(folder), revision=None, config=None, dtype="float32", clip_skip=0, adapters=())
    if single:
        section = section.model_copy(update={"source": str(single), "config": str(folder)})
    if (folder / "model_index.json").is_file():
        section = section.model_copy(update={"revision": base_digest(section)})
    try:
        base = open_base(section, torch.device("cpu"))
    except UserError as error:
        assert all(map(is_plain, str(error).split("\n")))
    else:
        captions = base.condition(["a red hill"])
        latents = base.encode(torch.rand(1, 3, 64, 64)).mean
        predicted = base.predict(latents, torch.tensor([0]), captions)
        assert predicted.shape == latents.shape and base.path.levels(2)
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize("name", CONFIGS)
def test_any_config_is_taken_or_refused(folder: Path, name: str) -> None:
    whole = (folder / name).read_text(encoding="utf-8")

    @hostile(8)
    @given(value=changed_value(json.loads(whole)) | json_values)
    def check(value: Any) -> None:
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
        opened_or_refused(folder)

    check()


def header_changed(content: bytes) -> st.SearchStrategy[bytes]:
    """A safetensors file with another header, its length right."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])

    def written(changed: Any) -> bytes:
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return changed_value(header).map(written)


@pytest.mark.parametrize("name", WEIGHTS)
def test_any_weights_are_taken_or_refused(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()

    @hostile(12)
    @given(content=header_changed(whole) | damaged(whole) | st.binary(max_size=60))
    def check(content: bytes) -> None:
        (folder / name).write_bytes(content)
        opened_or_refused(folder)

    check()


def test_any_single_file_is_taken_or_refused(folder: Path, tmp_path: Path) -> None:
    file = write_single_file(StableDiffusionPipeline.from_pretrained(folder), tmp_path / "model.safetensors")
    whole = file.read_bytes()
    opened_or_refused(folder, file)

    @hostile(12)
    @given(content=header_changed(whole) | damaged(whole) | st.binary(max_size=60))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        opened_or_refused(folder, file)

    check()


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "unet/config.json").write_text("[" * 100_000),
        lambda f: (f / "unet/config.json").write_text('{"in_channels": ' + "9" * 5000 + "}"),
        lambda f: shards(f, {"a": "../../outside.safetensors"}),
        lambda f: shards(f, ["a"]),
        lambda f: shards(f, {"a": 7}),
        lambda f: (shutil.rmtree(f / "vae"), (f / "vae").symlink_to(f / "vae")),
        lambda f: (f / "scheduler/scheduler_config.json").write_bytes(b"\xff\xfe{}"),
    ],
)
def test_files_of_any_shape_and_depth_are_refused(folder: Path, damage: Callable[[Path], object]) -> None:
    damage(folder)
    section = BaseSection(source=str(folder), revision=None, config=None, dtype="float32", clip_skip=0, adapters=())
    assert find_base_problems(section)


def shards(folder: Path, named: Any) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": named}))
