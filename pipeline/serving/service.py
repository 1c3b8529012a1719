"""A package at work: requests to films and pictures, one at a time."""

import base64
import io
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.adapted_base import open_adapted_base
from pipeline.adapters.lora import read_adapter
from pipeline.adapters.mixing import Adapter, WeightedAdapter
from pipeline.base.checking import base_digest, is_hub_id
from pipeline.base.device import choose_device
from pipeline.base.posterior import keyed_seed
from pipeline.base.protocol import Base
from pipeline.errors import Problem, UserError
from pipeline.film import Film, Keyframe, settings_of
from pipeline.frames.clips import write_mp4
from pipeline.frames.real_ends import RealEnds
from pipeline.frames.tensors import Frame, from_arrays, read_arrays, to_arrays
from pipeline.pictures.captions import require_short
from pipeline.pictures.preparing import prepare_picture
from pipeline.pictures.rows import Row
from pipeline.processes.chunks import in_chunks
from pipeline.sampling.adapted import adapted_conditioning
from pipeline.sampling.captions import sample_captions
from pipeline.sampling.consistency import MOST_STEPS
from pipeline.sections import MorphSection
from pipeline.serving.package import Package, adapter_file, keyframe_file, read_package
from pipeline.serving.requests import (
    MOST_MEGAPIXELS,
    MOST_WAITING,
    MorphRequest,
    PaintRequest,
    parse_request,
    picture_file,
)

BASE = "MORPHLINE_BASE"
"""In the environment: where the base lies on the serving machine, if not where the package's maker had it."""
MOST_ADAPTERS = 32
"""That are kept open; those that were not used for longest are read again."""
PATIENCE = 600.0
"""Seconds that a request waits for its turn."""


class Busy(Exception):
    """Too many requests are waiting already."""


