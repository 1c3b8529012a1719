"""`morphline add`: make a set and a morph of the user's own pictures."""

import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.commands.entries import PARAMS, add_entries, sole_writer
from pipeline.errors import Problem, UserError
from pipeline.outputs import atomic_folder
from pipeline.overrides import overridden, parse_settings
from pipeline.params import KEY, LONGEST_KEY, NONE, MorphSpec, Params, SetSpec, load_params
from pipeline.pictures.captions import require_short
from pipeline.pictures.imagefolder import find_problems

RAW = Path("data/raw")
SECTIONS = (*SetSpec.SECTIONS, *MorphSpec.SECTIONS)
"""Those of params.yaml that a set and its morph may override."""
ALWAYS_READ = 60
"""Letters, in bytes, of which each has one token at most: every base reads so many."""
_SHARE = r"\s*(?:0?\.\d+|0\.?|1(?:\.0*)?)\s*"
FOCUS = re.compile(rf"{_SHARE},{_SHARE}")


@dataclass(frozen=True)
class Extras:
    """What a set and a morph may have besides pictures and captions.

    focuses: "X,Y" for each picture, one for all, or none; an empty one is none. settings: values that override those of
    params.yaml, by section (`SECTIONS`) and name. style: the set in whose style the morph is.
    """

    focuses: Sequence[str] = ()
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    style: str = NONE

    def of_section(self, section: str) -> Mapping[str, object]:
        """The values that override those of a section."""
        return self.settings.get(section, {})


def extras_of(focuses: Sequence[str] | None, settings: Sequence[str] | None, style: str | None = None) -> Extras:
    """The extras out of the options of a command.

    Raises:
        UserError: for a setting that is none.
    """
    return Extras(focuses or (), parse_settings(settings or (), SECTIONS), style or NONE)


def run(
    key: str,
    pictures: Sequence[Path],
    captions: Sequence[str],
    extras: Extras | None = None,
    adapter: Literal["image", "set"] = "image",
) -> None:
    """Copy the pictures to data/raw/<key>/ with a metadata.jsonl, and add the set and the morph to params.yaml.

    captions: one for each picture, one for all, or none. adapter: "set" for a style: one adapter for all, and no morph.

    Raises:
        UserError: with every problem found; then nothing is made, and nothing is ever overwritten.
    """
    params, extras = load_params(PARAMS), extras or Extras()
    problems = _key_problems(key, {*params.sets, *params.morphs})
    if adapter == "set" and extras.of_section("morph"):
        problems.append(Problem("--set", "a set with one adapter gets no morph", "Leave out what is of `morph`."))
    problems += find_mistakes(pictures, captions, extras.focuses, least=1 if adapter == "set" else 2)
    problems += extras_problems(params, extras)
    if problems:
        raise UserError(*problems)
    captions = one_for_each(pictures, captions)
    require_readable(params, zip(map(str, pictures), captions, strict=True))
    focuses = focus_for_each(pictures, extras.focuses)
    names = [_file_name(picture) for picture in pictures]
    with sole_writer(), atomic_folder(RAW / key) as folder:
        now = load_params(PARAMS)
        if problems := _key_problems(key, {*now.sets, *now.morphs}):
            raise UserError(*problems)  # somebody was faster
        for picture, name in zip(pictures, names, strict=True):
            shutil.copyfile(picture, folder / name)
        rows = [
            {"file_name": name, "text": text, **({"focus": focus} if focus else {})}
            for name, text, focus in zip(names, captions, focuses, strict=True)
        ]
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        found = find_problems(folder, max_megapixels=params.prepare.max_megapixels)
        if found:
            raise UserError(*(_without_folder(problem, folder) for problem in found))
        add_entries(
            {
                "sets": {"adapter": adapter, **{name: dict(extras.of_section(name)) for name in SetSpec.SECTIONS}},
                **({"morphs": _morph_entry(key, names, extras)} if adapter == "image" else {}),
            },
            key,
        )
    if adapter == "set":
        print(f"Added the set {key!r}. `morphline restyle SET {key}` lays its style over another set's pictures.")
    else:
        print(f"Added the set and the morph {key!r}.")


def require_readable(params: Params, captions: Iterable[tuple[str, str]]) -> None:
    """Let captions pass of which the base reads all; where it is not there, or not whole, `check` says so.

    captions: where each stands, and its text. Raises UserError with each that is too long.
    """
    from pipeline.base.checking import find_base_problems, is_hub_id
    from pipeline.base.tokens import caption_length_of

    long = [(where, text) for where, text in captions if len(text.encode()) > ALWAYS_READ]
    if long and not is_hub_id(params.base) and not find_base_problems(params.base):
        require_short(long, caption_length_of(params.base))


