"""Loops of ``pyro.markov``: which sites of a model are the steps of one chain.

    for t in pyro.markov(range(T)):
        z = pyro.sample(f"z_{t}", ...)               becomes   z[0], z, x | z
        pyro.sample(f"x_{t}", ..., obs=x[t])                   with a dim of T steps

Sites whose names differ in their last number are one family. A loop is a set of families of which
a step depends on itself and on the step before: one latent family is the chain, others are latents
or data of a step. Its sites are stacked (``reading/loops/stacking.py``), so that a loop is the same
chain as a ``DiscreteHMM``. Loops of another kind (two chains, a longer memory) stay site by site.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ember.inference.reading.partly_observed import dims_of_latents
from ember.inference.reading.sequences import base_name
from ember.inference.reading.unwrapping import unwrap

__all__ = ["Family", "Loop", "find_loops"]


FILLED = 4  # entries of stacked data for each that there is
_NUMBERED = re.compile(r"^(.*\D)?(\d+)(\D*)$")


@dataclass(frozen=True)
class Family:
    """Sites of one loop that become one.

    Attributes:
        name: What the stacked site is called.
        members: The site of each step; None where the loop has none.
        latent: Whether it is latent.
        varies: Arguments of the distribution that differ between the steps; None if not known.
    """

    name: str
    members: tuple[str | None, ...]
    latent: bool
    varies: frozenset[str] | None = None

    @property
    def present(self) -> list[int]:
        """The steps that have a member."""
        return [step for step, member in enumerate(self.members) if member is not None]

    @property
    def names(self) -> tuple[str, ...]:
        """The sites by the names that the model gives them."""
        return tuple(member for member in self.members if member is not None)

    @property
    def symbol(self) -> str:
        """The dim of a latent's values."""
        return f"{self.name}, each step"

    def apart(self, value: Tensor, dim: int) -> dict[str, Tensor]:
        """A tensor with a dim of steps under the family's name, or that of each member."""
        present = value.index_select(dim, torch.tensor(self.present))
        if len(self.names) > 1 and self.name == base_name(self.names[0]):
            return {self.name: present}
        return dict(zip(self.names, present.unbind(dim), strict=True))


@dataclass(frozen=True)
class Loop:
    """A loop over the steps of one chain.

    Attributes:
        chain: The family of the chain's states.
        others: Families of latents and data of a step.
        outside: Symbols of latents outside the loop that its sites depend on.
    """

    chain: Family
    others: tuple[Family, ...]
    outside: tuple[str, ...] = ()

    @property
    def latent(self) -> str:
        """The chain's stacked site."""
        return self.chain.name

    @property
    def steps(self) -> int:
        """The number of time steps."""
        return len(self.chain.members)

    @property
    def time(self) -> str:
        """The name of the plate of time steps."""
        return f"steps of {self.chain.name}"

    @property
    def symbol(self) -> str:
        """The dim of a step's state."""
        return self.chain.symbol

    @property
    def at_once(self) -> bool:
        """The first state emits."""
        return True

    @property
    def initial(self) -> str:
        """The factor of the first state."""
        return f"{self.latent}[0]"

    @property
    def previous(self) -> str:
        """The dim of the state one step before."""
        return f"{self.latent}, one step before"

    @property
    def families(self) -> tuple[Family, ...]:
        return (self.chain, *self.others)

    @property
    def slots(self) -> tuple[str, ...]:
        """The dims of latents in a stacked tensor, from the left."""
        inner = (family.symbol for family in self.others if family.latent)
        return (self.chain.symbol, self.previous, *inner, *self.outside)


class _Unlike(Exception):
    """The sites at hand are no loop that can be stacked."""


