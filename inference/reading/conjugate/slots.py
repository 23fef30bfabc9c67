r"""How sites read latents with conjugate priors, found by forward-mode runs.

A Gamma latent multiplies a rate or a precision: the argument that it enters is
:math:`v\, u_e^k`, with the exponent :math:`k` that makes a rate of the argument and one entry
:math:`e` for each event. At :math:`u = 1` the derivative along a direction :math:`d` is
:math:`k\, v\, d_e`. With :math:`d = 1` its ratio to :math:`v` shows the exponent, with entries
numbered the entry, and the squares of the numbers confirm that it is one alone. A Beta or Dirichlet
latent is the probability itself, or one less it. A run at random values confirms the whole.
"""

import functools
from collections.abc import Mapping, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families.conjugate_latents import ConjugateFamily, conjugate_family
from ember.inference.numerics.shapes import append_dims
from ember.inference.reading.gaussian.slots import NotIntegrable
from ember.inference.reading.gaussian.tangents import (
    Directions,
    Params,
    locations_at,
    readers,
    tangents,
)
from ember.inference.reading.site import ConjugateSlot
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.unwrapping import given_arguments, unwrap

__all__ = ["find_conjugate_reads"]


CONFIRMED = 1e-9  # of an argument, relative
NUMBERED = 1e-6  # how far a number read off may be from a whole one
EXPONENTS = {  # the power of a rate, or of a precision, that an argument is
    dist.Normal: {"scale": -0.5},
    dist.LogNormal: {"scale": -0.5},
    dist.MultivariateNormal: {
        "scale_tril": -0.5, "covariance_matrix": -1.0, "precision_matrix": 1.0
    },
    dist.Poisson: {"rate": 1.0},
    dist.Exponential: {"rate": 1.0},
    dist.Gamma: {"rate": 1.0},
}  # fmt: skip
EVENTS = (dist.Bernoulli, dist.Binomial)
CATEGORIES = (dist.Categorical, dist.OneHotCategorical, dist.Multinomial)


def find_conjugate_reads(
    structure: Structure,
    probes: Sequence[Params],
    trace: Trace,
    sites: Sequence[str],
    names: Sequence[str],
) -> dict[str, ConjugateSlot]:
    """The entry of a latent that each event of a site reads, for the sites that read one.

    Args:
        structure: The model.
        probes: Random values of the parameters.
        trace: A run with all latents where they change nothing.
        sites: The latent and observed sites.
        names: The parameter sites, which must not read any.

    Raises:
        NotIntegrable: If a site reads a latent otherwise; the message names both, and the remedy.
    """
    by_site = readers(structure, probes[0], [*sites, *names], structure.conjugate)
    for name in names:
        if by_site[name]:
            raise NotIntegrable(_refusal(name, by_site[name][0], "it is the prior of a parameter"))
    reading = {name: latents for name, latents in by_site.items() if latents}
    families = {name: _family(trace, name) for name in structure.conjugate}
    for name, latents in reading.items():
        if len(latents) > 1:
            what = f"it reads '{latents[1]}' as well"
            raise NotIntegrable(_refusal(name, latents[0], what))
    seen = [
        tangents(structure, probes[0], _directions(structure, families, power), reading)
        for power in (0, 1, 2)
    ]
    found = {
        name: _slot(name, latent, families[latent], trace, probes[0], structure, seen)
        for name, (latent,) in reading.items()
    }
    _confirm(structure, probes[-1], found, families)
    return found


def _family(trace: Trace, name: str) -> ConjugateFamily:
    family = conjugate_family(unwrap(trace.nodes[name]["fn"]).base)
    assert family is not None
    return family


def _directions(
    structure: Structure, families: Mapping[str, ConjugateFamily], power: int
) -> Directions:
    """A slope for every entry of latents: its number, counted from one, to a power.

    Probabilities of categories move from the last one to the first.
    """
    out = {}
    for name, value in structure.conjugate.items():
        batch = value.shape[:-1] if families[name].name == "Dirichlet" else value.shape
        slope = torch.arange(1.0, batch.numel() + 1.0, dtype=torch.float64).reshape(batch) ** power
        if families[name].name == "Dirichlet":
            ends = torch.zeros(value.shape[-1], dtype=torch.float64)
            ends[0], ends[-1] = 1.0, -1.0
            slope = slope.unsqueeze(-1) * ends
        out[name] = slope
    return out


