"""Ties the sites that read the same entries of parameters, and finds the cell of every entry."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.factors.residuals.digits import reach_of
from ember.inference.factors.tied import SiteCells, TiedFactors, TieKey
from ember.inference.families.exponential_form import ExponentialForm
from ember.inference.numerics.design import Frame, frame_of, level_frame
from ember.inference.numerics.shapes import append_dims, broadcast_shapes, compact, unexpanded
from ember.inference.reading.site import Site

__all__ = ["cells_of", "tie_of_site", "tie_sites"]


LEAST_SHARE = 1e-7  # of the spread of observations that latents explain
ROBUST = 20  # steps of weighted least squares
ROUNDED = 1e-3  # of the middle residual: smaller ones weigh no more


def tie_sites(sites: Mapping[str, Site]) -> tuple[dict[TieKey, TiedFactors], dict[str, SiteCells]]:
    """Pools sites that read the same entries, and finds the cell of every entry of every site."""
    members: dict[TieKey, list[Site]] = {}
    for site in sites.values():
        if site.form is not None:
            members.setdefault(_key(site.form), []).append(site)
    tied: dict[TieKey, TiedFactors] = {}
    cells: dict[str, SiteCells] = {}
    for key, pooled in members.items():
        rows = [_parameter_rows(site) for site in pooled]
        combinations, place = torch.unique(
            torch.cat([_flat(row) for row in rows]), dim=0, return_inverse=True
        )
        places = place.split([row[..., 0].numel() for row in rows])
        indices = [p.reshape(row.shape[:-1]) for p, row in zip(places, rows, strict=True)]
        form = pooled[0].form
        assert form is not None
        at_entry, at_cell = _references(pooled, indices, len(combinations))
        frame = None if form.design is None else _frame(pooled)
        reaches = [
            reach_of(site, index, at_entry if frame is None else frame, len(combinations))
            for site, index in zip(pooled, indices, strict=True)
        ]
        known = [reach for reach in reaches if reach is not None]
        reach = torch.stack(known).amax(0) if known else None
        at_lines = None if frame is None else frame.about(frame.line.expand(len(combinations), -1))
        # What latents move is known by its moments alone.
        moved = any(slot.latent != site.name for site in pooled for slot in site.slots)
        tied[key] = TiedFactors(
            key, form.family, form.parameters, combinations, at_cell, reach, at_lines,
            LEAST_SHARE if moved else 0.0,
        )  # fmt: skip
        for site, index in zip(pooled, indices, strict=True):
            cells[site.name] = SiteCells(key, index, at_entry if frame is None else frame)
    return tied, cells


def _key(form: ExponentialForm) -> TieKey:
    reads = "".join(parameter.digest for parameter in form.parameters)
    return TieKey(form.family.name, hashlib.sha1(reads.encode()).hexdigest())


def _parameter_rows(site: Site) -> Tensor:
    assert site.form is not None
    return torch.stack(torch.broadcast_tensors(*site.form.indices), -1)


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(-1, rows.shape[-1])


def cells_of(site: Site) -> Tensor:
    """The cell of every entry of a site, as if it were tied to no other."""
    rows = _parameter_rows(site)
    flat: Tensor = torch.unique(_flat(rows), dim=0, return_inverse=True)[1]
    return flat.reshape(rows.shape[:-1])


def _frame(pooled: list[Site]) -> Frame:
    """The frame of the designs of all sites together."""
    designs = [_design(site) for site in pooled]
    forms = [site.form for site in pooled if site.form is not None]
    # Features that are latent in all sites come last: they are seen as zeros here, which they will
    # not stay.
    always = set.intersection(*({*form.latent_features} for form in forms))
    width = designs[0][0].shape[-1]
    kept = next((i + 1 for i in reversed(range(width)) if i not in always), 1)
    frame = _level(designs) if kept == 1 and not any(s.conjugate for s in pooled) else None
    if frame is None:
        parts = [(x[..., :kept], y, weights) for x, y, weights in designs]
        rows = [(x.reshape(-1, kept), y.reshape(-1), w.reshape(-1)) for x, y, w in parts]
        x, y, weights = (torch.cat(column) for column in zip(*rows, strict=True))
        frame = frame_of(x, y, weights)
        if any(site.conjugate is not None for site in pooled):
            frame = _unmoved_by_outliers(frame, x, y, weights)
    frame = frame.widened(width)
    latent = sorted({i for form in forms for i in form.latent_features})
    if not latent:
        return frame
    return dataclasses.replace(
        frame, dependent=frame.dependent.index_fill(0, torch.tensor(latent), False)
    )


def _design(site: Site) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``(*batch, F)``, responses and weights of a site, those of masked events zero."""
    assert site.form is not None
    assert site.form.design is not None
    x, y, weights = site.form.design(site.value)
    if site.mask is not None:
        shape = broadcast_shapes(weights.shape, site.mask.shape)
        weights = torch.where(site.mask, weights, 0.0)
        x, y = x.expand(*shape, x.shape[-1]), y.expand(shape)
    return x, y, weights


