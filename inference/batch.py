"""Several starts of one plain mixture at once: a few EM steps with all parameters stacked.

A start that degenerates on the way keeps its last good parameters and leaves the batch; the others
go on as if it had never been there.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.inference.convergence import Monitor
from ember.inference.degeneracy import Degenerate
from ember.inference.expectation.mixture_batch import batched_expectations
from ember.inference.factors import IMPOSSIBLE
from ember.inference.maximisation import maximise
from ember.inference.plan import Plan
from ember.inference.replicas import log_priors, replicated
from ember.inference.statistics import Part, Statistics

__all__ = ["Track", "run_together"]

Params = dict[str, Tensor]


@dataclass
class Track:
    """The way of one start: its latest good parameters, the objective and time of each step."""

    params: Params
    history: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    degenerate: bool = False


def run_together(
    plan: Plan, starts: Sequence[Params], steps: int, settled: float
) -> tuple[list[Track], bool]:
    """Runs plain EM steps from every start, as one batch.

    Args:
        plan: A plan that ``can_replicate``.
        starts: Parameters to start from.
        steps: The largest number of EM steps.
        settled: The batch stops when no start gains more than this share of what it has gained.

    Returns:
        A track for each start, and whether the run was interrupted. A start at which the data
        have no finite density has an empty history.
    """
    tracks = [Track(start) for start in starts]
    batch = _Batch(plan, tracks)
    try:
        for step in range(steps + 1):
            batch.e_step()
            batch.record()
            if step == steps or all(_rests(track, settled) for track in batch.live):
                break
            if not batch.m_step():
                break
    except KeyboardInterrupt:
        return tracks, True
    except (RuntimeError, ValueError):
        pass  # the tracks hold what was reached; the loop for one start will name the trouble
    return tracks, False


def _is_wrong(track: Track, objective: float) -> bool:
    """Whether a value cannot be gone on with: no density, or a fall."""
    if not track.history:
        return not objective > 0.1 * IMPOSSIBLE or objective == float("inf")
    return Monitor.failure(track.history[-1], objective) is not None


def _rests(track: Track, settled: float) -> bool:
    """Whether the latest step gained next to nothing of what has been gained."""
    history = track.history
    return len(history) > 2 and history[-1] - history[-2] <= settled * (history[-1] - history[0])


class _Batch:
    """Stacked parameters and statistics of the starts that still live."""

    def __init__(self, plan: Plan, tracks: Sequence[Track]) -> None:
        self._plan = plan
        self.live = list(tracks)
        self._objectives: list[float] = []
        self._many = replicated(plan, len(self.live))
        self._params = _stacked([track.params for track in tracks])
        self._sums: dict[object, Tensor] = {}

    def e_step(self) -> None:
        """The objective and the statistics of every live start."""
        assert self._plan.kernel is not None
        count = len(self.live)
        with torch.no_grad():
            natural = {
                key: _by_value(group.natural_parameters(self._params), count)
                for key, group in self._many.groups.items()
            }
            evidence, self._sums = batched_expectations(self._plan.kernel, natural)
            log_prior = log_priors(self._many, self._params, count)
        self._objectives = (evidence + log_prior).tolist()

    def record(self) -> None:
        """Hands every live start what it has reached; those that went wrong leave."""
        pairs = zip(self.live, self._objectives, strict=True)
        self.drop([i for i, (track, value) in enumerate(pairs) if _is_wrong(track, value)])
        for i, (track, value) in enumerate(zip(self.live, self._objectives, strict=True)):
            # A fall within rounding is no fall; the record keeps the best value seen.
            track.history.append(max([value, *track.history[-1:]]))
            track.moments.append(time.perf_counter())
            track.params = {name: each[i] for name, each in self._params.items()}

    def m_step(self) -> bool:
        """Moves all live starts; those without a finite maximiser leave. False if all have."""
        while self.live:
            groups = {
                key: (group, self._sums[key].flatten(0, 1))
                for key, group in self._many.groups.items()
            }
            statistics = Statistics(0.0, 0.0, self._params, groups, (Part(self._many, {}),))
            try:
                self._params = maximise(self._many, statistics)
                return True
            except Degenerate as error:
                self.drop([error.index[0]])
        return False

    def drop(self, places: Sequence[int]) -> None:
        """Takes starts out of the batch; their tracks keep what they have reached."""
        if not places:
            return
        for place in places:
            self.live[place].degenerate = True
        kept = [i for i in range(len(self.live)) if i not in places]
        self.live = [self.live[i] for i in kept]
        self._objectives = [self._objectives[i] for i in kept]
        self._params = {name: value[kept] for name, value in self._params.items()}
        self._sums = {key: sums[kept] for key, sums in self._sums.items()}
        if kept:
            self._many = replicated(self._plan, len(kept))


def _stacked(params: Sequence[Mapping[str, Tensor]]) -> Params:
    return {name: torch.stack([each[name] for each in params]) for name in params[0]}


def _by_value(natural: Tensor, count: int) -> Tensor:
    return natural.reshape(count, -1, natural.shape[-1])
