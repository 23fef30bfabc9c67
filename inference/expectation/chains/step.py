"""A chain inside a contraction: factors with named dims in, the log evidence of each chain out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation.chains.blocks import Potentials, by_group
from ember.inference.expectation.chains.evidence import chain_log_evidence
from ember.inference.factors.chain import Chain
from ember.inference.numerics.shapes import prepend_dims

__all__ = ["ChainStep"]


View = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class ChainStep:
    """Sums a chain out; ``rest`` are the dims that remain, of the given sizes.

    Each input is a slot and how to see it: the first state over ``(*rest, K)``, moves (and data
    that depend on two neighbouring states) over ``(time, *rest, K, K)`` and emissions over
    ``(time, *rest, K)``.
    """

    chain: Chain
    rest: tuple[str, ...]
    sizes: tuple[int, ...]
    states: int
    initial: tuple[int, View]
    moves: tuple[tuple[int, View], ...]
    emissions: tuple[tuple[int, View], ...]
    lengths: Tensor | None

    def potentials(self, seen: Sequence[Tensor], steps_only: bool = False) -> Potentials:
        """The inputs, viewed, in the order of initial, moves and emissions, as one batch.

        With ``steps_only`` a first state that emits nothing is summed out.
        """
        chain, states = self.chain, self.states
        rows = torch.Size(self.sizes).numel()
        initial = seen[0].expand(*self.sizes, states).reshape(rows, states)
        count = len(self.moves)
        move = seen[1]
        for tensor in seen[2 : 1 + count]:
            move = move + tensor
        move = prepend_dims(move, 3 + len(self.sizes))
        # Rows are ordered by their first dim first: those that differ only in dims after the last
        # over which the move varies lie next to each other, and share a matrix.
        varies = [i for i, size in enumerate(move.shape[1:-2]) if size > 1]
        own = self.sizes[: varies[-1] + 1 if varies else 0]
        shared = (1,) * (len(self.sizes) - len(own))
        move = move.expand(-1, *own, *shared, states, states)
        move = move.reshape(len(move), -1, states, states)
        emission, *others = seen[1 + count :] or [seen[0].new_zeros(())]
        for tensor in others:
            emission = emission + tensor
        emission = emission.expand(chain.steps, *self.sizes, states)
        emission = emission.reshape(chain.steps, rows, states)
        lengths = self.lengths
        if steps_only and not chain.at_once:
            apart = by_group(initial, move.shape[1]).unsqueeze(-1)
            initial = torch.logsumexp(apart + move[0].unsqueeze(1), -2).reshape(rows, states)
        if chain.at_once or steps_only:
            move = move[1:] if len(move) > 1 else move
        else:
            emission = torch.cat([emission.new_zeros(1, rows, states), emission])
            lengths = None if lengths is None else torch.where(lengths > 0, lengths + 1, lengths)
        return Potentials(initial, move, emission, lengths)

    def __call__(self, seen: Sequence[Tensor], maximum: bool) -> Tensor:
        """The log evidence of each chain, over ``rest``; of its best path with ``maximum``."""
        chains = self.potentials(seen, steps_only=maximum)
        return chain_log_evidence(chains, maximum).reshape(self.sizes)
