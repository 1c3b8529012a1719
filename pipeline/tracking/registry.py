"""Registered models: adapters of a set and recipes of morphs as versions, each tied to the state that made it.

A version's model is a package (see `serving/package.py`), logged to the run that registers it and brought to a server
with that. One state gives one version: registering it again adds nothing.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pipeline.errors import UserError, redacted
from pipeline.inputs import read_json
from pipeline.outputs import reading
from pipeline.params import NONE, Params
from pipeline.sections import TrackingSection
from pipeline.serving.package import PREVIEW, Contents, contents_of
from pipeline.state import PipelineState, dataset_digest, read_state
from pipeline.tracking.connection import connect, unusable
from pipeline.tracking.packages import PREVIEW_PLACE, save_model
from pipeline.tracking.store import Store, open_store, server_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient as MlflowClient  # for who names them beside this
    from mlflow.entities.model_registry import ModelVersion as ModelVersion

CHAMPION = "champion"
STATE, FIGURES, SETTINGS, MODEL_ID = (f"morphline.{name}" for name in ("state", "figures", "settings", "model_id"))
"""Tags of a version: what identifies it; its morphs' figures by name; what of their settings these depend on; its
logged model, which MLflow's own database does not tell of a version."""
METRICS = Path("reports/metrics")
MOST_FIGURES = 200
"""Morphs of a set whose figures a version carries: a tag has room for them."""


@dataclass(frozen=True)
class Candidate:
    """The present results of `train@SET` or `morph@MORPH`, as a version of a registered model.

    name: of the registered model. tags: of the version, STATE, FIGURES and SETTINGS among them. outputs: path to DVC's
    digest. figures: by morph; of a set, those of all morphs through its pictures or in its style.
    """

    stage: str
    name: str
    contents: Contents
    tags: Mapping[str, str]
    outputs: Mapping[str, str]
    figures: Mapping[str, Mapping[str, float | None]]

    @property
    def state(self) -> str:
        """What identifies the version."""
        return self.tags[STATE]


def candidate_of(params: Params, stage: str) -> Candidate:
    """What would be registered now.

    Raises:
        UserError: when it is not made yet.
    """
    kind, _, key = stage.partition("@")
    contents, state = contents_of(params, stage), read_state()
    if kind == "morph":
        spec = params.get_morph(key)
        morphs, sets = [key], [spec.set, *([] if spec.style == NONE else [spec.style])]
        outputs = [Path("data/morphs", key), *(Path("models/adapters", each) for each in sets)]
    else:
        morphs = [name for name, morph in params.morphs.items() if key in (morph.set, morph.style)][:MOST_FIGURES]
        outputs = [Path("models/adapters", key)]
    digests = {path.as_posix(): dataset_digest(path) for path in outputs}
    packed = contents.package.model_dump_json()
    identity = hashlib.sha256(json.dumps([stage, digests, packed], sort_keys=True).encode()).hexdigest()[:16]
    figures = {name: read for name in morphs if (read := _figures(name)) is not None}
    settings = {name: _settings(params, name) for name in figures}
    tags = {
        STATE: identity,
        FIGURES: json.dumps(figures),
        SETTINGS: json.dumps(settings, ensure_ascii=False),
        "dvc.stage": stage,
        **{f"dvc.{path.replace('/', '.')}": digest for path, digest in digests.items()},
        "dvc.experiment": state.experiment,
        "git.commit": state.commit,
        "git.branch": state.branch,
        "git.dirty": "true" if state.edited else "false",
        "base.digest": contents.package.digest,
        **params.base.tags(),
    }
    name = registered_name(params.tracking, stage)
    return Candidate(stage, name, contents, {tag: text for tag, text in tags.items() if text}, digests, figures)


def registered_name(params: TrackingSection, stage: str) -> str:
    """`morphline.morph.alps` of `morph@alps` in the experiment `morphline`: projects that share a server have
    experiments of their own."""
    return f"{params.experiment}.{stage}".replace("@", ".").replace("/", "_").replace(":", "_")


