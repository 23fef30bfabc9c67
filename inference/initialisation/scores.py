"""Where a latent on nodes starts: a score of each row, spread over the nodes around it.

The scores are those of the principal components of the standardised data below the latent, one for
each of its dims. A start with no idea of the latent would be a saddle: where no item depends on it,
no row tells anything about it, and EM stays.
"""

import torch
from torch import Tensor

from ember.inference.initialisation.clustering import standardise
from ember.inference.numerics.quadrature import HALF_WIDTH
from ember.inference.plan.plan import Plan

__all__ = ["spread_scores"]


WIDTH = 0.5  # of the spread around a score, in standard deviations of the prior
NOISE = 0.5  # on the scores, where starts should differ


def spread_scores(plan: Plan, name: str, rows: Tensor | None, first: int, varied: bool) -> Tensor:
    """Responsibilities ``(*plates, Q)`` of the nodes of a latent.

    Args:
        plan: The plan to start.
        name: The latent.
        rows: The data below it ``(N, F)``; scores are drawn at random where there are none.
        first: How many principal components others have taken.
        varied: Whether scores get some noise, since starts should differ.
    """
    nodes = plan.structure.nodes[name]
    dims, count = nodes.values[0].numel(), nodes.rule.nodes
    places = [plan.sizes[symbol] for symbol in plan.places(name)]
    number = torch.Size(places).numel()
    scores = torch.randn(number, dims) if rows is None else _components(rows, first, dims)
    if varied:
        scores = scores + NOISE * torch.randn(scores.shape)
    assert count is not None
    line = torch.linspace(-HALF_WIDTH, HALF_WIDTH, count)
    far = (line - scores.unsqueeze(-1)).div(WIDTH).square()  # (N, D, nodes of a dim)
    weights = (-0.5 * far).softmax(-1)
    grid = weights[:, 0]
    for d in range(1, dims):
        grid = (grid.unsqueeze(-1) * weights[:, d].unsqueeze(-2)).flatten(1)
    return grid.reshape(*places, -1)


def _components(rows: Tensor, first: int, count: int) -> Tensor:
    """Scores ``(N, count)`` of variance 1; they rise with most of the columns."""
    data = standardise(rows)
    _, vectors = torch.linalg.eigh(data.mT @ data)
    vectors = vectors.flip(1)[:, first : first + count]
    vectors = vectors * torch.where(vectors.sum(0) < 0.0, -1.0, 1.0)
    scores = data @ vectors
    scores = scores / scores.std(0).clamp_min(1e-300)
    missing = count - scores.shape[1]  # fewer columns than dims
    return torch.cat([scores, torch.randn(len(rows), missing)], 1) if missing else scores
