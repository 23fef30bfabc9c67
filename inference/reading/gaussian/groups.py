r"""Groups of a latent's entries of which each value of a site reads at most one.

Moving all entries of a group by one moves a location by the coefficient :math:`c` of the entry that
it reads; moving them by their numbers ``(1, 2, 3, ...)``, by :math:`c` times the number; and the
squares of the numbers confirm that there is one such entry alone.

All entries of a latent are tried as one group; then, where its events are vectors, the first
entries of all events, the second ones, and so on. Where a value still reads several entries of a
group (an animal, its sire and its dam), random half masks of the entries part them, and entries
that are read together come into groups of their own, as few as a greedy colouring finds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.numerics.draws import Draws
from ember.inference.reading.gaussian.tangents import Tangents

__all__ = ["EntryGroup", "SeveralRead", "entries_moved", "groups_of", "moved_by", "rounds_of"]


NUMBERED = 1e-6  # how far a number read off may be from a whole one
ROUNDING = 1e-12  # of squares of numbers, relative
LARGEST_EVENT = 64  # entries of an event that are tried one by one
MOST_READ = 6  # entries that a value may read of one group
MOST_COLOURS = 12  # groups into which those that are read together may come
MOST_MASKS = 200


@dataclass(frozen=True, eq=False)
class EntryGroup:
    """Some entries of a latent.

    Attributes:
        latent: The latent.
        entries: Their flat numbers, in rising order.
        shape: The shape of the latent's value.
    """

    latent: str
    entries: Tensor
    shape: torch.Size

    def direction(self, power: int, mask: Tensor | None = None) -> Tensor:
        """A slope for every entry of the latent: its number in the group to a power, else zero.

        Args:
            power: The power.
            mask: Which members of the group move; all unless given.
        """
        numbers = torch.arange(1.0, len(self.entries) + 1.0) ** power
        if mask is not None:
            numbers = torch.where(mask, numbers, 0.0)
        out = torch.zeros(self.shape.numel())
        out[self.entries] = numbers
        return out.reshape(self.shape)


Moved = Mapping[tuple[str, str], tuple[Tensor, Tensor, Tensor] | None]
"""How a site moves with a latent: along slopes of one, numbers, and their squares."""


def rounds_of(
    groups: Sequence[EntryGroup], reading: Mapping[str, Sequence[str]]
) -> list[list[EntryGroup]]:
    """Groups such that no site reads two of one round."""
    together: dict[str, set[str]] = {group.latent: {group.latent} for group in groups}
    for latents in reading.values():
        for name in latents:
            together.setdefault(name, {name}).update(latents)
    rounds: list[tuple[set[str], list[EntryGroup]]] = []
    for group in groups:
        near = together[group.latent]
        place = next((r for r in rounds if not near & r[0]), None)
        if place is None:
            rounds.append(({group.latent}, [group]))
        else:
            place[0].add(group.latent)
            place[1].append(group)
    return [members for _, members in rounds]


def moved_by(
    tangents: Tangents, round_: Sequence[EntryGroup], reading: Mapping[str, Sequence[str]]
) -> Moved:
    """How each site moves with the one group of a round that it reads, if it does."""
    each = [
        tangents.along({group.latent: group.direction(power) for group in round_})
        for power in (0, 1, 2)
    ]
    out: dict[tuple[str, str], tuple[Tensor, Tensor, Tensor] | None] = {}
    for group in round_:
        for name, latents in reading.items():
            if group.latent in latents:
                found = tuple(along[name].get("loc") for along in each)
                out[name, group.latent] = None if found[0] is None else found  # type: ignore[assignment]
    return out


def entries_moved(
    moved: tuple[Tensor, Tensor, Tensor], event_dim: int, count: int
) -> Tensor | None:
    """The place in a group of the entry that each event reads; None if it reads several.

    An event that reads none has that of those beside it, along dims in which all others have the
    same, and else 0.
    """
    number, is_one, is_none = one_read(moved, event_dim, count)
    if not bool((is_one | is_none).all()):
        return None
    for dim in reversed(range(number.dim())):
        low = torch.where(is_one, number, count).amin(dim, keepdim=True)
        high = torch.where(is_one, number, -1).amax(dim, keepdim=True)
        if bool(((low == high) | (high < 0)).all()):
            number, is_one = high.clamp_min(0), high >= 0
    return number


def one_read(
    moved: tuple[Tensor, Tensor, Tensor], event_dim: int, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The place of the entry that each event reads; where that is one alone, and where none."""
    slope, numbered, squared = moved
    if event_dim:
        largest, at = slope.abs().max(-1, keepdim=True)
        number = numbered.gather(-1, at) / slope.gather(-1, at)
    else:
        largest, number = slope.abs(), numbered / slope
    whole = torch.where(largest > 0, number, 1.0).round()
    far = NUMBERED + ROUNDING * whole.square()
    fits = (largest > 0) & (whole >= 1.0) & (whole <= count)
    fits = fits & ((numbered - slope * whole).abs() <= NUMBERED * largest)
    fits = fits & ((squared - slope * whole.square()).abs() <= far * largest)
    none = (slope == 0) & (numbered == 0) & (squared == 0)
    place = torch.where(fits, whole - 1.0, 0.0).long()
    if not event_dim:
        return place, fits, none
    return place[..., 0], fits.all(-1), none.all(-1)


