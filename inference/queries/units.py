r"""Posteriors of latents that are integrated unit by unit, and how far to trust their integrals.

With weights :math:`w_{qg} \propto \omega_q\, p(u_{qg})\, p(y_g \mid u_{qg})` of the nodes of unit
:math:`g`, moments of the posterior are sums over its nodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.units.component import UnitComponent
from ember.inference.numerics.adaptive import Adaptive
from ember.inference.plan.placing import placed, placed_units
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.potentials import natural_parameters, values_of

__all__ = [
    "UnitPosterior",
    "finer_unit_rules",
    "unit_draws",
    "unit_gaps",
    "unit_posterior",
    "warning_of_unit_gaps",
]


WIDER = 1.2  # draws are proposed by a normal at mode and curvature, this much wider
PROPOSALS = 4, 1000  # for each draw, and at least


@dataclass(frozen=True, eq=False)
class UnitPosterior:
    """The posterior of a latent with a value for each unit, as weights of its nodes.

    Attributes:
        name: The latent site.
        nodes: The nodes of each unit, ``(*plates, Q)``, or ``(*plates, Q, *event)``.
        probs: The weight of each node, which sum to one, ``(*plates, Q)``.
        mean: The posterior mean, in the shape of the latent.
        covariance: The posterior covariance of each event, ``(*plates, D, D)``; ``D`` is 1 for a
            site of single numbers.
    """

    name: str
    nodes: Tensor
    probs: Tensor
    mean: Tensor
    covariance: Tensor

    @property
    def batch_shape(self) -> torch.Size:
        """The sizes of the plates."""
        return self.probs.shape[:-1]

    @property
    def variance(self) -> Tensor:
        """Posterior variances, shaped like the mean."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).reshape(self.mean.shape)

    @property
    def stddev(self) -> Tensor:
        """Posterior standard deviations, shaped like the mean."""
        return self.variance.sqrt()

    def __repr__(self) -> str:
        return f"UnitPosterior({self.name}, batch_shape={tuple(self.batch_shape)})"


def unit_posterior(plan: Plan, params: Params, name: str) -> UnitPosterior | None:
    """The posterior of a latent that is integrated unit by unit; None if there is no such one."""
    if name not in plan.of_units:
        return None
    component = next(c for c in _at_nodes(plan, params) if name in c.latents)
    latent, (probs, values) = component.latents[name], _weighted(plan, component, params)
    flat = values[name].reshape(len(probs), component.batch.numel(), -1)
    mean = (probs.unsqueeze(-1) * flat).sum(0)
    far = flat - mean
    covariance = torch.einsum("qg,qgi,qgj->gij", probs, far, far)
    batch, event = latent.batch, latent.event
    return UnitPosterior(
        name,
        values[name].movedim(0, len(batch)),
        probs.T.reshape(*batch, -1),
        mean.reshape(latent.origin.shape),
        covariance.reshape(*batch, *covariance.shape[1:]) if event or batch else covariance[0],
    )


def _at_nodes(plan: Plan, params: Params) -> tuple[UnitComponent, ...]:
    return placed(plan, params).units


def _joint(plan: Plan, component: UnitComponent, params: Params) -> Tensor:
    """The log density of each unit at each node, times what that weighs, ``(Q, G)``."""
    assert component.at is not None
    with torch.no_grad():
        natural = natural_parameters(plan, values_of(plan, params))
        return component.joint(natural, component.playback.at(params, component.at.values))


def _weighted(
    plan: Plan, component: UnitComponent, params: Params
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The weights ``(Q, G)`` of nodes, and the values of all latents there."""
    assert component.at is not None
    return _joint(plan, component, params).softmax(0), component.at.values


def unit_draws(plan: Plan, params: Params, n: int) -> dict[str, Tensor]:
    """Joint draws of all latents of units from their posterior, ``(n, *shape)``.

    By sampling and importance resampling (Rubin 1987): draws from a normal at the mode and
    curvature of each unit are taken again by their weights.
    """
    values: dict[str, Tensor] = {}
    count = max(PROPOSALS[0] * n, PROPOSALS[1])
    for component in _at_nodes(plan, params):
        assert component.at is not None
        found, units = component.at, component.batch.numel()
        normal = torch.randn(count, units, component.dims, dtype=torch.float64)
        line = found.modes + WIDER * (normal.unsqueeze(-2) * found.roots).sum(-1)
        with torch.no_grad():
            natural = natural_parameters(plan, values_of(plan, params))
            log_weights = component.on_line(natural, params, line) + 0.5 * normal.square().sum(-1)
        chosen = torch.multinomial(log_weights.softmax(0).T, n, replacement=True).T
        drawn = line.gather(0, chosen.unsqueeze(-1).expand(-1, -1, component.dims))
        values |= component.values_of(drawn)[0]
    return values


# -- how far to trust the integrals -------------------------------------------------------------


def unit_gaps(plan: Plan, params: Params) -> dict[str, float]:
    """For each latent, by how much more nodes change the log evidence of a unit, at most."""
    gaps: dict[str, float] = {}
    fixed = {name: value.detach() for name, value in params.items()}
    for component in _at_nodes(plan, fixed):
        finer = _more(component)
        again = placed_units(plan, component, fixed, finer)
        apart = _joint(plan, component, fixed).logsumexp(0) - _joint(plan, again, fixed).logsumexp(
            0
        )
        gaps.update(dict.fromkeys(component.latents, float(apart.abs().nan_to_num(nan=0.0).max())))
    return gaps


def _more(component: UnitComponent) -> Adaptive:
    """The rule with more nodes, whatever their largest number."""
    rule = component.rule
    assert rule.nodes is not None
    found = Adaptive(rule.nodes, 4 * rule.nodes).refined(component.dims)
    assert found is not None
    return found


def finer_unit_rules(plan: Plan, gaps: Mapping[str, float]) -> dict[str, Adaptive]:
    """The rules of those latents whose integrals have not settled, with more nodes."""
    finer = {}
    for component in plan.units:
        gap = max(gaps[name] for name in component.latents)
        more = component.rule.refined(component.dims)
        if component.monte_carlo is not None:
            continue  # nodes give answers alone
        if gap > component.rule.settled(component.dims) and more is not None:
            finer.update(dict.fromkeys(component.latents, more))
    return finer


def warning_of_unit_gaps(plan: Plan, gaps: Mapping[str, float]) -> str:
    """A sentence about the first latent whose nodes are too few, or none."""
    for component in plan.units:
        name = next(iter(component.latents))
        if component.monte_carlo is None and gaps[name] > component.rule.settled(component.dims):
            more = _more(component).nodes
            return (
                f"{component.rule.shown(component.dims)} nodes of '{name}' are too few: more "
                f"change the log evidence of a unit by {gaps[name]:.2g}; ask for more, for "
                f"instance integrate={{'{name}': Adaptive({more}, most={more})}}."
            )
    return ""
