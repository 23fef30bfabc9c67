"""Rows of parameters when every parameter has a leading dim: several values at once.

Row ``i`` of a source of a table has a copy for each value, and those of a source lie next to each
other, value by value.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Shapes", "batched_rows"]

Shapes = Mapping[str, torch.Size]  # of all parameters, without the leading dim


def batched_rows(index: Tensor, sizes: Sequence[int], count: int) -> Tensor:
    """Where the rows of a table stand for each value, ``(R, *index.shape)``.

    Negative rows are constants, which all values share, as are all rows of a table of constants.

    Args:
        index: Rows of the table for one value.
        sizes: How many rows each source of the table has; empty for constants alone.
        count: The number ``R`` of values.
    """
    every = index.expand(count, *index.shape)
    if not sizes:
        return every
    size = torch.tensor(sizes, device=index.device)
    ends = size.cumsum(0)
    source = torch.searchsorted(ends, index.clamp_min(0).contiguous(), right=True)
    start = (ends - size)[source]
    value = torch.arange(count, device=index.device).reshape(-1, *(1,) * index.dim())
    moved = count * start + value * size[source] + (index - start)
    return torch.where(every < 0, every, moved)
