r"""Latents of single rows that many columns read alike, as in factor analysis.

If the coefficients, and the features beside the latents, are the same in all rows, the statistics
of column d are quadratic in the latents *and* in its datum, with coefficients that no row changes.
Then row n has

.. math:: h_n = \sum_d (a_d + b_d\, y_{nd}), \qquad P = \sum_d C_d,

a product of matrices for all rows, and one precision for all of them; where entries are missing, a
sum over those that are there. Without gaps the sum over rows of all log evidences needs no row at
all: only the products of columns,

.. math:: \sum_n h_n' P^{-1} h_n = \operatorname{tr}(P^{-1} A G A'), \qquad
    G = \sum_n (1, y_n)(1, y_n)'.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.exponential import at_cells
from ember.inference.factors.gaussian.quadratic import monomials, quadratic_statistics
from ember.inference.factors.tied import SiteCells, TieKey
from ember.inference.numerics.shapes import broadcast_shapes, prepend_dims
from ember.inference.reading.site import Site, Slot

__all__ = [
    "Products",
    "RowQuadratics",
    "RowWiseFactor",
    "compile_row_wise",
    "pooled_quadratics",
    "row_quadratics",
]


Natural = Mapping[TieKey, Tensor]
CHUNK = 1_000_000  # numbers of data, of which products are taken at a time


@dataclass(frozen=True)
class RowQuadratics:
    """What the latents of every row have: ``c + h'z - z'Pz / 2``.

    Attributes:
        constant: ``(..., S, R)``.
        linear: ``(..., S, R, q)``.
        precision: ``(..., S, R or 1, q, q)``.
    """

    constant: Tensor
    linear: Tensor
    precision: Tensor


@dataclass(frozen=True, eq=False)
class RowWiseFactor:
    """A site of which every event reads the latents of its own row.

    Attributes:
        name: The site.
        key: What it is tied to.
        cells: The cell of every column at each value of discrete latents, ``(S or 1, D)``.
        coefficients: Statistics as quadratic functions of the datum and the slots' latents,
            ``(S or 1, D, P + 1, M)``; without data, of the latents alone.
        slots: The places of each column's latents among those of a row, ``(D, J)``.
        data: What the datum is about its column's middle, ``(R, D)``; None for a prior.
        shown: Which data there are, ``(R, D)``, as numbers; None if all are.
    """

    name: str
    key: TieKey
    cells: Tensor
    coefficients: Tensor
    slots: Tensor
    data: Tensor | None
    shown: Tensor | None

    def terms(self, eta: Tensor, width: int) -> "Terms":
        """The coefficients of every column at natural parameters ``(..., C, P)``."""
        gathered = at_cells(eta, self.cells).unsqueeze(-2)
        found = (gathered @ self.coefficients[..., :-1, :]).squeeze(-2)
        found = found + self.coefficients[..., -1, :]
        first = 0 if self.data is None else 1
        variables = self.slots.shape[-1] + first
        constant, linear, quadratic = found.split(
            [1, variables, found.shape[-1] - 1 - variables], -1
        )
        one, other = monomials(variables)
        of_latents, spread = one >= first, self._spread(width, eta)
        j, k = one[of_latents] - first, other[of_latents] - first
        pairs = spread[:, j].unsqueeze(-1) * spread[:, k].unsqueeze(-2)
        pairs = pairs + pairs.mT
        precision = -torch.einsum("...dm,dmpq->...dpq", quadratic[..., of_latents], pairs)
        of_slots = torch.einsum("...dj,djp->...dp", linear[..., first:], spread)
        if first == 0:
            return Terms(constant.squeeze(-1), of_slots, precision)
        by_datum = quadratic[..., ~of_latents]
        cross = torch.einsum("...dj,djp->...dp", by_datum[..., 1:], spread)
        return Terms(
            constant.squeeze(-1), of_slots, precision, linear[..., 0], by_datum[..., 0], cross
        )

    def _spread(self, width: int, like: Tensor) -> Tensor:
        """From a column's slots to the latents of a row, ``(D, J, q)``."""
        return torch.nn.functional.one_hot(self.slots, width).to(like)


@dataclass(frozen=True)
class Terms:
    """The quadratic form of every column, as coefficients.

    Attributes:
        constant: ``(..., D)``.
        linear: ``(..., D, q)``.
        precision: ``(..., D, q, q)``.
        datum: What multiplies the datum, ``(..., D)``; None of a prior, as what follows.
        square: What multiplies its square.
        cross: What multiplies the datum and each latent, ``(..., D, q)``.
    """

    constant: Tensor
    linear: Tensor
    precision: Tensor
    datum: Tensor | None = None
    square: Tensor | None = None
    cross: Tensor | None = None


