"""A pretend accelerator, to test how devices are handled where there is none.

Its tensors claim to lie on `pretend:0`; their values are held and computed on the CPU. To mix them with the CPU's
raises, as with CUDA. With `float64=False`, a float64 tensor on it raises, as with Apple's MPS. `waits` counts what
makes a real device finish its work before the host goes on: values that come back, as in `.item()` and `.cpu()`. `sent`
counts tensors that come from the host.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_available(self) -> bool:
        """No: nothing should choose it by itself."""
        return False


_setup_privateuseone_for_python_backend(NAME, _Backend())
DEVICE = torch.device(f"{NAME}:0")
_LIBRARY = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_LIBRARY.fallback(torch.library.fallthrough_kernel)


class PretendTensor(torch.Tensor):
    """Claims to lie on DEVICE. held: the tensor on the CPU with its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "PretendTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, layout=held.layout, device=DEVICE, requires_grad=held.requires_grad,
        )  # fmt: skip

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self, **named: object) -> str:
        return f"PretendTensor({self.held})"

    def __getitem__(self, index: Any) -> Any:
        # torch moves lists of numbers to the device below all modes.
        return super().__getitem__(_on_the_cpu(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_on_the_cpu(index), value)

    def tolist(self) -> Any:
        Pretend.current.waits["tolist"] += 1
        return self.held.tolist()

    def numpy(self, **named: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} tensor to numpy. Use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return Pretend.current.run(func, args, kwargs or {})


class _Above(TorchFunctionMode):
    """What torch does above, or below, all that Pretend sees.

    Tensors from Python's numbers are made on the CPU first.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        wanted = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and wanted is not None and torch.device(wanted).type == NAME:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func is torch.Tensor.new_tensor and isinstance(args[0], PretendTensor):
            return args[0].held.new_tensor(*args[1:], **kwargs).to(DEVICE)
        return func(*args, **kwargs)


class Pretend(TorchDispatchMode):
    """While it lasts, `.to(DEVICE)` and `device=DEVICE` give such tensors. Not to be nested."""

    current: "Pretend"

    def __init__(self, float64: bool = True) -> None:
        super().__init__()
        self.float64 = float64
        self._above = _Above()
        self.waits: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        Pretend.current = self

    def __enter__(self) -> "Pretend":
        self._swapping = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # or a module's `to` would leave what is held
        self._above.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._above.__exit__(*error)
        torch.__future__.set_swap_module_params_on_conversion(self._swapping)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        leaves = _leaves((args, kwargs))
        here = any(isinstance(leaf, PretendTensor) for leaf in leaves)
        wanted = kwargs.get("device")
        out_here = here if wanted is None else torch.device(wanted).type == NAME
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" or (name == "_to_copy" and here and not out_here):
            self.waits[name] += here
        elif name == "copy_" and here and not isinstance(args[0], PretendTensor):
            self.waits[name] += 1
        elif here and name not in ("copy_", "_to_copy") and (strange := self._on_the_host(name, args, leaves)):
            raise RuntimeError(f"{func}: expected all tensors on one device, found {DEVICE} and cpu {strange}")
        if (name == "_to_copy" and out_here and not here) or (name == "copy_" and self._from_the_host(args)):
            self.sent[name] += 1
        first = args[0] if args else None
        args, kwargs = _mapped(_held, (args, kwargs))
        if wanted is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        try:
            out = func(*args, **kwargs)
        except RuntimeError:  # the CPU's group norm, for one, has no float16
            if not any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float16 for leaf in _leaves(args)):
                raise
            out = _mapped(_half, func(*_mapped(_single, args), **kwargs))
        if name.endswith("_") and not name.startswith("_") and isinstance(first, PretendTensor):
            return first
        if name == "_to_copy" and any(out is leaf for leaf in _leaves(args)):
            out = out.clone()

        def wrapped(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or not out_here:
                return value
            if not self.float64 and value.dtype == torch.float64:
                raise TypeError(f"{func}: {DEVICE} has no float64")
            return PretendTensor(value)

        return _mapped(wrapped, out)

    @staticmethod
    def _from_the_host(args: tuple[Any, ...]) -> bool:
        return isinstance(args[0], PretendTensor) and not isinstance(args[1], PretendTensor)

    @staticmethod
    def _on_the_host(name: str, args: tuple[Any, ...], leaves: Sequence[Any]) -> list[Sequence[int]]:
        """Shapes of tensors that lie on the CPU and may not: numbers may, and, as on CUDA, indices."""
        if name in ("index", "index_put_") and isinstance(args[0], PretendTensor):
            return []
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, PretendTensor)]
        return [tuple(tensor.shape) for tensor in tensors if tensor.dim()]


def _on_the_cpu(index: Any) -> tuple[Any, ...]:
    """An index with its lists of numbers as tensors."""
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(torch.tensor(part, dtype=torch.long) if isinstance(part, list) else part for part in parts)


def _leaves(value: Any) -> list[Any]:
    """What is in tuples, lists and dicts: as torch's own pytree finds it, which takes longer than a tiny operation."""
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in _leaves(part)]
    if isinstance(value, dict):
        return _leaves(list(value.values()))
    return [value]


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same with each of its leaves changed."""
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(change, part) for part in value])
    if isinstance(value, dict):
        return {key: _mapped(change, part) for key, part in value.items()}
    return change(value)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, PretendTensor) else leaf


def _single(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float16 else leaf


def _half(leaf: Any) -> Any:
    return leaf.half() if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32 else leaf
