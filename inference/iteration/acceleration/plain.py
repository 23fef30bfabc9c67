"""EM as it is: every iterate is the M-step of the one before."""

from ember.inference.iteration.acceleration.em_map import EMMap, State
from ember.inference.iteration.trajectory import Movement
from ember.inference.plan.statistics import Statistics

__all__ = ["Plain"]


class Plain:
    """No acceleration."""

    def init(self, current: Statistics) -> State:
        """The state where an iteration begins."""
        return State(current)

    def step(self, em: EMMap, state: State) -> tuple[State, Movement]:
        """The state after one iteration, and its movement."""
        current, after = state.current, em.e_step(em.m_step(state.current))
        gain = after.objective - current.objective
        movement = Movement.over(current.params, after.params, gain, state.length)
        return State(after, movement.last), movement
