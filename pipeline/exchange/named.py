"""Adapters by their names in params.yaml: those of sets, and files that were brought along."""

import torch

from pipeline.adapters.foreign import is_foreign, read_foreign
from pipeline.adapters.lora import read_adapter
from pipeline.adapters.mixing import Adapter
from pipeline.adapters.store import find_adapter
from pipeline.base.families import ADAPTER_PREFIX
from pipeline.base.opening import adapters_digest
from pipeline.base.protocol import Adaptable, Base
from pipeline.errors import Problem, UserError
from pipeline.sections import BaseSection


def open_named(name: str, base: Base) -> Adapter:
    """The adapter on the base's device. name: a set, `set/picture`, or a file of models/loras/.

    Raises:
        UserError: when it is not there, not whole, or of another base, as far as it says.
    """
    path = find_adapter(name)
    if not is_foreign(path):
        return read_adapter(path, base.digest, base.device, base)
    adapter = read_foreign(path, base, base.adapter_prefix)
    factors = {key: (down.to(base.device), up.to(base.device)) for key, (down, up) in adapter.factors.items()}
    return Adapter(factors, adapter.scale)


def find_file_problems(name: str, section: BaseSection, base: Adaptable) -> list[Problem]:
    """A file of models/loras/ that is missing, damaged or of another base. base: its layers, without weights."""
    try:
        path = find_adapter(name)
        if is_foreign(path):
            read_foreign(path, base, ADAPTER_PREFIX)
        else:
            read_adapter(path, adapters_digest(section), torch.device("cpu"), base)
    except UserError as error:
        return list(error.problems)
    return []
