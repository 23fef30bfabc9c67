"""The evidence lower bound with the latents summed out by the plan: a loss for Pyro's SVI."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ember.inference.expectation.given_latents import log_joint
from ember.inference.factors.factor import align
from ember.inference.plan.plan import Plan
from ember.inference.reading.trace import Trace, typed

__all__ = ["GuideFunction", "NonFiniteLoss", "PlanELBO", "latent_values", "parameter_values"]


GuideFunction = Callable[..., object]


class NonFiniteLoss(ArithmeticError):
    """The loss or one of its gradients is NaN or infinite; no step was taken."""


class PlanELBO:
    r"""Pyro's evidence lower bound, the model's half of it evaluated by a ``Plan``.

    .. math:: \mathcal{L} = \mathbb{E}_{q(\theta)}\bigl[\log p(x \mid \theta) + \log p(\theta)
        - \log q(\theta)\bigr]

    This is what ``TraceEnum_ELBO`` computes for a guide over the parameters, number for number.
    Gaussian latents :math:`z` that the guide draws as well count as the parameters do, with
    :math:`\log p(x, z \mid \theta)` in the place of :math:`\log p(x \mid \theta)`; others are
    integrated out exactly, as the discrete ones are.
    It is used instead because the plan needs no run of the model (a step takes half the time on a
    mixture, a seventh on a chain of 60 steps), and because ``TraceEnum_ELBO`` takes no weights of
    rows (``poutine.scale`` with a tensor) on enumerated sites. Gradients with respect to draws of
    the guide are reparametrised. Give it to Pyro as
    ``pyro.infer.SVI(model, guide, optim, loss=elbo.loss, loss_and_grads=elbo.loss_and_grads)``.

    Args:
        plan: The plan of the model, read with ``objective="map"``.
        num_particles: Draws from the guide in each evaluation.

    Reference: Kucukelbir, Tran, Ranganath, Gelman & Blei (2017), *Automatic differentiation
    variational inference*, JMLR 18(14), 1-45.
    """

    def __init__(self, plan: Plan, num_particles: int = 1) -> None:
        self.plan, self.num_particles = plan, num_particles
        self.evaluations = 0

    def loss(self, model: object, guide: GuideFunction, *args: object, **kwargs: object) -> float:
        """The negative bound, estimated from ``num_particles`` draws; the model is not run."""
        with torch.no_grad():
            return float(self._negative_bound(guide, args, kwargs))

    def loss_and_grads(
        self, model: object, guide: GuideFunction, *args: object, **kwargs: object
    ) -> float:
        """The negative bound; its gradients are added to those of the guide's parameters.

        Raises:
            NonFiniteLoss: If the bound or a gradient is not finite.
        """
        with poutine.trace(param_only=True) as captured:
            loss = self._negative_bound(guide, args, kwargs)
        if loss.requires_grad:
            loss.backward()
        values = [node["value"] for node in captured.trace.nodes.values()]
        gradients = [value.unconstrained().grad for value in values if value is not None]
        finite = torch.isfinite(loss) & all(
            bool(torch.isfinite(g).all()) for g in gradients if g is not None
        )
        if not bool(finite):
            raise NonFiniteLoss
        return float(loss.detach())

    def _negative_bound(
        self, guide: GuideFunction, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for _ in range(self.num_particles):
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
            drawn = typed(trace)
            params, latents = parameter_values(self.plan, drawn), latent_values(self.plan, drawn)
            # A plan may run the model: its statements must not reach the optimiser.
            with poutine.block():
                joint = log_joint(self.plan, params, latents) + self.plan.prior.log_prob(params)
            extra = _of_repeated_rows(self.plan, trace, latents)
            total = total + trace.log_prob_sum() + extra - joint
            self.evaluations += 1
        return total / self.num_particles


def parameter_values(plan: Plan, trace: Trace) -> dict[str, Tensor]:
    """The plan's parameters: guided sites from a trace of the guide, others from the store."""
    values = {}
    for name, parameter in plan.structure.parameters.items():
        if parameter.has_prior:
            values[name] = trace.nodes[name]["value"]
        else:
            values[name] = pyro.param(name, parameter.start, constraint=parameter.support)
    return values


def latent_values(plan: Plan, trace: Trace) -> dict[str, Tensor]:
    """The Gaussian latents that a guide draws."""
    return {
        name: trace.nodes[name]["value"] for name in plan.structure.gaussian if name in trace.nodes
    }


def _of_repeated_rows(plan: Plan, trace: Any, latents: Mapping[str, Tensor]) -> Tensor | float:
    """What rows that count several times add to the log density of a guide.

    Each repeat has latents of its own, of which the guide knows the same.
    """
    weighted = [name for name in latents if plan.scales[name] is not None]
    if not weighted:
        return 0.0
    trace.compute_log_prob()
    extra: Tensor | float = 0.0
    for name in weighted:
        scale, outer = plan.scales[name], plan.sites[name].layout.outer
        assert scale is not None
        weight = align(scale.tensor, scale.dims, outer)
        # AutoNormal draws by an auxiliary site, and its own site only holds what was drawn.
        own = [trace.nodes[n] for n in (name, f"{name}_unconstrained") if n in trace.nodes]
        for node in own:
            extra = extra + ((weight - 1.0) * node["log_prob"]).sum()
    return extra
