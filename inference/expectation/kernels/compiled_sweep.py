"""The sweep of ``sweep.py`` by compiled loops, in as many threads as torch has.

Each thread takes a range of rows and adds up on its own; the parts are then added in their order,
so that the result does not depend on which thread was done first.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ember.inference.expectation.kernels.sweep import Rows, Swept, by_parts, work_of
from ember.inference.numerics.compiled import use_compiled

__all__ = ["compiled_sweep", "is_worth_compiled"]


WORTH = 4_000_000  # products of a sweep; of fewer, a whole fit is done while numba is loaded
ALONE = 50_000  # products that one thread does while another is woken


def is_worth_compiled(rows: Rows, left: Tensor) -> bool:
    """Whether there are compiled loops for such rows, and enough of them to be worth loading."""
    if work_of(len(rows), left.shape) < WORTH or not use_compiled():
        return False
    return left.dtype == torch.float64 and left.device.type == "cpu"


def compiled_sweep(rows: Rows, left: Tensor, constant: Tensor) -> Swept:
    """What ``sweep`` gives for the same arguments, to rounding."""
    from ember.inference.expectation.kernels.loops import TILE, sweep_rows

    batch, components, features = left.shape
    padded = -(-features // TILE) * TILE
    filled = torch.nn.functional.pad(left, (0, padded - features)).numpy()
    start = constant.contiguous().numpy()
    factors = np.full((2, padded), -1)
    factors[:, :features] = rows.factors.numpy()
    data = rows.data.numpy()
    weights = np.empty(0) if rows.weights is None else rows.weights.numpy()

    def part(bounds: tuple[int, int]) -> Swept:
        total, counts = np.zeros(batch), np.zeros((batch, components))
        sums = np.zeros((batch, components, padded))
        sweep_rows(data, weights, factors, filled, start, *bounds, total, sums, counts)
        return torch.from_numpy(total), torch.from_numpy(sums), torch.from_numpy(counts)

    work = work_of(len(rows), left.shape)
    total, sums, counts = by_parts(part, len(rows), work, ALONE, left.device)
    if rows.base is not None:
        total += (rows.base if rows.weights is None else rows.base * rows.weights).sum()
    return total, sums[..., :features], counts
