"""Several starts at once: SQUAREM on all parameters stacked.

Every start takes its own steps (``iteration/acceleration/schemes.py`` has the equations): two EM
steps and the jump that they suggest, which is kept if the objective there is at least that of the
first EM step; otherwise that step is. A start that degenerates keeps its last good parameters and
leaves, one that has settled leaves too, as does one that can only go on alone (see
``factors/residuals/normal.py``), and the others go on as if they had never been there.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.inference.iteration.acceleration.squarem import extrapolated
from ember.inference.iteration.convergence import Monitor
from ember.inference.iteration.restarts.batched_steps import (
    BatchedSteps,
    State,
    chosen,
    joined,
    mixed,
)
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.parameters.coordinates import Coordinates

__all__ = ["Track", "run_together"]


Params = dict[str, Tensor]
WINDOW = 5  # iterations over which a start that settles gains next to nothing
GROWTH = 4.0  # of the bound on the length of a jump


@dataclass
class Track:
    """The way of one start: its latest good parameters, the objective and time of each step."""

    params: Params
    history: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    passes: int = 0
    degenerate: bool = False
    alone: bool = False  # it must go on by itself: see ``factors/residuals/normal.py``


def run_together(
    stack: BatchedSteps, starts: Sequence[Params], steps: int, settled: float, jumps: bool = True
) -> tuple[list[Track], bool]:
    """Runs EM from every start, as one batch.

    Args:
        stack: The steps of a plan, for several parameter values at once.
        starts: Parameters to start from.
        steps: The largest number of iterations.
        settled: A start leaves when it gains less than this share of its objective.
        jumps: Whether to accelerate; without, an iteration is one EM step.

    Returns:
        A track for each start, and whether the run was interrupted. A start at which the data
        have no finite density has an empty history.

    Raises:
        KeyboardInterrupt: If the run was interrupted before it had reached anything.
    """
    tracks = [Track(start) for start in starts]
    batch = _Batch(stack, tracks)
    try:
        batch.begin(joined(starts))
        for _ in range(steps):
            batch.drop([i for i, track in enumerate(batch.live) if _rests(track, settled)])
            if not batch.live:
                break
            batch.step(jumps)
    except KeyboardInterrupt:
        if not any(track.history for track in tracks):
            raise
        return tracks, True
    except (RuntimeError, ValueError, ArithmeticError):
        pass  # the tracks hold what was reached; the loop for one start will name the trouble
    return tracks, False


def _rests(track: Track, settled: float) -> bool:
    """Whether the latest steps gained next to nothing."""
    history = track.history
    gain = history[-1] - history[-1 - WINDOW] if len(history) > WINDOW else float("inf")
    return gain <= settled * (1.0 + abs(history[-1]))


class _Batch:
    """The starts that still live, and where they are."""

    def __init__(self, stack: BatchedSteps, tracks: Sequence[Track]) -> None:
        self._stack, self._coordinates = stack, Coordinates(stack.structure.parameters)
        self.live = list(tracks)
        self._largest = torch.ones(len(self.live))
        self._current: State

    def begin(self, params: Params) -> None:
        """The first E-step; starts without a finite density leave."""
        self._current = self._e_step(params)
        impossible = ~(self._current.objectives > 0.1 * IMPOSSIBLE)
        self.drop((impossible | self._current.objectives.isinf()).nonzero()[:, 0].tolist(), True)
        self._record(self._current)
        self.leave(self._current)

    def step(self, jumps: bool) -> None:
        """One iteration of every live start; those without a maximiser or that fall leave."""
        once, lost = self._stack.m_step(self._current)
        self.drop(lost, True)
        if not self.live:
            return
        first = self._e_step(once)
        pairs = zip(self._current.objectives.tolist(), first.objectives.tolist(), strict=True)
        fallen = [i for i, (old, new) in enumerate(pairs) if Monitor.failure(old, new)]
        first = first.kept(self.drop(fallen, True))
        first = first.kept(self.leave(first))
        if jumps and self.live:
            twice, lost = self._stack.m_step(first)
            first = first.kept(self.drop(lost, True))
            if self.live:
                first = self._jump(self._current.params, first, twice)
        self._record(first)

    def _jump(self, start: Params, first: State, second: Params) -> State:
        """The state after the jump of each start, or after its EM step where that is higher."""
        steps = (start, first.params, second)
        length, target = extrapolated(self._coordinates, steps, self._largest)
        far, goal = length > 1.0, second
        if bool(far.any()):
            jumped = self._coordinates.unflatten(torch.where(far.unsqueeze(1), target, 0.0))
            finite = [each.isfinite().reshape(len(far), -1).all(1) for each in jumped.values()]
            far = far & torch.stack(finite).all(0)
            goal = mixed(far, jumped, second)
        try:
            landed = self._e_step(goal)
        except (RuntimeError, ValueError):  # a matrix of one jump without a Cholesky factor
            landed, far = self._e_step(second), torch.zeros_like(far)
        better = (landed.objectives >= first.objectives) & ~landed.unsure  # also false for NaN
        bound = length == self._largest
        grown = torch.where(better & bound, GROWTH * self._largest, self._largest)
        shrunk = (self._largest / GROWTH).clamp_min(1.0)
        self._largest = torch.where(far & ~better, shrunk, grown)
        return landed.where(better, first)

    def leave(self, state: State) -> list[int]:
        """Takes out the starts that must go on alone; says who stays."""
        places: list[int] = state.unsure.nonzero()[:, 0].tolist()
        for place in places:
            self.live[place].alone = True
        return self.drop(places)

    def drop(self, places: Sequence[int], degenerate: bool = False) -> list[int]:
        """Takes starts out of the batch; says who stays. Their tracks keep what they reached."""
        kept = [i for i in range(len(self.live)) if i not in places]
        if places:
            for place in places:
                self.live[place].degenerate = degenerate
            self.live = [self.live[i] for i in kept]
            self._largest = self._largest[kept]
            self._current = self._current.kept(kept)
        return kept

    def _e_step(self, params: Params) -> State:
        """The statistics and the objective of every live start at new parameters."""
        state = self._stack.e_step(params)
        for track in self.live:
            track.passes += 1
        return state

    def _record(self, state: State) -> None:
        """Makes a state the current one and hands every start its own."""
        self._current = state
        for i, (track, value) in enumerate(zip(self.live, state.objectives.tolist(), strict=True)):
            track.params = chosen(state.params, i)
            track.moments.append(time.perf_counter())
            # A fall within rounding is no fall; the record keeps the best value seen. It comes
            # last: after an interrupt its length says how far the start has come.
            track.history.append(max([value, *track.history[-1:]]))