def register(store: Store, run_id: str, candidate: Candidate) -> "ModelVersion":
    """The version of a candidate in the project's database, made by a run unless it is there; its figures are those
    that were measured last. Raises what MLflow raises."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    with store.lock("registry"):
        if known := version_of(store.client, candidate.name, candidate.state):
            for tag in (FIGURES, SETTINGS):
                store.client.set_model_version_tag(known.name, known.version, tag, candidate.tags[tag])
            return known
        tags = {"base.source": candidate.contents.package.base.source, "dvc.stage": candidate.stage}
        title = candidate.name.replace(".", "-")
        model = store.client.create_logged_model(store.experiment_id, title, run_id, tags, model_type="morphline")
        card = Model(artifact_path=model.artifact_location, run_id=run_id, model_id=model.model_id)
        with tempfile.TemporaryDirectory() as temporary:
            save_model(candidate.contents, Path(temporary, "model"), card)
            shutil.copytree(Path(temporary, "model"), store.place(model.artifact_location))
        store.client.finalize_logged_model(model.model_id, "READY")
        store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        note = describe(candidate, read_state(), model.model_id)
        # Where it lies, for `models:/m-...` would be looked up in whichever database is the process's default.
        place = model.artifact_location
        return add_version(store.client, candidate.name, candidate.tags, note, model.model_id, run_id, place)


def add_version(
    client: "MlflowClient", name: str, tags: Mapping[str, str], note: str, model_id: str, run_id: str, source: str
) -> "ModelVersion":
    """A new version of a registered model, which is made if it is not there. Its page shows the champion's description,
    and the newest version's as long as there is no champion. source: of the model's files."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name, source, run_id, {**tags, MODEL_ID: model_id}, description=note, model_id=model_id
    )
    if champion(client, name) is None:
        client.update_registered_model(name, note)
    return version


def version_of(client: "MlflowClient", name: str, state: str) -> "ModelVersion | None":
    """The version of a state, the oldest if there are several."""
    found = [version for version in versions(client, name) if version.tags.get(STATE) == state]
    return found[0] if found else None


def versions(client: "MlflowClient", name: str) -> "list[ModelVersion]":
    """All versions of a registered model, oldest first; none where it is not there."""
    condition, found, token = "name = '{}'".format(name.replace("'", "''")), list["ModelVersion"](), None
    while token != "":
        page = client.search_model_versions(condition, page_token=token)
        found, token = found + list(page), page.token or ""
    return sorted(found, key=lambda version: int(version.version))


def champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """The version that has the alias."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.get_http_status_code() in (400, 404):  # no such alias, or no such model
            return None
        raise


def crown(client: "MlflowClient", version: "ModelVersion") -> None:
    """Move the alias to a version, whose description the model's page shows then."""
    client.set_registered_model_alias(version.name, CHAMPION, version.version)
    client.update_registered_model(version.name, version.description or "")


def open_registry(params: TrackingSection) -> "tuple[MlflowClient, str]":
    """The registry that a team shares: that of the server, where one is named, else the project's own; and its place.

    Raises:
        UserError: when it cannot be reached.
    """
    uri = server_uri(params)
    if uri is None:
        store = open_store(params)
        return store.client, f"{store.database.name} of this project"
    try:
        client = connect(uri)
        client.search_registered_models(max_results=1)
    except Exception as error:
        raise UserError(unusable(uri, error)) from None
    return client, redacted(uri)


def describe(candidate: Candidate, state: PipelineState, model_id: str) -> str:
    """A version's description: a picture out of its own files, what it was made of and from, and how it is served."""
    package = candidate.contents.package
    parts = [f"**`{candidate.stage}`**" + (f" of `{state.commit[:12]}`: {state.subject}" if state.commit else "")]
    if PREVIEW in candidate.contents.files:
        parts.append(f"![{candidate.stage}]({picture_address(model_id)})")
    revision = package.base.revision or "as in the repository"
    rows = [("base", f"`{package.base.source}`"), ("revision", f"`{revision}`"), ("digest", f"`{package.digest}`")]
    rows += [("adapters", ", ".join(f"`{name}`" for name in package.adapters[:24]))]
    if package.keyframes:
        rows.append(("keyframes", ", ".join(f"`{keyframe.name}`" for keyframe in package.keyframes)))
    parts.append("\n".join(["| | |", "|---|---|", *(f"| {label} | {text} |" for label, text in rows)]))
    parts.append("`mlflow models serve --env-manager local -m models:/" + f"{candidate.name}@{CHAMPION}` serves the"
                 f" champion of these versions; `morphline promote {candidate.stage}` chooses it.")  # fmt: skip
    return "\n\n".join(parts)


def picture_address(model_id: str) -> str:
    """Where the dashboard has the picture of a model, below its own address."""
    return f"ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/files?artifact_file_path={quote(PREVIEW_PLACE, '')}"


def _figures(morph: str) -> dict[str, float | None] | None:
    """The figures of the morph itself, without its baselines'; None where they are not measured yet."""
    path = METRICS / f"{morph}.json"
    if not path.is_file():
        return None
    with reading(path):
        return dict(read_json(path)["morph"])


def _settings(params: Params, morph: str) -> dict[str, Any]:
    """What of a morph decides whether its steps can be compared with another's."""
    spec = params.morphs[morph]
    return {"keyframes": list(spec.keyframes), "frames": spec.morph.frames, "loop": spec.morph.loop}
