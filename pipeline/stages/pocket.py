"""Stage `pocket` (frozen): paint landscapes and train the pocket base from them."""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

import pipeline
from pipeline.base.device import choose_device
from pipeline.base.noise_path import VariancePreserving
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.errors import Problem, UserError
from pipeline.landscapes.world import VOCABULARY
from pipeline.outputs import atomic_folder
from pipeline.parallel import count_workers, parallel_map
from pipeline.params import load_params
from pipeline.pocket.autoencoder import encode_all, train_autoencoder
from pipeline.pocket.denoiser import train_denoiser
from pipeline.pocket.layout import build_scheduler, other_layouts, save_pocket
from pipeline.pocket.paintings import Captioned, paint_captioned, paint_texture
from pipeline.pocket.progress import LogMetrics
from pipeline.pocket.sheet import sample_sheet
from pipeline.pocket.tokenizer import build_tokenizer
from pipeline.sections import PocketSection
from pipeline.tracking import Tracker, track
from pipeline.training.checkpoints import work_folder

OUT = Path("models/pocket")
OUTPUTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json", "made.json")
PAINTER = ("ground", "painter", "palette", "pines", "relief", "strokes", "textures", "woodcut", "world")
CODE = ("pocket/*.py", "base/families.py", "base/files.py", *(f"landscapes/{name}.py" for name in PAINTER))


def run() -> None:
    """Write the model folders of models/pocket/ and made.json. A killed run resumes from its checkpoint."""
    params = load_params()
    settings = params.pocket
    problems = find_start_problems(settings)
    if problems:
        raise UserError(*problems)
    made = {"code": code_digest(), "params": settings.model_dump()}
    name = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
    with (
        track("pocket", params.tracking, settings.model_dump()) as tracker,
        work_folder(Path(".work/pocket", name)) as work,
        atomic_folder(work / "out") as folder,
    ):
        train_pocket(settings, choose_device(params.machine.device), work, folder, tracker, params.machine.workers)
        made["weights"] = weight_digests(folder)
        (folder / "made.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        replace_outputs(folder)


def find_start_problems(settings: PocketSection) -> list[Problem]:
    """Earlier weights that are not there, or that DVC removes before this stage runs."""
    if settings.init_from is None:
        if settings.keep_encoder:
            found = "true without earlier weights: an encoder that has learned nothing"
            return [Problem("params.yaml: pocket.keep_encoder", found, "Set it to false, or name `init_from`.")]
        return []
    start = Path(settings.init_from)
    if OUT.resolve() in (start.resolve(), *start.resolve().parents):
        fix = f"Copy them first: `cp -r {OUT} .work/before`, and `init_from: .work/before`."
        return [Problem("params.yaml: pocket.init_from", f"DVC empties {start} before the stage runs", fix)]
    missing = [part for part in ("unet", "vae", "text_encoder") if not (start / part / "config.json").is_file()]
    if missing:
        found = f"{start} has no {', '.join(missing)}"
        return [Problem("params.yaml: pocket.init_from", found, "Name a folder of pocket weights, or null.")]
    fix = "Name a folder of weights of today's layout (pipeline/pocket/layout.py), or null."
    return [
        Problem("params.yaml: pocket.init_from", f"{start / part} has another {', '.join(differing)}", fix)
        for part, differing in other_layouts(start, settings.keep_encoder).items()
    ]


def replace_outputs(made: Path) -> None:
    """Put the new parts in their places, beside the card, which is no output.

    The index goes first and comes last: a base without it is refused, so none that is half old is ever used.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "model_index.json").unlink(missing_ok=True)
    for name in sorted(OUTPUTS, key=lambda name: name == "model_index.json"):
        target = OUT / name
        if target.is_dir():
            shutil.rmtree(target)
        shutil.move(made / name, target)


def train_pocket(
    settings: PocketSection, device: torch.device, work: Path, out: Path, tracker: Tracker, workers: int | None
) -> None:
    """Paint, train the autoencoder, encode, train the denoiser, save."""
    workers = count_workers(workers, settings.paintings, alone_below=64)
    paintings, captions = _paintings(settings, work, workers)
    textures = parallel_map(
        partial(paint_texture, seed=settings.seed), range(settings.textures), workers, label="textures"
    )
    share = paintings[: max(1, settings.textures * 3 // 2)]
    pictures = torch.cat([share, *(_tensor(texture)[None] for texture in textures)])
    autoencoder = train_autoencoder(pictures, len(share), settings, work, device, _logger(tracker, "autoencoder"))
    _log_reconstructions(autoencoder, paintings, device, tracker)
    latents = encode_all(autoencoder, paintings, device)
    tokenizer = build_tokenizer(VOCABULARY)
    path = VariancePreserving.from_scheduler_config(build_scheduler().config)

    def preview(unet: UNet2DConditionModel, text_encoder: CLIPTextModel, step: int) -> None:
        base = StableDiffusion(unet, autoencoder, text_encoder, tokenizer, path, device, torch.float32, "", 0)
        tracker.picture("samples", sample_sheet(base), step)

    unet, text_encoder = train_denoiser(
        latents, captions, tokenizer, settings, work, device, _logger(tracker, "denoiser"), preview
    )
    # A fresh tokenizer: one that was used keeps its last truncation, and would be saved with it.
    save_pocket(out, autoencoder.cpu(), unet.cpu(), text_encoder.cpu(), build_tokenizer(VOCABULARY))


def _paintings(settings: PocketSection, work: Path, workers: int) -> tuple[torch.Tensor, list[Captioned]]:
    paint = partial(paint_captioned, seed=settings.seed, between=settings.between)
    pictures, captions = [], []
    for picture, captioned in parallel_map(paint, range(settings.paintings), workers, label="paint"):
        pictures.append(_tensor(picture))
        captions.append(captioned)
    return torch.stack(pictures), captions


def _tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)


def _logger(tracker: Tracker, name: str) -> LogMetrics:
    return lambda values, step: tracker.metrics({f"{name}/{key}": value for key, value in values.items()}, step)


@torch.no_grad()
def _log_reconstructions(
    autoencoder: AutoencoderKL, paintings: torch.Tensor, device: torch.device, tracker: Tracker
) -> None:
    """Eight paintings above what the autoencoder makes of them."""
    pixels = paintings[:8].to(device).float() / 127.5 - 1
    decoded = autoencoder.decode(autoencoder.encode(pixels).latent_dist.mean).sample
    sheet = torch.cat([torch.cat(list(rows), dim=-1) for rows in (pixels, decoded)], dim=-2)
    array = ((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    tracker.picture("reconstructions", Image.fromarray(array))


def weight_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every weights file of a base."""
    files = sorted(folder.rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def code_digest() -> str:
    """SHA-256 over the modules that paint and train the pocket."""
    root = Path(pipeline.__file__).parent
    total = hashlib.sha256()
    for path in sorted(path for pattern in CODE for path in root.glob(pattern)):
        total.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return total.hexdigest()
