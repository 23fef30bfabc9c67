"""Finds the exponential family behind a distribution: one recogniser for each."""

from collections.abc import Mapping

import pyro.distributions as dist

from ember.inference.families import discrete, multivariate_normal, normal, rates
from ember.inference.families.exponential_form import ExponentialForm, recogniser_of
from ember.inference.families.regression import regression
from ember.inference.families.sticks import StickMap, stick_form
from ember.inference.families.superposition import superposed_form
from ember.inference.numerics.distribution import Distribution
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.map import ParameterMap
from ember.inference.parameters.superposed_rate import SuperposedRate

__all__ = ["recognise"]

REGISTERED = (discrete, multivariate_normal, normal, rates)  # each registers when it is imported


def recognise(
    base: Distribution, maps: Mapping[str, tuple[str, ParameterMap]]
) -> ExponentialForm | str:
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
    recogniser = recogniser_of(base)
    if recogniser is None:
        return f"{type(base).__name__} has no closed-form family"
    return recogniser(base, plain, {name: how for name, (how, _) in maps.items()})