def find_loops(
    trace: Any,
    latent: Collection[str],
    observed: Collection[str],
    steps: Collection[str],
    taken: Collection[str],
) -> list[Loop]:
    """The loops of an enumerated run.

    Args:
        trace: The run, its dims named.
        latent: Latent sites that may be part of a loop.
        observed: Observed sites that may.
        steps: Sites inside ``pyro.markov``.
        taken: Names that no stacked site may have.
    """
    sites = _Sites.of(trace, latent, observed)
    loops = []
    for families in sites.components():
        if not any(n in steps and key in families for n, (key, _) in sites.place.items()):
            continue
        try:
            loops.append(_loop(sites, families, taken))
        except _Unlike:
            continue
    return loops


Key = tuple[str, str]


@dataclass(frozen=True)
class _Sites:
    """Latent and observed sites, what each depends on, and the numbered families of latents."""

    nodes: Mapping[str, Any]
    needs: Mapping[str, tuple[str, ...]]
    place: Mapping[str, tuple[Key, int]]
    observed: tuple[str, ...]
    symbols: Mapping[str, str]

    @staticmethod
    def of(trace: Any, latent: Collection[str], observed: Collection[str]) -> "_Sites":
        nodes = trace.nodes
        symbols = {nodes[n]["infer"]["_enumerate_symbol"]: n for n in latent}
        needs = {
            name: tuple(
                symbols[s] for s in dims_of_latents(nodes[name]) if symbols.get(s, name) != name
            )
            for name in (*latent, *observed)
        }
        place = {name: at for name in latent if (at := _numbered(name)) is not None}
        return _Sites(nodes, needs, place, tuple(observed), symbols)

    def components(self) -> Iterator[set[Key]]:
        """Families of latents that depend on each other or share data, with a chain among them."""
        links: dict[Key, set[Key]] = {key: {key} for key, _ in self.place.values()}
        chained = set()
        for name, needed in self.needs.items():
            keys = {self.place[n][0] for n in needed if n in self.place}
            if name in self.place:
                own, step = self.place[name]
                keys.add(own)
                if any(self.place.get(n) == (own, step - 1) for n in needed):
                    chained.add(own)
            joint = set().union(*(links[key] for key in keys))
            for key in joint:
                links[key] = joint
        seen: set[Key] = set()
        for key, joint in links.items():
            if key not in seen and joint & chained:
                seen |= joint
                yield joint


def _numbered(name: str) -> tuple[Key, int] | None:
    found = _NUMBERED.match(name)
    return None if found is None else ((found[1] or "", found[3]), int(found[2]))


def _loop(sites: _Sites, keys: set[Key], taken: Collection[str]) -> Loop:
    """The loop of some families of latents.

    Raises:
        _Unlike: If it is none that can be stacked.
    """
    members: dict[Key, dict[int, str]] = {key: {} for key in keys}
    for name, (key, number) in sites.place.items():
        if key in keys:
            members[key][number] = name
    first = min(min(own) for own in members.values())
    steps = max(max(own) for own in members.values()) - first + 1
    _require(steps > 1 and all(len(own) == steps for own in members.values()))
    positions = {n: number - first for own in members.values() for number, n in own.items()}
    chain = _chain_key(sites, positions)
    for name, needed in sites.needs.items():
        if name not in positions and name not in sites.observed:
            _require(not any(n in positions for n in needed))
    latents = [
        Family("", tuple(own[first + step] for step in range(steps)), True)
        for own in (members[chain], *(own for key, own in members.items() if key != chain))
    ]
    data = _data(sites, positions, set(members[chain].values()), steps)
    _require(bool(data))
    # Sites of many kinds, each at a step or two, are fewer numbers one by one.
    _require(len(data) * steps <= FILLED * sum(len(family.names) for family in data))
    families = [*latents, *data]
    for family in families:
        _check_alike(sites, family, skip_first=family is latents[0])
    _check_order(sites, positions, set(members[chain].values()))
    outside = {
        symbol
        for symbol, name in sites.symbols.items()
        if name not in positions and any(name in sites.needs[n] for f in families for n in f.names)
    }
    named = _named(families, taken)
    return Loop(named[0], tuple(named[1:]), tuple(sorted(outside)))


def _require(condition: bool) -> None:
    if not condition:
        raise _Unlike


