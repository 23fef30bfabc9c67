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

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.tied import TiedFactors
from ember.inference.families.family import Family
from ember.inference.families.links import MatrixLink
from ember.inference.families.multivariate_normal import MultivariateNormal
from ember.inference.families.normal import Location, Normal
from ember.inference.numerics.log_space import IMPOSSIBLE, LOG_2PI, safe_log
from ember.inference.numerics.shapes import append_dims, broadcast_shapes

__all__ = ["Cells", "Residuals", "added", "by_rows"]


NORMAL = (Normal, Location, MultivariateNormal)  # families that are had by residuals


def by_rows(entries: Tensor, kept: Sequence[int], batch: int) -> Tensor:
    """Batch dims as rows (those ``kept``) and columns (all others), event dims after them."""
    order = [*kept, *(i for i in range(batch) if i not in kept), *range(batch, entries.dim())]
    rows = torch.Size([entries.size(i) for i in kept]).numel()
    columns = torch.Size([entries.size(i) for i in range(batch) if i not in kept]).numel()
    return entries.permute(order).reshape(rows, columns, *entries.shape[batch:])


def added(rows: Sequence[Tensor], cells: Tensor, count: int) -> list[Tensor]:
    """Sums of rows that belong to the same cell."""
    return [x.new_zeros(count, *x.shape[1:]).index_add_(0, cells, x) for x in rows]


@dataclass(frozen=True)
class Cells:
    """The parameters of each cell of a tied: locations, and precisions or factors of matrices."""

    locations: Tensor
    scales: Tensor
    is_precision: bool

    @staticmethod
    def of(tied: TiedFactors, params: Mapping[str, Tensor]) -> "Cells":
        scale = tied.parameters[-1]
        is_matrix = isinstance(scale.link, MatrixLink)
        values = scale.roots(params) if is_matrix else scale.values(params)
        scales = values[tied.cells[:, -1]]
        at = tied.locations(params)
        if tied.frame is not None:
            at = tied.frame.relative(at)
        return Cells(at, scales, isinstance(scale.link, MatrixLink) and scale.link.is_precision)

    @functools.cached_property
    def whiteners(self) -> tuple[Tensor, Tensor]:
        """``W`` with ``W'W`` the precision, and ``log|W|``."""
        log_det = safe_log(self.scales.diagonal(dim1=-2, dim2=-1).abs()).sum(-1)
        if self.is_precision:
            return self.scales.mT, log_det
        one = torch.eye(self.scales.shape[-1], dtype=self.scales.dtype, device=self.scales.device)
        return torch.linalg.solve_triangular(self.scales, one, upper=False), -log_det


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

    family: Family
    cells: Tensor
    data: Tensor
    weights: Tensor
    base: Tensor
    outer: tuple[str, ...]
    inner: tuple[int, ...]
    dims: tuple[str, ...]

    def log_prob(self, at: Cells) -> Tensor:
        """The log probability, with dims ``self.dims``."""
        residual = self.data - at.locations[self.cells]
        if isinstance(self.family, Location):
            out = -0.5 * residual.square()
        elif isinstance(self.family, Normal):
            rate = at.scales[self.cells]
            out = 0.5 * (safe_log(rate) - LOG_2PI - rate * residual.square())
        else:
            whitener, log_det = at.whiteners
            white = torch.einsum("...ij,...j->...i", whitener[self.cells], residual)
            constant = log_det[self.cells] - 0.5 * residual.shape[-1] * LOG_2PI
            out = constant - 0.5 * white.square().sum(-1)
        return self._finished(out)

    def _finished(self, out: Tensor) -> Tensor:
        """Log probabilities of entries, weighed, summed over events and packed."""
        out = out * self.weights
        if self.inner:
            full = broadcast_shapes(out.shape, self.inner)
            out = out.expand(full).flatten(len(full) - len(self.inner)).sum(-1)
        out = (out + self.base).clamp_min(IMPOSSIBLE)
        kept = [i for i, size in enumerate(out.shape) if size > 1]
        names = [self.outer[i] for i in kept]
        packed = out.reshape([out.size(i) for i in kept])
        return packed.permute([names.index(symbol) for symbol in self.dims])

    def moments(self, at: Cells, posterior: Tensor, centre: Tensor, squares: bool) -> list[Tensor]:
        """Weight, sum and (if wished) sum of squares about a point, for every cell.

        Args:
            at: The parameters, by which missing entries are completed.
            posterior: The weight of every entry of the factor's tensor.
            centre: A point for every cell, ``(C,)`` or ``(C, D)``.
            squares: Whether to take the squares too.
        """
        weight = append_dims(self._spread(posterior), len(self.inner)) * self.weights
        residual = self.data - centre[self.cells]
        batch = residual.shape[: residual.dim() - isinstance(self.family, MultivariateNormal)]
        full = broadcast_shapes(batch, weight.shape, self.cells.shape, self.inner)
        kept = [i for i in range(len(full)) if self.cells.size(i) > 1]
        tail = residual.shape[len(batch) :]
        weight = by_rows(weight.expand(full), kept, len(full))
        residual = by_rows(residual.expand(full + tail), kept, len(full))
        residual = residual.reshape(*weight.shape, -1)
        weight = weight.unsqueeze(-1)
        weighted = weight * residual
        found = [weight.sum((1, 2)), weighted.sum(1).reshape(-1, *tail)]
        if squares:
            found.append((weighted.mT @ residual).reshape(-1, *tail, *tail))
        return added(found, self.cells.reshape(-1), len(centre))

    def _spread(self, posterior: Tensor) -> Tensor:
        """A tensor of the factor's dims over all outer dims, those it lacks of size 1."""
        present = [symbol for symbol in self.outer if symbol in self.dims]
        posterior = posterior.permute([self.dims.index(symbol) for symbol in present])
        sizes = iter(posterior.shape)
        return posterior.reshape([next(sizes) if s in self.dims else 1 for s in self.outer])
