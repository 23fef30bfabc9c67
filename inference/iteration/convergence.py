r"""When to stop: by what is still to gain, not by the size of the last step.

EM converges linearly: near the optimum each step is a constant fraction ``r`` of the one before.
A small step therefore means little when ``r`` is near 1. From the last two steps ``d1``, ``d2``
(largest relative parameter changes) we estimate ``r = d2 / d1`` and, after Aitken, the way still
to go, ``d2 r / (1 - r)``; the objective, being quadratic at its top, has
``gain r^2 / (1 - r^2)`` still to win.

A stopping rule is any function that says, from the trajectory so far, why to stop, or None to go
on; ``Monitor`` is the one of the loop. Whoever wants another passes it to ``Loop`` or
``run_batched``.

Reference: McLachlan & Krishnan (2008), *The EM Algorithm and Extensions*, section 4.9.
"""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

from ember.inference.iteration.trajectory import Iteration, Trajectory

__all__ = [
    "REACHED",
    "TOLERANCE",
    "AtRest",
    "Ending",
    "LittleGain",
    "Monitor",
    "StopReason",
    "StoppingRule",
    "failure",
]


TOLERANCE = 1e-8  # where the user has none
REACHED = 10.0  # an optimum is reached, or exceeded, by this multiple of the tolerance
ROUNDING = 2e-15  # relative change of an objective that is rounding, not progress
FALL = 1e-9  # a relative fall of the objective larger than this is an error of ours
DRIFT = 1e-3  # relative way still to go beyond which a parameter counts as drifting
STALL = 30  # iterations without progress beyond rounding
PARAMETER_FACTOR = 10.0  # parameters are asked to settle to this multiple of tol, relative


class StopReason(enum.Enum):
    """Why a fit ended; the value is the sentence a user reads."""

    CONVERGED = "converged: the parameters and the objective have settled"
    ROUNDING = "converged: the objective no longer changes, to rounding"
    FLAT = "converged: the objective no longer changes; parameters still drift (not identified?)"
    NO_LATENTS = "converged: the model has no latent sites, so one M-step reaches the maximum"
    NO_PARAMETERS = "converged: the model has no parameters, so there is nothing to estimate"
    NODES = "converged: the objective no longer rises, to the precision of its nodes"
    DRAWN = "converged: Monte Carlo errors are at most a tenth of the standard errors"
    FEW_DRAWS = (
        "not converged: Monte Carlo errors are above a tenth of the standard errors; "
        "raise MonteCarlo(most=...)"
    )
    MAX_ITER = "not converged: max_iter was reached; raise max_iter or loosen tol"
    UNSETTLED = "not converged: the objective no longer rises, but its gradient has not vanished"
    INFINITE = "stopped: estimates run to infinity; these are the parameters reached so far"
    UNBOUNDED = (
        "stopped: the objective rises without bound; these are the parameters reached so far"
    )
    DEGENERATE = "stopped: a component degenerated; these are the last good parameters"
    NON_FINITE = "stopped: the objective was not finite; these are the last good parameters"
    FAILED = "stopped: an iteration failed; these are the last good parameters"
    INTERRUPTED = "stopped: interrupted; these are the parameters reached so far"
    DECREASED = "stopped: the objective fell, which EM rules out; please report this model"
    COARSE = "stopped: the objective fell, as integrals on too few nodes are wrong"
    ROUNDED = "stopped: the objective fell by rounding; these are the last good parameters"
    STEPS = "finished: all steps were taken"

    @property
    def is_convergence(self) -> bool:
        """Whether it claims that nothing is left to gain."""
        return self in (
            StopReason.CONVERGED,
            StopReason.NODES,
            StopReason.DRAWN,
            StopReason.ROUNDING,
            StopReason.FLAT,
            StopReason.NO_LATENTS,
            StopReason.NO_PARAMETERS,
        )


StoppingRule = Callable[[Trajectory], StopReason | None]
Ending = tuple[StopReason, str]  # and a warning that says more, or nothing


@dataclass(frozen=True)
class Monitor:
    """Stops where next to nothing is left to gain, or where the objective has come to a halt.

    Attributes:
        tol: Tolerance: relative to the objective for the gain still to come, and ten times it,
            relative, for the parameters.
    """

    tol: float

    def __call__(self, way: Trajectory) -> StopReason | None:
        """The reason to stop after an iteration, or None to go on."""
        if not way.iterations:
            return None
        last = way.iterations[-1]
        if self._is_settled(last):
            # A rate can look small by accident (from one long first step), but hardly twice.
            twice = all(self._is_settled(before) for before in way.iterations[-2:-1])
            if last.movement.is_nothing or (twice and len(way.iterations) > 1):
                return StopReason.CONVERGED
        if not self._crawls(way) and not _stalls(way, STALL):
            return None
        drifts = last.movement.remaining_step > DRIFT
        return StopReason.FLAT if drifts else StopReason.ROUNDING

    def _is_settled(self, iteration: Iteration) -> bool:
        objective, _, movement = iteration
        return (
            movement.remaining_step <= PARAMETER_FACTOR * self.tol
            and movement.remaining_gain <= 0.1 * self.tol * (1.0 + abs(objective))
        )

    def _crawls(self, way: Trajectory) -> bool:
        """Whether EM creeps along a direction in which there is (next to) nothing to gain.

        Where two components merge, or a parameter is not identified, steps shrink slower than
        any geometric series, and no estimate of what is left exists.
        """
        if len(way.iterations) <= STALL:
            return False
        objective, _, movement = way.iterations[-1]
        gain = objective - way.iterations[-1 - STALL].objective
        slow = movement.last > 0.999 * movement.previous
        return slow and gain <= 1e-3 * self.tol * (1.0 + abs(objective))


@dataclass(frozen=True)
class AtRest:
    """Stops M-steps that are repeated on the same statistics once they move nothing.

    Attributes:
        step: The largest relative change of a parameter that is none.
        times: As many steps without progress beyond rounding are a halt.
    """

    step: float = 1e-13
    times: int = 3

    def __call__(self, way: Trajectory) -> StopReason | None:
        """The reason to stop after an iteration, or None to go on."""
        rests = way.iterations[-1].movement.last <= self.step or _stalls(way, self.times)
        return StopReason.NO_LATENTS if rests else None


@dataclass(frozen=True)
class LittleGain:
    """Stops by the objective alone: where the latest steps have gained next to nothing.

    Attributes:
        share: Of the objective; a gain below it is next to nothing.
        window: The number of steps.
    """

    share: float
    window: int = 5

    def __call__(self, way: Trajectory) -> StopReason | None:
        """The reason to stop after a step, or None to go on."""
        history = way.history
        if len(history) <= self.window:
            return None
        gain = history[-1] - history[-1 - self.window]
        settled = gain <= self.share * (1.0 + abs(history[-1]))
        return StopReason.CONVERGED if settled else None


def failure(before: float, after: float) -> StopReason | None:
    """Whether an iteration went wrong: an objective that is not finite, or a fall."""
    if not math.isfinite(after):
        return StopReason.NON_FINITE
    if after < before - FALL * (1.0 + abs(before)):
        return StopReason.DECREASED
    return None


def _stalls(way: Trajectory, times: int) -> bool:
    """Whether the last so many iterations made no progress beyond rounding."""
    recent = way.iterations[-times:]
    return len(recent) == times and not any(map(_progressed, reversed(recent)))


def _progressed(iteration: Iteration) -> bool:
    objective, best, _ = iteration
    return objective - best > ROUNDING * (1.0 + abs(objective))
