"""`morphline export`: a set's adapters for ComfyUI and A1111. Not a DVC stage: its files are for other programs."""

from pathlib import Path

from pipeline.adapters.store import ADAPTERS, read_index
from pipeline.commands.chosen import require_set
from pipeline.commands.places import OF_STAGES, require_not_own
from pipeline.errors import Problem, UserError
from pipeline.exchange.kohya import write_kohya
from pipeline.outputs import atomic_file


def run(key: str, out: Path, force: bool) -> list[Path]:
    """Write every adapter of a set to the folder `out` in kohya's format; the files written.

    Raises:
        UserError: when the set has no adapters, or a file exists already and `force` is false.
    """
    require_set(key)
    adapters = ADAPTERS / key
    files = sorted(set(read_index(adapters).values()))
    targets = [out / file for file in files]
    for target in targets:  # and not `out`: files may lie beside the pipeline's folders, as in `models`
        require_not_own(target, OF_STAGES)
    if not force and (existing := [target for target in targets if target.exists()]):
        fix = "Use another folder, or --force."
        raise UserError(*(Problem(str(target), "the file exists already", fix) for target in existing))
    for file, target in zip(files, targets, strict=True):
        with atomic_file(target) as partial:
            write_kohya(adapters / file, partial)
    return targets
