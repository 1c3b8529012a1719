import matplotlib
import numpy as np
import pytest
from PIL import Image

from pipeline.report.plots import COLOURS, Curve, Training, loss_plot, smoothed, smoothness_plot


def curves():
    wave = 0.03 + 0.02 * np.sin(np.linspace(0, 9, 24)) ** 2
    positions = np.linspace(0, 2, 25)
    return {
        "morph": Curve(positions, np.full(24, 0.03)),
        "no LoRA": Curve(positions, wave),
        "cross-fade": Curve(positions, wave / 2),
    }


def losses(adapters, steps=60):
    rng = np.random.default_rng(0)
    return {f"dawn-{index:02d}": Training(0.1 * rng.lognormal(0, 0.5, steps)) for index in range(adapters)}


def draw_smoothness(path):
    smoothness_plot(curves(), path)


def draw_losses(path):
    loss_plot(losses(16), np.full(60, 1e-3), path)


@pytest.mark.parametrize("draw", [draw_smoothness, draw_losses])
def test_the_same_numbers_give_the_same_bytes_whatever_the_users_settings(draw, tmp_path):
    draw(tmp_path / "one.png")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.dpi": 30}):
        draw(tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert min(image.size) >= 500
        assert "Software" not in image.info


def colours_in(path):
    with Image.open(path) as image:
        return {
            f"#{r:02X}{g:02X}{b:02X}" for _, (r, g, b) in image.convert("RGB").getcolors(image.width * image.height)
        }


def test_every_curve_is_drawn_in_a_colour_of_its_own(tmp_path):
    draw_smoothness(tmp_path / "curves.png")
    assert set(COLOURS[:3]) <= colours_in(tmp_path / "curves.png")
    loss_plot(losses(8), np.full(60, 1e-3), tmp_path / "losses.png")
    assert set(COLOURS) <= colours_in(tmp_path / "losses.png")


def test_the_picture_follows_the_numbers(tmp_path):
    draw_smoothness(tmp_path / "one.png")
    changed = curves() | {"morph": Curve(np.linspace(0, 2, 25), np.full(24, 0.04))}
    smoothness_plot(changed, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def ink(path, top, bottom):
    """Share of dark pixels between two heights, as shares of the picture."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    return float((pixels[int(top * len(pixels)) : int(bottom * len(pixels))] < 128).mean())


def test_the_learning_rate_is_drawn_where_it_changes(tmp_path):
    loss_plot(losses(2), np.full(60, 1e-3), tmp_path / "constant.png")
    loss_plot(losses(2), np.linspace(1e-3, 0, 60), tmp_path / "falling.png")
    sizes = []
    for name in ("constant", "falling"):
        with Image.open(tmp_path / f"{name}.png") as image:
            sizes.append(image.size)
    assert sizes[0][0] == sizes[1][0] and sizes[1][1] == sizes[0][1] + 1.4 * 150
    assert ink(tmp_path / "falling.png", 0.75, 1) > 0.01


def test_an_adapter_that_ended_early_has_a_shorter_line_and_dots_are_drawn(tmp_path):
    both = {"long": Training(np.full(60, 0.1)), "short": Training(np.full(20, 0.2))}
    loss_plot(both, np.full(60, 1e-3), tmp_path / "plain.png")
    dotted = {name: Training(one.losses, {0: 0.15, 10: 0.12}) for name, one in both.items()}
    loss_plot(dotted, np.full(60, 1e-3), tmp_path / "dotted.png")
    counts = []
    for name in ("plain", "dotted"):
        with Image.open(tmp_path / f"{name}.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        found = [(np.abs(pixels - [int(c[i : i + 2], 16) for i in (1, 3, 5)]).max(2) < 8).sum() for c in COLOURS[:2]]
        counts.append(found)
    assert counts[0][1] < counts[0][0] / 2, "a third of the steps, a third of the line"
    # Dots of one adapter hide those of the other, which lie at the same places.
    assert counts[1][1] > counts[0][1] + 100


def test_frames_that_stand_still_and_trainings_of_a_step_are_drawn(tmp_path):
    smoothness_plot({"morph": Curve(np.linspace(0, 1, 4), np.zeros(3))}, tmp_path / "still.png")
    smoothness_plot({"morph": Curve([0.0], [])}, tmp_path / "single.png")
    loss_plot({"dawn": Training([0.0], {0: 0.0})}, [1e-3], tmp_path / "loss.png")
    loss_plot({}, [], tmp_path / "none.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 3000 for name in ("still", "single", "loss", "none"))


def test_smoothing_keeps_a_line_and_the_length_and_calms_noise():
    line = np.linspace(1, 0, 50)
    # Away from the ends a symmetric window leaves a straight line alone.
    assert smoothed(line)[5:-5] == pytest.approx(line[5:-5])
    assert smoothed([0.5, 0.5]) == pytest.approx([0.5, 0.5])
    # Three steps either side, weights 1 2 3 2 1: a lone spike of 9 becomes 3 at its place and 1 two steps away.
    assert smoothed([0, 0, 0, 9, 0, 0, 0])[2:5] == pytest.approx([2, 3, 2])
    noise = np.random.default_rng(0).standard_normal(400)
    assert smoothed(noise).std() < 0.2


def test_curves_that_do_not_fit_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'morph': 4 positions for 4 distances"):
        smoothness_plot({"morph": Curve(np.arange(4), np.ones(4))}, tmp_path / "curves.png")
    with pytest.raises(ValueError, match="'morph': .* all finite"):
        smoothness_plot({"morph": Curve(np.arange(4), [1, np.nan, 1])}, tmp_path / "curves.png")
    with pytest.raises(ValueError, match="'dawn': 4 values for 3 steps"):
        loss_plot({"dawn": Training([0.1] * 4)}, [1e-3] * 3, tmp_path / "losses.png")
    with pytest.raises(ValueError, match="'dawn': .* all finite"):
        loss_plot({"dawn": Training([0.1], {0: np.nan})}, [1e-3] * 3, tmp_path / "losses.png")
    assert not list(tmp_path.iterdir())