def groups_of(
    tangents: Tangents,
    shapes: Mapping[str, torch.Size],
    events: Mapping[str, int],
    reading: Mapping[str, Sequence[str]],
    event_dims: Mapping[str, int],
) -> list[EntryGroup]:
    """The groups of all latents.

    Args:
        tangents: How sites move at one value of the parameters.
        shapes: The shapes of the latents.
        events: How many entries their events have.
        reading: The latents that each site reads.
        event_dims: How many dims an event of each site's bare distribution has.

    Raises:
        SeveralRead: If a site reads more entries of a latent than can be told apart.
    """
    whole = [EntryGroup(n, torch.arange(shape.numel()), shape) for n, shape in shapes.items()]
    rest = _unfit(whole, tangents, reading, event_dims)
    again = [
        EntryGroup(group.latent, group.entries[k :: events[group.latent]], group.shape)
        for group in rest
        for k in range(events[group.latent])
        if 1 < events[group.latent] <= LARGEST_EVENT
    ]
    split = {group.latent for group in again}
    unfit = _unfit(again, tangents, reading, event_dims)
    unfit += [group for group in rest if group.latent not in split]
    refused = {id(group) for group in [*rest, *unfit]}
    kept = [group for group in [*whole, *again] if id(group) not in refused]
    parted = [
        EntryGroup(group.latent, group.entries[colour], group.shape)
        for group in unfit
        for colour in colours_of(group, tangents, reading, event_dims)
    ]
    order = list(shapes)
    found = [*kept, *parted]
    return sorted(found, key=lambda group: (order.index(group.latent), int(group.entries[0])))


def _unfit(
    groups: Sequence[EntryGroup],
    tangents: Tangents,
    reading: Mapping[str, Sequence[str]],
    event_dims: Mapping[str, int],
) -> list[EntryGroup]:
    """The groups of which some site reads several entries at once."""
    found = []
    for round_ in rounds_of(groups, reading):
        by_latent = {group.latent: group for group in round_}
        several = set()
        for (name, latent), moved in moved_by(tangents, round_, reading).items():
            count = len(by_latent[latent].entries)
            if moved is not None and entries_moved(moved, event_dims[name], count) is None:
                several.add(latent)
        found += [group for group in round_ if group.latent in several]
    return found


# -- entries that are read together ----------------------------------------------------------------


class SeveralRead(Exception):
    """A value of a site reads many entries of a latent."""

    def __init__(self, site: str, latent: str) -> None:
        super().__init__(site, latent)
        self.site, self.latent = site, latent


def colours_of(
    group: EntryGroup,
    tangents: Tangents,
    reading: Mapping[str, Sequence[str]],
    event_dims: Mapping[str, int],
) -> list[Tensor]:
    """The members of a group as few groups of which no event reads two.

    Each half of a random parting that holds one of the entries that an event reads shows which one
    it is. Halves are drawn until the entries found add up to all that every event reads.
    """
    sites = [name for name, latents in reading.items() if group.latent in latents]
    totals = _moved_by_half(group, tangents, sites, None)
    partings = []
    for name, total in totals.items():
        if entries_moved(total, event_dims[name], len(group.entries)) is not None:
            continue
        if event_dims[name]:
            raise SeveralRead(name, group.latent)
        partings.append(_Parting(name, group, torch.stack(total).flatten(1)))
    for mask in _halves(len(group.entries)):
        open_ = [parting.site for parting in partings if not parting.is_done]
        if not open_:
            break
        for half in (mask, ~mask):
            moved = _moved_by_half(group, tangents, open_, half)
            for parting in partings:
                if parting.site in moved:
                    parting.add(torch.stack(moved[parting.site]).flatten(1))
    for parting in partings:
        if not parting.is_done:
            raise SeveralRead(parting.site, group.latent)
    colour = _coloured(torch.cat([parting.pairs() for parting in partings], 1), group)
    count = int(colour.max())
    if count > MOST_COLOURS:
        raise SeveralRead(partings[0].site, group.latent)
    return [(colour == c).nonzero().squeeze(-1) for c in range(1, count + 1)]


