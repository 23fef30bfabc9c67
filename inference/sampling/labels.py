"""Draws with the states of latents numbered as at a reference.

States are exchangeable names, and a chain may exchange them; means of draws that call the same
state by different numbers are of no use. Each draw is renumbered so that its parameters are nearest
to those of the reference, measured in their spread over the draws.

Reference: Stephens (2000), *Dealing with label switching in mixture models*, JRSS B 62, 795-809.
"""

from collections.abc import Mapping

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from ember.inference.plan.plan import Plan
from ember.inference.queries.component_axes import component_axes, numberings
from ember.inference.queries.relabelling import exchangeable, permute

__all__ = ["relabelled"]

CERTAIN = 1e-6  # the least spread, in that between states
Params = Mapping[str, Tensor]


def relabelled(plan: Plan, draws: Params, reference: Params) -> dict[str, Tensor]:
    """Draws ``(M, *shape)`` of every parameter, renumbered one by one."""
    found = {name: value.clone() for name, value in draws.items()}
    for latent in numberings(plan):
        if not exchangeable(plan, latent, reference):
            continue
        for i, cost in enumerate(_costs(plan, latent, found, reference)):
            order = scipy.optimize.linear_sum_assignment(cost)[1]
            if (order != np.arange(len(order))).any():
                own = {name: value[i] for name, value in found.items()}
                for name, value in permute(plan, own, latent, torch.as_tensor(order)).items():
                    found[name][i] = value
    return found


def _costs(plan: Plan, latent: str, draws: Params, reference: Params) -> np.ndarray:
    """Of calling state ``j`` of a draw state ``i`` of the reference, ``(M, K, K)``."""
    total: Tensor | None = None
    for name, axes in component_axes(plan, latent).items():
        if len(axes) != 1:
            continue  # both axes of a transition matrix move at once: no distance by state
        known = reference[name].unsqueeze(-1).movedim(axes[0], 0).flatten(1)
        drawn = draws[name].unsqueeze(-1).movedim(axes[0] + 1, 1).flatten(2)
        spread, origin = _spread(drawn, known), known.mean(0)  # of which no digits are lost
        cost = torch.cdist((known - origin) / spread, (drawn - origin) / spread).square()
        total = cost if total is None else total + cost
    if total is None:
        return np.zeros((0, 0, 0))
    return total.nan_to_num(nan=0.0, posinf=1e300).cpu().numpy()


def _spread(drawn: Tensor, known: Tensor) -> Tensor:
    """That of every entry ``(F,)`` over draws ``(M, K, F)``, the same for all states.

    Of entries that are the same in every draw next to nothing: they tell states apart for sure.
    """
    found = drawn.var(0, correction=0).mean(0).sqrt()
    found = torch.maximum(found, CERTAIN * (known.amax(0) - known.amin(0)))
    return torch.where(found > 0.0, found, 1.0)
