"""A stand-in for an accelerator: a device whose tensors can be told from those of the CPU.

Continuous integration has no GPU, and code that makes a tensor in the wrong place runs there all
the same. On this device it fails. Its tensors say that they are on "meta", the one device of torch
that needs no driver; they hold their numbers on the CPU, where each operation is done. What an
accelerator refuses is refused here:

* an operation on tensors of both sides, but for numbers (tensors without dims) in elementwise ones;
* ``numpy()``, and any other look at memory from outside, before ``cpu()``;
* a generator of random numbers of the CPU.

It notes what is copied from the device, so that a test can see that rows stay there. Sums come out
as on the CPU, to the last bit, so that results can be compared. What it cannot show: speed, sums in
another order, and an operation that the accelerator lacks.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["DEVICE", "Away", "copied_from", "stand_in_device"]

DEVICE = torch.device("meta")

ATEN = torch.ops.aten
BETWEEN = {
    ATEN.copy_.default,
    ATEN._to_copy.default,
}  # may read from one side and write to the other
NUMBERS = {  # not elementwise by name, and content with a number of the CPU
    ATEN.where.self, ATEN.masked_fill.Tensor, ATEN.masked_fill_.Tensor, ATEN.fill_.Tensor,
    ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default,
    ATEN.index_fill.int_Tensor, ATEN.index_fill_.int_Tensor,
}  # fmt: skip

_copied: list[list[int]] = []


class Away(Tensor):
    """A tensor of the device, around one of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Away":
        made: Away = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, layout=held.layout, device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        return _done(func, args, kwargs or {})

    def tolist(self) -> Any:
        _note(self)
        return self.held.tolist()  # torch itself copies to the CPU first, but not of a subclass

    def new_tensor(self, data: Any, **options: Any) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, **{"dtype": self.dtype, "device": DEVICE, **options})

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_listed(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_listed(index), value)

    def __format__(self, spec: str) -> str:
        return format(self.held, spec)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"away: {self.held!r}"


def _listed(index: Any) -> Any:
    """An index with its lists as tensors."""
    if isinstance(index, tuple):
        return tuple(map(_listed, index))
    if isinstance(index, list):
        return torch.tensor(index, dtype=None if index else torch.long, device=DEVICE)
    return index


class _Dispatch(TorchDispatchMode):
    """Sees the operations without a tensor of the device too: those that make one."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        return _done(func, args, kwargs or {})


@contextmanager
def copied_from() -> Iterator[list[int]]:
    """The sizes of the tensors that its body copies from the device to the CPU."""
    sizes: list[int] = []
    _copied.append(sizes)
    try:
        yield sizes
    finally:
        _copied.remove(sizes)


def _note(tensor: Tensor) -> None:
    for sizes in _copied:
        sizes.append(tensor.numel())


def _of_numbers(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor`` by way of the CPU: torch makes it on the device out of sight."""

    def made(data: Any, **options: Any) -> Tensor:
        device = torch.device(options.get("device") or torch.empty(0).device)
        if device != DEVICE or isinstance(data, Tensor):
            return make(data, **options)
        return make(data, **{**options, "device": "cpu"}).to(DEVICE)

    return made


@contextmanager
def stand_in_device() -> Iterator[torch.device]:
    """The device, there for its body."""
    module = SimpleNamespace(default_generators=(torch.default_generator,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, DEVICE.type, module, raising=False)
        for make in (torch.tensor, torch.as_tensor):
            patch.setattr(torch, make.__name__, _of_numbers(make))
        with _Dispatch():  # type: ignore[no-untyped-call]
            yield DEVICE


def _done(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
    """One operation, on what the tensors hold."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    away = any(isinstance(each, Away) for each in tensors)
    if any(each.device == DEVICE and not isinstance(each, Away) for each in tensors):
        raise RuntimeError(f"{func}: a tensor was made on the device while that was not there.")
    if away and func not in BETWEEN:
        _refuse_mixture(func, args, tensors)
    there = away
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]) == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the CPU for a tensor of the device.")
    func = (
        ATEN.zeros.default if func is ATEN._efficientzerotensor.default else func
    )  # holds nothing
    found = func(*tree_map(_held, args), **tree_map(_held, dict(kwargs)))
    if func is ATEN._local_scalar_dense.default or not there:
        for each in tensors if away else ():
            _note(each)
        return found
    out = tree_map(lambda each: Away(each) if isinstance(each, Tensor) else each, found)
    return return_and_correct_aliasing(func, args, dict(kwargs), out) if away else out


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Away) else value


def _refuse_mixture(func: Any, args: tuple[Any, ...], tensors: Collection[Tensor]) -> None:
    elementwise = torch.Tag.pointwise in func.tags or func in NUMBERS
    written = args[0] if func._schema.is_mutable and args else None
    for each in tensors:
        number = each.dim() == 0 and elementwise and each is not written
        if not isinstance(each, Away) and not number:
            raise RuntimeError(
                f"{func}: a tensor of the CPU, of shape {tuple(each.shape)}, among those of the "
                "device."
            )
