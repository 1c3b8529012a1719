from typing import Any

from pipeline.report.figures import FIGURES, Line, table


def line(name: str, **metrics: dict[str, Any]) -> Line:
    (found,) = [line for line in table(metrics) if line.figure.name == name]
    return found


def variants(name: str, *values: float | None) -> dict[str, dict[str, float | None]]:
    names = ("morph", "without_adapters", "cross_fade")
    return {key: {name: value} for key, value in zip(names, values, strict=True)}


def test_the_best_is_the_highest_or_the_lowest_as_the_figure_asks() -> None:
    psnr = line("endpoints_psnr", **variants("endpoints_psnr", 28.36, 28.04, None))
    assert (psnr.cells, psnr.best) == (("28.4", "28.0", "–"), (0,))
    natural = line("naturalness", **variants("naturalness", 1.2, 0.97, 1.3))
    assert natural.best == (1,)


def test_a_figure_without_a_better_has_no_best_and_nor_has_one_alone() -> None:
    assert line("directness", **variants("directness", 1.5, 1.4, 1.1)).best == ()
    assert line("endpoints_ssim", **variants("endpoints_ssim", 0.9, None, None)).best == ()


def test_what_reads_the_same_is_equally_good() -> None:
    assert line("ppl", **variants("ppl", 0.5001, 0.4999, 0.7)).best == (0, 1)
    assert line("ppl", **variants("ppl", 0.5, 0.5, 0.5)).best == ()


def test_figures_that_nobody_has_are_left_out() -> None:
    assert [found.figure.name for found in table(variants("ppl", 1, 2, 3))] == ["ppl"]


def test_every_figure_says_in_a_sentence_what_it_means() -> None:
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    assert all(figure.says.endswith(".") and len(figure.says) > 20 for figure in FIGURES)
