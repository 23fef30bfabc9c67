r"""Finds which entries of Gaussian latents the location of each site reads, and how.

A location that is linear in the latents,

.. math:: \text{location}_n = b_n(\theta) + \sum_j c_{nj}(\theta)\, z_{e(n, j)},

is read from derivatives at :math:`z = 0` (``tangents.py``). Along the direction in which every
entry of a latent has slope one it moves by :math:`c`, along that of slopes ``(1, 2, 3, ...)`` by
:math:`c` times the number of the entry it reads, and the squares of the numbers confirm that it
reads one entry alone. Latents that no site reads together are moved in one run. The coefficient
:math:`c` is seen at all probes, so that its own map to the parameters is found as any argument's.
Two runs at random :math:`z` confirm the whole.
"""

import contextlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ember.inference.numerics.shapes import append_dims
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.reading.gaussian.slices import SLICE, sliced
from ember.inference.reading.gaussian.tangents import (
    Directions,
    Params,
    locations_at,
    readers,
    tangents,
)
from ember.inference.reading.matching.arguments import ArgumentValues, match_argument
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.unwrapping import unwrap

__all__ = ["NotIntegrable", "Reads", "find_reads"]


ROUNDING = 1e-11  # of a coefficient, relative to the largest
CONFIRMED = 1e-8  # of a location, relative to its terms
MOST_APART = 64  # entries of a latent that are moved one by one
NUMBERED = 1e-6  # how far a number read off may be from a whole one


class NotIntegrable(ValueError):
    """A Gaussian latent cannot be integrated exactly; the message says why, and the remedy."""


@dataclass(frozen=True)
class Reads:
    """One entry of a latent that every event of a site reads in its location.

    Attributes:
        latent: The latent.
        entries: Flat numbers of the entries, over the site's batch.
        coefficient: What multiplies them: known, or gathered from parameters.
    """

    latent: str
    entries: Tensor
    coefficient: ArgumentMap


class Unit(NamedTuple):
    """What is moved at a time: an entry of a latent's event, in all rows of its batch or in one."""

    latent: str
    place: int
    row: int | None = None


class _ReadsSeveral(Exception):
    """A site reads several entries of a latent in one location."""

    def __init__(self, site: str, latent: str) -> None:
        super().__init__(site, latent)
        self.site, self.latent = site, latent


@dataclass(frozen=True)
class _Seen:
    """What has been seen of a site's reading: the entries, and their coefficients at one place."""

    reads: Reads
    unit: Unit
    slope: Tensor
    rows: Tensor


def find_reads(
    structure: Structure,
    probes: Sequence[Params],
    trace: Trace,
    sites: Sequence[str],
    names: Sequence[str],
) -> dict[str, list[Reads]]:
    """The entries of latents that each site reads, for the sites that read any.

    Args:
        structure: The model.
        probes: Random values of the parameters.
        trace: A run with all latents at zero.
        sites: The latent and observed sites.
        names: The parameter sites, which must not read any.

    Raises:
        NotIntegrable: If a site reads a latent otherwise; the message names both, and the remedy.
    """
    reading = _reading(structure, probes[0], trace, sites, names)
    events = {name: _event(trace, name) for name in structure.gaussian}
    cut = sliced(structure)
    if cut is not None:
        with contextlib.suppress(ValueError, RuntimeError, IndexError):
            found = _read(cut, probes, cut.trace(probes[0]), reading, events)
            whole = {
                name: [_whole(seen, cut, structure, events) for seen in each]
                for name, each in found.items()
            }
            _confirm(structure, probes[0], reading, whole, events)
            return {name: [seen.reads for seen in each] for name, each in whole.items()}
    found = _read(structure, probes, trace, reading, events)
    _confirm(structure, probes[0], reading, found, events)
    return {name: [seen.reads for seen in each] for name, each in found.items()}


