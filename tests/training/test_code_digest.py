import pytest

from pipeline.stages.morph import FRAMES
from pipeline.training.code_digest import ENCODING, TRAINING
from tests.declarations import ROOT, all_imports


@pytest.mark.parametrize(
    ("patterns", "files"),
    [
        pytest.param(TRAINING, "training/*.py", id="adapters"),
        pytest.param(ENCODING, "training/examples.py", id="encoded pictures"),
        pytest.param(FRAMES, "film.py", id="frames without adapters"),
    ],
)
def test_what_is_kept_is_made_again_when_any_code_behind_it_changes(patterns: tuple[str, ...], files: str) -> None:
    package = ROOT / "pipeline"
    imported = set().union(*(all_imports(file.relative_to(ROOT)) for file in package.glob(files)))
    covered = {file.relative_to(ROOT) for pattern in patterns for file in package.glob(pattern)}
    assert imported and not sorted(map(str, imported - covered))
