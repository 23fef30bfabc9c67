"""Conjugate priors as pseudo-statistics: what a prior adds to coefficients.

Each rule turns the prior of a parameter, at the current values of its own parameters, into the
coefficients of the parameter's kind (``kinds.py``). The M-step adds them to those of the expected
statistics and takes the maximiser of the kind, so MLE and MAP share one path. The mode is taken in
the parametrisation in which the model declares the prior.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families.kinds import (
    COEFFICIENTS,
    LOCATION,
    MATRIX,
    PROBABILITY,
    RATE,
    SIMPLEX,
    STICKS,
    VECTOR,
    Kind,
)
from ember.inference.families.links import IDENTITY, Link, Power
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import broadcast_shapes

__all__ = ["pseudo_statistics", "register_prior"]


D = TypeVar("D", bound=Distribution)
Rule = Callable[[D], list[Tensor] | None]
_RULES: dict[tuple[Kind, str, type], Rule[Any]] = {}


def register_prior(
    kind: Kind, prior: type[D], link: Link = IDENTITY
) -> Callable[[Rule[D]], Rule[D]]:
    """Registers the pseudo-statistics of ``prior`` for family parameters of one kind.

    Args:
        kind: The family parameter's kind.
        prior: The distribution class of the parameter's prior.
        link: How the parameter becomes the family parameter, such as ``Power(-1.0)`` for a rate
            that is one over the parameter.
    """

    def register(rule: Rule[D]) -> Rule[D]:
        _RULES[kind, link.name, prior] = rule
        return rule

    return register


def pseudo_statistics(
    kind: Kind, link: Link, prior: Distribution, origin: Tensor | None = None
) -> list[Tensor] | None:
    """Coefficients that the prior adds to a parameter, batch-shaped; None if it is not conjugate.

    An improper flat prior adds nothing, whatever the family parameter: the empty list. The
    coefficients of a location are those of its difference from the ``origin``, if one is given.
    """
    if isinstance(prior, dist.ImproperUniform):
        return []
    for cls in type(prior).__mro__:
        rule = _RULES.get((kind, link.name, cls))
        if rule is None:
            continue
        if origin is not None and (kind, cls) in _PRECISIONS:
            precision = _PRECISIONS[kind, cls](prior)
            location: Tensor = prior.loc  # type: ignore[attr-defined] # every normal has one
            return [kind.times(precision, location - origin), precision]
        found = rule(prior)
        return found if origin is None or found is None else _about(origin, kind, found)
    return None


def _about(origin: Tensor, kind: Kind, found: list[Tensor]) -> list[Tensor]:
    """The coefficients of a location as those of its difference from the origin."""
    linear, precision = found
    return [linear + kind.times(precision, -origin), precision]


@register_prior(SIMPLEX, dist.Dirichlet)
def _dirichlet(prior: dist.Dirichlet) -> list[Tensor]:
    return [prior.concentration - 1.0]


@register_prior(STICKS, dist.Beta)
@register_prior(PROBABILITY, dist.Beta)
def _beta(prior: dist.Beta) -> list[Tensor]:
    return [prior.concentration1 - 1.0, prior.concentration0 - 1.0]


@register_prior(STICKS, dist.Uniform)
@register_prior(PROBABILITY, dist.Uniform)
def _uniform(prior: dist.Uniform) -> list[Tensor] | None:
    if bool((prior.low == 0.0).all()) and bool((prior.high == 1.0).all()):
        return [torch.zeros_like(prior.low), torch.zeros_like(prior.low)]
    return None  # a narrower interval cuts the beta shape off


@register_prior(RATE, dist.Gamma)
def _gamma(prior: dist.Gamma) -> list[Tensor]:
    return [prior.concentration - 1.0, prior.rate]


@register_prior(RATE, dist.Exponential)
def _exponential(prior: dist.Exponential) -> list[Tensor]:
    return [torch.zeros_like(prior.rate), prior.rate]


@register_prior(RATE, dist.InverseGamma, Power(-1.0))
def _inverse_gamma(prior: dist.InverseGamma) -> list[Tensor]:
    # In r = 1 / theta the density theta^-(a+1) exp(-b / theta) reads r^(a+1) exp(-b r).
    return [prior.concentration + 1.0, prior.rate]


@register_prior(COEFFICIENTS, dist.Normal)
@register_prior(LOCATION, dist.Normal)
def _normal(prior: dist.Normal) -> list[Tensor]:
    precision = _normal_precision(prior)
    return [precision * prior.loc, precision]


@register_prior(COEFFICIENTS, dist.MultivariateNormal)
@register_prior(VECTOR, dist.MultivariateNormal)
def _multivariate_normal(prior: dist.MultivariateNormal) -> list[Tensor]:
    precision = prior.precision_matrix
    return [(precision @ prior.loc.unsqueeze(-1)).squeeze(-1), precision]


@register_prior(VECTOR, dist.Normal)
def _normal_vector(prior: dist.Normal) -> list[Tensor]:
    return [_normal_precision(prior) * prior.loc, _normal_precisions(prior)]


def _normal_precision(prior: dist.Normal) -> Tensor:
    precision: Tensor = prior.scale**-2.0
    return precision


def _normal_precisions(prior: dist.Normal) -> Tensor:
    shape = broadcast_shapes(prior.scale.shape, prior.loc.shape)
    return torch.diag_embed(_normal_precision(prior).expand(shape))


def _matrix_precision(prior: dist.MultivariateNormal) -> Tensor:
    precision: Tensor = prior.precision_matrix
    return precision


# Of normal priors: all that is asked of them where locations are measured from an origin.
_PRECISIONS: dict[tuple[Kind, type], Callable[[Any], Tensor]] = {
    (COEFFICIENTS, dist.Normal): _normal_precision,
    (LOCATION, dist.Normal): _normal_precision,
    (VECTOR, dist.Normal): _normal_precisions,
    (COEFFICIENTS, dist.MultivariateNormal): _matrix_precision,
    (VECTOR, dist.MultivariateNormal): _matrix_precision,
}


@register_prior(MATRIX, dist.Wishart)
def _wishart(prior: dist.Wishart) -> list[Tensor]:
    dim = prior.event_shape[-1]
    return [prior.df - dim - 1.0, prior.precision_matrix]
