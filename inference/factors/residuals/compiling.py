"""Lays out the data of a site once, so that its residuals can be taken at any parameters."""

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.factors.exponential import statistics_of
from ember.inference.factors.missing import base_measure, has_gaps
from ember.inference.factors.residuals.counts import CountResiduals, count_rest, counts
from ember.inference.factors.residuals.gaps import GapResiduals
from ember.inference.factors.residuals.lines import (
    compile_lines,
)
from ember.inference.factors.residuals.normal import NORMAL, Residuals
from ember.inference.factors.tied import TiedFactors
from ember.inference.families.normal import Location
from ember.inference.families.regression import Regression
from ember.inference.numerics.shapes import append_dims, broadcast_shapes, prepend_dims
from ember.inference.reading.site import Site

__all__ = ["compile_residuals", "has_residuals"]


def compile_residuals(
    site: Site, cells: Tensor, dims: tuple[str, ...], tied: TiedFactors
) -> Residuals:
    """The residuals of a site of a family that has them.

    Args:
        site: The site.
        cells: The cell of every entry, batch-shaped, broadcast dims of size 1.
        dims: The dims of the factor's tensor.
        tied: What the site is tied to.
    """
    if tied.frame is not None:
        full = prepend_dims(cells, len(site.layout.outer) + site.layout.inner)
        return compile_lines(site, _unmasked(site), full, dims, tied.frame)
    return _compile(site, cells, dims)


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
    inside = statistics.new_ones(()) if site.mask is None else site.mask.to(statistics.dtype)
    rest = count_rest(site, statistics)
    base = torch.where(inside > 0, rest, site.masked_log_prob) if site.mask is not None else rest
    inner = site.inner_shape
    if inner:
        shape = broadcast_shapes(base.shape, inner)
        base = base.expand(shape).flatten(len(shape) - len(inner)).sum(-1)
    assert site.form is not None
    assert site.density is not None
    return CountResiduals(
        site.form.family, cells, statistics, prepend_dims(inside, cells.dim()), base,
        site.layout.outer, inner, dims, isinstance(site.density.base, dist.Poisson),
    )  # fmt: skip


def has_residuals(site: Site) -> bool:
    """Whether a site can be had by its residuals: normal ones, counts and regressions."""
    return site.is_plain and (_is_normal(site) or counts(site) or _is_line(site))


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
    return torch.where(inside, site.value, site.value.new_zeros(()))
