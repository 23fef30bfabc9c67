"""Recognises a site's distribution: its arguments, and the exponential family behind it.

Every distribution can be rebuilt from its arguments; those with a rule (``rules.py``) also have a
form whose slots point at parameters, which is what a closed M-step needs.
"""

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference.reading.affine import AffineMap
from ember.inference.reading.parameter_maps import ArgumentMap
from ember.inference.reading.regression import regression
from ember.inference.reading.unwrapping import MATRICES, given_arguments, unwrap
from ember.inference.rules import COUNTED, RULES
from ember.inference.slots import Form
from ember.inference.sticks import StickMap, stick_form
from ember.inference.superposition import SuperposedRate, superposed_form

__all__ = ["arguments_of", "recognise", "unwrap"]


def arguments_of(base: Any) -> dict[str, list[tuple[str, int, Tensor]]]:
    """Each constructor argument: its alternatives as (domain, event dims, value), best first."""
    if isinstance(base, COUNTED):
        return {"probs": [("simplex", 1, base.probs)]}
    if isinstance(base, (dist.Bernoulli, dist.Geometric, dist.Binomial)):
        found = {"probs": [("unit", 0, base.probs)]}
        if isinstance(base, dist.Binomial):
            found["total_count"] = [("real", 0, base.total_count.to(base.probs.dtype))]
        return found
    if isinstance(base, dist.MultivariateNormal):
        given = next(name for name in MATRICES if name in base.__dict__)
        names = (given, *(name for name in MATRICES if name != given))
        few = getattr(base, given).shape[:-2].numel() <= 1000
        matrices = [(name, 2, getattr(base, name)) for name in (names if few else names[:1])]
        return {"loc": [("vector", 1, base.loc)], "matrix": matrices}
    return {
        name: [(_domain(base.arg_constraints[name]), event_dim, value)]
        for name, (event_dim, value) in given_arguments(base).items()
        if value.is_floating_point()
    }


def _domain(constraint: Any) -> str:
    if constraint.event_dim == 2:
        return "matrix"
    if constraint.event_dim == 1:
        return "simplex" if constraint is constraints.simplex else "vector"
    if constraint is constraints.unit_interval:
        return "unit"
    lower = getattr(constraint, "lower_bound", None)
    positive = lower is not None and bool((torch.as_tensor(lower) >= 0.0).all())
    return "positive" if positive else "real"


def recognise(
    base: Any, maps: Mapping[str, tuple[str, ArgumentMap | AffineMap | SuperposedRate | StickMap]]
) -> Form | str:
    """The exponential-family form of a distribution, or the reason why it has none."""
    found = {name: each for name, (_, each) in maps.items()}
    if isinstance(rate := found.get("rate"), SuperposedRate):
        return superposed_form(rate)
    if isinstance(probs := found.get("probs"), StickMap):
        return stick_form(base, probs)
    affine = {name: each for name, each in found.items() if isinstance(each, AffineMap)}
    if affine:
        scale = found.get("scale")
        if type(base) is dist.Normal and list(affine) == ["loc"] and isinstance(scale, ArgumentMap):
            return regression(affine["loc"], scale)
        first, how = next(iter(affine.items()))
        what = "a product of powers" if how.table.logs else "a weighted sum"
        return f"argument '{first}' is {what} of parameters"
    plain = {name: each for name, each in found.items() if isinstance(each, ArgumentMap)}
    for kind, rule in RULES:
        if isinstance(base, kind):
            return rule(base, plain, {name: how for name, (how, _) in maps.items()})
    return f"{type(base).__name__} has no closed-form family"
