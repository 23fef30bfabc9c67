"""In which order the entries of a sparse matrix are eliminated: many at once, in rounds.

Entries that are not coupled can be eliminated together. Each round takes such entries among those
with the fewest neighbours, and couples their neighbours to each other. When what is left is small
or mostly coupled, it is taken as dense.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse

__all__ = ["Elimination", "elimination_rounds"]


SMALL = 200  # entries that are left as dense
FULL = 0.3  # share of coupled pairs from which on the rest is
MOST = 100_000_000  # products of all rounds, beyond which the rest is
LOWEST = 0.25  # of the entries may have few neighbours enough to be taken


@dataclass(frozen=True, eq=False)
class Elimination:
    """The order, and what each entry is coupled to when its turn comes.

    Attributes:
        rounds: The entries of each round, with the number of their neighbours and these one after
            another.
        rest: Entries that are left, ascending.
    """

    rounds: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    rest: np.ndarray

    @property
    def products(self) -> float:
        """How many products the elimination takes, without that of the rest."""
        return float(sum((counts.astype(float) ** 2).sum() for _, counts, _ in self.rounds))


def elimination_rounds(graph: scipy.sparse.csr_array) -> Elimination:
    """The order for a symmetric graph that contains its diagonal.

    Reference: George & Liu (1989), *The evolution of the minimum degree ordering algorithm*,
    SIAM Review 31, 1-19.
    """
    generator = np.random.default_rng(0)
    entries = np.arange(graph.shape[0])
    left = graph.astype(bool)
    rounds = []
    products = 0.0
    while len(entries) > SMALL and left.nnz < FULL * len(entries) ** 2:
        chosen = _independent(left, generator)
        rows = left[np.flatnonzero(chosen)][:, np.flatnonzero(~chosen)]
        counts = np.diff(rows.indptr)
        products += float((counts.astype(float) ** 2).sum())
        if products > MOST:
            break
        rounds.append((entries[chosen], counts, entries[~chosen][rows.indices]))
        kept = np.flatnonzero(~chosen)
        left = left[kept][:, kept] + (rows.T @ rows)
        left.sort_indices()
        entries = entries[kept]
    return Elimination(rounds, entries)


def _independent(graph: scipy.sparse.csr_array, generator: np.random.Generator) -> np.ndarray:
    """Entries with few neighbours, none of which is a neighbour of another."""
    degrees = np.diff(graph.indptr)
    most = max(2 * int(degrees.min()), np.quantile(degrees, LOWEST))
    key = degrees + generator.random(len(degrees))
    key[degrees > most] = np.inf
    # Every row contains the entry itself.
    lowest = np.minimum.reduceat(key[graph.indices], graph.indptr[:-1])
    chosen: np.ndarray = (key == lowest) & np.isfinite(key)
    return chosen
