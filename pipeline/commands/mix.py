"""`morphline mix`: several adapters as one file. No DVC stage: it takes what a person names."""

from pathlib import Path

from peft import LoraConfig

from pipeline.adapters.combining import combine
from pipeline.adapters.lora import read_prefix, save_adapter
from pipeline.base.digests import file_sha256
from pipeline.commands.chosen import choose
from pipeline.errors import Problem, UserError
from pipeline.outputs import atomic_file


def run(names: list[str], out: Path, rank: int | None, force: bool) -> str:
    """Write the weighted sum of adapters to `out`; a line that says what it is.

    Raises:
        UserError: for adapters that cannot be read or summed, an `out` that is no .safetensors or is there already.
    """
    if out.suffix != ".safetensors":
        raise UserError(Problem(str(out), "an adapter is a .safetensors file", f"Write to {out.name}.safetensors."))
    if out.exists() and not force:
        raise UserError(Problem(str(out), "the file exists already", "Use another name, or --force."))
    chosen = choose(names)
    mixed = combine([one.read() for one in chosen], rank)
    sources = [{"adapter": one.path.name, "sha256": file_sha256(one.path), "weight": one.weight} for one in chosen]
    notes = {"base": chosen[0].notes["base"], "mixed": sources, "rank": mixed.rank, "kept": round(mixed.kept, 6)}
    # Its scale is in the factors, so alpha is the rank.
    config = LoraConfig(r=mixed.rank, lora_alpha=mixed.rank, target_modules=list(mixed.factors))
    tensors = {
        f"{module}.lora_{letter}.weight": factor
        for module, pair in mixed.factors.items()
        for letter, factor in zip("AB", pair, strict=True)
    }
    with atomic_file(out) as partial:
        save_adapter(partial, tensors, config, notes, read_prefix(chosen[0].path))
    exact = "exact" if mixed.kept == 1.0 else f"{mixed.kept:.1%} of the sum's energy kept"
    return f"{out}: rank {mixed.rank}, {exact}"
