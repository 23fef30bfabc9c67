"""The joint update of regression coefficients: one weighted least-squares problem for all of them.

Coefficients of one linear predictor may belong to several sites (an intercept, a slope) and some
may be shared between the states of a latent. Updated one site at a time they would crawl along
their correlations; together they solve ``J theta = h``, a system for each start.
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
        plan: For the priors; one of several starts has their dim before those of each parameter.
        names: The parameters to update together.
        pooled: Group, slot and statistics of every site that they feed.
        params: Current parameters.
    """
    many = plan.notes.get("starts", 1)
    first, count = {}, 0
    for name in names:
        first[name] = count
        count += params[name].numel() // many
    linear, quadratic = torch.zeros(many * count), torch.zeros(many * count * count)
    for group, slot, sums in pooled:
        h, j = group.family.contribution(slot, sums, group.slot_values(params))
        table = group.slots[slot].table
        assert isinstance(table, CoefficientTable)
        place = torch.cat([_places(params[s], first[s], count, many) for s in table.sources])
        at = place[torch.tensor(table.entries)][group.cells[:, slot]]
        linear.index_add_(0, at.reshape(-1), h.reshape(-1))
        pairs = at.unsqueeze(-1) * count + at.unsqueeze(-2) % count
        quadratic.index_add_(0, pairs.reshape(-1), j.reshape(-1))
    linear, matrix = linear.reshape(many, count), quadratic.reshape(many, count, count)
    for name in names:
        _add_prior(plan, name, first[name], linear, matrix, params)
    current = torch.cat([params[name].reshape(many, -1) for name in names], 1)
    gap = linear - (matrix @ current.unsqueeze(-1)).squeeze(-1)
    pieces = (current + _solve(matrix, gap)).split([params[n].numel() // many for n in names], 1)
    return {n: piece.reshape(params[n].shape) for n, piece in zip(names, pieces, strict=True)}


def _places(value: Tensor, first: int, count: int, many: int) -> Tensor:
    """Where the entries of a parameter stand among all coefficients, those of each start apart."""
    own = first + torch.arange(value.numel() // many)
    return (torch.arange(many).unsqueeze(1) * count + own).reshape(-1)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solves for the change of the coefficients, the smallest one where several do.

    Without priors an intercept for each state and a common one are determined only up to a
    constant, and a state without rows not at all; what the data leave open stays as it is.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    sound = factor.diagonal(dim1=-2, dim2=-1).square() > 1e-12 * diagonal
    if not bool(failed.any()) and bool(sound.all()):
        return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
    scale = diagonal.sqrt()
    scale = torch.where(scale > 0, scale, torch.ones(()))
    values, vectors = torch.linalg.eigh(matrix / scale.unsqueeze(-2) / scale.unsqueeze(-1))
    inverse = torch.where(values > 1e-12 * values[..., -1:], 1.0 / values, torch.zeros(()))
    turned = inverse.unsqueeze(-1) * (vectors.mT @ (right / scale).unsqueeze(-1))
    step: Tensor = (vectors @ turned).squeeze(-1) / scale
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
    many = len(linear)
    end = start + shape.numel() // many
    if type(prior.site.density.base).__name__ == "MultivariateNormal":
        size = shape[-1]
        blocks = (weight.reshape((*weight.shape, 1, 1)) * j).expand(*shape[:-1], size, size)
        for own, its in zip(matrix, blocks.reshape(many, -1, size, size), strict=True):
            own[start:end, start:end] += torch.block_diag(*its)
        weight = weight.unsqueeze(-1)
    else:
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        diagonal[:, start:end] += (weight * j).expand(shape).reshape(many, -1)
    linear[:, start:end] += (weight * h).expand(shape).reshape(many, -1)
