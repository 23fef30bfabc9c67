"""Categorical data of many levels, looked up: one number is read where a product would sum many.

As a matrix of zeros and ones, 50 000 words of a vocabulary of 2000 take 800 MB.
"""

from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor

from ember.inference.factors.exponential import at_cells
from ember.inference.families.discrete import Categorical
from ember.inference.numerics.shapes import prepend_dims
from ember.inference.reading.site import Site

__all__ = ["MANY_LEVELS", "compile_lookup", "levels_of"]


MANY_LEVELS = 64


@dataclass(frozen=True)
class LookupFactor:
    """Data codes ``(N,)``: the log probability is ``eta[cells, code]``."""

    cells: Tensor
    codes: Tensor
    dims: tuple[str, ...]
    shape: tuple[int, ...]

    def log_prob(self, eta: Tensor) -> Tensor:
        """The log probability with dims ``self.dims``, after any leading dims of ``eta``."""
        # A code reads a row of the transpose, whose gradient is added up row by row.
        by_code = at_cells(eta, self.cells).mT.contiguous()
        entries = by_code.index_select(-2, self.codes)
        return entries.reshape((*eta.shape[:-2], *self.shape))


def levels_of(site: Site) -> int:
    """The number of levels of a site that takes one of several, else 0."""
    base = None if site.density is None else site.density.base
    return int(base.probs.shape[-1]) if isinstance(base, dist.Categorical) else 0


def compile_lookup(site: Site, cells: Tensor) -> LookupFactor | None:
    """The site as a lookup, if it has many levels and its cells do not vary with its data.

    Args:
        site: The site; its form is known.
        cells: The cell of every entry, batch-shaped, broadcast dims of size 1.
    """
    rank = len(site.layout.outer)
    if site.form is None or not isinstance(site.form.family, Categorical):
        return None
    if levels_of(site) <= MANY_LEVELS or site.inner_shape or site.mask is not None:
        return None
    if site.value.numel() <= levels_of(site) or site.value.dim() > rank or cells.dim() > rank:
        return None
    value, cells = prepend_dims(site.value, rank), prepend_dims(cells, rank)
    rows = [i for i in range(rank) if cells.size(i) > 1]
    columns = [i for i in range(rank) if value.size(i) > 1]
    if set(rows) & set(columns):
        return None
    return LookupFactor(
        cells=cells.reshape(-1),
        codes=value.reshape(-1).long(),
        dims=tuple(site.layout.outer[i] for i in (*columns, *rows)),
        shape=tuple(value.size(i) for i in columns) + tuple(cells.size(i) for i in rows),
    )
