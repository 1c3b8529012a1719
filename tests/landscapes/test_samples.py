"""The sample sets in the repository are what the code writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.landscapes.samples import ALPS, WOODCUTS, write_samples
from pipeline.landscapes.world import FOREGROUNDS, HELD_OUT, ROCKS, TIMES

COMMITTED = Path(__file__).parents[2] / "data" / "raw"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    write_samples(root)
    return root


@pytest.mark.parametrize("name", ["alps", "woodcut"])
def test_committed_samples_are_what_the_code_writes(written, name):
    committed = {path.name for path in (COMMITTED / name).iterdir() if path.suffix != ".dvc"}
    assert committed == {path.name for path in (written / name).iterdir()}
    assert (COMMITTED / name / "metadata.jsonl").read_bytes() == (written / name / "metadata.jsonl").read_bytes()
    for path in sorted((written / name).glob("*.*g")):
        ours, theirs = (np.asarray(Image.open(file), dtype=float) for file in (path, COMMITTED / name / path.name))
        # Not to the byte: another machine's exponentials and JPEG encoder may round the other way.
        assert np.abs(ours - theirs).mean() < 0.5, path.name


def test_metadata_names_every_picture_once(written):
    for folder, size in ((written / "alps", (512, 384)), (written / "woodcut", (384, 384))):
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        assert all(set(row) == {"file_name", "text"} for row in rows)
        names = [row["file_name"] for row in rows]
        assert sorted(names) == sorted(path.name for path in folder.iterdir() if path.suffix != ".jsonl")
        assert all(Image.open(folder / name).size == size for name in names)


def test_prints_show_every_attribute_and_no_training_seed_is_used():
    assert len(WOODCUTS) == 14
    assert {scene.time for scene in WOODCUTS} == set(TIMES)
    assert {scene.rock for scene in WOODCUTS} == set(ROCKS)
    assert {scene.foreground for scene in WOODCUTS} == set(FOREGROUNDS)
    seeds = [scene.seed for scene in (*WOODCUTS, *ALPS.values())]
    assert min(seeds) >= HELD_OUT and len(set(seeds)) == len(seeds)
