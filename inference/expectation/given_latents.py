r"""The log joint density of data and Gaussian latents: nothing of these is integrated out.

Discrete latents still are summed out. Where a guide draws the Gaussian latents, this is what its
bound is the expectation of.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.factors.gaussian.component import GaussianComponent
from ember.inference.factors.tied import TieKey
from ember.inference.plan.placing import placed
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.potentials import natural_parameters, tensors, values_of

__all__ = ["log_joint"]


def log_joint(plan: Plan, params: Params, latents: Mapping[str, Tensor]) -> Tensor:
    """``log p(data, latents | params)``, differentiable with respect to both.

    Args:
        plan: The plan.
        params: The parameters.
        latents: Values of all Gaussian latents of some components; others are integrated out.
    """
    if not latents:
        return LogEvidence.of(plan)(params)
    contraction, plan = LogEvidence.of(plan).contraction, placed(plan, params)
    values = values_of(plan, params)
    with torch.no_grad():
        near = plan.residuals.needed(plan.tied, values)
    natural = natural_parameters(plan, values)
    other = {
        **plan.opaque.factor_log_probs(params),
        **plan.residuals.log_probs(near, plan.tied, params),
    }
    for component in plan.components:
        if component.latents.keys() <= latents.keys():
            z = torch.cat([latents[name].reshape(-1) for name in component.latents])
            other[component.factor.name] = _log_prob_at(component, natural, z)
    total: Tensor = contraction.total(contraction(tensors(plan, natural, other)))
    return total


def _log_prob_at(
    component: GaussianComponent, natural: Mapping[TieKey, Tensor], z: Tensor
) -> Tensor:
    """The log density of a component's sites where its latents have the values ``z (n,)``."""
    found, pattern = component.potentials(natural), component.pattern
    row = component.row_of_entry
    squares = -pattern.halves * found.precision * z[pattern.rows] * z[pattern.columns]
    total = found.constant.index_add(-1, row, found.linear * z)
    total = total.index_add(-1, row[pattern.rows], squares)
    sizes = [size for _, size in (*component.states, *component.rows) if size > 1]
    return total.reshape([*total.shape[:-2], *sizes])
