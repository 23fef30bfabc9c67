"""Sites with the Gaussian latents that they read: their slots, and their form with these open.

A known number times a latent moves the event itself: what is left of it when the latent is taken
off has the distribution that the site has at zero. A parameter times a latent makes the latent a
feature of a regression, next to those that the location has without it.
"""

import dataclasses
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families.exponential_form import ExponentialForm
from ember.inference.families.multivariate_normal import MultivariateNormal
from ember.inference.families.regression import regression
from ember.inference.numerics.shapes import prepend_dims
from ember.inference.parameters.affine_map import AffineMap, ParameterEntries
from ember.inference.parameters.argument_map import ArgumentMap, ParameterRows
from ember.inference.parameters.map import ParameterMap
from ember.inference.reading.gaussian.reads import NotIntegrable, Reads
from ember.inference.reading.gaussian.vector_features import vector_features
from ember.inference.reading.site import Site, Slot
from ember.inference.reading.structure import Structure

__all__ = ["linked"]


def linked(site: Site, reads: Sequence[Reads], structure: Structure) -> Site:
    """A site with its slots; a latent moves its own prior.

    Args:
        site: The site as it is at zero of all latents.
        reads: What its location reads.
        structure: The model, for the shapes of its parameters.

    Raises:
        NotIntegrable: If what is left has no sufficient statistics.
    """
    own = _own_slots(site) if site.name in structure.gaussian else []
    if not own and not reads:
        return site
    if site.form is None or site.density is None:
        raise NotIntegrable(
            f"site '{site.name}' takes part in the integration of a Gaussian latent, but it has no "
            f"sufficient statistics ({site.reason}); make its location and scale plain parameters, "
            "constants or weighted sums, or estimate the latent as a parameter with "
            f"integrate={{'{reads[0].latent if reads else site.name}': None}}."
        )
    _check_gaps(site)
    slots = list(own)
    features: list[tuple[Reads, ArgumentMap]] = []
    for each in reads:
        known, fed = _parts(each.coefficient)
        if known is not None:
            slots.append(Slot(each.latent, each.entries, -known))
        if fed is not None:
            features.append((each, fed))
    if not features:
        return dataclasses.replace(site, slots=tuple(slots))
    form, location, fed_slots = _with_features(site, features, structure)
    slots += fed_slots
    argument, _ = site.density.maps["loc"]
    density = dataclasses.replace(
        site.density, maps={**site.density.maps, "loc": (argument, location)}
    )
    return dataclasses.replace(site, form=form, density=density, slots=tuple(slots))


def _check_gaps(site: Site) -> None:
    """Refuses vectors of which some entries are missing, where their matrix is to be estimated."""
    if site.missing is None or site.form is None:
        return
    if isinstance(site.form.family, MultivariateNormal):
        gone = site.missing.sum(-1)
        if bool(((gone > 0) & (gone < site.missing.shape[-1])).any()):
            raise ValueError(
                f"site '{site.name}' is a MultivariateNormal that reads a Gaussian latent, and "
                "some of its vectors are missing in part; make its entries independent "
                "(Normal(...).to_event(1)), or vectors missing as a whole (NaN in all entries)."
            )


def _own_slots(site: Site) -> list[Slot]:
    """Those of a latent in its own prior: it is the event."""
    event = site.value.shape[site.value.dim() - site.event_dim + len(site.inner_shape) :]
    batch = site.value.shape[: site.value.dim() - len(event)]
    first = torch.arange(batch.numel()).reshape(batch) * event.numel()
    if not event:
        return [Slot(site.name, first, torch.ones(()))]
    return [Slot(site.name, first + k, one) for k, one in enumerate(_units(event.numel()))]


def _units(count: int) -> list[Tensor]:
    """The unit vectors, as windows of one vector: their number may be large."""
    wide = torch.zeros(2 * count - 1)
    wide[count - 1] = 1.0
    return [wide[count - 1 - k : 2 * count - 1 - k] for k in range(count)]


def _parts(coefficient: ArgumentMap) -> tuple[Tensor | None, ArgumentMap | None]:
    """A coefficient as what is known of it, and what is gathered from parameters."""
    known: Tensor | None = coefficient.offset
    if not bool((coefficient.offset != 0).any()):
        known = None
    return known, None if coefficient.table is None else coefficient


