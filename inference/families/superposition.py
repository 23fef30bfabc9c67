r"""Counts that are sums of hidden counts: Poisson superposition, as in emission tomography.

A Poisson count whose rate is a weighted sum of non-negative parameter entries,

.. math:: y_i \sim \operatorname{Poisson}\Bigl(\sum_j A_{ij} \lambda_j + b_i\Bigr),
    \qquad A \ge 0,\ b \ge 0,

is the sum of latent counts :math:`z_{ij} \sim \operatorname{Poisson}(A_{ij} \lambda_j)` and of a
count of the background. Given the data and the rates these are multinomial, so what the E-step
expects of each entry, and the M-step's closed form, are

.. math:: e_j = \lambda_j \bigl(A^\top (y / (A \lambda + b))\bigr)_j, \qquad
    s_j = \sum_i A_{ij}, \qquad \lambda_j \leftarrow e_j / s_j,

the statistics of a rate: a conjugate Gamma prior adds to both. Written as a function of natural
parameters, ``sum_i y_i log(A exp(eta_1) + b)_i + (A eta_2)_i``, the site's log probability has
these statistics as its gradient, like any other factor's.

Reference: Shepp & Vardi (1982), IEEE Transactions on Medical Imaging 1, 113-122; Lange & Carson
(1984), Journal of Computer Assisted Tomography 8, 306-316.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.families.exponential_form import ExponentialForm, FamilyParameter
from ember.inference.families.kinds import RATE
from ember.inference.families.rates import Rate
from ember.inference.numerics.large_counts import MANY, stirling_rest
from ember.inference.parameters.argument_map import ParameterRows
from ember.inference.parameters.superposed_rate import SuperposedRate

__all__ = ["Superposed", "SuperposedForm", "log_factorials", "superposed_form"]


class Superposed(Rate):
    """``T = (e, s)``: expected counts of a rate's entry, and the sum of its weights."""


@dataclass(frozen=True)
class SuperposedForm(ExponentialForm):
    """The form of a Poisson site whose rate is a weighted sum: one cell for each entry."""

    rate: SuperposedRate | None = None

    @property
    def map(self) -> SuperposedRate:
        assert self.rate is not None
        return self.rate


def superposed_form(rate: SuperposedRate) -> SuperposedForm:
    """The form of a site with this rate."""
    parameter = FamilyParameter(RATE, ParameterRows(rate.sources, "raw", 0))
    return SuperposedForm(
        Superposed(), (parameter,), (torch.arange(rate.entries),), _no_statistics, rate=rate
    )


def _no_statistics(value: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
    raise AssertionError("the statistics of a superposition depend on the parameters")


def log_factorials(counts: Tensor) -> Tensor:
    """``log y!``; where a count is large, what is left of it beside a deviance."""
    large = bool((counts > MANY).any())
    return stirling_rest(counts) if large else torch.lgamma(counts + 1.0)
