r"""Finds which entries of Gaussian latents the location of each site reads, and how.

A location that is linear in the latents,

.. math:: \text{location}_n = b_n(\theta) + \sum_j c_{nj}(\theta)\, z_{e(n, j)},

is read from derivatives at :math:`z = 0` (``tangents.py``). Entries of a latent that no value reads
together are moved at once (``groups.py``), and so are latents that no site reads together. The
coefficient :math:`c` is seen at all probes, so that its own map to the parameters is found as any
argument's. Two runs at random :math:`z` confirm the whole.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.numerics.draws import Draws
from ember.inference.numerics.shapes import append_dims
from ember.inference.reading.gaussian.groups import (
    EntryGroup,
    SeveralRead,
    entries_moved,
    groups_of,
    moved_by,
    rounds_of,
)
from ember.inference.reading.gaussian.reads import NotIntegrable, Reads
from ember.inference.reading.gaussian.slices import SLICE, sliced
from ember.inference.reading.gaussian.tangents import (
    Directions,
    Params,
    Tangents,
    arguments_at,
    arguments_in,
    readers,
)
from ember.inference.reading.matching.arguments import ArgumentValues, match_argument
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.unwrapping import unwrap

__all__ = ["find_reads"]


ROUNDING = 1e-11  # of a coefficient, relative to the largest
CONFIRMED = 1e-8  # of a location, relative to its terms
COMPUTED = (
    "its coefficient is computed from parameters (a scale may stand in the latent's own prior, and "
    "a loading be a parameter as it is)"
)
SEVERAL = "one value of it reads several entries of the latent that cannot be told apart"


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
        trace: A run at the first of them, with all latents at zero.
        sites: The latent and observed sites.
        names: The parameter sites, which must not read any.

    Raises:
        NotIntegrable: If a site reads a latent otherwise; the message names both, and the remedy.
    """
    hidden = {name for c in structure.gaussian_chains for name in (c.initial, c.latent)}
    free = {n: shape for n, shape in structure.gaussian.items() if n not in hidden}
    if not free:
        return {}
    structure = dataclasses.replace(structure, gaussian=free)
    cut = sliced(structure)
    if cut is not None:
        with contextlib.suppress(ValueError, RuntimeError, LookupError):
            few = cut.trace(probes[0])
            reading = _reading(cut, probes[0], few, sites, names)
            seen = _read(cut, probes, few, reading)
            whole = {n: [_whole(each, cut, structure) for each in seen[n]] for n in seen}
            _confirm(structure, probes[0], trace, reading, whole)
            return {name: [each.reads for each in every] for name, every in whole.items()}
    reading = _reading(structure, probes[0], trace, sites, names)
    seen = _read(structure, probes, trace, reading)
    _confirm(structure, probes[0], trace, reading, seen)
    return {name: [each.reads for each in every] for name, every in seen.items()}


def _reading(
    structure: Structure, params: Params, trace: Trace, sites: Sequence[str], names: Sequence[str]
) -> dict[str, list[str]]:
    """The latents that each site reads, which only the location of a normal one may."""
    origins = {name: structure.origins[name] for name in structure.gaussian}
    by_site = readers(structure, params, [*sites, *names], origins)
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
) -> "dict[str, list[_Seen]]":
    """What each site reads of the latents."""
    event_dims = {name: _event_dim(trace, name) for name in reading}
    seen = [Tangents(structure, params, reading) for params in probes]
    groups = _groups(structure, trace, seen[0], reading, event_dims)
    moved: dict[str, list[_Seen]] = {name: [] for name in reading}
    for round_ in rounds_of(groups, reading):
        first = moved_by(seen[0], round_, reading)
        ones = {group.latent: group.direction(0) for group in round_}
        others = [_slopes(each, ones, reading) for each in seen]
        for group in round_:
            for name, latents in reading.items():
                if group.latent not in latents:
                    continue
                slopes = [each[name] for each in others]
                if all(slope is None for slope in slopes):
                    continue
                at_first, values = first[name, group.latent], [s for s in slopes if s is not None]
                if len(values) < len(probes) or at_first is None:
                    what = "it reads it at some parameters only"
                    raise NotIntegrable(_refusal(name, group.latent, what))
                rows = entries_moved(at_first, event_dims[name], len(group.entries))
                if rows is None:
                    raise NotIntegrable(_refusal(name, group.latent, SEVERAL))
                entries = group.entries[rows]
                values = _settled(values, event_dims[name])
                coefficient = match_argument(
                    ArgumentValues("real", 0, values), structure.parameters, probes
                )
                if coefficient is None:
                    what = COMPUTED
                    raise NotIntegrable(_refusal(name, group.latent, what))
                reads = Reads(group.latent, entries, coefficient)
                moved[name].append(_Seen(reads, values[0]))
    return {name: each for name, each in moved.items() if each}


@dataclass(frozen=True)
class _Seen:
    """What was read off a site, with the coefficients at the first probe."""

    reads: Reads
    slope: Tensor


