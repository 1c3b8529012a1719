"""Adapters that a person names, as one file and as part of a base."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.adapters.lora import read_adapter, read_notes
from pipeline.adapters.mixing import mixed_adapters
from pipeline.base.checking import base_digest
from pipeline.base.opening import open_base
from pipeline.commands import chosen, fuse, mix
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.sampling.adapted import adapted_conditioning
from tests.adapters.test_foreign import TEXT_ENCODER, kohya_factors
from tests.adapters.test_mixing import inputs, predicted
from tests.project import edit, with_values
from tests.stages.test_evaluate import copy_of

CPU = torch.device("cpu")


@pytest.fixture
def trained(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with all outputs made, to be changed."""
    return copy_of(ran, tmp_path, monkeypatch)


def test_an_adapter_is_named_by_its_set_its_picture_or_its_file(trained: Path) -> None:
    of_set, of_picture, of_file, negative = chosen.choose(
        ["dots", "hills/red hill:0.5", "models/adapters/hills/blue.safetensors", "hills/blue.png:-1e-1"]
    )
    assert (of_set.path.as_posix(), of_set.weight) == ("models/adapters/dots/set.safetensors", 1.0)
    assert (of_picture.path.name, of_picture.weight) == ("red hill.safetensors", 0.5)
    assert (of_file.path.name, of_file.weight) == ("blue.safetensors", 1.0)
    assert negative.path == of_file.path and negative.weight == -0.1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hills", "hills has 3 adapters. Choose one of hills/blue, hills/großer See, hills/red hill."),
        ("hills/green", "no one adapter 'green'"),
        ("nowhere", "there is no 'nowhere'. There are: dots, hills."),
        ("dots:much", "the weight 'much' is no number"),
        ("dots:nan", "the weight 'nan' is no number"),
        ("missing.safetensors", "missing.safetensors: there is no such file. Correct the path."),
        ("../../etc/passwd", "there is no '..'. There are: dots, hills"),
        ("", "there is no ''. There are: dots, hills"),
    ],
)
def test_what_names_no_adapter_is_refused(trained: Path, name: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        mix.run([name], Path("out.safetensors"), None, force=False)
    assert said in str(refused.value)
    assert not Path("out.safetensors").exists()


@torch.no_grad()
def test_a_mixed_file_acts_as_its_parts_here_and_in_diffusers(trained: Path) -> None:
    names = ["dots:0.7", "hills/blue:-0.4"]
    said = mix.run(names, Path("both.safetensors"), None, force=False)
    base = open_base(load_params().base, CPU)
    parts = chosen.read_chosen(chosen.choose(names), base)
    with mixed_adapters(base.denoiser, [adapter for adapter, _ in parts], torch.tensor([[0.7] * 3, [-0.4] * 3])):
        expected = predicted(base)
    together = read_adapter(Path("both.safetensors"), base.digest, CPU, base)
    with mixed_adapters(base.denoiser, [together], torch.ones(1, 3)):
        assert torch.allclose(predicted(base), expected, atol=1e-5)
    assert not torch.allclose(predicted(base), expected, atol=1e-4)
    pipe = StableDiffusionPipeline.from_pretrained(load_params().base.source)
    pipe.load_lora_weights(".", weight_name="both.safetensors")
    assert torch.allclose(pipe.unet(*inputs()).sample, expected, atol=1e-5)
    notes = read_notes(Path("both.safetensors"))
    assert [(one["adapter"], one["weight"]) for one in notes["mixed"]] == [
        ("set.safetensors", 0.7),
        ("blue.safetensors", -0.4),
    ]
    assert said == f"both.safetensors: rank {notes['rank']}, exact" and notes["kept"] == 1.0


def test_the_same_mix_is_the_same_file_and_replaces_nothing_unasked(trained: Path) -> None:
    said = mix.run(["dots", "hills/blue"], Path("a.safetensors"), 1, force=False)
    mix.run(["dots", "hills/blue"], Path("b.safetensors"), 1, force=False)
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    assert "rank 1, " in said and "of the sum's energy kept" in said
    with pytest.raises(UserError, match="exists already"):
        mix.run(["dots"], Path("a.safetensors"), None, force=False)
    mix.run(["dots"], Path("a.safetensors"), None, force=True)
    assert Path("a.safetensors").read_bytes() != Path("b.safetensors").read_bytes()
    with pytest.raises(UserError, match="Write to out.safetensors"):
        mix.run(["dots"], Path("out"), None, force=False)


def test_adapters_of_two_bases_have_no_sum(trained: Path) -> None:
    path = Path("models/adapters/dots/set.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    notes = json.loads(metadata["morphline"])
    notes["base"] = {"source": "elsewhere", "digest": "sha256:other"}
    save_file(load_file(path), "other.safetensors", metadata | {"morphline": json.dumps(notes)})
    with pytest.raises(UserError, match="other.safetensors: trained on elsewhere, and .*set.safetensors on"):
        mix.run(["dots", "other.safetensors"], Path("out.safetensors"), None, force=False)
    with pytest.raises(UserError, match="trained on elsewhere, and `base` in params.yaml is"):
        fuse.run(["other.safetensors"], Path("out"), force=False)
    assert not Path("out").exists()


@torch.no_grad()
def test_a_fused_base_is_whole_pinned_and_equals_the_mix(trained: Path) -> None:
    base = open_base(load_params().base, CPU)
    ((adapter, _),) = chosen.read_chosen(chosen.choose(["dots"]), base)
    with mixed_adapters(base.denoiser, [adapter], torch.full((1, 3), 0.8)):
        expected = predicted(base)
    said = fuse.run(["dots:0.8"], Path("fused"), force=False)
    section = load_params().base.model_copy(update={"source": "fused"})
    digest = base_digest(section)
    assert f"revision: {digest}" in said and digest != base.digest
    again = open_base(section.model_copy(update={"revision": digest}), CPU)
    assert torch.allclose(predicted(again), expected, atol=1e-5)
    for part in ("vae", "text_encoder"):
        theirs = load_params().base.source
        name = next(path.name for path in Path(theirs, part).glob("*.safetensors"))
        assert Path("fused", part, name).read_bytes() == Path(theirs, part, name).read_bytes()
    assert torch.allclose(StableDiffusionPipeline.from_pretrained("fused").unet(*inputs()).sample, expected, atol=1e-5)
    assert not any("_name_or_path" in path.read_text() for path in Path("fused").rglob("*.json"))
    with pytest.raises(UserError, match="exists already"):
        fuse.run(["dots"], Path("fused"), force=False)


def test_a_base_is_fused_in_a_precision_that_only_a_gpu_works_in(trained: Path) -> None:
    said = dict[str, str]()
    for dtype in ("float32", "float16", "tf32"):
        if dtype != "float32":
            edit(Path("params.yaml"), lambda text, dtype=dtype: with_values(text, {"base.dtype": dtype}))
        said[dtype] = fuse.run(["dots:0.8"], Path(dtype), force=False)
    weights = {dtype: load_file(Path(dtype, "unet/diffusion_pytorch_model.safetensors")) for dtype in said}
    for name, exact in weights["float32"].items():
        assert torch.equal(weights["tf32"][name], exact)
        assert weights["float16"][name].dtype == torch.float16
        apart = (weights["float16"][name].float() - exact).abs().max()
        assert apart <= 2**-10 * exact.abs().max()  # the base's weight is rounded, and the sum


def test_an_adapter_that_is_not_finite_is_not_fused(trained: Path) -> None:
    path = Path("models/adapters/dots/set.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, path, metadata)
    with pytest.raises(UserError, match="not finite"):
        fuse.run(["dots"], Path("fused"), force=False)
    assert not Path("fused").exists()


def test_a_checker_that_is_not_copied_is_not_looked_for(trained: Path, tmp_path: Path) -> None:
    source = tmp_path / "with checker"
    shutil.copytree(load_params().base.source, source)

    def name_checker(text: str) -> str:
        return json.dumps(json.loads(text) | {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]})

    edit(source / "model_index.json", name_checker)
    section = load_params().base.model_copy(update={"source": str(source)})
    base = open_base(section.model_copy(update={"revision": base_digest(section)}), CPU)
    fuse.write_base(section, {"unet": base.denoiser}, tmp_path / "out")
    assert json.loads((tmp_path / "out/model_index.json").read_text())["safety_checker"] == [None, None]


@torch.no_grad()
def test_another_programs_file_is_mixed_and_fused_for_the_base_of_the_params(trained: Path) -> None:
    base = open_base(load_params().base, CPU)
    save_file(kohya_factors(base.denoiser) | TEXT_ENCODER, "foreign.safetensors")
    names = ["foreign.safetensors:0.5", "dots"]
    parts = chosen.read_chosen(chosen.choose(names), base)
    with mixed_adapters(base.denoiser, [adapter for adapter, _ in parts], torch.tensor([[0.5] * 3, [1.0] * 3])):
        expected = predicted(base)
    mix.run(names, Path("both.safetensors"), None, force=False)
    together = read_adapter(Path("both.safetensors"), base.digest, CPU, base)
    with mixed_adapters(base.denoiser, [together], torch.ones(1, 3)):
        assert torch.allclose(predicted(base), expected, atol=1e-5)
    pipe = StableDiffusionPipeline.from_pretrained(load_params().base.source)
    pipe.load_lora_weights(".", weight_name="both.safetensors")
    assert torch.allclose(pipe.unet(*inputs()).sample, expected, atol=1e-5)
    read = adapted_conditioning(base, ["a red hill"], [[(parts[0][0], 0.5), (parts[1][0], 1.0)]])["embedding"]
    fuse.run(names, Path("fused"), force=False)
    fused = StableDiffusionPipeline.from_pretrained("fused")
    assert torch.allclose(fused.unet(*inputs()).sample, expected, atol=1e-5)
    for by_diffusers in (pipe, fused):
        assert torch.allclose(by_diffusers.encode_prompt("a red hill", "cpu", 1, False)[0], read, atol=1e-5)
    assert not torch.allclose(read, base.condition(["a red hill"])["embedding"], atol=1e-2)


def test_force_replaces_a_base_written_before_and_nothing_else(trained: Path) -> None:
    Path("photos").mkdir()
    Path("photos/one.txt").write_text("mine")
    source = Path(load_params().base.source)
    for out, said in ((Path("photos"), "no base"), (Path("."), "this project's folder"), (source, "the base itself")):
        with pytest.raises(UserError, match=said):
            fuse.run(["dots"], out, force=True)
    assert Path("photos/one.txt").read_text() == "mine" and (source / "model_index.json").is_file()
    fuse.run(["dots"], Path("fused"), force=False)
    fuse.run(["dots:0.5"], Path("fused"), force=True)
