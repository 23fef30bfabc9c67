"""The algorithm that suits a pattern."""

from __future__ import annotations

import scipy.sparse
import torch
from scipy.sparse.csgraph import connected_components

from ember.inference.numerics.gaussian.block_diagonal import BlockDiagonalSystem
from ember.inference.numerics.gaussian.dense import DenseSystem
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.system import GaussianSystem

__all__ = ["GaussianSystem", "gaussian_system"]


LARGEST_BLOCK = 64  # entries of a component, all of which are then taken in one block


def gaussian_system(pattern: Pattern) -> GaussianSystem:
    """The fastest algorithm for matrices of this pattern.

    Example:
        >>> import torch
        >>> chain = Pattern.of(4, torch.tensor([1, 2, 3]), torch.tensor([0, 1, 2]))
        >>> gaussian_system(chain).description
        '1 block of 4 entries'
    """
    rows, columns = pattern.rows.cpu().numpy(), pattern.columns.cpu().numpy()
    shape = (pattern.count, pattern.count)
    graph = scipy.sparse.csr_array((rows == rows, (rows, columns)), shape=shape)
    _, labels = connected_components(graph, directed=False)
    components = torch.from_numpy(labels).to(pattern.rows)
    if int(components.bincount().max()) <= LARGEST_BLOCK:
        return BlockDiagonalSystem(pattern, components)
    return DenseSystem(pattern)
