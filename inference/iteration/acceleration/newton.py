r"""Newton's method on the objective, as far as it can be trusted, and EM's own step further on.

Where what the latents hide has a closed form, so has the observed information :math:`I`, that of
the complete data :math:`B` less what is missing. In units of :math:`B` the eigenvalues
:math:`\lambda_i` of :math:`I` are the rates at which EM moves: 1 where nothing is missing, near 0
along a ridge, negative where the objective is curved upwards. A step takes each direction

.. math:: \frac{g_i}{\max(|\lambda_i|, \mu)},

with the slope :math:`g_i`: it is Newton's where EM is slow no longer than at the rate :math:`\mu`,
and uphill in any case. At :math:`\mu = 1` it is as long as EM's; where a step does not raise the
objective as its slope promises, :math:`\mu` grows, and where it does it falls.

References:
    Louis (1982), *Finding the observed information matrix when using the EM algorithm*, JRSS B 44,
    226-233.
    Marquardt (1963), *An algorithm for least-squares estimation of nonlinear parameters*, Journal
    of the Society for Industrial and Applied Mathematics 11, 431-441.
"""

from dataclasses import dataclass

from ember.inference.iteration.acceleration.em_map import EMMap, State
from ember.inference.iteration.trajectory import Movement
from ember.inference.maximisation.information import Information
from ember.inference.plan.statistics import Statistics

__all__ = ["Newton"]


BEGIN, LEAST = 1e-3, 1e-9  # of the least rate that is trusted: at first, and ever
TRIALS = 5  # of a step
GROWTH, DECAY = 8.0, 0.1  # of the least rate
POOR, GOOD = 0.25, 0.75  # shares of the rise that is promised
ARMIJO = 1e-4  # share of it that is asked for
NOISE = 1e-14  # of the objective, relative: what a step must promise
ROUNDING = 1e-13  # of it
STUCK = 2  # searches in a row that fail, where another scheme goes on


@dataclass(frozen=True)
class NewtonState(State):
    """With the least rate that is trusted, and the searches that failed, one after the other."""

    least: float = BEGIN
    failures: int = 0

    @property
    def is_stuck(self) -> bool:
        """Whether one search after the other has failed."""
        return self.failures >= STUCK

    @property
    def is_quick(self) -> bool:
        """An iteration's time is that of its derivatives."""
        return False


class Newton:
    """Newton's steps, with EM as the fallback, for maps that know the missing information."""

    def init(self, current: Statistics) -> NewtonState:
        """The state where an iteration begins."""
        return NewtonState(current)

    def step(self, em: EMMap, state: NewtonState) -> tuple[NewtonState, Movement]:
        """The state after one iteration, and its movement."""
        current, failures = state.current, 0
        after, least = _searched(em, current, state.least)
        if after is current:
            return NewtonState(current, state.length, least), Movement(state.length, 0.0, 0.0)
        if after is None:
            failures, least = state.failures + 1, BEGIN
            after = em.e_step(em.m_step(current))
        gain = after.objective - current.objective
        movement = Movement.over(current.params, after.params, gain, state.length)
        return NewtonState(after, movement.last, least, failures), movement


def _searched(em: EMMap, current: Statistics, least: float) -> tuple[Statistics | None, float]:
    """The objective raised as far as it can be trusted, and the least rate to trust next.

    None where it cannot be raised so, and itself where the step promises nothing.
    """
    found, size = _information(em, current), 1.0 + abs(current.objective)
    if found is None:
        return None, least
    for _ in range(TRIALS):
        direction = found.ascent(least)
        slope = 0.0 if direction is None else float(direction @ found.gradient)
        if direction is None or not slope >= 0.0:
            break
        if slope <= NOISE * size:
            return current, least
        after = em.tried(em.coordinates.unflatten(found.point + direction))
        if after is not None:
            share = 2.0 * (after.objective - current.objective + ROUNDING * size) / slope
            if share >= ARMIJO:
                trusted = DECAY if share > GOOD else GROWTH if share < POOR else 1.0
                return after, min(max(least * trusted, LEAST), 1.0)
        least *= GROWTH
    return None, least


def _information(em: EMMap, current: Statistics) -> Information | None:
    if em.missing is None:
        return None
    try:
        return Information.with_missing(em.coordinates, current, em.missing)
    except RuntimeError:  # an operation that cannot be differentiated twice
        return None
