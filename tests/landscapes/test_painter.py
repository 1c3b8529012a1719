"""The world, its captions and its pictures."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from pipeline.landscapes.painter import paint, paint_between
from pipeline.landscapes.world import (
    FOREGROUNDS,
    HELD_OUT,
    RIDGES,
    ROCKS,
    TIMES,
    VOCABULARY,
    Scene,
    all_attributes,
    caption,
    draw_scene,
    words,
)

SEEDS = range(HELD_OUT + 1000, HELD_OUT + 1006)
DAY = Scene("day", "snowy", 2, "lake", True, HELD_OUT + 7)


def change(seed: int) -> tuple[Scene, Scene]:
    """Two scenes on the same land whose attributes are drawn apart."""
    a = draw_scene(seed)
    return a, dataclasses.replace(draw_scene(seed + 50_000), seed=seed)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def test_captions_are_exact():
    assert caption(DAY) == "snowy mountains by day, two ridges, a lake, the sun"
    assert caption(Scene("night", "green", 1, "pine forest", False, 0)) == (
        "green mountains at night, one ridge, a pine forest, no moon"
    )
    assert caption(Scene("overcast", "desert", 3, "dunes", False, 0)) == (
        "desert mountains under an overcast sky, three ridges, dunes, no sun"
    )


def test_every_scene_has_its_own_caption_in_the_closed_vocabulary():
    captions = [caption(Scene(*attributes, seed=0)) for attributes in all_attributes()]
    assert len(set(captions)) == len(captions) == 540
    used = {word for text in captions for word in words(text)}
    assert used == set(VOCABULARY)
    for text in captions:
        assert text.replace(",", "").replace(" ", "") == "".join(words(text)).replace(",", "")


def test_drawn_scenes_cover_the_world():
    scenes = [draw_scene(seed) for seed in range(300)]
    assert {scene.time for scene in scenes} == set(TIMES)
    assert {scene.rock for scene in scenes} == set(ROCKS)
    assert {scene.ridges for scene in scenes} == set(RIDGES)
    assert {scene.foreground for scene in scenes} == set(FOREGROUNDS)
    assert not any(scene.orb for scene in scenes if scene.time == "overcast")
    share = np.mean([scene.orb for scene in scenes if scene.time != "overcast"])
    assert 0.5 < share < 0.8
    assert draw_scene(12) == draw_scene(12)


@pytest.mark.parametrize(
    ("name", "value"), [("time", "noon"), ("rock", "lava"), ("ridges", 4), ("foreground", "sea"), ("seed", -1)]
)
def test_a_scene_outside_the_world_is_refused(name, value):
    with pytest.raises(ValueError, match=f"Scene.{name}"):
        dataclasses.replace(DAY, **{name: value})


def test_an_overcast_sky_hides_the_sun():
    with pytest.raises(ValueError, match="overcast"):
        dataclasses.replace(DAY, time="overcast")


def test_a_picture_is_a_function_of_its_scene_and_size():
    first = paint(DAY, 128, 96)
    paint(dataclasses.replace(DAY, seed=3), 64, 64)
    again = paint(DAY, 128, 96)
    assert first.shape == (96, 128, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)


@pytest.mark.parametrize(
    "change_",
    [{"time": "night"}, {"rock": "green"}, {"ridges": 1}, {"ridges": 3}, {"foreground": "meadow"}, {"orb": False}],
)
def test_every_attribute_is_visible(change_):
    assert difference(paint(DAY, 64, 64), paint(dataclasses.replace(DAY, **change_), 64, 64)) > 1


def test_another_seed_is_another_land():
    assert difference(paint(DAY, 64, 64), paint(dataclasses.replace(DAY, seed=DAY.seed + 1), 64, 64)) > 8


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ends_of_a_mix_are_the_scenes_themselves(seed):
    a, b = change(seed)
    assert np.array_equal(paint_between(a, b, 0, 64, 48), paint(a, 64, 48))
    assert np.array_equal(paint_between(a, b, 1, 64, 48), paint(b, 64, 48))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mix_runs_evenly_from_one_scene_to_the_other(seed):
    a, b = change(seed)
    frames = [paint_between(a, b, step / 16, 64, 64) for step in range(17)]
    steps = [difference(one, two) for one, two in pairwise(frames)]
    assert max(steps) < 2.5 * np.mean(steps)
    from_a = [difference(frame, frames[0]) for frame in frames]
    assert all(later > earlier - 0.5 for earlier, later in pairwise(from_a))


def test_halfway_is_one_landscape_and_no_cross_fade():
    a = Scene("day", "rocky", 1, "meadow", False, HELD_OUT + 9)
    b = dataclasses.replace(a, rock="desert", foreground="dunes", ridges=3)
    fade = (paint(a, 96, 96).astype(float) + paint(b, 96, 96)) / 2
    halfway = paint_between(a, b, 0.5, 96, 96).astype(float)
    assert difference(halfway, fade) > 3
    # A cross-fade halves every edge that only one of the two has; one landscape keeps its own at full strength.
    sharpest = [np.quantile(np.abs(np.diff(picture, axis=0)), 0.99) for picture in (halfway, fade)]
    assert sharpest[0] > 1.15 * sharpest[1]


def test_scenes_of_two_lands_have_nothing_between_them():
    with pytest.raises(ValueError, match="seed"):
        paint_between(DAY, dataclasses.replace(DAY, seed=DAY.seed + 1), 0.5, 32, 32)
    with pytest.raises(ValueError, match="mix"):
        paint_between(DAY, DAY, 1.5, 32, 32)


def test_a_picture_too_small_to_paint_is_refused():
    with pytest.raises(ValueError, match="8 pixels"):
        paint(DAY, 4, 64)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_size_shows_the_same_composition(seed):
    scene = draw_scene(seed)
    large = Image.fromarray(paint(scene, 256, 256)).resize((64, 64), Image.Resampling.BOX)
    small = paint(scene, 64, 64)
    other = paint(dataclasses.replace(scene, seed=seed + 1), 64, 64)
    assert difference(small, np.asarray(large)) < 4
    assert difference(small, np.asarray(large)) < 0.4 * difference(small, other)


def test_night_is_darker_than_day_and_the_sky_of_a_sunset_warmer():
    day, night, sunset = (
        paint(dataclasses.replace(DAY, time=time), 64, 64).astype(float) for time in ("day", "night", "sunset")
    )
    assert night.mean() < 0.5 * day.mean()
    assert (sunset[..., 0] - sunset[..., 2]).mean() > (day[..., 0] - day[..., 2]).mean() + 50


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("time", ["dawn", "day", "sunset", "night"])
def test_an_orb_that_the_caption_names_is_in_view(seed, time):
    for rock in ROCKS:
        scene = Scene(time, rock, 3, "meadow", True, seed)
        disc = np.array(
            {"dawn": (255, 240, 206), "day": (255, 250, 222), "sunset": (255, 226, 140)}.get(time, (244, 244, 226))
        )
        hit = np.abs(paint(scene, 128, 128).astype(int) - disc).max(axis=-1) < 12
        # A disc of radius 0.062 covers 198 of 128 x 128 pixels; about half of them show at the least.
        assert hit[:90].sum() > 0.45 * 198
        without = dataclasses.replace(scene, orb=False)
        gone = np.abs(paint(without, 128, 128).astype(int) - disc).max(axis=-1) < 12
        assert gone[:90].sum() < hit[:90].sum() / 2


def test_a_lake_mirrors_what_stands_above_it():
    scene = Scene("day", "rocky", 1, "lake", False, HELD_OUT + 3)
    picture = paint(scene, 128, 128).astype(float).mean(axis=-1)
    row = 88  # Below every horizon, which lies at 0.63 to 0.70 of the height.

    def likeness(foreground: str) -> float:
        rows = paint(dataclasses.replace(scene, foreground=foreground), 128, 128).astype(float).mean(axis=-1)
        return max(np.corrcoef(rows[row + 8], picture[source])[0, 1] for source in range(60, 84))

    assert likeness("lake") > 0.8
    assert likeness("snowfield") < likeness("lake")
