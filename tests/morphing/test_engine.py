from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from torch.utils.hooks import RemovableHandle

from pipeline.base.protocol import Base
from pipeline.morphing import engine
from pipeline.morphing.diffmorpher import EndpointAttention, KeyframeAttention
from pipeline.morphing.engine import (
    EncodedKeyframe,
    Recipe,
    adapter_weights_at,
    cross_fade,
    invert_keyframes,
    morph_segment,
)
from pipeline.sampling.guidance import predictor
from pipeline.sampling.solver import Solver, sample
from tests.paths import diffusion_path
from tests.reference import FrameByFrame, random_adapters
from tests.tiny import in_double, open_tiny

PLAIN = Recipe(steps=4, inversion_steps=4)
ALPHAS = torch.tensor([0.0, 0.25, 0.6, 1.0], dtype=torch.float64)

# Every value of every option, and every pair of values of two options, in at least one of these recipes.
VALUES = {
    "inversion_steps": (4, 6),
    "solver": ("midpoint", "ddim"),
    "use_adain": (False, True),
    "attention": (
        None,
        KeyframeAttention(("up",), 0.6, "inputs"),
        KeyframeAttention(("down", "mid", "up"), 1.0, "keys-values"),
    ),
    "guidance": (1.0, 2.5),
    "rescale": (0.0, 0.7),
    "adapters": ("own", "shared", "style", "none"),
}


Pair = tuple[str, int, str, int]


def pairs_of(row: dict[str, int]) -> set[Pair]:
    """Every two options of a combination with their values' numbers."""
    names = [name for name in VALUES if name in row]
    return {(a, row[a], b, row[b]) for place, a in enumerate(names) for b in names[place + 1 :]}


def pairwise() -> list[dict[str, object]]:
    """Greedily chosen combinations that hold every pair of values of two options."""
    every = [dict(zip(VALUES, row, strict=True)) for row in product(*(range(len(some)) for some in VALUES.values()))]
    missing = set().union(*map(pairs_of, every))
    chosen = []
    while missing:
        row = max(every, key=lambda row: len(pairs_of(row) & missing))
        missing -= pairs_of(row)
        chosen.append({name: VALUES[name][number] for name, number in row.items()})
    return chosen


def keyframes(base: Base, adapters: str = "own") -> tuple[EncodedKeyframe, EncodedKeyframe]:
    generator = torch.Generator().manual_seed(21)
    latents = torch.randn(2, 4, 8, 8, generator=generator).to(base.dtype)
    captions = base.condition(["a red hill", "a blue lake"]).to(base.dtype)
    one, two, style = random_adapters(base.denoiser, 3)
    given = {
        "own": [((one, 1.0),), ((two, 1.0),)],
        "shared": [((one, 1.0),), ((one, 1.0),)],
        "style": [((one, 1.0), (style, 0.4)), ((two, 0.8), (style, 0.4))],
        "none": [(), ()],
    }[adapters]
    first, second = (EncodedKeyframe(latents[row], captions.take([row]), given[row]) for row in range(2))
    return first, second


def morphed(
    base: Base,
    pair: tuple[EncodedKeyframe, EncodedKeyframe],
    recipe: Recipe,
    alphas: torch.Tensor = ALPHAS,
    batch: int | None = None,
) -> torch.Tensor:
    noise = invert_keyframes(base, pair, recipe, batch)
    return morph_segment(base, *pair, noise, alphas, recipe, batch)


