"""A LoRA as an MLflow model: what comes back is the adapter, its base and what they paint."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.tracking import track
from tests.tracking.conftest import ROOT, Book


def test_an_adapter_loads_back_with_its_base(book: Book, project: Path) -> None:
    import mlflow

    (project / "models/pocket").mkdir(parents=True)
    weights = {"unet.to_q.lora_A.weight": np.ones((2, 4), np.float32)}
    save_file(weights, project / "dawn.safetensors", metadata={"rank": "2"})
    with track("train@alps", book.params, {}) as tracker:
        tracker.adapter(project / "dawn.safetensors", "models/pocket", None, "alps-dawn", size=(128, 96))
        tracker.adapter(project / "dawn.safetensors", "owner/base", "c" * 40, "alps-dusk.1")

    run = book.only("train@alps")
    uri = f"sqlite:///{project / 'mlflow.db'}"
    models = book.client.search_logged_models([run.info.experiment_id], order_by=[{"field_name": "name"}])
    assert [model.name for model in models] == ["alps-dawn", "alps-dusk_x2e_1"]
    assert all(model.source_run_id == run.info.run_id for model in models)
    for shown in (run, book.parents()[0]):
        assert len(shown.outputs.model_outputs) == 2
    assert "MLFLOW_TRACKING_URI" not in os.environ
    mlflow.set_tracking_uri(uri)
    try:
        dawn, dusk = (mlflow.diffusers.load_model(model.model_uri) for model in models)
        shown = mlflow.models.get_model_info(models[0].model_uri).signature.params.to_dict()
    finally:
        mlflow.set_tracking_uri(None)
    assert (dawn.base_model, dawn.base_model_revision) == ("./models/pocket", None)
    assert (dusk.base_model, dusk.base_model_revision) == ("owner/base", "c" * 40)
    (file,) = Path(dawn.adapter_path).iterdir()
    assert file.read_bytes() == (project / "dawn.safetensors").read_bytes()
    sizes = {param["name"]: param["default"] for param in shown}
    assert (sizes["width"], sizes["height"]) == (128, 96)


def test_a_logged_adapter_paints_what_our_own_sampling_paints(
    book: Book, project: Path, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through MLflow and diffusers alone, as anyone who finds it in the dashboard would use it."""
    import mlflow
    import torch

    from pipeline.adapters.lora import lora_config, read_adapter, save_adapter
    from pipeline.params import load_params
    from pipeline.sampling.captions import sample_captions
    from tests.peft_adapters import adapter_weights, add_adapter
    from tests.tiny import open_tiny

    folder = project / "models/tiny"
    shutil.copytree(tiny_folders["epsilon"], folder)
    base, donor = open_tiny(folder), open_tiny(folder)
    settings = load_params(ROOT / "params.yaml").train.model_copy(update={"rank": 4, "alpha": 2.0})
    add_adapter(donor.denoiser, "ours", rank=4, alpha=2.0, seed=1)
    generator = torch.Generator().manual_seed(2)
    weights = {
        key.replace(".ours", ""): torch.randn(value.shape, generator=generator) / 2
        for key, value in adapter_weights(donor.denoiser, "ours").items()
    }
    notes = {"base": {"source": "models/tiny", "revision": None, "digest": base.digest}}
    save_adapter(project / "red.safetensors", weights, lora_config(settings), notes, base.adapter_prefix)
    with track("train@alps", book.params, {}) as tracker:
        tracker.adapter(project / "red.safetensors", "models/tiny", None, "alps-red")

    (model,) = book.client.search_logged_models([book.only("train@alps").info.experiment_id])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
    pipe = mlflow.diffusers.load_model(model.model_uri).load_pipeline(device="cpu")
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        theirs = pipe(
            "a red hill",
            latents=noise,
            num_inference_steps=5,
            guidance_scale=2.5,
            height=16,
            width=16,
            output_type="pt",
        ).images

        def ours(weight: float) -> torch.Tensor:
            adapter = read_adapter(project / "red.safetensors", base.digest, torch.device("cpu"))
            latents = sample_captions(
                base, noise, base.condition(["a red hill"]), [[(adapter, weight)]], steps=5, guidance=2.5, solver="ddim"
            )
            return base.decode(latents)

        assert torch.allclose(theirs, ours(1.0), atol=1e-4)
        assert float((theirs - ours(0.0)).abs().max()) > 1e-2, "the adapter does nothing"
