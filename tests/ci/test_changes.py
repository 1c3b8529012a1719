"""What changed, and whether for better or worse."""

import pytest

from pipeline.ci.changes import Change, changes, verdict


def test_only_keys_that_differ_are_listed_dotted_and_in_order() -> None:
    before = {"train": {"steps": 10, "rank": 8}, "sets": {"a": {"train": {}}}, "gone": 1}
    now = {"train": {"steps": 20, "rank": 8}, "sets": {"a": {"train": {"steps": 5}}}}
    assert changes(before, now) == [
        Change("gone", 1, None),
        Change("sets.a.train", {}, None),
        Change("sets.a.train.steps", None, 5),
        Change("train.steps", 10, 20),
    ]
    assert changes(now, now) == []


@pytest.mark.parametrize(
    ("key", "before", "now", "expected"),
    [
        ("alps.morph.endpoints_psnr", 20.0, 21.0, "better"), ("alps.morph.endpoints_psnr", 21.0, 20.0, "worse"),
        ("alps.morph.endpoints_worst_psnr_gap", 0.5, 0.7, "worse"), ("x.neighbours_max_over_mean", 3.0, 1.5, "better"),
        ("x.endpoints_perceptual", 0.1, 0.2, "worse"), ("x.endpoints_ssim", 0.1, 0.2, "better"),
        ("x.neighbours_sum", 1.0, 2.0, ""), ("x.endpoints_psnr", None, 2.0, ""),
        ("x.endpoints_psnr", 2.0, 2.0 + 1e-9, ""), ("x.endpoints_psnr", 20.0, 20.025, ""),
        ("x.endpoints_psnr", 20.0, 20.05, "better"), ("x.endpoints_floor_psnr", 20.0, 10.0, ""),
        ("x.directness", 1.1, 1.5, ""), ("x.ppl", 0.5, 0.6, ""), ("x.endpoints_psnr_gap", 0.5, 0.7, ""),
        ("x.pdv", 6e-5, 1.0e-4, ""), ("x.pdv", 6e-5, 1.2e-4, "worse"), ("x.naturalness", 0.99, 0.9902, ""),
        ("x.naturalness", 0.99, 0.9, "better"), ("x.ghosting", 0.03, 0.2, "worse"), ("x.ghosting", 0.03, 0.035, ""),
        ("x.keyframes_strangeness", 1.0, 4.0, ""),
    ],
)  # fmt: skip
def test_figures_are_better_or_worse_by_what_they_are(key: str, before: float, now: float, expected: str) -> None:
    assert verdict(Change(key, before, now)) == expected
