"""Whether the parts of a base fit: weights the configs, and the parts each other. Nothing is loaded or computed.

The models are built on torch's meta device, where a tensor is only a shape, and take one pass there: what no rule
foresees fails in that pass, and not after hours of training.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipeline.base.families import Family, family_of
from pipeline.base.files import RESTORE, find_weights
from pipeline.base.noise_path import VariancePreserving
from pipeline.base.schedule import FILE, schedule_problems
from pipeline.base.single_file import NO_FLOATS, Shapes, header_shapes, part_shapes
from pipeline.errors import Problem
from pipeline.inputs import read_json

LARGEST = 1_000_000
"""Of any number in a config: a vocabulary has 49,408 words, a layer some thousand channels."""

DEPTHS = (
    "layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block", "num_hidden_layers",
)  # fmt: skip
USUAL = "what bases of this family have"
FOREIGN = ("quantization_config", "auto_map")  # they name libraries and code to load

# Names that older releases of diffusers wrote, and today's still read.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def find_fit_problems(root: Path, single: Path | None = None, with_weights: bool = True) -> list[Problem]:
    """Everything that keeps the parts of a diffusers folder, whose files are whole, from working together.

    single: the one file with the weights of all parts, where the folder has configs alone. with_weights: False for the
    configs of a base whose weights are not downloaded yet.
    """
    family = family_of(root)
    if problems := schedule_problems(root / "scheduler" / FILE):
        return problems
    models: dict[str, nn.Module] = {}
    header = header_shapes(single) if single else {}
    for part, stem in family.weights.items():
        tensors = header if single else stored_shapes(root / part, stem) if with_weights else None
        model = _built(root, part, tensors)
        if isinstance(model, Problem):
            problems.append(model)
            continue
        models[part] = model
        if tensors is None:
            continue
        if single:
            problems += _single_fit_problems(single, part, header, model)
        else:
            problems += weights_fit_problems(root / part, shapes_of(model), tensors)
    if not problems:
        problems += _width_problems(root, models)
    if not problems:
        problems += _trial_problems(root, family, models)
    return problems


def stored_shapes(part: Path, stem: str) -> Shapes:
    """Name to shape of all tensors of a part, from the headers of its files."""
    files = (find_weights(part, stem) or ("", []))[1]
    found = {_modern(part.name, name): shape for file in files for name, shape in header_shapes(file).items()}
    return {name: shape for name, shape in found.items() if not name.endswith(".position_ids")}  # counted, not learned


def _single_fit_problems(file: Path, part: str, header: Shapes, model: nn.Module) -> list[Problem]:
    """The first misfit between a part in a single file and the model of its config: the others follow from it."""
    where = f"{file}: {part}"
    try:
        with _quiet():
            tensors = part_shapes(part, header, model)
    except Exception as error:  # the converters ask for tensors by name, and reckon with their shapes
        fix = f"{RESTORE} The file and base.config must be of one model."
        return [Problem(where, f"its weights do not fit base.config ({reason_of(error)})", fix)]
    found = {_modern(part, name): shape for name, shape in tensors.items()}
    return list(weights_fit_problems(where, shapes_of(model), found, "base.config"))[:1]


def _modern(part: str, name: str) -> str:
    if part == "vae" and ".attentions." in name:
        return ".".join(_OLD_ATTENTION.get(word, word) for word in name.split("."))
    return name.removeprefix("text_model.") if part.startswith("text_encoder") else name


def shapes_of(model: nn.Module) -> Shapes:
    """Name to shape of all tensors of a model."""
    return {name.removeprefix("text_model."): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _built(root: Path, part: str, tensors: Shapes | None) -> nn.Module | Problem:
    """The model that a part's config describes, on the meta device."""
    kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    makers: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
        "unet": UNet2DConditionModel.from_config,
        "vae": AutoencoderKL.from_config,
    }
    make = makers.get(part, lambda config: kind(CLIPTextConfig.from_dict(config)))
    return described_model(root / part / "config.json", make, tensors)


