"""Adapters by their names in params.yaml: those of sets, and files that were brought along."""

import torch
from torch import nn

from pipeline.adapters.lora import read_adapter
from pipeline.adapters.mixing import Adapter
from pipeline.adapters.store import find_adapter
from pipeline.base.families import ADAPTER_PREFIX
from pipeline.base.opening import adapters_digest
from pipeline.base.protocol import Base
from pipeline.errors import Problem, UserError
from pipeline.exchange.foreign import is_foreign, read_foreign
from pipeline.sections import BaseSection


def open_named(name: str, base: Base) -> Adapter:
    """The adapter on the base's device. name: a set, `set/picture`, or a file of models/loras/.

    Raises:
        UserError: when it is not there, not whole, or of another base, as far as it says.
    """
    path = find_adapter(name)
    if not is_foreign(path):
        return read_adapter(path, base.digest, base.device, base.denoiser)
    adapter, _ = read_foreign(path, base.denoiser, base.adapter_prefix)
    factors = {key: (down.to(base.device), up.to(base.device)) for key, (down, up) in adapter.factors.items()}
    return Adapter(factors, adapter.scale)


def find_file_problems(name: str, section: BaseSection, denoiser: nn.Module) -> list[Problem]:
    """A file of models/loras/ that is missing, damaged or of another base. denoiser: the base's, without weights."""
    try:
        path = find_adapter(name)
        if is_foreign(path):
            read_foreign(path, denoiser, ADAPTER_PREFIX)
        else:
            read_adapter(path, adapters_digest(section), torch.device("cpu"), denoiser)
    except UserError as error:
        return list(error.problems)
    return []
