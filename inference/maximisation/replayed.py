"""Functions of statistics, written down once and played back: M-step, score and coordinates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ember.inference.factors.tied import TiedFactors, TieKey
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.objective import score
from ember.inference.numerics.replay.replayed import Replayed
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Plan
from ember.inference.plan.priors import Prior
from ember.inference.plan.statistics import Statistics

__all__ = ["ReplayedCoordinates", "ReplayedMStep"]


class ReplayedMStep:
    """Gives what the M-step gives, up to rounding, where each update has a closed form.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._m_step = MStep.of(plan)
        self._names = tuple(plan.structure.parameters)
        self._replayed = _OfStatistics(self._values)

    @staticmethod
    def of(plan: Plan) -> ReplayedMStep:
        """That of a plan, which keeps it."""
        return plan.once(ReplayedMStep)

    def __call__(self, statistics: Statistics) -> dict[str, Tensor]:
        """The parameters; see ``MStep``."""
        if self._m_step.is_numerical:
            return self._m_step(statistics)
        found = self._replayed(statistics)
        return {**statistics.params, **dict(zip(self._names, found, strict=True))}

    def _values(self, statistics: Statistics) -> Sequence[Tensor]:
        params = self._m_step(statistics)
        return [params[name] for name in self._names]


class ReplayedCoordinates(Coordinates):
    """Coordinates that a run goes to and fro: ``flatten``, ``unflatten`` and the score in them.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        parameters, roots = plan.structure.parameters, plan.superposed_parameters()
        super().__init__(parameters, roots)
        self._names, plain = tuple(parameters), Coordinates(parameters, roots)
        self._flat = Replayed(
            lambda *values: [plain.flatten(dict(zip(self._names, values, strict=True)))]
        )
        self._unflat = Replayed(lambda vector: list(plain.unflatten(vector).values()))
        self._score = _OfStatistics(lambda statistics: [score(statistics, plain)])

    @staticmethod
    def of(plan: Plan) -> ReplayedCoordinates:
        """Those of a plan, which keeps them."""
        return plan.once(ReplayedCoordinates)

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """See ``Coordinates``."""
        (vector,) = _given(self._flat(*(params[name] for name in self._names)))
        return vector

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """See ``Coordinates``."""
        return dict(zip(self._names, _given(self._unflat(vector)), strict=True))

    def quick_score(self, statistics: Statistics) -> Tensor:
        """See ``score``."""
        (gradient,) = self._score(statistics)
        return gradient


class _Reads(NamedTuple):
    """What a function of statistics reads but for the numbers."""

    names: tuple[str, ...]
    keys: tuple[TieKey, ...]
    tied: tuple[TiedFactors, ...]
    prior: Prior

    def are_those_of(self, statistics: Statistics) -> bool:
        """Whether other statistics differ in the numbers alone."""
        return (
            statistics.prior is self.prior
            and tuple(statistics.params) == self.names
            and tuple(statistics.sums) == self.keys
            and all(
                one is other
                for one, (other, _) in zip(self.tied, statistics.sums.values(), strict=True)
            )
        )


class _OfStatistics:
    """A function of statistics, played back while they are of the same sites.

    Those of sites had by their residuals are measured from elsewhere each time.
    """

    def __init__(self, function: Callable[[Statistics], Sequence[Tensor]]) -> None:
        self._function = function
        self._reads: _Reads | None = None
        self._replayed = Replayed(self._on)

    def __call__(self, statistics: Statistics) -> Sequence[Tensor]:
        if statistics.opaque or statistics.prior.opaque or statistics.expansions:
            return self._function(statistics)
        if self._reads is None:
            each = tuple(tied for tied, _ in statistics.sums.values())
            self._reads = _Reads(
                tuple(statistics.params), tuple(statistics.sums), each, statistics.prior
            )
        if not self._reads.are_those_of(statistics):
            return self._function(statistics)
        sums = [own for _, own in statistics.sums.values()]
        return _given(self._replayed(*statistics.params.values(), *sums))

    def _on(self, *tensors: Tensor) -> Sequence[Tensor]:
        reads = self._reads
        assert reads is not None
        count = len(reads.names)
        params = dict(zip(reads.names, tensors[:count], strict=True))
        each = zip(reads.tied, tensors[count:], strict=True)
        sums = dict(zip(reads.keys, each, strict=True))
        return self._function(Statistics(0.0, 0.0, params, sums, (), reads.prior))


def _given(found: Sequence[Tensor] | None) -> Sequence[Tensor]:
    assert found is not None
    return found
