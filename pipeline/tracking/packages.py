"""A package as an MLflow model that `mlflow models serve` takes, without a pickle or a copy of the installed code."""

import tempfile
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from pipeline.outputs import atomic_folder
from pipeline.serving.package import PREVIEW, Contents, write_package

LOADER = "pipeline.tracking.pyfunc"
DATA = "data/package"
PREVIEW_PLACE = f"{DATA}/{PREVIEW}"


def write_model(contents: Contents, path: Path) -> None:
    """Write a package as a folder that `mlflow models serve -m FOLDER` takes; it appears whole or not at all."""
    with atomic_folder(path) as folder:
        save_model(contents, folder / "model")
        for file in (folder / "model").iterdir():
            file.rename(folder / file.name)
        (folder / "model").rmdir()


def save_model(contents: Contents, folder: Path, card: Any = None) -> None:
    """Save a package as an MLflow model into a folder that is not there yet.

    card: an `mlflow.models.Model` to complete; None: a new one.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    card = card or Model()
    card.signature = _signature()
    needed = [line for line in requires("morphline") or () if "extra ==" not in line]
    with tempfile.TemporaryDirectory() as temporary:
        package = Path(temporary, Path(DATA).name)
        package.mkdir()
        write_package(contents, package)
        # Without requirements of our own, MLflow would load the model to find out which they are.
        mlflow.pyfunc.save_model(
            str(folder), loader_module=LOADER, data_path=str(package), mlflow_model=card, pip_requirements=needed
        )


def _signature() -> Any:
    """What a request may hold, for the model's page. Its values are checked by `parse_request` alone, in its words:
    where a signature comes from a type hint, as this one says it does, MLflow hands on what was sent as it is, and
    makes no arrays of it, in which each text would take the room of the longest."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, Property, Schema

    texts, number, whole = Array(DataType.string), DataType.double, DataType.long
    kinds = {
        "pictures": texts, "captions": texts, "adapters": AnyType(), "frames": whole, "steps": whole, "fps": number,
        "hold": number, "loop": DataType.boolean, "format": DataType.string, "seed": whole, "guidance": number,
    }  # fmt: skip
    answers = {"mp4": DataType.string, "frames": texts, "count": whole, "pictures": texts}
    inputs, outputs = (
        Schema([ColSpec(Object([Property(name, kind, required=False) for name, kind in each.items()]))])
        for each in (kinds, answers)
    )
    signature = ModelSignature(inputs=inputs, outputs=outputs)
    signature._is_signature_from_type_hint = True
    return signature
