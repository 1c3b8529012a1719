"""What is launched from records gives what it gives without them, and does nothing that cannot be recorded."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.base.conditioning import Control
from pipeline.editing.transfer import Transfer
from pipeline.film import Film, FilmSettings, Keyframe
from pipeline.morphing.diffmorpher import KeyframeAttention
from pipeline.morphing.engine import Recipe
from pipeline.sampling.captions import sample_captions
from pipeline.sampling.recorded import Work
from tests.editing.test_transfer import a_net, an_adapter, edges, edit, noise_like
from tests.pretend import DEVICE, Pretend
from tests.records import record_on_cpu, traced
from tests.tiny import build_tiny_xl, open_tiny
from tests.training.jobs import jobs, trained, weights
from tests.training.settings import SETTINGS

ATTENTION = KeyframeAttention(("down", "mid", "up"), 0.6, "keys-values")
RECIPES = {
    "plain": Recipe(6, 6),
    "ddim, attention of inputs, guidance": Recipe(
        6, 6, "ddim", True, replace(ATTENTION, source="inputs"), 2.0, 0.5, "a lake"
    ),
    "keys and values": Recipe(6, 6, attention=ATTENTION),
}


@pytest.mark.parametrize("name", RECIPES)
def test_films_are_the_same(name: str, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base = open_tiny(tiny_folders["v_prediction"])
    pictures = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    captions = ["a red hill", "a blue lake"]
    given = [
        Keyframe(picture, text, ((an_adapter(base, seed), 1.0),))
        for seed, (picture, text) in enumerate(zip(pictures, captions, strict=True))
    ]

    def frames() -> torch.Tensor:
        return torch.stack([frame.picture for frame in Film(base, given, FilmSettings(RECIPES[name], 4, "linear"))])

    plain, launches = frames(), list[int]()
    record_on_cpu(monkeypatch, traced(launches))
    assert torch.allclose(frames(), plain, atol=1e-6) and len(launches) >= 8


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.0, 0.5), (0.4, 1.0)])
def test_edits_with_control_are_the_same(
    start: float, end: float, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_tiny(tiny_folders["epsilon"])
    transfer = Transfer(start="noise", strength=0.9, steps=10, guidance=3.0, control_from=start, control_until=end)
    given = noise_like((2, 4, 8, 8)), transfer, Control(a_net(base, 1), edges(2), 1.0)
    plain, launches = edit(base, *given), list[int]()
    record_on_cpu(monkeypatch, traced(launches))
    assert torch.allclose(edit(base, *given), plain, atol=1e-5) and len(launches) >= 6


@pytest.mark.parametrize("solver", ["midpoint", "consistency"])
def test_samples_of_an_xl_are_the_same(solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_tiny_xl().save_pretrained(tmp_path)
    base = open_tiny(tmp_path)
    noise, captions = noise_like((2, 4, 8, 8)), base.condition(["a red hill", ""])

    def sampled() -> torch.Tensor:
        return sample_captions(base, noise, captions, steps=4, guidance=2.0, solver=solver, seeds=[1, 2])

    plain, launches = sampled(), list[int]()
    record_on_cpu(monkeypatch, traced(launches))
    assert torch.allclose(sampled(), plain, atol=1e-5) and launches


def watching(watched: list[weakref.ref]) -> Callable[..., Callable[..., torch.Tensor]]:
    """A `record` for Pretend, of work that neither hears from the host nor tells it anything."""

    def record(work: Work, inputs: tuple[torch.Tensor, ...]) -> Callable[..., torch.Tensor]:
        def launch(*given: torch.Tensor) -> torch.Tensor:
            before = Pretend.current.waits.copy(), Pretend.current.sent.copy()
            output = work(*given)
            assert (Pretend.current.waits, Pretend.current.sent) == before
            return output.clone()

        watched.append(weakref.ref(launch))
        return launch

    return record


# Of seed 0 a gradient is as small as Adam's epsilon, and its rounding becomes a step of 1e-4.
@pytest.mark.parametrize("options", [{"seed": 1}, {"accumulation": 2, "min_snr_gamma": 5.0, "validate_every": 2}])
def test_a_training_step_can_be_recorded(
    options: dict[str, object], tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is all on the device, gives what it gives without records, and leaves no record, even where Python does not
    look for cycles: its memory is what the next pack needs."""
    settings, watched = SETTINGS.model_copy(update=options), list[weakref.ref]()
    plain = weights(trained(open_tiny(tiny_folders["epsilon"]), tmp_path / "plain", settings, pack_size=2))
    record_on_cpu(monkeypatch, watching(watched))
    gc.disable()
    try:
        with Pretend(float64=False):
            base = open_tiny(tiny_folders["epsilon"], device=DEVICE)
            found = weights(trained(base, tmp_path / "recorded", settings, jobs(base), pack_size=2))
        assert len(watched) == 4, "of two packs, the steps and the loss at fixed noise"
        assert not any(record() for record in watched)
    finally:
        gc.enable()
    for name, expected in plain.items():
        assert torch.allclose(found[name], expected, atol=1e-4), name


@pytest.mark.parametrize("name", RECIPES)
def test_frames_can_be_recorded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an XL, whose UNet takes numbers of the picture's size, too."""
    build_tiny_xl().save_pretrained(tmp_path)
    watched = list[weakref.ref]()
    record_on_cpu(monkeypatch, watching(watched))
    with Pretend(float64=False):
        base = open_tiny(tmp_path, device=DEVICE)
        pictures = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
        given = [Keyframe(picture, text) for picture, text in zip(pictures, ["a red hill", ""], strict=True)]
        assert len(list(Film(base, given, FilmSettings(RECIPES[name], 4, "linear")))) == 4
    assert watched and not any(record() for record in watched)
