"""Stage `controlnet` (frozen): train the ControlNet for edges that ships beside the pocket."""

import hashlib
import json
import shutil
from pathlib import Path

from pipeline.base.device import choose_device
from pipeline.base.files import remove_local_path
from pipeline.base.opening import open_base
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.outputs import atomic_folder
from pipeline.parallel import count_workers
from pipeline.params import load_params
from pipeline.pocket.control import train_net
from pipeline.sections import BaseSection
from pipeline.tracking import track
from pipeline.training.checkpoints import work_folder

POCKET = BaseSection(source="models/pocket", revision=None, config=None, dtype="float32", clip_skip=0, adapters=())
OUT = Path("models/pocket-canny")
OUTPUTS = ("config.json", "diffusion_pytorch_model.safetensors", "made.json")


def run() -> None:
    """Write models/pocket-canny/, beside its card. A killed run resumes from its checkpoint."""
    params = load_params()
    settings = params.controlnet
    with track("controlnet", params.tracking, settings.model_dump()) as tracker:
        base = open_base(POCKET, choose_device(params.machine.device))
        assert isinstance(base, StableDiffusion)
        made = {"base": base.digest, "params": settings.model_dump()}
        name = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
        workers = count_workers(params.machine.workers, settings.paintings, alone_below=64)
        with work_folder(Path(".work/controlnet", name)) as work, atomic_folder(work / "out") as folder:
            net = train_net(
                base,
                settings,
                work,
                workers,
                lambda values, step: tracker.metrics({f"controlnet/{key}": one for key, one in values.items()}, step),
            )
            net.cpu().half().save_pretrained(folder, safe_serialization=True)
            remove_local_path(folder / "config.json")
            (folder / "made.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
            OUT.mkdir(parents=True, exist_ok=True)
            for file in OUTPUTS:
                shutil.move(folder / file, OUT / file)
