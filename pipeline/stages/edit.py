"""Stage `edit@<edit>`: the pictures of a set, changed by adapters of others or a caption, their edges kept if asked."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional
from tqdm import tqdm

from pipeline.adapters.lora import read_adapter
from pipeline.adapters.mixing import WeightedAdapter
from pipeline.adapters.store import ADAPTERS, find_adapter
from pipeline.base.conditioning import Control
from pipeline.base.device import choose_device
from pipeline.base.opening import open_base
from pipeline.base.posterior import drawn_latents, keyed_seed
from pipeline.base.protocol import Base
from pipeline.editing.control import open_control
from pipeline.editing.edges import edges_of
from pipeline.editing.kept import edges_kept, style_distance
from pipeline.editing.transfer import Transfer, trail_to_noise, transferred
from pipeline.frames.prepared import PreparedRow, mask_path, read_prepared
from pipeline.frames.sheets import grid
from pipeline.frames.tensors import read_pictures, to_arrays
from pipeline.outputs import atomic_folder, require_output
from pipeline.params import EditSpec, load_params
from pipeline.processes.chunks import one_each
from pipeline.processes.joining import all_processes
from pipeline.report.plots import edit_plot
from pipeline.sections import EditSection
from pipeline.tracking import Tracker, track

MOST_ROWS = 16  # of the sheet; all pictures are in their files


def run(key: str) -> None:
    """Write data/edits/<edit>/: the pictures by scale, a sheet of them, a curve, and edit.json with the figures.

    With as many processes as there are to use; the first writes.
    """
    params = load_params()
    accelerator = all_processes(["edit", key], params.machine.processes, choose_device(params.machine.device))
    spec = params.get_edit(key)
    settings = spec.edit
    prepared = require_output(Path("data/prepared", spec.set), f"prepare@{spec.set}")
    require_output(Path("data/styles", f"{key}.json"), "styles")
    section = {"base": params.base.model_dump(), **spec.model_dump()}
    tracked: AbstractContextManager[Tracker | None] = nullcontext()
    if accelerator.is_main_process:
        tracked = track(f"edit@{key}", params.tracking, section, datasets={spec.set: prepared}, tags=params.base.tags())
    with tracked as tracker:
        base = open_base(params.base, accelerator.device)
        rows = read_prepared(prepared)
        pictures = read_pictures(prepared / row.file_name for row in rows)
        named = {name: find_adapter(ADAPTERS, name) for name in spec.adapters}
        loaded = {name: read_adapter(path, base.digest, base.device, base.denoiser) for name, path in named.items()}
        scales = settings.scales if loaded else (1.0,)
        columns = [[(loaded[name], weight * scale) for name, weight in spec.adapters.items()] for scale in scales]
        work = {
            "batch": params.machine.batch,
            "accelerator": accelerator,
            "progress": partial(tqdm, desc=key, unit="step", disable=tracker is None),
        }
        control = control_of(settings, base, pictures)
        masks = read_masks(prepared, rows) if settings.within_masks else None
        latents = edited(base, rows, pictures, columns, settings, control, masks, work)
        decoded = one_each(list(latents), lambda latent: base.decode(latent[None]).cpu(), accelerator)
        made = torch.cat(list(decoded)).unflatten(0, (len(scales), len(rows)))
        if masks is not None:
            made = torch.lerp(pictures, made, masks)  # what lies outside is the picture itself, not a decoded one
        if tracker is None:
            return
        given = {"its mask": masks, "its edges": control.picture.cpu() if control else None}
        shown = {"picture": pictures, **{label: each for label, each in given.items() if each is not None}}
        figures = figures_of(pictures, made, scales, read_style(spec))
        facts = {
            "set": spec.set,
            "base": base.digest,
            "adapters": spec.adapters,
            "steps_taken": Transfer(settings.steps, settings.strength).steps_taken,
            "pictures": [{"file_name": row.file_name, "text": caption_of(row, settings)} for row in rows],
            "figures": figures,
            "settings": settings.model_dump(mode="json"),
        }
        out = Path("data/edits", key)
        with atomic_folder(out) as folder:
            write_outputs(folder, shown, dict(zip(column_labels(spec, scales), made, strict=True)), scales, facts)
        tracker.picture("sheet", out / "sheet.png")
        tracker.show(out / "sheet.png", f"{key}: " + ", ".join([*shown, *column_labels(spec, scales)]))
        for at in figures:
            for name in ("edges_kept", "style_distance"):
                if (value := at[name]) is not None:
                    tracker.metric(f"{name}/scale_{at['scale']:g}".replace("-", "minus_"), value)


def write_outputs(
    folder: Path,
    shown: Mapping[str, torch.Tensor],
    made: Mapping[str, torch.Tensor],
    scales: Sequence[float],
    facts: Mapping[str, Any],
) -> None:
    """Write the edited pictures, their sheet, the curve and the facts into an empty folder.

    shown, made: what was given and what came out, (N, 1 or 3, H, W) by the label of its column.
    """
    rows = facts["pictures"]
    for scale, pictures in zip(scales, made.values(), strict=True):
        (folder / f"{scale:g}").mkdir()
        for row, picture in zip(rows, to_arrays(pictures), strict=True):
            Image.fromarray(picture).save(folder / f"{scale:g}" / row["file_name"], format="PNG")
    columns = {**shown, **made}
    cells = [to_arrays(column[:MOST_ROWS].expand(-1, 3, -1, -1)) for column in columns.values()]
    captions = [row["text"] for row in rows[:MOST_ROWS]]
    grid(list(zip(*cells, strict=True)), captions, list(columns)).save(folder / "sheet.png")
    edit_plot(facts["figures"], folder / "curve.png")
    (folder / "edit.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def caption_of(row: PreparedRow, settings: EditSection) -> str:
    """What an edited picture is to show."""
    return (row.text if settings.caption is None else settings.caption) + settings.suffix


def column_labels(spec: EditSpec, scales: Sequence[float]) -> list[str]:
    """What stands above each column of edited pictures."""
    if not spec.adapters:
        return ["edited"]
    return [" + ".join(f"{name} {weight * scale:g}" for name, weight in spec.adapters.items()) for scale in scales]


def control_of(settings: EditSection, base: Base, pictures: torch.Tensor) -> Control | None:
    """The ControlNet with the edges of pictures (N, 3, H, W), if the params name one."""
    section = settings.control
    if section is None:
        return None
    net = open_control(section, base.dtype, base.device)
    return Control(net, edges_of(pictures, section.sigma, section.low, section.high).to(base.device), section.scale)


def edited(
    base: Base,
    rows: Sequence[PreparedRow],
    pictures: torch.Tensor,
    columns: Sequence[Sequence[WeightedAdapter]],
    settings: EditSection,
    control: Control | None,
    masks: torch.Tensor | None,
    work: dict[str, Any],
) -> torch.Tensor:
    """Latents (columns x N, C, h, w) of the edited pictures, column by column."""
    transfer = Transfer(
        steps=settings.steps,
        strength=settings.strength,
        start=settings.start,
        guidance=settings.guidance,
        guidance_below=settings.guidance_below,
        negative=base.condition([settings.negative]) if settings.guidance != 1 else None,
        control_from=settings.control.start if settings.control else 0.0,
        control_until=settings.control.end if settings.control else 1.0,
    )
    latents = drawn_latents(base.encode(pictures), pictures)
    noise = torch.stack([_noise(latents[0], settings.seed, row.file_name) for row in rows])
    trail = trail_to_noise(base, latents, base.condition([row.text for row in rows]), noise, transfer, **work)
    every = list(range(len(rows))) * len(columns)
    wanted = base.condition([caption_of(row, settings) for row in rows])
    adapters = [column for column in columns for _ in rows]
    edges = None if control is None else control.take(every)
    inside = None if masks is None else functional.avg_pool2d(masks, base.pixels_per_latent).to(base.device)[every]
    return transferred(base, trail[:, every], wanted.take(every), adapters, transfer, edges, inside, **work)


def read_masks(prepared: Path, rows: Sequence[PreparedRow]) -> torch.Tensor:
    """Masks (N, 1, H, W) in [0, 1] of prepared pictures: 1 where they may be changed."""
    return read_pictures(mask_path(prepared, row.file_name) for row in rows)[:, :1]


def figures_of(
    pictures: torch.Tensor, made: torch.Tensor, scales: Sequence[float], style: torch.Tensor | None
) -> list[dict[str, float | None]]:
    """For each scale, the means over pictures: the share of edges kept and, where there is a style (M, 3, H, W), how
    far its manner is, over how far it is from the pictures themselves."""
    before = None if style is None else float(style_distance(pictures, style).mean())
    rows: list[dict[str, float | None]] = []
    for scale, column in zip(scales, made, strict=True):
        kept = float(edges_kept(pictures, column).mean())
        away = None if style is None or not before else float(style_distance(column, style).mean()) / before
        rows.append(
            {
                "scale": scale,
                "edges_kept": round(kept, 4),
                "style_distance": None if away is None else round(away, 4),
            }
        )
    return rows


def read_style(spec: EditSpec) -> torch.Tensor | None:
    """The prepared pictures of the sets whose adapters are used; None where there are none, or of several sizes."""
    sets = sorted({name.partition("/")[0] for name in spec.adapters})
    folders = [require_output(Path("data/prepared", name), f"prepare@{name}") for name in sets]
    stacks = [read_pictures(folder / row.file_name for row in read_prepared(folder)) for folder in folders]
    return torch.cat(stacks) if stacks and len({stack.shape[1:] for stack in stacks}) == 1 else None


def _noise(like: torch.Tensor, seed: int, name: str) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(keyed_seed("edit", seed, name)))
