r"""Normal data by their residuals, for where sufficient statistics would lose digits.

About one reference, the log density :math:`\eta'T(x)` and the scatter :math:`q - 2 m s + n m^2`
are differences of numbers larger than themselves by the square of the distance from the reference
in standard deviations. Among clusters that lie a million deviations apart, or in columns that all
but determine each other, nothing would be left. There the density is computed from residuals,
whitened by a factor,

.. math::

    \log p(x) = \log|W| - \tfrac12 \lVert W (x - m) \rVert^2 - \tfrac D2 \log 2\pi,
    \qquad W'W = \Lambda,

and the moments are taken in two passes about the mean of each cell itself. This costs a pass over
``K N D`` numbers instead of one matrix product, so it is done only where digits are at stake.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.inference.factors import Site, statistics_of
from ember.inference.families import (
    IMPOSSIBLE,
    LOG_2PI,
    Location,
    MultivariateNormal,
    Normal,
    safe_log,
)
from ember.inference.shapes import append_dims, prepend_dims
from ember.inference.statistics import Group

__all__ = ["LostDigits", "ResidualFactors", "reach_of"]

NORMAL = (Normal, Location, MultivariateNormal)
LARGEST = 1e6  # ratio of what is subtracted to what is left: six of sixteen digits may go


class LostDigits(ArithmeticError):
    """Several starts share one reference, which is not near enough to the data of some of them."""


Key = tuple[Any, ...]
Params = Mapping[str, Tensor]


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
        cells: Mapping[str, tuple[Key, Tensor]],
        dims: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._sites, self._cells, self._dims = sites, cells, dims
        self._compiled: dict[str, Residuals] = {}
        members: dict[Key, list[str]] = {}
        for name, (key, _) in cells.items():
            members.setdefault(key, []).append(name)
        self._members = {
            key: names for key, names in members.items() if all(map(self._has_residuals, names))
        }

    def _has_residuals(self, name: str) -> bool:
        site = self._sites[name]
        gaps = site.missing is not None and isinstance(site.form.family, MultivariateNormal)
        return isinstance(site.form.family, NORMAL) and not gaps

    def needed(self, groups: Mapping[Key, Group], params: Params) -> frozenset[Key]:
        """Groups whose log densities at ``params`` are small differences of large terms."""
        return frozenset(k for k in self._members if _density_lost(groups[k], params))

    def lost(self, statistics: Mapping[Key, tuple[Group, Tensor]]) -> frozenset[Key]:
        """Groups whose scatter is a small difference of large sums about the reference."""
        return frozenset(k for k in self._members if _scatter_lost(*statistics[k]))

    def log_probs(
        self, keys: Iterable[Key], groups: Mapping[Key, Group], params: Params
    ) -> dict[str, Tensor]:
        """The log probability of every site of some groups, in the dims of its factor."""
        return {
            name: self._residuals(name).log_prob(groups[key], params)
            for key in keys
            for name in self._members[key]
        }

    def sums(
        self, group: Group, params: Params, posteriors: Mapping[str, Tensor]
    ) -> tuple[Group, Tensor]:
        """Expected statistics of a group about the mean of each cell, which is its reference."""
        pieces = [(self._residuals(n), posteriors[n]) for n in self._members[group.key]]
        centre = group.locations(params)
        if group.reference is not None:
            count, total = _summed(pieces, centre, squares=False)
            share = count.reshape(-1, *(1,) * (total.dim() - 1))
            centre = centre + torch.where(share > 0.0, total / share, 0.0)
        if isinstance(group.family, Location):
            count, total = _summed(pieces, centre, squares=False)
            statistics = torch.stack([total, count], -1)
        elif isinstance(group.family, Normal):
            statistics = torch.stack(_summed(pieces, centre, squares=True), -1)
        else:
            count, total, squares = _summed(pieces, centre, squares=True)
            rows, columns = torch.triu_indices(*squares.shape[-2:])
            statistics = torch.cat([count[:, None], total, squares[:, rows, columns]], -1)
        if group.reference is None:
            return group, statistics
        reach = group.reach
        if reach is not None and not isinstance(group.family, Location):
            reach = reach + (centre - group.reference).abs()
        return dataclasses.replace(group, reference=centre, reach=reach), statistics

    def _residuals(self, name: str) -> "Residuals":
        if name not in self._compiled:
            self._compiled[name] = _compile(
                self._sites[name], self._cells[name][1], self._dims[name]
            )
        return self._compiled[name]


def _summed(
    pieces: Sequence[tuple["Residuals", Tensor]], centre: Tensor, squares: bool
) -> list[Tensor]:
    """The moments of several sites together, cell by cell."""
    each = [found.moments(posterior, centre, squares) for found, posterior in pieces]
    return [torch.stack(same).sum(0) for same in zip(*each, strict=True)]


@dataclass(frozen=True)
class Residuals:
    """A site of a normal family, entry by entry.

    Attributes:
        family: Its family.
        cells: The cell of every entry, at full rank, broadcast dims of size 1.
        data: What the location is subtracted from, ``(*batch)``, or ``(*batch, D)`` of vectors.
        weights: 0 where an entry is masked; else 1, or the precision where that is known.
        base: What does not depend on parameters, over the outer dims.
        outer: The name of every outer dim.
        inner: The sizes of the event dims made of batch dims.
        dims: The names of the factor's dims, in its order.
    """

    family: Any
    cells: Tensor
    data: Tensor
    weights: Tensor
    base: Tensor
    outer: tuple[str, ...]
    inner: tuple[int, ...]
    dims: tuple[str, ...]

    @property
    def _event(self) -> int:
        return int(isinstance(self.family, MultivariateNormal))

    def log_prob(self, group: Group, params: Params) -> Tensor:
        """The log probability, with dims ``self.dims``."""
        residual = self.data - group.locations(params)[self.cells]
        if isinstance(self.family, Location):
            out = -0.5 * residual.square()
        elif isinstance(self.family, Normal):
            rate = group.slots[1].values(params)[group.cells[:, 1]][self.cells]
            out = 0.5 * (safe_log(rate) - LOG_2PI - rate * residual.square())
        else:
            whitener, log_det = group.slots[1].whiteners(params)
            rows = group.cells[:, 1][self.cells]
            white = torch.einsum("...ij,...j->...i", whitener[rows], residual)
            constant = log_det[rows] - 0.5 * residual.shape[-1] * LOG_2PI
            out = constant - 0.5 * white.square().sum(-1)
        out = out * self.weights
        if self.inner:
            full = torch.broadcast_shapes(out.shape, self.inner)
            out = out.expand(full).flatten(len(full) - len(self.inner)).sum(-1)
        out = (out + self.base).clamp_min(IMPOSSIBLE)
        kept = [i for i, size in enumerate(out.shape) if size > 1]
        names = [self.outer[i] for i in kept]
        packed = out.reshape([out.size(i) for i in kept])
        return packed.permute([names.index(symbol) for symbol in self.dims])

    def moments(self, posterior: Tensor, location: Tensor, squares: bool) -> list[Tensor]:
        """Weight, sum and (if wished) sum of squares about a location, for every cell.

        Args:
            posterior: The weight of every entry of the factor's tensor.
            location: A point for every cell, ``(C,)`` or ``(C, D)``.
            squares: Whether to take the squares too.
        """
        weight = append_dims(self._spread(posterior), len(self.inner)) * self.weights
        residual = self.data - location[self.cells]
        batch = residual.shape[: residual.dim() - self._event]
        full = torch.broadcast_shapes(batch, weight.shape, self.cells.shape, self.inner)
        kept = [i for i in range(len(full)) if self.cells.size(i) > 1]
        order = [*kept, *(i for i in range(len(full)) if i not in kept)]
        rows = torch.Size([full[i] for i in kept]).numel()
        weight = weight.expand(full).permute(order).reshape(rows, -1, 1)
        tail = residual.shape[len(batch) :]
        residual = residual.expand(full + tail).permute([*order, *range(len(full), residual.dim())])
        residual = residual.reshape(rows, weight.shape[1], -1)
        weighted = weight * residual
        found = [weight.sum((1, 2)), weighted.sum(1).reshape(rows, *tail)]
        if squares:
            found.append((weighted.mT @ residual).reshape(rows, *tail, *tail))
        cells = self.cells.reshape(-1)
        zeros = [x.new_zeros(len(location), *x.shape[1:]) for x in found]
        return [zero.index_add_(0, cells, x) for zero, x in zip(zeros, found, strict=True)]

    def _spread(self, posterior: Tensor) -> Tensor:
        """A tensor of the factor's dims over all outer dims, those it lacks of size 1."""
        present = [symbol for symbol in self.outer if symbol in self.dims]
        posterior = posterior.permute([self.dims.index(symbol) for symbol in present])
        sizes = iter(posterior.shape)
        return posterior.reshape([next(sizes) if s in self.dims else 1 for s in self.outer])


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
    return Residuals(
        form.family, prepend_dims(cells, rank), data, weights, base,
        site.layout.outer, site.inner_shape, dims,
    )  # fmt: skip


