"""Entries in levels, each coupled only to itself and to the levels before and after it."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import breadth_first_order

__all__ = ["levels_of"]


def levels_of(graph: scipy.sparse.csr_array, labels: np.ndarray) -> np.ndarray:
    """The level of each entry, ``(count,)``; those of each component follow one another.

    The levels of a component are the distances from a set of entries at one of its ends, which is
    what is most distant from another end: in a chain all states of the last step. This is the idea
    of Cuthill and McKee's ordering.

    Args:
        graph: Symmetric: the pairs that are coupled.
        labels: The component of each entry, numbered from 0.

    Reference: George & Liu (1981), *Computer Solution of Large Sparse Positive Definite Systems*,
    Prentice-Hall, chapter 4.
    """
    degrees = np.diff(graph.indptr)
    order = np.lexsort((degrees, labels))
    ends = order[np.unique(labels[order], return_index=True)[1]]
    best, widest = np.zeros(0), np.inf
    for _ in range(3):
        distance = _distances(graph, ends)
        last = np.zeros(labels.max() + 1, dtype=distance.dtype)
        np.maximum.at(last, labels, distance)
        starts = np.cumsum(last + 1) - (last + 1)
        level = starts[labels] + distance
        width = np.bincount(level).max()
        if width < widest:
            best, widest = level, width
        ends = np.flatnonzero(distance == last[labels])
    return best


def _distances(graph: scipy.sparse.csr_array, ends: np.ndarray) -> np.ndarray:
    """The number of steps from each entry to the nearest of ``ends``."""
    root = graph.shape[0]
    rows = np.append(graph.indptr, graph.nnz + len(ends))
    columns = np.concatenate([graph.indices, ends])
    tree = scipy.sparse.csr_array(
        (np.ones(len(columns), dtype=np.int8), columns, rows), shape=(root + 1, root + 1)
    )
    _, before = breadth_first_order(tree, root, directed=True)
    before[root] = root
    distance = (before != np.arange(root + 1)).astype(np.int64)
    # Each entry learns the distance to an ancestor that is twice as far away as the one before.
    ancestor = before.astype(np.int64)
    while (ancestor != root).any():
        distance += distance[ancestor]
        ancestor = ancestor[ancestor]
    steps: np.ndarray = distance[:root] - 1
    return steps
