"""The joint update of regression coefficients: one weighted least-squares problem for all of them.

Coefficients of one linear predictor may belong to several sites (an intercept, a slope) and some
may be shared between the states of a latent. Updated one site at a time they would crawl along
their correlations; together they solve ``J theta = h``.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.conjugacy import pseudo_statistics
from ember.inference.plan import Plan
from ember.inference.reading.affine import CoefficientTable
from ember.inference.statistics import Group

__all__ = ["solve_coefficients"]


def solve_coefficients(
    plan: Plan,
    names: Sequence[str],
    pooled: Sequence[tuple[Group, int, Tensor]],
    params: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The coefficients that maximise the expected log joint, the scales given.

    Args:
        plan: For the priors and the shapes of the parameters.
        names: The parameters to update together.
        pooled: Group, slot and statistics of every site that they feed.
        params: Current parameters.
    """
    starts, count = {}, 0
    for name in names:
        starts[name] = count
        count += params[name].numel()
    linear, quadratic = torch.zeros(count), torch.zeros(count * count)
    for group, slot, sums in pooled:
        h, j = group.family.contribution(slot, sums, group.slot_values(params))
        table = group.slots[slot].table
        assert isinstance(table, CoefficientTable)
        place = torch.cat([starts[s] + torch.arange(params[s].numel()) for s in table.sources])
        at = place[torch.tensor(table.entries)][group.cells[:, slot]]
        linear.index_add_(0, at.reshape(-1), h.reshape(-1))
        pairs = at.unsqueeze(-1) * count + at.unsqueeze(-2)
        quadratic.index_add_(0, pairs.reshape(-1), j.reshape(-1))
    matrix = quadratic.reshape(count, count)
    for name in names:
        _add_prior(plan, name, starts[name], linear, matrix, params)
    current = torch.cat([params[name].reshape(-1) for name in names])
    solution = current + _solve(matrix, linear - matrix @ current)
    pieces = solution.split([params[name].numel() for name in names])
    return {n: piece.reshape(params[n].shape) for n, piece in zip(names, pieces, strict=True)}


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solves for the change of the coefficients, the smallest one where several do.

    Without priors an intercept for each state and a common one are determined only up to a
    constant, and a state without rows not at all; what the data leave open stays as it is.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not int(failed) and bool((factor.diagonal().square() > 1e-12 * matrix.diagonal()).all()):
        return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
    scale = matrix.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, torch.ones(()))
    values, vectors = torch.linalg.eigh(matrix / scale / scale.unsqueeze(-1))
    inverse = torch.where(values > 1e-12 * values[-1], 1.0 / values, torch.zeros(()))
    step: Tensor = (vectors @ (inverse * (vectors.mT @ (right / scale)))) / scale
    return step


def _add_prior(
    plan: Plan,
    name: str,
    start: int,
    linear: Tensor,
    matrix: Tensor,
    params: Mapping[str, Tensor],
) -> None:
    """Adds the pseudo-observations of a normal prior to ``h`` and ``J``, in place."""
    prior = plan.priors.get(name)
    if prior is None or prior.site.density is None:
        return
    shape = params[name].shape
    weight = prior.scale
    if prior.site.mask is not None:
        weight = weight * prior.site.mask
    found = pseudo_statistics("coefficients", "identity", prior.site.density.distribution(params))
    if not found:
        return
    h, j = found
    end = start + shape.numel()
    if type(prior.site.density.base).__name__ == "MultivariateNormal":
        size = shape[-1]
        blocks = (weight.reshape((*weight.shape, 1, 1)) * j).expand(*shape[:-1], size, size)
        matrix[start:end, start:end] += torch.block_diag(*blocks.reshape(-1, size, size))
        weight = weight.unsqueeze(-1)
    else:
        matrix.diagonal()[start:end] += (weight * j).expand(shape).reshape(-1)
    linear[start:end] += (weight * h).expand(shape).reshape(-1)
