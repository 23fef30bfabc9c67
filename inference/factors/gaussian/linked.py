"""Sites of a component: natural parameters to potentials of the continuous latents they read."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.exponential import at_cells
from ember.inference.factors.factor import Scale
from ember.inference.factors.gaussian.arranging import arranged, over_batch
from ember.inference.factors.gaussian.member import Pieces
from ember.inference.factors.gaussian.quadratic import monomials, quadratic_statistics
from ember.inference.factors.tied import SiteCells, TieKey
from ember.inference.numerics.memo import Memo
from ember.inference.numerics.shapes import broadcast_shapes, prepend_dims
from ember.inference.reading.gaussian.reads import NotIntegrable
from ember.inference.reading.site import Site, Slot

__all__ = ["LinkedFactor", "compile_linked", "merged", "pooled_events"]


FEW_CELLS = 16  # of which each is a product of matrices by itself


@dataclass(frozen=True, eq=False)
class LinkedFactor(Memo):
    """The events of sites pooled: those of one cell that read the same entries add up.

    Attributes:
        names: The sites, which are tied and read alike.
        key: What they are tied to.
        symbols: The dims of discrete latents on which its cells depend, with their sizes.
        cells: The cell of every pool at each value of those latents, ``(D, U)``.
        coefficients: Statistics as quadratic functions of the entries, ``(D or 1, U, P + 1, M)``.
        entries: The entries that each pool reads, ``(U, J)``, counted over the component.
        rows: The row of the component's plates in which each pool lies, ``(U,)``.
        piece: Of an expansion the piece to which each monomial belongs, ``(M,)``, -1 for none.
    """

    names: tuple[str, ...]
    key: TieKey
    symbols: tuple[tuple[str, int], ...]
    cells: Tensor
    coefficients: Tensor
    entries: Tensor
    rows: Tensor
    piece: Tensor | None = None

    @property
    def linear_entries(self) -> Tensor:
        return self.entries.reshape(-1)

    @functools.cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        one, other = (self.entries[:, index] for index in monomials(self.entries.shape[-1]))
        return one[self._used], other[self._used]

    @functools.cached_property
    def _used(self) -> Tensor:
        """Which monomials of which pools are ever there, ``(U, M)``: some slots are empty."""
        first = 1 + self.entries.shape[-1]
        return (self.coefficients[..., first:] != 0).any(-2).any(0)

    @functools.cached_property
    def _factors(self) -> Tensor:
        """A monomial ``z_j z_k`` stands for both triangles; a square for an entry of ``-P / 2``."""
        one, other = self.pairs
        return torch.where(one == other, -2.0, -1.0).to(self.coefficients)

    def potentials(self, eta: Tensor) -> Tensor:
        """The log density of every pool as coefficients of monomials, ``(..., D, U, M)``."""
        return self._linear(eta, None)

    def pieces(self, eta: Tensor, stretched: Tensor | None = None) -> Pieces:
        """The log density of every pool as coefficients of monomials, put in their places.

        Args:
            eta: Natural parameters of the cells, ``(..., C, P)``.
            stretched: The same once more for each piece of an expansion, ``(E, C, P)``.
        """
        if stretched is None or self.piece is None:
            found = self._linear(eta, None)
        else:
            numbers, order = self.once(_order_of_pieces)
            each = [(eta if number < 0 else stretched[number], number) for number in numbers]
            found = torch.cat([self._linear(*one) for one in each], -1)[..., order]
        first = 1 + self.entries.shape[-1]
        quadratic = found[..., first:]
        used = quadratic.flatten(-2) if self._all_used else quadratic[..., self._used]
        return Pieces(found[..., 0], found[..., 1:first].flatten(-2), self._factors * used)

    def part(self, pools: Tensor, piece: Tensor) -> "LinkedFactor":
        """Some of its pools, with the piece to which each of their monomials belongs."""
        return dataclasses.replace(
            self,
            cells=self.cells[:, pools],
            coefficients=self.coefficients[:, pools],
            entries=self.entries[pools],
            rows=self.rows[pools],
            piece=piece,
        )

    def _linear(self, eta: Tensor, piece: int | None) -> Tensor:
        """Monomials of every pool, ``(..., D, U, M)``: all of them, or those of one piece."""
        blocks = self.once(_by_cell, piece)
        if blocks is None:
            coefficients = self.coefficients
            if piece is not None:
                assert self.piece is not None
                coefficients = coefficients[..., self.piece == piece]
            gathered = at_cells(eta, self.cells).unsqueeze(-2)
            return (gathered @ coefficients[..., :-1, :]).squeeze(-2) + coefficients[..., -1, :]
        # One product for all pools of a cell: twenty times as fast as one for each pool.
        width = blocks.width
        found = [
            (eta[..., cell, :] @ matrix + base).unflatten(-1, (-1, width))
            for cell, matrix, base in blocks.products
        ]
        joined = found[0] if blocks.order is None else torch.cat(found, -2)[..., blocks.order, :]
        return joined.unsqueeze(-3)

    @functools.cached_property
    def _all_used(self) -> bool:
        return bool(self._used.all())


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Pools by their cell: ``(P, U M)`` and the base measure ``(U M,)`` of each cell's.

    Attributes:
        products: The cell, the coefficients of its statistics and those of the base measure.
        width: The number ``M`` of monomials.
        order: Brings the pools, cell by cell, back to their own order; None if there is one cell.
    """

    products: tuple[tuple[int, Tensor, Tensor], ...]
    width: int
    order: Tensor | None


