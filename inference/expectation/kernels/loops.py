"""The loops of the compiled sweep, in what numba understands; as they stand they are plain Python.

All work is on a block of ``WIDTH`` rows of the data, which are columns here, in buffers that the
cache holds. Buffers are one-dimensional and their places unsigned, as LLVM makes vector
instructions of a loop only where it sees that places neither wrap around nor overlap. Sums may be
taken in another order (``reassoc``); what NaN and infinities do is left as it is.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ember.inference.numerics.compiled import kept_on_disk

__all__ = ["BLOCK", "TILE", "WIDTH", "sweep_rows"]


F = TypeVar("F", bound=Callable[..., object])
Floats = NDArray[np.float64]
Places = NDArray[np.int64]

WIDTH = 256  # rows at a time
BLOCK = 64  # features at a time
TILE = 4  # features whose products with two components are held in registers, which are sixteen
TOGETHER = 32  # rows whose evidence, each at most the number of components, is multiplied
_W = np.uint64(WIDTH)
_W2 = np.uint64(2 * WIDTH)
_W3 = np.uint64(3 * WIDTH)

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10
MAGIC = 6755399441055744.0  # 1.5 * 2^52: what is added to it is rounded to an integer
LOWEST = -708.0  # below, the exponential is taken to be zero
(_E2, _E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10, _E11, _E12) = (
    1 / 2,
    1 / 6,
    1 / 24,
    1 / 120,
    1 / 720,
    1 / 5040,
    1 / 40320,
    1 / 362880,
    1 / 3628800,
    1 / 39916800,
    1 / 479001600,
)


def _compiled(*fastmath: str) -> Callable[[F], F]:
    """Compiles a function, if numba is installed, and keeps it on disk for later processes."""

    def decorate(function: F) -> F:
        if importlib.util.find_spec("numba") is None:
            return function
        from numba import njit

        compiler = functools.partial(njit, nogil=True, fastmath=set(fastmath), error_model="numpy")
        return kept_on_disk(compiler, function)

    return decorate


@_compiled("contract")
def _exponential(x: float) -> float:
    r"""``exp(x)`` of ``x <= 0``, to an ulp: with ``x = n log 2 + r``, a series in ``r``."""
    inside = LOWEST if x < LOWEST else x  # NaN stays
    shifted = inside * LOG2_E + MAGIC
    n = shifted - MAGIC
    r = (inside - n * LN2_HIGH) - n * LN2_LOW
    p = _E12 * r + _E11
    p = p * r + _E10
    p = p * r + _E9
    p = p * r + _E8
    p = p * r + _E7
    p = p * r + _E6
    p = p * r + _E5
    p = p * r + _E4
    p = p * r + _E3
    p = p * r + _E2
    p = (p * r + 1.0) * r + 1.0
    # The lowest bits of the shifted number are those of n: they become the exponent of 2^n.
    bits = np.int64((np.float64(shifted).view(np.int64) + 1023) << 52)
    return 0.0 if x < LOWEST else p * bits.view(np.float64)


@_compiled("contract")
def _logarithm(x: float) -> float:
    r"""``log(x)`` of ``x >= 1``: with ``x = 2^e m``, a series in ``(m - 1) / (m + 1)``."""
    bits = np.float64(x).view(np.int64)
    # Of the mantissa, m lies between the roots of 1/2 and of 2.
    e = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = np.int64(bits - (e << 52)).view(np.float64)
    f = (m - 1.0) / (m + 1.0)
    s = f * f
    p = s * (1 / 21) + 1 / 19
    p = p * s + 1 / 17
    p = p * s + 1 / 15
    p = p * s + 1 / 13
    p = p * s + 1 / 11
    p = p * s + 1 / 9
    p = p * s + 1 / 7
    p = p * s + 1 / 5
    p = p * s + 1 / 3
    small = 2.0 * f + 2.0 * f * (s * p)
    found = np.float64(e) * LN2_HIGH + (small + np.float64(e) * LN2_LOW)
    return found if x < np.inf else x  # NaN stays


@_compiled("contract")
def _form(
    features: Floats, rows: Floats, left: Places, right: Places, first: int, count: int
) -> None:
    """Products of rows of the data; a row that is not there is a one, both a zero."""
    for f in range(count):
        to = np.uint64(f) * _W
        a, b = left[first + f], right[first + f]
        if a < 0:
            for j in range(_W):
                features[to + j] = 0.0
            continue
        one = np.uint64(a) * _W
        if b < 0:
            for j in range(_W):
                features[to + j] = rows[one + j]
            continue
        other = np.uint64(b) * _W
        for j in range(_W):
            features[to + j] = rows[one + j] * rows[other + j]


@_compiled("contract")
def _multiply(
    joint: Floats, features: Floats, a: Floats, components: int, first: int, count: int
) -> None:
    """``joint += a @ features``, two components and four features at a time."""
    whole = components - components % 2
    for f in range(0, count, TILE):
        i = first + f
        x = np.uint64(f) * _W
        for k in range(0, whole, 2):
            a00, a01, a02, a03 = a[k, i], a[k, i + 1], a[k, i + 2], a[k, i + 3]
            a10, a11, a12, a13 = a[k + 1, i], a[k + 1, i + 1], a[k + 1, i + 2], a[k + 1, i + 3]
            y = np.uint64(k) * _W
            for j in range(_W):
                x0, x1 = features[x + j], features[x + _W + j]
                x2, x3 = features[x + _W2 + j], features[x + _W3 + j]
                joint[y + j] += a00 * x0 + a01 * x1 + a02 * x2 + a03 * x3
                joint[y + _W + j] += a10 * x0 + a11 * x1 + a12 * x2 + a13 * x3
        for k in range(whole, components):
            a00, a01, a02, a03 = a[k, i], a[k, i + 1], a[k, i + 2], a[k, i + 3]
            y = np.uint64(k) * _W
            for j in range(_W):
                x0, x1 = features[x + j], features[x + _W + j]
                x2, x3 = features[x + _W2 + j], features[x + _W3 + j]
                joint[y + j] += a00 * x0 + a01 * x1 + a02 * x2 + a03 * x3


@_compiled("contract", "reassoc", "nsz")
def _gather(
    sums: Floats, features: Floats, joint: Floats, components: int, first: int, count: int
) -> None:
    """``sums += joint @ features'``, two components and four features at a time."""
    whole = components - components % 2
    for f in range(0, count, TILE):
        i = first + f
        x = np.uint64(f) * _W
        for k in range(0, whole, 2):
            y = np.uint64(k) * _W
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = 0.0
            for j in range(_W):
                x0, x1 = features[x + j], features[x + _W + j]
                x2, x3 = features[x + _W2 + j], features[x + _W3 + j]
                y0, y1 = joint[y + j], joint[y + _W + j]
                s00 += y0 * x0
                s01 += y0 * x1
                s02 += y0 * x2
                s03 += y0 * x3
                s10 += y1 * x0
                s11 += y1 * x1
                s12 += y1 * x2
                s13 += y1 * x3
            _add(sums, k, i, s00, s01, s02, s03)
            _add(sums, k + 1, i, s10, s11, s12, s13)
        for k in range(whole, components):
            y = np.uint64(k) * _W
            s00 = s01 = s02 = s03 = 0.0
            for j in range(_W):
                y0 = joint[y + j]
                s00 += y0 * features[x + j]
                s01 += y0 * features[x + _W + j]
                s02 += y0 * features[x + _W2 + j]
                s03 += y0 * features[x + _W3 + j]
            _add(sums, k, i, s00, s01, s02, s03)


