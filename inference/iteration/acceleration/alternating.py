"""Several schemes that take turns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ember.inference.iteration.acceleration.em_map import EMMap, Scheme, State
from ember.inference.iteration.trajectory import Movement
from ember.inference.plan.statistics import Statistics

__all__ = ["Alternating"]


@dataclass(frozen=True)
class AlternatingState(State):
    """How many iterations were made or left out, and the state of the scheme whose turn it was."""

    iteration: int = 0
    inner: State | None = None

    @property
    def is_quick(self) -> bool:
        """Whether the iterations of the scheme whose turn it was are."""
        return self.inner is None or self.inner.is_quick


@dataclass(frozen=True)
class Alternating:
    """Schemes that take turns, each beginning anew at its turn.

    SQUAREM is dependable, and brings a start into the basin that EM itself would lead to; where it
    has not converged after a while, L-BFGS may. Long runs are those along flat ridges and towards
    boundaries, where L-BFGS, which learns the curvature, needs a fraction of the passes.

    A scheme that is stuck leaves the rest of its turn to the next.

    Attributes:
        schemes: The schemes, whose turn it is one after the other.
        turns: How many iterations the first turns have; all further ones are as long as the last.
    """

    schemes: Sequence[Scheme[Any]]
    turns: Sequence[int] = (40,)

    def init(self, current: Statistics) -> AlternatingState:
        """The state where an iteration begins."""
        return AlternatingState(current)

    def step(self, em: EMMap, state: AlternatingState) -> tuple[AlternatingState, Movement]:
        """The state after one iteration, and the EM movement seen in it."""
        turn, place = self._turn(state.iteration)
        scheme = self.schemes[turn % len(self.schemes)]
        inner, movement = scheme.step(em, scheme.init(state.current) if place == 0 else state.inner)
        length = self.turns[min(turn, len(self.turns) - 1)]
        taken = length - place if inner.is_stuck else 1
        return AlternatingState(
            inner.current, inner.length, state.iteration + taken, inner
        ), movement

    def _turn(self, iteration: int) -> tuple[int, int]:
        """The number of the turn that an iteration belongs to, and its place there."""
        for turn, length in enumerate(self.turns):
            if iteration < length:
                return turn, iteration
            iteration -= length
        further, place = divmod(iteration, self.turns[-1])
        return len(self.turns) + further, place
