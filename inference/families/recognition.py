"""Finds the exponential family behind a distribution: one recogniser for each."""

from collections.abc import Mapping

import pyro.distributions as dist

from ember.inference.families import discrete, multivariate_normal, normal, rates
from ember.inference.families.exponential_form import ExponentialForm, recogniser_of
from ember.inference.families.regression import regression
from ember.inference.families.scaled_normal import scaled_normal_form
from ember.inference.families.sticks import StickMap, stick_form
from ember.inference.families.superposition import superposed_form
from ember.inference.numerics.distribution import Distribution
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.map import ParameterMap
from ember.inference.parameters.scaled_matrix import ScaledMatrix
from ember.inference.parameters.superposed_rate import SuperposedRate

__all__ = ["recognise"]

REGISTERED = (discrete, multivariate_normal, normal, rates)  # each registers when it is imported


def recognise(
    base: Distribution, maps: Mapping[str, tuple[str, ParameterMap]]
) -> ExponentialForm | str:
    """The exponential-family form of a distribution, or the reason why it has none.

    Args:
        base: The distribution.
        maps: Of each argument the name that the model gives it, and where it comes from.
    """
    sources = {argument: source for argument, (_, source) in maps.items()}
    if isinstance(rate := sources.get("rate"), SuperposedRate):
        return superposed_form(rate)
    if isinstance(probs := sources.get("probs"), StickMap):
        return stick_form(base, probs)
    if isinstance(matrix := sources.get("matrix"), ScaledMatrix):
        return scaled_normal_form(matrix, maps["matrix"][0], sources["loc"])
    affine = {name: source for name, source in sources.items() if isinstance(source, AffineMap)}
    if affine:
        scale = sources.get("scale")
        if type(base) is dist.Normal and list(affine) == ["loc"] and isinstance(scale, ArgumentMap):
            return regression(affine["loc"], scale)
        argument, first = next(iter(affine.items()))
        what = "a product of powers" if first.table.logs else "a weighted sum"
        return f"argument '{argument}' is {what} of parameters"
    plain = {name: source for name, source in sources.items() if isinstance(source, ArgumentMap)}
    recogniser = recogniser_of(base)
    if recogniser is None:
        return f"{type(base).__name__} has no closed-form family"
    return recogniser(base, plain, {argument: name for argument, (name, _) in maps.items()})
