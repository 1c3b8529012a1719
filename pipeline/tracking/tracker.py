"""What a stage tells while it works."""

import functools
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec

from pipeline.tracking.descriptions import NOTE, PREVIEW, PREVIEW_WIDTH, of_failure, with_picture
from pipeline.tracking.legal import LONGEST_TAG, cut, flatten, legal_key, parent_metric, parent_param
from pipeline.tracking.machine import MachineMetrics
from pipeline.tracking.operations import Adapter, Artifact, Dataset, Description, End, Metrics, Params, Picture, Tags
from pipeline.tracking.sender import Sender
from pipeline.tracking.server import now
from pipeline.tracking.state import dataset_digest, place_of

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 1000  # as many as MLflow takes at once
SECONDS = 5.0

log = logging.getLogger(__name__)

P = ParamSpec("P")


def _never_raises(method: Callable[P, None]) -> Callable[P, None]:
    @functools.wraps(method)
    def wrapped(*arguments: P.args, **keywords: P.kwargs) -> None:
        try:
            method(*arguments, **keywords)
        except Exception as error:
            log.warning("Not tracked (%s): %s: %s", method.__name__, type(error).__name__, error)

    return wrapped


class Tracker:
    """Writes down one stage instance. No method raises, none waits long for a server."""

    def __init__(self, sender: Sender, machine: MachineMetrics | None = None) -> None:
        self._sender = sender
        self._machine = machine
        self._stage = legal_key(sender.beginning.stage)
        self._rows: list[tuple[str, float | None, int, int]] = []
        self._figures: dict[str, tuple[str, float | None, int, int]] = {}
        self._flushed = time.monotonic()
        self._not_finite: dict[str, str] = {}

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """Cheap enough for every training step: sent in batches of 1000, or after 5 seconds.

        value: anything `float` takes. NaN and infinities are drawn as gaps, and named in the tag `not finite`.
        step: from 0; None for a single figure, which is shown beside other states' in the parent too.
        """
        self.metrics({name: value}, step)

    @_never_raises
    def metrics(self, values: Mapping[str, float], step: int | None = None, compared: bool = True) -> None:
        """Several metrics of one step. compared: whether single figures are shown in the parent too."""
        stamp = now()
        for name, given in values.items():
            value: float | None = float(given)
            if value is None or not math.isfinite(value):
                self._not_finite.setdefault(name, f"{name} ({value} at step {step or 0})")
                value = None
            self._rows.append((legal_key(name), value, stamp, step or 0))
            if step is None and compared:
                self._figures[name] = (parent_metric(self._stage, name), value, stamp, 0)
        if len(self._rows) >= BATCH or time.monotonic() - self._flushed > SECONDS:
            self._flush()

    @_never_raises
    def picture(self, key: str, picture: "Image | Path", step: int | None = None) -> None:
        """With a step: one of a row under a slider. Without: a file `pictures/<key>`, clips as they are.

        key: a name, with `/` for folders.
        """
        name = legal_key(key)
        suffix = picture.suffix if isinstance(picture, Path) else ".png"
        path = self._sender.new_file(f"{Path(name).name}{suffix}")
        if isinstance(picture, Path):
            shutil.copyfile(picture, path)
        else:
            picture.convert("RGB").save(path)
        if step is None:
            self._sender.send(Artifact(path=path, folder=(Path("pictures") / name).parent.as_posix()))
        else:
            self._sender.send(Picture(key=name, path=path, step=step, stamp=now()))

    @_never_raises
    def show(self, path: Path, caption: str) -> None:
        """Put a picture over the description of this run, and into that of its parent."""
        import PIL.Image

        with PIL.Image.open(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((PREVIEW_WIDTH, small.height))
        self.picture(Path(PREVIEW).stem, small)
        self._sender.send(Description(text=with_picture(self._sender.beginning.tags[NOTE], caption)))

    @_never_raises
    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file or a folder, under `folder` in the run's artifacts."""
        self._sender.send(Artifact(path=path.absolute(), folder=folder))

    @_never_raises
    def adapter(
        self,
        path: Path,
        base_source: str,
        base_revision: str | None,
        name: str,
        size: tuple[int, int] | None = None,
    ) -> None:
        """One LoRA .safetensors as a model that `mlflow.diffusers.load_model` loads.

        base_source, base_revision: as in params.yaml. size: (width, height) in pixels of the pictures that it makes
        unless told otherwise; None: as a local base's configs say, else 512 by 512.
        """
        self._sender.send(Adapter(path=path.absolute(), base=base_source, revision=base_revision, name=name, size=size))

    @_never_raises
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of this stage's run; values longer than 8000 characters are cut."""
        self._sender.send(Tags(values={legal_key(key): cut(str(text), LONGEST_TAG) for key, text in tags.items()}))

    @_never_raises
    def begin(self, section: Mapping[str, object], datasets: Mapping[str, Path]) -> None:
        """For `track`: params (to the parent too, under the stage's name) and datasets."""
        values = flatten(section)
        self._sender.send(Params(to="child", values=values))
        prefixed = {parent_param(self._stage, key): text for key, text in values.items()}
        self._sender.send(Params(to="parent", values=prefixed))
        for name, path in datasets.items():
            if path.exists():
                self._sender.send(Dataset(name=name, digest=dataset_digest(path), source=place_of(path)))

    @_never_raises
    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"], error: BaseException | None = None) -> None:
        """For `track`: what is left, and the single figures to the parent, so that states can be compared."""
        if self._machine:
            self._machine.stop()
        self._flush()
        rows = list(self._figures.values())
        for start in range(0, len(rows), BATCH):
            self._sender.send(Metrics(to="parent", rows=tuple(rows[start : start + BATCH])))
        if self._not_finite:
            self.set_tags({"not finite": ", ".join(self._not_finite.values())})
        if error is not None:
            note = of_failure(error, self._sender.beginning.stage)
            said = str(error) or type(error).__name__
            self.set_tags({"error": said, "error.type": type(error).__name__, NOTE: note})
        self._sender.send(End(status=status, stamp=now()))
        self._sender.close()

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        rows, self._rows = self._rows, []
        rows += self._machine.take() if self._machine else []
        for start in range(0, len(rows), BATCH):
            self._sender.send(Metrics(rows=tuple(rows[start : start + BATCH])))
