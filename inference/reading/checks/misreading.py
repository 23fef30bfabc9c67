"""Whether what was read off a model holds where a fit ends, far from where the model was probed.

A few runs cannot show what a model does elsewhere: ``mu if mu < 9 else 2 * mu`` and
``mu.clamp(max=9)`` are ``mu`` at every probe. So the model is asked once more, at the estimates.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ember.inference.families.discrete import COUNTED
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import unexpanded
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.computed_rows import ComputedRows, node_input
from ember.inference.reading.computed import argument_of
from ember.inference.reading.site import DistributionTemplate, Site
from ember.inference.reading.structure import Structure
from ember.inference.reading.unwrapping import unwrap

__all__ = ["MISREAD", "agrees", "misread_sites"]


MISREAD = "its arguments are another function of the parameters where the fit ends"
ROUNDING = 1e-7  # relative to the largest entry of an argument


def misread_sites(
    structure: Structure, sites: Mapping[str, Site], params: Mapping[str, Tensor]
) -> list[str]:
    """Sites whose arguments at ``params`` are not what their maps say.

    Raises:
        ValueError: If the model has other sites or shapes at ``params``.
    """
    densities = {name: site.density for name, site in sites.items() if site.density is not None}
    computed = {name: tables for name, site in sites.items() if (tables := _tables(site))}
    if not densities and not computed:
        return []
    with torch.no_grad():
        try:
            trace = structure.trace(params)
        except (RuntimeError, ArithmeticError, ValueError) as error:
            if "structure depends on parameter values" in str(error):
                raise
            return []  # estimates on the edge of their supports: nothing to compare
        return [
            name
            for name, density in densities.items()
            if not agrees(density, params, trace.nodes[name]["fn"])
        ] + [
            name
            for name, tables in computed.items()
            if not all(_is_computed(t, structure, params, trace.nodes[name]["fn"]) for t in tables)
        ]


def _tables(site: Site) -> list[ComputedRows]:
    """The arguments of a site that are computed from nodes and parameters."""
    parameters = () if site.form is None else site.form.parameters
    return [p.table for p in parameters if isinstance(p.table, ComputedRows)]


def _is_computed(
    table: ComputedRows, structure: Structure, params: Mapping[str, Tensor], fn: Distribution
) -> bool:
    """Whether an argument at the structure's nodes is what the tape makes of them."""
    at = {node_input(name): nodes.values for name, nodes in structure.nodes.items()}
    try:
        (mapped,) = table.tape({**params, **at}).values()
    except RuntimeError:
        return False
    actual = unexpanded(argument_of(unwrap(fn).base, table.argument), table.event_dim)
    return mapped.shape == actual.shape and _close(mapped, actual, 0.0)


def agrees(density: DistributionTemplate, params: Mapping[str, Tensor], fn: Distribution) -> bool:
    """Whether the arguments of a distribution at ``params`` are what their maps say."""
    base = unwrap(fn).base
    if type(base) is not type(density.base):
        return False
    return all(_close(*each) for each in _arguments(density, params, base))


def _arguments(
    density: DistributionTemplate, params: Mapping[str, Tensor], base: Distribution
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Each argument as the maps and as the model have it; logits of a softmax as probabilities.

    The third is how far a model may be off that adds large numbers to a small one.
    """
    for by, argument in density.maps.values():
        mapped = argument.evaluate(params)
        off = argument.rounding(params) if isinstance(argument, AffineMap) else 0.0
        if isinstance(base, COUNTED):
            yield mapped.softmax(-1) if by == "logits" else mapped, base.probs, off
        else:
            yield mapped, getattr(base, by), off


def _close(mapped: Tensor, actual: Tensor, off: float) -> bool:
    mapped, actual = unexpanded(mapped), unexpanded(actual)
    size = actual[actual.isfinite()].abs()
    if mapped is actual or not size.numel():
        return True
    if any(a != b and 1 not in (a, b) for a, b in zip(*_from_right(mapped, actual), strict=False)):
        return False
    error = (mapped - actual).abs()
    # Infinite entries, and those that are no number, must be so in both.
    same = (mapped == actual) | (mapped.isnan() & actual.isnan())
    return bool((same | (error <= ROUNDING * size.max() + off)).all())


def _from_right(*tensors: Tensor) -> Iterator[tuple[int, ...]]:
    """The sizes of each, the last first."""
    return (tuple(reversed(tensor.shape)) for tensor in tensors)
