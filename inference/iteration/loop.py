"""The loop from one start: E-step, M-step, check convergence, until nothing is left to gain."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.iteration.acceleration.em_map import EMMap, Scheme, State
from ember.inference.iteration.acceleration.plain import Plain
from ember.inference.iteration.convergence import AtRest, Ending, StoppingRule, StopReason, failure
from ember.inference.iteration.diagnosis import Diagnosis
from ember.inference.iteration.judgement import Judge
from ember.inference.iteration.run import Run
from ember.inference.iteration.trajectory import Movement, Trajectory
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.optimality.nearby import EStep
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.reading.model_errors import unevaluated

__all__ = ["DataLost", "ImpossibleStart", "Keep", "Loop", "OnStep", "Place"]


OnStep = Callable[[Trajectory], None]


class Place(NamedTuple):
    """How far a run has come between two iterations: all that the next ones depend on.

    Attributes:
        state: That of the scheme of acceleration.
        leaps: How often it has leapt to a higher place.
    """

    state: State
    leaps: int = 0


Keep = Callable[[Trajectory, Place], None]
LEAPS = 10  # to higher places that one run makes at most
LOOKS = 20  # iterations between looks for variances on their way to zero
MANY = 12  # iterations: a way that long is worth writing its steps down
REPEATS = 100  # of the M-step where nothing is latent
FAILURES = (RuntimeError, ValueError, ArithmeticError)  # of a step


class DataLost(Exception):
    """The data can no longer be read: a loader fails, a file is cut short, a process has died."""


class ImpossibleStart(ValueError):
    """The data have no finite density at the starting parameters, or the model fails there."""


def ignore(way: Trajectory) -> None:
    """Does nothing at a step."""


def forget(way: Trajectory, place: Place) -> None:
    """Does nothing with a place."""


@dataclass(frozen=True)
class Loop:
    """Runs EM under one plan, from any start; an interrupt ends it with what was reached.

    Attributes:
        plan: The plan of model and data.
        em_map: The two steps.
        stop: The rule that ends it, asked after each iteration; None takes all steps.
        accelerate: The scheme that makes an iteration of the two steps.
        on_step: Called after each step, with the trajectory so far: for progress, checkpoints and
            the like. An iteration is a step, and so is a leap out of a saddle.
        method: How the fit calls itself.
        keep: Called between iterations, with all that the next ones depend on.
        report: The E-step that a fit reports where that of its iterations is a classification; that
            of the plan unless given.
    """

    plan: Plan
    em_map: EMMap
    stop: StoppingRule | None
    accelerate: Scheme[Any] = field(default_factory=Plain)
    on_step: OnStep = ignore
    method: str = "EM"
    keep: Keep = forget
    report: EStep | None = None

    def __call__(self, way: Trajectory, limit: int, place: Place | None = None) -> Run:
        """The fit after ``limit`` more iterations at most.

        Args:
            way: Where to start, and what was recorded on the way there; it grows.
            limit: The largest number of iterations.
            place: What ``keep`` was given when the trajectory was as it is, to go on from there.

        Raises:
            ImpossibleStart: If the data have no finite density there.
        """
        em = self.em_map.counted(way)
        current = self._first(em, way.params) if place is None else place.state.current
        if place is None:
            way.begin(current.objective)
        ascent = _Ascent(self, em, way, current, place)
        try:
            stop, warning = ascent(limit)
            warning = warning or ascent.diagnosis.identifiability_warning(ascent.current)
            final = self._final_e_step(ascent.current)
        except KeyboardInterrupt:
            stop, warning = StopReason.INTERRUPTED, ""
            final = self._final_e_step(ascent.current)
        except DataLost as error:
            stop, warning = ascent.diagnosis.of_error(error)
            final = ascent.current
        if stop in (StopReason.MAX_ITER, StopReason.UNSETTLED):
            warning = f"{self.method}: {stop.value}"
        certificate = ascent.judge.certificate(ascent.current) if stop.is_convergence else None
        run = Run.at_end(way, final, self.plan, self.method, stop)
        return dataclasses.replace(run, warning=warning, certificate=certificate)

    def _first(self, em: EMMap, params: Mapping[str, Tensor]) -> Statistics:
        """The E-step at the start."""
        try:
            first = em.e_step(params)
        except (RuntimeError, ArithmeticError) as error:
            message = unevaluated(self.plan.structure.model, error)
            raise ImpossibleStart(message) from error
        if not math.isfinite(first.objective) or first.objective <= 0.1 * IMPOSSIBLE:
            raise ImpossibleStart(
                "the data have no finite density at the starting parameters; start elsewhere with "
                "init={...}, or check the model's supports."
            )
        return first

    def _final_e_step(self, current: Statistics) -> Statistics:
        """The E-step that a fit reports; with classification the history has another objective."""
        if not self.em_map.classification:
            return current
        report = self.report or LogEvidence.of(self.plan).statistics
        return report(current.params)


class _Ascent:
    """One run of a loop: the place that it has reached, and how it goes on from there."""

    def __init__(
        self, loop: Loop, em: EMMap, way: Trajectory, current: Statistics, place: Place | None
    ) -> None:
        self.loop, self.em, self.way, self.current, self.place = loop, em, way, current, place
        self.judge = Judge(loop.plan, em)
        self.diagnosis = Diagnosis(loop.plan, loop.method)

    def __call__(self, limit: int) -> Ending:
        """Goes on until there is a reason to stop."""
        plan = self.loop.plan
        if limit and not plan.structure.parameters:
            return StopReason.NO_PARAMETERS, ""
        if limit and not plan.is_incomplete and self.place is None:
            ending = self._without_latents()
            if ending is not None:
                return ending
        return self._iterate(limit)

    def _take(self, after: Statistics, movement: Movement | None = None) -> None:
        self.current = after
        self.judge.see(after)
        self.way.take(after.params, after.objective, movement)
        self.loop.on_step(self.way)

    def _iterate(self, limit: int) -> Ending:
        """E-step, M-step, check convergence."""
        loop, judge = self.loop, self.judge
        state, leaps = self.place or Place(loop.accelerate.init(self.current))
        replayed = False
        for i in range(limit):
            if i:
                loop.keep(self.way, Place(state, leaps))
            if i >= MANY and not replayed and state.is_quick:
                replayed = True
                self.em = judge.em = loop.em_map.replayed().counted(self.way)
            try:
                state, movement = loop.accelerate.step(self.em, state)
            except FAILURES as error:
                return judge.failed(self.current, *self.diagnosis.of_error(error))
            lost = judge.blurred(self.current, state.current)
            if lost is not None:
                return self._nearest(lost)
            if self._falls_within_nodes(state.current):
                return judge.verdict(self.current, StopReason.NODES)
            wrong = self._wrong(state.current)
            higher = judge.slid(self.current) if wrong is not None and leaps < LEAPS else None
            if higher is not None:
                self._take(higher)
                state, leaps = loop.accelerate.init(higher), leaps + 1
                continue
            if wrong is not None:
                gains = self.way.iterations[-1:]
                return judge.failed(self.current, *wrong, sum(i.movement.gain for i in gains))
            self._take(state.current, movement)
            reason = loop.stop(self.way) if loop.stop is not None else None
            if reason is None:
                if loop.stop is not None and len(self.way.history) % LOOKS == 0:
                    nearer = judge.nearer_zero(self.current)
                    if nearer is not None:
                        self._take(nearer)
                        state = loop.accelerate.init(nearer)
                continue
            if not reason.is_convergence:
                return reason, ""
            higher = judge.higher(self.current) if leaps < LEAPS else None
            if higher is None:
                return judge.verdict(self.current, reason)
            self._take(higher)
            state, leaps = loop.accelerate.init(higher), leaps + 1
        if loop.stop is None:
            return StopReason.STEPS, ""
        return judge.failed(self.current, StopReason.MAX_ITER, "")

    def _nearest(self, lost: Ending) -> Ending:
        """The ending where the next step is lost in rounding: perhaps a leap to zero is not."""
        judge, nearer = self.judge, self.judge.nearer_zero(self.current)
        if nearer is not None:
            self._take(nearer)
        return (
            judge.verdict(self.current, StopReason.ROUNDING)
            if judge.vanished(self.current)
            else lost
        )

    def _falls_within_nodes(self, after: Statistics) -> bool:
        """Whether the objective falls by less than its nodes can tell, which move at each step."""
        fall = self.current.objective - after.objective
        if failure(self.current.objective, after.objective) is not StopReason.DECREASED:
            return False
        precision = (c.rule.settled(c.dims) * c.batch.numel() for c in self.loop.plan.units)
        return fall <= sum(precision)

    def _wrong(self, after: Statistics) -> Ending | None:
        """Why an iteration went wrong, if it did."""
        kind = failure(self.current.objective, after.objective)
        if kind is None or self.diagnosis.is_rounding(self.current, after):
            return None
        return self.diagnosis.of_failure(kind, self.current, after, self.em)

    def _without_latents(self) -> Ending | None:
        """Goes to the maximum that the M-step reaches by itself; None where more is to be done."""
        before = self.current
        params, settled, error = _maximised(self.em, before)
        if params is not before.params:
            after = self.em.e_step(params)
            if math.isfinite(after.objective) and after.objective >= before.objective:
                self._take(after)
        if error is not None:
            return self.judge.failed(self.current, *self.diagnosis.of_error(error))
        higher = self.judge.higher(self.current) if settled else None
        if settled and higher is None:
            return self.judge.verdict(self.current, StopReason.NO_LATENTS)
        if higher is not None:
            self._take(higher)
        return None


def _maximised(
    em: EMMap, statistics: Statistics
) -> tuple[Mapping[str, Tensor], bool, Exception | None]:
    """Without latents the statistics are fixed: repeats the M-step until its parts agree.

    Returns:
        The parameters reached, whether they are at rest, and the error of the step that went wrong
        if one did.
    """
    way, length, rests = Trajectory(statistics.params), 0.0, AtRest()
    for _ in range(REPEATS):
        reached = way.history[-1] if way.history else -math.inf
        try:
            params = em.m_step(dataclasses.replace(statistics, params=way.params))
            with torch.no_grad():
                value = float(expected_log_joint(statistics, params))
        except FAILURES as error:
            return way.params, False, error
        if failure(reached, value) is not None:
            break
        movement = Movement.over(way.params, params, value - reached, length)
        way.take(params, value, movement)
        if rests(way) is not None:
            return params, True, None
        length = movement.last
    return way.params, False, None