def _halves(count: int) -> Iterator[Tensor]:
    """Masks of members: the bits of their numbers, any two of which differ in one; then random."""
    draws = Draws(0)
    members = torch.arange(count)
    bits = (count - 1).bit_length()
    for i in range(MOST_MASKS):
        if i < bits:
            yield (members >> i) % 2 == 1
        else:
            yield draws.uniform((count,)) < 0.5


def _moved_by_half(
    group: EntryGroup, tangents: Tangents, sites: Sequence[str], mask: Tensor | None
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """How locations move with some members of a group: along ones, numbers and squares."""
    first, second, third = (
        tangents.along({group.latent: group.direction(power, mask)}) for power in (0, 1, 2)
    )
    return {
        name: (first[name]["loc"], second[name]["loc"], third[name]["loc"])
        for name in sites
        if "loc" in first[name]
    }


class _Parting:
    """The entries that each event of a site reads of a group, as far as they are found.

    Args:
        site: The site.
        group: The group.
        total: How all events move with all members: slopes, numbers and squares, ``(3, events)``.
    """

    def __init__(self, site: str, group: EntryGroup, total: Tensor) -> None:
        self.site, self.latent, self.members = site, group.latent, len(group.entries)
        self.left = total
        self.size = torch.zeros_like(total[0])
        self.found = torch.full((total.shape[1], MOST_READ), -1)
        self.count = torch.zeros(total.shape[1], dtype=torch.long)

    def add(self, moved: Tensor) -> None:
        """Takes in how events move with a part of the members."""
        place, is_one, _ = one_read((moved[0], moved[1], moved[2]), 0, self.members)
        new = is_one & (self.found != place.unsqueeze(-1)).all(-1)
        if bool((new & (self.count == MOST_READ)).any()):
            raise SeveralRead(self.site, self.latent)
        rows = new.nonzero().squeeze(-1)
        self.found[rows, self.count[rows]] = place[rows]
        self.count[rows] += 1
        slope, numbers = moved[0][rows], place[rows] + 1.0
        powers = torch.stack([torch.ones_like(numbers), numbers, numbers.square()])
        self.left = self.left.index_add(1, rows, -slope * powers)
        self.size = self.size.index_add(0, rows, slope.abs())

    @property
    def is_done(self) -> bool:
        """Whether what was found is all that moves any event."""
        largest = (self.found.amax(-1) + 1.0).clamp_min(1.0)
        powers = torch.stack([torch.ones_like(largest), largest, largest.square()])
        return bool((self.left.abs() <= NUMBERED * self.size * powers).all())

    def pairs(self) -> Tensor:
        """Pairs of members that one event reads, ``(2, pairs)``."""
        one, other = torch.triu_indices(MOST_READ, MOST_READ, 1)
        pairs = torch.stack([self.found[:, one].reshape(-1), self.found[:, other].reshape(-1)])
        return pairs[:, (pairs >= 0).all(0)]


def _coloured(pairs: Tensor, group: EntryGroup) -> Tensor:
    """A colour from 1 on for every member, two of a pair in different ones."""
    near: dict[int, set[int]] = {}
    for one, other in torch.unique(pairs, dim=1).T.tolist():
        near.setdefault(one, set()).add(other)
        near.setdefault(other, set()).add(one)
    colour = dict[int, int]()
    for entry in sorted(near, key=lambda e: -len(near[e])):
        taken = {colour[other] for other in near[entry] if other in colour}
        colour[entry] = next(c for c in range(1, len(near) + 2) if c not in taken)
    return torch.tensor([colour.get(i, 1) for i in range(len(group.entries))])
