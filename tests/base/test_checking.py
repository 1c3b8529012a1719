import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.base.checking import base_digest, cached, config_folder, find_base_problems
from pipeline.errors import Problem
from pipeline.sections import BaseSection
from tests.hub import in_cache
from tests.tiny import section


@pytest.fixture
def folder(tmp_path: Path, tiny_folders: dict[str, Path]) -> Path:
    return Path(shutil.copytree(tiny_folders["epsilon"], tmp_path / "base"))


def problems(folder: Path, **changes: object) -> list[Problem]:
    return find_base_problems(section(folder, **changes))


def test_a_whole_pinned_base_has_no_problems(folder: Path) -> None:
    assert problems(folder) == []


def test_a_base_of_your_own_must_be_pinned_and_the_message_has_the_line_to_write(folder: Path) -> None:
    (problem,) = problems(folder, revision=None)
    assert problem.where == "params.yaml: base.revision"
    digest = problem.fix.split("`revision: ")[1].rstrip("`.")
    assert problems(folder, revision=digest) == []


def test_a_changed_file_is_noticed_by_the_pin(folder: Path) -> None:
    pinned = section(folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    (problem,) = find_base_problems(pinned)
    assert "has changed" in problem.found


def test_a_missing_base(tmp_path: Path) -> None:
    missing = BaseSection(
        source=str(tmp_path / "nowhere"), revision=None, config=None, dtype="float32", clip_skip=0, adapters=()
    )
    (problem,) = find_base_problems(missing)
    assert "there is no folder" in problem.found


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
        (lambda f: (f / "model_index.json").write_text("{"), "not valid JSON"),
        (lambda f: shutil.rmtree(f / "vae"), "the folder is missing"),
        (lambda f: (f / "unet" / "config.json").unlink(), "the file is missing"),
        (lambda f: (f / "unet" / "config.json").write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
        (lambda f: (f / "unet" / "config.json").write_text("{}"), "_class_name is None"),
        (lambda f: set_prediction_type(f, "sample"), "prediction_type is 'sample'"),
        (
            lambda f: weights(f).rename(f / "unet" / "diffusion_pytorch_model.non_ema.safetensors"),
            "no diffusion_pytorch",
        ),
        (lambda f: shard(f), "the file is missing"),
        (lambda f: (f / "tokenizer" / "tokenizer.json").unlink(), "neither tokenizer.json nor vocab.json"),
        (lambda f: weights(f).unlink(), "no diffusion_pytorch_model"),
        (lambda f: weights(f).rename(weights(f).with_suffix(".bin")), "pickled"),
        (lambda f: weights(f).write_bytes(b""), "not a safetensors file"),
        (lambda f: weights(f).write_bytes(weights(f).read_bytes()[:-1]), "cut off or damaged"),
        (
            lambda f: weights(f).write_bytes(weights(f).read_bytes()[:50]),
            "not a safetensors file (invalid header length)",
        ),
        (lambda f: weights(f).write_bytes(weights(f).read_bytes() + b"\0"), "cut off or damaged"),
        (lambda f: weights(f).write_bytes(b"\x08" + bytes(7) + b"not json" + bytes(64)), "(invalid JSON in header"),
    ],
)
def test_damage_is_reported_with_the_file(folder: Path, damage, expected: str) -> None:
    pinned = section(folder)
    damage(folder)
    found = find_base_problems(pinned)
    assert any(expected in problem.found for problem in found), found
    assert all(str(folder) in problem.where for problem in found)


def set_prediction_type(folder: Path, name: str) -> None:
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": name}))


def shard(folder: Path) -> None:
    """Weights in two files, of which the second is missing."""
    stem = "diffusion_pytorch_model"
    weights(folder).rename(folder / "unet" / f"{stem}-00001-of-00002.safetensors")
    parts = {"a": f"{stem}-00001-of-00002.safetensors", "b": f"{stem}-00002-of-00002.safetensors"}
    (folder / "unet" / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


def weights(folder: Path) -> Path:
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def test_another_family_is_refused_by_name(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    (problem,) = problems(folder)
    assert "FluxPipeline" in problem.found and "StableDiffusionPipeline" in problem.fix


def test_a_hub_id_needs_a_commit() -> None:
    for revision in (None, "main"):
        hub = BaseSection(
            source="owner/name", revision=revision, config=None, dtype="float32", clip_skip=0, adapters=()
        )
        (problem,) = find_base_problems(hub)
        assert problem.where == "params.yaml: base.source" and "no folder 'owner/name'" in problem.found
        assert "40 hex digits, in base.revision" in problem.fix


def test_a_pinned_hub_base_in_the_cache_needs_no_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.base.opening import denoiser_without_weights, open_base

    hub = in_cache(folder, tmp_path / "cache", monkeypatch)
    assert find_base_problems(hub) == []
    assert (config_folder(hub, "tokenizer") / "tokenizer").is_dir() and denoiser_without_weights(hub).config
    base = open_base(hub, torch.device("cpu"))
    assert base.digest == f"owner/name@{hub.revision}"
    local = open_base(section(folder), torch.device("cpu"))
    expected = local.condition(["a red hill"]).tensors["embedding"]
    assert torch.equal(base.condition(["a red hill"]).tensors["embedding"], expected)


def test_a_cache_that_lacks_a_part_is_no_whole_base(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights(folder).unlink()
    assert cached(in_cache(folder, tmp_path / "cache", monkeypatch)) is None


def test_a_single_file_needs_a_config_folder(tmp_path: Path) -> None:
    single = BaseSection(
        source=str(tmp_path / "a.safetensors"), revision=None, config=None, dtype="float32", clip_skip=0, adapters=()
    )
    found = {problem.where for problem in find_base_problems(single)}
    assert found == {"params.yaml: base.source", "params.yaml: base.config"}


def test_the_digest_sees_content_and_names_but_not_the_place(folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    plain = BaseSection(source=str(folder), revision=None, config=None, dtype="float32", clip_skip=0, adapters=())
    other = plain.model_copy(update={"source": str(moved)})
    assert base_digest(plain) == base_digest(other)
    (moved / "unet" / "config.json").rename(moved / "unet" / "config2.json")
    assert base_digest(plain) != base_digest(other)
