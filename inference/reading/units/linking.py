r"""Which unit each event of a site belongs to, found from derivatives of its log density.

As all latents of unit :math:`g` move by some numbers :math:`c`, the log density of an event moves
by :math:`d`. As they move by :math:`c\,g`, an event that reads unit :math:`g` alone moves by
:math:`d\,g`, and as they move by :math:`c\,g^2`, by :math:`d\,g^2`: the ratio of the first two is
the number of the unit, and the third confirms that there is no other.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.numerics.draws import Draws
from ember.inference.numerics.forward_derivative import ForwardDerivatives
from ember.inference.numerics.shapes import prepend_dims
from ember.inference.reading.opaque import model_log_prob
from ember.inference.reading.site import Site, UnitSlot
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.units.finding import read_by

__all__ = ["UnitGroup", "unit_groups", "with_unit_slots"]


Params = Mapping[str, Tensor]
NUMBERED = 1e-6  # how far a number read off may be from a whole one
SQUARES = 1e-9  # of a squared number, relative
ROUNDING = 1e-9  # of the largest movement
NEAR = 1e-3  # of the values of latents to their origin
TRIES = 2  # runs at random parameters
REMEDY = "estimate one of them as a parameter with integrate={{'{0}': None}}"


@dataclasses.dataclass(frozen=True)
class UnitGroup:
    """Latents of units that share sites, and those sites.

    Attributes:
        latents: Their names.
        children: The sites that read some.
        asked: Those of them, and of the latents, whose density the model is asked for.
        count: The number of units.
    """

    latents: tuple[str, ...]
    children: tuple[str, ...]
    asked: tuple[str, ...]
    count: int


def with_unit_slots(
    sites: Mapping[str, Site], structure: Structure, probes: Sequence[Params]
) -> dict[str, Site]:
    """The sites, those that read latents of units with the unit of each event.

    Args:
        sites: All latent and observed sites.
        structure: The model.
        probes: Random values of the parameters.

    Raises:
        ValueError: If a site reads several units at once, or a parameter's prior, a discrete latent
            or a site with other latents reads one; the message names the site.
    """
    if not structure.units:
        return dict(sites)
    start = structure.start
    at = [(start, 0.0), *((params, NEAR) for params in probes[:TRIES])]
    runs = [_Run.of(structure, *each, seed) for seed, each in enumerate(at)]
    priors = [n for n, p in structure.parameters.items() if p.has_prior]
    read = read_by(runs[0].trace, runs[0].leaves, [*sites, *priors])
    _check_readers(read, structure, sites, priors)
    _check_plates(read, structure)
    children = {n: sites[n] for n in sites if read[n]}
    moved = [run.moved(children, structure) for run in runs]
    out = dict(sites)
    for name, site in children.items():
        count = _count(structure, read[name][0])
        units = _units_of(name, read[name], [each[name] for each in moved], count)
        if bool((units < 0).any()):
            _check_unread(
                name, site, read[name], units < 0, [*runs, _Run.of(structure, start, 0.1, 9)]
            )
            units = units.clamp_min(0)
        slot = UnitSlot(tuple(read[name]), _full(units, site), name in structure.units)
        why = f"evaluated at nodes of {' and '.join(map(repr, read[name]))}"
        out[name] = dataclasses.replace(site, form=None, density=None, reason=why, unit=slot)
    for name, latent in structure.units.items():
        if name not in children:
            units = torch.arange(latent.batch.numel()).reshape(latent.batch)
            slot = UnitSlot((), _full(units, sites[name]), True)
            out[name] = dataclasses.replace(sites[name], unit=slot)
    return out


def unit_groups(sites: Mapping[str, Site], structure: Structure) -> list[UnitGroup]:
    """The latents of units in groups that no site joins."""
    linked = {n: site.unit for n, site in sites.items() if site.unit is not None}
    together = [{*slot.latents} | ({n} if slot.is_own else set()) for n, slot in linked.items()]
    groups: list[set[str]] = []
    for names in together:
        touching = [group for group in groups if group & names]
        groups = [group for group in groups if not group & names]
        groups.append(names.union(*touching))
    out = []
    for group in groups:
        latents = tuple(n for n in structure.units if n in group)
        children = tuple(n for n, s in linked.items() if not s.is_own and {*s.latents} & group)
        own = tuple(n for n in latents if sites[n].form is None)
        if not children:
            raise ValueError(
                f"the latent '{latents[0]}' is to be integrated, but no site with data reads it; "
                f"leave it out, or estimate it with integrate={{'{latents[0]}': None}}."
            )
        out.append(UnitGroup(latents, children, (*own, *children), _count(structure, latents[0])))
    return out


def _count(structure: Structure, latent: str) -> int:
    return structure.units[latent].batch.numel()


def _full(units: Tensor, site: Site) -> Tensor:
    return prepend_dims(units, len(site.layout.outer))


# -- derivatives --------------------------------------------------------------------------------


Moved = tuple[Tensor, Tensor, Tensor]
"""How the log density of each event moves along ``c``, ``c g`` and ``c g^2``."""


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run of the model with the values of latents as leaves of a graph."""

    leaves: dict[str, Tensor]
    trace: Trace

    @staticmethod
    def of(structure: Structure, params: Params, far: float, seed: int) -> "_Run":
        """A run so far from the origin: there a density may be flat, or none at all."""
        draws = Draws(seed)
        with torch.enable_grad():
            leaves = {}
            for name, latent in structure.units.items():
                free = latent.transform.inv(latent.origin.double())
                noise = draws.normal(free.shape)
                leaves[name] = latent.transform(free + far * noise).detach().requires_grad_()
            return _Run(leaves, structure.trace({**params, **leaves}))

    def moved(self, sites: Mapping[str, Site], structure: Structure) -> dict[str, Moved]:
        """How the events of some sites move."""
        with torch.enable_grad():
            rows = [model_log_prob(site, self.trace) for site in sites.values()]
        derivatives = ForwardDerivatives(rows, list(self.leaves.values()))
        draws = Draws(1)
        steps = []
        for name in self.leaves:
            latent = structure.units[name]
            each = 0.5 + draws.uniform(latent.event)
            numbers = torch.arange(1.0, latent.batch.numel() + 1.0, dtype=torch.float64)
            numbers = numbers.reshape((*latent.batch, *(1,) * len(latent.event)))
            steps.append([each * numbers**power for power in (0, 1, 2)])
        along = [
            derivatives.along(range(len(steps)), [step[power] for step in steps])
            for power in (0, 1, 2)
        ]
        return {n: (along[0][i], along[1][i], along[2][i]) for i, n in enumerate(sites)}


