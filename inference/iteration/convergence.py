r"""When to stop: by what is still to gain, not by the size of the last step.

EM converges linearly: near the optimum each step is a constant fraction ``r`` of the one before.
A small step therefore means little when ``r`` is near 1. From the last two steps ``d1``, ``d2``
(largest relative parameter changes) we estimate ``r = d2 / d1`` and, after Aitken, the way still
to go, ``d2 r / (1 - r)``; the objective, being quadratic at its top, has
``gain r^2 / (1 - r^2)`` still to win.

Reference: McLachlan & Krishnan (2008), *The EM Algorithm and Extensions*, section 4.9.
"""

import enum
import math
from collections import deque
from dataclasses import dataclass, field

__all__ = ["Monitor", "Movement", "StopReason"]


ROUNDING = 2e-15  # relative change of an objective that is rounding, not progress
FALL = 1e-9  # a relative fall of the objective larger than this is an error of ours
DRIFT = 1e-3  # relative way still to go beyond which a parameter counts as drifting
NOTHING = 1e-12  # a relative step that is rounding
STALL = 30  # iterations without progress beyond rounding
PARAMETER_FACTOR = 10.0  # parameters are asked to settle to this multiple of tol, relative


class StopReason(enum.Enum):
    """Why a fit ended; the value is the sentence a user reads."""

    CONVERGED = "converged: the parameters and the objective have settled"
    ROUNDING = "converged: the objective no longer changes, to rounding"
    FLAT = "converged: the objective no longer changes; parameters still drift (not identified?)"
    NO_LATENTS = "converged: the model has no latent sites, so one M-step reaches the maximum"
    NO_PARAMETERS = "converged: the model has no parameters, so there is nothing to estimate"
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
    ROUNDED = "stopped: the objective fell by rounding; these are the last good parameters"
    STEPS = "finished: all steps were taken"


@dataclass(frozen=True)
class Movement:
    """Two successive EM steps: their lengths, and what the objective gained over the last."""

    previous: float
    last: float
    gain: float


@dataclass
class Monitor:
    """Watches the loop and says when it has converged.

    Args:
        tol: Tolerance: relative to the objective for the gain still to come, and ten times it,
            relative, for the parameters. At 0 there is no reason to stop.
    """

    tol: float
    _best: float = field(default=-math.inf)
    _stalled: int = 0
    _settled: int = 0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=STALL))

    def check(self, objective: float, movement: Movement) -> StopReason | None:
        """The reason to stop after an iteration, or None to go on."""
        if not self.tol:
            return None
        scale = 1.0 + abs(objective)
        progress = objective - self._best
        self._stalled = 0 if progress > ROUNDING * scale else self._stalled + 1
        self._best = max(self._best, objective)
        settled = (
            self.remaining_step(movement) <= PARAMETER_FACTOR * self.tol
            and self.remaining_gain(movement) <= 0.1 * self.tol * scale
        )
        self._settled = self._settled + 1 if settled else 0
        # A rate can look small by accident (from one long first step), but hardly twice.
        if self._settled >= 2 or (settled and movement.last <= NOTHING):
            return StopReason.CONVERGED
        crawls = self._crawls(objective, movement, scale)
        if self._stalled < STALL and not crawls:
            return None
        drifts = self.remaining_step(movement) > DRIFT
        return StopReason.FLAT if drifts else StopReason.ROUNDING

    def _crawls(self, objective: float, movement: Movement, scale: float) -> bool:
        """Whether EM creeps along a direction in which there is (next to) nothing to gain.

        Where two components merge, or a parameter is not identified, steps shrink slower than
        any geometric series, and no estimate of what is left exists.
        """
        first = self._recent[0] if len(self._recent) == STALL else -math.inf
        self._recent.append(objective)
        slow = movement.last > 0.999 * movement.previous
        return slow and objective - first <= 1e-3 * self.tol * scale

    @staticmethod
    def failure(before: float, after: float) -> StopReason | None:
        """Whether an iteration went wrong: a value that is not finite, or a fall."""
        if not math.isfinite(after):
            return StopReason.NON_FINITE
        if after < before - FALL * (1.0 + abs(before)):
            return StopReason.DECREASED
        return None

    @staticmethod
    def remaining_step(movement: Movement) -> float:
        """Estimated relative distance of the parameters from the limit."""
        if movement.last <= NOTHING:
            return movement.last
        rate = movement.last / movement.previous if movement.previous > 0 else math.inf
        return movement.last * rate / (1.0 - rate) if rate < 1.0 else math.inf

    @staticmethod
    def remaining_gain(movement: Movement) -> float:
        """Estimated gain of the objective that further iterations would bring."""
        gain = max(movement.gain, 0.0)
        if movement.last <= NOTHING:
            return gain
        rate = movement.last / movement.previous if movement.previous > 0 else math.inf
        return gain * rate**2 / (1.0 - rate**2) if rate < 1.0 else math.inf
