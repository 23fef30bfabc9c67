r"""Variances that vanish: effects without spread, and columns that factors explain altogether.

The likelihood of a model with Gaussian latents may be largest where a variance is zero: of random
effects, if groups differ less than chance would have it, or of what factors leave of a column (a
Heywood case). EM comes there by ever shorter steps. Next to zero the objective is linear in a
variance :math:`v`, so :math:`-\partial \log p / \partial \log v` is what it still has to gain, and
the way there is one leap.

Reference: Heywood (1931), *On finite sequences of real numbers*, Proceedings of the Royal Society A
134, 486-501.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ember.inference.families.kinds import RATE
from ember.inference.families.links import Power
from ember.inference.maximisation.updates import updates
from ember.inference.optimality.nearby import EStep, evaluated, rounding
from ember.inference.optimality.variances import (
    ZERO,
    Variances,
    is_moved,
    usual_variance,
    variances_of,
)
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.statistics import Statistics

__all__ = [
    "blurred",
    "lost_digits",
    "nearer_zero",
    "off_the_floor",
    "off_zero",
    "vanished",
    "vanished_effects",
    "vanished_entries",
]


SMALL = 1e-2  # of what a variance could be, below which it may be on its way to zero
LEAP = 1e-7  # where a leap leads
FLOOR = 1e-8  # of that: no scheme goes further
VISIBLE = 1e-6  # of that: level still, and enough for a division
NEXT = 0.1  # of what does not count, what a leap of innovations leaves
LARGER = 10.0  # a variance that is looked at beside one next to zero
LOST = 1e-3  # of what does not count: as much may be rounding while steps go on
JITTER = 1e-11  # of parameters, relative: far less than what the objective feels
FADED = 1e-3  # of what it could be: innovations of so small a variance may take digits away


def nearer_zero(
    plan: Plan, e_step: EStep, current: Statistics, tolerated: float
) -> Statistics | None:
    """A place where variances on their way to zero are there, if it is higher.

    Args:
        plan: The plan.
        e_step: One pass over the data.
        current: The place to start from.
        tolerated: What of the objective does not count.
    """
    moved = dict(current.params)
    for each in variances_of(plan, current):
        name, value = each.name, current.params[each.name]
        gain = each.gains(current)
        # Innovations come to where they have next to nothing to gain: nearer, digits are lost.
        there = (
            torch.full_like(gain, LEAP)
            if not each.innovates
            else each.shares * (NEXT * tolerated / gain)
        )
        going = (each.shares < SMALL) & (gain > tolerated)
        if not each.innovates:
            going = going & (each.shares > ZERO)
        factors = torch.where(going, (there / each.shares) ** each.power, 1.0)
        moved[name] = value * factors.reshape(value.shape)
    if all(torch.equal(moved[name], value) for name, value in current.params.items()):
        return None
    nearer = evaluated(e_step, moved)
    if nearer is None or not nearer.objective > current.objective + 0.5 * tolerated:
        return None
    return nearer


def blurred(
    plan: Plan, e_step: EStep, before: Statistics, after: Statistics, tolerated: float
) -> str:
    """A sentence where innovations so small take more digits from the objective than may be lost.

    The precision of a random walk with a variance next to zero is that of its steps, beside which
    what the data say of its level is rounding. Empty where the objective is what it seems.

    Args:
        plan: The plan.
        e_step: One pass over the data.
        before: The place before it, which is what it seems.
        after: The place.
        tolerated: What of the objective does not count.
    """
    faded = {each.name: (each.shares < FADED).nonzero().reshape(-1).tolist()
             for each in variances_of(plan, after) if each.innovates}  # fmt: skip
    lost = LOST * tolerated
    falls = not after.objective >= before.objective - lost
    if not any(faded.values()) or not (falls or _unsteady(e_step, after) > lost):
        return ""
    powers = {each.name: each.power for each in variances_of(plan, before)}
    parts = [_part(n, own, before, powers[n]) for n, own in faded.items() if own]
    return (
        f"the objective rises as {' and '.join(parts)} {_verb(parts)} to zero, and is lost in "
        "rounding before; these are the last parameters at which it is known. Leave the term out, "
        "or give the variance a prior (objective='map')."
    )


def off_the_floor(plan: Plan, params: Params) -> Params:
    """Parameters with no variance of effects smaller than one that is zero in all but name.

    They are the same object where none is.
    Nearer to zero nothing is left to gain, and the precision of the effects drowns what the data
    say. So a scheme's guess need not lead there. Innovations have a rule of their own
    (``blurred``).
    """
    floors = plan.once(_floors)
    lifted = {name: larger(params[name], end) for name, (larger, end) in floors.items()}
    if all(torch.equal(value, params[name]) for name, value in lifted.items()):
        return params
    return {**params, **lifted}


def lost_digits(plan: Plan, e_step: EStep, current: Statistics, tolerated: float) -> str:
    """A sentence where rounding decides on the objective of latents about others; else empty.

    Where moves are far from stable, or all but certain, their precisions drown what data say.
    """
    if not any(is_moved(plan, name) for c in plan.components for name in c.latents):
        return ""
    error = _unsteady(e_step, current)
    if error <= tolerated:
        return ""
    return (
        f"the objective is known to {error:.0e} only at these parameters, where the latents' moves "
        "are far from stable, or all but certain; give what moves them a prior that keeps it away "
        "from there (objective='map'), or start elsewhere with init={...}."
    )


def _unsteady(e_step: EStep, statistics: Statistics) -> float:
    """By how much the objective is other than it seems.

    Numbers rounded alike would say the same again, so more than the last digits are moved.
    """
    return rounding(e_step, statistics, 1, JITTER)


def vanished(plan: Plan, e_step: EStep, current: Statistics, tolerated: float) -> str:
    """A sentence that names the variances that are zero in all but name; empty if none is.

    Args:
        plan: The plan.
        e_step: One pass over the data.
        current: The place.
        tolerated: What of the objective does not count.
    """
    parts = []
    for each in variances_of(plan, current):
        if each.innovates:
            gone = _given_up(each, e_step, current, tolerated)
        else:
            gone = each.are_zero.nonzero().reshape(-1).tolist()
        if gone:
            parts.append(_part(each.name, gone, current, each.power))
    if not parts:
        return ""
    are = "is" if len(parts) == 1 else "are"
    return (
        f"{' and '.join(parts)} {are} zero at the maximum: the data show no such spread; it is an "
        "estimate at the boundary, without a standard error. Leave the term out, or give the "
        "variance a prior (objective='map')."
    )


def vanished_entries(plan: Plan, current: Statistics) -> dict[str, Tensor]:
    """For each parameter behind variances, which of its entries (flat) are zero in all but name."""
    return {each.name: each.are_zero for each in variances_of(plan, current)}


def vanished_effects(plan: Plan, current: Statistics) -> dict[str, Tensor]:
    """The same for the parameters behind variances of latents alone."""
    floors = plan.once(_floors)
    return {name: own for name, own in vanished_entries(plan, current).items() if name in floors}


def off_zero(plan: Plan, current: Statistics) -> dict[str, Tensor]:
    """The parameters, with variances that are zero in all but name just large enough to reckon by.

    So near to zero the objective is level along them; but what is divided by them keeps its digits.
    """
    moved = dict(current.params)
    for each in variances_of(plan, current):
        value = current.params[each.name]
        tiny = each.are_zero & (each.shares > 0.0)
        factors = torch.where(tiny, (VISIBLE / each.shares) ** each.power, 1.0)
        moved[each.name] = value * factors.reshape(value.shape)
    return moved


def _given_up(each: Variances, e_step: EStep, current: Statistics, tolerated: float) -> list[int]:
    """Which innovations are zero in all but name, however small they may be in truth.

    Next to zero a variance ten times as large loses nine times what is still to gain; at a
    maximum it would lose far more.
    """
    gain = each.gains(current)
    faded = (each.shares < FADED) & (gain.abs() <= tolerated)
    gone = []
    for i in faded.nonzero().reshape(-1).tolist():
        value = current.params[each.name].clone()
        value.view(-1)[i] *= LARGER**each.power
        there = evaluated(e_step, {**current.params, each.name: value})
        loss = 2.0 * LARGER * max(float(gain[i]), tolerated)
        if there is not None and there.objective >= current.objective - loss:
            gone.append(i)
    return gone


def _part(name: str, entries: list[int], current: Statistics, power: float) -> str:
    """Some variances of a parameter, in words."""
    shape = current.params[name].shape
    whole = not shape or len(entries) == shape.numel()
    listed = "" if whole else f" (entry {', '.join(str(i) for i in entries[:4])})"
    what = "variance" if power == 1.0 else "variance behind"
    return f"the {what} '{name}'{listed}"


def _verb(parts: list[str]) -> str:
    return "goes" if len(parts) == 1 else "go"


def _floors(plan: Plan) -> dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]]:
    """For each parameter behind variances of latents the least of them, and what keeps above it."""
    latents = {name for component in plan.components for name in component.latents}
    keys = {plan.ties[name] for name in latents if not is_moved(plan, name)}
    floors: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {}
    for update in updates(plan) if keys else ():
        if update.kind is not RATE or not isinstance(update.link, Power):
            continue
        usual = [
            plan.once(usual_variance, usage.where) for usage in update.usages if usage.where in keys
        ]
        known = [variance for variance in usual if variance is not None]
        if known and len(known) == len(update.usages):
            rate = plan.structure.parameters[update.name].start.new_tensor(1.0 / FLOOR / min(known))
            larger = torch.maximum if update.link.k < 0.0 else torch.minimum
            floors[update.name] = larger, update.link.inverse(rate)
    return floors
