"""A LoRA as an MLflow model."""

import json
import tempfile
from pathlib import Path
from typing import Any

from pipeline.tracking.server import Run, Server
from pipeline.tracking.state import project_top


def log_adapter(
    server: Server, run: Run, path: Path, base: str, revision: str | None, name: str, size: tuple[int, int] | None
) -> None:
    """Log one .safetensors LoRA with a reference to its base, as `mlflow.diffusers.log_model` does.

    In its single steps, because log_model files the model under the default experiment, and asks the Hub for the newest
    commit of the base and pins that, even for a local folder such as models/pocket. Here what is pinned is what the
    adapter was trained on.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    tags = {"base.source": base, **({"base.revision": revision} if revision else {})}
    model = server.client.create_logged_model(server.experiment_id, name, run.child, tags, model_type="lora")
    card = Model(artifact_path=model.artifact_location, run_id=run.child, model_id=model.model_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        signature = _signature(size or _trained_size(base))
        # An absolute path keeps save_model from asking the Hub; the true reference is written over it.
        mlflow.diffusers.save_model(str(path), str(folder), "/", mlflow_model=card, signature=signature)
        flavor = card.flavors[mlflow.diffusers.FLAVOR_NAME]
        flavor["base_model"] = base_reference(base)
        if revision and not _local(base):
            flavor["base_model_revision"] = revision
        card.save(str(folder / "MLmodel"))
        server.client.log_model_artifacts(model.model_id, str(folder))
    server.client.finalize_logged_model(model.model_id, "READY")
    for run_id in (run.child, run.parent):
        server.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def base_reference(base: str) -> str:
    """A Hub id as it is; a local base relative to the project (with ./, so that it is not taken for a Hub id)."""
    if not _local(base):
        return base
    path = (project_top() / base).resolve()
    top = project_top()
    return f"./{path.relative_to(top).as_posix()}" if path.is_relative_to(top) else str(path)


def _local(base: str) -> bool:
    return base.startswith(("/", "./", "../")) or (project_top() / base).exists()


def _trained_size(base: str) -> tuple[int, int] | None:
    """The picture size that a local base's configs name."""
    folder = project_top() / base
    try:
        side = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))["sample_size"]
        blocks = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))["block_out_channels"]
        return (int(side) * 2 ** (len(blocks) - 1),) * 2
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _signature(size: tuple[int, int] | None) -> Any:
    """MLflow's signature for prompts, with the size that the adapter was trained on instead of 512 by 512."""
    if size is None:
        return None
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    width, height = size
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "prompt")]),
        outputs=Schema([ColSpec(DataType.binary, "image")]),
        params=ParamSchema(
            [
                ParamSpec("num_inference_steps", DataType.integer, 30),
                ParamSpec("guidance_scale", DataType.double, 7.5),
                ParamSpec("height", DataType.integer, height),
                ParamSpec("width", DataType.integer, width),
                ParamSpec("negative_prompt", DataType.string, ""),
            ]
        ),
    )
