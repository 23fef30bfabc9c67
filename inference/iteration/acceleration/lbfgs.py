r"""L-BFGS on the objective, with the gradient that an E-step gives by Fisher's identity.

By Fisher's identity the gradient of the objective at ``theta`` is that of the expected log joint
with the statistics held fixed, so a value and a gradient cost one pass over the data and no
differentiation through it.

Reference: Lange (1995), *A gradient algorithm locally equivalent to the EM algorithm*, Journal of
the Royal Statistical Society B 57, 425-437.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.iteration.acceleration.em_map import EMMap, State, is_finite
from ember.inference.iteration.trajectory import Movement
from ember.inference.maximisation.objective import score
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.statistics import Statistics

__all__ = ["Lbfgs", "LbfgsState", "ascent_direction", "remembered"]


WARM_UP = 5  # EM steps before the first search
MEMORY = 10  # pairs
TRIALS, SHORTENING = 3, 0.25  # of a step
ARMIJO = 1e-4  # share of the rise that the slope promises
CURVED = 1e-12  # a pair must show curvature, beyond rounding

Pair = tuple[Tensor, Tensor]  # a step, and by how much the gradient fell along it


@dataclass(frozen=True)
class LbfgsState(State):
    """With the pairs that tell of the curvature, and the last point and gradient."""

    iteration: int = 0
    pairs: tuple[Pair, ...] = ()
    last: tuple[Tensor, Tensor] | None = None


class Lbfgs:
    """A few EM steps, then L-BFGS on the objective itself, with EM as the fallback.

    A step must raise the objective; one that does not, shortened a few times, is replaced by an EM
    step and the memory is cleared.
    """

    def init(self, current: Statistics) -> LbfgsState:
        """The state where an iteration begins."""
        return LbfgsState(current)

    def step(self, em: EMMap, state: LbfgsState) -> tuple[LbfgsState, Movement]:
        """The state after one iteration, and its movement."""
        current, iteration = state.current, state.iteration + 1
        point, gradient = em.coordinates.flatten(current.params), score(current, em.coordinates)
        state = remembered(state, em.coordinates, point, gradient)
        after, pairs = None, state.pairs
        if iteration > WARM_UP and pairs:
            after = _searched(em, current, (point, gradient), ascent_direction(pairs, gradient))
        if after is None:
            # The EM step that replaces a failed search teaches the curvature afresh.
            pairs = pairs if iteration <= WARM_UP else ()
            after = em.e_step(em.m_step(current))
        gain = after.objective - current.objective
        movement = Movement.over(current.params, after.params, gain, state.length)
        return LbfgsState(after, movement.last, iteration, pairs, state.last), movement


def remembered(
    state: LbfgsState, coordinates: Coordinates, point: Tensor, gradient: Tensor
) -> LbfgsState:
    """The state with the change of the gradient over the last step, where it shows curvature."""
    pairs = state.pairs
    if state.last is not None:
        s, y = point - state.last[0], state.last[1] - gradient
        s = torch.where(coordinates.at_rest(point) | ~torch.isfinite(s), 0.0, s)
        finite = bool(torch.isfinite(s).all() and torch.isfinite(y).all())
        sizeable = float(y @ y) > 0.0  # a curvature may be too small for its square
        if finite and sizeable and float(s @ y) > CURVED * float(s.norm() * y.norm()):
            pairs = (*pairs, (s, y))[-MEMORY:]
    return dataclasses.replace(state, pairs=pairs, last=(point, gradient))


def ascent_direction(pairs: Sequence[Pair], gradient: Tensor) -> Tensor:
    """The two-loop recursion of L-BFGS, for ascent."""
    q, alphas = gradient.clone(), []
    for s, y in reversed(pairs):
        alpha = float(s @ q) / float(s @ y)
        alphas.append(alpha)
        q -= alpha * y
    if pairs:
        s, y = pairs[-1]
        q *= float(s @ y) / float(y @ y)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - float(y @ q) / float(s @ y)) * s
    return q


def _searched(
    em: EMMap, current: Statistics, at: tuple[Tensor, Tensor], direction: Tensor
) -> Statistics | None:
    """The objective raised along the direction, from a point with its gradient; or None."""
    point, gradient = at
    rests = em.coordinates.at_rest(point)
    if not bool((point.isfinite() | rests).all() and torch.isfinite(gradient).all()):
        return None
    direction = torch.where(rests, 0.0, direction)  # coordinates at rest stay as they are
    slope = float(direction @ gradient)
    if slope <= 0.0:
        return None
    length = 1.0
    for _ in range(TRIALS):
        params = em.coordinates.unflatten(point + length * direction)
        if is_finite(params):
            after = em.e_step(params)
            if after.objective >= current.objective + ARMIJO * length * slope:
                return after
        length *= SHORTENING
    return None