def add_morph(key: str, of: str, pictures: Sequence[Path], extras: Extras) -> None:
    """Add one more morph through pictures of a set that is there, with other settings."""
    add_entries({"morphs": _morph_entry(of, [_file_name(picture) for picture in pictures], extras)}, key)


def one_for_each(pictures: Sequence[Path], captions: Sequence[str]) -> list[str]:
    """The caption of each picture, of one for each, one for all, or none: then empty."""
    given = captions if len(captions) > 1 else [*captions, ""][:1] * len(pictures)
    return [caption.strip() or caption for caption in given]  # what is only blanks is refused with the set


def focus_for_each(pictures: Sequence[Path], focuses: Sequence[str]) -> list[list[float] | None]:
    """The point of each picture that its crop centres on; None: its middle."""
    given = focuses if len(focuses) > 1 else [*focuses, ""][:1] * len(pictures)
    return [[float(part) for part in text.split(",")] if text.strip() else None for text in given]


def extras_problems(params: Params, extras: Extras) -> list[Problem]:
    """What is wrong with the values that override those of params.yaml, and with the style."""
    problems: list[Problem] = []
    if extras.style != NONE and (extras.style not in params.sets or params.sets[extras.style].adapter != "set"):
        styles = ", ".join(key for key, spec in params.sets.items() if spec.adapter == "set") or "none yet"
        found = f"{extras.style!r} is no set with one adapter for all"
        problems.append(Problem("--style", found, f"Choose from: {styles}."))
    for name, values in extras.settings.items():
        try:
            overridden(getattr(params, name), name, values)
        except UserError as error:
            problems += error.problems
    return problems


def _key_problems(key: str, taken: set[str]) -> list[Problem]:
    if not re.fullmatch(KEY, key) or len(key) > LONGEST_KEY:
        fix = f"Allowed: lower-case letters, digits and (not first) hyphens, {LONGEST_KEY} at most."
        return [Problem("KEY", f"found {key!r}", fix)]
    if key in taken or os.path.lexists(RAW / key):
        return [Problem("KEY", f"{key!r} exists already", "Choose another key; nothing is overwritten.")]
    return []


def find_mistakes(
    pictures: Sequence[Path], captions: Sequence[str], focuses: Sequence[str] = (), least: int = 2
) -> list[Problem]:
    """What is wrong with the pictures, captions and focuses of a command, before any picture is opened."""
    problems = []
    if len(pictures) < least:
        problems.append(Problem("PICTURES", f"{len(pictures)} given", "A morph needs two or more."))
    for option, given, of in (("--caption", captions, "captions"), ("--focus", focuses, "points")):
        if len(given) not in (0, 1, len(pictures)):
            found = f"{len(given)} {of} for {len(pictures)} pictures"
            problems.append(Problem(option, found, "Give one for each, in the same order, one for all, or none."))
    problems += [
        Problem("--caption", f"{caption!r} is not UTF-8", "Write it in a terminal whose encoding is UTF-8.")
        for caption in captions
        if not _is_text(caption)
    ]
    problems += [
        Problem("--focus", f"found {text!r}", "Write X,Y: 0,0 is left and top, 1,1 right and bottom; empty for none.")
        for text in focuses
        if text.strip() and not FOCUS.fullmatch(text)
    ]
    problems += [_missing(path) for path in pictures if not os.path.isfile(path)]
    problems += pipe_problems(RAW)
    names = [_file_name(path) for path in pictures]
    stems = [Path(name).stem.casefold() for name in names]
    problems += [
        Problem(str(path), f"two pictures would both be called {stem!r}", "Rename one of them.")
        for path, stem in zip(pictures, stems, strict=True)
        if stems.count(stem) > 1
    ]
    return problems


def pipe_problems(folder: Path) -> list[Problem]:
    """What is neither file nor folder below one that DVC reads: for a pipe it waits without a word and for ever."""
    found = []
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            if path.exists() and not path.is_file():
                fix = "Remove it: DVC would wait for it for ever."
                found.append(Problem(str(path), "a pipe, a socket or a device, not a file", fix))
    return found


def _missing(path: Path) -> Problem:
    if os.path.exists(path):
        return Problem(str(path), "a folder, a pipe or a device, not a file", "Name a picture.")
    return Problem(str(path), "there is no such file", "Correct the path.")


def _is_text(text: str) -> bool:
    """Bytes that are no UTF-8 come from a command line as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _file_name(path: Path) -> str:
    """The name in the set: the user's, in Unicode's composed form (NFC), because file systems differ in that."""
    return unicodedata.normalize("NFC", path.name)


def _without_folder(problem: Problem, folder: Path) -> Problem:
    return Problem(problem.where.replace(f"{folder}/", ""), problem.found, problem.fix)


def _morph_entry(of: str, names: Sequence[str], extras: Extras) -> dict[str, object]:
    return {"set": of, "style": extras.style, "keyframes": list(names), "morph": dict(extras.of_section("morph"))}
