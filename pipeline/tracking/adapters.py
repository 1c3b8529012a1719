"""A LoRA as an MLflow model, logged to the project's database and brought to a server."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.state import project_top
from pipeline.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

MODEL = "morphline.model"  # on the server: a model's id in the project's database


class Server(Protocol):
    """What bringing a model needs of a mirror."""

    store: Store
    client: "MlflowClient"

    def send(self, what: str, items: Sequence[Any], call: Callable[[Any], object], most: int = 100) -> None:
        """Send items in requests of at most so many."""


def log_adapter(
    store: Store, runs: Sequence[str], path: Path, base: str, revision: str | None, name: str, size: Any
) -> None:
    """Log one .safetensors LoRA with a reference to its base, as `mlflow.diffusers.log_model` does.

    In its single steps, because log_model files the model under the default experiment, and asks the Hub for the newest
    commit of the base and pins that, even for a local folder such as models/pocket. Here what is pinned is what the
    adapter was trained on. runs: the one that made it first, and others that show it.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    tags = {"base.source": base, **({"base.revision": revision} if revision else {})}
    model = store.client.create_logged_model(store.experiment_id, name, runs[0], tags, model_type="lora")
    card = Model(artifact_path=model.artifact_location, run_id=runs[0], model_id=model.model_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        # An absolute path keeps save_model from asking the Hub; the true reference is written over it.
        mlflow.diffusers.save_model(str(path), str(folder), "/", mlflow_model=card, signature=_signature(size))
        flavor = card.flavors[mlflow.diffusers.FLAVOR_NAME]
        flavor["base_model"] = base_reference(base)
        if revision and not _local(base):
            flavor["base_model_revision"] = revision
        card.save(str(folder / "MLmodel"))
        shutil.copytree(folder, store.place(model.artifact_location))
    store.client.finalize_logged_model(model.model_id, "READY")
    for run_id in runs:
        store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def bring_models(mirror: Server, run: "Run", there: "Run") -> None:
    """Bring the models that a stage's run made, and show them in that run and its parent on the server."""
    from mlflow.entities import LoggedModelOutput

    parent = there.data.tags.get("mlflow.parentRunId")
    made = [output.model_id for output in run.outputs.model_outputs]
    if not (parent and made):
        return
    copies = _copies(mirror, there)
    lacking = [one for one in made if one not in copies or str(copies[one].status) != "READY"]

    def bring(part: Sequence["LoggedModel"]) -> None:
        copies[part[0].model_id] = _bring(mirror, part[0], copies.get(part[0].model_id), there)

    mirror.send("model", [mirror.store.client.get_logged_model(one) for one in lacking], bring, most=1)
    for target in (there, mirror.client.get_run(parent)):
        shown = {output.model_id for output in target.outputs.model_outputs}
        ready = [copies[one].model_id for one in made if one in copies and copies[one].model_id not in shown]
        if ready:
            mirror.client.log_outputs(target.info.run_id, [LoggedModelOutput(model_id, step=0) for model_id in ready])


def bring_versions(mirror: Server, run: "Run", there: "Run") -> None:
    """Bring the versions of registered models that a run made, once the server has their models."""
    made = [output.model_id for output in run.outputs.model_outputs]
    found = mirror.store.client.search_model_versions(f"run_id = '{run.info.run_id}'") if made else []
    if not found:
        return
    from pipeline.tracking.registry import MODEL_ID, STATE, add_version, version_of

    copies = _copies(mirror, there)

    def bring(part: Sequence["ModelVersion"]) -> None:
        version, copy = part[0], copies[part[0].tags[MODEL_ID]]
        note = (version.description or "").replace(version.tags[MODEL_ID], copy.model_id)
        source, run_id = f"models:/{copy.model_id}", there.info.run_id
        add_version(mirror.client, version.name, version.tags, note, copy.model_id, run_id, source)

    lacking = [
        version
        for version in found
        if version.tags.get(MODEL_ID) in copies
        and not version_of(mirror.client, version.name, version.tags.get(STATE, ""))
    ]
    mirror.send("version", lacking, bring, most=1)


def _copies(mirror: Server, there: "Run") -> "dict[str, LoggedModel]":
    """The run's models on the server by their local ids. One that is there twice, because a request to make it timed
    out and arrived all the same, goes."""
    found: dict[str, LoggedModel] = {}
    token = None
    while token != "":
        condition = f"source_run_id = '{there.info.run_id}'"
        page = mirror.client.search_logged_models([there.info.experiment_id], condition, page_token=token)
        for model in sorted(page, key=lambda model: str(model.status) == "READY"):
            if twice := found.get(model.tags.get(MODEL, "")):
                mirror.client.delete_logged_model(twice.model_id)
            found[model.tags.get(MODEL, "")] = model
        token = page.token or ""
    return found


def _bring(mirror: Server, model: "LoggedModel", copy: "LoggedModel | None", there: "Run") -> "LoggedModel":
    """Make a model if it is not there, and complete it, with the server's ids in its card."""
    if copy is None:
        tags = {**model.tags, MODEL: model.model_id}
        copy = mirror.client.create_logged_model(
            there.info.experiment_id, model.name, there.info.run_id, tags, model_type=model.model_type
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(mirror.store.place(model.artifact_location), Path(temporary, "model"))
        card = (folder / "MLmodel").read_text(encoding="utf-8")
        for mine, theirs in ((model.model_id, copy.model_id), (model.source_run_id, there.info.run_id)):
            card = card.replace(mine, theirs)
        (folder / "MLmodel").write_text(card, encoding="utf-8")
        mirror.client.log_model_artifacts(copy.model_id, str(folder))
    return mirror.client.finalize_logged_model(copy.model_id, "READY")


def base_reference(base: str) -> str:
    """A Hub id as it is; a local base relative to the project (with ./, so that it is not taken for a Hub id)."""
    if not _local(base):
        return base
    path, top = (project_top() / base).resolve(), project_top()
    return f"./{path.relative_to(top).as_posix()}" if path.is_relative_to(top) else str(path)


def _local(base: str) -> bool:
    return base.startswith(("/", "./", "../")) or (project_top() / base).exists()


def _signature(size: tuple[int, int] | None) -> Any:
    """MLflow's signature for prompts, with the size that the adapter was trained on instead of 512 by 512."""
    if size is None:
        return None
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    defaults = {
        "num_inference_steps": (DataType.integer, 30), "guidance_scale": (DataType.double, 7.5),
        "height": (DataType.integer, size[1]), "width": (DataType.integer, size[0]),
        "negative_prompt": (DataType.string, ""),
    }  # fmt: skip
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "prompt")]),
        outputs=Schema([ColSpec(DataType.binary, "image")]),
        params=ParamSchema([ParamSpec(name, kind, default) for name, (kind, default) in defaults.items()]),
    )
