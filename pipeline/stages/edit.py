"""Stage `edit@<edit>`: the pictures of a set, changed by adapters of others or a caption, their edges kept if asked."""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image
from torch.nn import functional
from tqdm import tqdm

from pipeline.adapted_base import open_adapted_base
from pipeline.adapters.mixing import WeightedAdapter
from pipeline.adapters.store import is_file_name
from pipeline.base.conditioning import Control
from pipeline.base.device import choose_device
from pipeline.base.posterior import drawn_latents, keyed_seed
from pipeline.base.protocol import Base
from pipeline.editing.control import open_control
from pipeline.editing.edges import edges_of
from pipeline.editing.kept import edges_kept, manner_of, style_distance
from pipeline.editing.strangeness import errors_under
from pipeline.editing.transfer import Transfer, Work, trail_to_noise, transferred
from pipeline.exchange.named import open_named
from pipeline.frames.prepared import PreparedRow, mask_path, read_prepared
from pipeline.frames.sheets import grid
from pipeline.frames.tensors import Frame, read_pictures, to_arrays
from pipeline.outputs import atomic_folder, require_output
from pipeline.params import EditSpec, load_params
from pipeline.processes.chunks import one_each
from pipeline.processes.joining import all_processes
from pipeline.refiner import open_refiner
from pipeline.report.plots import edit_plot
from pipeline.sampling.adapted import adapted_conditioning
from pipeline.sampling.refining import Refiner
from pipeline.sections import EditSection
from pipeline.tracking import Tracker, track

MOST_ROWS = 16  # of the sheet; all pictures are in their files
TOGETHER = 16
"""Pictures that are worked on at once: memory does not grow with the set. Of a style's own, so many are looked at."""


@dataclass(frozen=True)
class Edited:
    """Some pictures of the set. given: what went in, (n, 1 or 3, H, W) by the label of its column, the pictures first.
    made: (scales, n, 3, H, W) in [0, 1] on the CPU. strangeness: (scales, n), the denoising error of what was made
    under the style's adapters, over their error on the style's own pictures; None: there is no style."""

    rows: Sequence[PreparedRow]
    given: Mapping[str, torch.Tensor]
    made: torch.Tensor
    strangeness: torch.Tensor | None


def run(key: str) -> None:
    """Write data/edits/<edit>/: the pictures by scale, a sheet of them, a curve, and edit.json with the figures.

    With as many processes as there are to use; the first writes.
    """
    params = load_params()
    accelerator = all_processes(["edit", key], params.machine.processes, choose_device(params.machine.device))
    spec = params.get_edit(key)
    prepared = require_output(Path("data/prepared", spec.set), f"prepare@{spec.set}")
    require_output(Path("data/styles", f"{key}.json"), "styles")
    models = {"base": params.base.model_dump(), "refiner": params.refiner.model_dump()}
    section = {**models, **spec.model_dump()}
    tracked: AbstractContextManager[Tracker | None] = nullcontext()
    if accelerator.is_main_process:
        tracked = track(f"edit@{key}", params.tracking, section, datasets={spec.set: prepared}, tags=params.base.tags())
    with tracked as tracker:
        base = open_adapted_base(params.base, accelerator.device)
        refiner = open_refiner(params.refiner, params.base, accelerator.device)
        work = Work(params.machine.batch, partial(tqdm, desc=key, unit="step", disable=tracker is None), accelerator)
        parts = edited(base, prepared, spec, work, refiner)
        if tracker is None:
            deque(parts, maxlen=0)
            return
        out = Path("data/edits", key)
        with atomic_folder(out) as folder:
            labels, figures = write_outputs(folder, parts, spec, base.digest, refiner)
        tracker.picture("sheet", out / "sheet.png")
        tracker.show(out / "sheet.png", f"{key}: {', '.join(labels)}")
        for number, at in enumerate(figures):
            tracker.metrics({name: value for name, value in at.items() if value is not None}, number)