def _reading(
    structure: Structure, params: Params, trace: Trace, sites: Sequence[str], names: Sequence[str]
) -> dict[str, list[str]]:
    """The latents that each site reads, which only the location of a normal one may."""
    by_site = readers(structure, params, [*sites, *names])
    for name in names:
        if by_site[name]:
            raise NotIntegrable(_refusal(name, by_site[name][0], "it is the prior of a parameter"))
    reading = {name: latents for name, latents in by_site.items() if latents}
    for name, latents in reading.items():
        base = unwrap(trace.nodes[name]["fn"]).base
        if type(base).__name__ not in ("Normal", "MultivariateNormal"):
            what = f"its distribution is {type(base).__name__}"
            raise NotIntegrable(_refusal(name, latents[0], what))
    return reading


def _read(
    structure: Structure,
    probes: Sequence[Params],
    trace: Trace,
    reading: Mapping[str, Sequence[str]],
    events: Mapping[str, torch.Size],
) -> dict[str, list[_Seen]]:
    """What each site reads; latents of which one location reads several entries entry by entry."""
    apart = set[str]()
    while True:
        try:
            found: dict[str, list[_Seen]] = {}
            for units in _rounds(structure, reading, events, apart):
                for name, seen in _read_round(
                    structure, probes, trace, reading, events, units
                ).items():
                    found.setdefault(name, []).append(seen)
            return found
        except _ReadsSeveral as several:
            few = structure.gaussian[several.latent].numel() <= MOST_APART
            if several.latent in apart or not few:
                what = "one value of it reads several entries of the latent"
                raise NotIntegrable(_refusal(several.site, several.latent, what)) from several
            apart.add(several.latent)


def _read_round(
    structure: Structure,
    probes: Sequence[Params],
    trace: Trace,
    reading: Mapping[str, Sequence[str]],
    events: Mapping[str, torch.Size],
    units: Sequence[Unit],
) -> dict[str, _Seen]:
    """What each site reads of some units, of which it reads one at most."""
    slopes = [
        _tangents(structure, at, _directions(structure, units, events, 0), reading) for at in probes
    ]
    numbered = any(unit.row is None for unit in units)
    first, second = (
        _tangents(structure, probes[0], _directions(structure, units, events, power), reading)
        if numbered
        else slopes[0]
        for power in (1, 2)
    )
    found = {}
    for name, latents in reading.items():
        unit = next((unit for unit in units if unit.latent in latents), None)
        values = [slope for each in slopes if (slope := each[name]) is not None]
        if unit is None:
            continue
        if not values:
            if first[name] is not None or second[name] is not None:  # a difference of entries
                raise _ReadsSeveral(name, unit.latent)
            continue
        if len(values) < len(probes):
            what = "it reads it at some parameters only"
            raise NotIntegrable(_refusal(name, unit.latent, what))
        event_dim = _event_dim(trace, name)
        values = _settled(values, event_dim)
        if unit.row is None:
            rows = _entries(values[0], first[name], second[name], event_dim, structure, unit)
            if rows is None:
                raise _ReadsSeveral(name, unit.latent)
        else:
            rows = torch.full((1,) * (values[0].dim() - event_dim), unit.row)
        domain = "vector" if event_dim else "real"
        coefficient = match_argument(
            ArgumentValues(domain, event_dim, values), structure.parameters, probes
        )
        if coefficient is None:
            what = "its coefficient is computed from parameters"
            raise NotIntegrable(_refusal(name, unit.latent, what))
        reads = Reads(unit.latent, rows * _size(events[unit.latent]) + unit.place, coefficient)
        found[name] = _Seen(reads, unit, values[0], rows)
    return found


