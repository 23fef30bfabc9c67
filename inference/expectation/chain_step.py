"""A chain inside a contraction: factors with named dims in, the log evidence of each chain out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation.chain import Potentials, chain_log_evidence
from ember.inference.expectation.chain_blocks import by_group
from ember.inference.shapes import prepend_dims

__all__ = ["Chain", "ChainStep"]

View = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Chain:
    """Which dims and factors make a hidden Markov chain.

    Attributes:
        state: The dim of a step's state.
        previous: The dim of the state one step before.
        time: The dim of steps.
        initial: The index of the factor of the first state.
        move: The index of the factor of a state given the one before.
        steps: The number ``T`` of emitting steps.
        at_once: Whether the first state emits; otherwise a transition leads to the first that
            does.
        lengths: How many steps each chain has, and the dims of that tensor; None if all have ``T``.
    """

    state: str
    previous: str
    time: str
    initial: int
    move: int
    steps: int
    at_once: bool
    lengths: tuple[tuple[str, ...], Tensor] | None = None

    @property
    def symbols(self) -> frozenset[str]:
        """The dims that summing over the chain removes, time aside."""
        return frozenset({self.state, self.previous})


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
        emission = seen[0].new_zeros(())
        for tensor in seen[1 + count :]:
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
        return Potentials(initial, move, emission.contiguous(), lengths)

    def __call__(self, seen: Sequence[Tensor], maximum: bool) -> Tensor:
        """The log evidence of each chain, over ``rest``; of its best path with ``maximum``."""
        chains = self.potentials(seen, steps_only=maximum)
        return chain_log_evidence(chains, maximum).reshape(self.sizes)
