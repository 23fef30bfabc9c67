"""Writes down what a function does with its tensors, one operation after the other.

Seen are torch's own operations, below its derivatives: those of a gradient too. A function may look
at what it computes to decide where to go on; what it has seen is written down as a *condition*, and
the record holds where all of them come out the same again. It may change tensors in place that it
has made itself.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ember.inference.numerics.operations import (
    Observer,
    Slot,
    Watch,
    has_shape_by_value,
    listed,
)

__all__ = [
    "LARGE",
    "Condition",
    "NotRecordable",
    "Record",
    "Step",
    "as_one_step",
    "is_recording",
    "memory",
    "record",
]


LARGE = 4096  # numbers that one operation reads or makes; of more, torch is the faster
LONGEST = 3000  # operations; more are a loop that is worth more than the calls in it
MOST = 4_000_000  # numbers that all results hold together, for they are kept while recording
Function = Callable[..., Sequence[Tensor] | None]


class NotRecordable(Exception):
    """The function does what no list of operations says."""


class Step(NamedTuple):
    """An operation.

    Attributes:
        name: What torch calls it, ``add.Tensor``; empty if it is none of torch's.
        call: Computes it.
        is_mutable: Whether it changes one of its arguments.
        args: Its arguments, slots among them.
        kwargs: Those with names.
        reads: The slots among the arguments, in their order.
        given: The tensors that stood there.
        results: What came out.
        outputs: The slots of the results.
        is_one: Whether it gives one tensor, not a sequence of them.
    """

    name: str
    call: Callable[..., Any]
    is_mutable: bool
    args: Sequence[Any]
    kwargs: dict[str, Any]
    reads: tuple[int, ...]
    given: tuple[Tensor, ...]
    results: tuple[Tensor, ...] = ()
    outputs: tuple[int, ...] = ()
    is_one: bool = True


class Condition(NamedTuple):
    """What the function saw: an operation whose result is true or false."""

    step: Step
    value: bool


@dataclass(frozen=True)
class Record:
    """What a function did.

    Attributes:
        steps: Operations and conditions in their order, without those that lead nowhere.
        outputs: Where its results are; None if it had none.
    """

    steps: tuple[Step | Condition, ...]
    outputs: tuple[Slot | Tensor, ...] | None


def record(function: Function, inputs: Sequence[Tensor]) -> tuple[Record, Sequence[Tensor] | None]:
    """Calls a function and writes down what it does.

    Args:
        function: From tensors to tensors, or to None.
        inputs: The tensors, distinct objects, which it does not change.

    Returns:
        The record, and what the function gave.

    Raises:
        NotRecordable: If its operations do not tell what it does.
    """
    recorder = _Recorder(inputs)
    with recorder, Watch(recorder.knows, recorder.break_off):
        found = function(*inputs)
    if recorder.is_broken:
        raise NotRecordable
    return recorder.record(found), found


def is_recording() -> bool:
    """Whether a function is being recorded: then nothing may be hidden from the recorder."""
    return _active() is not None


def as_one_step(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Calls a function that has its own quick ways: a record holds it as one operation.

    Args:
        function: Computes tensors from tensors, without conditions and without changing any.
        inputs: Its arguments.
    """
    recorder = _active()
    return function(*inputs) if recorder is None else recorder.whole(function, inputs)


_here = threading.local()  # a mode sees the operations of its own thread


def _active() -> _Recorder | None:
    found: _Recorder | None = getattr(_here, "recorder", None)
    return found


