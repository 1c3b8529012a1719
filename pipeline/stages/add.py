"""`morphline add`: a user's own pictures become a set and a morph."""

import json
import re
import shutil
import unicodedata
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from pipeline.errors import Problem, UserError
from pipeline.images.imagefolder import find_problems
from pipeline.outputs import whole_file, whole_folder
from pipeline.params import KEY, load_params

RAW = Path("data/raw")
PARAMS = Path("params.yaml")


def run(key: str, pictures: Sequence[Path], captions: Sequence[str]) -> None:
    """Copy the pictures to data/raw/<key>/ with a metadata.jsonl, and add the set and the morph to params.yaml.

    Raises:
        UserError: with every problem found; then nothing is made, and nothing is ever overwritten.
    """
    params = load_params(PARAMS)
    problems = _problems(key, pictures, captions, {*params.sets, *params.morphs})
    if problems:
        raise UserError(*problems)
    names = [_file_name(picture) for picture in pictures]
    with whole_folder(RAW / key) as folder:
        for picture, name in zip(pictures, names, strict=True):
            shutil.copyfile(picture, folder / name)
        rows = [{"file_name": name, "text": text.strip()} for name, text in zip(names, captions, strict=True)]
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        found = find_problems(folder, max_megapixels=params.prepare.max_megapixels)
        if found:
            raise UserError(*(_as_given(problem, folder) for problem in found))
        _add_to_params(key, names)
    print(f"Added the set and the morph {key!r}. `dvc repro` makes the clip: data/morphs/{key}/morph.mp4")


def _problems(key: str, pictures: Sequence[Path], captions: Sequence[str], taken: set[str]) -> list[Problem]:
    problems = []
    if not re.fullmatch(KEY, key):
        problems.append(Problem("KEY", f"found {key!r}", "Allowed: lower-case letters, digits and hyphens."))
    elif key in taken or (RAW / key).exists():
        problems.append(Problem("KEY", f"{key!r} is there already", "Choose another key; nothing is overwritten."))
    if len(pictures) < 2:
        problems.append(Problem("PICTURES", f"{len(pictures)} given", "A morph needs two or more."))
    if len(captions) != len(pictures):
        found = f"{len(captions)} captions for {len(pictures)} pictures"
        problems.append(Problem("--caption", found, "Give one for each picture, in the same order."))
    problems += [
        Problem(str(path), "there is no such file", "Correct the path.") for path in pictures if not path.is_file()
    ]
    names = [_file_name(path) for path in pictures]
    stems = [Path(name).stem.casefold() for name in names]
    problems += [
        Problem(str(path), f"two pictures would both be called {stem!r}", "Rename one of them.")
        for path, stem in zip(pictures, stems, strict=True)
        if stems.count(stem) > 1
    ]
    return problems


def _file_name(path: Path) -> str:
    """The name in the set: as the user has it, in composed form, as file systems differ in that."""
    return unicodedata.normalize("NFC", path.name)


def _as_given(problem: Problem, folder: Path) -> Problem:
    return Problem(problem.where.replace(f"{folder}/", ""), problem.found, problem.mend)


def _add_to_params(key: str, names: Sequence[str]) -> None:
    """Two lines, in the style of the file, with every comment kept."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    content = yaml.load(PARAMS.read_text(encoding="utf-8"))
    empty = {name: _flow(CommentedMap()) for name in ("prepare", "train", "sample")}
    _append(content["sets"], key, _flow(CommentedMap({"adapter": "image", **empty})))
    keyframes = _flow(CommentedSeq(names))
    morph = _flow(CommentedMap({"set": key, "keyframes": keyframes, "morph": _flow(CommentedMap())}))
    _append(content["morphs"], key, morph)
    text = StringIO()
    yaml.dump(content, text)
    with whole_file(PARAMS) as path:
        path.write_text(text.getvalue(), encoding="utf-8")


def _append(entries: CommentedMap, key: str, value: CommentedMap | CommentedSeq) -> None:
    """Add the last entry. The comment of the next section hangs on the entry that was last: it moves to the new one."""
    last = next(reversed(entries), None)
    entries[key] = value
    if last is not None and last in entries.ca.items:
        entries.ca.items[key] = entries.ca.items.pop(last)


def _flow(node: CommentedMap | CommentedSeq) -> CommentedMap | CommentedSeq:
    node.fa.set_flow_style()
    return node
