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

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ember.inference.families import Rate
from ember.inference.large_counts import MANY, deviance, stirling_rest
from ember.inference.reading.affine import joined
from ember.inference.reading.parameter_maps import Table
from ember.inference.slots import Form, Slot

__all__ = [
    "Operator",
    "Sensitivity",
    "Superposed",
    "SuperposedForm",
    "SuperposedRate",
    "log_factorials",
    "poisson_log_prob",
    "superposed_form",
]


class Operator(Protocol):
    """An affine map with non-negative coefficients, which need not be stored anywhere."""

    @property
    def how(self) -> str:
        """In a few words where its products come from, for the plan's table."""
        ...

    def rate(self, values: Tensor) -> Tensor:
        """``A values + b``, shape ``(R,)``, of values ``(P,)``."""
        ...

    def transpose(self, weights: Tensor) -> Tensor:
        """``A' weights``, shape ``(P,)``, of weights ``(R,)``."""
        ...


class Superposed(Rate):
    """``T = (e, s)``: expected counts of a rate's entry, and the sum of its weights."""


@dataclass(frozen=True)
class SuperposedRate:
    """A Poisson rate as ``A theta + b`` of the entries of several parameters, laid end to end."""

    sources: tuple[str, ...]
    entries: int
    shape: torch.Size
    operator: Operator = field(repr=False)

    domain: ClassVar[str] = "positive"

    @property
    def is_constant(self) -> bool:
        return False

    def evaluate(self, params: Mapping[str, Tensor]) -> Tensor:
        """The rate at ``params``, differentiable."""
        values = joined(self.sources, params)
        return _rate(values, self.operator).reshape(self.shape)


@dataclass(frozen=True)
class SuperposedForm(Form):
    """The form of a Poisson site whose rate is a weighted sum: one cell for each entry."""

    rate: SuperposedRate | None = None

    @property
    def map(self) -> SuperposedRate:
        assert self.rate is not None
        return self.rate


def superposed_form(rate: SuperposedRate) -> SuperposedForm:
    """The form of a site with this rate."""
    slot = Slot("rate", Table(rate.sources, "raw", 0), "identity", 1.0, torch.zeros(0))
    return SuperposedForm(
        Superposed(), (slot,), (torch.arange(rate.entries),), _no_statistics, rate=rate
    )


def _no_statistics(value: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
    raise AssertionError("the statistics of a superposition depend on the parameters")


class Sensitivity:
    """The sums of weights ``A' w``, kept for as long as the rays' own weights ``w`` stay."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._latest: tuple[Tensor, Tensor] | None = None

    def __call__(self, weights: Tensor) -> Tensor:
        """``A' weights``."""
        if self._latest is None or not torch.equal(self._latest[0], weights):
            self._latest = (weights.clone(), self._operator.transpose(weights))
        return self._latest[1]


def poisson_log_prob(
    eta: Tensor, counts: Tensor, rate: SuperposedRate, sensitivity: Sensitivity
) -> Tensor:
    """Log probability of every count, ``log_factorials`` aside; its gradient is the statistics.

    Args:
        eta: Natural parameters ``(log theta, -theta)`` of the entries, ``(P, 2)``.
        counts: Counts, of a shape that the rate's broadcasts to.
        rate: The rate's map.
        sensitivity: The sums of its weights.
    """
    found: Tensor = _LogProb.apply(eta, counts, rate, sensitivity)  # type: ignore[no-untyped-call]
    return found


def log_factorials(counts: Tensor) -> Tensor:
    """``log y!``; where a count is large, what is left of it beside a deviance."""
    large = bool((counts > MANY).any())
    return stirling_rest(counts) if large else torch.lgamma(counts + 1.0)


class _Rate(torch.autograd.Function):
    """``A theta + b``, whose gradient flows back through the transpose."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, operator: Operator) -> Tensor:
        ctx.operator = operator
        return operator.rate(values.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _transpose(gradient, ctx.operator), None


class _Transpose(torch.autograd.Function):
    """``A' w``, whose gradient flows back through ``A``."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, operator: Operator) -> Tensor:
        ctx.operator = operator
        return operator.transpose(weights.detach().contiguous())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        offset = ctx.operator.rate(torch.zeros_like(gradient))
        return _rate(gradient, ctx.operator) - offset, None


def _rate(values: Tensor, operator: Operator) -> Tensor:
    found: Tensor = _Rate.apply(values, operator)  # type: ignore[no-untyped-call]
    return found


def _transpose(weights: Tensor, operator: Operator) -> Tensor:
    found: Tensor = _Transpose.apply(weights, operator)  # type: ignore[no-untyped-call]
    return found


class _LogProb(torch.autograd.Function):
    """The log probability as a function of natural parameters; two products in all.

    ``eta_2`` is ``-theta`` itself, so the rate is computed from it, without a logarithm's
    rounding and exactly zero where an entry is.
    """

    @staticmethod
    def forward(
        ctx: Any, eta: Tensor, counts: Tensor, rate: SuperposedRate, sensitivity: Sensitivity
    ) -> Tensor:
        expected = rate.operator.rate(-eta[:, 1]).reshape(rate.shape)
        ctx.save_for_backward(eta, counts, expected)
        ctx.rate, ctx.sensitivity = rate, sensitivity
        if bool((counts > MANY).any()):  # see ``log_factorials``
            return -deviance(counts, expected)
        return torch.xlogy(counts, expected).sub_(expected)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        eta, counts, expected = ctx.saved_tensors
        operator, shape = ctx.rate.operator, ctx.rate.shape
        values = -eta[:, 1]
        weights = gradient.sum_to_size(shape).reshape(-1)
        if torch.is_grad_enabled():  # someone wants curvatures
            expected = _rate(values, operator).reshape(shape)
            sums = _transpose(weights, operator)
        else:
            sums = ctx.sensitivity(weights)
        # No count where nothing is expected is certain; a count there is impossible.
        tiny = torch.finfo(expected.dtype).tiny
        ratio = torch.where(counts > 0, counts / expected.clamp_min(tiny), 0.0)
        back = _transpose((gradient * ratio).sum_to_size(shape).reshape(-1), operator)
        return torch.stack([values * back, sums], -1), None, None, None