class _Recorder(Observer):
    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__(inputs)
        # What stays as it is: the memory of the inputs, and of constants that were read.
        self.fixed = {memory(value): value for value in inputs}
        self.slots, self.size = len(inputs), 0
        self.steps: list[Step | Condition] = []
        self.is_paused = False

    def __enter__(self) -> Any:
        _here.recorder = self
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> None:
        _here.recorder = None
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def break_off(self) -> None:
        """Gives up: something was seen that no operation shows."""
        self.is_broken = self.is_broken or not self.is_paused

    def whole(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        """Calls a function without looking inside."""
        seen, constants = list[Tensor](), list[Tensor]()
        args = [self._slotted(value, seen, constants) for value in inputs]
        self.is_paused = True
        try:
            result = function(*inputs)
        finally:
            self.is_paused = False
        if seen and not self.is_broken:
            step = Step("", function, False, args, {}, self._places(seen), tuple(seen))
            self._note(step, constants, result)
        return result

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.is_broken or self.is_paused:
            return function(*args, **kwargs)
        seen, constants = list[Tensor](), list[Tensor]()
        own_args = [self._slotted(value, seen, constants) for value in args]
        own_kwargs = {n: self._slotted(value, seen, constants) for n, value in kwargs.items()}
        facts = _facts_of(function)
        if facts.is_random or (
            facts.is_mutable and not self._may_change(function, args, kwargs, seen)
        ):
            self.is_broken = True
        if not seen or self.is_broken:
            return function(*args, **kwargs)
        try:
            result = function(*args, **kwargs)
        except Exception:  # the function may catch it, and go another way
            self.is_broken = True
            raise
        if facts.has_varying_shape and has_shape_by_value(function, seen):
            self.is_broken = True
            return result
        step = Step(
            facts.name,
            function._op,
            facts.is_mutable,
            own_args,
            own_kwargs,
            self._places(seen),
            tuple(seen),
        )
        self._note(step, constants, result)
        return result

    def _slotted(self, value: Any, seen: list[Tensor], constants: list[Tensor]) -> Any:
        """An argument with slots in place of what follows from the inputs."""
        if isinstance(value, Tensor):
            known = self.known.get(id(value))
            (constants if known is None else seen).append(value)
            return value if known is None else known[0]
        if isinstance(value, (list, tuple)):
            return [self._slotted(each, seen, constants) for each in value]
        return value

    def _places(self, seen: Sequence[Tensor]) -> tuple[int, ...]:
        return tuple([self.known[id(value)][0].index for value in seen])

    def _may_change(self, function: Any, args: Any, kwargs: Any, seen: Sequence[Tensor]) -> bool:
        """Whether what an operation changes, if anything, is the function's own.

        A constant may be filled with constants until it is read.
        """
        written = [
            args[i] if i < len(args) else kwargs.get(argument.name)
            for i, argument in enumerate(function._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if any(memory(value) in self.fixed for value in written if isinstance(value, Tensor)):
            return False
        return not seen or all(map(self.knows, written))

    def _note(self, step: Step, constants: Sequence[Tensor], result: Any) -> None:
        """Writes an operation down."""
        self.fixed.update((memory(value), value) for value in constants if value.numel())
        if isinstance(result, bool):
            self.steps.append(Condition(step, result))
            return
        results = listed(result)
        self.size += sum(out.numel() for out in results if isinstance(out, Tensor))
        if (
            not all(isinstance(out, Tensor) for out in results)
            or len(self.steps) >= LONGEST
            or self.size > MOST
        ):
            self.is_broken = True
            self.steps.clear()
            return
        places = range(self.slots, self.slots + len(results))
        self.slots += len(results)
        for place, out in zip(places, results, strict=True):
            self.known[id(out)] = (Slot(place), out)
        is_one = isinstance(result, Tensor)
        self.steps.append(step._replace(results=results, outputs=tuple(places), is_one=is_one))

    def record(self, found: Sequence[Tensor] | None) -> Record:
        """The record without what leads nowhere."""
        if found is None:
            outputs = None
        else:
            outputs = tuple(
                self.known[id(value)][0] if id(value) in self.known else value for value in found
            )
        return Record(_leading_to(self.steps, outputs or ()), outputs)


class _Facts(NamedTuple):
    """What is to be known of one of torch's operations."""

    name: str
    is_mutable: bool
    is_random: bool
    has_varying_shape: bool


@functools.cache
def _facts_of(function: Any) -> _Facts:
    return _Facts(
        str(function).removeprefix("aten."),
        function._schema.is_mutable,
        torch.Tag.nondeterministic_seeded in function.tags,
        torch.Tag.dynamic_output_shape in function.tags,
    )


def _leading_to(
    steps: Sequence[Step | Condition], outputs: Sequence[Slot | Tensor]
) -> tuple[Step | Condition, ...]:
    """Without the steps that lead to no output and to no condition."""
    wanted = {out.index for out in outputs if isinstance(out, Slot)}
    kept: list[Step | Condition] = []
    for each in reversed(steps):
        step = each.step if isinstance(each, Condition) else each
        if wanted.intersection(step.outputs) or not step.outputs or step.is_mutable:
            kept.append(each)
            wanted.update(step.reads)
    return tuple(reversed(kept))


def memory(value: Tensor) -> int:
    """Where a tensor's numbers lie; views share the place."""
    return value.untyped_storage().data_ptr()
