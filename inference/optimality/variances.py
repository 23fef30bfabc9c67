"""The variances behind parameters, relative to what they could be: the share that is left of each.

They are those of Gaussian latents, and of the noise of what reads them.
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
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics
from ember.inference.plan.usual_variances import usual_variances

__all__ = ["ZERO", "Variances", "is_moved", "usual_variance", "variances_of"]


ZERO = 2e-7  # of what a variance could be: zero in all but name


@dataclass(frozen=True)
class Variances:
    """The variances of one parameter, relative to what they could be.

    Attributes:
        name: The parameter.
        power: The power of a variance that an entry is.
        shares: The variance of each entry over that of what it is a part of, flat.
        innovates: Whether it is of latents about others, as the steps of a random walk.
    """

    name: str
    power: float
    shares: Tensor
    innovates: bool

    @property
    def are_zero(self) -> Tensor:
        """Which are zero in all but name."""
        return self.shares <= ZERO

    def gains(self, current: Statistics) -> Tensor:
        """What the objective has to gain where each entry is zero, flat."""
        with torch.enable_grad():
            logs = current.params[self.name].log().requires_grad_()
            params = {**current.params, self.name: logs.exp()}
            (slope,) = torch.autograd.grad(expected_log_joint(current, params), logs)
        return -slope.reshape(-1) / self.power


def variances_of(plan: Plan, current: Statistics) -> Iterator[Variances]:
    """The parameters of Gaussian components that are powers of variances."""
    if not plan.components:
        return
    keys = {plan.ties[name] for component in plan.components for name in component.sites}
    latents = {name for component in plan.components for name in component.latents}
    moving = {plan.ties[name] for name in latents if is_moved(plan, name)}
    for update in updates(plan):
        if update.kind is not RATE or not isinstance(update.link, Power):
            continue
        shares = _shares(plan, update, current, keys)
        if shares is not None:
            innovates = any(usage.where in moving for usage in update.usages)
            yield Variances(update.name, -1.0 / update.link.k, shares, innovates)


def is_moved(plan: Plan, latent: str) -> bool:
    """Whether the prior of a latent reads others, or earlier entries of its own."""
    site = plan.sites[latent]
    return len(site.slots) > site.draw_shape.numel()


def _shares(plan: Plan, update: Update, current: Statistics, keys: set[TieKey]) -> Tensor | None:
    """Each entry's variance over that of what it is a part of; None if that is not known."""
    value = current.params[update.name].reshape(-1)
    total = torch.full_like(value, torch.nan)
    for usage in update.usages:
        if usage.prior is not None or usage.where not in keys:
            return None
        tied, sums = current.sums[usage.where]
        spread = tied.spread(sums)
        usual = plan.once(usual_variance, usage.where)
        spread = spread if usual is None else torch.full_like(spread, usual)
        rows = tied.cells[:, usage.position] - usage.start
        inside = (rows >= 0) & (rows < len(value))
        total = total.index_copy(0, rows[inside], spread[inside])
    variance = update.link.forward(current.params[update.name].reshape(-1)).reciprocal()
    shares = variance / total
    return None if bool(shares.isnan().all()) else torch.where(shares.isnan(), torch.inf, shares)


def usual_variance(plan: Plan, key: TieKey) -> float | None:
    """The variance that a latent may have, if it is the latent whose prior has this key."""
    start = plan.structure.start
    for component in plan.components:
        for name in component.latents:
            if plan.ties[name] == key:
                return usual_variances(plan, component, start)[name]
    return None