def row_quadratics(
    factors: Sequence[RowWiseFactor], natural: Natural, rows: int, width: int
) -> RowQuadratics:
    """The quadratic form of the latents of every row."""
    total: RowQuadratics | None = None
    for factor in factors:
        found = _of_factor(factor, factor.terms(natural[factor.key], width), rows)
        total = (
            found
            if total is None
            else RowQuadratics(
                total.constant + found.constant,
                total.linear + found.linear,
                total.precision + found.precision,
            )
        )
    assert total is not None
    return total


def _of_factor(factor: RowWiseFactor, terms: Terms, rows: int) -> RowQuadratics:
    shown, data = factor.shown, factor.data
    if shown is None:
        constant = terms.constant.sum(-1, keepdim=True)
        linear = terms.linear.sum(-2).unsqueeze(-2)
        precision = terms.precision.sum(-3).unsqueeze(-3)
    else:
        constant = terms.constant @ shown.mT
        linear = shown @ terms.linear
        flat = shown @ terms.precision.flatten(-2)
        precision = flat.reshape(*flat.shape[:-1], *terms.precision.shape[-2:])
    if data is not None:
        by_datum, by_square = _given(terms.datum), _given(terms.square)
        constant = constant + by_datum @ data.mT + by_square @ data.square().mT
        linear = linear + data @ _given(terms.cross)
    constant = constant.expand(*constant.shape[:-1], rows)
    return RowQuadratics(constant, linear.expand(*linear.shape[:-2], rows, -1), precision)


