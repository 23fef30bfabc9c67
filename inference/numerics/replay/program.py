"""A record as a program of Python's: one line for each operation.

What is small is computed by numpy, what is large by torch, whose loops are the better ones; arrays
and tensors share their memory, so that going from one to the other copies nothing.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ember.inference.numerics.operations import Slot
from ember.inference.numerics.replay.in_numpy.expressions import EXPRESSIONS, HELPERS
from ember.inference.numerics.replay.in_numpy.operands import Making, Operand
from ember.inference.numerics.replay.recording import (
    LARGE,
    Condition,
    Record,
    Step,
    memory,
)

__all__ = ["Elsewhere", "Program", "compiled"]


KINDS = frozenset({torch.float64, torch.int64, torch.int32, torch.bool})
Program = Callable[..., tuple[Tensor, ...] | None]


class Elsewhere(Exception):
    """The function would have gone another way than it did when it was recorded."""


def compiled(record: Record, inputs: int) -> Program:
    """The program of a record, from tensors to tensors.

    It raises ``Elsewhere`` where a condition does not hold.

    Args:
        record: The record.
        inputs: The number of inputs.
    """
    writer = _Writer(inputs, _changed(record), _read(record))
    for each in record.steps:
        if isinstance(each, Condition):
            writer.condition(each)
        else:
            writer.step(each)
    return writer.program(record.outputs)


class _Writer:
    """Writes a program line by line: ``a7`` is the array of a slot, and ``t7`` its tensor."""

    def __init__(self, inputs: int, changed: frozenset[int], read: frozenset[int]) -> None:
        self.names: dict[str, object] = {
            **HELPERS,
            "Elsewhere": Elsewhere,
            "tensor": _tensor,
        }
        self.inputs = [f"t{i}" for i in range(inputs)]
        self.tensors, self.arrays = set(range(inputs)), set[int]()
        self.lines: list[str] = []
        self.kept: dict[int, str] = {}
        self.equal: dict[bytes, object] = {}
        # What has been computed once is not computed again, unless it may have changed since.
        self.changed, self.read = changed, read
        self.known: dict[str, tuple[int, ...]] = {}
        self.alias: dict[int, int] = {}

    def step(self, step: Step) -> None:
        """The line of an operation."""
        if self._is_numpy(step) and self._in_numpy(step):
            return
        self._append("t", step, self._by_torch(step))

    def condition(self, condition: Condition) -> None:
        """Ends the program where a condition does not hold."""
        step = condition.step
        made = self._expression(step) if self._is_numpy(step) else None
        made = made or self._by_torch(step)
        self.lines.append(f"if {'not ' if condition.value else ''}({made}): raise Elsewhere")

    def program(self, outputs: Sequence[Slot | Tensor] | None) -> Program:
        """The program, with the outputs given back."""
        each = []
        for out in outputs or ():
            name = self._tensor(out.index) if isinstance(out, Slot) else self._constant(out)
            # What is given away may be changed: a constant and what is given twice are copies.
            own = isinstance(out, Slot) and name not in each
            each.append(name if own else f"{name}.clone()")
        given = "None" if outputs is None else f"({', '.join([*each, ''])})"
        body = "".join(f"    {line}\n" for line in [*self.lines, f"return {given}"])
        text = f"def program({', '.join(self.inputs)}):\n{body}"
        exec(_code(text), self.names)
        made: Program = self.names.pop("program")  # type: ignore[assignment]
        return made

    def _is_numpy(self, step: Step) -> bool:
        """Whether numpy may compute it: where memory changes its views are not those of torch."""
        for x in (*step.given, *step.results):
            if x.numel() > LARGE or x.dtype not in KINDS:
                return False
        return not (self.changed and self._changes(step))

    def _in_numpy(self, step: Step) -> bool:
        made = self._expression(step)
        if made is None:
            return False
        self._append("a", step, made)
        return True

    def _append(self, kind: str, step: Step, made: str) -> None:
        """The line of an operation, unless its result is known."""
        lasts = step.outputs and not (self.changed and self._changes(step))
        if lasts and made in self.known:
            self.alias.update(zip(step.outputs, self.known[made], strict=True))
            return
        if lasts:
            self.known[made] = step.outputs
        self.lines.append(self._results(kind, step) + made)
        (self.arrays if kind == "a" else self.tensors).update(step.outputs)

    def _changes(self, step: Step) -> bool:
        """Whether what is read or made here changes at some time."""
        return any(memory(x) in self.changed for x in (*step.given, *step.results))

    def _expression(self, step: Step) -> str | None:
        """What numpy computes, if there is such an expression."""
        name = step.name
        if name not in EXPRESSIONS:
            return None
        making = Making(step.results, tuple(i in self.read for i in step.outputs), self._constant)
        given = iter(step.given)

        def operand(value: Any) -> Any:
            kind = type(value)
            if kind is Slot:
                made, like = Operand(self._array(value.index)), next(given)
            elif kind is list:
                return [operand(each) for each in value]
            elif isinstance(value, Tensor):
                if value.numel() > LARGE or value.dtype not in KINDS:
                    raise NotImplementedError
                made, like = Operand(self._constant(value.detach().numpy())), value
            else:
                return value
            made.like = like
            return made

        try:
            args = [operand(value) for value in step.args]
            kwargs = {name: operand(value) for name, value in step.kwargs.items()}
            return EXPRESSIONS[name](making, *args, **kwargs)
        except (NotImplementedError, TypeError):
            return None

    def _by_torch(self, step: Step) -> str:
        """The call of torch's own operation."""

        def operand(value: Any) -> str:
            if isinstance(value, Slot):
                return self._tensor(value.index)
            if isinstance(value, (list, tuple)):
                return f"[{', '.join(operand(each) for each in value)}]"
            return self._constant(value)

        args = [operand(value) for value in step.args]
        args += [f"{name}={operand(value)}" for name, value in step.kwargs.items()]
        return f"{self._constant(step.call)}({', '.join(args)})"

    @staticmethod
    def _results(kind: str, step: Step) -> str:
        if not step.outputs:
            return ""
        names = ", ".join(f"{kind}{i}" for i in step.outputs)
        return f"{names} = " if step.is_one else f"{names}, = "

    def _array(self, slot: int) -> str:
        slot = self.alias.get(slot, slot)
        if slot not in self.arrays:
            self.lines.append(f"a{slot} = t{slot}.numpy()")
            self.arrays.add(slot)
        return f"a{slot}"

    def _tensor(self, slot: int) -> str:
        slot = self.alias.get(slot, slot)
        if slot not in self.tensors:
            self.lines.append(f"t{slot} = tensor(a{slot})")
            self.tensors.add(slot)
        return f"t{slot}"

    def _constant(self, value: object) -> str:
        if value is None or isinstance(value, (bool, int)):
            return repr(value)
        if isinstance(value, (tuple, float, np.dtype)):  # equal ones are one
            value = self.equal.setdefault(repr(value).encode(), value)
        elif isinstance(value, np.ndarray):
            key = f"{value.dtype}{value.shape}".encode() + value.tobytes()
            value = self.equal.setdefault(key, value)
        # The value is kept with the name: another may otherwise come to have its id.
        if id(value) not in self.kept:
            self.kept[id(value)] = f"c{len(self.kept)}"
            self.names[self.kept[id(value)]] = value
        return self.kept[id(value)]


@functools.lru_cache(maxsize=64)
def _code(text: str) -> types.CodeType:
    """A program that Python can run; models of one kind and size have the same."""
    return compile(text, "<recorded operations>", "exec")


def _changed(record: Record) -> frozenset[int]:
    """The memory that some operation changes."""
    steps = [each for each in record.steps if isinstance(each, Step)]
    return frozenset(
        memory(x) for step in steps if step.is_mutable for x in (*step.given, *step.results)
    )


def _read(record: Record) -> frozenset[int]:
    """The slots that something is made of."""
    read = {out.index for out in record.outputs or () if isinstance(out, Slot)}
    for each in record.steps:
        read.update(each.step.reads if isinstance(each, Condition) else each.reads)
    return frozenset(read)


def _tensor(array: Any) -> Tensor:
    """An array, or a number, as a tensor."""
    if type(array) is not np.ndarray:
        return torch.from_numpy(np.array(array))
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()
    return torch.from_numpy(array)
