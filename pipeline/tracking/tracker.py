"""What a stage logs while it works."""

import functools
import json
import logging
import math
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

from pipeline.outputs import atomic_file, atomic_folder
from pipeline.tracking.adapters import log_adapter
from pipeline.tracking.connection import now, why
from pipeline.tracking.descriptions import NOTE, PREVIEW_WIDTH, of_failure, preview_of, with_picture
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.names import LONGEST_TAG, cut, flatten, legal_key, model_name, parent_metric, parent_param
from pipeline.tracking.runs import finish, log_dataset
from pipeline.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from PIL.Image import Image

    from pipeline.params import Params

BATCH, SECONDS = 1000, 5.0  # as many metrics as MLflow takes at once

log = logging.getLogger(__name__)

P = ParamSpec("P")


def _never_raises(method: Callable[P, None]) -> Callable[P, None]:
    """Nor does anything where nothing is tracked."""

    @functools.wraps(method)
    def wrapped(*arguments: P.args, **keywords: P.kwargs) -> None:
        if getattr(arguments[0], "_child", ""):
            try:
                method(*arguments, **keywords)
            except Exception as error:
                log.warning("Not tracked (%s): %s: %s", method.__name__, type(error).__name__, why(error))

    return wrapped


class Tracker:
    """Logs one stage instance: its own run, `child`, and what the parent shows. No method raises, none waits long."""

    def __init__(self, stage: str, store: Any = None, child: str = "", parent: str = "", mirror: Any = None) -> None:
        self._stage, self._child, self._parent = stage, child, parent
        self._store: Store = store
        self._mirror: Mirror | None = mirror
        self._rows: dict[str, list[Metric]] = {child: [], parent: []}
        self._flushed = time.monotonic()
        self._not_finite: dict[str, str] = {}
        self._places: dict[str, Path] = {}
        self._rows_of_pictures = False
        self.stop: Callable[[], object] = lambda: None

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """Cheap enough for every training step: written in batches of 1000, or after 5 seconds.

        value: anything `float` takes. NaN and infinities are drawn as gaps, and named in the tag `not finite`.
        step: from 0; None for a single figure, which is shown beside other states' in the parent too.
        """
        self.metrics({name: value}, step)

    @_never_raises
    def metrics(self, values: Mapping[str, float], step: int | None = None, compared: bool = True) -> None:
        """Several metrics of one step. compared: whether single figures are shown in the parent too."""
        from mlflow.entities import Metric

        at = now()
        for name, given in values.items():
            value, key = float(given), legal_key(name)
            if not math.isfinite(value):
                self._not_finite.setdefault(name, f"{name} ({value} at step {step or 0})")
                value = math.nan
            self._rows[self._child].append(Metric(key, value, at, step or 0))
            if step is None and compared:
                self._rows[self._parent].append(Metric(parent_metric(self._stage, key), value, at, 0))
        if len(self._rows[self._child]) >= BATCH or time.monotonic() - self._flushed > SECONDS:
            self._flush()

    @_never_raises
    def picture(self, key: str, picture: "Image | Path", step: int | None = None) -> None:
        """With a step: one of a row under a slider. Without: a file `pictures/<key>`, clips as they are.

        key: a name, with `/` for folders.
        """
        import PIL.Image

        name = legal_key(key)
        if isinstance(picture, Path) and step is None:
            with self._writing(f"pictures/{name}{picture.suffix}") as path:
                shutil.copyfile(picture, path)
            return
        plain = (PIL.Image.open(picture) if isinstance(picture, Path) else picture).convert("RGB")
        # With a step as `MlflowClient.log_image` names them, which refuses the letters of most scripts.
        stem = f"images/{name.replace('/', '~')}+step+{step}+timestamp+{now()}+{uuid.uuid4()}"
        with self._writing(f"pictures/{name}.png" if step is None else f"{stem}.png") as path:
            plain.save(path)
        if step is not None:
            plain.thumbnail((256, 256))
            with self._writing(f"{stem}+compressed.webp") as path:
                plain.save(path)
            if not self._rows_of_pictures:
                self._tag({"mlflow.loggedImages": "True"})
                self._rows_of_pictures = True

    @_never_raises
    def table(self, key: str, columns: Mapping[str, Sequence[Path | float | str]]) -> None:
        """A table under the run's *Evaluation*; columns of pictures (paths) show them. key: as of `picture`.

        In the form of `MlflowClient.log_table`, which knows nothing of where the database lies.
        """
        import PIL.Image

        name = legal_key(key)

        def cell(value: Path | float | str) -> object:
            if not isinstance(value, Path):
                return value
            stem = f"table_images/{name}/{uuid.uuid4()}"
            picture = PIL.Image.open(value).convert("RGB")
            for suffix in (".png", ".webp"):
                with self._writing(stem + suffix) as path:
                    picture.save(path)
                picture.thumbnail((256, 256))
            return {"type": "image", "filepath": f"{stem}.png", "compressed_filepath": f"{stem}.webp"}

        rows = [[cell(value) for value in row] for row in zip(*columns.values(), strict=True)]
        with self._writing(f"{name}.json") as path:
            path.write_text(json.dumps({"columns": list(columns), "data": rows}), encoding="utf-8")
        self.set_tags({"mlflow.loggedArtifacts": json.dumps([{"path": f"{name}.json", "type": "table"}])})

    @_never_raises
    def show(self, path: Path, caption: str) -> None:
        """Put a picture over the description of this run, and into that of its parent."""
        import PIL.Image

        with PIL.Image.open(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((PREVIEW_WIDTH, small.height))
        for run_id in (self._child, self._parent):
            with self._writing(preview_of(self._stage), run_id) as file:
                small.save(file)
        note = self._store.client.get_run(self._child).data.tags.get(NOTE, "")
        self.set_tags({NOTE: with_picture(note, caption, self._stage, self._child)})

    @_never_raises
    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file or a folder, under `folder` in the run's artifacts."""
        with self._writing(f"{folder}/{path.name}" if folder else path.name, folder=path.is_dir()) as copy:
            if path.is_dir():
                shutil.copytree(path, copy, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, copy)

    @_never_raises
    def adapter(
        self, path: Path, base_source: str, base_revision: str | None, name: str, size: tuple[int, int] | None = None
    ) -> None:
        """One LoRA .safetensors as a model that `mlflow.diffusers.load_model` loads.

        base_source, base_revision: as in params.yaml. size: (width, height) in pixels of the pictures that it makes
        unless asked otherwise; None: 512 by 512.
        """
        shown_in = (self._child, self._parent)
        log_adapter(self._store, shown_in, path, base_source, base_revision, model_name(name), size)
        self._report()

    @_never_raises
    def register(self, params: "Params", stage: str) -> None:
        """The results of `train@SET` or `morph@MORPH`, as they are now, as a version of a registered model."""
        from pipeline.tracking.registry import candidate_of, register

        register(self._store, self._child, candidate_of(params, stage))
        self._report()

    @_never_raises
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of this stage's run; values longer than 8000 characters are cut."""
        self._tag(tags)

    def _tag(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        items = [RunTag(legal_key(key), cut(str(text), LONGEST_TAG)) for key, text in tags.items()]
        self._store.client.log_batch(self._child, tags=items)

    @_never_raises
    def begin(self, section: Mapping[str, object], datasets: Mapping[str, Path]) -> None:
        """For `track`: params (to the parent too, under the stage's name) and datasets."""
        values = flatten(section)
        above = {parent_param(self._stage, key): text for key, text in values.items()}
        for run_id, params in ((self._child, values), (self._parent, above)):
            self._store.log_params(run_id, params)
            for name, path in datasets.items():
                log_dataset(self._store, run_id, name, path)
        self._report()

    @_never_raises
    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"], error: BaseException | None = None) -> None:
        """For `track`: what is left, and the single figures to the parent, so that states can be compared."""
        self.stop()
        if self._not_finite:
            self.set_tags({"not finite": ", ".join(self._not_finite.values())})
        if error is not None:
            kind, note = type(error).__name__, of_failure(error, self._stage)
            self.set_tags({"error": str(error) or kind, "error.type": kind, NOTE: note})
        try:
            self._write_rows(self._child, self._parent)
        finally:
            finish(self._store, self._child, self._parent, status)
            self._report(last=True)

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        self._write_rows(self._child)
        self._report()

    def _write_rows(self, *run_ids: str) -> None:
        """What cannot be written stays for the next time; what was written and stays, after Ctrl-C, adds nothing."""
        for run_id in run_ids:
            while rows := self._rows[run_id][:BATCH]:
                self._store.client.log_batch(run_id, metrics=rows)
                del self._rows[run_id][: len(rows)]

    def _report(self, last: bool = False) -> None:
        if self._mirror:
            self._mirror.report(self._parent, self._child, last)

    def _writing(self, name: str, run_id: str = "", folder: bool = False) -> Any:
        """Write an artifact, of this run unless another is named; it appears whole or not at all."""
        run_id = run_id or self._child
        if run_id not in self._places:  # asking takes longer than writing a frame, of which a stage has hundreds
            self._places[run_id] = self._store.place(self._store.client.get_run(run_id).info.artifact_uri)
        path = self._places[run_id] / name
        return atomic_folder(path) if folder else atomic_file(path)
