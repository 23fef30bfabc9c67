"""Several starts of one plain mixture at once: SQUAREM on all parameters stacked.

Every start takes its own steps (``acceleration.py`` has the equations): two EM steps and the jump
that they suggest, which is kept if the objective there is at least that of the first EM step;
otherwise that step is. A start that degenerates keeps its last good parameters and leaves, one
that has settled leaves too, and the others go on as if they had never been there.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.inference.convergence import Monitor
from ember.inference.degeneracy import Degenerate
from ember.inference.families import IMPOSSIBLE
from ember.inference.maximisation import maximise
from ember.inference.plan import Plan
from ember.inference.starts.replicas import log_priors, replicated
from ember.inference.statistics import Part, Statistics

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


def run_together(
    plan: Plan, starts: Sequence[Params], steps: int, settled: float, jumps: bool = True
) -> tuple[list[Track], bool]:
    """Runs EM from every start, as one batch.

    Args:
        plan: A plan that ``can_replicate``.
        starts: Parameters to start from.
        steps: The largest number of iterations.
        settled: A start leaves when it gains less than this share of its objective.
        jumps: Whether to accelerate; without, an iteration is one EM step.

    Returns:
        A track for each start, and whether the run was interrupted. A start at which the data
        have no finite density has an empty history.
    """
    tracks = [Track(start) for start in starts]
    batch = _Batch(plan, tracks)
    try:
        batch.begin()
        for _ in range(steps):
            batch.drop([i for i, track in enumerate(batch.live) if _rests(track, settled)])
            if not batch.live:
                break
            batch.step(jumps)
    except KeyboardInterrupt:
        return tracks, True
    except (RuntimeError, ValueError):
        pass  # the tracks hold what was reached; the loop for one start will name the trouble
    return tracks, False


def _rests(track: Track, settled: float) -> bool:
    """Whether the latest steps gained next to nothing."""
    history = track.history
    gain = history[-1] - history[-1 - WINDOW] if len(history) > WINDOW else float("inf")
    return gain <= settled * (1.0 + abs(history[-1]))


@dataclass(frozen=True)
class _State:
    """Stacked parameters ``(R, ...)``, their statistics ``(R, C, P)`` and objectives ``(R,)``."""

    params: Params
    sums: dict[object, Tensor]
    objectives: Tensor

    def kept(self, places: Sequence[int]) -> "_State":
        """The state of some of the starts."""
        return _State(
            {name: value[places] for name, value in self.params.items()},
            {key: value[places] for key, value in self.sums.items()},
            self.objectives[places],
        )

    def where(self, mine: Tensor, other: "_State") -> "_State":
        """This state for the starts marked, the other one for the rest."""
        return _State(
            _where(mine, self.params, other.params),
            {key: _choose(mine, value, other.sums[key]) for key, value in self.sums.items()},
            torch.where(mine, self.objectives, other.objectives),
        )


class _Batch:
    """The starts that still live, and where they are."""

    def __init__(self, plan: Plan, tracks: Sequence[Track]) -> None:
        self._plan = plan
        self.live = list(tracks)
        self._many = replicated(plan, len(self.live))
        self._largest = torch.ones(len(self.live))
        self._current = _State(_stacked([track.params for track in tracks]), {}, torch.zeros(0))

    def begin(self) -> None:
        """The first E-step; starts without a finite density leave."""
        self._current = self._e_step(self._current.params)
        impossible = ~(self._current.objectives > 0.1 * IMPOSSIBLE)
        self.drop((impossible | self._current.objectives.isinf()).nonzero()[:, 0].tolist(), True)
        self._record(self._current)

    def step(self, jumps: bool) -> None:
        """One iteration of every live start."""
        first_params = self._m_step()
        if first_params is None:
            return
        start = self._current
        first = self._e_step(first_params)
        failed = [
            Monitor.failure(before, after) is not None
            for before, after in zip(
                start.objectives.tolist(), first.objectives.tolist(), strict=True
            )
        ]
        if any(failed):
            first = first.kept([i for i, wrong in enumerate(failed) if not wrong])
            self.drop([i for i, wrong in enumerate(failed) if wrong], True)
            start = self._current
        if jumps and self.live:
            self._current, before = first, [*self.live]
            second = self._m_step()
            if second is None:
                return
            stayed = [i for i, track in enumerate(before) if any(track is t for t in self.live)]
            start, first = start.kept(stayed), self._current
            first = self._jump(start.params, first, second)
        self._record(first)

    def _jump(self, start: Params, first: _State, second: Params) -> _State:
        """The state after the jump of each start, or after its EM step where that is higher."""
        x0, x1, x2 = (self._flatten(params) for params in (start, first.params, second))
        r, v = x1 - x0, x2 - 2.0 * x1 + x0
        usable = torch.isfinite(r) & torch.isfinite(v)
        r, v = torch.where(usable, r, 0.0), torch.where(usable, v, 0.0)
        length = (r.norm(dim=1) / v.norm(dim=1)).nan_to_num(nan=1.0, posinf=1.0)
        length = torch.minimum(length.clamp_min(1.0), self._largest)
        a = length.unsqueeze(1)
        # Coordinates on the boundary cannot be extrapolated; they take the second EM step.
        target = torch.where(usable, x0 + 2.0 * a * r + a * a * v, x2)
        far = (length > 1.0) & torch.isfinite(target).all(1)
        goal = second
        if bool(far.any()):
            jumped = self._unflatten(torch.where(far.unsqueeze(1), target, 0.0))
            finite = [each.isfinite().reshape(len(far), -1).all(1) for each in jumped.values()]
            far = far & torch.stack(finite).all(0)
            goal = _where(far, jumped, second)
        try:
            landed = self._e_step(goal)
        except (RuntimeError, ValueError):  # a matrix of one jump without a Cholesky factor
            landed, far = self._e_step(second), torch.zeros_like(far)
        better = landed.objectives >= first.objectives  # also false for NaN
        bound = length == self._largest
        grown = torch.where(better & bound, GROWTH * self._largest, self._largest)
        shrunk = (self._largest / GROWTH).clamp_min(1.0)
        self._largest = torch.where(far & ~better, shrunk, grown)
        return landed.where(better, first)

    def drop(self, places: Sequence[int], degenerate: bool = False) -> None:
        """Takes starts out of the batch; their tracks keep what they have reached."""
        if not places:
            return
        for place in places:
            self.live[place].degenerate = degenerate
        kept = [i for i in range(len(self.live)) if i not in places]
        self.live = [self.live[i] for i in kept]
        self._largest = self._largest[kept]
        self._current = self._current.kept(kept)
        if kept:
            self._many = replicated(self._plan, len(kept))

    def _e_step(self, params: Params) -> _State:
        """The statistics and the objective of every live start at new parameters."""
        assert self._plan.kernel is not None
        count = len(self.live)
        with torch.no_grad():
            natural = {}
            for key, group in self._many.groups.items():
                eta = group.natural_parameters(params)
                natural[key] = eta.reshape(count, -1, eta.shape[-1])
            evidence, sums = self._plan.kernel.together(natural)
            objectives = evidence + log_priors(self._many, params, count)
        for track in self.live:
            track.passes += 1
        return _State(params, sums, objectives)

    def _m_step(self) -> Params | None:
        """New parameters of all live starts; those without a finite maximiser leave."""
        while self.live:
            groups = {
                key: (group, self._current.sums[key].flatten(0, 1))
                for key, group in self._many.groups.items()
            }
            params, parts = self._current.params, (Part(self._many, {}),)
            try:
                return maximise(self._many, Statistics(0.0, 0.0, params, groups, parts))
            except Degenerate as error:
                self.drop([error.index[0]], True)
        return None

    def _record(self, state: _State) -> None:
        """Makes a state the current one and hands every start its own."""
        self._current = state
        for i, (track, value) in enumerate(zip(self.live, state.objectives.tolist(), strict=True)):
            # A fall within rounding is no fall; the record keeps the best value seen.
            track.history.append(max([value, *track.history[-1:]]))
            track.moments.append(time.perf_counter())
            track.params = {name: each[i] for name, each in state.params.items()}

    def _flatten(self, params: Params) -> Tensor:
        """Free reals of every start, ``(R, d)``."""
        parameters = self._plan.structure.parameters.values()
        free = [p.to_unconstrained(params[p.name]) for p in parameters]
        return torch.cat([each.reshape(len(self.live), -1) for each in free], 1)

    def _unflatten(self, vectors: Tensor) -> Params:
        """Constrained parameters from free reals."""
        many = self._many.structure.parameters
        shapes = {
            name: p.to_unconstrained(p.start).shape
            for name, p in self._plan.structure.parameters.items()
        }
        pieces = vectors.split([shape.numel() for shape in shapes.values()], 1)
        return {
            name: many[name]
            .to_constrained(piece.reshape(len(vectors), *shapes[name]))
            .expand(many[name].shape)
            for name, piece in zip(shapes, pieces, strict=True)
        }


def _stacked(params: Sequence[Mapping[str, Tensor]]) -> Params:
    return {name: torch.stack([each[name] for each in params]) for name in params[0]}


def _choose(mine: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(mine.reshape(-1, *(1,) * (one.dim() - 1)), one, other)


def _where(mine: Tensor, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Params:
    return {name: _choose(mine, value, other[name]) for name, value in one.items()}