def _units_of(name: str, latents: Sequence[str], runs: Sequence[Moved], count: int) -> Tensor:
    """The unit of each event, by the runs in which it moves; -1 of one that moves in none."""
    units = torch.full(runs[0][0].shape, -1)
    for moved in runs:
        found, fits, moves = _read_off(moved, count)
        if not bool((~moves | (fits & ((units < 0) | (units == found)))).all()):
            listed = " and ".join(map(repr, latents))
            raise ValueError(
                f"an event of site '{name}' reads several units of {listed}, or of different "
                "units of them, and an integral over nodes is over one unit at a time (crossed "
                f"effects have none): {REMEDY.format(latents[0])}, or, if all is normal, use "
                "integrate='gaussian'."
            )
        units = torch.where(moves, found, units)
    return units


def _read_off(moved: Moved, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The unit of each event, whether it is one alone, and whether the event moves at all.

    What moves by next to nothing, as where a response is what is expected, moves by rounding.
    """
    slope, numbered, squared = (torch.where(m.isfinite(), m, 0.0) for m in moved)
    far = slope.abs() + numbered.abs() / count + squared.abs() / count**2
    moves = far > ROUNDING * far.max()
    ratio = numbered / torch.where(slope == 0, 1.0, slope)
    whole = torch.where(slope == 0, 0.0, ratio).round()
    fits = (ratio - whole).abs() <= NUMBERED * (1.0 + whole.abs() / count)
    fits &= (squared - slope * whole.square()).abs() <= (
        slope.abs() * (SQUARES * whole.square() + NUMBERED)
    )
    return whole.long() - 1, fits & (whole >= 1.0) & (whole <= count), moves


def _check_unread(
    name: str, site: Site, latents: Sequence[str], none: Tensor, runs: Sequence[_Run]
) -> None:
    """Refuses events of which no derivative has told the unit though their density changes."""
    first, last = (model_log_prob(site, runs[i].trace).detach() for i in (0, -1))
    if not torch.equal(first[none], last[none]):
        raise ValueError(
            f"which unit of {' and '.join(map(repr, latents))} some events of site '{name}' read "
            "cannot be told, for their density is zero or flat where the model was tried; centre "
            "and scale what multiplies the latents, or start them nearer with another prior."
        )


# -- refusals -----------------------------------------------------------------------------------


def _check_readers(
    read: Mapping[str, Sequence[str]],
    structure: Structure,
    sites: Mapping[str, Site],
    priors: Sequence[str],
) -> None:
    """Refuses sites that may not read latents of units."""
    for name, latents in read.items():
        if not latents:
            continue
        what = ""
        if name in structure.partly.latents:
            raise ValueError(
                f"site '{name}' reads the latent '{latents[0]}', which is to be integrated by "
                "quadrature, and its obs_mask makes a latent of entries that are missing; leave "
                f"them out instead: write NaN for them in the data, or put '{name}' under "
                "poutine.mask."
            )
        if name in priors:
            what = "it is the prior of a parameter"
        elif name in structure.latent:
            what = "it is a latent that is summed over"
        elif name in structure.gaussian or name in structure.conjugate or sites[name].reads:
            what = "it has latents that are integrated exactly"
        elif _is_summed(sites[name], structure):
            what = "it depends on a latent that is summed over"
        if what:
            raise ValueError(
                f"site '{name}' reads the latent '{latents[0]}', which is to be integrated by "
                f"quadrature, but {what}; estimate '{latents[0]}' as a parameter with "
                f"integrate={{'{latents[0]}': None}}."
            )


def _is_summed(site: Site, structure: Structure) -> bool:
    """Whether a site has dims that are no plates: those of latents that are summed over."""
    return any(symbol and symbol not in site.plates for symbol in site.layout.outer)


def _check_plates(read: Mapping[str, Sequence[str]], structure: Structure) -> None:
    """Refuses latents of different units in one site."""
    for name, latents in read.items():
        own = [name] if name in structure.units and latents else []
        together = [*latents, *own]
        for other in together[1:]:
            if structure.plates[other] != structure.plates[together[0]]:
                raise ValueError(
                    f"site '{name}' joins the latents '{together[0]}' and '{other}', which have "
                    "different plates, and an integral over nodes is over one unit at a time "
                    f"(crossed and nested effects have none): {REMEDY.format(other)}, or, if all "
                    "is normal, use integrate='gaussian'."
                )
