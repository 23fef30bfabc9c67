"""A component of any shape: latents that meet as the indices of the sites say."""

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.factor import Scale
from ember.inference.factors.gaussian.component import (
    GaussianComponent,
    Natural,
    Potentials,
    factor_of,
)
from ember.inference.factors.gaussian.expansion import Stretches
from ember.inference.factors.gaussian.linked import LinkedFactor
from ember.inference.factors.gaussian.member import Member
from ember.inference.factors.gaussian.quadratic import monomials
from ember.inference.factors.gaussian.uniform import UniformFactor
from ember.inference.factors.tied import TieKey
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.systems import GaussianSystem, gaussian_system

__all__ = ["LinkedComponent", "linked_component"]


MOST = 8  # directions in which the latents of a component are stretched


@dataclass(frozen=True, eq=False)
class LinkedComponent(GaussianComponent):
    """A quadratic form with a sparse precision, put together from pools of events.

    Attributes:
        members: The sites, pooled.
        targets: For each member where its pairs stand in the pattern.
    """

    members: tuple[Member, ...]
    targets: tuple[Tensor, ...]
    meeting: Pattern
    way: GaussianSystem
    row_numbers: Tensor
    expansion: Stretches | None = None

    @property
    def stretches(self) -> Stretches | None:
        return self.expansion

    @property
    def pattern(self) -> Pattern:
        return self.meeting

    @property
    def system(self) -> GaussianSystem:
        return self.way

    @property
    def row_of_entry(self) -> Tensor:
        return self.row_numbers

    @property
    def description(self) -> str:
        return self.way.description

    def potentials(self, natural: Natural, pieces: Natural | None = None) -> Potentials:
        """The quadratic form of the latents at every value of the discrete ones."""
        lead = next(iter(natural.values())).shape[:-2]
        like = next(iter(natural.values()))
        shape = [size for _, size in self.states]
        rows = torch.Size([size for _, size in self.rows]).numel()
        sizes = (rows, self.count, len(self.pattern.rows))
        total = [like.new_zeros(*lead, *(1 for _ in shape), size) for size in sizes]
        for member, places in zip(self.members, self.targets, strict=True):
            stretched = None if pieces is None else pieces[member.key]
            found = member.pieces(natural[member.key], stretched)
            shares = zip((member.rows, member.linear_entries, places), found, strict=True)
            dims = dict(member.symbols)
            own = [dims.get(symbol, 1) for symbol, _ in self.states]
            for i, (index, values) in enumerate(shares):
                zero = values.new_zeros(*values.shape[:-1], sizes[i])
                added = zero.index_add(-1, index, values)
                total[i] = total[i] + added.reshape(*lead, *own, sizes[i])
        states = torch.Size(shape).numel()
        constant, linear, precision = (
            each.expand(*lead, *shape, each.shape[-1]).reshape(*lead, states, each.shape[-1])
            for each in total
        )
        return Potentials(constant, linear, precision)


def linked_component(
    name: str,
    latents: Mapping[str, int],
    members: Sequence[Member],
    states: Sequence[tuple[str, int]],
    rows: Sequence[tuple[str, int]],
    row_of_entry: Tensor,
    scale: Scale | None,
) -> LinkedComponent:
    """Lays out the quadratic form of a component once.

    Args:
        name: Of its factor.
        latents: Its latents with the number of entries of each.
        members: Its sites.
        states: The dims of the discrete latents that they read, with their sizes.
        rows: The plates that it keeps outside, with their sizes.
        row_of_entry: The row of those plates in which each entry lies.
        scale: The weight of the latents.
    """
    found = _stretches(latents, members)
    if found is not None:
        members = [part for member in members for part in _uniform(member, *found)]
    count = sum(latents.values())
    first, second = (torch.cat(each) for each in zip(*(m.pairs for m in members), strict=True))
    pattern = Pattern.of(count, first, second)
    targets = tuple(pattern.place(*member.pairs) for member in members)
    sites = {
        site: tuple(symbol for symbol, _ in member.symbols)
        for member in members
        for site in member.names
    }
    return LinkedComponent(
        factor_of(name, states, rows, scale), dict(latents), tuple(states), tuple(rows), sites,
        tuple(members), targets, pattern, gaussian_system(pattern), row_of_entry,
        None if found is None else found[0],
    )  # fmt: skip


def _stretches(
    latents: Mapping[str, int], members: Sequence[Member]
) -> tuple[Stretches, Tensor] | None:
    """The directions in which latents may be stretched, and that of each entry (-1: none).

    A latent may be if its own prior reads no other and is tied to nothing else, and no other's
    prior reads it: there is one direction for each place in its event, or one for all where they
    share a parameter.
    """
    if any(isinstance(member, UniformFactor) for member in members):
        return None  # a system over time: to stretch its states helps little
    first, names, counts = dict[str, int](), list[tuple[str, int]](), list[int]()
    total = 0
    for name, count in latents.items():
        first[name], total = total, total + count
    direction = torch.full((total,), -1)
    keys = set[TieKey]()
    for member in members:
        own = [name for name in member.names if name in latents]
        if not own or len(member.names) > 1 or not isinstance(member, LinkedFactor):
            continue
        if sum(other.key == member.key for other in members) > 1:
            continue
        begin, end = first[own[0]], first[own[0]] + latents[own[0]]
        inside = (member.entries >= begin) & (member.entries < end)
        if not bool(inside.all()):
            continue
        if any(_reads(other, begin, end) for other in members if _is_prior(other, latents, own)):
            continue
        places = _places(member, begin, end)
        if int(places.max()) + 1 + len(names) > MOST:
            continue
        direction[begin:end] = len(names) + places
        names += [(own[0], place) for place in range(int(places.max()) + 1)]
        counts += torch.bincount(places).tolist()
        keys.add(member.key)
    if not names:
        return None
    return Stretches(tuple(names), torch.tensor(counts), frozenset(keys)), direction


def _is_prior(member: Member, latents: Container[str], own: Sequence[str]) -> bool:
    """Whether a member holds priors of other latents than one's own."""
    return any(name in latents and name not in own for name in member.names)


def _reads(member: Member, begin: int, end: int) -> bool:
    """Whether a member reads an entry of a range."""
    return bool(((member.linear_entries >= begin) & (member.linear_entries < end)).any())


def _places(member: LinkedFactor, begin: int, end: int) -> Tensor:
    """The direction of each entry of a latent, from its prior: slots of an event, or cells."""
    width = member.entries.shape[1]
    places = torch.zeros(end - begin, dtype=torch.long)
    if width > 1:
        for slot in range(width):
            places[member.entries[:, slot] - begin] = slot
        return places
    cells = torch.unique(member.cells[0], return_inverse=True)[1]
    places[member.entries[:, 0] - begin] = cells
    return places


def _uniform(member: Member, stretches: Stretches, direction: Tensor) -> Iterator[Member]:
    """A member in parts, in each of which slots have the same directions, with its pieces."""
    if not isinstance(member, LinkedFactor):
        yield member
        return
    of_slot = direction[member.entries]
    kinds, kind = torch.unique(of_slot, dim=0, return_inverse=True)
    one, other = monomials(of_slot.shape[1])
    for number, slots in enumerate(kinds):
        pairs = stretches.piece(slots[one], slots[other])
        piece = torch.cat([torch.full((1,), -1), stretches.piece(slots), pairs])
        if len(kinds) == 1:
            yield dataclasses.replace(member, piece=piece)
        else:
            yield member.part((kind == number).nonzero().reshape(-1), piece)
