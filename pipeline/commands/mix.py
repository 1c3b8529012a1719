"""`morphline mix`: several adapters as one file. No DVC stage: it takes what a person names."""

from pathlib import Path

from peft import LoraConfig

from pipeline.adapters.combining import combine
from pipeline.adapters.lora import save_adapter
from pipeline.adapters.mixing import is_of_text
from pipeline.base.checking import find_base_problems
from pipeline.base.digests import file_sha256
from pipeline.base.families import ADAPTER_PREFIX
from pipeline.base.opening import adapters_digest, layers_without_weights
from pipeline.commands.chosen import choose, read_chosen, require_base
from pipeline.commands.places import OF_STAGES, require_not_own
from pipeline.errors import Problem, UserError
from pipeline.outputs import atomic_file
from pipeline.params import load_params


def run(names: list[str], out: Path, rank: int | None, force: bool) -> str:
    """Write the weighted sum of adapters to `out`; a line that says what it is.

    Raises:
        UserError: for adapters that cannot be read or summed, an `out` that is no .safetensors or is there already.
    """
    if out.suffix != ".safetensors":
        raise UserError(Problem(str(out), "an adapter is a .safetensors file", f"Write to {out.name}.safetensors."))
    require_not_own(out, OF_STAGES)
    if out.exists() and not force:
        raise UserError(Problem(str(out), "the file exists already", "Use another name, or --force."))
    chosen = choose(names)
    base, layers = next((one.base for one in chosen if one.base), None), None
    if any(one.base is None for one in chosen):
        # Another program's file does not say which base it is for: that of params.yaml, and its layers must fit.
        section = load_params().base
        if problems := find_base_problems(section):
            raise UserError(*problems)
        base = {"source": section.source, "digest": adapters_digest(section)}
        layers = layers_without_weights(section)
        require_base(chosen, section, base["digest"])
    mixed = combine(read_chosen(chosen, layers), rank)
    sources = [{"adapter": one.path.name, "sha256": file_sha256(one.path), "weight": one.weight} for one in chosen]
    notes = {"base": base, "mixed": sources, "rank": mixed.rank, "kept": round(mixed.kept, 6)}
    of_denoiser = [module for module in mixed.factors if not is_of_text(module)]
    # Its scale is in the factors, so alpha is the rank.
    config = LoraConfig(r=mixed.rank, lora_alpha=mixed.rank, target_modules=of_denoiser)
    tensors = {
        f"{module}.lora_{letter}.weight": factor
        for module, pair in mixed.factors.items()
        for letter, factor in zip("AB", pair, strict=True)
    }
    with atomic_file(out) as partial:
        save_adapter(partial, tensors, config, notes, ADAPTER_PREFIX)
    exact = "exact" if mixed.kept == 1.0 else f"{mixed.kept:.1%} of the sum's energy kept"
    return f"{out}: rank {mixed.rank}, {exact}"
