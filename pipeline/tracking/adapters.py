"""A LoRA as an MLflow model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.tracking.server import Server
from pipeline.tracking.state import project_top

if TYPE_CHECKING:
    from mlflow.models import Model


def log_adapter(
    server: Server, run_id: str, path: Path, base: str, revision: str | None, name: str, size: tuple[int, int] | None
) -> None:
    """Log one .safetensors LoRA with a reference to its base, as `mlflow.diffusers.log_model` does.

    Through `Model.log` with mlflow.diffusers.save_model beneath, because log_model asks the Hub which commit is newest
    and pins that one, even for a local folder like models/pocket. What is pinned here is what it was trained on.
    """
    import mlflow
    from mlflow.models import Model
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    class Flavor:
        __name__ = "mlflow.diffusers"

        @staticmethod
        def save_model(path: str, mlflow_model: "Model", **keywords: Any) -> None:
            mlflow.diffusers.save_model(path=path, mlflow_model=mlflow_model, base_model="./", **keywords)
            flavor = mlflow_model.flavors[mlflow.diffusers.FLAVOR_NAME]
            flavor["base_model"] = base_reference(base)
            if revision and not _local(base):
                flavor["base_model_revision"] = revision
            mlflow_model.save(str(Path(path) / "MLmodel"))

    with _use_tracking_uri(server.uri):
        Model.log(
            artifact_path=None,
            flavor=Flavor(),
            run_id=run_id,
            name=name,
            adapter_path=str(path),
            signature=_signature(size or _trained_size(base)),
            model_type="lora",
            tags={"base.source": base, **({"base.revision": revision} if revision else {})},
        )


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
