r"""What Gaussian latents are taken to be before any parameter is known: where EM starts.

A latent that sites read with known coefficients :math:`c` starts at zero, with the variance that
makes it responsible for half of the spread of what it moves, :math:`\sum c^2 v = s^2 / 2`, whatever
the units of the data. One that parameters multiply (a factor, whose loadings are sought) has the
variance of its prior, and its mean is a principal component of the rows that read it, so that no
two of them are alike.
"""

import torch
from torch import Tensor

from ember.inference.factors.gaussian.component import GaussianComponent, Moments
from ember.inference.initialisation.clustering import standardise
from ember.inference.numerics.shapes import prepend_dims
from ember.inference.plan.plan import Params, Plan
from ember.inference.reading.site import Site, Slot

__all__ = ["starting_moments"]


KNOWN = 0.9  # share of the variance of a principal component that is its mean's
LEAST = 1e-8  # of the spread of what is moved


def starting_moments(plan: Plan, params: Params, varied: bool = False) -> dict[str, Moments]:
    """Mean and covariance of the latents of every component.

    Args:
        plan: The plan.
        params: Where priors without parameters are asked for their variance.
        varied: Whether principal components are blurred at random: starts should differ.
    """
    return {c.factor.name: _moments(plan, c, params, varied) for c in plan.components}


def _moments(plan: Plan, component: GaussianComponent, params: Params, varied: bool) -> Moments:
    variances = _variances(plan, component, params)
    used = 0
    means, covariances = [], []
    for name, count in component.latents.items():
        variance = variances[name]
        scores = _scores(plan, name, count, used)
        if scores is None:
            means.append(torch.zeros(count))
            covariances.append(torch.full((count,), variance))
            continue
        used += _event(plan.sites[name])
        if varied:
            scores = scores + torch.randn_like(scores)
            scores = scores / (1e-300 + scores.square().mean().sqrt())
        means.append((KNOWN * variance) ** 0.5 * scores)
        covariances.append(torch.full((count,), (1.0 - KNOWN) * variance))
    pattern = component.pattern
    diagonal = torch.cat(covariances)[pattern.rows]
    covariance = torch.where(pattern.rows == pattern.columns, diagonal, 0.0)
    return Moments(torch.cat(means), covariance)


def _variances(plan: Plan, component: GaussianComponent, params: Params) -> dict[str, float]:
    """The variance that each latent starts with; data first, then what they move."""
    found: dict[str, float] = {}
    members = [site for name, site in plan.sites.items() if name in component.sites]
    for site in reversed(members):  # data stand below the latents that they read
        spread = _spread(site) if site.name not in component.latents else None
        if site.name in component.latents:
            fixed = _prior_variance(site, params)
            if fixed is not None:
                found[site.name] = fixed
            spread = found.setdefault(site.name, 1.0)
        others = [s for s in site.slots if s.column is None and s.latent != site.name]
        total = sum(float(s.coefficient.square().mean()) for s in others)
        for slot in others:
            share = (spread or 1.0) / (2.0 * total) if total > 0 else 1.0
            found[slot.latent] = min(found.get(slot.latent, share), share)
    return found


def _spread(site: Site) -> float:
    """The variance of a site's data about their mean."""
    value = site.value.detach()
    shown = value.isfinite()
    if site.mask is not None:
        shown = (
            shown
            & site.mask.reshape(
                *site.mask.shape, *(1,) * (value.dim() - site.mask.dim())
            ).expand_as(shown)
            if site.mask.dim() <= value.dim()
            else shown
        )
    data = value[shown]
    if len(data) < 2:
        return 1.0
    variance = float(data.var(correction=0))
    return variance if variance > 0 else max(float(data.abs().max()) ** 2 * LEAST, LEAST)


def _prior_variance(site: Site, params: Params) -> float | None:
    """The variance of a prior without parameters in its scale."""
    assert site.density is not None
    by, scale = site.density.maps["scale" if "scale" in site.density.maps else "matrix"]
    if not scale.is_constant:
        return None
    fn = site.density.distribution(params)
    del by
    return float(fn.variance.mean())


def _event(site: Site) -> int:
    """How many entries of a latent a row reads: the size of its event."""
    return site.value.shape[site.value.dim() - site.event_dim :].numel()


def _scores(plan: Plan, name: str, count: int, first: int) -> Tensor | None:
    """Standardised principal components of the data that read a latent as a feature, flat."""
    latent = plan.sites[name]
    size = _event(latent)
    tables = [
        _table(site, slot, plan, count // size, size)
        for site in plan.sites.values()
        for slot in site.slots
        if slot.latent == name and slot.column is not None
    ][:1]
    if not tables:
        return None
    rows = standardise(tables[0]).nan_to_num()
    left, sizes, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    keep = left[:, first : first + size] * (sizes[first : first + size] > 1e-8 * sizes[:1])
    largest = keep.gather(0, keep.abs().argmax(0, keepdim=True)).sign()
    scores = keep * largest * len(rows) ** 0.5
    if scores.shape[1] < size:
        more = torch.randn(len(rows), size - scores.shape[1])
        scores = torch.cat([scores, more], 1)
    empty = scores.square().sum(0) == 0
    scores = torch.where(empty, torch.randn_like(scores), scores)
    return scores.reshape(-1)


def _table(site: Site, slot: Slot, plan: Plan, rows: int, size: int) -> Tensor:
    """The mean of a site's data by row of a latent and by cell, ``(rows, cells)``."""
    rank = len(site.layout.outer) + site.layout.inner
    form = site.form
    assert form is not None
    value = prepend_dims(site.value, rank)
    shown = value.isfinite()
    if site.mask is not None:
        shown = shown & prepend_dims(site.mask, rank)
    ahead = [i for i, s in enumerate(site.layout.outer) if s in plan.latent_symbols.values()]
    cell = prepend_dims(form.indices[0], rank)
    for i in ahead:
        cell = cell.narrow(i, 0, 1)
    row = prepend_dims(slot.entries, rank) // size
    value, shown, cell, row = torch.broadcast_tensors(value, shown, cell, row)
    columns = torch.unique(cell, return_inverse=True)[1]
    width = int(columns.max()) + 1
    place = (row * width + columns)[shown]
    total = value.new_zeros(rows * width).index_add(0, place, value[shown])
    counts = torch.bincount(place, minlength=rows * width)
    means: Tensor = total / counts
    return means.reshape(rows, width)  # NaN where a row has no data