def edited(base: Base, prepared: Path, spec: EditSpec, work: Work, refiner: Refiner | None = None) -> Iterator[Edited]:
    """The pictures of a prepared set, changed, some at a time."""
    settings = spec.edit
    loaded = {name: open_named(name, base) for name in spec.adapters}
    columns = [[(loaded[name], weight * scale) for name, weight in spec.adapters.items()] for scale in scales_of(spec)]
    net = None if settings.control is None else open_control(settings.control, base.dtype, base.device)
    transfer, style = transfer_of(settings), [(loaded[name], weight) for name, weight in spec.adapters.items()]
    own = _own_error(base, style_folders(spec), style, work)
    listed = read_prepared(prepared)
    for first in range(0, len(listed), TOGETHER):
        rows = listed[first : first + TOGETHER]
        pictures = read_pictures(prepared / row.file_name for row in rows)
        given = {"picture": pictures}
        masks, control, every = None, None, list(range(len(rows))) * len(columns)
        beside = dict[str, torch.Tensor]()
        if settings.within_masks:
            given["its mask"] = read_pictures(mask_path(prepared, row.file_name) for row in rows)[:, :1]
            beside = base.surroundings(pictures, given["its mask"]) if base.inpaints else {}
            if not base.inpaints:  # one that does sees for itself what to keep
                masks = functional.avg_pool2d(given["its mask"], base.pixels_per_latent).to(base.device)[every]
        if settings.control is not None and net is not None:
            given["its edges"] = edges_of(pictures, settings.control.sigma, settings.control.low, settings.control.high)
            control = Control(net, given["its edges"].to(base.device)[every], settings.control.scale)
        latents = drawn_latents(base.encode(pictures), pictures)
        seeds = [keyed_seed("edit", settings.seed, row.file_name) for row in rows]
        noise = torch.stack([_noise(latents[0], seed) for seed in seeds])
        shown = base.condition([row.text for row in rows]).beside(beside)
        filling = settings.within_masks or base.inpaints
        trail = trail_to_noise(base, latents, shown, noise, transfer, work, filling)
        trail = trail if masks is not None else trail[-1:]
        adapters = [column for column in columns for _ in rows]
        texts = [caption_of(row, settings) for row in rows]
        wanted = adapted_conditioning(base, [texts[number] for number in every], adapters)
        wanted, refinement = wanted.beside({name: tensor[every] for name, tensor in beside.items()}), None
        if refiner is not None:
            refinement = refiner.refinement(texts, None if settings.guidance == 1 else settings.negative).take(every)
        drawn = [seeds[number] for number in every]
        changed = transferred(
            base, trail[:, every], wanted, adapters, transfer, work, control, masks, refinement, drawn
        )
        decoded = one_each(list(changed), lambda latent: base.decode(latent[None]).cpu(), work.accelerator)
        made = torch.cat(list(decoded)).unflatten(0, (len(columns), len(rows)))
        if settings.within_masks:
            made = torch.lerp(pictures, made, given["its mask"])  # outside is the picture itself, not a decoded one
        strangeness = None
        if own is not None:
            found = errors_under(
                base, made.flatten(0, 1), [texts[number] for number in every], style, work.batch, work.accelerator
            )
            strangeness = (found / own).unflatten(0, (len(columns), len(rows)))
        yield Edited(rows, given, made, strangeness)


