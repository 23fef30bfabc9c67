r"""Probabilities of categories that are products of powers of others and their complements.

.. math:: w_k = c_k \prod_j v_j^{a_{kj}} (1 - v_j)^{b_{kj}}

A stick of length one that is broken again and again is of this kind, ``w_k = v_k (1 - v_1) ...
(1 - v_{k-1})``, and so are the genotypes of Hardy and Weinberg. Every occurrence of category ``k``
counts as ``a_kj`` successes and ``b_kj`` failures of ``v_j``, for which a Beta prior is conjugate.

Reference: Ishwaran & James (2001), *Gibbs sampling methods for stick-breaking priors*, JASA 96,
161-173.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ember.inference.families.discrete import Bernoulli, CountStatistics, Sticks
from ember.inference.families.exponential_form import ExponentialForm, FamilyParameter
from ember.inference.families.family import Family
from ember.inference.numerics.distribution import Distribution
from ember.inference.parameters.argument_map import ParameterRows

__all__ = ["StickMap", "stick_form"]


@dataclass(frozen=True)
class StickMap:
    """The argument as products of powers of one row of a table.

    Attributes:
        table: Rows of ``J`` probabilities, or of single ones.
        index: The row of each entry of the argument's batch.
        powers: ``a`` and ``b`` side by side, ``(K, 2 J)``.
        constants: ``log c``, ``(K,)``.
    """

    table: ParameterRows
    index: Tensor
    powers: Tensor
    constants: Tensor
    domain: str = "sticks"

    @property
    def is_constant(self) -> bool:
        return False

    @property
    def sources(self) -> tuple[str, ...]:
        return self.table.sources

    @property
    def family(self) -> Family:
        """The family of a row of the table."""
        return Sticks() if self.table.event_dim else Bernoulli()

    def evaluate(self, params: Mapping[str, Tensor]) -> Tensor:
        """The argument at ``params``, broadcast dims of size 1."""
        return self.of_rows(self.table.rows(params))[self.index]

    def of_rows(self, rows: Tensor) -> Tensor:
        """The categories' probabilities for every row of the table, ``(R, K)``."""
        return (self.family.natural_parameters(rows) @ self.powers.mT + self.constants).exp()


@dataclass(frozen=True, eq=False)
class StickStatistics:
    """Successes and failures of every stick, by how often each category occurs."""

    counts: CountStatistics
    powers: Tensor
    constants: Tensor

    def __call__(self, x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        counts, measure = self.counts(x)
        base = counts @ self.constants
        return counts @ self.powers, base if measure is None else base + measure


def stick_form(base: Distribution, found: StickMap) -> ExponentialForm:
    """The form of a distribution over categories with such probabilities."""
    family, event_dim = found.family, len(base.event_shape)
    parameter = FamilyParameter(family.kinds[0], found.table)
    statistics = StickStatistics(CountStatistics.of(base), found.powers, found.constants)
    return ExponentialForm(family, (parameter,), (found.index,), statistics, event_dim)
