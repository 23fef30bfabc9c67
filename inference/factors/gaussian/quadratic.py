r"""A site's sufficient statistics as quadratic functions of the latents that it reads.

What an event is after its latents are taken off is linear in them, and so are latent features; the
statistics of normal families are quadratic in both. So for every event

.. math:: T_n(z) = \sum_m K_{nm}\, \mu_m(z), \qquad \mu(z) = (1,\; z_1, \ldots, z_J,\; z_1 z_1,
    z_1 z_2, \ldots, z_J z_J),

with the :math:`z_j` of its slots. The base measure is kept as one statistic more. The coefficients
are derivatives, by forward differentiation, which unlike differences lose no digits to the data.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ember.inference.factors.tied import SiteCells
from ember.inference.numerics.forward_derivative import forward_derivative
from ember.inference.numerics.shapes import append_dims, broadcast_shapes, prepend_dims
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.vector_map import VectorMap
from ember.inference.reading.site import Site

__all__ = ["monomials", "quadratic_statistics", "statistics_at"]


def monomials(slots: int) -> tuple[Tensor, Tensor]:
    """The pairs of slots that quadratic monomials multiply, in their order."""
    first, second = torch.triu_indices(slots, slots)
    return first, second


def quadratic_statistics(site: Site, cells: SiteCells) -> Tensor:
    """``K`` over the site's batch at full rank, ``(*batch, P + 1, M)``; the base measure last.

    Args:
        site: The site; it has a form and slots.
        cells: Its cells, for the reference that statistics are taken about.
    """
    count = len(site.slots)
    origin, steps = torch.zeros(count), _steps(site)
    slopes = [_slope(site, cells, origin, j) for j in range(count)]
    columns = [statistics_at(site, cells, origin.unbind()), *slopes]
    for j, k in zip(*(index.tolist() for index in monomials(count)), strict=True):
        # The slope along one slot is linear in the others: its change tells the curvature.
        there = origin.index_fill(0, torch.tensor(k), steps[k])
        second = (_slope(site, cells, there, j) - slopes[j]) / steps[k]
        columns.append(0.5 * second if j == k else second)
    return torch.stack(torch.broadcast_tensors(*columns), -1)


def _steps(site: Site) -> list[float]:
    """How far each slot's latent must move for events to move by as much as they are spread.

    A power of two, by which numbers are divided without rounding.
    """
    value = site.value[site.value.isfinite()]
    spread = float((value - value.mean()).abs().max()) if len(value) else 0.0
    steps = []
    for slot in site.slots:
        largest = float(slot.coefficient.abs().max())
        far = spread if slot.column is None and spread > 0 else 1.0
        steps.append(2.0 ** round(math.log2(far / largest)) if largest > 0 else 1.0)
    return steps


def _slope(site: Site, cells: SiteCells, z: Tensor, j: int) -> Tensor:
    """The derivative of the statistics along one slot."""
    with torch.enable_grad():
        number = z[j].clone().requires_grad_()
        latents = [number if i == j else other for i, other in enumerate(z)]
        return forward_derivative([statistics_at(site, cells, latents)], [number], [None])[0]


def statistics_at(site: Site, cells: SiteCells, z: Sequence[Tensor]) -> Tensor:
    """``T`` and ``h`` where the first slots' latents have the values ``z`` in all events.

    Over the site's batch at full rank, ``(*batch, P + 1)``; other latents are zero.
    """
    form = site.form
    assert form is not None
    rank = len(site.layout.outer) + site.layout.inner
    value = site.value
    if site.mask is not None:
        value = torch.where(append_dims(site.mask, form.event_dim), value, 0.0)
    latent: Tensor | None = None
    for number, slot in zip(z, site.slots, strict=False):
        if slot.column is None:
            value = value + number * slot.coefficient
            continue
        feature = number * slot.coefficient.unsqueeze(-1) * _unit(site, slot.column)
        latent = feature if latent is None else latent + feature
    if latent is None:
        statistics, base = form.statistics(value, cells.reference)
    else:
        statistics, base = form.statistics(value, cells.reference, latent)
    statistics = prepend_dims(statistics, rank + 1)
    base = statistics.new_zeros((1,) * rank) if base is None else prepend_dims(base, rank)
    if site.mask is not None:
        mask = prepend_dims(site.mask, rank)
        statistics = torch.where(mask.unsqueeze(-1), statistics, 0.0)
        base = torch.where(mask, base, site.masked_log_prob)
    shape = broadcast_shapes(statistics.shape[:-1], base.shape)
    both = statistics.expand(*shape, -1), base.expand(shape).unsqueeze(-1)
    return torch.cat(both, -1)


def _unit(site: Site, column: int) -> Tensor:
    """One in the place of a latent feature."""
    assert site.density is not None
    location = site.density.maps["loc"][1]
    assert isinstance(location, (AffineMap, VectorMap))
    return torch.eye(location.features.shape[-1])[column]