@_compiled("contract")
def _add(sums: Floats, k: int, i: int, a: float, b: float, c: float, d: float) -> None:
    sums[k, i] += a
    sums[k, i + 1] += b
    sums[k, i + 2] += c
    sums[k, i + 3] += d


@_compiled("contract", "reassoc", "nsz")
def _normalise(
    joint: Floats,
    counts: Floats,
    weights: Floats,
    top: Floats,
    evidence: Floats,
    rows: int,
    is_weighted: bool,
) -> float:
    """Log joint ``(K, W)`` to weights of the components in place; returns the log evidence.

    Args:
        joint: The log joint.
        counts: Expected counts ``(K,)``, to be added to.
        weights: How often each row of the block counts, ``(W,)``; zero past the last one.
        top: Room for a number for each row.
        evidence: The same.
        rows: How many rows there are.
        is_weighted: Whether some row counts otherwise than once.
    """
    components = len(joint)
    for j in range(WIDTH):
        top[j] = joint[0, j]
        evidence[j] = 0.0
    for k in range(1, components):
        for j in range(WIDTH):
            top[j] = joint[k, j] if joint[k, j] > top[j] else top[j]
    for k in range(components):
        for j in range(WIDTH):
            e = _exponential(joint[k, j] - top[j])
            joint[k, j] = e
            evidence[j] += e
    total = 0.0
    if is_weighted:
        for j in range(rows):
            total += weights[j] * (top[j] + _logarithm(evidence[j]))
    else:
        for first in range(0, rows, TOGETHER):
            product = 1.0
            for j in range(first, min(first + TOGETHER, rows)):
                total += top[j]
                product *= evidence[j]
            total += _logarithm(product)
    for j in range(WIDTH):
        evidence[j] = weights[j] / evidence[j]
    for k in range(components):
        count = 0.0
        for j in range(WIDTH):
            e = joint[k, j] * evidence[j]
            joint[k, j] = e
            count += e
        counts[k] += count
    return total