@dataclass(frozen=True, eq=False)
class Products:
    """Sums over rows without gaps: of the data of all factors ``(D,)`` and of their products."""

    count: int
    sums: Tensor
    squares: Tensor

    @staticmethod
    def of(factors: Sequence[RowWiseFactor], rows: int) -> "Products":
        """Those of factors, taken in chunks of rows."""
        data = [factor.data for factor in factors if factor.data is not None]
        width = sum(each.shape[1] for each in data)
        like = data[0] if data else torch.zeros(())
        sums, squares = like.new_zeros(width), like.new_zeros(width, width)
        step = max(1, CHUNK // max(1, width))
        for start in range(0, rows, step):
            chunk = torch.cat([each[start : start + step] for each in data], 1)
            sums += chunk.sum(0)
            squares.addmm_(chunk.mT, chunk)
        return Products(rows, sums, squares)


def pooled_quadratics(
    factors: Sequence[RowWiseFactor], natural: Natural, products: Products, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of all rows' constants ``(...)`` and of their ``h h'``, and their common ``P``."""
    each = [factor.terms(natural[factor.key], width) for factor in factors]
    constant = products.count * torch.stack([t.constant.sum((-1, -2)) for t in each]).sum(0)
    offset = torch.stack([t.linear.sum((-2, -3)) for t in each]).sum(0)
    precision = torch.stack([t.precision.sum((-3, -4)) for t in each]).sum(0)
    seen = [t for t in each if t.datum is not None]
    if not seen:
        outer = products.count * offset.unsqueeze(-1) * offset.unsqueeze(-2)
        return constant, outer, precision
    datum = torch.cat([_given(t.datum).squeeze(-2) for t in seen], -1)
    square = torch.cat([_given(t.square).squeeze(-2) for t in seen], -1)
    cross = torch.cat([_given(t.cross).squeeze(-3) for t in seen], -2)
    diagonal = products.squares.diagonal()
    constant = constant + (datum * products.sums).sum(-1) + (square * diagonal).sum(-1)
    both = offset.unsqueeze(-1) * (products.sums @ cross).unsqueeze(-2)
    outer = products.count * offset.unsqueeze(-1) * offset.unsqueeze(-2) + both + both.mT
    return constant, outer + cross.mT @ products.squares @ cross, precision


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def compile_row_wise(
    site: Site,
    cells: SiteCells,
    states: Mapping[str, int],
    rows: Mapping[str, int],
    first: Mapping[str, int],
    sizes: Mapping[str, int],
) -> RowWiseFactor | None:
    """A site laid out by rows and columns; None if its rows are not alike.

    Args:
        site: The site; its events weigh what their rows weigh.
        cells: Its cells.
        states: The sizes of the dims of discrete latents.
        rows: The plates of the rows, with their sizes.
        first: For each latent the place of its first entry among those of a row.
        sizes: The number of entries of each latent in a row.
    """
    layout = _Layout.of(site, states, rows)
    has_data = site.name not in first
    if site.masked_log_prob or (site.mask is not None and not has_data):
        return None
    value = layout.first_row(site.value) if not has_data else site.value
    slots = list(site.slots)
    data = shown = None
    if has_data:
        if site.event_dim > site.layout.inner:
            return None  # vectors: their entries are no columns
        value = prepend_dims(value, layout.rank)
        if site.mask is not None:
            shown = prepend_dims(site.mask, layout.rank)
            value = torch.where(shown, value, torch.nan)
        middle = value.nanmean(layout.own, keepdim=True).nan_to_num()
        data, value = (value - middle).nan_to_num(), middle
        slots = [Slot("", torch.zeros((), dtype=torch.long), torch.ones(())), *slots]
    bare = dataclasses.replace(site, value=value, mask=None, slots=tuple(slots))
    coefficients = quadratic_statistics(bare, cells)
    places = [
        first[s.latent] + prepend_dims(s.entries, layout.rank) % sizes[s.latent] for s in site.slots
    ]
    index = prepend_dims(cells.index, layout.rank)
    kept = [layout.alike(tensor) for tensor in (coefficients, index, *places)]
    if any(tensor is None for tensor in kept):
        return None
    coefficients, index, *places = (tensor for tensor in kept if tensor is not None)
    slots_of = torch.stack(torch.broadcast_tensors(*places), -1)
    if any(slots_of.size(i) > 1 for i in layout.ahead):
        return None
    columns = broadcast_shapes(
        coefficients.shape[: layout.rank],
        index.shape,
        slots_of.shape[:-1],
        value.shape[: layout.rank],
    )
    layout = dataclasses.replace(layout, columns=columns)
    varies = any(index.size(i) > 1 or coefficients.size(i) > 1 for i in layout.ahead)
    return RowWiseFactor(
        site.name, cells.key,
        layout.by_state(index, 0, varies), layout.by_state(coefficients, 2, varies),
        layout.by_state(slots_of, 1, False)[0],
        None if data is None else layout.by_row(data),
        None if shown is None else layout.by_row(shown.to(data)),
    )  # fmt: skip


@dataclass(frozen=True)
class _Layout:
    """The dims of a site's batch: those of rows, of discrete latents, and columns."""

    rank: int
    own: list[int]
    ahead: list[int]
    rest: list[int]
    states: Mapping[int, int]
    rows: Sequence[int]
    columns: Sequence[int] = ()

    @staticmethod
    def of(site: Site, states: Mapping[str, int], rows: Mapping[str, int]) -> "_Layout":
        outer = site.layout.outer
        rank = len(outer) + site.layout.inner
        own = [outer.index(symbol) for symbol in rows]
        ahead = [outer.index(symbol) for symbol in states if symbol in outer]
        rest = [i for i in range(rank) if i not in own and i not in ahead]
        of_states = {outer.index(s): size for s, size in states.items() if s in outer}
        return _Layout(rank, own, ahead, rest, of_states, [*rows.values()])

    def first_row(self, value: Tensor) -> Tensor:
        """A latent's value in the first row: zero, as everywhere."""
        return prepend_dims(value, max(value.dim(), self.rank))[
            tuple(slice(0, 1) if i in self.own else slice(None) for i in range(self.rank))
        ]

    def alike(self, tensor: Tensor) -> Tensor | None:
        """A tensor at one row, if all rows are alike."""
        for i in self.own:
            one = tensor.narrow(i, 0, 1)
            if not bool((tensor == one).all()):
                return None
            tensor = one
        return tensor

    def by_state(self, tensor: Tensor, tail: int, varies: bool) -> Tensor:
        """Values of discrete latents (or one for all) first, then columns: ``(S or 1, D, ...)``."""
        shape = [
            self.columns[i]
            if i in self.rest
            else self.states[i]
            if i in self.ahead and varies
            else 1
            for i in range(self.rank)
        ]
        wide = tensor.expand([*shape, *tensor.shape[self.rank :]])
        order = [*self.ahead, *self.own, *self.rest, *range(self.rank, self.rank + tail)]
        lead = torch.Size([shape[i] for i in self.ahead]).numel()
        count = torch.Size([shape[i] for i in self.rest]).numel()
        return wide.permute(order).reshape(lead, count, *tensor.shape[self.rank :])

    def by_row(self, tensor: Tensor) -> Tensor:
        """Rows and columns, ``(R, D)``."""
        shape = [1] * self.rank
        for i, size in zip(self.own, self.rows, strict=True):
            shape[i] = size
        for i in self.rest:
            shape[i] = self.columns[i]
        wide = tensor.expand(shape).permute([*self.ahead, *self.own, *self.rest])
        return wide.reshape(torch.Size(self.rows).numel(), -1).contiguous()
