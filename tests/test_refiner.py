"""Whether a refiner fits its base: what is refused, each in one message, and what is opened."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from pipeline.base.stable_diffusion_xl import StableDiffusionXL, StableDiffusionXLRefiner
from pipeline.errors import UserError
from pipeline.refiner import Asked, find_refiner_problems, open_refiner
from pipeline.sections import BaseSection, RefinerSection
from tests.tiny import build_tiny_refiner, save_tiny_xl_and_refiner, section

CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and its refiner. Not to be changed."""
    return save_tiny_xl_and_refiner(tmp_path_factory.mktemp("xl"))


@pytest.fixture
def base(made: Path) -> BaseSection:
    return section(made / "base")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "refiner", tmp_path / "refiner"))


def refiner_of(folder: Path | str | None, start: float = 0.8, **changes: object) -> RefinerSection:
    """Pinned as a user would pin it."""
    revision = section(folder).revision if isinstance(folder, Path) else None
    values = {"source": None if folder is None else str(folder), "revision": revision, "from": start, **changes}
    return RefinerSection.model_validate(values)


def changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def only_problem(refiner: RefinerSection, base: BaseSection, **asked: Asked) -> str:
    (problem,) = find_refiner_problems(refiner, base, asked)
    if not asked:
        with pytest.raises(UserError) as error:
            open_refiner(refiner, base, CPU)
        assert error.value.problems == (problem,)
    return str(problem)


def test_none_is_none_and_needs_no_pin(base: BaseSection) -> None:
    assert find_refiner_problems(refiner_of(None), base) == []
    assert open_refiner(refiner_of(None), base, CPU) is None
    said = only_problem(refiner_of(None, revision="sha256:00"), base)
    assert said == "params.yaml: refiner.revision: there is no refiner.source to pin. Write null."


def test_a_refiner_and_an_ordinary_base_are_opened_as_what_they_are(made: Path, base: BaseSection) -> None:
    own = open_refiner(refiner_of(made / "refiner"), base, CPU)
    assert own is not None and own.start == 0.8
    assert isinstance(own.base, StableDiffusionXLRefiner) and not own.base.empty_is_zero
    assert own.base.digest == section(made / "refiner").revision
    other = open_refiner(refiner_of(made / "base"), base, CPU)
    assert other is not None and isinstance(other.base, StableDiffusionXL)


def test_the_precision_is_the_bases_and_so_is_clip_skip_of_an_ordinary_base(made: Path, base: BaseSection) -> None:
    lower = base.model_copy(update={"dtype": "bfloat16"})
    own = open_refiner(refiner_of(made / "refiner"), lower, CPU)
    assert own is not None and own.base.dtype == next(own.base.denoiser.parameters()).dtype == torch.bfloat16
    skipping = base.model_copy(update={"clip_skip": 1})
    assert find_refiner_problems(refiner_of(made / "base"), skipping)[0].where == "params.yaml: base.clip_skip"
    # SDXL's own has never been trained without a layer: its caption stays.
    same = open_refiner(refiner_of(made / "refiner"), skipping, CPU)
    assert own is not None and same is not None
    one, two = (each.base.condition(["a red hill"])["embedding"] for each in (own, same))
    assert torch.equal(one, two)


def test_a_refiner_is_no_base(made: Path) -> None:
    from pipeline.base.checking import find_base_problems

    (problem,) = find_base_problems(section(made / "refiner"))
    assert problem.where.endswith("model_index.json") and "StableDiffusionXLImg2ImgPipeline" in problem.found


def test_only_an_xl_has_a_refiner(made: Path, tiny_folders: dict[str, Path]) -> None:
    said = only_problem(refiner_of(made / "refiner"), section(tiny_folders["epsilon"]))
    assert said.startswith(
        "params.yaml: refiner.source: the base is a Stable Diffusion, and only Stable Diffusion XL has"
    )


def test_a_base_of_another_family_is_no_refiner(base: BaseSection, tiny_folders: dict[str, Path]) -> None:
    said = only_problem(refiner_of(tiny_folders["epsilon"]), base)
    assert "_class_name is 'StableDiffusionPipeline'. Supported: StableDiffusionXLPipeline, StableDiff" in said


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nowhere", "params.yaml: refiner.source: there is no folder 'nowhere', and it is not a Hub id"),
        ("owner/name", "params.yaml: refiner.source: there is no folder 'owner/name', and for a Hub id no commit is"),
        ("a.safetensors", "params.yaml: refiner.source: a single .safetensors file contains no configs"),
    ],
)
def test_a_source_that_is_not_there_is_told_by_its_key(base: BaseSection, source: str, expected: str) -> None:
    said = only_problem(refiner_of(source), base)
    assert said.startswith(expected) and "base." not in said


