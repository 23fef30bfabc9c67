"""What the arguments of a site's distribution do with the parameters, by comparing a few runs."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import pyro.distributions as dist
from torch import Tensor

from ember.inference.families.discrete import COUNTED
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import compact_alike
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.map import ParameterMap
from ember.inference.parameters.scaled_matrix import ScaledMatrix
from ember.inference.reading.distributions import Alternatives, arguments_of
from ember.inference.reading.matching.affine import match_affine
from ember.inference.reading.matching.arguments import (
    ArgumentValues,
    match_argument,
)
from ember.inference.reading.matching.scaled_matrix import match_scaled_matrix
from ember.inference.reading.matching.sticks import match_sticks
from ember.inference.reading.matching.superposition import match_superposition
from ember.inference.reading.predictors import predictors_of
from ember.inference.reading.probes import Probes
from ember.inference.reading.structure import Structure

__all__ = ["argument_maps"]


Map = TypeVar("Map", ArgumentMap, AffineMap, ScaledMatrix)


def argument_maps(
    name: str, bases: Sequence[Distribution], structure: Structure, probes: Probes
) -> dict[str, tuple[str, ParameterMap]] | str:
    """The map of each argument, with the name to pass it by; or why an argument has none."""
    arguments = [arguments_of(base) for base in bases]
    maps = {}
    for argument in arguments[0]:
        found = _map(name, argument, arguments, bases[0], structure, probes)
        if isinstance(found, str):
            return found
        maps[argument] = found
    return maps


def _map(
    name: str,
    argument: str,
    arguments: Sequence[Alternatives],
    base: Distribution,
    structure: Structure,
    probes: Probes,
) -> tuple[str, ParameterMap] | str:
    """The map of one argument: of the kinds that there are, the first that describes it."""
    gathered = _match(argument, arguments, structure, probes.params)
    gathered = _unless_hidden(name, argument, probes, gathered)
    if gathered is None and type(base) is dist.Poisson:
        superposed = match_superposition(name, structure, probes.params, probes.traces)
        if superposed is not None:
            return superposed if isinstance(superposed, str) else (argument, superposed)
    if gathered is None and argument == "probs" and isinstance(base, COUNTED):
        sticks = match_sticks(name, structure, probes.params, probes.traces)
        if sticks is not None:
            return argument, sticks
    if gathered is None and argument == "matrix":
        scaled = _unless_hidden(name, argument, probes, _match_scaled(arguments, structure, probes))
        if scaled is not None:
            return scaled
    if probes.moves is not None and (gathered is None or _multiplies(gathered[1])):
        # A number that multiplies one parameter may hide others in its rounding.
        domain = arguments[0][argument][0][0]
        affine = match_affine(name, predictors_of(base, argument, domain), probes.moves)
        affine = _unless_hidden(name, argument, probes, affine)
        if affine is not None:
            return affine
    if gathered is None:
        return f"argument '{argument}' of {type(base).__name__} is computed from parameters"
    return gathered


def _unless_hidden(
    site: str, argument: str, probes: Probes, found: tuple[str, Map] | None
) -> tuple[str, Map] | None:
    """A map, unless the argument depends on more than its values show."""
    if found is None or probes.gradients is None:
        return found
    return None if probes.gradients.hides(site, argument, *found) else found


def _multiplies(found: ArgumentMap) -> bool:
    """Whether a real argument is a parameter's entry times a number."""
    coefficients = found.coefficient[found.coefficient != 0]
    return found.domain == "real" and found.space == "raw" and bool((coefficients != 1.0).any())


def _match(
    name: str,
    arguments: Sequence[Alternatives],
    structure: Structure,
    params: Sequence[Mapping[str, Tensor]],
) -> tuple[str, ArgumentMap] | None:
    """The first alternative of an argument that a map describes, with the name to pass it by."""
    for i, (domain, event_dim, _) in enumerate(arguments[0][name]):
        values = [each[name][i][2] for each in arguments]
        if structure.gaussian:  # beside latents at zero all rows of the data may be alike
            values = compact_alike(values, event_dim)
        is_matrix = name == "matrix"
        probed = ArgumentValues("matrix" if is_matrix else domain, event_dim, _doubled(values))
        found = match_argument(probed, structure.parameters, params)
        if found is not None:
            return (domain if is_matrix else name), found
    return None


def _match_scaled(
    arguments: Sequence[Alternatives], structure: Structure, probes: Probes
) -> tuple[str, ScaledMatrix] | None:
    """The matrix of a normal as the model gives it, if it is known but for a factor."""
    by, _, _ = arguments[0]["matrix"][0]
    values = [each["matrix"][0][2] for each in arguments]
    found = match_scaled_matrix(values, structure.parameters, probes.params)
    return None if found is None else (by, found)


def _doubled(values: list[Tensor]) -> list[Tensor]:
    return [value.double() for value in values]