def _by_cell(factor: LinkedFactor, piece: int | None) -> _Blocks | None:
    """The pools of each cell, if cells are few and the same at all values of discrete latents."""
    cells = factor.cells[0].unique().tolist()
    if len(factor.cells) > 1 or len(cells) > FEW_CELLS:
        return None
    coefficients = factor.coefficients[0]
    if piece is not None:
        assert factor.piece is not None
        coefficients = coefficients[..., factor.piece == piece]
    products, places = [], []
    for cell in cells:
        own = (factor.cells[0] == cell).nonzero().reshape(-1)
        matrix = coefficients[own].transpose(0, 1).flatten(1)
        products.append((cell, matrix[:-1].contiguous(), matrix[-1].clone()))
        places.append(own)
    order = torch.cat(places).argsort() if len(cells) > 1 else None
    return _Blocks(tuple(products), coefficients.shape[-1], order)


def _order_of_pieces(factor: LinkedFactor) -> tuple[list[int], Tensor]:
    """The pieces that monomials belong to, and what brings these back to their own order."""
    assert factor.piece is not None
    numbers = factor.piece.unique().tolist()
    places = [(factor.piece == number).nonzero().reshape(-1) for number in numbers]
    return numbers, torch.cat(places).argsort()


def compile_linked(
    site: Site,
    cells: SiteCells,
    scale: Scale | None,
    discrete: Mapping[str, int],
    first: Mapping[str, int],
    row_numbers: Tensor,
) -> LinkedFactor:
    """Pools the events of a site.

    Args:
        site: The site.
        cells: Its cells.
        scale: The weight of each event relative to its row's.
        discrete: The sizes of the dims of discrete latents.
        first: For each latent of the component the number of its first entry.
        row_numbers: The component's row of every event, at full rank.
    """
    rank = len(site.layout.outer) + site.layout.inner
    few = _with_few_slots(site, rank, first)
    entries = [prepend_dims(slot.entries, rank) for slot in few.slots]
    statistics = quadratic_statistics(few, cells)
    latent = site.slots[-1].latent
    return pooled_events(few, cells, statistics, entries, latent, scale, discrete, row_numbers)


