"""Refiners whose files are anything: each ends the base's steps or is refused, in seconds."""

import functools
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.opening import open_base
from pipeline.base.protocol import Base
from pipeline.errors import UserError
from pipeline.refiner import find_refiner_problems, open_refiner
from pipeline.sampling.captions import sample_captions
from pipeline.sections import BaseSection, RefinerSection
from tests.hostile.generators import changed_value, damaged, hostile, is_plain, json_values
from tests.hostile.test_bases import SECONDS, header_changed
from tests.tiny import save_tiny_xl_and_refiner, section

CONFIGS = (
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder_2/config.json",
    "scheduler/scheduler_config.json", "tokenizer_2/tokenizer_config.json",
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and its refiner. Not to be changed."""
    return save_tiny_xl_and_refiner(tmp_path_factory.mktemp("xl"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "refiner", tmp_path / "refiner"))


@functools.cache
def opened(of: BaseSection) -> Base:
    return open_base(of, CPU)


def is_used(folder: Path, made: Path) -> bool:
    """What `check` does with a refiner, and after it every stage; what they accept must work."""
    started, of = time.monotonic(), section(made / "base")
    revision = section(folder).revision if (folder / "model_index.json").is_file() else None
    own = RefinerSection.model_validate({"source": str(folder), "revision": revision, "from": 0.5})
    problems = find_refiner_problems(own, of)
    assert all(is_plain(str(problem)) for problem in problems)
    try:
        refiner = open_refiner(own, of, CPU)
    except UserError as error:
        assert all(map(is_plain, str(error).split("\n")))
        return False
    assert refiner is not None and not problems
    base, noise = opened(of), torch.zeros(1, 4, 8, 8)
    captions, refinement = base.condition(["a red hill"]), refiner.refinement(["a red hill"], "")
    ended = sample_captions(base, noise, captions, steps=2, guidance=2.0, refinement=refinement)
    assert ended.shape == noise.shape
    assert time.monotonic() - started < SECONDS
    return True


def test_a_whole_one_is_used(folder: Path, made: Path) -> None:
    assert is_used(folder, made)


@pytest.mark.parametrize("name", CONFIGS)
def test_any_config_is_taken_or_refused(folder: Path, made: Path, name: str) -> None:
    whole = (folder / name).read_text(encoding="utf-8")

    @hostile(6)
    @given(value=changed_value(json.loads(whole)) | json_values)
    def check(value: Any) -> None:
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
        is_used(folder, made)

    check()


def test_any_weights_are_taken_or_refused(folder: Path, made: Path) -> None:
    file = folder / "text_encoder_2/model.safetensors"
    whole = file.read_bytes()

    @hostile(8)
    @given(content=header_changed(whole) | damaged(whole) | st.binary(max_size=60))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        is_used(folder, made)

    check()


@hostile(100)
@given(
    source=st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)
    | st.sampled_from(["x" * 300, "/dev/zero", "/dev/zero/a", "..", "a.safetensors", "../b", "/" + "a/" * 2000]),
    revision=st.none() | st.just("0" * 39) | st.text(max_size=4),
)
def test_any_source_is_refused_by_its_own_key(made: Path, source: str, revision: str | None) -> None:
    values = {"source": source, "revision": revision, "from": 0.5}
    (problem,) = find_refiner_problems(RefinerSection.model_validate(values), section(made / "base"))
    assert is_plain(str(problem)) and not str(problem).startswith("params.yaml: base")