def _slot(
    name: str,
    latent: str,
    family: ConjugateFamily,
    trace: Trace,
    params: Params,
    structure: Structure,
    seen: Sequence[Mapping[str, Mapping[str, Tensor]]],
) -> ConjugateSlot:
    """What the events of one site read."""
    refuse = functools.partial(_refusal, name, latent)
    base = unwrap(trace.nodes[name]["fn"]).base
    moving = {argument for each in seen for argument, t in each[name].items() if bool((t != 0).any())}
    argument = _argument(type(base), family, moving)
    if argument is None:
        raise NotIntegrable(refuse(_why_not(base, family, moving)))
    value = locations_at(structure, params, structure.conjugate, [name])[name][argument]
    event_dim = given_arguments(base)[argument][0]
    plain, numbered, squared = (each[name][argument].flatten(value.dim() - event_dim) if event_dim
                                else each[name][argument].unsqueeze(-1) for each in seen)  # fmt: skip
    at = plain.abs().argmax(-1, keepdim=True)
    slope = plain.gather(-1, at).squeeze(-1)
    if not bool((slope != 0).all()):
        raise NotIntegrable(refuse("some of its values do not read it"))
    number = numbered.gather(-1, at).squeeze(-1) / slope
    whole = number.round()
    fits = (number - whole).abs() <= NUMBERED
    square = squared.gather(-1, at).squeeze(-1) / slope
    fits &= (square - whole.square()).abs() <= NUMBERED * whole.square()
    fits &= (whole >= 1.0) & (whole <= structure.conjugate[latent].numel())
    if not bool(fits.all()):
        raise NotIntegrable(refuse("one value of it reads several entries of the latent"))
    exponent, swapped = 0.0, torch.zeros((), dtype=torch.bool)
    if family.power:
        exponent = EXPONENTS[type(base)][argument] * family.power
    elif family.name == "Beta":
        swapped = _compact(slope < 0)
    event = trace.nodes[latent]["fn"].event_shape if family.name == "Dirichlet" else torch.Size()
    entries = _compact((whole - 1.0).long() * event.numel())
    return ConjugateSlot(latent, entries, family, argument, exponent, swapped)


def _argument(
    kind: type, family: ConjugateFamily, moving: set[str]
) -> str | None:
    """The argument that a latent of this family may enter, if it is the one that moves."""
    if family.power:
        able = EXPONENTS.get(kind, {}).keys()
    else:
        able = {"probs"} if kind in (CATEGORIES if family.name == "Dirichlet" else EVENTS) else {}
    return next(iter(moving)) if len(moving) == 1 and moving <= set(able) else None


def _why_not(base: object, family: ConjugateFamily, moving: set[str]) -> str:
    kind, shown = type(base).__name__, " and ".join(f"'{name}'" for name in sorted(moving))
    return (
        f"it enters {shown} of a {kind}, to which a {family.name} prior is not conjugate"
        if moving
        else f"its {kind} does not change with it"
    )


def _compact(index: Tensor) -> Tensor:
    """An index with dims of size 1 where it does not vary."""
    for dim in range(index.dim()):
        first = index.narrow(dim, 0, 1)
        if bool((index == first).all()):
            index = first
    return index


def _confirm(
    structure: Structure,
    params: Params,
    found: Mapping[str, ConjugateSlot],
    families: Mapping[str, ConjugateFamily],
) -> None:
    """Checks at random values of all latents that each argument is what has been read off it."""
    generator = torch.Generator().manual_seed(0)
    latents = {}
    for name, value in structure.conjugate.items():
        drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.1
        if families[name].name == "Dirichlet":
            drawn = drawn / drawn.sum(-1, keepdim=True)
        elif families[name].name == "Beta":
            drawn = drawn / 1.2
        latents[name] = drawn
    before = locations_at(structure, params, structure.conjugate, found)
    after = locations_at(structure, params, latents, found)
    for name, slot in found.items():
        expected = _expected(before[name][slot.argument], latents[slot.latent], slot)
        seen = after[name][slot.argument]
        wrong = (seen - expected).abs() > CONFIRMED * expected.abs() + 1e-300
        if bool(wrong.any()):
            what = f"'{slot.argument}' is not proportional to "
            if slot.exponent:
                what += "it, or to its power that makes it a factor of the rate or precision"
            else:
                what = f"'{slot.argument}' is neither the latent nor one less it"
            raise NotIntegrable(_refusal(name, slot.latent, what))
        for argument, value in before[name].items():
            if argument != slot.argument and not torch.equal(value, after[name][argument]):
                raise NotIntegrable(_refusal(name, slot.latent, f"it enters '{argument}' too"))


def _expected(before: Tensor, latent: Tensor, slot: ConjugateSlot) -> Tensor:
    """An argument where the latent has other values than those at which the model was read."""
    if slot.family.name == "Dirichlet":
        return latent.reshape(-1, latent.shape[-1])[slot.entries // latent.shape[-1]]
    own = latent.reshape(-1)[slot.entries]
    if slot.exponent == 0.0:
        return torch.where(slot.swapped, 1.0 - own, own)
    return before * append_dims(own**slot.exponent, before.dim() - own.dim())


def _refusal(site: str, latent: str, why: str) -> str:
    return (
        f"site '{site}' reads the latent '{latent}', which is to be integrated as conjugate, but "
        f"{why}; a Gamma may multiply a precision or a rate, a Beta be the probability of an event "
        f"and a Dirichlet those of categories. Estimate it as a parameter with "
        f"integrate={{'{latent}': None}}, or write the site so."
    )
