r"""Groups of a latent's entries of which each value of a site reads at most one.

Moving all entries of a group by one moves a location by the coefficient :math:`c` of the entry that
it reads; moving them by their numbers ``(1, 2, 3, ...)``, by :math:`c` times the number; and the
squares of the numbers confirm that there is one such entry alone.

All entries of a latent are tried as one group; then, where its events are vectors, the first
entries of all events, the second ones, and so on. Where a value still reads several entries of a
group (an animal, its sire and its dam), random half masks of the entries part them, and entries
that are read together come into groups of their own, as few as a greedy colouring finds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    """The place in a group of the entry that each event reads, 0 if none; None if several."""
    number, is_one, is_none = one_read(moved, event_dim, count)
    if not bool((is_one | is_none).all()):
        return None
    for dim in range(number.dim()):
        first = number.narrow(dim, 0, 1)
        if bool((number == first).all()):
            number = first
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


# -- entries that are read together -----------------------------------------------------------------


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
    pairs = []
    for name, latents in reading.items():
        if group.latent not in latents:
            continue
        if event_dims[name]:
            moved = moved_by(tangents, [group], {name: [group.latent]})[name, group.latent]
            if (
                moved is None
                or entries_moved(moved, event_dims[name], len(group.entries)) is not None
            ):
                continue
            raise SeveralRead(name, group.latent)
        pairs.append(_read_together(group, tangents, name))
    together = torch.unique(torch.cat(pairs, 1), dim=1).T.tolist()
    near: dict[int, set[int]] = {}
    for one, other in together:
        near.setdefault(one, set()).add(other)
        near.setdefault(other, set()).add(one)
    colour = torch.zeros(len(group.entries), dtype=torch.long)
    for entry in sorted(near, key=lambda e: -len(near[e])):
        taken = {int(colour[other]) for other in near[entry]} - {0}
        colour[entry] = next(c for c in range(1, len(near) + 2) if c not in taken)
    colour[colour == 0] = 1
    count = int(colour.max())
    if count > MOST_COLOURS:
        raise SeveralRead(next(n for n, r in reading.items() if group.latent in r), group.latent)
    return [(colour == c).nonzero().squeeze(-1) for c in range(1, count + 1)]


def _read_together(group: EntryGroup, tangents: Tangents, name: str) -> Tensor:
    """Pairs of members of a group that one event of a site reads, ``(2, pairs)``."""
    generator = torch.Generator().manual_seed(0)
    members = torch.arange(len(group.entries))

    def moved(mask: Tensor | None) -> Tensor:
        """Slopes, numbers and squares of all events, ``(3, events)``."""
        each = [
            tangents.along({group.latent: group.direction(power, mask)})[name]["loc"].reshape(-1)
            for power in (0, 1, 2)
        ]
        return torch.stack(each)

    total = moved(None)
    events = total.shape[1]
    found = torch.full((events, MOST_READ), -1)
    sums = torch.zeros_like(total)  # of the entries found
    size = torch.zeros(events)
    count = torch.zeros(events, dtype=torch.long)
    bits = max(1, int(members[-1]).bit_length())
    for i in range(MOST_MASKS):
        if i < bits:
            mask = (members >> i) % 2 == 1
        else:
            mask = torch.rand(len(members), generator=generator) < 0.5
        for part in (moved(mask), moved(~mask)):
            place, is_one, _ = one_read((part[0], part[1], part[2]), 0, len(members))
            new = is_one & (found != place.unsqueeze(-1)).all(-1)
            if bool((new & (count == MOST_READ)).any()):
                raise SeveralRead(name, group.latent)
            rows = new.nonzero().squeeze(-1)
            found[rows, count[rows]] = place[rows]
            count[rows] += 1
            numbers = place[rows] + 1.0
            slope = part[0][rows]
            sums[:, rows] += slope * torch.stack([numbers**power for power in (0, 1, 2)])
            size[rows] += slope.abs()
        largest = (found + 1.0).amax(-1).clamp_min(1.0)
        scale = torch.stack([torch.ones_like(largest), largest, largest.square()])
        error = (total - sums).abs() / scale
        if bool((error <= NUMBERED * size).all()):
            break
    else:
        raise SeveralRead(name, group.latent)
    one, other = torch.triu_indices(MOST_READ, MOST_READ, 1)
    pairs = torch.stack([found[:, one].reshape(-1), found[:, other].reshape(-1)])
    return pairs[:, (pairs >= 0).all(0)]