def _with_features(
    site: Site, features: Sequence[tuple[Reads, ArgumentMap]], structure: Structure
) -> tuple[ExponentialForm, ParameterMap, list[Slot]]:
    """The site as a regression on what it has at zero and on latents, and the slots of these."""
    assert site.density is not None
    if type(site.density.base) is dist.MultivariateNormal:
        found = vector_features(site, features, structure)
        if isinstance(found, str):
            raise NotIntegrable(_no_regression(site, found))
        return found
    form, location = _of_numbers(site, [fed for _, fed in features], structure)
    first = len(location.table.entries[0]) - len(features)
    slots = [
        Slot(each.latent, each.entries, fed.coefficient, first + i)
        for i, (each, fed) in enumerate(features)
    ]
    return form, location, slots


def _of_numbers(
    site: Site, fed: Sequence[ArgumentMap], structure: Structure
) -> tuple[ExponentialForm, AffineMap]:
    """The site as a regression on what it has at zero and on latents, one for each coefficient."""
    assert site.density is not None
    location, scale = site.density.maps["loc"][1], site.density.maps["scale"][1]
    if type(site.density.base) is not dist.Normal or not isinstance(scale, ArgumentMap):
        raise NotIntegrable(_no_regression(site, "it is no Normal with a plain scale"))
    columns = [*_columns(location, site), *((c, True) for c in fed)]
    sources = tuple(dict.fromkeys(name for c, _ in columns for name in c.sources))
    sizes = [structure.parameters[name].shape.numel() for name in sources]
    begin = {name: sum(sizes[:i]) for i, name in enumerate(sources)}
    rank = len(site.layout.outer) + site.layout.inner
    entries = [prepend_dims(_entries(c, begin, structure), rank) for c, _ in columns]
    values = [
        prepend_dims(torch.zeros(()) if latent else c.coefficient, rank) for c, latent in columns
    ]
    joined = torch.stack(torch.broadcast_tensors(*entries), -1)
    rows, index = torch.unique(joined.reshape(-1, len(columns)), dim=0, return_inverse=True)
    table = ParameterEntries(sources, tuple(tuple(row) for row in rows.tolist()))
    features = torch.stack(torch.broadcast_tensors(*values), -1)
    affine = AffineMap(
        "real", "raw", table, index.reshape(joined.shape[:-1]), features, _offset(location)
    )
    places = tuple(range(len(columns) - len(fed), len(columns)))
    form = regression(affine, scale, places)
    if isinstance(form, str):
        raise NotIntegrable(_no_regression(site, form))
    return form, affine


def _columns(location: object, site: Site) -> list[tuple[ArgumentMap, bool]]:
    """The features that a location has at zero of all latents, each as a gathered coefficient."""
    if isinstance(location, ArgumentMap):
        return [] if location.table is None else [(location, False)]
    if not isinstance(location, AffineMap):
        raise NotIntegrable(_no_regression(site, "its location is computed from parameters"))
    table = torch.tensor(location.table.entries)
    return [
        (_column(location, table[:, i][location.index], location.features[..., i]), False)
        for i in range(table.shape[1])
    ]


def _column(location: AffineMap, entries: Tensor, feature: Tensor) -> ArgumentMap:
    """One of the coefficients of a location, as a map of its own."""
    rows = ParameterRows(location.table.sources, "raw", 0)
    return ArgumentMap("real", "raw", rows, entries, feature, torch.zeros(()))


def _entries(found: ArgumentMap, begin: dict[str, int], structure: Structure) -> Tensor:
    """The places of the entries that a map gathers among those of all sources laid end to end."""
    assert found.table is not None
    places = [
        begin[name] + torch.arange(structure.parameters[name].shape.numel())
        for name in found.table.sources
    ]
    return torch.cat(places)[found.index]


def _offset(location: object) -> Tensor:
    """What a location has beside its features."""
    assert isinstance(location, (AffineMap, ArgumentMap))
    return location.offset


def _no_regression(site: Site, why: str) -> str:
    latent = site.name
    return (
        f"site '{latent}' multiplies a Gaussian latent by a parameter, but {why}; "
        "such a site must be a Normal whose location is a weighted sum and whose scale is a "
        "parameter or a constant, or a MultivariateNormal with such vectors and matrices."
    )
