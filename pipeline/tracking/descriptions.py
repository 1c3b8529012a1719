"""Descriptions, Markdown that the dashboard shows at the top of a run: a picture, what it is, how to make it again.

MLflow's page lets relative addresses of pictures through and drops data URIs and alternative texts, so a description
shows a picture out of its run's artifacts, and says in words where it lies, for readers that cannot show it.
"""

import re
from collections.abc import Sequence
from urllib.parse import quote

from pipeline.state import PipelineState
from pipeline.tracking.names import LONGEST_TAG, cut

NOTE = "mlflow.note.content"
PREVIEW_WIDTH = 640  # wider ones are cut off on the page
STUDIO_ADDRESS = "MORPHLINE_STUDIO"  # in the environment: the address of the studio that runs the stage
PICTURE, RAN, NOT_RUN = "![", "Ran: ", "Did not need to run: "

PAGES = {"prepare": "sets", "train": "sets", "sample": "sets", "morph": "morphs", "evaluate": "morphs", "edit": "edits"}
"""Stages to the studio's pages of what they make."""


def of_state(state: PipelineState) -> str:
    """A parent's description when it begins: what the state is, and how to come back to it."""
    parts = []
    if state.commit:
        more = " and more" if len(state.edited) > 12 else ""
        edited = f"; edited since: {_listed(state.edited[:12])}{more}" if state.edited else ""
        branch = f" on `{state.branch}`" if state.branch else ""
        parts.append(f"**{state.subject}** (`{state.commit[:12]}`{branch}{edited})")
    if back := _return_to(state):
        parts.append(f"Make it again: {back}, then `dvc repro` (or `dvc pull`, where a DVC remote has it)")
    return cut("\n\n".join(parts), LONGEST_TAG)


def of_stage(state: PipelineState, stage: str, studio: str = "") -> str:
    """A stage's description: how to make its outputs again, and where to see them in the studio at that address."""
    parts = list[str]()
    if back := _return_to(state):
        pull = f"(or `dvc pull {stage}`, where a DVC remote has it)"
        parts.append(f"Make it again: {back}, then `dvc repro {stage}` {pull}")
    parts.append(f"Run it again: `dvc repro --force --single-item {stage}`")
    kind, _, key = stage.partition("@")
    if studio and kind in PAGES:
        page = f"{studio}/{PAGES[kind]}/{key}"
        parts.append(f"See it in the studio, while that runs: [{page}]({page})")
    return "\n\n".join(parts)


def preview_of(stage: str) -> str:
    """Where the picture of a stage's description lies, in its run's artifacts and in those of its parent."""
    return f"pictures/previews/{stage.replace('@', '.')}.png"


def with_picture(text: str, caption: str, stage: str, run_id: str) -> str:
    """A stage's description below its picture. run_id: of the run that the description is for."""
    path = preview_of(stage)
    address = f"get-artifact?path={quote(path, safe='')}&run_uuid={run_id}"
    return f"{PICTURE}{caption}]({address})\n\n{caption} (no picture above? It is `{path}` in Artifacts.)\n\n{text}"


def of_parent(begun: str, notes: Sequence[str], ran: Sequence[str], unneeded: Sequence[str], run_id: str) -> str:
    """A parent's description, brought up to date; what people wrote into it stays.

    begun: the description as it is. notes: its stages', whose pictures are shown here too, out of the parent's own
    artifacts. run_id: the parent's.
    """
    kept = [part for part in begun.split("\n\n") if part and not part.startswith((PICTURE, RAN, NOT_RUN))]
    tops = [note.partition("\n")[0] for note in notes if note.startswith(PICTURE)]
    pictures = [re.sub(r"run_uuid=\w+", f"run_uuid={run_id}", top) for top in tops]
    lists = [f"{label}{_listed(names)}" for label, names in ((RAN, ran), (NOT_RUN, unneeded)) if names]
    return cut("\n\n".join([*kept[:1], *pictures, *kept[1:], *lists]), LONGEST_TAG)


def of_failure(error: BaseException, stage: str) -> str:
    """A failed stage's description."""
    kind = type(error).__name__
    return f"**{kind}**: {str(error) or kind}\n\nRun it again: `dvc repro --force --single-item {stage}`"


def _return_to(state: PipelineState) -> str:
    if state.experiment:
        return f"`dvc exp apply {state.experiment}`"
    return f"`git checkout {state.commit[:12]}`" if state.commit and not state.edited else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