class Service:
    """An opened package. Any number of threads may ask; one request is worked on at a time, the others wait.

    Raises:
        UserError: for a damaged package, and a base that is missing or another one than the package's.
    """

    def __init__(self, folder: Path, patience: float = PATIENCE) -> None:
        self.folder, self.package, self.patience = folder, read_package(folder), patience
        self.base = open_pinned(self.package, folder)
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._turn, self._count, self._waiting = threading.Lock(), threading.Lock(), 0

    def answer(self, inputs: Any) -> dict[str, Any]:
        """What a request asks for: `{"mp4": base64, "count": n}`, `{"frames": [base64, ...], "count": n}` of a film, or
        `{"pictures": [base64, ...]}`; the frames and pictures are PNG files.

        Raises:
            UserError: for a wrong request. Busy: when too many wait, or it waited too long.
        """
        request = parse_request(inputs, self.package)  # before it waits: what is wrong is answered at once
        with self._count:
            if self._waiting >= MOST_WAITING:
                raise Busy
            self._waiting += 1
        try:
            if not self._turn.acquire(timeout=self.patience):
                raise Busy
            try:
                return self._morph(request) if isinstance(request, MorphRequest) else self._paint(request)
            except FloatingPointError as error:
                fix = "Ask for smaller weights of adapters, or less guidance."
                raise UserError(Problem("inputs", str(error), fix)) from None
            finally:
                self._turn.release()
        finally:
            with self._count:
                self._waiting -= 1

    def _morph(self, request: MorphRequest) -> dict[str, Any]:
        names = ("frames", "steps", "loop", "fps", "hold")
        given = {name: value for name in names if (value := getattr(request, name)) is not None}
        if "steps" in given:
            given["inversion_steps"] = given["steps"]
        settings = self.package.morph.model_copy(update=given)
        keyframes = self._keyframes(request, settings)
        film = Film(self.base, keyframes, settings_of(settings), batch=self.package.batch)
        frames = [to_arrays(frame.picture[None])[0] for frame in film]
        if request.format == "frames":
            return {"frames": [_png(frame) for frame in frames], "count": len(frames)}
        stops = [number * (film.settings.frames_per_segment - 1) for number in range(len(keyframes))]
        clip: Any = frames
        if settings.correct_ends:
            pictures = torch.stack([keyframe.picture for keyframe in keyframes])
            clip = RealEnds(frames, pictures, stops, [alphas.tolist() for alphas in film.alphas], settings.correct_ends)
        with tempfile.TemporaryDirectory() as folder:
            write_mp4(Path(folder, "film.mp4"), clip, settings.fps, stops, settings.hold)
            return {"mp4": _text(Path(folder, "film.mp4").read_bytes()), "count": len(frames)}

    def _keyframes(self, request: MorphRequest, settings: MorphSection) -> list[Keyframe]:
        known = {keyframe.name: keyframe for keyframe in self.package.keyframes}
        captions = request.captions or (None,) * len(request.pictures)
        self._require_short(captions)
        weights = torch.linspace(settings.style_from, settings.style_to, len(captions)).tolist()
        made = []
        for number, (picture, caption, weight) in enumerate(zip(request.pictures, captions, weights, strict=True)):
            style = self._style(request.adapters, weight)
            if keyframe := known.get(picture):
                pixels = read_arrays([self.folder / keyframe_file(keyframe.name)])[0]
                text = keyframe.text if caption is None else caption
                own: tuple[WeightedAdapter, ...] = ((self._adapter(keyframe.adapter), 1.0),)
            else:
                pixels, text, own = self._prepared(picture, f"pictures.{number}"), caption or "", ()
            made.append(Keyframe(from_arrays([pixels])[0], text, own, style))
        return made

    def _paint(self, request: PaintRequest) -> dict[str, Any]:
        section, prepare, count = self.package.sample, self.package.prepare, len(request.captions)
        self._require_short(request.captions)
        seed = section.seed if request.seed is None else request.seed
        guidance = section.guidance if request.guidance is None else request.guidance
        steps, side = request.steps or section.steps, self.base.pixels_per_latent
        if section.solver == "consistency" and steps > MOST_STEPS:
            found = f"{steps} steps, and this model is sampled by consistency"
            raise UserError(Problem("inputs: steps", found, f"Ask for at most {MOST_STEPS}."))
        shape = (self.base.latent_channels, prepare.height // side, prepare.width // side)
        # The same noise as in the set's sheet of samples.
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(keyed_seed("sample", seed)))
        adapters = [self._style(request.adapters, 1.0)] * count
        wanted = adapted_conditioning(self.base, request.captions, adapters)

        def sampled(chunk: slice) -> torch.Tensor:
            own = adapters[chunk]
            return sample_captions(
                self.base,
                noise.repeat(len(own), 1, 1, 1).to(self.base.device),
                wanted.take(chunk),
                own,
                steps=steps,
                guidance=guidance,
                solver=section.solver,
                seeds=[keyed_seed("sample", seed)] * len(own),
                fresh=section.fresh_noise,
            )

        most = self.package.batch
        most = most if most is None or guidance == 1 else most // 2
        latents = torch.cat(in_chunks(count, most, sampled))
        return {"pictures": [_png(to_arrays(self.base.decode(latent[None]))[0]) for latent in latents]}

    def _require_short(self, captions: Sequence[str | None]) -> None:
        given = [(f"inputs: captions.{number}", text) for number, text in enumerate(captions) if text]
        require_short(given, self.base.caption_length)

    def _style(self, asked: Mapping[str, float] | None, weight: float) -> tuple[WeightedAdapter, ...]:
        """The adapters over all: those asked for, else the package's style."""
        if asked is None:
            asked = {} if self.package.style is None else {self.package.style: weight}
        return tuple((self._adapter(name), float(own)) for name, own in asked.items())

    def _adapter(self, name: str) -> Adapter:
        if name not in self._adapters:
            path = self.folder / adapter_file(name)
            self._adapters[name] = read_adapter(path, self.base.digest, self.base.device, self.base)
            if len(self._adapters) > MOST_ADAPTERS:
                self._adapters.popitem(last=False)
        self._adapters.move_to_end(name)
        return self._adapters[name]

    def _prepared(self, text: str, where: str) -> Frame:
        """A picture of the request's, prepared as those of the set were: by what reads files from outside."""
        content = picture_file(text, where)
        prepare = self.package.prepare
        most = min(prepare.max_megapixels, MOST_MEGAPIXELS)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "picture")
            path.write_bytes(content)
            try:
                row = Row(file_name=path.name, text="")
                return np.array(prepare_picture(path, row, prepare.model_copy(update={"max_megapixels": most}))[0])
            except UserError as error:
                found = error.problems[0].found
        raise UserError(Problem(f"inputs: {where}", found, f"Send a whole picture of at most {most:g} megapixels."))


def open_pinned(package: Package, folder: Path) -> Base:
    """The package's base, which must be the very one by its digest; on CUDA where that is, else MPS, else the CPU.

    Raises:
        UserError: when it is not there, or another one.
    """
    section = package.base
    if there := os.environ.get(BASE):
        section = section.model_copy(update={"source": there})
    if not is_hub_id(section) and not os.path.lexists(section.source):
        fix = f"Start the server where it is, or name its place: {BASE}=/path/to/base."
        raise UserError(Problem(section.source, "the base is not there", fix))
    wanted = package.digest.partition(" ")[0]
    try:
        found = base_digest(section)
    except OSError:  # files are missing: `open_base` says which
        found = wanted
    if found != wanted:
        fix = f"This model needs {wanted}: name its place by {BASE}=/path/to/base."
        raise UserError(Problem(section.source, f"another base ({found})", fix))
    # Who made the package may have needed no pin, as models/pocket does not.
    own = tuple(one.model_copy(update={"file": str(folder / one.file)}) for one in section.adapters)
    pinned = section.model_copy(update={"revision": section.revision or wanted, "adapters": own})
    return open_adapted_base(pinned, choose_device("auto"))


def _png(frame: Frame) -> str:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="PNG")
    return _text(file.getvalue())


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