def described_model(
    where: Path, make: Callable[[dict[str, Any]], nn.Module], tensors: Shapes | None
) -> nn.Module | Problem:
    """The model that `make` makes of the config in a file, on the meta device, where a tensor is only a shape."""
    config, fix = read_json(where), "Restore the model's own file."
    if foreign := [key for key in FOREIGN if config.get(key) is not None]:
        return Problem(str(where), f"{foreign[0]}: such models are not read", "Use one with plain weights.")
    if any(abs(number) > LARGEST for number in _numbers(config)):
        return Problem(str(where), f"a number beyond {LARGEST:,}", fix)
    # So that no config makes a million layers: each has a tensor at least.
    layers = _layers(config)
    if layers > (4096 if tensors is None else max(len(tensors), 1)):
        return Problem(str(where), f"{layers} layers, more than its weights have tensors", fix)
    try:
        with torch.device("meta"), _quiet():
            return make(config).eval()
    except Exception as error:  # whatever a constructor meets first
        return Problem(str(where), f"describes no model ({reason_of(error)})", fix)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value if value == value else float("inf")
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)


def _layers(config: Mapping[str, Any]) -> int:
    deepest = 1
    for key in DEPTHS:
        deepest *= int(max([1, *_numbers(config.get(key))]))
    kinds = config.get("down_block_types")
    return deepest * max(1, len(kinds) if isinstance(kinds, list) else 1)


def weights_fit_problems(
    where: Path | str, expected: Shapes, found: Shapes, config: str = "config.json"
) -> Iterator[Problem]:
    """Tensors that are missing, unexpected or of another shape: the library would make them up, or leave them out.

    config: what says which are expected, for the message.
    """
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "not in the model": sorted(found.keys() - expected.keys()),
        "of another shape": sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key]),
    }
    for what, names in faults.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            detail = ""
            if names[0] in expected and names[0] in found:
                detail = f" ({_size(found[names[0]])}, by {config} {_size(expected[names[0]])})"
            yield Problem(
                str(where),
                f"its weights do not fit {config}: {names[0]}{detail}{more} {what}",
                f"{RESTORE} Weights and {config} must come from one model.",
            )


def _size(shape: tuple[int, ...]) -> str:
    return "no floating-point numbers" if shape == NO_FLOATS else "x".join(map(str, shape)) or "one number"


def _width_problems(root: Path, models: Mapping[str, Any]) -> list[Problem]:
    """Numbers that two parts must agree about, in words for people."""
    unet, vae = models["unet"].config, models["vae"].config
    taken, taken_from = vae.latent_channels, "the autoencoder's latent_channels"
    if unet.in_channels > taken:
        taken, taken_from = 2 * taken + 1, "latents, a mask and the latents of what is seen"
    widths = [models[part].config.hidden_size for part in models if part.startswith("text_encoder")]
    rules = (
        ("unet", "out_channels", unet.out_channels, vae.latent_channels, "the autoencoder's latent_channels"),
        ("unet", "in_channels", unet.in_channels, taken, taken_from),
        ("unet", "cross_attention_dim", unet.cross_attention_dim, sum(widths), "the text encoders' hidden_size"),
        ("vae", "in_channels", vae.in_channels, 3, "red, green and blue"),
        ("vae", "out_channels", vae.out_channels, 3, "red, green and blue"),
        ("vae", "shift_factor", vae.shift_factor or 0, 0, USUAL),
        ("vae", "latents_mean", vae.latents_mean, None, USUAL),
        ("vae", "latents_std", vae.latents_std, None, USUAL),
        # A UNet that was distilled to be told the guidance, and guesses wildly where it is not.
        ("unet", "time_cond_proj_dim", unet.time_cond_proj_dim, None, USUAL),
    )
    problems = [
        Problem(
            str(root / part / "config.json"),
            f"{key} is {found}, and {whose} {'is' if whose == USUAL else 'are'} {'null' if wanted is None else wanted}",
            "Use a base whose parts belong together.",
        )
        for part, key, found, wanted, whose in rules
        if found != wanted
    ]
    scale = vae.scaling_factor
    if type(scale) not in (int, float) or not 1e-6 < scale < 1e6:
        problems.append(
            Problem(str(root / "vae/config.json"), f"scaling_factor is {scale!r}", "Restore the base's file.")
        )
    return problems