def _unmasked(site: Site) -> Tensor:
    """The value, with zeros where entries are masked and may be NaN."""
    if site.mask is None:
        return site.value
    assert site.form is not None
    inside = append_dims(site.mask, site.form.event_dim)
    return torch.where(inside, site.value, torch.zeros((), dtype=site.value.dtype))


def reach_of(site: Site, cells: Tensor, reference: Tensor | float, count: int) -> Tensor | None:
    """How far the data of each cell lie from the reference, ``(C,)`` or ``(C, D)``.

    Where precisions are known, in standard deviations, next to the root of the largest precision:
    ``(C, 2)``. None for families without a location.
    """
    if site.form is None or not isinstance(site.form.family, NORMAL):
        return None
    rank = len(site.layout.outer) + site.layout.inner
    statistics, _ = statistics_of(site, site.value, reference)
    statistics = statistics.nan_to_num()
    if isinstance(site.form.family, Location):
        root = statistics[..., 1].sqrt()
        far = torch.stack([statistics[..., 0].abs() / root.clamp_min(1e-300), root], -1)
    else:
        size = 1 if isinstance(site.form.family, Normal) else site.value.shape[-1]
        far = statistics[..., 1 : 1 + size].abs()
    cells = prepend_dims(cells, rank)
    gone = [i for i in range(rank) if cells.size(i) == 1 and far.size(i) > 1]
    far = far.amax(gone, keepdim=True) if gone else far
    far = far.expand(*cells.shape, far.shape[-1]).reshape(-1, far.shape[-1])
    index = cells.reshape(-1, 1).expand(far.shape)
    reach = far.new_zeros(count, far.shape[-1]).scatter_reduce_(0, index, far, "amax")
    return reach.squeeze(-1) if isinstance(site.form.family, Normal) else reach


