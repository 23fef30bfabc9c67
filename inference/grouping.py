"""Pools the sites that read the same slots into groups, and finds the cell of every entry."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ember.inference.design import Frame, frame_of
from ember.inference.factors import Site
from ember.inference.residual_factors import reach_of
from ember.inference.shapes import append_dims
from ember.inference.statistics import Group

__all__ = ["cells_of", "group_of", "group_sites"]


def group_sites(
    sites: Mapping[str, Site],
) -> tuple[dict[tuple[Any, ...], Group], dict[str, tuple[tuple[Any, ...], Tensor, Any]]]:
    """Pools sites that read the same slots, and finds the cell of every entry of every site."""
    members: dict[tuple[Any, ...], list[Site]] = {}
    for site in sites.values():
        if site.form is not None:
            key = (type(site.form.family).__name__, *(slot.key for slot in site.form.slots))
            members.setdefault(key, []).append(site)
    groups: dict[tuple[Any, ...], Group] = {}
    cells: dict[str, tuple[tuple[Any, ...], Tensor, Any]] = {}
    for key, pooled in members.items():
        rows = [_slot_rows(site) for site in pooled]
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
        groups[key] = Group(key, form.family, form.slots, combinations, at_cell, reach, at_lines)
        for site, index in zip(pooled, indices, strict=True):
            cells[site.name] = (key, index, at_entry if frame is None else frame)
    return groups, cells


def _slot_rows(site: Site) -> Tensor:
    assert site.form is not None
    return torch.stack(torch.broadcast_tensors(*site.form.indices), -1)


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(-1, rows.shape[-1])


def cells_of(site: Site) -> Tensor:
    """The cell of every entry of a site, for a group that holds this site alone."""
    rows = _slot_rows(site)
    flat: Tensor = torch.unique(_flat(rows), dim=0, return_inverse=True)[1]
    return flat.reshape(rows.shape[:-1])


def _frame(pooled: list[Site]) -> Frame:
    """The frame of the designs of all sites together."""
    rows = []
    for site in pooled:
        assert site.form is not None
        assert site.form.design is not None
        x, y, weights = site.form.design(site.value)
        if site.mask is not None:
            shape = torch.broadcast_shapes(weights.shape, site.mask.shape)
            weights = torch.where(site.mask, weights, 0.0)
            x, y = x.expand(*shape, x.shape[-1]), y.expand(shape)
        rows.append((x.reshape(-1, x.shape[-1]), y.reshape(-1), weights.reshape(-1)))
    return frame_of(*(torch.cat(column) for column in zip(*rows, strict=True)))


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
        value = torch.where(inside, value, torch.full((), torch.nan))
    data = first.form.centred(value)
    tail = first.form.event_dim + len(first.inner_shape)
    lead = data.dim() - tail
    mean = data.flatten(0, lead - 1).nanmean(0) if lead > 0 else data
    mean = mean.nan_to_num(nan=0.0)
    if first.form.event_dim:
        # Vectors share one reference point: the mean of all of them.
        mean = mean.reshape(-1, mean.shape[-1]).mean(0)
        return mean, mean.expand(count, -1).clone()
    at_cell = torch.full((count,), torch.nan)
    for site, index in zip(pooled, indices, strict=True):
        inner = len(site.inner_shape)
        shape = torch.broadcast_shapes(index.shape, site.inner_shape)
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


def group_of(site: Site) -> Group | None:
    """The group of a single site, for priors; None if the site has no form."""
    if site.form is None:
        return None
    cells = torch.unique(_flat(_slot_rows(site)), dim=0)
    return Group((site.name,), site.form.family, site.form.slots, cells)
