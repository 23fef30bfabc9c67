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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.numerics.shapes import append_dims
from ember.inference.parameters.argument_map import ArgumentMap
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


Unit = tuple[str, int]  # a latent, and the number of an entry of its event


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
    origins = {name: structure.origins[name] for name in structure.gaussian}
    by_site = readers(structure, probes[0], [*sites, *names], origins)
    for name in names:
        if by_site[name]:
            raise NotIntegrable(_refusal(name, by_site[name][0], "it is the prior of a parameter"))
    reading = {name: latents for name, latents in by_site.items() if latents}
    for name, latents in reading.items():
        base = unwrap(trace.nodes[name]["fn"]).base
        if type(base).__name__ not in ("Normal", "MultivariateNormal"):
            what = f"its distribution is {type(base).__name__}"
            raise NotIntegrable(_refusal(name, latents[0], what))
    events = {name: _event(trace, name) for name in structure.gaussian}
    found: dict[str, list[Reads]] = {name: [] for name in reading}
    moved: dict[str, list[tuple[Unit, Tensor, Tensor]]] = {name: [] for name in reading}
    for units in _rounds(reading, events):
        directions = [_directions(structure, units, events, power) for power in (0, 1, 2)]
        seen = [_tangents(structure, params, directions[0], reading) for params in probes]
        first, second = (
            _tangents(structure, probes[0], direction, reading) for direction in directions[1:]
        )
        for name, latents in reading.items():
            unit = next((unit for unit in units if unit[0] in latents), None)
            slopes = [each[name] for each in seen]
            if unit is None or all(slope is None for slope in slopes):
                continue
            event_dim = _event_dim(trace, name)
            values = _settled([s for s in slopes if s is not None], event_dim)
            if len(values) < len(probes):
                raise NotIntegrable(_refusal(name, unit[0], "it reads it at some parameters only"))
            rows = _entries(values[0], first[name], second[name], event_dim, structure, unit)
            if rows is None:
                what = "one value of it reads several entries of the latent"
                raise NotIntegrable(_refusal(name, unit[0], what))
            moved[name].append((unit, values[0], rows))
            coefficient = match_argument(
                ArgumentValues("real" if not event_dim else "vector", event_dim, values),
                structure.parameters, probes,
            )  # fmt: skip
            if coefficient is None:
                what = "its coefficient is computed from parameters"
                raise NotIntegrable(_refusal(name, unit[0], what))
            found[name].append(Reads(unit[0], rows * _size(events[unit[0]]) + unit[1], coefficient))
    _confirm(structure, probes[0], reading, moved, events)
    return {name: reads for name, reads in found.items() if reads}


# -- directions ---------------------------------------------------------------------------------


def _rounds(
    reading: Mapping[str, Sequence[str]], events: Mapping[str, torch.Size]
) -> list[list[Unit]]:
    """Entries of latents' events such that no site reads two of one round."""
    units = [(name, k) for name, event in events.items() for k in range(_size(event))]
    together: dict[str, set[str]] = {name: {name} for name in events}
    for latents in reading.values():
        for name in latents:
            together[name].update(latents)
    rounds: list[list[Unit]] = []
    for unit in units:
        free = (r for r in rounds if not any(other in together[unit[0]] for other, _ in r))
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
    for name, k in units:
        slope = torch.zeros(structure.gaussian[name])
        flat = slope.view(-1, _size(events[name]))
        flat[:, k] = torch.arange(1.0, len(flat) + 1.0) ** power
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

    Batch dims along which nothing changes shrink to size 1; what is the same at all parameters becomes so
    to the last digit.
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
    count = structure.gaussian[unit[0]].numel()
    fits = (number - whole).abs() <= NUMBERED * whole.abs()
    fits = fits & ((squared - slope * whole.square()).abs() <= NUMBERED * whole.square() * largest)
    fits = fits & ((numbered - slope * whole).abs() <= NUMBERED * whole * largest)
    fits = fits & (whole >= 1.0) & (whole <= count)
    if not bool((fits | ~read).all()):
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
    moved: Mapping[str, Sequence[tuple[Unit, Tensor, Tensor]]],
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
    for name in reading:
        expected = before[name]["loc"]
        size = expected.abs()
        for (latent, k), slope, rows in moved[name]:
            flat = latents[latent].reshape(-1, _size(events[latent]))[:, k]
            term = slope * append_dims(flat[rows], slope.dim() - rows.dim())
            expected, size = expected + term, size + term.abs()
        wrong = (after[name]["loc"] - expected).abs() > CONFIRMED * size + 1e-300
        for argument, value in before[name].items():
            if argument != "loc" and not torch.equal(value, after[name][argument]):
                raise NotIntegrable(_refusal(name, reading[name][0], f"it enters '{argument}'"))
        if bool(wrong.any()):
            raise NotIntegrable(
                _refusal(name, reading[name][0], "its location is not linear in it")
            )


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
