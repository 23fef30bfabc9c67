r"""Sites of a Gaussian component whose rows are alike but for their data: a system over time.

The log density of a number of row :math:`n` is then one quadratic form of its data
:math:`\delta_n` (measured from their mean) and of the latents :math:`z_n` that it reads,

.. math:: k_0 + \ell_y^\top \delta_n + \ell_z^\top z_n + \delta_n^\top Q_{yy}\, \delta_n
    + \delta_n^\top Q_{yz}\, z_n + z_n^\top Q_{zz}\, z_n,

whose coefficients are linear in natural parameters. So nothing of the size of the statistics is
kept for each row, and the rows meet natural parameters in one matrix product.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.factor import Scale
from ember.inference.factors.gaussian.arranging import over_batch
from ember.inference.factors.gaussian.member import Pieces
from ember.inference.factors.gaussian.quadratic import monomials, quadratic_statistics
from ember.inference.factors.tied import SiteCells, TieKey
from ember.inference.numerics.shapes import broadcast_shapes, prepend_dims
from ember.inference.reading.site import Site, Slot

__all__ = ["UniformFactor", "compile_uniform"]


MOST_CLASSES = 64  # sets of rows with cells of their own


@dataclass(frozen=True, eq=False)
class UniformFactor:
    """Rows of one site that differ in their data alone; the ``G`` numbers of a row have cells each.

    Attributes:
        names: The site.
        key: What it is tied to.
        rows: The rows of the component's plates, ``(R,)``.
        cells: The cell of each number of a row, ``(G,)``.
        statistics: ``(G, P + 1, M)``: statistics as quadratic functions of the data of a number
            and of the latents that it reads; the base measure last.
        data: How many of these variables are data: 0 of latents, 1 of numbers, D of vectors.
        columns: Which entry of its row each number reads in each slot, ``(G, J)``.
        entries: The entries that each row reads, ``(N, U)``, counted over the component.
        design: What the linear term of a row is linear in: its weights and its data, ``(N, X)``.
        weights: The weight of each number of each row, ``(N, G)``; None if all are 1.
        moments: Sums over the rows of plates of weights, data and products of these, ``(R, G, Y)``.
    """

    names: tuple[str, ...]
    key: TieKey
    rows: Tensor
    cells: Tensor
    statistics: Tensor
    data: int
    columns: Tensor
    entries: Tensor
    design: Tensor
    weights: Tensor | None
    moments: Tensor

    @property
    def symbols(self) -> tuple[tuple[str, int], ...]:
        return ()

    @property
    def linear_entries(self) -> Tensor:
        return self.entries.reshape(-1)

    @functools.cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        one, other = self._pairs
        return self.entries[:, one].reshape(-1), self.entries[:, other].reshape(-1)

    def settle(self) -> None:
        """Lays out what depends on no parameter."""
        assert len(self._places) == len(self.cells)

    def pieces(self, eta: Tensor, stretched: Tensor | None = None) -> Pieces:
        """The quadratic form at natural parameters ``(..., C, P)`` of the cells."""
        own = eta.index_select(-2, self.cells).unsqueeze(-2)
        found = (own @ self.statistics[:, :-1]).squeeze(-2) + self.statistics[:, -1]
        of_data = found[..., self._monomials.data].unsqueeze(-3)
        constant = (self.moments * of_data).sum((-1, -2))
        linear = (self.design @ self._linear(found)).flatten(-2)
        precision = self._precision(found).flatten(-2)
        return Pieces(constant.unsqueeze(-2), linear.unsqueeze(-2), precision.unsqueeze(-2))

    def _linear(self, found: Tensor) -> Tensor:
        """What the design is multiplied by, ``(..., X, U)``."""
        lead, count = found.shape[:-2], len(self.cells)
        own = found[..., self._monomials.linear].reshape(*lead, count, 1 + self.data, -1)
        into = own.new_zeros(*lead, count, 1 + self.data, self.entries.shape[1])
        spread = into.scatter_add(-1, self.columns.unsqueeze(1).expand(own.shape), own)
        alone, with_data = spread[..., 0, :], spread[..., 1:, :].flatten(-3, -2)
        if self.weights is None:
            alone = alone.sum(-2, keepdim=True)
        return torch.cat([alone, with_data], -2)

    def _precision(self, found: Tensor) -> Tensor:
        """The precision of all pairs of every row, ``(..., N, K)``."""
        one, other = self._pairs
        own = found[..., self._monomials.quadratic]
        into = own.new_zeros(*own.shape[:-1], len(one) + 1)  # the last is for what is never there
        spread = into.scatter_add(-1, self._places.expand(own.shape), own)[..., :-1]
        spread = spread * torch.where(one == other, -2.0, -1.0).to(spread)
        if self.weights is None:
            total = spread.sum(-2, keepdim=True)
            return total.expand(*total.shape[:-2], len(self.entries), len(one))
        return self.weights @ spread

    @functools.cached_property
    def _monomials(self) -> "_Monomials":
        return _Monomials.of(self.data, self.columns.shape[1])

    @functools.cached_property
    def _pairs(self) -> tuple[Tensor, Tensor]:
        """The pairs of a row's entries that some number reads together, ``(K,)`` each."""
        keys = self._keys[self._keys >= 0].unique()
        width = self.entries.shape[1]
        return keys // width, keys % width

    @functools.cached_property
    def _places(self) -> Tensor:
        """Where each quadratic monomial of each number stands among the pairs, ``(G, Q)``."""
        one, other = self._pairs
        known = one * self.entries.shape[1] + other
        places = torch.searchsorted(known, self._keys.clamp_min(0))
        return torch.where(self._keys >= 0, places, len(known))

    @functools.cached_property
    def _keys(self) -> Tensor:
        """A number for the pair that each quadratic monomial multiplies, -1 where there is none."""
        first, second = monomials(self.columns.shape[1])
        one, other = self.columns[:, first], self.columns[:, second]
        keys = torch.minimum(one, other) * self.entries.shape[1] + torch.maximum(one, other)
        there = (self.statistics[..., self._monomials.quadratic] != 0).any(-2)
        return torch.where(there, keys, -1)