def _density_lost(group: Group, params: Params) -> bool:
    """Whether the log densities of a group at ``params`` are small differences of large terms."""
    if group.reach is None:
        return False
    away = group.slot_values(params)[0].abs()
    if isinstance(group.family, Location):
        terms = (group.reach[:, 0] + group.reach[:, 1] * away).square()
    elif isinstance(group.family, Normal):
        rate = group.slots[1].values(params)[group.cells[:, 1]]
        terms = rate * (group.reach + away).square()
    else:
        precision = group.slots[1].values(params).diagonal(dim1=-2, dim2=-1)
        terms = (precision[group.cells[:, 1]] * (group.reach + away).square()).sum(-1)
    return bool((terms > LARGEST).any())


def _scatter_lost(group: Group, sums: Tensor) -> bool:
    """Whether the scatter of a cell is a small difference of large sums about the reference."""
    if isinstance(group.family, Normal):
        n, s, q = sums.unbind(-1)
        left = q - s.square() / n.clamp_min(1e-300)
    elif isinstance(group.family, MultivariateNormal) and group.reach is not None:
        n, s, squares = group.family.moments(sums, group.reach.shape[-1])
        centred = squares - s.unsqueeze(-1) * s.unsqueeze(-2) / n.clamp_min(1e-300)[:, None, None]
        factor, failed = torch.linalg.cholesky_ex(centred)
        left = factor.diagonal(dim1=-2, dim2=-1).square()
        left = torch.where((failed > 0)[:, None], 0.0, left)
        q = squares.diagonal(dim1=-2, dim2=-1)
    else:
        return False
    return bool((q > LARGEST * left.clamp_min(0.0)).any())
