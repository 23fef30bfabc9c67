"""Metropolis chains of all units at once, and the statistics of their draws."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.opaque import OpaquePosterior
from ember.inference.factors.tied import TieKey
from ember.inference.factors.units.component import UnitComponent, UnitNodes
from ember.inference.initialisation.responsibilities import weights_of
from ember.inference.plan.placing import placed_units, with_units
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["Chains", "statistics_of_draws"]


GOAL = 0.44  # of proposals in one coordinate that are accepted, where chains move best
STEP = 2.38  # of a jump in all coordinates, over the square root of their number


@dataclass
class Chains:
    """The chains of one component.

    Attributes:
        component: The latents.
        line: Where they are, ``(chains, G, D)`` on the whole line.
        scales: Of jumps in one coordinate, ``(G, D)``.
        roots: Of the covariance of jumps in all, ``(G, D, D)``.
    """

    component: UnitComponent
    line: Tensor
    scales: Tensor
    roots: Tensor
    sweeps: int = 0

    @staticmethod
    def at(plan: Plan, component: UnitComponent, params: Params, count: int) -> "Chains":
        """Chains that begin at draws from a normal at the mode and curvature of each unit."""
        nodes = placed_units(plan, component, params).at
        assert nodes is not None
        normal = torch.randn(count, *nodes.modes.shape, dtype=torch.float64)
        line = nodes.modes + (normal.unsqueeze(-2) * nodes.roots).sum(-1)
        scales = 2.0 * nodes.roots.square().sum(-1).sqrt()
        return Chains(component, line, scales, nodes.roots)

    def sweep(self, plan: Plan, params: Params, temper: float = 1.0, adapt: bool = False) -> None:
        """One jump of every chain in each coordinate, one after the other.

        Args:
            plan: The plan.
            params: The parameters.
            temper: The power to which the density of the data is raised: below 1 it is flatter.
            adapt: Whether the scales may move towards the usual rate of acceptance.
        """
        self.sweeps += 1
        here = self._log_density(plan, params, self.line, temper)
        for d in range(self.line.shape[-1]):
            jump = torch.zeros_like(self.line)
            jump[..., d] = self.scales[:, d] * torch.randn(self.line.shape[:2], dtype=torch.float64)
            here, accepted = self._jumped(plan, params, jump, here, temper)
            if adapt:
                moved = accepted.double().mean(0) - GOAL
                self.scales[:, d] *= torch.exp(moved / self.sweeps**0.5)

    def jump(self, plan: Plan, params: Params) -> None:
        """A jump of every chain in all coordinates, as far as the curvature says."""
        here = self._log_density(plan, params, self.line, 1.0)
        length = STEP / math.sqrt(self.line.shape[-1])
        normal = torch.randn(self.line.shape, dtype=torch.float64)
        jump = length * (normal.unsqueeze(-2) * self.roots).sum(-1)
        self._jumped(plan, params, jump, here, 1.0)

    def _jumped(
        self, plan: Plan, params: Params, jump: Tensor, here: Tensor, temper: float
    ) -> tuple[Tensor, Tensor]:
        there = self._log_density(plan, params, self.line + jump, temper)
        accepted = torch.rand(here.shape, dtype=torch.float64).log() < there - here
        self.line = self.line + torch.where(accepted.unsqueeze(-1), jump, 0.0)
        return torch.where(accepted, there, here), accepted

    def _log_density(self, plan: Plan, params: Params, line: Tensor, temper: float) -> Tensor:
        with torch.no_grad():
            return self.component.on_line(
                _natural(plan, self.component, params), params, line, temper
            )


def _natural(plan: Plan, component: UnitComponent, params: Params) -> dict[TieKey, Tensor]:
    keys = {prior.cells.key for prior in component.priors.values()}
    return {key: plan.tied[key].natural_parameters(params) for key in keys}


def statistics_of_draws(plan: Plan, params: Params, draws: Mapping[str, Tensor]) -> Statistics:
    """Statistics of the complete data, averaged over draws of the latents.

    The log likelihood in it is that of the complete data. Draws are nodes of equal weight.

    Args:
        plan: The plan.
        params: The parameters.
        draws: Of each component by its name, ``(Q, G, D)`` on the whole line.
    """
    units = []
    for component in plan.units:
        line = draws[component.factor.name]
        values, slopes = component.values_of(line)
        at = UnitNodes(line[0], torch.zeros(0), values, slopes)
        units.append(dataclasses.replace(component, at=at))
    plan = with_units(plan, units)
    with torch.no_grad():
        other = plan.opaque.factor_log_probs(params)
        every = {key: tied.natural_parameters(params) for key, tied in plan.tied.items()}
    etas = {key: eta.detach().requires_grad_() for key, eta in every.items()}
    weights, total = {}, torch.zeros((), dtype=torch.float64)
    with torch.enable_grad():
        for component in units:
            assert component.at is not None
            each = component.weight_of_units() / len(component.at.log_weights)
            total = total + (each * component.joint(etas, other)).sum()
            weights.update({n: each.expand_as(other[n]) for n in component.playback.sites})
        rows = weights_of(plan, {})
        for name, (key, compiled) in plan.compiled.items():
            total = total + (rows[name] * compiled.log_prob(etas[key])).sum()
        gradients = torch.autograd.grad(total, list(etas.values()), allow_unused=True)
    sums = {
        key: (plan.tied[key], torch.zeros_like(eta) if g is None else g)
        for (key, eta), g in zip(etas.items(), gradients, strict=True)
    }
    fixed = {name: value.detach() for name, value in params.items()}
    with torch.no_grad():
        log_prior = float(plan.prior.log_prob(fixed))
    opaque = (OpaquePosterior(plan.opaque, weights),)
    return Statistics(float(total.detach()), log_prior, fixed, sums, opaque, plan.prior)