@dataclass(frozen=True, eq=False)
class _Monomials:
    """Places of the monomials of ``d`` data and ``J`` latents.

    Attributes:
        data: Of 1, the data and their products.
        linear: Of the latents, by themselves and times each of the data, ``(1 + d) J`` of them.
        quadratic: Of products of latents.
    """

    data: Tensor
    linear: Tensor
    quadratic: Tensor

    @staticmethod
    def of(data: int, latents: int) -> "_Monomials":
        """Those of so many variables, the data first."""
        size = data + latents
        one, other = (index.tolist() for index in monomials(size))
        place = {pair: 1 + size + i for i, pair in enumerate(zip(one, other, strict=True))}
        of_data = [*range(1 + data), *(place[i, j] for i in range(data) for j in range(i, data))]
        linear = [1 + data + j for j in range(latents)]
        linear += [place[i, data + j] for i in range(data) for j in range(latents)]
        first, second = (index.tolist() for index in monomials(latents))
        quadratic = [place[data + i, data + j] for i, j in zip(first, second, strict=True)]
        return _Monomials(torch.tensor(of_data), torch.tensor(linear), torch.tensor(quadratic))


def compile_uniform(
    site: Site,
    cells: SiteCells,
    scale: Scale | None,
    discrete: Mapping[str, int],
    first: Mapping[str, int],
    row_numbers: Tensor,
) -> list[UniformFactor] | None:
    """A site by rows that are alike, a factor for each set of cells; None if they are not alike.

    Args:
        site: The site.
        cells: Its cells.
        scale: The weight of each event relative to its row's.
        discrete: The sizes of the dims of discrete latents.
        first: For each latent of the component the number of its first entry.
        row_numbers: The component's row of every event, at full rank.
    """
    assert site.form is not None
    if site.masked_log_prob or any(symbol in discrete for symbol in site.layout.outer):
        return None
    layout = _Rows.of(site, row_numbers)
    event = site.form.event_dim
    value = prepend_dims(site.value, layout.rank + event)
    mask = None if site.mask is None else layout.full(site.mask)
    if mask is not None:
        value = torch.where(mask.reshape(*layout.shape, *(1,) * event), value, 0.0)
    middle = _middle(value, mask, layout, event)
    size = (value.shape[-1] if event else 1) if site.name not in first else 0
    slots = (*_data_slots(size, event), *site.slots)
    bare = dataclasses.replace(site, value=middle, mask=None, slots=slots)
    statistics = quadratic_statistics(bare, cells)
    if any(size > 1 for size in statistics.shape[: layout.lead]):
        return None
    tail = statistics.shape[-2:]
    statistics = statistics.expand(*(1,) * layout.lead, *layout.inner, *tail)
    statistics = statistics.reshape(layout.numbers, *tail)
    index = layout.full(cells.index).reshape(layout.rows, layout.numbers)
    classes, of_row = torch.unique(index, dim=0, return_inverse=True)
    if len(classes) > MOST_CLASSES:
        return None
    columns, entries = _entries_of(site.slots, first, layout)
    weights = _weights(mask, scale, site, layout)
    apart = (value - middle).expand(*layout.shape, *value.shape[layout.rank :])
    apart = apart.reshape(layout.rows, layout.numbers, -1)[..., :size]
    own_rows = layout.full(row_numbers).reshape(layout.rows, -1)[:, 0]
    out = []
    for number, own_cells in enumerate(classes):
        mine = (of_row == number).nonzero().reshape(-1)
        own = None if weights is None else weights[mine]
        plates, place = torch.unique(own_rows[mine], return_inverse=True)
        factor = UniformFactor(
            (site.name,), cells.key, plates, own_cells, statistics, size, columns,
            entries[mine].contiguous(), _design(apart[mine], own), own,
            _moments(apart[mine], own, place, len(plates)),
        )  # fmt: skip
        factor.settle()
        out.append(factor)
    return out