def _whole(
    seen: _Seen, cut: Structure, structure: Structure, events: Mapping[str, torch.Size]
) -> _Seen:
    """What a site reads in all rows, if every row reads as those of a slice do: its own entries.

    Raises:
        ValueError: If they do not.
    """
    latent = seen.reads.latent
    few, many = cut.gaussian[latent], structure.gaussian[latent]
    rows = seen.rows
    if few != many:
        size = few[0]  # the rows that are cut come first
        along = [i for i in range(rows.dim()) if rows.size(i) == size]
        if len(along) != 1:
            raise ValueError("rows read no entries of their own")
        stride = few[1 : len(few) - len(events[latent])].numel()
        shape = [1] * rows.dim()
        shape[along[0]] = -1
        steps = stride * torch.arange(many[0]).reshape(shape)
        start = rows.narrow(along[0], 0, 1)
        if not torch.equal(rows, start + steps.narrow(along[0], 0, size)):
            raise ValueError("rows read no entries of their own")
        rows = start + steps
    coefficient = seen.reads.coefficient
    varying = (seen.slope, coefficient.index, coefficient.coefficient, coefficient.offset)
    if any(size == SLICE for each in varying for size in each.shape):
        raise ValueError("coefficients vary by row")
    entries = rows * _size(events[latent]) + seen.unit.place
    return _Seen(Reads(latent, entries, coefficient), seen.unit, seen.slope, rows)


# -- directions ---------------------------------------------------------------------------------