def _level(designs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Frame | None:
    """The frame where all rows are alike but for their responses; None where they are not."""
    alike = set[tuple[float, float]]()
    for x, _, weights in designs:
        x, weights = compact(unexpanded(x[..., 0])), compact(unexpanded(weights))
        if x.numel() != 1 or weights.numel() != 1:
            return None
        alike.add((float(x), float(weights)))
    total = sum(float(y.sum()) for _, y, _ in designs)
    ((value, weight),) = alike if len(alike) == 1 else ((0.0, 0.0),)
    if value == 0.0 or not weight > 0.0 or not math.isfinite(value * total):
        return None
    return level_frame(value, total / sum(y.numel() for _, y, _ in designs))


def _unmoved_by_outliers(frame: Frame, x: Tensor, y: Tensor, weights: Tensor) -> Frame:
    """A frame whose line of reference is near that of least absolute deviations."""
    shown = (weights > 0) & x.isfinite().all(-1) & y.isfinite()
    q, y, weights = frame.features(x[shown]), y[shown].unsqueeze(-1), weights[shown].unsqueeze(-1)
    line = frame.line.unsqueeze(-1)
    for _ in range(ROBUST if len(y) else 0):
        size = (y - q @ line).abs()
        root = (weights / size.clamp_min(ROUNDED * size.median() + 1e-300)).sqrt()
        line = torch.linalg.lstsq(root * q, root * y, driver="gelsd").solution
    return frame.about(line[:, 0].clone())


def _references(
    pooled: list[Site], indices: list[Tensor], count: int
) -> tuple[Tensor | float, Tensor | None]:
    """A point near the data, for each event entry and for each cell; the same for all sites."""
    first = pooled[0]
    assert first.form is not None
    if first.form.centred is None:
        return 0.0, None
    value = first.value
    if first.mask is not None:
        inside = append_dims(first.mask, first.form.event_dim)
        value = torch.where(inside, value, torch.nan)
    data = first.form.centred(value)
    tail = first.form.event_dim + len(first.inner_shape)
    lead = data.dim() - tail
    flat = data.flatten(0, lead - 1) if lead > 0 else data.unsqueeze(0)
    # Outliers, which a latent factor of the precision is there for, must not move it far away.
    mean = flat.nanmean(0) if first.conjugate is None else flat.nanmedian(0).values
    mean = mean.nan_to_num(nan=0.0)
    if first.form.event_dim:
        # Vectors share one reference point: the mean of all of them.
        mean = mean.reshape(-1, mean.shape[-1]).mean(0)
        return mean, mean.expand(count, -1).clone()
    at_cell = mean.new_full((count,), torch.nan)
    for site, index in zip(pooled, indices, strict=True):
        inner = len(site.inner_shape)
        shape = broadcast_shapes(index.shape, site.inner_shape)
        wanted = mean.expand(shape) if site.inner_shape == first.inner_shape else None
        if wanted is None or (inner and index.shape[-inner:] != site.inner_shape):
            break
        at_cell[index.expand(shape)] = wanted
        if not torch.equal(at_cell[index.expand(shape)], wanted.contiguous()):
            break
    else:
        if not bool(at_cell.isnan().any()):
            return mean, at_cell
    overall = mean.mean()
    return overall, overall.expand(count).clone()


def tie_of_site(site: Site) -> TiedFactors | None:
    """A single site by itself, for priors; None if the site has no form."""
    if site.form is None:
        return None
    cells = torch.unique(_flat(_parameter_rows(site)), dim=0)
    key = TieKey(type(site.form.family).__name__, f"the prior of {site.name}")
    return TiedFactors(key, site.form.family, site.form.parameters, cells)
