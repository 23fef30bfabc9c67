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
    """How many iterations were made, and the state of the scheme whose turn it was."""

    iteration: int = 0
    inner: State | None = None


@dataclass(frozen=True)
class Alternating:
    """Schemes that take turns, each beginning anew at its turn.

    SQUAREM is dependable; where it has not converged after a while, L-BFGS may. Long runs are
    those along flat ridges and towards boundaries, where L-BFGS, which learns the curvature, needs
    a fraction of the passes.
    """

    schemes: Sequence[Scheme[Any]]
    turn: int = 40

    def init(self, current: Statistics) -> AlternatingState:
        """The state where an iteration begins."""
        return AlternatingState(current)

    def step(self, em: EMMap, state: AlternatingState) -> tuple[AlternatingState, Movement]:
        """The state after one iteration, and the EM movement seen in it."""
        turn, place = divmod(state.iteration, self.turn)
        scheme = self.schemes[turn % len(self.schemes)]
        inner, movement = scheme.step(em, scheme.init(state.current) if place == 0 else state.inner)
        return AlternatingState(inner.current, inner.length, state.iteration + 1, inner), movement
