"""What is told to the tracking server, one operation each. As JSON lines they are also how it is kept while it is down.

A request that timed out may have arrived all the same, so each can be sent twice: numbers, params, tags and files stay
as they are; a picture of a row or an adapter is then there twice.
"""

import json
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from typing_extensions import override

from pipeline.tracking.adapters import log_adapter
from pipeline.tracking.descriptions import NOTE, RUN_ID
from pipeline.tracking.legal import LONGEST_TAG, cut, model_name
from pipeline.tracking.parents import retell
from pipeline.tracking.server import Run, Server, patience


class Operation(BaseModel):
    """One thing to tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def send(self, server: Server, run: Run) -> None:
        """Tell it. Raises whatever MLflow raises."""


class Params(Operation):
    """to: which of the two runs; the parent carries each stage's, prefixed, so that states can be compared."""

    kind: Literal["params"] = "params"
    to: Literal["child", "parent"]
    values: dict[str, str]

    @override
    def send(self, server: Server, run: Run) -> None:
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in self.values.items()]
        for start in range(0, len(params), 100):  # as many as MLflow takes at once
            server.client.log_batch(run.id_of(self.to), params=params[start : start + 100])


class Metrics(Operation):
    """rows: (name, value, milliseconds since 1970, step); a value of None was not finite."""

    kind: Literal["metrics"] = "metrics"
    to: Literal["child", "parent"] = "child"
    rows: tuple[tuple[str, float | None, int, int], ...]

    @override
    def send(self, server: Server, run: Run) -> None:
        from mlflow.entities import Metric

        rows = [
            Metric(name, float("nan") if value is None else value, stamp, step)
            for name, value, stamp, step in self.rows
        ]
        server.client.log_batch(run.id_of(self.to), metrics=rows)


class Tags(Operation):
    """Tags of either run; a later value replaces an earlier one."""

    kind: Literal["tags"] = "tags"
    to: Literal["child", "parent"] = "child"
    values: dict[str, str]

    @override
    def send(self, server: Server, run: Run) -> None:
        from mlflow.entities import RunTag

        server.client.log_batch(run.id_of(self.to), tags=[RunTag(key, text) for key, text in self.values.items()])


class Description(Operation):
    """The description of the stage's run; `RUN_ID` in it stands for MLflow's id of that run."""

    kind: Literal["description"] = "description"
    text: str

    @override
    def send(self, server: Server, run: Run) -> None:
        server.client.set_tag(run.child, NOTE, cut(self.text.replace(RUN_ID, run.child), LONGEST_TAG))


class Dataset(Operation):
    """A dataset by its place in the project and DVC's digest, of the stage and of its parent."""

    kind: Literal["dataset"] = "dataset"
    name: str
    digest: str
    source: str

    @override
    def send(self, server: Server, run: Run) -> None:
        from mlflow.entities import Dataset as MlflowDataset
        from mlflow.entities import DatasetInput, InputTag

        dataset = MlflowDataset(self.name, self.digest, "local", json.dumps({"uri": self.source}))
        for run_id in (run.child, run.parent):
            server.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "input")])])


class Picture(Operation):
    """One picture of a row that the dashboard shows with a step slider."""

    kind: Literal["picture"] = "picture"
    key: str
    path: Path
    step: int
    stamp: int

    @override
    def send(self, server: Server, run: Run) -> None:
        import PIL.Image

        with PIL.Image.open(self.path) as picture, patience(server.uri):
            server.client.log_image(run.child, picture, key=self.key, step=self.step, timestamp=self.stamp)


class Artifact(Operation):
    """A file or a folder, as it is."""

    kind: Literal["artifact"] = "artifact"
    path: Path
    folder: str | None

    @override
    def send(self, server: Server, run: Run) -> None:
        with patience(server.uri):
            if self.path.is_dir():
                server.client.log_artifacts(run.child, str(self.path), self.folder or self.path.name)
            else:
                server.client.log_artifact(run.child, str(self.path), self.folder)


class Adapter(Operation):
    """A LoRA as a model that `mlflow.diffusers.load_model` loads.

    base: a Hub id, or the path of a local base. size: see `Tracker.adapter`.
    """

    kind: Literal["adapter"] = "adapter"
    path: Path
    base: str
    revision: str | None
    name: str
    size: tuple[int, int] | None

    @override
    def send(self, server: Server, run: Run) -> None:
        with patience(server.uri):
            log_adapter(server, run, self.path, self.base, self.revision, model_name(self.name), self.size)


class End(Operation):
    """The stage is over, and its parent rests until another stage starts."""

    kind: Literal["end"] = "end"
    status: Literal["FINISHED", "FAILED", "KILLED"]
    stamp: int

    @override
    def send(self, server: Server, run: Run) -> None:
        server.client.set_terminated(run.child, self.status, self.stamp)
        server.client.set_terminated(run.parent, self.status, self.stamp)
        retell(server, run.parent)


AnyOperation = Annotated[
    Params | Metrics | Tags | Description | Dataset | Picture | Artifact | Adapter | End, Field(discriminator="kind")
]
OPERATION: TypeAdapter[AnyOperation] = TypeAdapter(AnyOperation)
