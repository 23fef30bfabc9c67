r"""How sites read latents with conjugate priors, found by runs at a few of their values.

A Gamma latent multiplies a rate or a precision: the argument that it enters is
:math:`v\, u_e^k`, where :math:`v` is its value at :math:`u = 1`, the exponent :math:`k` is the one
that belongs to such an argument, and :math:`e` is one entry for each event. A Beta or Dirichlet
latent is the probability itself, or one less it. In a run in which every entry has another value,
evenly spaced, what an argument says of the latent is therefore the number of the entry. A run at
random values, and at other parameters, confirms the whole.
"""

from collections.abc import Mapping, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families.conjugate_latents import ConjugateFamily, conjugate_family
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.draws import Draws
from ember.inference.numerics.shapes import append_dims, compact
from ember.inference.reading.gaussian.reads import NotIntegrable
from ember.inference.reading.gaussian.tangents import Params, arguments_at, readers
from ember.inference.reading.site import ConjugateSlot
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.unwrapping import given_arguments, unwrap

__all__ = ["find_conjugate_reads"]


CONFIRMED = 1e-9  # of an argument, relative
NUMBERED = 1e-3  # how far a number read off may be from a whole one
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

Arguments = Mapping[str, Mapping[str, Tensor]]


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
    by_site = readers(structure, probes[0], [*sites, *names], structure.origins)
    for name in names:
        of_prior = [latent for latent in by_site[name] if latent in structure.conjugate]
        if of_prior:
            raise NotIntegrable(_refusal(name, of_prior[0], "it is the prior of a parameter"))
    reading = {n: latents for n, latents in by_site.items() if {*latents} & {*structure.conjugate}}
    for name, latents in reading.items():
        if len(latents) > 1 or name in structure.conjugate:
            raise NotIntegrable(_of_two(name, latents, structure))
    families = {name: _family(trace, name) for name in structure.conjugate}
    numbered = {n: _numbered(families[n], value) for n, value in structure.conjugate.items()}
    before = arguments_at(structure, probes[0], structure.conjugate, reading)
    after = arguments_at(structure, probes[0], numbered, reading)
    found = {
        name: _slot(name, latent, families[latent], trace, (before[name], after[name]))
        for name, (latent,) in reading.items()
    }
    _confirm(structure, probes[-1], found, families)
    return found


def _family(trace: Trace, name: str) -> ConjugateFamily:
    family = conjugate_family(unwrap(trace.nodes[name]["fn"]).base)
    assert family is not None
    return family


# -- entries by their numbers -------------------------------------------------------------------


def _numbered(family: ConjugateFamily, value: Tensor) -> Tensor:
    """A value of a latent that says of each entry its number, in steps of one over their count.

    A Gamma lies between one and two, and probabilities between none and a half.
    """
    is_vector = family.is_vector
    batch = value.shape[:-1] if is_vector else value.shape
    count = batch.numel()
    steps = (torch.arange(count, dtype=value.dtype).reshape(batch) + 0.5) / count
    if family.power:
        return 1.0 + steps
    if not is_vector:
        return 0.5 * steps
    rest = (1.0 - 0.5 * steps) / (value.shape[-1] - 1)
    others = rest.unsqueeze(-1).expand(*batch, value.shape[-1] - 1)
    return torch.cat([0.5 * steps.unsqueeze(-1), others], -1)


def _slot(
    name: str,
    latent: str,
    family: ConjugateFamily,
    trace: Trace,
    arguments: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
) -> ConjugateSlot:
    """What the events of one site read, by its arguments at one and at the numbered values."""
    before, after = arguments
    base = unwrap(trace.nodes[name]["fn"]).base
    moving = [a for a, value in before.items() if not torch.equal(value, after[a])]
    able = _able(base, family)
    if len(moving) != 1 or moving[0] not in able:
        raise NotIntegrable(_refusal(name, latent, _why_not(base, family, moving)))
    argument, exponent = moving[0], able[moving[0]] * family.power
    value, swapped = after[argument], torch.zeros((), dtype=torch.bool)
    event_dim = given_arguments(base)[argument][0]
    if family.power:
        at = before[argument].abs().flatten(value.dim() - event_dim) if event_dim else None
        ratio = value / before[argument]
        if at is not None:  # all entries of an event say the same; the largest is no zero
            ratio = ratio.flatten(value.dim() - event_dim).gather(-1, at.argmax(-1, True))[..., 0]
        steps = ratio ** (1.0 / exponent) - 1.0
    elif family.is_vector:
        steps = 2.0 * value[..., 0]
    else:
        swapped = compact(value > 0.5)
        steps = 2.0 * torch.where(value > 0.5, 1.0 - value, value)
    shape = trace.nodes[latent]["value"].shape
    size = shape[-1] if family.is_vector else 1
    count = shape.numel() // size
    number = steps * count - 0.5
    whole = number.round().clamp(0, count - 1)
    if not bool(((number - whole).abs() <= NUMBERED).all()):
        raise NotIntegrable(_refusal(name, latent, _how_else(argument, family)))
    entries = compact(whole.long() * size)
    return ConjugateSlot(latent, entries, family, argument, exponent, swapped)


