r"""Log densities of distributions whose arguments are known: all but the value is done once.

Up to a constant the density of a conjugate prior is what its pseudo-statistics (``conjugacy.py``)
say of the value; torch's own works the constant out at every call, and a factor of its matrix.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families.conjugacy import pseudo_statistics
from ember.inference.families.kinds import MATRIX, PROBABILITY, RATE, SIMPLEX, Kind
from ember.inference.families.links import IDENTITY
from ember.inference.numerics.distribution import Distribution

__all__ = ["KnownDensity"]


@dataclass(frozen=True, eq=False)
class KnownDensity:
    """The log density of one distribution as a function of the value alone.

    Attributes:
        kind: Says what the coefficients say of a value.
        coefficients: The pseudo-statistics, batch-shaped.
        constant: The log normaliser, batch-shaped.
    """

    kind: Kind
    coefficients: list[Tensor]
    constant: Tensor

    @staticmethod
    def of(fn: Distribution) -> "KnownDensity | None":
        """That of a distribution; None if it is of no class that has one."""
        for cls, (kind, normaliser) in _CLASSES.items():
            if isinstance(fn, cls) and type(fn).log_prob is cls.log_prob:
                coefficients = pseudo_statistics(kind, IDENTITY, fn)
                assert coefficients is not None
                return KnownDensity(kind, coefficients, normaliser(fn))
        return None

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        return self.kind.worth(self.coefficients, value) + self.constant


def _dirichlet(fn: dist.Dirichlet) -> Tensor:
    a = fn.concentration
    constant: Tensor = torch.lgamma(a.sum(-1)) - torch.lgamma(a).sum(-1)
    return constant


def _beta(fn: dist.Beta) -> Tensor:
    a, b = fn.concentration1, fn.concentration0
    constant: Tensor = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
    return constant


def _gamma(fn: dist.Gamma) -> Tensor:
    constant: Tensor = torch.xlogy(fn.concentration, fn.rate) - torch.lgamma(fn.concentration)
    return constant


def _exponential(fn: dist.Exponential) -> Tensor:
    constant: Tensor = fn.rate.log()
    return constant


def _wishart(fn: dist.Wishart) -> Tensor:
    n, dim = fn.df, fn.event_shape[-1]
    log_det: Tensor = 2.0 * fn._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant: Tensor = -0.5 * n * (dim * math.log(2.0) + log_det) - torch.mvlgamma(0.5 * n, dim)
    return constant


_CLASSES: dict[Any, tuple[Kind, Callable[[Any], Tensor]]] = {
    dist.Dirichlet: (SIMPLEX, _dirichlet),
    dist.Beta: (PROBABILITY, _beta),
    dist.Gamma: (RATE, _gamma),
    dist.Exponential: (RATE, _exponential),
    dist.Wishart: (MATRIX, _wishart),
}