def _rounds(
    structure: Structure,
    reading: Mapping[str, Sequence[str]],
    events: Mapping[str, torch.Size],
    apart: Container[str],
) -> list[list[Unit]]:
    """Units in rounds such that no site reads two of one round."""
    units = [
        Unit(name, place, row)
        for name, event in events.items()
        for place in range(_size(event))
        for row in (
            range(structure.gaussian[name].numel() // _size(event)) if name in apart else [None]
        )
    ]
    together: dict[str, set[str]] = {name: {name} for name in events}
    for latents in reading.values():
        for name in latents:
            together[name].update(latents)
    rounds: list[list[Unit]] = []
    for unit in units:
        free = (r for r in rounds if not any(o.latent in together[unit.latent] for o in r))
        place = next(free, None)
        if place is None:
            rounds.append([unit])
        else:
            place.append(unit)
    return rounds


def _directions(
    structure: Structure, units: Sequence[Unit], events: Mapping[str, torch.Size], power: int
) -> Directions:
    """A slope for every batch entry of latents: its number, counted from one, to a power."""
    out = {}
    for name, place, row in units:
        slope = torch.zeros(structure.gaussian[name])
        flat = slope.view(-1, _size(events[name]))
        if row is None:
            flat[:, place] = torch.arange(1.0, len(flat) + 1.0) ** power
        else:
            flat[row, place] = 1.0
        out[name] = slope
    return out


def _tangents(
    structure: Structure,
    params: Params,
    directions: Directions,
    reading: Mapping[str, Sequence[str]],
) -> dict[str, Tensor | None]:
    """The derivative of each location; refuses other arguments that move."""
    out: dict[str, Tensor | None] = {}
    for name, each in tangents(structure, params, directions, reading).items():
        for argument, tangent in each.items():
            if argument != "loc" and bool((tangent != 0).any()):
                latent = next(latent for latent in reading[name] if latent in directions)
                raise NotIntegrable(_refusal(name, latent, f"it enters '{argument}'"))
        tangent = each.get("loc")
        seen = tangent is not None and bool((tangent != 0).any())
        out[name] = tangent if seen else None
    return out


def _settled(values: Sequence[Tensor], event_dim: int) -> list[Tensor]:
    """Coefficients seen at several parameters, differences of rounding taken out.

    Batch dims along which nothing changes shrink to size 1; what is the same at all parameters
    becomes so to the last digit.
    """
    stacked = torch.stack(list(values))
    size = stacked.abs().max()
    for dim in range(1, stacked.dim() - event_dim):
        first = stacked.narrow(dim, 0, 1)
        if bool(((stacked - first).abs() <= ROUNDING * size).all()):
            stacked = first
    same = ((stacked - stacked[:1]).abs() <= ROUNDING * stacked.abs().amax(0, keepdim=True)).all(0)
    stacked = torch.where(same, stacked[:1], stacked)
    return list(stacked)


def _entries(
    slope: Tensor,
    numbered: Tensor | None,
    squared: Tensor | None,
    event_dim: int,
    structure: Structure,
    unit: Unit,
) -> Tensor | None:
    """The number of the batch entry of a latent that each event reads; None if it reads several."""
    assert numbered is not None
    assert squared is not None
    shape = numbered.shape
    slope = slope.expand(shape) if slope.dim() == len(shape) else slope.broadcast_to(shape)
    largest = slope.abs().amax(-1, keepdim=True) if event_dim else slope.abs()
    read = largest > 0
    if event_dim:
        at = slope.abs().argmax(-1, keepdim=True)
        number = numbered.gather(-1, at) / slope.gather(-1, at)
    else:
        number = numbered / slope
    whole = torch.where(read, number, 1.0).round()
    count = structure.gaussian[unit.latent].numel()
    fits = (number - whole).abs() <= NUMBERED * whole.abs()
    fits = fits & ((squared - slope * whole.square()).abs() <= NUMBERED * whole.square() * largest)
    fits = fits & ((numbered - slope * whole).abs() <= NUMBERED * whole * largest)
    fits = fits & (whole >= 1.0) & (whole <= count)
    fits = torch.where(read, fits, (numbered == 0) & (squared == 0))
    if not bool(fits.all()):
        return None
    index = (whole - 1.0).long()
    index = index[..., 0] if event_dim else index
    for dim in range(index.dim()):
        first = index.narrow(dim, 0, 1)
        if bool((index == first).all()):
            index = first
    return index


# -- confirmation -------------------------------------------------------------------------------


def _confirm(
    structure: Structure,
    params: Params,
    reading: Mapping[str, Sequence[str]],
    found: Mapping[str, Sequence[_Seen]],
    events: Mapping[str, torch.Size],
) -> None:
    """Checks at random values of all latents that each location is what has been read off it."""
    generator = torch.Generator().manual_seed(0)
    latents = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in structure.gaussian.items()
    }
    zeros = {name: torch.zeros_like(value) for name, value in latents.items()}
    before = locations_at(structure, params, zeros, reading)
    after = locations_at(structure, params, latents, reading)
    for name, (latent, *_) in reading.items():
        expected = before[name]["loc"]
        size = expected.abs()
        for seen in found.get(name, []):
            flat = latents[seen.unit.latent].reshape(-1, _size(events[seen.unit.latent]))
            read = flat[:, seen.unit.place][seen.rows]
            term = seen.slope * append_dims(read, seen.slope.dim() - seen.rows.dim())
            expected, size = expected + term, size + term.abs()
        wrong = (after[name]["loc"] - expected).abs() > CONFIRMED * size + 1e-300
        for argument, value in before[name].items():
            if argument != "loc" and not torch.equal(value, after[name][argument]):
                raise NotIntegrable(_refusal(name, latent, f"it enters '{argument}'"))
        if bool(wrong.any()):
            raise NotIntegrable(_refusal(name, latent, "its location is not linear in it"))


# -- small things -------------------------------------------------------------------------------


def _event(trace: Trace, name: str) -> torch.Size:
    return trace.nodes[name]["fn"].event_shape


def _event_dim(trace: Trace, name: str) -> int:
    """How many dims an event of the bare distribution has: 1 for vectors."""
    return len(unwrap(trace.nodes[name]["fn"]).base.event_shape)


def _size(event: torch.Size) -> int:
    return event.numel()


def _refusal(site: str, latent: str, why: str) -> str:
    return (
        f"site '{site}' reads the latent '{latent}', which is to be integrated as a Gaussian, but "
        f"{why}; only the location of a Normal or MultivariateNormal may read it, as a weighted "
        f"sum. Estimate it as a parameter with integrate={{'{latent}': None}}, or write the site "
        "so."
    )
