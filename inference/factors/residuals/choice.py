"""Which sites are had by their residuals, and when: see ``factors/residuals/normal.py``."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.factors.exponential import statistics_of
from ember.inference.factors.missing import base_measure, has_gaps
from ember.inference.factors.residuals.counts import CountResiduals, count_rest, counts
from ember.inference.factors.residuals.gaps import GapResiduals
from ember.inference.factors.residuals.lines import (
    LineResiduals,
    compile_lines,
    density_lost,
    line_sums,
    scatter_lost,
)
from ember.inference.factors.residuals.normal import Cells, Residuals
from ember.inference.factors.tied import SiteCells, TiedFactors, TieKey
from ember.inference.families.multivariate_normal import MultivariateNormal
from ember.inference.families.normal import Location, Normal
from ember.inference.families.rates import Rate
from ember.inference.families.regression import Regression
from ember.inference.numerics.design import Frame
from ember.inference.numerics.large_counts import MANY
from ember.inference.numerics.shapes import append_dims, prepend_dims
from ember.inference.reading.site import Site

__all__ = ["ResidualFactors", "reach_of"]


NORMAL = (Normal, Location, MultivariateNormal)
LARGEST = 1e6  # ratio of what is subtracted to what is left: six of sixteen digits may go
Params = Mapping[str, Tensor]
Values = Mapping[TieKey, tuple[Tensor, ...]]


class ResidualFactors:
    """The sites of a plan that can be had by their residuals, compiled when they first are.

    Args:
        sites: All sites.
        cells: The group of each site in exponential-family form, and the cell of every entry.
        dims: The dims of each factor's tensor.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        cells: Mapping[str, SiteCells],
        dims: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._sites, self._cells, self._dims = sites, cells, dims
        self._compiled: dict[str, Residuals] = {}
        members: dict[TieKey, list[str]] = {}
        for name, own in cells.items():
            members.setdefault(own.key, []).append(name)
        self._members = {
            key: names
            for key, names in members.items()
            if all(_is_known(sites[name]) for name in names)
        }

    def needed(self, tied: Mapping[TieKey, TiedFactors], values: Values) -> frozenset[TieKey]:
        """Tied factors whose log densities are small differences of large terms.

        Args:
            tied: The tied factors.
            values: The values of their parameters in each cell.
        """
        lost = (k for k in self._members if bool(_density_lost(tied[k], values[k]).any()))
        return frozenset(lost)

    def lost(self, statistics: Mapping[TieKey, tuple[TiedFactors, Tensor]]) -> frozenset[TieKey]:
        """Groups whose scatter is a small difference of large sums about the reference."""
        return frozenset(k for k in self._members if bool(_scatter_lost(*statistics[k]).any()))

    def unsure(
        self,
        groups: Mapping[TieKey, TiedFactors],
        params: Params,
        sums: Mapping[Any, Tensor],
        count: int,
    ) -> Tensor:
        """Which of several starts are among either, ``(R,)``; groups and sums are of all of them.

        Args:
            groups: The groups of a plan replicated for all starts.
            params: Stacked parameters.
            sums: Statistics ``(R, C, P)`` of each group.
            count: The number ``R`` of starts.
        """
        found = torch.zeros(count, dtype=torch.bool)
        for key in self._members:
            lost = _density_lost(groups[key], groups[key].parameter_values(params))
            lost = lost | _scatter_lost(groups[key], sums[key].flatten(0, 1))
            found |= lost.reshape(count, -1).any(1)
        return found

    def log_probs(
        self, keys: Iterable[TieKey], groups: Mapping[TieKey, TiedFactors], params: Params
    ) -> dict[str, Tensor]:
        """The log probability of every site of some groups, in the dims of its factor."""
        return {
            name: self._residuals(name, groups[key]).log_prob(at)
            for key in keys
            for at in [Cells.of(groups[key], params)]
            for name in self._members[key]
        }

    def sums(
        self, group: TiedFactors, params: Params, posteriors: Mapping[str, Tensor]
    ) -> tuple[TiedFactors, Tensor]:
        """Expected statistics of a group about the mean of each cell, which is its reference."""
        pieces = [(self._residuals(n, group), posteriors[n]) for n in self._members[group.key]]
        at = Cells.of(group, params)
        if isinstance(group.family, Regression):
            lines = [(r, p) for r, p in pieces if isinstance(r, LineResiduals)]
            return line_sums(group, at, lines)
        centre = at.locations
        if not isinstance(group.family, NORMAL):
            return group, _summed(pieces, at, centre, squares=False)[0]
        if group.reference is not None:
            count, total = _summed(pieces, at, centre, squares=False)
            share = count.reshape(-1, *(1,) * (total.dim() - 1))
            centre = centre + torch.where(share > 0.0, total / share, 0.0)
        if isinstance(group.family, Location):
            count, total = _summed(pieces, at, centre, squares=False)
            statistics = torch.stack([total, count], -1)
        elif isinstance(group.family, Normal):
            statistics = torch.stack(_summed(pieces, at, centre, squares=True), -1)
        else:
            count, total, squares = _summed(pieces, at, centre, squares=True)
            rows, columns = torch.triu_indices(*squares.shape[-2:])
            statistics = torch.cat([count[:, None], total, squares[:, rows, columns]], -1)
        if group.reference is None:
            return group, statistics
        reach = group.reach
        if reach is not None and not isinstance(group.family, Location):
            reach = reach + (centre - group.reference).abs()
        return dataclasses.replace(group, reference=centre, reach=reach), statistics

    def _residuals(self, name: str, group: TiedFactors) -> Residuals:
        if name not in self._compiled:
            site, cells, dims = self._sites[name], self._cells[name].index, self._dims[name]
            if group.frame is not None:
                full = prepend_dims(cells, len(site.layout.outer) + site.layout.inner)
                found = compile_lines(site, _unmasked(site), full, dims, group.frame)
                self._compiled[name] = found
            else:
                self._compiled[name] = _compile(site, cells, dims)
        return self._compiled[name]


