r"""SQUAREM: a longer step along what two EM steps have in common, kept only where it helps.

Plain EM moves along ``theta -> M(theta)``. SQUAREM takes two EM steps, ``r = M(theta) - theta`` and
``v = M(M(theta)) - M(theta) - r``, and jumps to

.. math:: \theta' = \theta + 2 a r + a^2 v, \qquad a = \|r\| / \|v\| \ge 1,

in unconstrained coordinates. ``a = 1`` is the second EM step itself. The jump is kept only if
the objective there is at least that of the first EM step; otherwise the second EM step is taken
and the largest ``a`` allowed shrinks. The objective therefore never falls.

Reference: Varadhan & Roland (2008), *Simple and globally convergent methods for accelerating the
convergence of any EM algorithm*, Scandinavian Journal of Statistics 35, 335-353.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.inference.iteration.acceleration.em_map import EMMap, State
from ember.inference.iteration.trajectory import Movement
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.statistics import Statistics

__all__ = ["Squarem", "bound_after", "extrapolated"]


GROWTH = 4.0  # of the bound on the length of a jump
Steps = tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class SquaremState(State):
    """With the largest length that a jump may have."""

    largest: Tensor = field(default_factory=lambda: torch.ones((), dtype=torch.float64))


class Squarem:
    """SQUAREM's third scheme, with an adaptive bound on the step and a monotone guard."""

    def init(self, current: Statistics) -> SquaremState:
        """The state where an iteration begins."""
        return SquaremState(current)

    def step(self, em: EMMap, state: SquaremState) -> tuple[SquaremState, Movement]:
        """The state after one iteration, and the EM movement seen in it."""
        current = state.current
        first = em.e_step(em.m_step(current))
        second = em.m_step(first)
        movement = Movement.over(
            first.params,
            second,
            first.objective - current.objective,
            Coordinates.distance(current.params, first.params),
        )
        steps = (current.params, first.params, second)
        length, target = extrapolated(em.coordinates, steps, state.largest)
        jumps = bool(length != 1.0)
        landed = em.tried(em.coordinates.unflatten(target)) if jumps else None
        # Also for NaN, and for parameters that lead nowhere.
        worse = jumps and not (landed is not None and landed.objective >= first.objective)
        after = em.e_step(second) if landed is None or worse else landed
        refused = torch.tensor(worse)
        largest = bound_after(state.largest, length, ~refused, refused)
        return SquaremState(after, movement.last, largest), movement


def extrapolated(coordinates: Coordinates, steps: Steps, largest: Tensor) -> tuple[Tensor, Tensor]:
    """The length ``a`` of a jump and the coordinates there, for any leading dims.

    Coordinates on the boundary cannot be extrapolated; they take the second EM step.

    Args:
        coordinates: The free reals of the parameters.
        steps: Where the jump starts, and the parameters after one EM step and after two.
        largest: The bound on the length, of the leading dims' shape.
    """
    x0, x1, x2 = (coordinates.flatten(params) for params in steps)
    r, v = x1 - x0, x2 - 2.0 * x1 + x0
    usable = torch.isfinite(r) & torch.isfinite(v) & ~coordinates.at_rest(x2)
    r, v = torch.where(usable, r, 0.0), torch.where(usable, v, 0.0)
    bend = v.norm(dim=-1)
    length = torch.where(bend > 0.0, r.norm(dim=-1) / bend, 1.0)
    length = torch.minimum(length.clamp_min(1.0), largest)
    a = length.unsqueeze(-1)
    return length, torch.where(usable, x0 + 2.0 * a * r + a**2 * v, x2)


def bound_after(largest: Tensor, length: Tensor, kept: Tensor, refused: Tensor) -> Tensor:
    """The largest length allowed from now on: it grows where it held a good jump back.

    Args:
        largest: The bound so far, of any shape.
        length: Of the jump.
        kept: Whether where it led to was kept.
        refused: Whether a jump was tried in vain.
    """
    grown = torch.where(kept & (length == largest), GROWTH * largest, largest)
    return torch.where(refused, (largest / GROWTH).clamp_min(1.0), grown)
