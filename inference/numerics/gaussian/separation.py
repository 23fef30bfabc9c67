"""Entries that can be eliminated in small blocks, because they are coupled through others alone."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components

__all__ = ["blocks_apart"]


LARGEST_BLOCK = 64


def blocks_apart(graph: scipy.sparse.csr_array) -> np.ndarray:
    """The block of each entry that is to be eliminated, and -1 for those to be kept, ``(count,)``.

    Entries with the same neighbours, such as the intercept and the slope of a group, are one block.
    Of the blocks the larger side is taken where they have two, as crossed effects do; else, one
    after another, those with the fewest neighbours.

    Args:
        graph: Symmetric, with its diagonal: the pairs that are coupled.
    """
    twin = _twins(graph)
    sizes = np.bincount(twin)
    rows, columns = graph.nonzero()
    keep = twin[rows] != twin[columns]
    edges = (twin[rows[keep]], twin[columns[keep]])
    shape = (len(sizes), len(sizes))
    quotient = scipy.sparse.csr_array((np.ones(keep.sum(), dtype=np.int8), edges), shape=shape)
    quotient.sum_duplicates()
    candidates = [_fewest_neighbours(quotient, sizes)]
    side = _larger_side(quotient, sizes)
    if side is not None:
        candidates.append(side & (sizes <= LARGEST_BLOCK))
    chosen = max(candidates, key=lambda each: int(sizes[each].sum()))
    number = np.where(chosen, np.cumsum(chosen) - 1, -1)
    blocks: np.ndarray = number[twin]
    return blocks


def _twins(graph: scipy.sparse.csr_array) -> np.ndarray:
    """A number for each entry, the same for entries with the same neighbours and each other."""
    marks = np.random.default_rng(0).integers(1, 2**62, graph.shape[0], dtype=np.int64)
    sums = np.add.reduceat(marks[graph.indices], graph.indptr[:-1])  # modulo 2^64
    _, number = np.unique(sums, return_inverse=True)
    return number


def _fewest_neighbours(quotient: scipy.sparse.csr_array, sizes: np.ndarray) -> np.ndarray:
    """Blocks no two of which are neighbours: greedily those with the fewest neighbours first."""
    starts, neighbours = quotient.indptr, quotient.indices
    degrees = quotient @ sizes
    is_free = sizes <= LARGEST_BLOCK
    chosen = np.zeros(len(sizes), dtype=bool)
    for block in np.argsort(degrees, kind="stable"):
        if is_free[block]:
            chosen[block] = True
            is_free[neighbours[starts[block] : starts[block + 1]]] = False
    return chosen


def _larger_side(quotient: scipy.sparse.csr_array, sizes: np.ndarray) -> np.ndarray | None:
    """The larger side of each component, if all couplings run between two sides."""
    count, labels = connected_components(quotient, directed=False)
    rows, columns = quotient.nonzero()
    root = len(sizes)  # a root that is coupled to one block of each component
    starts = np.unique(labels, return_index=True)[1]
    ends = (np.concatenate([rows, np.full(count, root)]), np.concatenate([columns, starts]))
    tree = scipy.sparse.csr_array((np.ones(len(ends[0])), ends), shape=(root + 1, root + 1))
    order, before = breadth_first_order(tree, root, directed=True)
    side = np.zeros(root + 1, dtype=bool)
    for block in order[1:]:
        side[block] = not side[before[block]]
    side = side[:root]
    if bool((side[rows] == side[columns]).any()):
        return None
    ones = np.bincount(labels[side], sizes[side], minlength=count)
    zeros = np.bincount(labels[~side], sizes[~side], minlength=count)
    larger: np.ndarray = side == (ones >= zeros)[labels]
    return larger
