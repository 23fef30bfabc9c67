r"""Acceleration: a wrapper around one EM iteration, seen as a map of parameters.

Plain EM moves along ``theta -> M(theta)``. SQUAREM (Varadhan & Roland 2008, Scandinavian Journal
of Statistics 35, 335-353) takes two EM steps, ``r = M(theta) - theta`` and
``v = M(M(theta)) - M(theta) - r``, and jumps to

.. math:: \theta' = \theta + 2 a r + a^2 v, \qquad a = \|r\| / \|v\| \ge 1,

in unconstrained coordinates. ``a = 1`` is the second EM step itself. The jump is kept only if
the objective there is at least that of the first EM step; otherwise the second EM step is taken
and the largest ``a`` allowed shrinks. The objective therefore never falls.
"""

from collections.abc import Callable

from ember.inference.iteration.acceleration.anderson import Anderson
from ember.inference.iteration.acceleration.em_map import EMMap, Iterate, Step
from ember.inference.iteration.acceleration.lbfgs import Lbfgs
from ember.inference.iteration.acceleration.squarem import Squarem
from ember.inference.iteration.convergence import Movement
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.statistics import Statistics

__all__ = ["accelerated"]


def accelerated(how: str | None, em: EMMap, coordinates: Coordinates) -> Iterate:
    """One iteration of the chosen scheme."""
    match how:
        case None:
            return _Plain(em)
        case "auto":
            return _Auto(em, coordinates)
        case "squarem":
            return Squarem(em, coordinates)
        case "anderson":
            return Anderson(em, coordinates)
        case "lbfgs":
            return Lbfgs(em, coordinates)
        case _:
            raise ValueError(f"unknown acceleration {how!r}")


class _Plain:
    """EM as it is: every iterate is the M-step of the one before."""

    def __init__(self, em: EMMap) -> None:
        self._em = em
        self._previous = 0.0

    def __call__(self, current: Statistics) -> Step:
        after = self._em.e_step(self._em.m_step(current))
        length = Coordinates.distance(current.params, after.params)
        gain = after.objective - current.objective
        step = Step(after, Movement(self._previous, length, gain))
        self._previous = length
        return step


class _Auto:
    """SQUAREM, which is dependable, and L-BFGS where that has not converged after a while.

    Long runs are those along flat ridges and towards boundaries, where L-BFGS, which learns the
    curvature, needs a fraction of the passes. The two take turns.
    """

    TURN = 40

    def __init__(self, em: EMMap, coordinates: Coordinates) -> None:
        self._schemes: list[Callable[[], Iterate]] = [
            lambda: Squarem(em, coordinates),
            lambda: Lbfgs(em, coordinates),
        ]
        self._iteration = 0
        self._scheme: Iterate = self._schemes[0]()

    def __call__(self, current: Statistics) -> Step:
        turn, place = divmod(self._iteration, self.TURN)
        if place == 0:
            self._scheme = self._schemes[turn % 2]()
        self._iteration += 1
        return self._scheme(current)
