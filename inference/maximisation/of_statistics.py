"""Functions of statistics, written down once and played back."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

from torch import Tensor

from ember.inference.factors.opaque import OpaqueFactors, OpaquePosterior
from ember.inference.factors.tied import TiedFactors, TieKey
from ember.inference.numerics.replay.replayed import Replayed
from ember.inference.plan.priors import Prior
from ember.inference.plan.statistics import Statistics

__all__ = ["OfStatistics", "given"]


class _Reads(NamedTuple):
    """What a function of statistics reads but for the numbers."""

    names: tuple[str, ...]
    keys: tuple[TieKey, ...]
    tied: tuple[TiedFactors, ...]
    opaque: tuple[OpaqueFactors, ...]
    weights: tuple[str, ...]
    prior: Prior

    @classmethod
    def of(cls, statistics: Statistics) -> Self:
        """Those of some statistics."""
        return cls(
            tuple(statistics.params),
            tuple(statistics.sums),
            tuple([tied for tied, _ in statistics.sums.values()]),
            tuple([piece.factors for piece in statistics.opaque]),
            tuple([name for piece in statistics.opaque for name in piece.weights]),
            statistics.prior,
        )

    @property
    def are_arithmetic(self) -> bool:
        """Whether nothing is asked of the model."""
        asked = self.prior.opaque or any(f.units or f.asks_the_model for f in self.opaque)
        return not asked and len(self.opaque) < 2


class OfStatistics:
    """A function of statistics, played back while they are of the same sites.

    Those of sites had by their residuals are measured from elsewhere each time.

    Args:
        function: Of statistics, and of further tensors.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]]) -> None:
        self._function = function
        self._reads: _Reads | None = None
        self._replayed = Replayed(self._on)

    def __call__(self, statistics: Statistics, *others: Tensor) -> Sequence[Tensor]:
        """What the function gives."""
        reads = _Reads.of(statistics)
        if self._reads is None and reads.are_arithmetic:
            self._reads = reads
        if self._reads is None or statistics.expansions or not _same(reads, self._reads):
            return self._function(statistics, *others)
        sums = [own for _, own in statistics.sums.values()]
        weights = [each for piece in statistics.opaque for each in piece.weights.values()]
        found = self._replayed(*others, *statistics.params.values(), *sums, *weights)
        return given(found)

    def _on(self, *tensors: Tensor) -> Sequence[Tensor]:
        reads = self._reads
        assert reads is not None
        count = len(tensors) - len(reads.names) - len(reads.keys) - len(reads.weights)
        others, rest = tensors[:count], iter(tensors[count:])
        params = {name: next(rest) for name in reads.names}
        sums = {key: (tied, next(rest)) for key, tied in zip(reads.keys, reads.tied, strict=True)}
        weights = {name: next(rest) for name in reads.weights}
        opaque = tuple(OpaquePosterior(factors, weights) for factors in reads.opaque)
        statistics = Statistics(0.0, 0.0, params, sums, opaque, reads.prior)
        return self._function(statistics, *others)


def _same(one: _Reads, other: _Reads) -> bool:
    """Whether what is read is the very same."""
    return (
        (one.names, one.keys, one.weights) == (other.names, other.keys, other.weights)
        and one.prior is other.prior
        and all(map(operator.is_, (*one.tied, *one.opaque), (*other.tied, *other.opaque)))
    )


def given(found: Sequence[Tensor] | None) -> Sequence[Tensor]:
    """What a function gave that always gives something."""
    assert found is not None
    return found
