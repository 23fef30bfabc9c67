"""Records what the model computes from its parameters, so that Pyro is not asked twice.

A site whose arguments no map describes has to be evaluated by the model, and running a Pyro model
costs milliseconds. Its arithmetic, though, is a short list of tensor operations. They are written
down in one run and played back at other parameters: a few microseconds each, and differentiable.
A model that looks at parameter values to decide what to do cannot be played back, and is not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.inference.numerics.operations import (
    Observer,
    Slot,
    Watch,
    has_shape_by_value,
    listed,
    mapped,
)

__all__ = ["Tape", "record"]


Params = Mapping[str, Tensor]
Compute = Callable[[Params], dict[str, Tensor]]


@dataclass(frozen=True)
class _Instruction:
    """An operation on slots; it pickles by the operation's name, such as ``aten.add.Tensor``."""

    function: Any
    args: Any
    kwargs: Any
    outputs: tuple[int, ...]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "function": str(self.function)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        function = functools.reduce(getattr, state["function"].split("."), torch.ops)
        self.__dict__.update(state, function=function)


@dataclass(frozen=True)
class Tape:
    """A recorded computation: parameters in, named tensors out.

    Raises:
        RuntimeError: When played back where an operation fails, or a check of errors does.
    """

    inputs: tuple[str, ...]
    instructions: tuple[_Instruction, ...]
    outputs: Mapping[str, Slot | Tensor]

    def __call__(self, params: Params) -> dict[str, Tensor]:
        """The same tensors at other parameters."""
        values: dict[int, Tensor] = {i: params[name] for i, name in enumerate(self.inputs)}

        def filled(value: Any) -> Any:
            return values[value.index] if isinstance(value, Slot) else value

        for step in self.instructions:
            result = step.function(*mapped(step.args, filled), **mapped(step.kwargs, filled))
            results = listed(result)
            values.update(zip(step.outputs, results, strict=True))
        return {name: filled(out) for name, out in self.outputs.items()}

    def only(self, name: str) -> Tape:
        """The tape of one of the tensors."""
        outputs = {name: self.outputs[name]}
        return Tape(self.inputs, _leading_to(self.instructions, outputs), outputs)

    @property
    def inputs_used(self) -> frozenset[str]:
        """The inputs that some operation, or an output, reads."""
        used = set[int]()

        def note(value: Any) -> Any:
            used.update([value.index] if isinstance(value, Slot) else [])
            return value

        for step in self.instructions:
            mapped(step.args, note)
            mapped(step.kwargs, note)
        mapped(list(self.outputs.values()), note)
        return frozenset(name for i, name in enumerate(self.inputs) if i in used)


def record(compute: Compute, params: Params, others: Sequence[Params]) -> Tape | None:
    """Records a computation, or gives None where it cannot be played back.

    Args:
        compute: From parameters to named tensors.
        params: Where to record it.
        others: Where to check that playing back gives what computing gives, gradient included.
    """
    recorder = _Recorder(params)
    try:
        with torch.no_grad(), recorder, Watch(recorder.knows, recorder.break_off):
            found = compute(params)
        if recorder.is_broken:
            return None
        tape = recorder.tape(found)
        if all(_agrees(tape, compute, other) for other in others):
            return tape
    except (_NotRecordable, RuntimeError, ValueError, ArithmeticError, TypeError):
        pass  # whatever goes wrong here, the model itself is still there to be asked
    return None


class _NotRecordable(Exception):
    """The computation looks at values of parameters, or changes tensors in place."""


class _Recorder(Observer):
    def __init__(self, params: Params) -> None:
        super().__init__(list(params.values()))
        self.names = tuple(params)
        self.instructions: list[_Instruction] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        seen: list[Tensor] = []

        def slotted(value: Any) -> Any:
            if isinstance(value, Tensor) and id(value) in self.known:
                seen.append(value)
                return self.known[id(value)][0]
            return value

        own_args, own_kwargs = mapped(args, slotted), mapped(kwargs, slotted)
        try:
            result = function(*args, **kwargs)
        except Exception:  # the model may catch it, and go another way
            self.is_broken = self.is_broken or bool(seen)
            raise
        if not seen:
            return result
        results = listed(result)
        if (
            function._schema.is_mutable
            or not all(isinstance(out, Tensor) for out in results)
            or has_shape_by_value(function, seen)
        ):
            raise _NotRecordable
        places = []
        for out in results:
            slot = Slot(len(self.known))
            self.known[id(out)] = (slot, out)
            places.append(slot.index)
        self.instructions.append(_Instruction(function, own_args, own_kwargs, tuple(places)))
        return result

    def tape(self, found: Mapping[str, Tensor]) -> Tape:
        """The tape without what leads nowhere."""
        outputs = {
            name: self.known[id(value)][0] if id(value) in self.known else value
            for name, value in found.items()
        }
        return Tape(self.names, _leading_to(self.instructions, outputs), outputs)


def _leading_to(
    instructions: Sequence[_Instruction], outputs: Mapping[str, Slot | Tensor]
) -> tuple[_Instruction, ...]:
    """The instructions without those that lead nowhere."""
    wanted = {out.index for out in outputs.values() if isinstance(out, Slot)}
    kept: list[_Instruction] = []

    def want(value: Any) -> Any:
        if isinstance(value, Slot):
            wanted.add(value.index)
        return value

    for step in reversed(instructions):
        if wanted & set(step.outputs) or not step.outputs:  # no outputs: a check of errors
            kept.append(step)
            mapped(step.args, want)
            mapped(step.kwargs, want)
    return tuple(reversed(kept))


def _agrees(tape: Tape, compute: Compute, params: Params) -> bool:
    """Whether value and gradient come out the same, to rounding."""
    results = []
    for run in (compute, tape):
        leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():
            outputs = run(leaves)
            total = torch.stack(
                [(out * out.detach().cos()).sum() for out in outputs.values()]
            ).sum()
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        results.append((outputs, gradients))
    (truth, slopes), (again, others) = results
    same = all(_close(truth[name], again[name]) for name in truth)
    return same and all(
        (one is None) == (two is None) and (one is None or two is None or _close(one, two))
        for one, two in zip(slopes, others, strict=True)
    )


def _close(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.allclose(
        one, two, rtol=1e-10, atol=1e-12, equal_nan=True
    )
