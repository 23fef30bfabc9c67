r"""What Gaussian latents are taken to be before any parameter is known: where EM starts.

A latent that sites read with known coefficients :math:`c` starts at zero, with the variance that
makes it responsible for half of the spread of what it moves, :math:`\sum c^2 v = s^2 / 2`, whatever
the units of the data. One that parameters multiply (a factor, whose loadings are sought) has the
variance of its prior, and its mean is a principal component of the rows that read it, so that no
two of them are alike. For the states of a chain, rows are windows of steps: as in subspace
identification (Van Overschee & De Moor 1994, *N4SID*, Automatica 30, 75-93) their components follow
the dynamics even where fewer numbers are seen than there are states.
"""

import torch
from torch import Tensor

from ember.inference.factors.gaussian.component import GaussianComponent, Moments
from ember.inference.initialisation.clustering import standardise
from ember.inference.numerics.shapes import append_dims, broadcast_shapes, prepend_dims
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.usual_variances import usual_variances
from ember.inference.reading.site import Site, Slot

__all__ = ["starting_moments"]


KNOWN = 0.9  # share of the variance of a principal component that is its mean's
LEAST = 1e-7  # of the largest singular value: a component that rounding may have made
MANY = 100  # rows for each column from which on their products are enough


def starting_moments(plan: Plan, params: Params, varied: bool = False) -> dict[str, Moments]:
    """Mean and covariance of the latents of every component.

    Args:
        plan: The plan.
        params: Where priors without parameters are asked for their variance.
        varied: Whether principal components are blurred at random: starts should differ.
    """
    return {c.factor.name: _moments(plan, c, params, varied) for c in plan.components}


def _moments(plan: Plan, component: GaussianComponent, params: Params, varied: bool) -> Moments:
    variances = usual_variances(plan, component, params)
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


def _event(site: Site) -> int:
    """How many entries of a latent a row reads: the size of its event."""
    return site.value.shape[site.value.dim() - site.event_dim :].numel()