def _summed(
    pieces: Sequence[tuple[Residuals, Tensor]], at: Cells, centre: Tensor, squares: bool
) -> list[Tensor]:
    """The moments of several sites together, cell by cell."""
    each = [found.moments(at, posterior, centre, squares) for found, posterior in pieces]
    return [torch.stack(same).sum(0) for same in zip(*each, strict=True)]


def _compile(site: Site, cells: Tensor, dims: tuple[str, ...]) -> Residuals:
    """Lays out the data of a site once.

    Args:
        site: The site; its family is a normal one.
        cells: The cell of every entry, batch-shaped, broadcast dims of size 1.
        dims: The dims of the factor's tensor.
    """
    form = site.form
    assert form is not None
    rank = len(site.layout.outer) + site.layout.inner
    if counts(site):
        return _compile_counts(site, prepend_dims(cells, rank), dims)
    if form.centred is not None:
        data = form.centred(_unmasked(site))
        # About itself every entry is zero: what is left are its weight and its base measure.
        statistics, base = statistics_of(site, site.value, data)
        weights = statistics[..., int(isinstance(form.family, Location))]
        data = prepend_dims(data, rank + form.event_dim)
    else:
        statistics, base = statistics_of(site, site.value, 0.0)
        weights = statistics[..., 0]
        data = statistics[..., 1 : 1 + site.value.shape[-1]]
    cells = prepend_dims(cells, rank)
    parts = (weights, base, site.layout.outer, site.inner_shape, dims)
    if has_gaps(site):
        assert site.missing is not None
        missing = prepend_dims(site.missing, rank + 1)
        base = base_measure(site, missing, 0.0)
        missing = missing & ~missing.all(-1, keepdim=True)  # a row without any entry is masked
        parts = (weights, base, *parts[2:])
        return GapResiduals(form.family, cells, data.nan_to_num(), *parts, missing)
    return Residuals(form.family, cells, data, *parts)


def _compile_counts(site: Site, cells: Tensor, dims: tuple[str, ...]) -> CountResiduals:
    statistics, _ = statistics_of(site, site.value, 0.0)
    inside = torch.ones(()) if site.mask is None else site.mask.to(statistics.dtype)
    rest = count_rest(site, statistics)
    base = torch.where(inside > 0, rest, site.masked_log_prob) if site.mask is not None else rest
    inner = site.inner_shape
    if inner:
        shape = torch.broadcast_shapes(base.shape, inner)
        base = base.expand(shape).flatten(len(shape) - len(inner)).sum(-1)
    assert site.form is not None
    assert site.density is not None
    return CountResiduals(
        site.form.family, cells, statistics, prepend_dims(inside, cells.dim()), base,
        site.layout.outer, inner, dims, isinstance(site.density.base, dist.Poisson),
    )  # fmt: skip


def _is_known(site: Site) -> bool:
    return _is_normal(site) or counts(site) or _is_line(site)


def _is_line(site: Site) -> bool:
    return site.form is not None and isinstance(site.form.family, Regression)


def _is_normal(site: Site) -> bool:
    return site.form is not None and isinstance(site.form.family, NORMAL)