def write_outputs(
    folder: Path, parts: Iterable[Edited], spec: EditSpec, base_digest: str, refiner: Refiner | None = None
) -> tuple[list[str], list[dict[str, float | None]]]:
    """Write the edited pictures as they come, then their sheet, the curve and edit.json, into an empty folder.

    Returns the labels of the sheet's columns, and the figures of each scale: the means over pictures of the edges kept
    and, where there is a style, of the distance to it over that of the pictures themselves, and of the strangeness.
    """
    scales, style = scales_of(spec), read_style(spec)
    for scale in scales:
        (folder / f"{scale:g}").mkdir()
    rows, cells = list[PreparedRow](), list[list[Frame]]()
    kept, away, strange = ([list[float]() for _ in scales] for _ in range(3))
    before = list[float]()
    labels = list[str]()
    for part in parts:
        pictures = part.given["picture"]
        if style is not None and len(style) != manner_of(pictures[:1]).shape[1]:
            style = None  # of pictures of another size, with fewer octaves or more
        for number, (scale, made) in enumerate(zip(scales, part.made, strict=True)):
            for row, frame in zip(part.rows, to_arrays(made), strict=True):
                Image.fromarray(frame).save(folder / f"{scale:g}" / row.file_name, format="PNG")
            kept[number] += edges_kept(pictures, made).tolist()
            away[number] += [] if style is None else style_distance(made, style).tolist()
            strange[number] += [] if part.strangeness is None else part.strangeness[number].tolist()
        before += [] if style is None else style_distance(pictures, style).tolist()
        labels = [*part.given, *column_labels(spec)]
        if len(cells) < MOST_ROWS:
            shown = [to_arrays(column.expand(-1, 3, -1, -1)) for column in (*part.given.values(), *part.made)]
            cells += [list(row) for row in zip(*shown, strict=True)]
        rows += part.rows
    figures: list[dict[str, float | None]] = [
        {
            "scale": scale,
            "edges_kept": round(fmean(edges), 4),
            "style_distance": round(fmean(distances) / fmean(before), 4) if any(before) else None,
            "style_strangeness": round(fmean(errors), 4) if errors else None,
        }
        for scale, edges, distances, errors in zip(scales, kept, away, strange, strict=True)
    ]
    captions = [caption_of(row, spec.edit) for row in rows]
    grid(cells[:MOST_ROWS], captions[:MOST_ROWS], labels).save(folder / "sheet.png")
    edit_plot(figures, folder / "curve.png")
    facts = {
        "set": spec.set,
        "base": base_digest,
        "refiner": None if refiner is None else {"digest": refiner.base.digest, "from": refiner.start},
        "adapters": spec.adapters,
        "steps_taken": transfer_of(spec.edit).steps_taken,
        "pictures": [{"file_name": row.file_name, "text": text} for row, text in zip(rows, captions, strict=True)],
        "figures": figures,
        "settings": spec.edit.model_dump(mode="json"),
    }
    (folder / "edit.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return labels, figures


def scales_of(spec: EditSpec) -> tuple[float, ...]:
    """What the adapters' weights are multiplied by, once where there are none."""
    return spec.edit.scales if spec.adapters else (1.0,)


def column_labels(spec: EditSpec) -> list[str]:
    """What stands above each column of edited pictures."""
    if not spec.adapters:
        return ["edited"]
    return [
        " + ".join(f"{name} {weight * scale:g}" for name, weight in spec.adapters.items()) for scale in spec.edit.scales
    ]


def transfer_of(settings: EditSection) -> Transfer:
    """How pictures are changed, from the params."""
    return Transfer(
        steps=settings.steps,
        strength=settings.strength,
        start=settings.start,
        guidance=settings.guidance,
        negative=settings.negative,
        solver=settings.solver,
        fresh=settings.fresh_noise,
        control_from=settings.control.start if settings.control else 0.0,
        control_until=settings.control.end if settings.control else 1.0,
    )


def caption_of(row: PreparedRow, settings: EditSection) -> str:
    """What an edited picture is to show."""
    return (row.text if settings.caption is None else settings.caption) + settings.suffix


def read_style(spec: EditSpec) -> torch.Tensor | None:
    """The mean manner of the sets whose adapters are used; None where there are none, or they differ in size."""
    manners = list[torch.Tensor]()
    for folder in style_folders(spec):
        manners += [manner_of(read_pictures([folder / row.file_name]))[0] for row in read_prepared(folder)]
    return torch.stack(manners).mean(0) if manners and len({len(manner) for manner in manners}) == 1 else None


def style_folders(spec: EditSpec) -> list[Path]:
    """The prepared sets whose adapters are used."""
    names = sorted({name.partition("/")[0] for name in spec.adapters if not is_file_name(name)})
    return [require_output(Path("data/prepared", name), f"prepare@{name}") for name in names]


def _own_error(
    base: Base, folders: Sequence[Path], adapters: Sequence[WeightedAdapter], work: Work
) -> torch.Tensor | None:
    """The mean denoising error of a style's adapters on its own pictures, with their captions; None without any."""
    errors = list[torch.Tensor]()
    for folder in folders:
        for row in read_prepared(folder)[:TOGETHER]:  # one by one: they may differ in size
            errors.append(errors_under(base, read_pictures([folder / row.file_name]), [row.text], adapters))
    return torch.cat(errors).mean() if errors else None


def _noise(like: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
