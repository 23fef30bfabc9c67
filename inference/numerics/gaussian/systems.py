"""The algorithm that suits a pattern: the one whose operations take the least time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.csgraph import connected_components

from ember.inference.numerics.gaussian.block_diagonal import BlockDiagonalSystem
from ember.inference.numerics.gaussian.chain import ChainSystem
from ember.inference.numerics.gaussian.dense import DenseSystem
from ember.inference.numerics.gaussian.levels import levels_of
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.rounds import elimination_rounds
from ember.inference.numerics.gaussian.schur import SchurSystem
from ember.inference.numerics.gaussian.separation import blocks_apart
from ember.inference.numerics.gaussian.sparse import SparseSystem
from ember.inference.numerics.gaussian.system import GaussianSystem

__all__ = ["GaussianSystem", "gaussian_system"]


LARGEST_BLOCK = 64  # entries of a component, all of which are then taken in one block
SHARE = 0.01  # of the entries, the least that is expected to be left after an elimination
QUICK = 0.05  # seconds below which no ordering for a sparse factorisation is sought
# Seconds of a value and its gradient, measured on one core:
DENSE = 1e-10  # of the cube of the rows of a matrix, for its factor and inverse
MATRIX_PRODUCT = 1.5e-10  # of a product in a large matrix product
GATHERED_PRODUCT = 1.5e-8  # of a product whose terms are gathered, and whose result is scattered
STEP, STEP_PRODUCT = 1.5e-7, 2e-8  # of a step of a chain, and of the cube of its entries
ROUND = 5e-4  # of a round in which a chain or a sparse matrix is eliminated


def gaussian_system(pattern: Pattern) -> GaussianSystem:
    """The fastest algorithm for matrices of this pattern.

    Blocks, where all components are small. Else what is estimated to take the least time: a chain
    of levels, a Schur complement, blocks, a dense factorisation or a sparse one.

    Example:
        >>> import torch
        >>> steps = torch.arange(1, 1000)
        >>> gaussian_system(Pattern.of(1000, steps, steps - 1)).description
        'a chain of 1,000 steps of 1 entry'
    """
    graph = pattern.graph()
    _, labels = connected_components(graph, directed=False)
    components, sizes = _like(pattern, labels), np.bincount(labels)
    if sizes.max() <= LARGEST_BLOCK:
        return _timed(DENSE * _cubes(sizes), BlockDiagonalSystem(pattern, components))
    levels = levels_of(graph, labels)
    chain_time = _chain_time(levels)
    if chain_time < DENSE * (SHARE * pattern.count) ** 3:
        return _timed(chain_time, ChainSystem(pattern, components, _like(pattern, levels)))
    blocks = blocks_apart(graph)
    whole = BlockDiagonalSystem if len(sizes) > 1 else _dense
    choices: list[tuple[float, Callable[[], GaussianSystem]]] = [
        (DENSE * _cubes(sizes), lambda: whole(pattern, components)),
        (chain_time, lambda: ChainSystem(pattern, components, _like(pattern, levels))),
        (_schur_time(graph, blocks), lambda: _schur(pattern, components, blocks)),
    ]
    least = min(time for time, _ in choices)
    products = float(pattern.count) * (len(pattern) / pattern.count) ** 2  # there are no fewer
    if least > max(QUICK, GATHERED_PRODUCT * products):
        order = elimination_rounds(graph)
        time = ROUND * len(order.rounds) + GATHERED_PRODUCT * order.products
        time += DENSE * float(len(order.rest)) ** 3
        choices.append((time, lambda: SparseSystem(pattern, components, order)))
    seconds, build = min(choices, key=lambda choice: choice[0])
    return _timed(seconds, build())


def _timed(seconds: float, system: GaussianSystem) -> GaussianSystem:
    system.seconds = seconds
    return system


def _dense(pattern: Pattern, components: torch.Tensor) -> GaussianSystem:
    return DenseSystem(pattern)


def _schur(pattern: Pattern, components: torch.Tensor, blocks: np.ndarray) -> GaussianSystem:
    return SchurSystem(pattern, components, _like(pattern, blocks))


def _like(pattern: Pattern, numbers: np.ndarray) -> torch.Tensor:
    """As integers where the pattern is."""
    return torch.from_numpy(numbers).to(pattern.rows)


def _cubes(sizes: np.ndarray) -> float:
    return float((sizes.astype(float) ** 3).sum())


def _chain_time(levels: np.ndarray) -> float:
    sizes = np.bincount(levels)
    steps = len(sizes) * (STEP + STEP_PRODUCT * float(sizes.max()) ** 3)
    return steps + ROUND * math.log2(len(sizes) + 1)


def _schur_time(graph: scipy.sparse.csr_array, blocks: np.ndarray) -> float:
    is_kept = blocks < 0
    kept = float(is_kept.sum())
    neighbours = (graph @ is_kept.astype(float))[~is_kept]
    gathered = GATHERED_PRODUCT * float((neighbours**2).sum())
    multiplied = MATRIX_PRODUCT * len(neighbours) * kept**2
    return DENSE * kept**3 + min(gathered, multiplied)
