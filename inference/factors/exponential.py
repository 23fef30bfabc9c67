"""One site of the model as a function of the parameters: its log probability, dims named.

Three ways, fastest first. An ``ExponentialFactor`` is an exponential family whose parameters are
known: its log probability is one matrix product of natural parameters and sufficient statistics. A
``DistributionTemplate`` rebuilds the site's distribution from its arguments. All other sites are
asked of the model itself, by running it (``opaque.py``).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.numerics.design import Frame
from ember.inference.numerics.shapes import append_dims, prepend_dims
from ember.inference.reading.site import Site

__all__ = ["ExponentialFactor", "at_cells", "compile_form", "statistics_of"]


@dataclass(frozen=True)
class ExponentialFactor:
    """A site in exponential-family form, compiled: ``eta`` of the cells to log probability.

    Where the cells vary along latents only and the data along plates only, the log probability
    is ``eta[cells] @ T``, one matrix product. Otherwise it is computed entry by entry.
    """

    cells: Tensor
    statistics: Tensor
    base: Tensor | None
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    is_product: bool
    inner: int = 0

    def log_prob(self, eta: Tensor) -> Tensor:
        """The log probability with dims ``self.dims``, after any leading dims of ``eta``."""
        gathered = at_cells(eta, self.cells)
        if self.is_product:
            out = gathered.flatten(-2) @ self.statistics
        else:
            out = (gathered * self.statistics).flatten(-1 - self.inner).sum(-1)
        if self.base is not None:
            out = out + self.base
        return out.reshape((*eta.shape[:-2], *self.shape))


def at_cells(eta: Tensor, cells: Tensor) -> Tensor:
    """Natural parameters ``(..., C, P)`` of each entry, ``(..., *cells.shape, P)``."""
    taken = eta.index_select(-2, cells.reshape(-1))
    return taken.reshape(*eta.shape[:-2], *cells.shape, eta.shape[-1])


def compile_form(site: Site, cells: Tensor, reference: Tensor | Frame | float) -> ExponentialFactor:
    """Lays out a site's statistics once, so that each evaluation is one product.

    Args:
        site: The site; its form is known.
        cells: The cell of every entry, batch-shaped, broadcast dims of size 1.
        reference: The point the data are measured from, one for each event entry.
    """
    statistics, base = statistics_of(site, site.value, reference)
    rank, inner = statistics.dim() - 1, len(site.inner_shape)
    outer = rank - inner
    cells = prepend_dims(cells, rank)
    for i, size in enumerate(site.inner_shape, start=outer):
        # Event dims must agree: what eta does not tell apart is summed now, once and for all.
        if cells.size(i) == 1:
            full = statistics.expand(*(size if j == i else -1 for j in range(rank + 1)))
            statistics = full.sum(i, keepdim=True)
        else:
            statistics = statistics.expand(*(size if j == i else -1 for j in range(rank + 1)))
    rows = [i for i in range(outer) if cells.size(i) > 1]
    columns = [i for i in range(outer) if max(statistics.size(i), base.size(i)) > 1]
    sizes = [max(cells.size(i), statistics.size(i), base.size(i)) for i in range(outer)]
    symbol = site.layout.outer
    no_base = not bool((base != 0).any())
    if set(rows) & set(columns):
        dims = tuple(symbol[i] for i in range(outer) if sizes[i] > 1)
        shape = tuple(size for size in sizes if size > 1)
        kept = None if no_base else base
        return ExponentialFactor(
            cells, statistics, kept, dims, shape, is_product=False, inner=inner
        )
    for i in columns:
        statistics = statistics.expand(*(sizes[j] if j == i else -1 for j in range(rank + 1)))
        base = base.expand(*(sizes[j] if j == i else -1 for j in range(outer)))
    tail = statistics.shape[outer:]
    matrix = statistics.reshape(-1, tail.numel()).T.contiguous()
    row_sizes, column_sizes = [sizes[i] for i in rows], [sizes[i] for i in columns]
    return ExponentialFactor(
        cells=cells.reshape(torch.Size(row_sizes).numel(), -1),
        statistics=matrix,
        base=None if no_base else base.reshape(1, -1),
        dims=tuple(symbol[i] for i in (*rows, *columns)),
        shape=(*row_sizes, *column_sizes),
        is_product=True,
    )


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
