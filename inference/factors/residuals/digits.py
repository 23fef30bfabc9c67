"""When digits are lost: where log densities or scatters are small differences of large numbers."""

import torch
from torch import Tensor

from ember.inference.factors.exponential import statistics_of
from ember.inference.factors.residuals import lines
from ember.inference.factors.residuals.compiling import has_residuals
from ember.inference.factors.residuals.counts import counts
from ember.inference.factors.residuals.normal import NORMAL
from ember.inference.factors.tied import TiedFactors
from ember.inference.families.multivariate_normal import MultivariateNormal, VectorStatistics
from ember.inference.families.normal import Location, Normal, NormalStatistics
from ember.inference.families.rates import Rate
from ember.inference.families.regression import Regression
from ember.inference.numerics.design import Frame
from ember.inference.numerics.large_counts import MANY
from ember.inference.numerics.shapes import prepend_dims
from ember.inference.reading.site import Site

__all__ = ["density_lost", "reach_of", "scatter_lost"]

LARGEST = 1e6  # ratio of what is subtracted to what is left: six of sixteen digits may go


def reach_of(
    site: Site, cells: Tensor, reference: Tensor | Frame | float, count: int
) -> Tensor | None:
    """How far the data of each cell lie from the reference, ``(C,)`` or ``(C, D)``.

    Where precisions are known, in standard deviations, next to the root of the largest precision:
    ``(C, 2)``. Of counts it is their size. None for families with neither.
    """
    if site.form is None or not has_residuals(site):
        return None
    rank = len(site.layout.outer) + site.layout.inner
    far = _distances(site, reference, rank)
    cells = prepend_dims(cells, rank)
    gone = [i for i in range(rank) if cells.size(i) == 1 and far.size(i) > 1]
    far = far.amax(gone, keepdim=True) if gone else far
    far = far.expand(*cells.shape, far.shape[-1]).reshape(-1, far.shape[-1])
    index = cells.reshape(-1, 1).expand(far.shape)
    reach = far.new_zeros(count, far.shape[-1]).scatter_reduce_(0, index, far, "amax")
    return reach.squeeze(-1) if isinstance(site.form.family, Normal) or counts(site) else reach


def _distances(site: Site, reference: Tensor | Frame | float, rank: int) -> Tensor:
    """What ``reach_of`` is the largest of: for every entry, ``(*batch, C)``."""
    form = site.form
    assert form is not None
    if isinstance(form.statistics, (VectorStatistics, NormalStatistics)):
        assert not isinstance(reference, Frame)
        # Squares and products of all rows would be many times the data.
        far = form.statistics.centred(site.value, reference)
        far = far if form.event_dim else far.unsqueeze(-1)
        if site.mask is not None:
            far = torch.where(site.mask.unsqueeze(-1), far, 0.0)
        return prepend_dims(far.nan_to_num().abs(), rank + 1)
    statistics, _ = statistics_of(site, site.value, reference)
    statistics = statistics.nan_to_num()
    if isinstance(reference, Frame):
        squares = Regression.products(statistics, len(reference.centre) + 1)
        far = squares.diagonal(dim1=-2, dim2=-1).sqrt()
    elif isinstance(form.family, Location):
        root = statistics[..., 1].sqrt()
        far = torch.stack([statistics[..., 0].abs() / root.clamp_min(1e-300), root], -1)
    elif counts(site):
        is_poisson = isinstance(form.family, Rate)  # next to counts are exposures
        far = statistics[..., :1] if is_poisson else statistics.sum(-1, keepdim=True)
    else:
        size = 1 if isinstance(form.family, Normal) else site.value.shape[-1]
        far = statistics[..., 1 : 1 + size].abs()
    return far


def density_lost(tied: TiedFactors, values: tuple[Tensor, ...]) -> Tensor:
    """Whether the log densities of each cell are small differences of large terms."""
    if tied.reach is None:
        return tied.cells.new_zeros(len(tied.cells), dtype=torch.bool)
    if isinstance(tied.family, Regression):
        return lines.density_lost(tied, values, LARGEST)
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


def scatter_lost(tied: TiedFactors, sums: Tensor) -> Tensor:
    """Whether the scatter of each cell is a small difference of large sums about the reference.

    Cells that share a scale are asked together: one of a single row has no scatter to lose.
    """
    if isinstance(tied.family, Regression) and tied.frame is not None:
        return lines.scatter_lost(sums, len(tied.frame.centre), LARGEST)
    if isinstance(tied.family, Normal):
        n, s, q = sums.unbind(-1)
        scatter = (q - s.square() / n.clamp_min(1e-300)).clamp_min(0.0)
        return q > LARGEST * _shared(tied, scatter)
    if not isinstance(tied.family, MultivariateNormal) or tied.reach is None:
        return tied.cells.new_zeros(len(tied.cells), dtype=torch.bool)
    n, s, squares = tied.family.moments(sums, tied.reach.shape[-1])
    mean = s / n.clamp_min(1e-300).unsqueeze(-1)
    centred = squares - s.unsqueeze(-1) * mean.unsqueeze(-2)
    centred = _shared(tied, centred)
    factor, failed = torch.linalg.cholesky_ex(centred)
    left: Tensor = factor.diagonal(dim1=-2, dim2=-1).square()
    left = left.masked_fill((failed > 0).unsqueeze(-1), 0.0)
    return (squares.diagonal(dim1=-2, dim2=-1) > LARGEST * left).any(-1)


def _shared(tied: TiedFactors, scatter: Tensor) -> Tensor:
    """For each cell the scatter of all cells with the same scale."""
    if tied.in_order[1]:  # no two cells share one
        return scatter
    own = tied.cells[:, 1]
    pooled = scatter.new_zeros(int(own.max()) + 1, *scatter.shape[1:])
    return pooled.index_add_(0, own, scatter)[own]
