from typing import Any

import pytest

from pipeline.report.figures import FIGURES, Row, table


def row(name: str, **metrics: dict[str, Any]) -> Row:
    (found,) = [row for row in table(metrics) if row.figure.name == name]
    return found


def variants(name: str, *values: float | None) -> dict[str, dict[str, float | None]]:
    names = ("morph", "without_adapters", "cross_fade")
    return {key: {name: value} for key, value in zip(names, values, strict=True)}


def test_the_best_is_the_highest_or_the_lowest_as_the_figure_asks() -> None:
    psnr = row("endpoints_psnr", **variants("endpoints_psnr", 28.36, 28.04, None))
    assert (psnr.cells, psnr.best) == (("28.4", "28.0", "–"), (0,))
    ghosting = row("ghosting", **variants("ghosting", 0.05, 0.03, 0.2))
    assert (ghosting.cells, ghosting.best) == (("0.050", "0.030", "0.200"), (1,))


@pytest.mark.parametrize(("strangeness", "best"), [(1.1, (1,)), (4.0, ()), (None, ())])
def test_the_base_judges_only_pictures_that_it_knows(strangeness: float | None, best: tuple[int, ...]) -> None:
    figures = variants("naturalness", 1.2, 0.97, 1.3)
    figures["morph"]["keyframes_strangeness"] = strangeness
    found = row("naturalness", **figures)
    assert found.best == best
    assert found.warning.startswith("Not ranked") is not bool(best)


def test_the_base_does_not_judge_a_style_that_it_does_not_know() -> None:
    figures = variants("naturalness", 1.7, 1.5, 1.3)
    figures["morph"]["keyframes_strangeness"] = 1.0
    plain, styled = (
        next(each for each in table(figures, style) if each.figure.name == "naturalness") for style in (False, True)
    )
    assert plain.best == (2,) and not plain.warning
    assert styled.best == () and "does not know the style" in styled.warning and styled.cells == plain.cells


def test_a_cross_fade_does_not_win_by_its_pace() -> None:
    assert row("pdv", **variants("pdv", 4e-5, 9e-5, 5e-6)).best == (0,)
    assert row("neighbours_max_over_mean", **variants("neighbours_max_over_mean", 2.0, 1.5, 1.1)).best == (1,)
    for name in ("ppl", "directness", "lpips_ppl"):
        assert row(name, **variants(name, 0.7, 0.6, 0.4)).best == ()


def test_a_figure_without_a_better_has_no_best_and_nor_has_one_alone() -> None:
    assert row("directness", **variants("directness", 1.5, 1.4, 1.1)).best == ()
    assert row("endpoints_ssim", **variants("endpoints_ssim", 0.9, None, None)).best == ()


def test_what_differs_by_chance_or_reads_the_same_is_equally_good() -> None:
    assert row("ghosting", **variants("ghosting", 0.03, 0.035, 0.2)).best == (0, 1)
    assert row("ghosting", **variants("ghosting", 0.03, 0.031, 0.032)).best == ()
    assert row("endpoints_psnr", **variants("endpoints_psnr", 28.34, 28.31, 27.0)).best == (0, 1)
    assert row("endpoints_psnr", **variants("endpoints_psnr", 28.34, 28.26, 27.0)).best == (0, 1)


def test_the_figures_that_agree_with_eyes_come_first() -> None:
    assert [figure.name for figure in FIGURES][:2] == ["ghosting", "naturalness"]


def test_figures_that_no_variant_has_are_left_out() -> None:
    assert [found.figure.name for found in table(variants("ppl", 1, 2, 3))] == ["ppl"]


def test_every_figure_has_its_meaning_in_a_sentence() -> None:
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    assert all(figure.meaning.endswith(".") and len(figure.meaning) > 20 for figure in FIGURES)
