r"""Variances that vanish: effects without spread, and columns that factors explain altogether.

The likelihood of a model with Gaussian latents may be largest where a variance is zero: of random
effects, if groups differ less than chance would have it, or of what factors leave of a column (a
Heywood case). EM comes there by ever shorter steps. Next to zero the objective is linear in a
variance :math:`v`, so :math:`-\partial \log p / \partial \log v` is what it still has to gain, and
the way there is one leap.

Reference: Heywood (1931), *On finite sequences of real numbers*, Proceedings of the Royal Society A
134, 486-501.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.tied import TieKey
from ember.inference.families.kinds import RATE
from ember.inference.families.links import Power
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.maximisation.updates import Update, updates
from ember.inference.optimality.curvature import EStep, evaluated
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.plan.usual_variances import usual_variances

__all__ = ["nearer_zero", "off_zero", "vanished", "vanished_entries"]


SMALL = 1e-2  # of what a variance could be, below which it may be on its way to zero
ZERO = 2e-7  # of that: zero in all but name
LEAP = 1e-7  # where a leap leads
VISIBLE = 1e-6  # of that: level still, and enough for a division


@dataclass(frozen=True)
class _Variances:
    """The variances of one parameter, relative to what they could be.

    Attributes:
        name: The parameter.
        power: The power of a variance that an entry is.
        shares: The variance of each entry over that of what it is a part of, flat.
    """

    name: str
    power: float
    shares: Tensor

    @property
    def are_zero(self) -> Tensor:
        """Which are zero in all but name."""
        return self.shares <= ZERO


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
    for each in _variances(plan, current):
        name, value = each.name, current.params[each.name]
        with torch.enable_grad():
            logs = value.log().requires_grad_()
            objective = expected_log_joint(current, {**current.params, name: logs.exp()})
            (slope,) = torch.autograd.grad(objective, logs)
        gain = -slope.reshape(-1) / each.power
        going = (each.shares < SMALL) & (each.shares > ZERO) & (gain > tolerated)
        factors = torch.where(going, (LEAP / each.shares) ** each.power, 1.0)
        moved[name] = value * factors.reshape(value.shape)
    if all(torch.equal(moved[name], value) for name, value in current.params.items()):
        return None
    there = evaluated(e_step, moved)
    higher = there is not None and there.objective > current.objective + 0.5 * tolerated
    return there if higher else None


def vanished(plan: Plan, current: Statistics) -> str:
    """A sentence that names the variances that are zero in all but name; empty if none is."""
    parts = []
    for each in _variances(plan, current):
        gone = each.are_zero.nonzero().reshape(-1).tolist()
        if not gone:
            continue
        shape = current.params[each.name].shape
        whole = not shape or len(gone) == shape.numel()
        entries = "" if whole else f" (entry {', '.join(str(i) for i in gone[:4])})"
        what = "variance" if each.power == 1.0 else "variance behind"
        parts.append(f"the {what} '{each.name}'{entries}")
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
    return {each.name: each.are_zero for each in _variances(plan, current)}


def off_zero(plan: Plan, current: Statistics) -> dict[str, Tensor]:
    """The parameters, with variances that are zero in all but name just large enough to reckon by.

    So near to zero the objective is level along them; but what is divided by them keeps its digits.
    """
    moved = dict(current.params)
    for each in _variances(plan, current):
        value = current.params[each.name]
        tiny = each.are_zero & (each.shares > 0.0)
        factors = torch.where(tiny, (VISIBLE / each.shares) ** each.power, 1.0)
        moved[each.name] = value * factors.reshape(value.shape)
    return moved


def _variances(plan: Plan, current: Statistics) -> Iterator[_Variances]:
    """The parameters of Gaussian components that are powers of variances."""
    if not plan.components:
        return
    keys = {plan.ties[name] for component in plan.components for name in component.sites}
    for update in updates(plan):
        if update.kind is not RATE or not isinstance(update.link, Power):
            continue
        shares = _shares(plan, update, current, keys)
        if shares is not None:
            yield _Variances(update.name, -1.0 / update.link.k, shares)


def _shares(plan: Plan, update: Update, current: Statistics, keys: set[TieKey]) -> Tensor | None:
    """Each entry's variance over that of what it is a part of; None if that is not known."""
    value = current.params[update.name].reshape(-1)
    total = torch.full_like(value, torch.nan)
    for usage in update.usages:
        if usage.prior is not None or usage.where not in keys:
            return None
        tied, sums = current.sums[usage.where]
        spread = tied.spread(sums)
        usual = plan.once(_usual, usage.where)
        spread = spread if usual is None else torch.full_like(spread, usual)
        rows = tied.cells[:, usage.position] - usage.start
        inside = (rows >= 0) & (rows < len(value))
        total = total.index_copy(0, rows[inside], spread[inside])
    variance = update.link.forward(current.params[update.name].reshape(-1)).reciprocal()
    shares = variance / total
    return None if bool(shares.isnan().all()) else torch.where(shares.isnan(), torch.inf, shares)


def _usual(plan: Plan, key: TieKey) -> float | None:
    """The variance that a latent may have, if it is the latent whose prior has this key."""
    start = {name: parameter.start for name, parameter in plan.structure.parameters.items()}
    for component in plan.components:
        for name in component.latents:
            if plan.ties[name] == key:
                return usual_variances(plan, component, start)[name]
    return None
