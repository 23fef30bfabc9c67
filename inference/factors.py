"""One site of the model as a function of the parameters: its log probability, dims named.

Three ways, fastest first. A ``FormFactor`` is an exponential family with known slots: its log
probability is one matrix product of natural parameters and sufficient statistics. A ``Density``
rebuilds the site's distribution from its arguments. All other sites are asked of the model itself,
by running it (``reading/opaque.py``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.inference.families import IMPOSSIBLE
from ember.inference.observed_density import observed_log_prob
from ember.inference.reading.affine import AffineMap
from ember.inference.reading.parameter_maps import ArgumentMap
from ember.inference.shapes import append_dims, prepend_dims
from ember.inference.slots import Form
from ember.inference.sticks import StickMap
from ember.inference.superposition import SuperposedRate

__all__ = [
    "Density",
    "FormFactor",
    "Layout",
    "Site",
    "at_cells",
    "compile_form",
    "fill_masked",
    "finish",
    "statistics_of",
]


@dataclass(frozen=True)
class Layout:
    """Names of a site's batch dims: one symbol for each dim, '' where the size is 1."""

    outer: tuple[str, ...]
    inner: int

    def pack(self, tensor: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Drops the dims of size 1 and names the others."""
        lead = len(self.outer) - tensor.dim()
        kept = [i for i, size in enumerate(tensor.shape) if size > 1]
        shape = [tensor.size(i) for i in kept]
        return tensor.reshape(shape), tuple(self.outer[i + lead] for i in kept)


@dataclass(frozen=True)
class Density:
    """A distribution rebuilt from its argument maps, wrappers included."""

    base: Any
    maps: Mapping[str, tuple[str, ArgumentMap | AffineMap | SuperposedRate | StickMap]]
    inner_shape: tuple[int, ...]
    mask: Tensor | None
    dummy: float

    @property
    def is_constant(self) -> bool:
        return all(found.is_constant for _, found in self.maps.values())

    def distribution(self, params: Mapping[str, Tensor]) -> Any:
        """The base distribution at ``params``, broadcast dims of size 1."""
        if self.is_constant:
            return self.base
        arguments = {name: found.evaluate(params) for name, found in self.maps.values()}
        return type(self.base)(**arguments, validate_args=False)

    def log_prob(self, params: Mapping[str, Tensor], value: Tensor) -> Tensor:
        """Log probability over the outer batch dims."""
        fn = self.distribution(params)
        value = fill_masked(value, self.mask, len(fn.event_shape))
        return finish(observed_log_prob(fn, value), self.mask, self.inner_shape, self.dummy)


def finish(log_prob: Tensor, mask: Tensor | None, inner: tuple[int, ...], dummy: float) -> Tensor:
    """Applies a mask, sums over event dims made of batch dims, and keeps the result finite."""
    if mask is not None:
        log_prob = torch.where(mask, log_prob, torch.full((), dummy, dtype=log_prob.dtype))
    if inner:
        shape = torch.broadcast_shapes(log_prob.shape, inner)
        log_prob = log_prob.expand(shape).sum(tuple(range(-len(inner), 0)))
    return log_prob.clamp_min(IMPOSSIBLE)


def fill_masked(value: Tensor, mask: Tensor | None, event_dims: int) -> Tensor:
    """Puts a harmless number where entries are masked, which may be NaN: one that is not."""
    if mask is None or not value.is_floating_point():
        return value
    value, inside = torch.broadcast_tensors(value, append_dims(mask, event_dims))
    shown = value[inside]
    return torch.where(inside, value, shown[0] if len(shown) else torch.ones(()))


@dataclass(frozen=True)
class Site:
    """What a factor needs to know of its site, read off the trace once.

    ``missing`` marks the entries of an observed value that are to be integrated out, shaped like
    the value; single entries and whole rows among them are masked as well.
    """

    name: str
    value: Tensor
    layout: Layout
    plates: frozenset[str]
    inner_shape: tuple[int, ...]
    mask: Tensor | None
    dummy: float
    event_dim: int
    form: Form | None
    density: Density | None
    reason: str
    missing: Tensor | None = None


@dataclass(frozen=True)
class FormFactor:
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


def compile_form(site: Site, cells: Tensor, reference: Tensor | float) -> FormFactor:
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
        return FormFactor(cells, statistics, kept, dims, shape, is_product=False, inner=inner)
    for i in columns:
        statistics = statistics.expand(*(sizes[j] if j == i else -1 for j in range(rank + 1)))
        base = base.expand(*(sizes[j] if j == i else -1 for j in range(outer)))
    tail = statistics.shape[outer:]
    matrix = statistics.reshape(-1, tail.numel()).T.contiguous()
    row_sizes, column_sizes = [sizes[i] for i in rows], [sizes[i] for i in columns]
    return FormFactor(
        cells=cells.reshape(torch.Size(row_sizes).numel(), -1),
        statistics=matrix,
        base=None if no_base else base.reshape(1, -1),
        dims=tuple(symbol[i] for i in (*rows, *columns)),
        shape=(*row_sizes, *column_sizes),
        is_product=True,
    )


def statistics_of(site: Site, value: Tensor, reference: Any) -> tuple[Tensor, Tensor]:
    """``T`` of shape ``(*batch, P)`` and ``h`` over the outer batch, at full rank, masked."""
    assert site.form is not None
    inner = len(site.inner_shape)
    rank = len(site.layout.outer) + inner
    mask = site.mask
    if mask is not None:
        inside = append_dims(mask, site.form.event_dim)
        value = torch.where(inside, value, torch.zeros((), dtype=value.dtype))
    statistics, base = site.form.statistics(value, reference)
    statistics = prepend_dims(statistics, rank + 1)
    base = prepend_dims(torch.zeros(()) if base is None else base, rank)
    if mask is not None:
        statistics = torch.where(mask.unsqueeze(-1), statistics, torch.zeros(()))
        base = prepend_dims(torch.where(mask, base, torch.full((), site.dummy)), rank)
    if inner:
        outer_shape = base.shape[: rank - inner]
        base = base.expand(*outer_shape, *site.inner_shape).flatten(rank - inner).sum(-1)
    return statistics, base
