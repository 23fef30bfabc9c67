r"""Posteriors of parameters with conjugate priors, by the kind of parameter.

The prior and the expected statistics add up to canonical coefficients (``families/kinds.py``), and
the density that has them is the posterior :math:`q`:

============  =======================  ========================================
kind          coefficients             posterior
============  =======================  ========================================
simplex       ``a_k``                  ``Dirichlet(a + 1)``
probability   ``a, b``                 ``Beta(a + 1, b + 1)``
rate          ``a, b``                 ``Gamma(a + 1, b)``
matrix        ``n, B``                 ``Wishart(n + D + 1, B^-1)``
location      ``h, J``                 ``Normal(h / J, precision J)``
vector        ``h, J``                 ``MultivariateNormal(J^-1 h, J)``
given scale   ``h, J`` at unit scale   the same times the precision: normal-gamma, normal-Wishart
============  =======================  ========================================

Each is held by its mean, under the name of the parameter itself, and by one number or matrix more
that says how sure it is. So whatever reads parameters finds the posterior means in their places.

Reference: Bishop (2006), *Pattern Recognition and Machine Learning*, sections 10.2 and 10.4.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import PowerTransform, constraints

from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.symmetric import log_diagonal
from ember.inference.parameters.argument_map import rows_of
from ember.inference.variational_bayes.posterior import Coefficients, Params, PosteriorOf

__all__ = [
    "BetaPosterior",
    "DirichletPosterior",
    "GammaPosterior",
    "NormalPosterior",
    "VectorPosterior",
    "WishartPosterior",
]


@dataclass(frozen=True, eq=False)
class DirichletPosterior(PosteriorOf):
    """Of a simplex: the mean, and the sum of the concentrations."""

    size: ClassVar[str] = "total"
    family: ClassVar[str] = "Dirichlet"

    def of(self, coefficients: Coefficients) -> dict[str, Tensor]:
        concentration = coefficients[0] + 1.0
        total = concentration.sum(-1)
        return self._held(concentration / total.unsqueeze(-1), total)

    def coefficients(self, params: Params) -> Coefficients:
        return [params[self.key].unsqueeze(-1) * params[self.name] - 1.0]

    def at(self, coefficients: Coefficients) -> Distribution:
        return dist.Dirichlet(coefficients[0] + 1.0, validate_args=False)

    def corrections(self, params: Params) -> Tensor:
        concentration, total = self.coefficients(params)[0] + 1.0, params[self.key].unsqueeze(-1)
        apart = _log_gap(concentration) - _log_gap(total)
        return apart.reshape(-1, apart.shape[-1])


@dataclass(frozen=True, eq=False)
class BetaPosterior(PosteriorOf):
    """Of a probability, or of several side by side: the mean, and the sum of the concentrations."""

    size: ClassVar[str] = "total"
    family: ClassVar[str] = "Beta"

    @property
    def _size_shape(self) -> Size:
        return self.parameter.shape

    @property
    def _divergences(self) -> Size:
        return self.parameter.shape

    def of(self, coefficients: Coefficients) -> dict[str, Tensor]:
        a, b = (coefficient + 1.0 for coefficient in coefficients)
        return self._held(a / (a + b), a + b)

    def coefficients(self, params: Params) -> Coefficients:
        mean, total = params[self.name], params[self.key]
        return [total * mean - 1.0, total * (1.0 - mean) - 1.0]

    def at(self, coefficients: Coefficients) -> Distribution:
        a, b = coefficients
        return dist.Beta(a + 1.0, b + 1.0, validate_args=False)

    def corrections(self, params: Params) -> Tensor:
        total = params[self.key]
        apart = [_log_gap(c + 1.0) - _log_gap(total) for c in self.coefficients(params)]
        rows = [rows_of(each, self.kind.event_dim) for each in apart]
        return torch.cat([row.reshape(len(row), -1) for row in rows], -1)


@dataclass(frozen=True, eq=False)
class GammaPosterior(PosteriorOf):
    """Of a rate or a precision: the mean, and the shape."""

    size: ClassVar[str] = "shape"
    family: ClassVar[str] = "Gamma"

    def of(self, coefficients: Coefficients) -> dict[str, Tensor]:
        shape = coefficients[0] + 1.0
        return self._held(shape / coefficients[1], shape)

    def coefficients(self, params: Params) -> Coefficients:
        shape = params[self.key]
        return [shape - 1.0, shape / self.link.forward(params[self.name])]

    def at(self, coefficients: Coefficients) -> Distribution:
        a, b = coefficients
        return dist.Gamma(a + 1.0, b, validate_args=False)

    def corrections(self, params: Params) -> Tensor:
        return _log_gap(params[self.key]).reshape(-1, 1)

    def of_site(self, params: Params) -> Distribution:
        a, b = self.coefficients(params)
        gamma, power = dist.Gamma(a + 1.0, b, validate_args=False), self.link.exponent
        assert power is not None
        if power == 1.0:
            return self.distribution(params)
        if power == -1.0:
            inverse: Distribution = dist.InverseGamma(a + 1.0, b, validate_args=False)
            return inverse
        root = PowerTransform(a.new_tensor(1.0 / power))
        moved: Distribution = dist.TransformedDistribution(gamma, root)
        return moved


@dataclass(frozen=True, eq=False)
class WishartPosterior(PosteriorOf):
    """Of a precision matrix: the mean, and the degrees of freedom."""

    size: ClassVar[str] = "df"
    family: ClassVar[str] = "Wishart"

    @property
    def _dim(self) -> int:
        return self.parameter.shape[-1]

    @property
    def _size_support(self) -> constraints.Constraint:
        support: constraints.Constraint = constraints.greater_than(self._dim - 1.0)
        return support

    def of(self, coefficients: Coefficients) -> dict[str, Tensor]:
        df = coefficients[0] + self._dim + 1.0
        factor = torch.linalg.cholesky(coefficients[1])
        return self._held(df[:, None, None] * torch.cholesky_inverse(factor), df)

    def coefficients(self, params: Params) -> Coefficients:
        df = params[self.key]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(params[self.name]))
        return [df - self._dim - 1.0, df[..., None, None] * inverse]

    def at(self, coefficients: Coefficients) -> Distribution:
        count, scatter = coefficients
        df = count + self._dim + 1.0
        found: Distribution = dist.Wishart(df=df, precision_matrix=scatter, validate_args=False)
        return found

    def corrections(self, params: Params) -> Tensor:
        df = params[self.key]
        halves = 0.5 * (df.unsqueeze(-1) - torch.arange(self._dim).to(df))
        return (torch.digamma(halves) - torch.log(0.5 * df.unsqueeze(-1))).sum(-1).reshape(-1, 1)

    def divergence(self, params: Params, prior: Coefficients) -> Tensor:
        r"""Torch has none of its own.

        With degrees of freedom :math:`m, n` and inverse scales :math:`A, B` of posterior and prior,
        :math:`\log Z(n, B) - \log Z(m, A) + \frac{m - n}{2} E \log|P| + \frac12 \mathrm{tr}(E[P]
        (B - A))`.
        """
        count, scatter = self.coefficients(params)
        mean = params[self.name]
        log_det = 2.0 * log_diagonal(mean).sum(-1) + self.corrections(params).reshape(self.batch)
        apart = 0.5 * (count - prior[0]) * log_det
        traces = 0.5 * (mean * (prior[1] - scatter)).sum((-2, -1))
        each: Tensor = self._log_z(*prior) - self._log_z(count, scatter) + apart + traces
        return each.expand(self.batch).sum()

    def _log_z(self, count: Tensor, scatter: Tensor) -> Tensor:
        """The log of the integral of the density without its constant."""
        df, dim = count + self._dim + 1.0, self._dim
        log_det = 2.0 * log_diagonal(scatter).sum(-1)
        found: Tensor = 0.5 * df * (dim * math.log(2.0) - log_det) + torch.mvlgamma(0.5 * df, dim)
        return found


@dataclass(frozen=True, eq=False)
class NormalPosterior(PosteriorOf):
    """Of a location whose prior does not depend on the scale: the mean, and the precision."""

    size: ClassVar[str] = "precision"
    family: ClassVar[str] = "normal"

    def of(self, coefficients: Coefficients) -> dict[str, Tensor]:
        h, precision = coefficients
        return self._held(h / precision, precision)

    def coefficients(self, params: Params) -> Coefficients:
        precision = params[self.key]
        return [precision * params[self.name], precision]

    def at(self, coefficients: Coefficients) -> Distribution:
        h, precision = coefficients
        return dist.Normal(h / precision, precision.rsqrt(), validate_args=False)

    def corrections(self, params: Params) -> Tensor:
        variance = params[self.key].reshape(-1, 1).reciprocal()
        return torch.cat([variance, torch.zeros_like(variance)], -1)


@dataclass(frozen=True, eq=False)
class VectorPosterior(PosteriorOf):
    """The same of vectors."""

    size: ClassVar[str] = "precision"
    family: ClassVar[str] = "multivariate normal"

    @property
    def _size_shape(self) -> Size:
        return torch.Size([*self.parameter.shape, self.parameter.shape[-1]])

    @property
    def _size_support(self) -> constraints.Constraint:
        support: constraints.Constraint = constraints.positive_definite
        return support

    def of(self, coefficients: Coefficients) -> dict[str, Tensor]:
        h, precision = coefficients
        return self._held(torch.linalg.solve(precision, h), precision)

    def coefficients(self, params: Params) -> Coefficients:
        precision = params[self.key]
        return [(precision @ params[self.name].unsqueeze(-1)).squeeze(-1), precision]

    def at(self, coefficients: Coefficients) -> Distribution:
        h, precision = coefficients
        mean = torch.linalg.solve(precision, h)
        return dist.MultivariateNormal(mean, precision_matrix=precision, validate_args=False)

    def corrections(self, params: Params) -> Tensor:
        factor = torch.linalg.cholesky(rows_of(params[self.key], 2))
        covariance = torch.cholesky_inverse(factor).flatten(1)
        return torch.cat([covariance, torch.zeros_like(covariance[:, :1])], -1)


def _log_gap(concentration: Tensor) -> Tensor:
    """``digamma(a) - log(a)``."""
    return torch.digamma(concentration) - torch.log(concentration)
