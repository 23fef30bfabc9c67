"""Where a latent on nodes starts: a score of each row, spread over the nodes around it.

The scores are those of the principal components of the standardised data below the latent, one for
each of its dims. A start with no idea of the latent would be a saddle: where no item depends on it,
no row tells anything about it, and EM stays.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.initialisation.clustering import standardise
from ember.inference.numerics.quadrature import HALF_WIDTH
from ember.inference.plan.plan import Plan

__all__ = ["Scores", "scores_of"]


WIDTH = 0.5  # of the spread around a score, in standard deviations of the prior
NOISE = 0.5  # on the scores, where starts should differ


@dataclass(frozen=True)
class Scores:
    """A score of each row in each dim of a latent, ``(N, D)``, and how many nodes a dim has."""

    values: Tensor
    nodes: int

    def weights(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """The weight of each node in some rows, ``(n, Q)``: a normal density around the score."""
        scores = self.values[rows]
        line = torch.linspace(-HALF_WIDTH, HALF_WIDTH, self.nodes).to(scores)
        far = (line - scores.unsqueeze(-1)).div(WIDTH).square()  # (n, D, nodes of a dim)
        each = (-0.5 * far).softmax(-1)
        grid = each[:, 0]
        for d in range(1, each.shape[1]):
            grid = (grid.unsqueeze(-1) * each[:, d].unsqueeze(-2)).flatten(1)
        return grid


def scores_of(plan: Plan, name: str, rows: Tensor | None, first: int, varied: bool) -> Scores:
    """The scores of a latent on nodes, one for each entry of its plates.

    Args:
        plan: The plan to start.
        name: The latent.
        rows: The data below it ``(N, F)``; scores are drawn at random where there are none.
        first: How many principal components others have taken.
        varied: Whether scores get some noise, since starts should differ.
    """
    nodes = plan.structure.nodes[name]
    assert nodes.rule.nodes is not None
    dims = nodes.values[0].numel()
    number = torch.Size([plan.sizes[symbol] for symbol in plan.places(name)]).numel()
    scores = torch.randn(number, dims) if rows is None else _components(rows, first, dims)
    if varied:
        scores = scores + NOISE * torch.randn(scores.shape)
    return Scores(scores, nodes.rule.nodes)


def _components(rows: Tensor, first: int, count: int) -> Tensor:
    """Scores ``(N, count)`` of variance 1; they rise with most of the columns."""
    data = standardise(rows)
    _, vectors = torch.linalg.eigh(data.mT @ data)
    vectors = vectors.flip(1)[:, first : first + count]
    vectors = vectors * torch.where(vectors.sum(0) < 0.0, -1.0, 1.0)
    scores = data @ vectors
    if scores.numel():  # there may be fewer columns than others have taken
        scores = scores / scores.std(0, correction=int(len(scores) > 1)).clamp_min(1e-300)
    missing = count - scores.shape[1]  # fewer columns than dims
    return torch.cat([scores, torch.randn(len(rows), missing)], 1) if missing else scores
