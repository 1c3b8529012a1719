import matplotlib
import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.plots import COLOURS, Curve, loss_plot, smoothed, smoothness_plot


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
    return {f"dawn-{index:02d}": 0.1 * rng.lognormal(0, 0.5, steps) for index in range(adapters)}


def draw_smoothness(path):
    smoothness_plot(curves(), path)


def draw_losses(path):
    loss_plot(np.arange(1, 61), losses(16), path)


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
    loss_plot(np.arange(1, 61), losses(8), tmp_path / "losses.png")
    assert set(COLOURS) <= colours_in(tmp_path / "losses.png")


def test_the_picture_follows_the_numbers(tmp_path):
    draw_smoothness(tmp_path / "one.png")
    changed = curves() | {"morph": Curve(np.linspace(0, 2, 25), np.full(24, 0.04))}
    smoothness_plot(changed, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_frames_that_stand_still_and_trainings_of_a_step_are_drawn(tmp_path):
    smoothness_plot({"morph": Curve(np.linspace(0, 1, 4), np.zeros(3))}, tmp_path / "still.png")
    smoothness_plot({"morph": Curve([0.0], [])}, tmp_path / "single.png")
    loss_plot([1], {"dawn": [0.0]}, tmp_path / "loss.png")
    loss_plot([], {}, tmp_path / "none.png")
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
    with pytest.raises(ValueError, match="'dawn': 2 values for 3 steps"):
        loss_plot([1, 2, 3], {"dawn": [0.1, 0.1]}, tmp_path / "losses.png")
    assert not list(tmp_path.iterdir())