def largest_call(base: Base, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """What the work gives, and how many samples it sent through the denoiser at once."""
    calls: list[int] = []
    handle = base.denoiser.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    found = work()
    handle.remove()
    return found, max(calls)


@pytest.mark.parametrize("number", range(len(pairwise())))
def test_the_engine_equals_frame_by_frame_with_really_merged_weights(
    number: int, tiny_folders: dict[str, Path]
) -> None:
    """In float64 to 1e-9, for every option and every pair of them, with epsilon and v in turns."""
    options = pairwise()[number]
    folder = tiny_folders[("epsilon", "v_prediction")[number % 2]]
    base = in_double(open_tiny(folder))
    pair = keyframes(base, str(options.pop("adapters")))
    recipe = Recipe(steps=4, negative="a red lake", **options)
    noise = invert_keyframes(base, pair, recipe)
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = (
        base.path.alphas_cumprod, torch.tensor(base.path.final_alpha_cumprod, dtype=torch.float64),
    )  # fmt: skip
    reference = FrameByFrame(base, *pair, recipe, scheduler)
    expected = reference.frames(ALPHAS.tolist())
    assert torch.allclose(noise, torch.stack(reference.noises), atol=1e-9)
    frames = morph_segment(base, *pair, noise, ALPHAS, recipe)
    assert torch.allclose(frames, expected, atol=1e-9), options
    least = (3 if recipe.attention else 1) * (2 if recipe.guidance != 1 else 1)
    for batch in (least, least + 1, 7):
        in_parts, largest = largest_call(
            base, lambda batch=batch: morph_segment(base, *pair, noise, ALPHAS, recipe, batch)
        )
        assert torch.allclose(in_parts, expected, atol=1e-9), "cut into parts"
        assert largest <= batch
    with pytest.raises(ValueError, match=f"a frame of this recipe takes {least}"):
        morph_segment(base, *pair, noise, ALPHAS, recipe, least - 1)


def test_the_pairs_are_all_there() -> None:
    rows = pairwise()
    assert len(rows) < 20
    for a in VALUES:
        for b in VALUES:
            if a != b:
                seen = {(row[a], row[b]) for row in rows}
                assert seen == {(x, y) for x in VALUES[a] for y in VALUES[b]}


@pytest.mark.parametrize(
    "changes",
    [
        {"solver": "ddim"},
        {"use_adain": True},
        {"attention": KeyframeAttention(("up",), 0.6, "inputs")},
        {"attention": KeyframeAttention(("up",), 0.6, "keys-values")},
        {"attention": KeyframeAttention(("down", "up"), 0.6, "inputs")},
        {"attention": KeyframeAttention(("up",), 1.0, "inputs")},
        {"guidance": 3.0},
        {"steps": 5},
        {"inversion_steps": 8},
    ],
)
def test_every_option_changes_the_frames_between(changes: dict[str, object], tiny_folders: dict[str, Path]) -> None:
    base = in_double(open_tiny(tiny_folders["epsilon"]))
    pair = keyframes(base)
    before, after = (morphed(base, pair, recipe) for recipe in (PLAIN, replace(PLAIN, **changes)))
    assert not torch.allclose(before[1:3], after[1:3], atol=1e-4)


@pytest.mark.parametrize("attention", [None, KeyframeAttention(("down", "mid", "up"), 1.0, "inputs")])
def test_endpoints_are_those_sampled_alone(tiny_folders: dict[str, Path], attention: KeyframeAttention | None) -> None:
    from pipeline.adapters.mixing import mixed_adapters

    base = in_double(open_tiny(tiny_folders["v_prediction"]))
    pair = keyframes(base)
    recipe = replace(PLAIN, use_adain=True, attention=attention)
    noise = invert_keyframes(base, pair, recipe)
    frames = morph_segment(base, *pair, noise, ALPHAS, recipe)
    for place, keyframe, frame in ((0, pair[0], frames[0]), (1, pair[1], frames[-1])):
        ((adapter, weight),) = keyframe.adapters
        with torch.no_grad(), mixed_adapters(base.denoiser, [adapter], torch.tensor([[weight]])):
            alone = sample(noise[place : place + 1], predictor(base, keyframe.conditioning), base.path, recipe.steps)[0]
        assert torch.allclose(frame, alone, atol=1e-9)


def test_keyframes_are_inverted_together_as_alone(tiny_folders: dict[str, Path]) -> None:
    base = in_double(open_tiny(tiny_folders["epsilon"]))
    first, second = keyframes(base)
    together = invert_keyframes(base, [first, second, first], PLAIN)
    assert torch.allclose(together[0], together[2], atol=1e-12)
    for batch in (1, 2):
        assert torch.allclose(invert_keyframes(base, [first, second, first], PLAIN, batch), together, atol=1e-9)


def test_the_midpoint_rule_brings_the_keyframes_back_more_exactly_at_the_same_cost(
    tiny_folders: dict[str, Path],
) -> None:
    base = in_double(open_tiny(tiny_folders["v_prediction"]))
    pair = keyframes(base)
    latents = torch.stack([keyframe.latents for keyframe in pair])
    ends, gaps = torch.tensor([0.0, 1.0]).double(), []
    for recipe in (
        replace(PLAIN, solver="ddim", steps=21, inversion_steps=21),
        replace(PLAIN, steps=20, inversion_steps=20),
    ):
        gaps.append(float((morphed(base, pair, recipe, ends) - latents).square().mean()))
    assert gaps[1] < 0.1 * gaps[0]


def test_identical_keyframes_give_identical_frames(tiny: Base) -> None:
    first, _ = keyframes(tiny)
    recipe = replace(PLAIN, use_adain=True, attention=KeyframeAttention(("up",), 0.6, "inputs"))
    frames = morphed(tiny, (first, first), recipe)
    assert frames.isfinite().all() and torch.allclose(frames, frames[:1].expand_as(frames), atol=1e-4)


def test_adapter_weights_cross_and_a_shared_adapter_stays_constant(tiny: Base) -> None:
    first, second = keyframes(tiny)
    alphas = torch.tensor([0.0, 0.25, 1.0])
    adapters, weights = adapter_weights_at(first, second, alphas)
    (one, _), (two, _) = *first.adapters, *second.adapters
    assert adapters == [one, two]
    assert weights.tolist() == [[1.0, 0.75, 0.0], [0.0, 0.25, 1.0]]
    adapters, weights = adapter_weights_at(first, first, alphas)
    assert adapters == [one] and weights.tolist() == [[1.0, 1.0, 1.0]]
    first, second = keyframes(tiny, "style")
    adapters, weights = adapter_weights_at(first, second, alphas)
    assert weights.tolist() == [[1.0, 0.75, 0.0], pytest.approx([0.4, 0.4, 0.4]), pytest.approx([0.0, 0.2, 0.8])]
    plain, _ = keyframes(tiny, "none")
    assert adapter_weights_at(plain, plain, alphas)[0] == []


@pytest.mark.parametrize("solver", ["midpoint", "ddim"])
@pytest.mark.parametrize("schedule", [{"steps_offset": 0}, {"timestep_spacing": "linspace"}, {"steps_offset": 1}])
def test_attention_is_on_in_its_share_of_the_steps(
    tiny: Base, monkeypatch: pytest.MonkeyPatch, schedule: dict[str, object], solver: Solver
) -> None:
    """Also where the last two levels have one time."""
    tiny = replace(tiny, path=diffusion_path(tiny.path.prediction_type, **schedule))
    on: list[bool] = []

    def told(layers: object, alphas: object, source: object) -> AbstractContextManager[EndpointAttention]:
        attention = EndpointAttention(ALPHAS, "inputs")
        handle = tiny.denoiser.register_forward_pre_hook(lambda *_: on.append(attention.on))
        return closing_with(handle, attention)

    @contextmanager
    def closing_with(handle: RemovableHandle, attention: EndpointAttention) -> Iterator[EndpointAttention]:
        try:
            yield attention
        finally:
            handle.remove()

    monkeypatch.setattr(engine, "endpoint_attention", told)
    noise = torch.zeros(2, 4, 8, 8)
    for until, switch in ((1.0, 4), (0.5, 2)):
        on.clear()
        recipe = replace(PLAIN, solver=solver, attention=KeyframeAttention(("up",), until, "inputs"))
        morph_segment(tiny, *keyframes(tiny), noise, ALPHAS, recipe)
        asked = {"ddim": 4, "midpoint": 5 if until == 1 else 6}[solver]
        assert len(on) == asked and sum(on) == round(asked * switch / 4), on
        assert on == sorted(on, reverse=True)


def test_guidance_leads_away_from_the_negative_caption(tiny: Base) -> None:
    plain = replace(PLAIN, guidance=2.0)
    empty, other = (morphed(tiny, keyframes(tiny), replace(plain, negative=text)) for text in ("", "a red lake"))
    assert torch.equal(morphed(tiny, keyframes(tiny), plain), empty)
    assert not torch.allclose(empty, other, atol=1e-4)


def test_the_denoiser_is_left_as_it_was(tiny: Base) -> None:
    before = dict(tiny.denoiser.attn_processors)
    recipe = replace(PLAIN, attention=KeyframeAttention(("up",), 0.6, "inputs"))
    morphed(tiny, keyframes(tiny), recipe)
    assert tiny.denoiser.attn_processors == before
    assert not [module for module in tiny.denoiser.modules() if module._forward_hooks]


def test_a_cross_fade_is_the_mean_of_the_pictures() -> None:
    black, white = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    faded = cross_fade(black, white, [0, 0.25, 1])
    assert faded[:, 0, 0, 0].tolist() == [0, 0.25, 1]
