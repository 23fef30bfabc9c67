r"""Newton's method on the objective, with the information of Louis (1982).

Where each unit's latents have weights at nodes, the observed information is that of the complete
data less what is missing,

.. math::

    I = -\nabla^2 Q(\theta) - \sum_g \operatorname{Var}_q [s_{gq}],

with :math:`s_{gq}` the gradient of unit :math:`g`'s log density at node :math:`q`. In units of the
complete information its eigenvalues are the rates at which EM moves: 1 where nothing is missing,
near 0 along a ridge. A step takes each direction by its eigenvalue, so it is as long as EM's
where nothing is missing and Newton's elsewhere; an EM step replaces one that does not raise the
objective.

Reference: Louis (1982), *Finding the observed information matrix when using the EM algorithm*, JRSS
B 44, 226-233.
"""

from ember.inference.iteration.acceleration.em_map import EMMap, State
from ember.inference.iteration.trajectory import Movement
from ember.inference.maximisation.information import Information
from ember.inference.plan.statistics import Statistics

__all__ = ["Louis"]


LEAST = 1e-4  # eigenvalue: no step is longer than 1 / LEAST steps of EM
TRIALS, SHORTENING = 4, 0.25  # of a step
NOISE = 1e-11  # of the objective, relative: what a step must promise
FALL = 3e-10  # of it: what nodes that move may take back
ARMIJO = 1e-4  # share of the rise that the slope promises


class Louis:
    """Newton steps, with EM as the fallback; for plans in which only latents of units are missing.

    The first step is one of EM: closed forms leave a start behind that is far from the data.
    """

    def init(self, current: Statistics) -> State:
        """The state where an iteration begins."""
        return State(current)

    def step(self, em: EMMap, state: State) -> tuple[State, Movement]:
        """The state after one iteration, and its movement."""
        current = state.current
        after = _searched(em, current) if state.length else None
        if after is current:
            return State(current, state.length), Movement(state.length, 0.0, 0.0)
        if after is None:
            after = em.e_step(em.m_step(current))
        gain = after.objective - current.objective
        movement = Movement.over(current.params, after.params, gain, state.length)
        return State(after, movement.last or state.length), movement


def _searched(em: EMMap, current: Statistics) -> Statistics | None:
    """The objective raised along Newton's direction; None where there is none that raises it.

    Itself where the step promises nothing: nodes that move change an integral by more than that.
    """
    found = Information.at(em.coordinates, current)
    if found is None:
        return None
    direction = found.ascent(LEAST)
    if direction is None:
        return None
    slope = float(direction @ found.gradient)
    if not slope > 0.0:
        return None
    noise = NOISE * (1.0 + abs(current.objective))
    if slope <= noise:
        return current
    fall, length = FALL * (1.0 + abs(current.objective)), 1.0
    for _ in range(TRIALS):
        after = em.tried(em.coordinates.unflatten(found.point + length * direction))
        if after and after.objective >= current.objective + ARMIJO * length * slope - fall:
            return after
        length *= SHORTENING
    return None
