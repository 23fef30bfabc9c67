"""A hidden Markov chain among the factors: which of them start it and which move it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Chain"]


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
