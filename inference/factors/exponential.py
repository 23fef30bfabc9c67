"""One site of the model as a function of the parameters: its log probability, dims named.

Three ways, fastest first. An exponential family whose parameters are known is one matrix product of
natural parameters and sufficient statistics (``ExponentialFactor``), or a sum of such products
entry by entry (``EntrywiseFactor``). A ``DistributionTemplate`` rebuilds the site's distribution
from its arguments. All other sites are asked of the model itself, by running it (``opaque.py``).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.columns import Columns, ScalarColumns, VectorColumns
from ember.inference.families.multivariate_normal import VectorStatistics
from ember.inference.families.normal import NormalStatistics
from ember.inference.numerics.design import Frame
from ember.inference.numerics.shapes import append_dims, prepend_dims
from ember.inference.reading.site import Site

__all__ = ["EntrywiseFactor", "ExponentialFactor", "at_cells", "compile_form", "statistics_of"]


@dataclass(frozen=True)
class ExponentialFactor:
    """A site in exponential-family form, compiled: ``eta`` of the cells to log probability.

    The cells vary along latents only and the data along plates only: the log probability is
    ``eta[cells] @ T``, one matrix product.
    """

    cells: Tensor
    columns: Columns
    base: Tensor | None
    dims: tuple[str, ...]
    shape: tuple[int, ...]

    def log_prob(self, eta: Tensor) -> Tensor:
        """The log probability with dims ``self.dims``, after any leading dims of ``eta``."""
        out = at_cells(eta, self.cells).flatten(-2) @ self.columns.matrix
        if self.base is not None:
            out = out + self.base
        return out.reshape((*eta.shape[:-2], *self.shape))


@dataclass(frozen=True)
class EntrywiseFactor:
    """The same where cells and data vary along the same dims: entry by entry."""

    cells: Tensor
    statistics: Tensor
    base: Tensor | None
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    inner: int = 0

    def log_prob(self, eta: Tensor) -> Tensor:
        """The log probability with dims ``self.dims``, after any leading dims of ``eta``."""
        out = (at_cells(eta, self.cells) * self.statistics).flatten(-1 - self.inner).sum(-1)
        if self.base is not None:
            out = out + self.base
        return out.reshape((*eta.shape[:-2], *self.shape))


def at_cells(eta: Tensor, cells: Tensor) -> Tensor:
    """Natural parameters ``(..., C, P)`` of each entry, ``(..., *cells.shape, P)``."""
    taken = eta.index_select(-2, cells.reshape(-1))
    return taken.reshape(*eta.shape[:-2], *cells.shape, eta.shape[-1])


def compile_form(
    site: Site,
    cells: Tensor,
    reference: Tensor | Frame | float,
    folded: Mapping[str, int] | None = None,
) -> ExponentialFactor | EntrywiseFactor:
    """Lays out a site's statistics once, so that each evaluation is one product.

    Args:
        site: The site; its form is known.
        cells: The cell of every entry, batch-shaped, broadcast dims of size 1.
        reference: The point the data are measured from, one for each event entry.
        folded: Plates that are summed over, as dims of events are, and their sizes.
    """
    products = None if folded else _of_products(site, cells, reference)
    if products is not None:
        return products
    statistics, base = statistics_of(site, site.value, reference)
    rank, inner = statistics.dim() - 1, len(site.inner_shape)
    cells, symbol, inner_shape = prepend_dims(cells, rank), site.layout.outer, site.inner_shape
    if folded:
        statistics, base, cells = _folded(statistics, base, cells, symbol, folded)
        symbol = tuple(s for s in symbol if s not in folded)
        inner_shape = (*folded.values(), *inner_shape)
        inner = len(inner_shape)
    outer = rank - inner
    for i, size in enumerate(inner_shape, start=outer):
        # Event dims must agree: what eta does not tell apart is summed now, once and for all.
        if cells.size(i) == 1:
            full = statistics.expand(*(size if j == i else -1 for j in range(rank + 1)))
            statistics = full.sum(i, keepdim=True)
        else:
            statistics = statistics.expand(*(size if j == i else -1 for j in range(rank + 1)))
    rows = [i for i in range(outer) if cells.size(i) > 1]
    columns = [i for i in range(outer) if max(statistics.size(i), base.size(i)) > 1]
    sizes = [max(cells.size(i), statistics.size(i), base.size(i)) for i in range(outer)]
    no_base = not bool((base != 0).any())
    if set(rows) & set(columns):
        dims = tuple(symbol[i] for i in range(outer) if sizes[i] > 1)
        shape = tuple(size for size in sizes if size > 1)
        kept = None if no_base else base
        return EntrywiseFactor(cells, statistics, kept, dims, shape, inner)
    for i in columns:
        statistics = statistics.expand(*(sizes[j] if j == i else -1 for j in range(rank + 1)))
        base = base.expand(*(sizes[j] if j == i else -1 for j in range(outer)))
    tail = statistics.shape[outer:]
    matrix = statistics.reshape(-1, tail.numel()).T.contiguous()
    row_sizes, column_sizes = [sizes[i] for i in rows], [sizes[i] for i in columns]
    return ExponentialFactor(
        cells=cells.reshape(torch.Size(row_sizes).numel(), -1),
        columns=Columns(matrix),
        base=None if no_base else base.reshape(1, -1),
        dims=tuple(symbol[i] for i in (*rows, *columns)),
        shape=(*row_sizes, *column_sizes),
    )


def _of_products(
    site: Site, cells: Tensor, reference: Tensor | Frame | float
) -> ExponentialFactor | None:
    """A site of normals whose statistics are products of its data, which alone are held.

    None where statistics are more than that: where entries are masked, weighed by a known factor or
    summed over.
    """
    form = site.form
    if site.mask is not None or site.log_weights is not None or isinstance(reference, Frame):
        return None
    if form is None or not isinstance(form.statistics, (VectorStatistics, NormalStatistics)):
        return None
    if not form.statistics.is_plain or site.value.requires_grad:
        return None
    is_vector = isinstance(form.statistics, VectorStatistics)
    inner, symbol = site.inner_shape, site.layout.outer
    rank, outer = len(symbol) + len(inner), len(symbol)
    cells = prepend_dims(cells, rank)
    if tuple(cells.shape[outer:]) != inner or (is_vector and inner):
        return None  # entries that share their parameters are summed, once and for all
    data = prepend_dims(form.statistics.centred(site.value, reference), rank + is_vector)
    rows = [i for i in range(outer) if cells.size(i) > 1]
    columns = [i for i in range(outer) if data.size(i) > 1]
    if set(rows) & set(columns):
        return None
    shape = [*(cells.size(i) for i in rows), *(data.size(i) for i in columns)]
    tail = data.shape[outer:] if is_vector else torch.Size(inner)
    data = data.expand((*data.shape[:outer], *tail)).reshape(-1, tail.numel()).T.contiguous()
    return ExponentialFactor(
        cells=cells.reshape(torch.Size([cells.size(i) for i in rows]).numel(), -1),
        columns=VectorColumns(data) if is_vector else ScalarColumns(data),
        base=None,
        dims=tuple(symbol[i] for i in (*rows, *columns)),
        shape=tuple(shape),
    )


def _folded(
    statistics: Tensor,
    base: Tensor,
    cells: Tensor,
    outer: tuple[str, ...],
    folded: Mapping[str, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics and cells with some plates after the others, and the base measure summed."""
    kept = [i for i, symbol in enumerate(outer) if symbol not in folded]
    last = [outer.index(symbol) for symbol in folded]
    rest = range(len(outer), cells.dim())
    sizes = [folded.get(symbol, -1) for symbol in outer]
    base = base.expand(*sizes).permute(*kept, *last).flatten(len(kept)).sum(-1)
    moved = cells.permute(*kept, *last, *rest)
    return statistics.permute(*kept, *last, *rest, statistics.dim() - 1), base, moved


def statistics_of(
    site: Site, value: Tensor, reference: Tensor | Frame | float
) -> tuple[Tensor, Tensor]:
    """``T`` of shape ``(*batch, P)`` and ``h`` over the outer batch, at full rank, masked."""
    assert site.form is not None
    inner = len(site.inner_shape)
    rank = len(site.layout.outer) + inner
    mask = site.mask
    if mask is not None:
        inside = append_dims(mask, site.form.event_dim)
        value = torch.where(inside, value, value.new_zeros(()))
    statistics, base = site.form.statistics(value, reference)
    statistics = prepend_dims(statistics, rank + 1)
    base = prepend_dims(statistics.new_zeros(()) if base is None else base, rank)
    if mask is not None:
        statistics = torch.where(mask.unsqueeze(-1), statistics, 0.0)
        base = prepend_dims(torch.where(mask, base, site.masked_log_prob), rank)
    if inner:
        outer_shape = base.shape[: rank - inner]
        base = base.expand(*outer_shape, *site.inner_shape).flatten(rank - inner).sum(-1)
    return statistics, site.weigh(base)
