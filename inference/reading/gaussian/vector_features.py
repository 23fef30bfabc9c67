"""Multivariate normals that multiply Gaussian latents by parameters, as regressions on these."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.inference.families.exponential_form import ExponentialForm
from ember.inference.families.vector_regression import vector_regression
from ember.inference.numerics.shapes import compact, prepend_dims
from ember.inference.parameters.affine_map import ParameterEntries
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.vector_map import Terms, VectorMap
from ember.inference.reading.gaussian.reads import Reads
from ember.inference.reading.site import Site, Slot
from ember.inference.reading.structure import Structure

__all__ = ["vector_features"]


Features = tuple[ExponentialForm, VectorMap, list[Slot]]


def vector_features(
    site: Site, fed: Sequence[tuple[Reads, ArgumentMap]], structure: Structure
) -> Features | str:
    """The site as a regression on latents, its map and the slots of these; or why it is none.

    Args:
        site: The site as it is at zero of all latents.
        fed: What its location reads, with the coefficients that are gathered from parameters.
        structure: The model, for the shapes of its parameters.
    """
    assert site.density is not None
    location, (argument, matrix) = site.density.maps["loc"][1], site.density.maps["matrix"]
    if not isinstance(location, ArgumentMap) or not isinstance(matrix, ArgumentMap):
        return "its location or its matrix is computed from parameters"
    if location.table is not None and not bool((location.coefficient == 1.0).all()):
        return "its location multiplies a vector of parameters by a number"
    size = int(site.value.shape[-1])
    rank = len(site.layout.outer) + site.layout.inner
    sources = tuple(dict.fromkeys([*location.sources, *(n for _, c in fed for n in c.sources)]))
    begin = _begin(sources, structure)
    entries, rows, columns, slots = list[Tensor](), list[int](), list[int](), list[Slot]()
    if location.table is not None:
        own = _entries(location, begin, structure).reshape(-1, size)[location.index]
        entries += own.unbind(-1)
        rows, columns = list(range(size)), [0] * size
    width = 1 if location.table is not None else 0
    for reads, own_map in fed:
        index = _entries(own_map, begin, structure)[own_map.index]
        index = index.expand(own_map.coefficient.shape)
        for factor, places in _alike(own_map.coefficient):
            entries += [index[..., d] for d in places]
            rows += places
            columns += [width] * len(places)
            slots.append(Slot(reads.latent, reads.entries, factor, width))
            width += 1
    every = torch.stack(torch.broadcast_tensors(*(prepend_dims(e, rank) for e in entries)), -1)
    table_rows, index = torch.unique(every.reshape(-1, len(rows)), dim=0, return_inverse=True)
    features = torch.zeros(width)
    if location.table is not None:
        features[0] = 1.0
    offset = location.offset if location.offset.shape[-1] == size else torch.zeros(size)
    terms = Terms(tuple(rows), tuple(columns), (size, width))
    table = ParameterEntries(sources, tuple(tuple(row) for row in table_rows.tolist()))
    found = VectorMap("vector", table, terms, index.reshape(every.shape[:-1]), features, offset)
    latent = tuple(slot.column for slot in slots if slot.column is not None)
    form = vector_regression(found, matrix, argument, latent)
    return form if isinstance(form, str) else (form, found, slots)


def _begin(sources: Sequence[str], structure: Structure) -> dict[str, int]:
    """Where the entries of each source begin among those of all, laid end to end."""
    begin, total = dict[str, int](), 0
    for name in sources:
        begin[name], total = total, total + structure.parameters[name].shape.numel()
    return begin


def _entries(found: ArgumentMap, begin: dict[str, int], structure: Structure) -> Tensor:
    """The places of the entries of a map's table among those of all sources."""
    assert found.table is not None
    places = [
        begin[name] + torch.arange(structure.parameters[name].shape.numel())
        for name in found.table.sources
    ]
    return torch.cat(places)


def _alike(coefficient: Tensor) -> list[tuple[Tensor, list[int]]]:
    """Numbers ``(*batch, D)`` that multiply the entries of a vector: those that differ from zero.

    Each with the places in the vector that it has.
    """
    groups: list[tuple[Tensor, list[int]]] = []
    for place, factor in enumerate(coefficient.unbind(-1)):
        if not bool((factor != 0).any()):
            continue
        known = next((places for other, places in groups if torch.equal(other, factor)), None)
        if known is None:
            groups.append((factor, [place]))
        else:
            known.append(place)
    return [(compact(factor), places) for factor, places in groups]