@_compiled("contract")
def sweep_rows(
    data: Floats,
    weights: Floats,
    factors: Places,
    left: Floats,
    constant: Floats,
    start: int,
    stop: int,
    total: Floats,
    sums: Floats,
    counts: Floats,
) -> None:
    """Adds what some rows contribute; see ``sweep.py``.

    Args:
        data: What is held of the rows, ``(M, N)``.
        weights: How often each row counts, ``(N,)``; ``(0,)`` if each counts once.
        factors: The rows of ``data`` whose product is each feature, ``(2, F)``; -1 for none, and
            for both in the features that fill the last tile.
        left: What each feature counts for, ``(R, K, F)``.
        constant: What each component begins with, ``(R, K)``.
        start: The first row.
        stop: The row after the last.
        total: Log evidence ``(R,)``.
        sums: Sums of features ``(R, K, F)``.
        counts: Expected counts ``(R, K)``.
    """
    batch, components, width = left.shape
    is_weighted = len(weights) > 0
    rows = np.empty(len(data) * WIDTH)
    features = np.empty(min(width, BLOCK) * WIDTH)
    joint = np.empty((components, WIDTH))
    flat = joint.reshape(-1)
    top, evidence, weight = np.empty(WIDTH), np.empty(WIDTH), np.empty(WIDTH)
    for begin in range(start, stop, WIDTH):
        n = min(WIDTH, stop - begin)
        for m in range(len(data)):
            for j in range(n):
                rows[m * WIDTH + j] = data[m, begin + j]
            for j in range(n, WIDTH):
                rows[m * WIDTH + j] = 0.0
        for j in range(WIDTH):
            weight[j] = 1.0 if j < n else 0.0
        if is_weighted:
            for j in range(n):
                weight[j] = weights[begin + j]
        for r in range(batch):
            for k in range(components):
                for j in range(WIDTH):
                    joint[k, j] = constant[r, k]
            for first in range(0, width, BLOCK):
                count = min(BLOCK, width - first)
                if width > BLOCK or r == 0:
                    _form(features, rows, factors[0], factors[1], first, count)
                _multiply(flat, features, left[r], components, first, count)
            total[r] += _normalise(joint, counts[r], weight, top, evidence, n, is_weighted)
            for first in range(0, width, BLOCK):
                count = min(BLOCK, width - first)
                if width > BLOCK:
                    _form(features, rows, factors[0], factors[1], first, count)
                _gather(sums[r], features, flat, components, first, count)