def _able(base: Distribution, family: ConjugateFamily) -> Mapping[str, float]:
    """The arguments that a latent of this family may enter, with the power of a rate."""
    if family.power:
        known = (EXPONENTS[kind] for kind in type(base).__mro__ if kind in EXPONENTS)
        return next(known, {})
    kinds = CATEGORIES if family.is_vector else EVENTS
    return {"probs": 0.0} if isinstance(base, kinds) else {}


# -- confirmation -------------------------------------------------------------------------------


def _confirm(
    structure: Structure,
    params: Params,
    found: Mapping[str, ConjugateSlot],
    families: Mapping[str, ConjugateFamily],
) -> None:
    """Checks at random values of all latents that each argument is what has been read off it."""
    draws = Draws(0)
    latents = {}
    for name, value in structure.conjugate.items():
        drawn = 0.1 + draws.uniform(value.shape)
        if families[name].is_vector:
            drawn = drawn / drawn.sum(-1, keepdim=True)
        elif not families[name].power:
            drawn = drawn / 1.2
        latents[name] = drawn
    before = arguments_at(structure, params, structure.conjugate, found)
    after = arguments_at(structure, params, latents, found)
    for name, slot in found.items():
        expected = _expected(before[name][slot.argument], latents[slot.latent], slot)
        wrong = (after[name][slot.argument] - expected).abs() > CONFIRMED * expected.abs() + 1e-300
        if bool(wrong.any()):
            raise NotIntegrable(_refusal(name, slot.latent, _how_else(slot.argument, slot.family)))
        for argument, value in before[name].items():
            if argument != slot.argument and not torch.equal(value, after[name][argument]):
                raise NotIntegrable(_refusal(name, slot.latent, f"it enters '{argument}' too"))


def _expected(before: Tensor, latent: Tensor, slot: ConjugateSlot) -> Tensor:
    """An argument where the latent has other values than those at which the model was read."""
    if slot.family.is_vector:
        width = latent.shape[-1]
        entries = torch.div(slot.entries, width, rounding_mode="floor")
        return latent.reshape(-1, width)[entries]
    own = latent.reshape(-1)[slot.entries]
    if not slot.exponent:
        return torch.where(slot.swapped, 1.0 - own, own)
    return before * append_dims(own**slot.exponent, before.dim() - own.dim())


# -- refusals -----------------------------------------------------------------------------------


def _why_not(base: Distribution, family: ConjugateFamily, moving: Sequence[str]) -> str:
    kind, shown = type(base).__name__, " and ".join(f"'{name}'" for name in sorted(moving))
    if not moving:
        return f"its {kind} does not change with it"
    return f"it enters {shown} of a {kind}, to which a {family.name} prior is not conjugate"


def _how_else(argument: str, family: ConjugateFamily) -> str:
    if not family.power:
        return f"'{argument}' is neither an entry of the latent nor one less it"
    return (
        f"'{argument}' is not made of one entry of the latent for each event, as a factor of the "
        f"rate or precision{'' if family.power == 1.0 else ', which it divides'}"
    )


def _of_two(site: str, latents: Sequence[str], structure: Structure) -> str:
    """Why a site that depends on two continuous latents cannot be had, or a latent on another."""
    first, *others = sorted(latents, key=lambda latent: latent not in structure.conjugate)
    what = f"site '{site}' reads the latents '{first}' and '{others[0]}'" if others else (
        f"the prior of the latent '{site}' reads the latent '{first}'"
    )  # fmt: skip
    return (
        f"{what}, and no integral over both is known in closed form; estimate one of them as a "
        f"parameter, for example with integrate={{'{first}': None}}."
    )


def _refusal(site: str, latent: str, why: str) -> str:
    return (
        f"site '{site}' reads the latent '{latent}', which is to be integrated as conjugate, but "
        f"{why}; a Gamma may multiply a precision or a rate, an inverse Gamma divide one, a Beta "
        "be the probability of an event and a Dirichlet those of categories. Estimate it as a "
        f"parameter with integrate={{'{latent}': None}}, or write the site so."
    )
