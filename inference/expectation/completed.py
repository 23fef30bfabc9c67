"""Statistics with the posterior of the latents given instead of inferred: where a start begins."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence, learnt
from ember.inference.factors.gaussian.component import Moments
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.plan.placing import placed
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.potentials import natural_parameters, tensors, values_of
from ember.inference.plan.statistics import Statistics

__all__ = ["completed", "completed_on_nodes"]


def completed(
    plan: Plan,
    params: Params,
    weights: Mapping[str, Tensor],
    naive: bool = False,
    moments: Mapping[str, Moments] | None = None,
) -> Statistics:
    """Statistics with the posterior of the latents given.

    Args:
        plan: The plan.
        params: Current parameters; closed forms that depend on others read them.
        weights: For every factor, the posterior weight of each entry of its tensor.
        naive: Whether to complete rows with missing entries by columns, not at ``params``, and
            to take latents with conjugate priors to be what these say.
        moments: Those of the Gaussian latents of each component; those at ``params`` unless
            given.
    """
    plan = placed(plan, params)
    with torch.no_grad():
        natural = natural_parameters(plan, values_of(plan, params))
        if naive:
            for key, eta in plan.starting_eta.items():
                natural[key] = eta.expand(natural[key].shape).clone()
        other = plan.opaque.factor_log_probs(params)
    asked = [*plan.opaque.members, *(n for c in plan.units for n in c.playback.sites)]
    members = {n: other[n].detach().requires_grad_() for n in asked}
    leaves = [*(t.requires_grad_() for t in natural.values()), *members.values()]
    with torch.enable_grad():
        names = (factor.name for factor in plan.factors)
        assumed = {
            component.factor.name: component.expected_log_prob(
                natural, moments[component.factor.name]
            )
            for component in plan.components
            if moments is not None
        }
        known = {**other, **members}
        # Where discrete latents part the rows, what lies far from all of them had better weigh
        # little from the start, as it does at the parameters' own.
        if naive and not plan.latent_symbols:
            assumed |= {
                component.factor.name: component.expected_log_prob(natural, known)
                for component in plan.conjugate
            }
        each = dict(zip(names, tensors(plan, natural, {**known, **assumed}), strict=True))
        # What is impossible has no weight, whatever a start has drawn.
        weights = {
            name: torch.where(t.detach() <= 0.1 * IMPOSSIBLE, 0.0, weights[name])
            for name, t in each.items()
        }
        total = torch.stack([(weights[name] * t).sum() for name, t in each.items()]).sum()
        gradients = torch.autograd.grad(total, leaves) if leaves else ()
    sums = {key: (plan.tied[key], g) for key, g in zip(natural, gradients, strict=False)}
    expected = dict(zip(members, gradients[len(natural) :], strict=True))
    for key in plan.residuals.lost(sums):
        sums[key] = plan.residuals.sums(plan.tied[key], params, weights)
    return learnt(
        plan,
        params,
        float(total.detach()),
        sums,
        {name: expected[name] if name in expected else weights[name] for name in other},
    )


def completed_on_nodes(
    plan: Plan, params: Params, weights: Callable[[Tensor | slice], Tensor]
) -> Statistics:
    """The same for a plan whose kernel is that of a latent on nodes, without a table of rows.

    Args:
        plan: The plan.
        params: Where the nodes are placed.
        weights: The weights ``(n, Q)`` of the nodes in some rows.
    """
    kernel = LogEvidence.of(plan).on_nodes
    assert kernel is not None
    plan = placed(plan, params)
    with torch.no_grad():
        natural = natural_parameters(plan, values_of(plan, params))
        gradient = kernel.at(plan.compiled).completed(natural, weights)
        total = sum(float((natural[key] * sums).sum()) for key, sums in gradient.items())
    sums = {key: (tied, gradient[key]) for key, tied in plan.tied.items()}
    return learnt(plan, params, total, sums, {})
