"""What is common to all that watch torch's operations go by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Observer", "Slot", "Watch", "has_shape_by_value", "listed", "mapped"]


# Ways to look at numbers that are no tensor operations.
PEEKS: tuple[Any, ...] = (
    Tensor.numpy,
    Tensor.tolist,
    Tensor.__array__,
    Tensor.data_ptr,
    Tensor.untyped_storage,
    Tensor.__dlpack__,
    Tensor.storage,
    Tensor.__deepcopy__,
)


@dataclass(frozen=True)
class Slot:
    """The place of a tensor that the inputs determine."""

    index: int


class Observer(TorchDispatchMode):
    """A mode that sees each of torch's operations.

    Args:
        inputs: The tensors from which it follows what becomes of them.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The tensors are kept, so that their ids stay theirs.
        self.known = {id(value): (Slot(i), value) for i, value in enumerate(inputs)}
        self.is_broken = False

    def knows(self, value: object) -> bool:
        """Whether a tensor follows from the inputs."""
        return id(value) in self.known

    def break_off(self) -> None:
        """Gives up: something was seen that no operation shows."""
        self.is_broken = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would load its compiler, which takes seconds, to keep it away from the mode."""
        return False


class Watch(TorchFunctionMode):
    """Notices when numbers are looked at past torch's operations.

    Args:
        concerns: Whether a tensor is one of those that are watched.
        notice: Called when one of them is looked at.
    """

    def __init__(self, concerns: Callable[[object], bool], notice: Callable[[], None]) -> None:
        super().__init__()
        self.concerns, self.notice = concerns, notice

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in PEEKS and self.concerns(args[0]):
            self.notice()
        return function(*args, **(kwargs or {}))


def listed(result: Any) -> tuple[Any, ...]:
    """The results of an operation, which may be one, several or none."""
    if result is None:
        return ()
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """An argument with a function applied to all that it holds."""
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(item, function) for item in value)
    if isinstance(value, dict):
        return {name: mapped(item, function) for name, item in value.items()}
    return function(value)


def has_shape_by_value(function: Any, seen: Sequence[Tensor]) -> bool:
    """Whether the shape of a result depends on values: the model may have counted its rows."""
    if torch.Tag.dynamic_output_shape not in function.tags:
        return False
    by_mask = function.overloadpacket is torch.ops.aten.index
    return not by_mask or any(one.dtype in (torch.bool, torch.uint8) for one in seen)