def _chain_key(sites: _Sites, positions: Mapping[str, int]) -> Key:
    """The one family whose members the next step depends on."""
    carried = set()
    for name, needed in sites.needs.items():
        inside = [n for n in needed if n in positions]
        if not inside:
            continue
        at = positions[name] if name in positions else max(positions[n] for n in inside)
        for n in inside:
            _require(at - positions[n] in (0, 1))
            if at != positions[n]:
                carried.add(sites.place[n][0])
    _require(len(carried) == 1)
    return carried.pop()


def _check_order(sites: _Sites, positions: Mapping[str, int], chain: set[str]) -> None:
    """A state may depend on the state before it and on latents outside, on nothing in its step."""
    for name in chain:
        _require(all(n in chain or n not in positions for n in sites.needs[name]))


def _data(sites: _Sites, positions: Mapping[str, int], chain: set[str], steps: int) -> list[Family]:
    """The families of data: sites of one kind, at most one for each step."""
    at: dict[str, int] = {}
    shifts: dict[Key, set[int]] = {}
    for name in sites.observed:
        inside = [positions[n] for n in sites.needs[name] if n in positions]
        if inside:
            at[name] = max(inside)
            if (place := _numbered(name)) is not None:
                shifts.setdefault(place[0], set()).add(place[1] - at[name])
    for name in sites.observed:  # data that at some steps depend on nothing
        place = _numbered(name)
        if name not in at and place is not None and len(shifts.get(place[0], ())) == 1:
            (shift,) = shifts[place[0]]
            if 0 <= place[1] - shift < steps:
                at[name] = place[1] - shift
    back = {
        place[0]
        for name, step in at.items()
        if (place := _numbered(name)) is not None
        and any(positions.get(n, step) < step for n in sites.needs[name])
    }
    found: dict[tuple[Any, ...], list[str | None]] = {}
    for name, step in at.items():
        place = _numbered(name)
        base = name if place is None else place[0]
        alone = step == 0 and place is not None and place[0] in back  # no state comes before it
        key = (base, alone, *_kind(sites.nodes[name]))
        own = found.setdefault(key, [None] * steps)
        _require(own[step] is None)
        own[step] = name
    return [Family("", tuple(own), False) for own in found.values()]


def _kind(node: Any) -> tuple[Any, ...]:
    """What sites must have in common to be stacked."""
    fn = node["fn"]
    unwrapped = unwrap(fn)
    frames = tuple((f.name, f.dim, f.size) for f in node["cond_indep_stack"] if f.vectorized)
    value = node["value"]
    return (
        type(unwrapped.base), unwrapped.reinterpreted, tuple(fn.event_shape), frames, value.dtype,
        unwrapped.mask is None,
    )  # fmt: skip


def _check_alike(sites: _Sites, family: Family, skip_first: bool) -> None:
    """Members are of one kind and of one weight; of latents the values are the same."""
    nodes = [sites.nodes[name] for name in family.names]
    for node in nodes[1:]:
        _require(_same_scale(node["scale"], nodes[0]["scale"]))
    if family.latent:
        values = [node["value"].reshape(-1, *node["fn"].event_shape) for node in nodes]
        _require(all(torch.equal(value, values[0]) for value in values[1:]))
        frames = {_kind(node)[3] for node in nodes}
        _require(len(frames) == 1 and all(unwrap(node["fn"]).mask is None for node in nodes))
    kinds = [_kind(node) for node in (nodes[1:] if skip_first else nodes)]
    _require(all(kind == kinds[0] for kind in kinds[1:]))


def _same_scale(one: Any, other: Any) -> bool:
    return one is other or torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def _named(families: Sequence[Family], taken: Collection[str]) -> list[Family]:
    """Families by the name without its number; where that is taken, by their first and last."""
    own = {name for family in families for name in family.names}
    used = set(taken) - own
    named = []
    for family in families:
        names = family.names
        base = base_name(names[0]) if len(names) > 1 else names[0]
        name = base if base is not None and base not in used else f"{names[0]} ... {names[-1]}"
        used.add(name)
        named.append(replace(family, name=name))
    return named