@dataclass(frozen=True)
class _Rows:
    """The batch of a site: its plates hold rows, its other dims the numbers of a row."""

    shape: tuple[int, ...]
    lead: int

    @staticmethod
    def of(site: Site, row_numbers: Tensor) -> "_Rows":
        rank = len(site.layout.outer) + site.layout.inner
        batch = site.value.shape[: site.value.dim() - site.event_dim + site.layout.inner]
        known = [torch.Size((*(1,) * (rank - len(batch)), *batch)), row_numbers.shape]
        known += [prepend_dims(slot.entries, rank).shape for slot in site.slots]
        return _Rows(tuple(broadcast_shapes(*known)), len(site.layout.outer))

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def inner(self) -> tuple[int, ...]:
        return self.shape[self.lead :]

    @property
    def rows(self) -> int:
        return torch.Size(self.shape[: self.lead]).numel()

    @property
    def numbers(self) -> int:
        return torch.Size(self.inner).numel()

    def full(self, tensor: Tensor) -> Tensor:
        """A tensor over the whole batch."""
        return prepend_dims(tensor, self.rank).expand(self.shape)


def _middle(value: Tensor, mask: Tensor | None, layout: _Rows, event: int) -> Tensor:
    """The mean of the data of every number of a row."""
    dims = tuple(range(layout.lead))
    if mask is None:
        return value.mean(dims, keepdim=True)
    shown = mask.to(value).sum(dims, keepdim=True).clamp_min(1.0)
    full = value.expand(*layout.shape, *value.shape[layout.rank :])
    return full.sum(dims, keepdim=True) / shown.reshape(*shown.shape, *(1,) * event)


def _data_slots(size: int, event: int) -> list[Slot]:
    """The data as variables: what moves the event as latents do."""
    none = torch.zeros((), dtype=torch.long)
    if not event:
        return [Slot("", none, torch.ones(())) for _ in range(size)]
    return [Slot("", none, one) for one in torch.eye(size)]


def _entries_of(
    slots: Sequence[Slot], first: Mapping[str, int], layout: _Rows
) -> tuple[Tensor, Tensor]:
    """Which of its row's entries each number reads ``(G, J)``, and these ``(N, U)``."""
    columns, entries, width = list[Tensor](), list[Tensor](), 0
    every = torch.arange(layout.numbers)
    for slot in slots:
        number = first[slot.latent] + prepend_dims(slot.entries, layout.rank)
        if number.shape[layout.lead :].numel() > 1:
            read = number.expand(layout.shape).reshape(layout.rows, layout.numbers)
        else:
            outer = layout.shape[: layout.lead]
            read = number.reshape(number.shape[: layout.lead]).expand(outer).reshape(-1, 1)
        known = next((i for i, other in enumerate(entries) if torch.equal(other, read)), None)
        if known is not None:  # an entry that is multiplied by several numbers
            columns.append(columns[known])
            entries.append(entries[known][:, :0])
            continue
        columns.append(width + every if read.shape[1] > 1 else torch.full_like(every, width))
        entries.append(read)
        width += read.shape[1]
    return torch.stack(columns, -1), torch.cat(entries, -1)


def _weights(mask: Tensor | None, scale: Scale | None, site: Site, layout: _Rows) -> Tensor | None:
    """The weight of each number of each row, ``(N, G)``."""
    if mask is None and scale is None:
        return None
    total = site.value.new_ones(layout.shape)
    if mask is not None:
        total = total * mask
    if scale is not None:
        total = total * over_batch(scale, site.layout.outer, layout.rank)
    return total.reshape(layout.rows, layout.numbers)


def _design(apart: Tensor, weights: Tensor | None) -> Tensor:
    """Ones or weights, then the data, weighted: ``(N, X)``."""
    if weights is None:
        return torch.cat([apart.new_ones(len(apart), 1), apart.flatten(1)], 1)
    return torch.cat([weights, (weights.unsqueeze(-1) * apart).flatten(1)], 1)


def _moments(apart: Tensor, weights: Tensor | None, place: Tensor, rows: int) -> Tensor:
    """Sums of weights, data and their products over the rows of plates, ``(R, G, Y)``."""
    one, other = monomials(apart.shape[-1])
    count, numbers, _ = apart.shape
    ones = apart.new_ones(count, numbers, 1)
    full = torch.cat([ones, apart, apart[..., one] * apart[..., other]], -1)
    if weights is not None:
        full = full * weights.unsqueeze(-1)
    return full.new_zeros(rows, *full.shape[1:]).index_add_(0, place, full)
