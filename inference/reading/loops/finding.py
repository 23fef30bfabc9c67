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
from typing import NamedTuple

import torch
from torch import Tensor

from ember.inference.reading.loops.loop import Family, Loop
from ember.inference.reading.partly_observed import dims_of_latents
from ember.inference.reading.sequences import base_name
from ember.inference.reading.trace import Trace, TraceNode, plates_of
from ember.inference.reading.unwrapping import unwrap

__all__ = ["find_loops"]


FILLED = 4  # entries of stacked data for each that there is
_NUMBERED = re.compile(r"^(.*\D)?(\d+)(\D*)$")
Key = tuple[str, str]  # what stands before and after the number in the name of a site


class _Numbered(NamedTuple):
    """The name of a site with a number in it, taken apart."""

    key: Key
    number: int


class _Kind(NamedTuple):
    """What sites must have in common to be stacked."""

    base: type
    reinterpreted: int
    event_shape: tuple[int, ...]
    plates: tuple[tuple[str, int, int], ...]
    dtype: torch.dtype
    is_unmasked: bool


class _Unlike(Exception):
    """The sites at hand are no loop that can be stacked."""


def find_loops(
    trace: Trace,
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
        if not any(n in steps and key in families for n, (key, _) in sites.numbered.items()):
            continue
        try:
            loops.append(_loop(sites, families, taken))
        except _Unlike:
            continue
    return loops


@dataclass(frozen=True)
class _Sites:
    """Latent and observed sites, and what each depends on.

    Attributes:
        nodes: All sites of the run.
        needs: The latents that each site depends on.
        numbered: The latents with a number in their name.
        observed: The names of the observed sites.
        symbols: The latents by the symbols of their dims.
    """

    nodes: Mapping[str, TraceNode]
    needs: Mapping[str, tuple[str, ...]]
    numbered: Mapping[str, _Numbered]
    observed: tuple[str, ...]
    symbols: Mapping[str, str]

    @staticmethod
    def of(trace: Trace, latent: Collection[str], observed: Collection[str]) -> "_Sites":
        nodes = trace.nodes
        symbols = {nodes[n]["infer"]["_enumerate_symbol"]: n for n in latent}
        needs = {
            name: tuple(
                symbols[s] for s in dims_of_latents(nodes[name]) if symbols.get(s, name) != name
            )
            for name in (*latent, *observed)
        }
        numbered = {name: parts for name in latent if (parts := _numbered(name)) is not None}
        return _Sites(nodes, needs, numbered, tuple(observed), symbols)

    def components(self) -> Iterator[set[Key]]:
        """Families of latents that depend on each other or share data, with a chain among them."""
        links: dict[Key, set[Key]] = {key: {key} for key, _ in self.numbered.values()}
        chained = set()
        for name, needed in self.needs.items():
            keys = {self.numbered[n].key for n in needed if n in self.numbered}
            if name in self.numbered:
                key, step = self.numbered[name]
                keys.add(key)
                if any(self.numbered.get(n) == (key, step - 1) for n in needed):
                    chained.add(key)
            joint = set().union(*(links[key] for key in keys))
            for key in joint:
                links[key] = joint
        done: set[Key] = set()
        for key, joint in links.items():
            if key not in done and joint & chained:
                done |= joint
                yield joint


def _numbered(name: str) -> _Numbered | None:
    match = _NUMBERED.match(name)
    return None if match is None else _Numbered((match[1] or "", match[3]), int(match[2]))


def _loop(sites: _Sites, keys: set[Key], taken: Collection[str]) -> Loop:
    """The loop of some families of latents.

    Raises:
        _Unlike: If it is none that can be stacked.
    """
    members: dict[Key, dict[int, str]] = {key: {} for key in keys}
    for name, (key, number) in sites.numbered.items():
        if key in keys:
            members[key][number] = name
    first = min(min(names) for names in members.values())
    steps = max(max(names) for names in members.values()) - first + 1
    _require(steps > 1 and all(len(names) == steps for names in members.values()))
    step_of = {n: number - first for names in members.values() for number, n in names.items()}
    chain = _chain_key(sites, step_of)
    for name, needed in sites.needs.items():
        if name not in step_of and name not in sites.observed:
            _require(not any(n in step_of for n in needed))
    latents = [
        Family("", tuple(names[first + step] for step in range(steps)), True)
        for names in (members[chain], *(names for key, names in members.items() if key != chain))
    ]
    data = _data(sites, step_of, steps)
    _require(bool(data))
    # Sites of many kinds, each at a step or two, are fewer numbers one by one.
    _require(len(data) * steps <= FILLED * sum(len(family.names) for family in data))
    families = [*latents, *data]
    for family in families:
        _check_alike(sites, family, skip_first=family is latents[0])
    _check_order(sites, step_of, set(members[chain].values()))
    outside = {
        symbol
        for symbol, name in sites.symbols.items()
        if name not in step_of and any(name in sites.needs[n] for f in families for n in f.names)
    }
    named = _named(families, taken)
    return Loop(named[0], tuple(named[1:]), tuple(sorted(outside)))


def _require(condition: bool) -> None:
    if not condition:
        raise _Unlike


def _chain_key(sites: _Sites, step_of: Mapping[str, int]) -> Key:
    """The one family whose members the next step depends on."""
    carried = set()
    for name, needed in sites.needs.items():
        inside = [n for n in needed if n in step_of]
        if not inside:
            continue
        step = step_of[name] if name in step_of else max(step_of[n] for n in inside)
        for n in inside:
            _require(step - step_of[n] in (0, 1))
            if step != step_of[n]:
                carried.add(sites.numbered[n].key)
    _require(len(carried) == 1)
    return carried.pop()


def _check_order(sites: _Sites, step_of: Mapping[str, int], chain: set[str]) -> None:
    """A state may depend on the state before it and on latents outside, on nothing in its step."""
    for name in chain:
        _require(all(n in chain or n not in step_of for n in sites.needs[name]))


def _data(sites: _Sites, step_of: Mapping[str, int], steps: int) -> list[Family]:
    """The families of data: sites of one kind, at most one for each step."""
    numbered = {name: _numbered(name) for name in sites.observed}
    data_steps = _steps_of_data(sites, numbered, step_of, steps)
    looks_back = {
        parts.key
        for name, step in data_steps.items()
        if (parts := numbered[name]) is not None
        and any(step_of.get(n, step) < step for n in sites.needs[name])
    }
    families: dict[tuple[object, ...], list[str | None]] = {}
    for name, step in data_steps.items():
        parts = numbered[name]
        base = name if parts is None else parts.key
        # No state comes before the first step.
        alone = step == 0 and parts is not None and parts.key in looks_back
        key = (base, alone, _kind(sites.nodes[name]))
        members = families.setdefault(key, [None] * steps)
        _require(members[step] is None)
        members[step] = name
    return [Family("", tuple(members), False) for members in families.values()]


def _steps_of_data(
    sites: _Sites,
    numbered: Mapping[str, _Numbered | None],
    step_of: Mapping[str, int],
    steps: int,
) -> dict[str, int]:
    """The step of each observed site: that of the last latent it depends on.

    Data that at some steps depend on no latent are numbered as those at the other steps are.
    """
    found: dict[str, int] = {}
    shifts: dict[Key, set[int]] = {}
    for name in sites.observed:
        inside = [step_of[n] for n in sites.needs[name] if n in step_of]
        if inside:
            found[name] = max(inside)
            if (parts := numbered[name]) is not None:
                shifts.setdefault(parts.key, set()).add(parts.number - found[name])
    for name in sites.observed:
        parts = numbered[name]
        if name not in found and parts is not None and len(shifts.get(parts.key, ())) == 1:
            (shift,) = shifts[parts.key]
            if 0 <= parts.number - shift < steps:
                found[name] = parts.number - shift
    return found


def _kind(node: TraceNode) -> _Kind:
    fn = node["fn"]
    unwrapped = unwrap(fn)
    plates = tuple((plate.name, plate.dim, plate.size) for plate in plates_of(node))
    return _Kind(
        type(unwrapped.base), unwrapped.reinterpreted, tuple(fn.event_shape), plates,
        node["value"].dtype, unwrapped.mask is None,
    )  # fmt: skip


def _check_alike(sites: _Sites, family: Family, skip_first: bool) -> None:
    """Members are of one kind and of one weight; of latents the values are the same."""
    nodes = [sites.nodes[name] for name in family.names]
    kinds = [_kind(node) for node in nodes]
    for node in nodes[1:]:
        _require(_same_scale(node["scale"], nodes[0]["scale"]))
    if family.latent:
        values = [node["value"].reshape(-1, *node["fn"].event_shape) for node in nodes]
        _require(all(torch.equal(value, values[0]) for value in values[1:]))
        _require(len({kind.plates for kind in kinds}) == 1)
        _require(all(kind.is_unmasked for kind in kinds))
    compared = kinds[1:] if skip_first else kinds
    _require(all(kind == compared[0] for kind in compared[1:]))


def _same_scale(one: Tensor | float, other: Tensor | float) -> bool:
    return one is other or torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def _named(families: Sequence[Family], taken: Collection[str]) -> list[Family]:
    """Families by the name without its number; where that is taken, by their first and last."""
    used = set(taken) - {name for family in families for name in family.names}
    named = []
    for family in families:
        names = family.names
        base = base_name(names[0]) if len(names) > 1 else names[0]
        name = base if base is not None and base not in used else f"{names[0]} ... {names[-1]}"
        used.add(name)
        named.append(replace(family, name=name))
    return named