def _whole(seen: _Seen, cut: Structure, structure: Structure) -> _Seen:
    """What a site reads in all rows, if every row reads as those of a slice do: its own entries.

    Raises:
        ValueError: If they do not.
    """
    latent = seen.reads.latent
    few, many = cut.gaussian[latent], structure.gaussian[latent]
    entries = seen.reads.entries
    if few != many:
        along = [i for i in range(entries.dim()) if entries.size(i) == SLICE]
        if len(along) != 1:
            raise ValueError("rows read no entries of their own")
        shape = [1] * entries.dim()
        shape[along[0]] = -1
        steps = many[1:].numel() * torch.arange(many[0]).reshape(shape)
        start = entries.narrow(along[0], 0, 1)
        if not torch.equal(entries, start + steps.narrow(along[0], 0, SLICE)):
            raise ValueError("rows read no entries of their own")
        entries = start + steps
    coefficient = seen.reads.coefficient
    varying = (seen.slope, coefficient.index, coefficient.coefficient, coefficient.offset)
    if any(size == SLICE for each in varying for size in each.shape):
        raise ValueError("coefficients vary by row")
    return _Seen(Reads(latent, entries, coefficient), seen.slope)


def _groups(
    structure: Structure,
    trace: Trace,
    tangents: Tangents,
    reading: Mapping[str, Sequence[str]],
    event_dims: Mapping[str, int],
) -> list[EntryGroup]:
    """Groups of entries of which each event of a site reads one at most."""
    events = {name: trace.nodes[name]["fn"].event_shape.numel() for name in structure.gaussian}
    _check_others(tangents, structure, reading)
    try:
        return groups_of(tangents, structure.gaussian, events, reading, event_dims)
    except SeveralRead as several:
        raise NotIntegrable(_refusal(several.site, several.latent, SEVERAL)) from None


def _check_others(
    tangents: Tangents, structure: Structure, reading: Mapping[str, Sequence[str]]
) -> None:
    """Refuses other arguments than locations that latents move."""
    if all(argument == "loc" for _, argument in tangents.arguments):
        return
    for latent, shape in structure.gaussian.items():
        for name, each in tangents.along({latent: torch.ones(shape)}).items():
            for argument, tangent in each.items():
                if argument != "loc" and bool((tangent != 0).any()):
                    raise NotIntegrable(_refusal(name, latent, f"it enters '{argument}'"))


def _slopes(
    tangents: Tangents, ones: Directions, reading: Mapping[str, Sequence[str]]
) -> dict[str, Tensor | None]:
    """The derivative of each location where it moves; refuses other arguments that do."""
    out: dict[str, Tensor | None] = {}
    for name, each in tangents.along(ones).items():
        for argument, tangent in each.items():
            if argument != "loc" and bool((tangent != 0).any()):
                latent = next(latent for latent in reading[name] if latent in ones)
                raise NotIntegrable(_refusal(name, latent, f"it enters '{argument}'"))
        moved = each.get("loc")
        seen = moved is not None and bool((moved != 0).any())
        out[name] = moved if seen else None
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


# -- confirmation -------------------------------------------------------------------------------


def _confirm(
    structure: Structure,
    params: Params,
    trace: Trace,
    reading: Mapping[str, Sequence[str]],
    moved: Mapping[str, Sequence[_Seen]],
) -> None:
    """Checks at random values of all latents that each location is what has been read off it."""
    draws = Draws(0)
    latents = {name: draws.normal(shape) for name, shape in structure.gaussian.items()}
    before, after = arguments_in(trace, reading), arguments_at(structure, params, latents, reading)
    for name in reading:
        for argument, value in after[name].items():  # the other may hold more forms of a matrix
            if argument != "loc" and not torch.equal(value, before[name][argument]):
                raise NotIntegrable(_refusal(name, reading[name][0], f"it enters '{argument}'"))
        if not _is_sum(before[name]["loc"], after[name]["loc"], latents, moved.get(name, [])):
            others = " and ".join(f"'{latent}'" for latent in reading[name])
            what = f"its location is not linear in {others}"
            raise NotIntegrable(_refusal(name, reading[name][0], what))


def _is_sum(before: Tensor, after: Tensor, latents: Params, moved: Sequence[_Seen]) -> bool:
    """Whether a location has moved by the sum of what it reads; in place, as it may be large."""
    left = after - before
    size = before.abs() + after.abs()
    for each in moved:
        values = latents[each.reads.latent].reshape(-1)[each.reads.entries]
        values = append_dims(values, each.slope.dim() - values.dim())
        left.addcmul_(each.slope, values, value=-1.0)
        size.addcmul_(each.slope.abs(), values.abs())
    return bool((left.abs_() <= size.mul_(CONFIRMED).add_(1e-300)).all())


# -- small things -------------------------------------------------------------------------------


def _event_dim(trace: Trace, name: str) -> int:
    """How many dims an event of the bare distribution has: 1 for vectors."""
    return len(unwrap(trace.nodes[name]["fn"]).base.event_shape)


def _refusal(site: str, latent: str, why: str) -> str:
    return (
        f"site '{site}' reads the latent '{latent}', which is to be integrated as a Gaussian, but "
        f"{why}; only the location of a Normal or MultivariateNormal may read it, as a weighted "
        f"sum. Integrate it on nodes with integrate={{'{latent}': 'quadrature'}}, estimate it as a "
        f"parameter with integrate={{'{latent}': None}}, or write the site so."
    )
