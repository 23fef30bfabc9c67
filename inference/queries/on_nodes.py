r"""Posteriors of continuous latents on nodes, and how far to trust their integrals.

With weights :math:`w_{nq} \propto h\, p(u_q)\, p(x_n \mid u_q)` of the nodes, moments of the
posterior are sums,

.. math:: \mathbb E[u \mid x_n] = \sum_q w_{nq} u_q, \qquad
          \operatorname{Var}[u \mid x_n] = \sum_q w_{nq} (u_q - \mathbb E[u \mid x_n])^2 .

The sums over the even and over the odd nodes are two estimates of the same integral. As long as
they differ by less than about 0.1 in the logarithm, the sum over both is far nearer to the truth
than they are to each other: by about the square of the gap, over 400.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.factors.factor import align
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.numerics.quadrature import GAP, Quadrature
from ember.inference.plan.placing import placed
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.potentials import all_tensors

__all__ = ["NodePosterior", "finer_rules", "node_gaps", "values_of_nodes", "warning_of_gaps"]


@dataclass(frozen=True, eq=False)
class NodePosterior:
    """The posterior of a continuous latent, as weights of nodes.

    Attributes:
        nodes: The nodes, ``(Q,)``, or ``(Q, D)`` for a site of vectors.
        probs: The weight of each node, which sum to one, ``(*plates, Q)``.
    """

    nodes: Tensor
    probs: Tensor

    @property
    def batch_shape(self) -> torch.Size:
        """The sizes of the plates."""
        return self.probs.shape[:-1]

    @property
    def mean(self) -> Tensor:
        """Posterior means, ``(*plates)`` or ``(*plates, D)``."""
        return self.probs @ self.nodes

    @property
    def variance(self) -> Tensor:
        """Posterior variances, shaped like the mean."""
        variance = self.covariance.diagonal(dim1=-2, dim2=-1)
        return variance.reshape(self.mean.shape)

    @property
    def stddev(self) -> Tensor:
        """Posterior standard deviations, shaped like the mean."""
        return self.variance.sqrt()

    @property
    def covariance(self) -> Tensor:
        """Posterior covariances, ``(*plates, D, D)``; ``D`` is 1 for a site of single numbers."""
        points = self.nodes.reshape(len(self.nodes), -1)
        centre = points.mean(0)  # squares about the middle of the grid lose no digits
        points = points - centre
        mean = self.probs @ points
        squares = (points.unsqueeze(-1) * points.unsqueeze(-2)).flatten(1)
        second: Tensor = (self.probs @ squares).reshape(*mean.shape, -1)
        return second - mean.unsqueeze(-1) * mean.unsqueeze(-2)

    def __repr__(self) -> str:
        return f"NodePosterior({len(self.nodes)} nodes, batch_shape={tuple(self.batch_shape)})"


def values_of_nodes(plan: Plan, params: Params, name: str) -> Tensor:
    """The nodes of a latent at some parameters, ``(Q, *event)``."""
    return placed(plan, params).structure.nodes[name].values


def node_gaps(plan: Plan, params: Params) -> dict[str, float]:
    """For each latent on nodes, the largest gap between its even and its odd nodes.

    It is that of the log evidence of a row, between the integral by every other node and that by
    the nodes left out; of a product grid the largest of its axes, since along one that is smooth
    both halves agree, however coarse another is.
    """
    gaps: dict[str, float] = {}
    evidence = LogEvidence.of(plan)
    with torch.no_grad():
        if evidence.on_nodes is not None:
            name = evidence.on_nodes.latent
            return {name: max(evidence.node_gap(params, even) for even in _evens(plan, name))}
        tensors = all_tensors(plan, params) if plan.on_nodes else []
        for name in plan.structure.nodes:  # latents of units are in units.py
            apart = [
                _of_half(plan, evidence, tensors, name, even)
                - _of_half(plan, evidence, tensors, name, ~even)
                for even in _evens(plan, name)
            ]
            # Rows of probability zero have no integral.
            gaps[name] = float(torch.stack(apart).abs().nan_to_num(nan=0.0).max())
    return gaps


def _of_half(
    plan: Plan, evidence: LogEvidence, tensors: Sequence[Tensor], name: str, half: Tensor
) -> Tensor:
    """The log evidence of each row by half of the nodes of a latent."""
    moved = list(tensors)
    for i, factor in enumerate(plan.factors):
        if factor.name == name:
            halved = torch.where(half, math.log(2.0), IMPOSSIBLE).to(tensors[i])
            moved[i] = tensors[i] + align(halved, (plan.latent_symbols[name],), factor.dims)
    return evidence.rows_of(moved)


def _evens(plan: Plan, name: str) -> list[Tensor]:
    """For each axis of a latent's grid the nodes at every other place along it, ``(Q,)``."""
    nodes = plan.structure.nodes[name]
    assert nodes.rule.nodes is not None
    dims = nodes.values[0].numel()
    steps = torch.arange(nodes.rule.nodes, device=nodes.values.device)
    places = torch.cartesian_prod(*[steps] * dims).reshape(-1, dims)
    return [places[:, axis] % 2 == 0 for axis in range(dims)]


def finer_rules(plan: Plan, gaps: Mapping[str, float]) -> dict[str, Quadrature]:
    """The rules of those latents whose integrals have not settled, with more nodes."""
    wide = [name for name, gap in gaps.items() if gap > GAP]
    finer = {name: plan.structure.nodes[name].rule.refined() for name in wide}
    return {name: rule for name, rule in finer.items() if rule is not None}


def warning_of_gaps(plan: Plan, gaps: Mapping[str, float]) -> str:
    """A sentence about the first latent whose nodes are too few, or none."""
    for name, gap in gaps.items():
        if gap > GAP:
            nodes = plan.structure.nodes[name]
            assert nodes.rule.nodes is not None
            return (
                f"{nodes.shown} nodes of site '{name}' are too few: the integrals over its even "
                f"and odd nodes differ by {gap:.2g} in the log evidence of a row; ask for more, "
                f"for instance integrate={{'{name}': Quadrature({4 * nodes.rule.nodes - 3})}}."
            )
    return ""
