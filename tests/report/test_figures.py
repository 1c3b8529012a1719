from typing import Any

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
    natural = row("naturalness", **variants("naturalness", 1.2, 0.97, 1.3))
    assert natural.best == (1,)


def test_a_figure_without_a_better_has_no_best_and_nor_has_one_alone() -> None:
    assert row("directness", **variants("directness", 1.5, 1.4, 1.1)).best == ()
    assert row("endpoints_ssim", **variants("endpoints_ssim", 0.9, None, None)).best == ()


def test_what_reads_the_same_is_equally_good() -> None:
    assert row("ppl", **variants("ppl", 0.5001, 0.4999, 0.7)).best == (0, 1)
    assert row("ppl", **variants("ppl", 0.5, 0.5, 0.5)).best == ()


def test_figures_that_no_variant_has_are_left_out() -> None:
    assert [found.figure.name for found in table(variants("ppl", 1, 2, 3))] == ["ppl"]


def test_every_figure_has_its_meaning_in_a_sentence() -> None:
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    assert all(figure.meaning.endswith(".") and len(figure.meaning) > 20 for figure in FIGURES)