def _scores(plan: Plan, name: str, count: int, first: int) -> Tensor | None:
    """Standardised principal components of the data that read a latent as a feature, flat."""
    latent = plan.sites[name]
    size = _event(latent)
    chains = plan.structure.gaussian_chains
    if any(name == chain.initial for chain in chains):
        return None  # its readers are the states of all steps
    readers = (
        (site, slot)
        for site in plan.sites.values()
        for slot in site.slots
        if slot.latent == name and slot.column is not None
    )
    reader = next(readers, None)
    if reader is None:
        return None
    rows = standardise(_table(*reader, plan, count // size, size)).nan_to_num()
    read = _columns_read(reader[0], name, size)
    if any(name == chain.latent for chain in chains):
        rows = _windows(rows, int(latent.value.shape[-2]), size)
        read = None
    rows = rows - rows.mean(0)
    if read is not None and size == 1:
        rows, read = rows[:, read[0]], None
    if read is None or bool((read == read[0]).all()):
        left, sizes = _components(rows)
        keep = left[:, first : first + size] * (sizes[first : first + size] > LEAST * sizes[:1])
    else:  # each factor has columns of its own
        keep = torch.cat([_components(rows[:, own])[0][:, :1] for own in read], 1)
    largest = keep.gather(0, keep.abs().argmax(0, keepdim=True)).sign()
    scores = keep * largest * len(rows) ** 0.5
    if scores.shape == (count // size, size):
        scores = scores * _signs(plan, name, scores)
    if scores.shape[1] < size:
        more = torch.randn(len(rows), size - scores.shape[1])
        scores = torch.cat([scores, more], 1)
    empty = scores.square().sum(0) == 0
    filled: Tensor = torch.where(empty, torch.randn_like(scores), scores)
    return filled.reshape(-1)


def _columns_read(site: Site, name: str, size: int) -> Tensor | None:
    """Which entries of a site's vectors read each entry of a latent's event, ``(size, D)``.

    None where the site has no vectors, or an entry is read by none.
    """
    form = site.form
    if form is None or not form.event_dim:
        return None
    width = site.value.shape[-1]
    read = torch.zeros(size, width, dtype=torch.bool, device=site.value.device)
    for slot in site.slots:
        if slot.latent == name:
            used = (slot.coefficient != 0.0).expand(*slot.coefficient.shape[:-1], width)
            for own in torch.unique(slot.entries % size).tolist():
                read[own] |= used.reshape(-1, width).any(0)
    return read if bool(read.any(1).all()) else None


def _signs(plan: Plan, name: str, scores: Tensor) -> Tensor:
    """The sign of each column of scores by the data that read it with known coefficients.

    A factor that raises one column by itself, a marker, would else begin upside down.
    """
    agreement = scores.new_zeros(scores.shape[1])
    for site in plan.sites.values():
        known = [s for s in site.slots if s.latent == name and s.column is None]
        if site.name == name or site.name in plan.structure.gaussian or not known:
            continue
        event = 0 if site.form is None else site.form.event_dim
        batch = site.value.shape[: site.value.dim() - event]
        shown = site.value
        if site.mask is not None and site.mask.dim() <= len(batch):
            shown = torch.where(append_dims(site.mask, event), shown, torch.nan)
        rows = shown.reshape(-1, *shown.shape[len(batch) :])
        centred = (shown - rows.nanmean(0)).nan_to_num()
        sizes = centred.reshape(rows.shape).square().mean(0)
        centred = centred / torch.where(sizes > 0.0, sizes, 1.0)  # whatever their units
        for slot in known:
            if slot.entries.dim() > len(batch) or slot.coefficient.dim() > site.value.dim():
                continue  # which entry it is depends on a latent
            moved = (-slot.coefficient * centred).reshape(*batch, -1).sum(-1)
            entries = slot.entries.expand(batch).reshape(-1)
            share = moved.reshape(-1) * scores.reshape(-1)[entries]
            agreement = agreement.index_add(0, entries % scores.shape[1], share)
    return torch.where(agreement < 0.0, -1.0, 1.0)


def _components(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors of rows, and singular values, the largest first.

    Of many rows by way of their products: what is lost of small values a start does not need.
    """
    if len(rows) < MANY * rows.shape[1]:
        left, sizes, _ = torch.linalg.svd(rows, full_matrices=False)
        return left, sizes
    squares, vectors = torch.linalg.eigh(rows.mT @ rows)
    sizes = squares.flip(0).clamp_min(0.0).sqrt()
    return rows @ vectors.flip(1) / sizes.clamp_min(LEAST * sizes[0] + 1e-300), sizes


def _table(site: Site, slot: Slot, plan: Plan, rows: int, size: int) -> Tensor:
    """The mean of a site's data by row of a latent and by cell, ``(rows, cells)``."""
    rank = len(site.layout.outer) + site.layout.inner
    form = site.form
    assert form is not None
    if form.event_dim:
        return _vectors(site, slot, rows, size)
    value = prepend_dims(site.value, rank)
    shown = value.isfinite()
    if site.mask is not None:
        shown = shown & prepend_dims(site.mask, rank)
    ahead = [i for i, s in enumerate(site.layout.outer) if s in plan.latent_symbols.values()]
    cell = prepend_dims(form.indices[0], rank)
    for i in ahead:
        cell = cell.narrow(i, 0, 1)
    row = prepend_dims(slot.entries, rank) // size
    columns = torch.unique(cell, return_inverse=True)[1]
    width = int(columns.max()) + 1
    place = row * width + columns
    value, shown, place = torch.broadcast_tensors(value, shown, place)
    if not bool(shown.all()):
        value, place = value[shown], place[shown]
    value, place = value.reshape(-1), place.reshape(-1)
    if len(place) != rows * width or bool((place != torch.arange(rows * width)).any()):
        total = value.new_zeros(rows * width).index_add(0, place, value)
        value = total / torch.bincount(place, minlength=rows * width)
    means: Tensor = value.reshape(rows, width)  # NaN where a row has no data
    return means


def _vectors(site: Site, slot: Slot, rows: int, size: int) -> Tensor:
    """The mean of a site's vectors by row of a latent, ``(rows, D)``."""
    rank = len(site.layout.outer) + site.layout.inner
    value, row = prepend_dims(site.value, rank + 1), prepend_dims(slot.entries, rank) // size
    shown = value.isfinite()
    if site.mask is not None:
        shown = shown & prepend_dims(site.mask, rank).unsqueeze(-1)
    shape = broadcast_shapes(value.shape[:-1], row.shape)
    value, shown = (t.expand(*shape, -1).flatten(0, -2) for t in (value, shown))
    place = row.expand(shape).reshape(-1)
    total = value.new_zeros(rows, value.shape[-1])
    counts = total.index_add(0, place, shown.to(value))
    total = total.index_add(0, place, torch.where(shown, value, 0.0))
    return total / counts  # NaN where a row has no data


def _windows(rows: Tensor, steps: int, size: int) -> Tensor:
    """Each step of each chain ``(chains * T, D)`` with its neighbours: twice as many as states."""
    series = rows.reshape(-1, steps, rows.shape[-1])
    reach = min(-(-size // rows.shape[-1]), max(1, (steps - 1) // 2))
    padded = torch.nn.functional.pad(series, (0, 0, reach, reach))
    return padded.unfold(1, 2 * reach + 1, 1).flatten(2).flatten(0, 1)