def _unmasked(site: Site) -> Tensor:
    """The value, with zeros where entries are masked and may be NaN."""
    if site.mask is None:
        return site.value
    assert site.form is not None
    inside = append_dims(site.mask, site.form.event_dim)
    return torch.where(inside, site.value, torch.zeros((), dtype=site.value.dtype))


def reach_of(
    site: Site, cells: Tensor, reference: Tensor | Frame | float, count: int
) -> Tensor | None:
    """How far the data of each cell lie from the reference, ``(C,)`` or ``(C, D)``.

    Where precisions are known, in standard deviations, next to the root of the largest precision:
    ``(C, 2)``. Of counts it is their size. None for families with neither.
    """
    if site.form is None or not _is_known(site):
        return None
    rank = len(site.layout.outer) + site.layout.inner
    statistics, _ = statistics_of(site, site.value, reference)
    statistics = statistics.nan_to_num()
    if isinstance(reference, Frame):
        squares = Regression.products(statistics, len(reference.centre) + 1)
        far = squares.diagonal(dim1=-2, dim2=-1).sqrt()
    elif isinstance(site.form.family, Location):
        root = statistics[..., 1].sqrt()
        far = torch.stack([statistics[..., 0].abs() / root.clamp_min(1e-300), root], -1)
    elif counts(site):
        is_poisson = isinstance(site.form.family, Rate)  # next to counts are exposures
        far = statistics[..., :1] if is_poisson else statistics.sum(-1, keepdim=True)
    else:
        size = 1 if isinstance(site.form.family, Normal) else site.value.shape[-1]
        far = statistics[..., 1 : 1 + size].abs()
    cells = prepend_dims(cells, rank)
    gone = [i for i in range(rank) if cells.size(i) == 1 and far.size(i) > 1]
    far = far.amax(gone, keepdim=True) if gone else far
    far = far.expand(*cells.shape, far.shape[-1]).reshape(-1, far.shape[-1])
    index = cells.reshape(-1, 1).expand(far.shape)
    reach = far.new_zeros(count, far.shape[-1]).scatter_reduce_(0, index, far, "amax")
    return reach.squeeze(-1) if isinstance(site.form.family, Normal) or counts(site) else reach


def _density_lost(tied: TiedFactors, values: tuple[Tensor, ...]) -> Tensor:
    """Whether the log densities of each cell are small differences of large terms."""
    if tied.reach is None:
        return torch.zeros(len(tied.cells), dtype=torch.bool)
    if isinstance(tied.family, Regression):
        return density_lost(tied, values, LARGEST)
    if not isinstance(tied.family, NORMAL):
        return tied.reach > MANY
    away = values[0].abs()
    if isinstance(tied.family, Location):
        terms = (tied.reach[:, 0] + tied.reach[:, 1] * away).square()
    elif isinstance(tied.family, Normal):
        terms = values[1] * (tied.reach + away).square()
    else:
        diagonal = values[1].diagonal(dim1=-2, dim2=-1)
        terms = (diagonal * (tied.reach + away).square()).sum(-1)
    return terms > LARGEST


def _scatter_lost(group: TiedFactors, sums: Tensor) -> Tensor:
    """Whether the scatter of each cell is a small difference of large sums about the reference.

    Cells that share a scale are asked together: one of a single row has no scatter to lose.
    """
    none = torch.zeros(len(group.cells), dtype=torch.bool)
    if isinstance(group.family, Regression) and group.frame is not None:
        return scatter_lost(sums, len(group.frame.centre), LARGEST)
    if isinstance(group.family, Normal):
        n, s, q = sums.unbind(-1)
        scatter = (q - s.square() / n.clamp_min(1e-300)).clamp_min(0.0)
        return q > LARGEST * _shared(group, scatter)
    if not isinstance(group.family, MultivariateNormal) or group.reach is None:
        return none
    n, s, squares = group.family.moments(sums, group.reach.shape[-1])
    centred = squares - s.unsqueeze(-1) * s.unsqueeze(-2) / n.clamp_min(1e-300)[:, None, None]
    centred = _shared(group, centred)
    factor, failed = torch.linalg.cholesky_ex(centred)
    left = factor.diagonal(dim1=-2, dim2=-1).square()
    left = torch.where((failed > 0)[:, None], 0.0, left)
    return (squares.diagonal(dim1=-2, dim2=-1) > LARGEST * left).any(-1)


def _shared(group: TiedFactors, scatter: Tensor) -> Tensor:
    """For each cell the scatter of all cells with the same scale."""
    own = group.cells[:, 1]
    pooled = scatter.new_zeros(int(own.max()) + 1, *scatter.shape[1:])
    return pooled.index_add_(0, own, scatter)[own]
