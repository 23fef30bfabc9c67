"""Numbers the states of one fit as those of another, so that the two can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from ember.inference.expectation.posterior import marginals
from ember.inference.plan.plan import Plan
from ember.inference.queries.component_axes import component_axes, numberings
from ember.inference.queries.relabelling import Params, is_same_density, permute

if TYPE_CHECKING:
    from ember.inference.fit import Fit

__all__ = ["align"]


def align(reference: Fit, fit: Fit) -> dict[str, Tensor]:
    """Parameters of ``fit`` with its states numbered as in ``reference``.

    States are matched one to one so that the posteriors of the latents over the data overlap
    most; where the two fits saw different data, so that the parameters are nearest. A latent
    whose renumbering would change the density of the fit keeps its numbers.

    Reference: Stephens (2000), *Dealing with label switching in mixture models*, JRSS B 62,
    795-809.
    """
    for name, given in (("reference", reference), ("fit", fit)):
        if not hasattr(given, "plan"):
            raise TypeError(f"align: {name} must be a fit, not {type(given).__name__}.")
    plan, params = fit.plan, dict(fit.params)
    others = numberings(reference.plan)
    for latent, names in numberings(plan).items():
        if latent not in others or not _same_states(reference.plan, others[latent], plan, names):
            continue
        with torch.no_grad():
            cost = _disagreement(reference, fit.plan, params, latent)
        if cost is None:
            continue
        order = scipy.optimize.linear_sum_assignment(cost)[1]
        if (order == np.arange(len(order))).all():
            continue
        moved = permute(plan, params, latent, torch.as_tensor(order))
        if is_same_density(plan, params, moved):
            params = moved
    return params


def _same_states(one: Plan, ones: Sequence[str], two: Plan, twos: Sequence[str]) -> bool:
    sizes = {
        plan.sizes.get(plan.latent_symbols[n], 1) for plan, n in ((one, ones[0]), (two, twos[0]))
    }
    return len(sizes) == 1


def _posterior(plan: Plan, params: Params, names: Sequence[str]) -> Tensor:
    """Posterior of all members of a numbering, one row for each entry: ``(M, K)``."""
    posteriors = marginals(plan, params, list(names))
    return torch.cat([posteriors[name].flatten(0, -2).nan_to_num() for name in names])


def _disagreement(reference: Fit, plan: Plan, params: Params, latent: str) -> np.ndarray | None:
    """Cost of calling state ``j`` of the params state ``i`` of the reference, ``(K, K)``."""
    wanted = _posterior(reference.plan, reference.params, numberings(reference.plan)[latent])
    given = _posterior(plan, params, numberings(plan)[latent])
    if wanted.shape == given.shape and _same_data(reference.plan, plan):
        return -(wanted.T @ given).cpu().numpy()
    cost = torch.zeros(given.shape[1], given.shape[1], dtype=torch.float64)
    for name, axes in component_axes(plan, latent).items():
        other = reference.params.get(name)
        if other is None or other.shape != params[name].shape or len(axes) != 1:
            continue  # both axes of a transition matrix move at once: no distance by state
        left, right = (v.movedim(axes[0], 0).reshape(len(cost), -1) for v in (other, params[name]))
        spread = left.std(0, correction=0) + torch.finfo(left.dtype).tiny
        cost += torch.cdist(left / spread, right / spread).square()
    return cost.nan_to_num(nan=0.0, posinf=1e300).cpu().numpy() if bool((cost > 0).any()) else None


def _same_data(one: Plan, two: Plan) -> bool:
    """Whether two plans observe the same values."""
    if set(one.structure.observed) != set(two.structure.observed):
        return False
    pairs = [(one.sites[name].value, two.sites[name].value) for name in one.structure.observed]
    return all(
        a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in pairs
    )
