"""Conjugate priors as pseudo-statistics: what a prior adds to coefficients.

Each rule turns the prior of a parameter, at the current values of its own parameters, into the
canonical coefficients of ``families/family.py``. The M-step adds them to the expected statistics
and takes the family's maximum-likelihood map, so MLE and MAP share one path. The mode is taken in
the parametrisation in which the model declares the prior.
"""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["pseudo_statistics", "register_prior"]


Rule = Callable[[Any], list[Tensor] | None]
_RULES: dict[tuple[str, str, type], Rule] = {}


def register_prior(kind: str, prior: type, link: str = "identity") -> Callable[[Rule], Rule]:
    """Registers the pseudo-statistics of ``prior`` for family parameters of one kind.

    Args:
        kind: The family parameter's kind (see ``families/family.py``).
        prior: The distribution class of the parameter's prior.
        link: How the parameter relates to the family parameter: "identity", or "power k" for a rate
        that is
            the ``k``-th power of the parameter.
    """

    def register(rule: Rule) -> Rule:
        _RULES[kind, link, prior] = rule
        return rule

    return register


def pseudo_statistics(
    kind: str, link: str, prior: Any, origin: Tensor | None = None
) -> list[Tensor] | None:
    """Coefficients that the prior adds to a parameter, batch-shaped; None if it is not conjugate.

    An improper flat prior adds nothing, whatever the family parameter: the empty list. The
    coefficients of a location are those of its difference from the ``origin``, if one is given.
    """
    if isinstance(prior, dist.ImproperUniform):
        return []
    for cls in type(prior).__mro__:
        rule = _RULES.get((kind, link, cls))
        if rule is not None:
            found = rule(prior)
            return found if origin is None or found is None else _about(origin, kind, prior, found)
    return None


def _about(origin: Tensor, kind: str, prior: Any, found: list[Tensor]) -> list[Tensor]:
    """The coefficients of a location as those of its difference from the origin."""
    linear, precision = found
    normal = isinstance(prior, (dist.Normal, dist.MultivariateNormal))
    away = prior.loc - origin if normal else -origin
    is_vector = kind == "vector"
    moved = (precision @ away.unsqueeze(-1)).squeeze(-1) if is_vector else precision * away
    return [moved if normal else linear + moved, precision]


@register_prior("simplex", dist.Dirichlet)
def _dirichlet(prior: Any) -> list[Tensor]:
    return [prior.concentration - 1.0]


@register_prior("sticks", dist.Beta)
@register_prior("probability", dist.Beta)
def _beta(prior: Any) -> list[Tensor]:
    return [prior.concentration1 - 1.0, prior.concentration0 - 1.0]


@register_prior("sticks", dist.Uniform)
@register_prior("probability", dist.Uniform)
def _uniform(prior: Any) -> list[Tensor] | None:
    if bool((prior.low == 0.0).all()) and bool((prior.high == 1.0).all()):
        return [torch.zeros_like(prior.low), torch.zeros_like(prior.low)]
    return None  # a narrower interval cuts the beta shape off


@register_prior("rate", dist.Gamma, "power 1")
def _gamma(prior: Any) -> list[Tensor]:
    return [prior.concentration - 1.0, prior.rate]


@register_prior("rate", dist.Exponential, "power 1")
def _exponential(prior: Any) -> list[Tensor]:
    return [torch.zeros_like(prior.rate), prior.rate]


@register_prior("rate", dist.InverseGamma, "power -1")
def _inverse_gamma(prior: Any) -> list[Tensor]:
    # In r = 1 / theta the density theta^-(a+1) exp(-b / theta) reads r^(a+1) exp(-b r).
    return [prior.concentration + 1.0, prior.rate]


@register_prior("coefficients", dist.Normal)
@register_prior("location", dist.Normal)
def _normal(prior: Any) -> list[Tensor]:
    precision = prior.scale**-2.0
    return [precision * prior.loc, precision]


@register_prior("coefficients", dist.MultivariateNormal)
@register_prior("vector", dist.MultivariateNormal)
def _multivariate_normal(prior: Any) -> list[Tensor]:
    precision = prior.precision_matrix
    return [(precision @ prior.loc.unsqueeze(-1)).squeeze(-1), precision]


@register_prior("vector", dist.Normal)
def _normal_vector(prior: Any) -> list[Tensor]:
    precision = prior.scale**-2.0
    shape = torch.broadcast_shapes(precision.shape, prior.loc.shape)
    return [(precision * prior.loc).expand(shape), torch.diag_embed(precision.expand(shape))]


@register_prior("matrix", dist.Wishart)
def _wishart(prior: Any) -> list[Tensor]:
    dim = prior.event_shape[-1]
    return [prior.df - dim - 1.0, prior.precision_matrix]
