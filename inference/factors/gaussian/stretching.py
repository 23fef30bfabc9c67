"""Which latents of a component may be stretched, and which monomials grow with them."""

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.factors.gaussian.expansion import Stretches
from ember.inference.factors.gaussian.linked import LinkedFactor
from ember.inference.factors.gaussian.member import Member
from ember.inference.factors.gaussian.quadratic import monomials
from ember.inference.factors.gaussian.uniform import UniformFactor
from ember.inference.factors.tied import TieKey

__all__ = ["stretches_of", "uniform_parts"]


MOST = 8  # directions in which the latents of a component are stretched


def stretches_of(
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


def uniform_parts(member: Member, stretches: Stretches, direction: Tensor) -> Iterator[Member]:
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
