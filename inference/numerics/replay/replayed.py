"""A function of tensors that is recorded at its first call, and played back from then on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ember.inference.numerics.replay.program import Elsewhere, Program, compiled
from ember.inference.numerics.replay.recording import (
    NotRecordable,
    Record,
    is_recording,
    record,
)

__all__ = ["Replayed"]


WAYS = 4  # that a function may go before it is no longer recorded
CLOSE = 1e-9  # relative: what a program may differ by from what it was made of
ROUNDING = 1e-12  # the same, relative to the largest input: of large numbers little may be left
COARSE = 1e-3  # relative: it differs by no more for that
FAILURES = (ArithmeticError, RuntimeError, TypeError, ValueError)


class Replayed:
    """Does what a function does, and quickly where it has been that way before.

    A function may go several ways, by what it sees; each is recorded once. Where none of those that
    are known is the right one, or something goes wrong in it, the function itself is called.

    Args:
        function: From tensors to tensors, or to None. What it gives must follow from the values of
            its arguments alone, and it must not change them.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor] | None]) -> None:
        self.function = function
        self._programs: list[Program] = []
        self._shapes: tuple[torch.Size, ...] = ()
        self._is_open = os.environ.get("EMBER_REPLAY") != "0"

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor] | None:
        """What the function gives."""
        shapes = tuple([x.shape for x in inputs])
        if not self._programs:
            self._shapes = shapes
        if is_recording() or shapes != self._shapes or _wants_gradients(inputs):
            return self.function(*inputs)
        inputs = tuple([x.detach() if x.requires_grad else x for x in inputs])
        with torch.no_grad(), np.errstate(all="ignore"):
            for i, program in enumerate(self._programs):
                try:
                    found = program(*inputs)
                except (Elsewhere, *FAILURES):
                    continue
                if i:  # the way that was gone last is tried first
                    self._programs.insert(0, self._programs.pop(i))
                return found
        if not self._is_open or not all(_is_plain(x) for x in inputs):
            return self.function(*inputs)
        return self._recorded(inputs)

    def _recorded(self, inputs: Sequence[Tensor]) -> Sequence[Tensor] | None:
        """What the function gives, written down for the next time."""
        try:
            with torch.no_grad():
                written, found = record(self.function, inputs)
        except NotRecordable:
            self._is_open = False
            return self.function(*inputs)
        except Exception:  # of the function, or of being watched: it says itself which
            return self.function(*inputs)
        program, again = _tried(written, inputs)
        if program is None or not _agree(found, again, ROUNDING * max(map(_size, inputs))):
            self._is_open = False
            return found
        self._programs.insert(0, program)
        self._is_open = len(self._programs) < WAYS
        return again


def _tried(
    written: Record, inputs: Sequence[Tensor]
) -> tuple[Program | None, Sequence[Tensor] | None]:
    """The program, and what it gives; none where it fails in any way."""
    try:
        program = compiled(written, len(inputs))
        with torch.no_grad(), np.errstate(all="ignore"):
            return program, program(*inputs)
    except Exception:  # whatever goes wrong here, the function itself is still there
        return None, None


def _wants_gradients(inputs: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def _is_plain(value: Tensor) -> bool:
    return type(value) is Tensor and value.device.type == "cpu"


def _agree(one: Sequence[Tensor] | None, other: Sequence[Tensor] | None, rounding: float) -> bool:
    if one is None or other is None:
        return one is other
    return all(
        x.shape == y.shape
        and x.dtype == y.dtype
        and torch.allclose(
            x,
            y,
            rtol=CLOSE,
            atol=CLOSE * _size(x) + min(rounding, COARSE * _size(x)),
            equal_nan=True,
        )
        for x, y in zip(one, other, strict=True)
    )


def _size(x: Tensor) -> float:
    finite = x[x.isfinite()] if x.is_floating_point() else x.double()
    return float(finite.abs().max()) if finite.numel() else 0.0