def pooled_events(
    site: Site,
    cells: SiteCells,
    coefficients: Tensor,
    entries: Sequence[Tensor],
    latent: str,
    scale: Scale | None,
    discrete: Mapping[str, int],
    row_numbers: Tensor,
) -> LinkedFactor:
    """The events of a site, those of one cell that read the same entries as one pool.

    Args:
        site: The site.
        cells: Its cells.
        coefficients: Its statistics as functions of the entries, ``(*batch, P + 1, M)``.
        entries: For each slot the entry of every event, counted over the component, at full rank.
        latent: The latent, or one of them, for what a message says.
        scale: The weight of each event relative to its row's.
        discrete: The sizes of the dims of discrete latents.
        row_numbers: The component's row of every event, at full rank.

    Raises:
        NotIntegrable: If a discrete latent says which entry an event reads.
    """
    rank, outer = len(site.layout.outer) + site.layout.inner, site.layout.outer
    ahead = sorted((i for i, s in enumerate(outer) if s in discrete), key=lambda i: outer[i])
    if scale is not None:
        weight = over_batch(scale, outer, rank)
        coefficients = coefficients * weight.unsqueeze(-1).unsqueeze(-1)
    index = prepend_dims(cells.index, rank)
    full = broadcast_shapes(
        coefficients.shape[:rank], index.shape, row_numbers.shape, *(e.shape for e in entries)
    )
    states = [full[i] for i in ahead]

    all_entries = torch.stack(torch.broadcast_tensors(*entries), -1)
    if any(all_entries.size(i) > 1 for i in ahead):
        raise NotIntegrable(
            f"which entry of the latent '{latent}' site '{site.name}' reads depends on a discrete "
            "latent; estimate the continuous one as a parameter with "
            f"integrate={{'{latent}': None}}."
        )
    reads = arranged(all_entries, full, ahead, 1)[0]
    rows = arranged(row_numbers, full, ahead, 0)[0]
    of_state = index.expand([full[i] if i in ahead else index.size(i) for i in range(rank)])
    by_state = arranged(of_state, full, ahead, 0)
    pooled = arranged(coefficients, full, ahead, 2)
    place, members = _pools(torch.cat([rows.unsqueeze(0), reads.T, by_state]))
    if len(members) < len(place):
        total = pooled.new_zeros(len(pooled), len(members), *pooled.shape[2:])
        pooled = total.index_add_(1, place, pooled)
    else:
        pooled = pooled[:, members]
    symbols = tuple((outer[i], size) for i, size in zip(ahead, states, strict=True))
    return LinkedFactor(
        (site.name,), cells.key, symbols, by_state[:, members], pooled.contiguous(),
        reads[members], rows[members],
    )  # fmt: skip


def merged(factors: Sequence[LinkedFactor]) -> list[LinkedFactor]:
    """The same factors, those that are tied and have as many slots and states as one.

    The steps of a loop are sites of their own, and alike.
    """
    alike: dict[Hashable, list[LinkedFactor]] = {}
    for factor in factors:
        shape = (factor.entries.shape[1], len(factor.coefficients))
        alike.setdefault((factor.key, factor.symbols, shape), []).append(factor)
    return [
        LinkedFactor(
            tuple(name for factor in group for name in factor.names),
            group[0].key,
            group[0].symbols,
            torch.cat([factor.cells for factor in group], 1),
            torch.cat([factor.coefficients for factor in group], 1),
            torch.cat([factor.entries for factor in group]),
            torch.cat([factor.rows for factor in group]),
        )
        for group in alike.values()
    ]


def _with_few_slots(site: Site, rank: int, first: Mapping[str, int]) -> Site:
    """A site whose slots count entries over the component, those never filled at once as one.

    An animal has a sire of one latent, or of another, or none: the slots of all generations are
    one slot, whose latent is that of each row.
    """
    slots: list[Slot] = []
    for slot in site.slots:
        number = first[slot.latent] + prepend_dims(slot.entries, rank)
        own = dataclasses.replace(slot, latent="", entries=number)
        found = (_together(slots[i], own, rank, site) for i in range(len(slots)))
        place = next(((i, both) for i, both in enumerate(found) if both is not None), None)
        if place is None:
            slots.append(own)
        else:
            slots[place[0]] = place[1]
    return dataclasses.replace(site, slots=tuple(slots))


def _together(one: Slot, other: Slot, rank: int, site: Site) -> Slot | None:
    """Two slots as one, if every event fills at most one of them."""
    assert site.form is not None
    if one.column is not None or other.column is not None or site.form.event_dim:
        return None
    left, right = (prepend_dims(slot.coefficient, rank) for slot in (one, other))
    if bool(((left != 0) & (right != 0)).any()):
        return None
    entries = torch.where(right != 0, other.entries, one.entries)
    return Slot("", entries, left + right)


def _pools(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The pool of every event, and one event of each, for keys ``(columns, events)``."""
    place = torch.zeros_like(keys[0])
    for column in keys:
        joint = place * (int(column.max()) + 1) + column
        place = torch.unique(joint, return_inverse=True)[1]
    count = int(place.max()) + 1
    members = torch.zeros(count, dtype=torch.long, device=place.device)
    members[place] = torch.arange(len(place), device=place.device)
    return place, members
