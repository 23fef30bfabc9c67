"""What loops over chains begin with: to compile them, and to read probabilities in chunks of steps.

Chains are given as ``emission[t, r, k]``, whatever its strides; a chunk holds, for each of its
steps, the states of one chain, or of several side by side: ``x[k * lanes + lane]``. To import this
file loads numba, which takes half a second.

What was compiled is kept until the file changes in which the loop stands, and no longer fits if
this one changes: those files therefore name the digest of this one (a test says what it is).
"""

import functools
from collections.abc import Callable
from typing import Literal, TypeAlias, TypedDict, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from ember.inference.numerics.compiled import kept_on_disk

__all__ = ["CHUNK", "FLOOR", "NONE", "Floats", "Integers", "compiled", "exponentials", "load"]

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., object])

FLOOR = 1e-200  # these two as in `scaled.py`, which says why
NONE = 1e-100
CHUNK = 1024  # numbers of a chunk of steps
LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
LEAST_EXPONENT = -708.0  # below it a power of e is no normal number


class _Options(TypedDict):
    nogil: bool
    fastmath: set[str]
    error_model: Literal["numpy"]  # to divide by zero gives infinity or NaN, as in tensors


def compiled(signature: str | None = None) -> Callable[[F], F]:
    """Compiles a function when this file is imported, or inside the functions that call it."""
    # To contract is to round once where a product is added to: NaN and infinity stay as they are.
    options = _Options(nogil=True, fastmath={"contract"}, error_model="numpy")

    def make(function: F) -> F:
        if signature is None:
            return cast(F, numba.njit(**options)(function))
        return kept_on_disk(functools.partial(numba.njit, signature, **options), function)

    return make


@compiled()
def exponentials(x: Floats, scale: Floats, bits: Integers) -> None:
    """Replaces ``x``, at most 0 and not NaN, by ``exp(x)``; ``bits`` are those of ``scale``."""
    for i in range(len(x)):
        # x = n log 2 + r, and exp(r) by its series; 2^n is a float whose exponent is n.
        value = max(x[i], LEAST_EXPONENT)
        n = np.int32(value * LOG2_E - 0.5)
        r = (value - n * LN2_HIGH) - n * LN2_LOW
        p = 1.0 / 6227020800.0
        p = p * r + 1.0 / 479001600.0
        p = p * r + 1.0 / 39916800.0
        p = p * r + 1.0 / 3628800.0
        p = p * r + 1.0 / 362880.0
        p = p * r + 1.0 / 40320.0
        p = p * r + 1.0 / 5040.0
        p = p * r + 1.0 / 720.0
        p = p * r + 1.0 / 120.0
        p = p * r + 1.0 / 24.0
        p = p * r + 1.0 / 6.0
        p = p * r + 0.5
        p = p * r + 1.0
        p = p * r + 1.0
        bits[i] = (np.int64(n) + 1023) << 52 if x[i] >= LEAST_EXPONENT else 0
        x[i] = p
    for i in range(len(x)):
        x[i] *= scale[i]


@compiled()
def load(
    emission: Floats,
    lengths: Integers,
    row: int,
    lanes: int,
    start: int,
    count: int,
    likelihood: Floats,
    top: Floats,
) -> bool:
    """Log emission probabilities of a chunk less the largest of each step; whether all is well.

    Past the end of a chain they are zero.
    """
    states = emission.shape[2]
    missing, sound = 0, True
    for lane in range(lanes):
        there = min(max(lengths[row + lane] - start, 0), count)
        highest = top[lane]
        for t in range(there):
            highest[t] = -np.inf
        for k in range(states):
            for t in range(there):
                value = emission[start + t, row + lane, k]
                highest[t] = value if value > highest[t] else highest[t]
                missing += value != value
        for t in range(there):
            sound = sound and -np.inf < highest[t] < np.inf
        for t in range(there, count):
            highest[t] = 0.0
        for k in range(states):
            place = k * lanes + lane
            for t in range(there):
                likelihood[t, place] = emission[start + t, row + lane, k] - highest[t]
            for t in range(there, count):
                likelihood[t, place] = 0.0
    for t in range(count):
        for place in range(states * lanes, likelihood.shape[1]):
            likelihood[t, place] = -np.inf
    return sound and missing == 0