def test_it_is_pinned_as_a_base_is(base: BaseSection, folder: Path) -> None:
    said = only_problem(refiner_of(folder, revision=None), base)
    assert said.startswith("params.yaml: refiner.revision: a base of your own must be pinned. If its files are right, ")
    digest = said.rpartition("revision: ")[2].rstrip("`.")
    pinned = refiner_of(folder, revision=digest)
    assert find_refiner_problems(pinned, base) == []
    (folder / "vae/config.json").write_text((folder / "vae/config.json").read_text() + "\n")
    assert "has changed" in only_problem(pinned, base)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda f: changed(f / "model_index.json", requires_aesthetics_score=False), "_score is False. "),
        (lambda f: changed(f / "model_index.json", text_encoder=["transformers", "CLIPTextModel"]), "text_encoder is"),
        (lambda f: shutil.rmtree(f / "text_encoder_2"), "text_encoder_2: the folder is missing"),
        (lambda f: changed(f / "unet/config.json", projection_class_embeddings_input_dim=6 * 8 + 20), "do not fit"),
        (lambda f: changed(f / "vae/config.json", scaling_factor=0.5), "scaling_factor is 0.5, the base's 0.18215"),
        (lambda f: changed(f / "scheduler/scheduler_config.json", prediction_type="v_prediction"),
         "prediction_type is v_prediction, the base's epsilon"),
        (lambda f: changed(f / "scheduler/scheduler_config.json", beta_end=0.02), "its noise schedule is not the"),
        (lambda f: changed(f / "scheduler/scheduler_config.json", num_train_timesteps=500), "its noise schedule"),
    ],
)  # fmt: skip
def test_what_is_broken_or_made_for_other_latents_is_refused(
    base: BaseSection, folder: Path, damage: Callable[[Path], object], expected: str
) -> None:
    damage(folder)
    assert expected in only_problem(refiner_of(folder), base)


def test_another_number_of_channels_is_refused(base: BaseSection, folder: Path) -> None:
    from diffusers import AutoencoderKL

    for part in ("unet", "vae"):
        shutil.rmtree(folder / part)
    pipe = build_tiny_refiner()
    unet = type(pipe.unet).from_config({**pipe.unet.config, "in_channels": 8, "out_channels": 8})
    unet.save_pretrained(folder / "unet")
    AutoencoderKL.from_config({**pipe.vae.config, "latent_channels": 8}).save_pretrained(folder / "vae")
    said = only_problem(refiner_of(folder), base)
    assert said.startswith(
        "params.yaml: refiner.source: it does not read this base's latents: latent_channels is 8, the "
    )


def test_steps_that_leave_one_of_both_nothing_to_do_are_refused(made: Path, base: BaseSection) -> None:
    """Ten steps begin at 901, 801 and so on to 1."""
    last = refiner_of(made / "refiner", 0.9999)
    said = only_problem(last, base, here=Asked(10))
    assert said.startswith("params.yaml: refiner.from: 0.9999: none of 10 steps is left for the refiner (here).")
    first, half = refiner_of(made / "refiner", 0.05), refiner_of(made / "refiner", 0.5)
    said = only_problem(first, base, here=Asked(10))
    assert said.startswith("params.yaml: refiner.from: 0.05: all steps taken of 10 are the refiner's, and adapters and")
    assert "(here)" in only_problem(half, base, here=Asked(10, 5), there=Asked(10, 6))
    for fine in (Asked(10, 5, False), Asked(10, 0), Asked(10), Asked(5000)):
        assert find_refiner_problems(half, base, {"here": fine}) == []


def test_a_hub_refiner_in_the_cache_needs_no_network(
    made: Path, base: BaseSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "refiner", tmp_path / "models--owner--name/snapshots" / COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refiner = refiner_of("owner/name", revision=COMMIT)
    assert find_refiner_problems(refiner, base) == []
    own = open_refiner(refiner, base, CPU)
    assert own is not None and own.base.digest == f"owner/name@{COMMIT}"


def test_a_hub_refiner_is_compared_by_its_configs_until_it_is_downloaded(
    made: Path, base: BaseSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a Hub that is a folder."""
    from pipeline.base import checking

    hub = Path(shutil.copytree(made / "refiner", tmp_path / "hub"))
    names = [path.relative_to(hub).as_posix() for path in hub.rglob("*") if path.is_file()]
    asked = list[str]()

    def fetched(section: BaseSection, patterns: list[str]) -> Path:
        asked.extend(patterns)
        return hub

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr(checking, "fetch", fetched)
    monkeypatch.setattr(checking, "list_files", lambda section: names)
    refiner = refiner_of("owner/name", revision=COMMIT)
    assert find_refiner_problems(refiner, base) == []
    changed(hub / "vae/config.json", scaling_factor=0.5)
    (problem,) = find_refiner_problems(refiner, base)
    assert "scaling_factor is 0.5" in problem.found
    changed(hub / "vae/config.json", block_out_channels=7)
    (problem,) = find_refiner_problems(refiner, base)
    assert "describes no model" in problem.found
    assert asked and not [pattern for pattern in asked if "safetensors" in pattern]


def test_the_key_is_from_wherever_it_is_written() -> None:
    """`from` is a word of Python, and the field so has another name."""
    assert refiner_of(None, 0.3).model_dump() == {"source": None, "revision": None, "from": 0.3}
    assert refiner_of(None, 0.3).start == 0.3
