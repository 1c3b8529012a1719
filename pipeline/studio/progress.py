"""How far a job is: the numbers of the progress bars in its log."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

MOST_LOG = 64 * 1024
"""Bytes at the end of a log that are shown."""

# `alps invert:  40%|████      | 4/10 [00:03<00:05,  1.2step/s, loss=0.12]`, as tqdm writes it.
_BAR = re.compile(
    r"(?P<label>[^\r\n|]*?):?\s*\d+%\|[^|\r\n]*\|\s*(?P<step>\d+)/(?P<of>\d+) "
    r"\[[\d:]+<(?P<left>[\d:?]+),(?P<rest>[^\]\r\n]*)\]"
)
_LOSS = re.compile(r"\bloss=([-\d.e+]+)")
_STAGE = re.compile(r"Running stage '([^']+)'")
_PROBLEM = re.compile(r"  (?=\S)(.+)")


@dataclass(frozen=True)
class Progress:
    """stage: the DVC stage that runs. label: the part of it; step, of: how far that is; left: seconds until its end,
    None where nobody knows yet. losses: of a training, as they were printed, the oldest first. stages: those begun."""

    stage: str = ""
    label: str = ""
    step: int = 0
    of: int = 0
    left: float | None = None
    losses: tuple[float, ...] = ()
    stages: tuple[str, ...] = ()


class LogReader:
    """Reads a log on from where it was left, and keeps how far the job is."""

    def __init__(self, path: Path) -> None:
        self.path, self.progress = path, Progress()
        self._position, self._rest = 0, ""

    def read(self) -> Progress:
        """The progress, after whatever the log has more by now."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                content = file.read(2**20)
        except FileNotFoundError:
            return self.progress
        self._position += len(content)
        *lines, self._rest = re.split(r"[\r\n]", self._rest + content.decode("utf-8", "replace"))
        for line in [*lines, self._rest]:
            self._take(line)
        self._rest = self._rest[-4096:]
        return self.progress

    def _take(self, line: str) -> None:
        now = self.progress
        if stage := _STAGE.search(line):
            if now.stage != stage[1]:
                self.progress = Progress(stage=stage[1], stages=(*now.stages, stage[1]))
        elif bar := _BAR.search(line):
            losses = now.losses
            if (loss := _LOSS.search(bar["rest"])) and (not losses or float(loss[1]) != losses[-1]):
                losses = (*losses, float(loss[1]))[-500:]
            self.progress = replace(
                now, label=bar["label"].strip(), step=int(bar["step"]), of=int(bar["of"]), left=_seconds(bar["left"]),
                losses=losses,
            )  # fmt: skip


def problems_in(log: Path) -> list[str]:
    """The problems that commands have printed in a log, each once; `dvc repro failed` is no reason."""
    found: dict[str, None] = {}
    within = False
    for line in tail(log).splitlines():
        if re.match(r"morphline [\w-]+(?: [\w-]+)?: \d+ problem\(s\)$", line):
            within = True
        elif within and (problem := _PROBLEM.fullmatch(line)):
            found[problem[1]] = None
        else:
            within = False
            if said := re.match(r"morphline [\w-]+: (?!stopped)(.+)|ERROR: (.+)", line):
                found[said[1] or said[2]] = None
    ours = [line for line in found if not line.startswith(("dvc repro ", "failed to reproduce "))]
    return ours or [line for line in found if not line.startswith("dvc repro ")] or list(found)


def tail(log: Path) -> str:
    """The end of a log as a person would have seen it: of each progress bar, only how it was left."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - MOST_LOG))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def _seconds(text: str) -> float | None:
    if "?" in text:
        return None
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds
