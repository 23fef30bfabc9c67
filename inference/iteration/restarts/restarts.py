"""Several starts: a short run of all of them, the best carried on to their end.

Most starts show early what they will come to, and EM steps on a batch of parameters cost little
more than on one. So all starts take a short run at once, until they have all but settled; the best
third, and no fewer than three, are then run to the end by the accelerated loop. A start that
degenerates in its short run is set aside; should all those carried on degenerate, the next best
take their place.

Reference: Biernacki, Celeux & Govaert (2003), *Choosing starting values for the EM algorithm for
getting the highest likelihood in multivariate Gaussian mixture models*, Computational Statistics &
Data Analysis 41, 561-575.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ember.inference.iteration.convergence import LittleGain, StopReason
from ember.inference.iteration.loop import ImpossibleStart
from ember.inference.iteration.progress import progress_bar
from ember.inference.iteration.restarts.batched_run import BatchedRun, run_batched
from ember.inference.iteration.restarts.batched_steps import BatchedSteps, can_batch_steps
from ember.inference.iteration.restarts.record import Starts
from ember.inference.iteration.restarts.starting_points import GIVEN, Start
from ember.inference.iteration.run import Run
from ember.inference.iteration.trajectory import Trajectory
from ember.inference.plan.plan import Plan

__all__ = ["best_of"]


SHORT = 100  # iterations of the short run at most
FEW = 30  # the same where the M-step is taken start by start
SETTLED = LittleGain(1e-7)  # when a start has settled
SHARE, FEWEST = 3, 3  # one start in so many is carried on, and at least so many
UNFINISHED = (StopReason.MAX_ITER, StopReason.STEPS)
Runner = Callable[[Trajectory, int], Run]


@dataclass(frozen=True)
class _Attempt:
    """A start, and how far it has been run.

    Attributes:
        kind: How it was made.
        way: The record of it; empty if the data have no finite density there.
        degenerate: Whether a component collapsed or emptied on the way.
        run: The result of the loop, once it has been there.
        carried: Whether it has been run to its end.
    """

    kind: str
    way: Trajectory
    degenerate: bool = False
    run: Run | None = None
    carried: bool = False

    @property
    def is_possible(self) -> bool:
        """Whether the data have a finite density at the start."""
        return bool(self.way.history)

    @property
    def rank(self) -> tuple[bool, float]:
        """Sound results first, then by the objective."""
        return not self.degenerate, self.way.history[-1]

    def after(self, run: Run, carried: bool) -> "_Attempt":
        """The same start after a run of the loop."""
        return dataclasses.replace(self, run=run, degenerate=run.is_degenerate, carried=carried)

    def carried_on(self, run: Runner, limit: int) -> "_Attempt":
        """The start run to its end, unless its short run was the end."""
        short = len(self.way.history) - 1
        if self.run is not None and (self.run.stop not in UNFINISHED or short >= limit):
            return dataclasses.replace(self, carried=True)
        try:
            result = run(self.way, max(limit - short, 0))
        except KeyboardInterrupt:  # before its first step: what the short run reached counts
            result = dataclasses.replace(run(self.way, 0), stop=StopReason.INTERRUPTED)
        return self.after(result, carried=True)

    def gone_alone(self, run: Runner, steps: int) -> "_Attempt":
        """A few steps by itself of a start that left the batch."""
        try:
            attempt = self.carried_on(run, len(self.way.history) - 1 + steps)
        except ImpossibleStart:
            return dataclasses.replace(self, way=Trajectory(self.way.params, self.way.began))
        assert attempt.run is not None
        return dataclasses.replace(attempt, carried=attempt.run.converged)


def best_of(
    plan: Plan,
    starts: Sequence[Start],
    run: Runner,
    limit: int,
    tolerance: float,
    began: float | None = None,
    classification: bool = False,
    accelerate: bool = True,
    at_once: bool = True,
    progress: bool = False,
) -> Run:
    """The best fit over all starts, with the record of what became of each.

    Args:
        plan: The plan of the model.
        starts: Where to start.
        run: The whole loop from given parameters, for a number of iterations at most.
        limit: The largest number of iterations for each start.
        tolerance: Share of the objective by which a start may miss the best and have reached it.
        began: When the fit began, by ``time.perf_counter``; now unless given.
        classification: Whether the E-step takes the latents' most probable joint value.
        accelerate: Whether to accelerate the short run.
        at_once: Whether the short run may be one of all starts at once, by the steps of EM.
        progress: Whether to show how far that is.

    Raises:
        ImpossibleStart: If the data have a finite density at no start.
        KeyboardInterrupt: If interrupted before the first start was found to have one.
    """
    began = time.perf_counter() if began is None else began
    attempts, interrupted = list[_Attempt](), False
    if at_once and len(starts) > 1 and can_batch_steps(plan):
        steps = BatchedSteps(plan, classification)
        short = min(SHORT if steps.is_closed else FEW, limit)
        with progress_bar(progress, short, f"{len(starts)} starts") as tick:
            batched = functools.partial(run_batched, steps, limit=short, stop=SETTLED,
                                        accelerate=accelerate, on_step=tick)  # fmt: skip
            attempts, interrupted = _at_once(batched, _attempts(starts, began), run, limit)
    if not any(attempt.is_possible for attempt in attempts):
        # There is no batch, or it could not begin, perhaps for one start alone.
        few = limit if len(starts) == 1 else min(FEW, limit)
        attempts, interrupted = _in_turn(_attempts(starts, began), run, few)
    possible = [i for i, attempt in enumerate(attempts) if attempt.is_possible]
    if not possible:
        run(Trajectory(starts[0].params, began), 0)  # says why
    count = max(FEWEST, len(starts) // SHARE)
    possible.sort(key=lambda i: attempts[i].rank, reverse=True)
    for place, i in enumerate(possible):
        sound = any(attempts[j].carried and not attempts[j].degenerate for j in possible)
        if place < count or not sound or attempts[i].kind == GIVEN:
            attempts[i] = attempts[i].carried_on(run, 0 if interrupted else limit)
            interrupted = interrupted or _is_interrupted(attempts[i])
            if interrupted:
                break
    return _recorded(attempts, tolerance, interrupted)


def _attempts(starts: Sequence[Start], began: float) -> list[_Attempt]:
    return [_Attempt(start.kind, Trajectory(start.params, began)) for start in starts]


def _is_interrupted(attempt: _Attempt) -> bool:
    return attempt.run is not None and attempt.run.stop is StopReason.INTERRUPTED


def _at_once(
    batched: Callable[[list[Trajectory]], BatchedRun],
    attempts: Sequence[_Attempt],
    run: Runner,
    limit: int,
) -> tuple[list[_Attempt], bool]:
    """A short run of all starts as one batch; whether it was interrupted."""
    batch = batched([each.way for each in attempts])
    attempts = [
        dataclasses.replace(attempt, degenerate=i in batch.degenerate)
        for i, attempt in enumerate(attempts)
    ]
    interrupted = batch.interrupted
    for i in sorted(batch.alone):
        if not interrupted:
            attempts[i] = attempts[i].gone_alone(run, min(FEW, limit))
            interrupted = _is_interrupted(attempts[i])
    return attempts, interrupted


def _in_turn(attempts: list[_Attempt], run: Runner, steps: int) -> tuple[list[_Attempt], bool]:
    """A short run of each start, one after another; whether one was interrupted."""
    for i, attempt in enumerate(attempts):
        try:
            result = run(attempt.way, steps)
        except ImpossibleStart:
            continue
        except KeyboardInterrupt:
            if not any(each.is_possible for each in attempts):
                raise
            return attempts[: i + 1], True
        attempts[i] = attempt.after(result, carried=result.converged)
        if _is_interrupted(attempts[i]):
            return attempts[: i + 1], True
    return attempts, False


def _recorded(attempts: Sequence[_Attempt], tolerance: float, interrupted: bool) -> Run:
    """The best fit of those carried on, and the record of all starts."""
    best = max((each for each in attempts if each.carried), key=lambda each: each.rank)
    assert best.run is not None
    last = best.way.history[-1]
    ends = [each.way.history[-1] if each.is_possible else -math.inf for each in attempts]
    starts = Starts(
        torch.tensor(ends, dtype=torch.float64, device="cpu"),
        tuple(each.carried for each in attempts),
        tuple(each.kind for each in attempts),
        tuple(each.degenerate for each in attempts),
        last,
        tolerance * (1.0 + abs(last)),
        tuple(
            torch.tensor(each.way.history, dtype=torch.float64, device="cpu") for each in attempts
        ),
    )
    stop = StopReason.INTERRUPTED if interrupted else best.run.stop
    warning = "" if interrupted else best.run.warning
    return dataclasses.replace(best.run, starts=starts, stop=stop, warning=warning)
