"""Adapters under everything: in the base's weights, pinned, part of its digest; and what diffusers makes of them."""

from pathlib import Path

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline
from diffusers.schedulers import scheduling_lcm

from pipeline.adapted_base import find_base_adapter_problems, objective_of_file, open_adapted_base
from pipeline.adapters.lora import lora_config, read_adapter, save_adapter
from pipeline.adapters.mixing import mixed_adapters, mixing_weights
from pipeline.base.digests import file_sha256
from pipeline.base.opening import open_base
from pipeline.base.protocol import Base
from pipeline.errors import UserError
from pipeline.sampling.captions import sample_captions
from pipeline.sampling.solver import fresh_noise
from pipeline.sections import BaseAdapter, BaseSection
from pipeline.training.pack import AdapterPack
from tests.tiny import build_tiny, section
from tests.training.settings import SETTINGS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bases, and an adapter of the first whose B is random. Not to be changed."""
    root = tmp_path_factory.mktemp("adapted")
    build_tiny().save_pretrained(root / "base")
    build_tiny(seed=5).save_pretrained(root / "other")
    base = open_base(section(root / "base"), CPU)
    pack = AdapterPack(base, [1], SETTINGS)
    pack.up.copy_(0.3 * torch.randn(pack.up.shape, generator=torch.Generator().manual_seed(4)))
    notes = {"base": {"source": "the first", "digest": base.digest}, "train": {"objective": "consistency"}}
    save_adapter(root / "lora.safetensors", pack.tensors(0), lora_config(SETTINGS), notes, base.adapter_prefix)
    return root


def under(folders: Path, base: str = "base", weight: float = 1.0, **changes: object) -> BaseSection:
    file = folders / "lora.safetensors"
    values = {"file": str(file), "digest": f"sha256:{file_sha256(file)}", "weight": weight, **changes}
    return section(folders / base).model_copy(update={"adapters": (BaseAdapter.model_validate(values),)})


def noise() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def predicted(base: Base) -> torch.Tensor:
    with torch.no_grad():
        return base.predict(noise(), torch.tensor([400]), base.condition(["a red hill"]))


def test_it_is_the_base_with_the_adapter_mixed_in(folders: Path) -> None:
    plain = open_base(section(folders / "base"), CPU)
    adapter = read_adapter(folders / "lora.safetensors", plain.digest, CPU, plain)
    for weight in (1.0, -0.5):
        fused = open_adapted_base(under(folders, weight=weight), CPU)
        with mixed_adapters(plain.denoiser, *mixing_weights([[(adapter, weight)]])):
            expected = predicted(plain)
        assert torch.allclose(predicted(fused), expected, atol=1e-5)
        assert not torch.allclose(expected, predicted(plain), atol=1e-3)
    nothing = open_adapted_base(under(folders, weight=0.0), CPU)
    assert torch.equal(predicted(nothing), predicted(plain))
    with pytest.raises(ValueError, match="open_adapted_base"):
        open_base(under(folders), CPU)


def test_its_digest_tells_the_adapters_and_their_weights_apart(folders: Path) -> None:
    plain = open_adapted_base(section(folders / "base"), CPU).digest
    digests = {plain, *(open_adapted_base(under(folders, weight=weight), CPU).digest for weight in (1.0, 0.5))}
    assert len(digests) == 3 and all(digest.startswith(plain) for digest in digests)


def test_what_cannot_lie_under_a_base_is_refused_by_name(folders: Path, tmp_path: Path) -> None:
    assert find_base_adapter_problems(under(folders)) == [] == find_base_adapter_problems(section(folders / "base"))
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"\0" * 64)
    digest = f"sha256:{file_sha256(garbage)}"
    cases = {
        "base.adapters.0.file: there is no file 'gone'": under(folders, file="gone"),
        "base.adapters.0.digest: it must be pinned": under(folders, digest=None),
        "lora.safetensors has changed. If the file is right, write `digest: sha256:": under(
            folders, digest="sha256:00"
        ),
        "lora.safetensors: trained on the first": under(folders, "other"),
        "garbage.safetensors": under(folders, file=str(garbage), digest=digest),
    }
    for said, wrong in cases.items():
        (problem,) = find_base_adapter_problems(wrong)
        assert said in str(problem)
        with pytest.raises(UserError) as error:
            open_adapted_base(wrong, CPU)
        assert str(error.value.problems[0]) == str(problem)


def test_its_file_says_what_it_was_trained_for(folders: Path) -> None:
    assert objective_of_file(folders / "lora.safetensors") == "consistency"


def test_diffusers_paints_the_same_with_the_file(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_lora_weights` and LCMScheduler, with our noise between the steps; without the file they differ."""
    drawn = iter(range(100))
    monkeypatch.setattr(
        scheduling_lcm, "randn_tensor", lambda shape, **_: fresh_noise(torch.zeros(shape), [7], next(drawn))
    )
    pipe = StableDiffusionPipeline.from_pretrained(folders / "base")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(folders / "lora.safetensors")
    theirs = pipe("a red hill", num_inference_steps=4, guidance_scale=1.0, latents=noise(), output_type="latent").images
    options = {"steps": 4, "solver": "consistency", "seeds": [7], "fresh": 1.0}
    ours, without = (
        sample_captions(base, noise(), base.condition(["a red hill"]), **options)
        for base in (open_adapted_base(chosen, CPU) for chosen in (under(folders), section(folders / "base")))
    )
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(without, theirs, atol=1e-2)