@torch.no_grad()
def _trial_problems(root: Path, family: Family, models: Mapping[str, Any]) -> list[Problem]:
    """One caption, one picture and one step through all parts, in shapes only."""
    states, pooled = [], torch.empty(0)
    fix = f"{RESTORE} All parts must come from one base."
    for tokenizer in family.tokenizers:
        part = tokenizer.replace("tokenizer", "text_encoder")
        try:
            ids = caption_ids(root, tokenizer, models[part].config)
        except Exception as error:  # tokenizer.json, vocab.json and merges.txt may hold anything
            return [Problem(str(root / tokenizer), f"cannot be used ({reason_of(error)})", fix)]
        try:
            encoded = models[part](ids.to("meta"), output_hidden_states=True)
            states.append(encoded.hidden_states[-2] if family.size_numbers else encoded.last_hidden_state)
            pooled = encoded[0]
        except Exception as error:
            return [Problem(str(root / part), f"cannot encode a caption ({reason_of(error)})", fix)]
    try:
        config = read_json(root / "scheduler" / FILE)
        path = VariancePreserving.from_scheduler_config(config)
        if not bool(((path.alphas_cumprod >= 0) & (path.alphas_cumprod <= 1)).all()):
            raise ValueError("its noise levels lie outside of 0 to 1")
    except Exception as error:
        return [Problem(str(root / "scheduler" / FILE), f"no noise schedule ({reason_of(error)})", fix)]
    try:
        mean = models["vae"].encode(torch.empty(1, 3, 64, 64, device="meta")).latent_dist.mean
        size = torch.empty(1, family.size_numbers, device="meta")
        added = {"text_embeds": pooled, "time_ids": size} if family.size_numbers else None
        around = [mean[:, :1], mean] if models["unet"].config.in_channels > mean.shape[1] else []
        predicted = models["unet"](
            torch.cat([mean, *around], dim=1),
            torch.empty(1, device="meta"),
            torch.cat(states, dim=-1),
            added_cond_kwargs=added,
        ).sample
        decoded = models["vae"].decode(predicted).sample
        if predicted.shape != mean.shape or decoded.shape != (1, 3, 64, 64):
            raise ValueError(f"of a picture of 64x64 they make one of {_size(tuple(decoded.shape[-2:]))}")
    except Exception as error:
        return [Problem(str(root), f"its parts do not work together ({reason_of(error)})", fix)]
    return []


def caption_ids(root: Path, tokenizer: str, encoder: Any) -> torch.Tensor:
    """Token numbers (1, L) of a caption. encoder: the config of the text encoder that reads them.

    Raises whatever a broken tokenizer raises, and ValueError for one that this encoder does not understand.
    """
    with _quiet():
        loaded = CLIPTokenizer.from_pretrained(root, subfolder=tokenizer, local_files_only=True)
    longest = loaded.model_max_length
    if not 3 <= longest <= encoder.max_position_embeddings:
        raise ValueError(f"model_max_length is {longest}, and the text encoder reads {encoder.max_position_embeddings}")
    ids = loaded(["a mountain lake at dawn"], padding="max_length", truncation=True, return_tensors="pt").input_ids
    if ids.shape != (1, longest) or not 0 <= int(ids.min()) <= int(ids.max()) < encoder.vocab_size:
        raise ValueError(f"its tokens go up to {int(ids.max())}, and the text encoder knows {encoder.vocab_size}")
    if len(set(ids[0].tolist())) < 3:
        raise ValueError("it knows no words")
    return ids


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' own notes on a config that is not as they expect: ours say it in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def reason_of(error: BaseException) -> str:
    """What an error of a library says, in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
