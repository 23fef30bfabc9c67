r"""The joint update of regression coefficients: one weighted least-squares problem for all of them.

Coefficients of one linear predictor may belong to several sites (an intercept, a slope) and some
may be shared between the states of a latent. Updated one site at a time they would crawl along
their correlations; together they solve one problem, for each start. It is put in coordinates in
which the columns are all but orthogonal (``design.py``), as a tall matrix: a root of the
cross-products of every row of coefficients, and a row for each pseudo-observation of a prior. No
matrix is squared where that would cost digits.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.conjugacy import pseudo_statistics
from ember.inference.design import joint_coordinates
from ember.inference.plan import Plan
from ember.inference.reading.affine import CoefficientTable
from ember.inference.statistics import Group

__all__ = ["solve_coefficients"]

Pooled = Sequence[tuple[Group, int, Tensor]]
System = tuple[Tensor, Tensor]  # rows (R, M, P) and right sides (R, M), for R starts
NOTHING = 1e-15  # of the largest eigenvalue: rounding


def solve_coefficients(
    plan: Plan, names: Sequence[str], pooled: Pooled, params: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The coefficients that maximise the expected log joint, the scales given.

    What the data leave open stays as it is: an intercept for each state and a common one are
    determined only up to a constant, and a state without rows not at all.

    Args:
        plan: For the priors; one of several starts has their dim before those of each parameter.
        names: The parameters to update together.
        pooled: Group, slot and statistics of every site that they feed.
        params: Current parameters.
    """
    many = plan.notes.get("starts", 1)
    sizes = [params[name].numel() // many for name in names]
    first = {name: sum(sizes[:i]) for i, name in enumerate(names)}
    inverse, seen = _coordinates(plan, pooled, params, first, sum(sizes))
    systems = [
        _observations(each, columns, params, many)
        for each, columns in zip(pooled, seen, strict=True)
    ]
    for name in names:
        systems += _pseudo_observations(plan, name, inverse[first[name] :], params, many)
    rows, right = zip(*systems, strict=True)
    moved = _least_squares(torch.cat(rows, 1), torch.cat(right, 1)) @ inverse.mT
    current = torch.cat([params[name].reshape(many, -1) for name in names], 1)
    pieces = (current + moved).split(sizes, 1)
    return {n: piece.reshape(params[n].shape) for n, piece in zip(names, pieces, strict=True)}


def _coordinates(
    plan: Plan, pooled: Pooled, params: Mapping[str, Tensor], first: Mapping[str, int], count: int
) -> tuple[Tensor, list[Tensor]]:
    """The joint coordinates of the coefficients; they depend on the designs alone."""
    frames = [None if group.frame is None else group.frame.factor for group, _, _ in pooled]
    key = f"coordinates of {', '.join(first)}"
    known, found = plan.notes.get(key, ([], None))
    if found is None or any(a is not b for a, b in zip(known, frames, strict=True)):
        designs = []
        for group, slot, _ in pooled:
            entries = _entries(group, slot, params, first, plan.notes.get("starts", 1))
            eye = torch.eye(entries.shape[1], dtype=torch.float64)
            designs.append((eye if group.frame is None else group.frame.determined, entries))
        found = joint_coordinates(designs, count)
        plan.notes[key] = (frames, found)
    inverse: Tensor = found[0]
    return inverse, found[1]


def _entries(
    group: Group, slot: int, params: Mapping[str, Tensor], first: Mapping[str, int], many: int
) -> Tensor:
    """Which coefficients each row of a table holds, ``(R, F)``; the same for every start."""
    table = group.slots[slot].table
    assert isinstance(table, CoefficientTable)
    own = [first[s] + torch.arange(params[s].numel() // many) for s in table.sources]
    entries = torch.cat([each.repeat(many) for each in own])[torch.tensor(table.entries)]
    return entries[: len(entries) // many]


def _observations(
    each: tuple[Group, int, Tensor], columns: Tensor, params: Mapping[str, Tensor], many: int
) -> System:
    """A root of the cross-products of every row of a table ``(R, F, P)``, as rows."""
    group, slot, sums = each
    rows, width, count = columns.shape
    values = group.slot_values(params)
    linear, products = group.family.contribution(slot, sums, values)
    score = linear - (products @ values[slot].unsqueeze(-1)).squeeze(-1)
    at = group.cells[:, slot]
    matrix = products.new_zeros(many * rows, width, width).index_add_(0, at, products)
    score = score.new_zeros(many * rows, width).index_add_(0, at, score)
    sizes, vectors = torch.linalg.eigh(matrix)
    kept = sizes > NOTHING * width * sizes[..., -1:]
    root = torch.where(kept, sizes, 0.0).sqrt()
    right = (vectors.mT @ score.unsqueeze(-1)).squeeze(-1) / torch.where(kept, root, 1.0)
    turned = (root.unsqueeze(-1) * vectors.mT).reshape(many, rows, width, width) @ columns
    right = torch.where(kept, right, 0.0)
    return turned.reshape(many, -1, count), right.reshape(many, -1)


def _pseudo_observations(
    plan: Plan, name: str, inverse: Tensor, params: Mapping[str, Tensor], many: int
) -> list[System]:
    """A normal prior of one parameter as rows: how far it is from its location, standardised.

    Args:
        plan: For the prior.
        name: The parameter.
        inverse: What the joint coordinates are multiplied by; the parameter's rows come first.
        params: Current parameters.
        many: The number of starts.
    """
    prior = plan.priors.get(name)
    if prior is None or prior.site.density is None:
        return []
    fn = prior.site.density.distribution(params)
    found = pseudo_statistics("coefficients", "identity", fn)
    if not found:
        return []
    shape = params[name].shape
    weight = prior.scale
    if prior.site.mask is not None:
        weight = weight * prior.site.mask
    own = inverse[: shape.numel() // many]
    if isinstance(fn, torch.distributions.MultivariateNormal):
        size = shape[-1]
        root = weight.expand(shape[:-1]).sqrt().reshape(many, -1, 1, 1)
        factor = fn.scale_tril.expand(*shape, size).reshape(many, -1, size, size)
        gap = (fn.loc - params[name]).reshape(many, -1, size, 1)
        rows = root * torch.linalg.solve_triangular(
            factor, own.reshape(-1, size, own.shape[-1]), upper=False
        )
        right = root * torch.linalg.solve_triangular(factor, gap, upper=False)
        return [(rows.flatten(1, 2), right.reshape(many, -1))]
    h, j = ((weight * each).expand(shape).reshape(many, -1) for each in found)
    root = j.sqrt()
    gap = (h - j * params[name].reshape(many, -1)) / torch.where(j > 0, root, 1.0)
    return [(root.unsqueeze(-1) * own, gap)]


def _least_squares(rows: Tensor, right: Tensor) -> Tensor:
    """The shortest of the solutions, ``(R, P)``, each column measured by its own length."""
    scale = rows.norm(dim=-2)
    scale = torch.where(scale > 0, scale, 1.0)
    rows, right = rows / scale.unsqueeze(-2), right.unsqueeze(-1)
    factor, failed = torch.linalg.cholesky_ex(rows.mT @ rows)
    if not bool(failed.any()) and bool((factor.diagonal(dim1=-2, dim2=-1) > 1e-3).all()):
        found = torch.cholesky_solve(rows.mT @ right, factor)
        found = found + torch.cholesky_solve(rows.mT @ (right - rows @ found), factor)
    else:
        left, sizes, turned = torch.linalg.svd(rows, full_matrices=False)
        kept = sizes > 1e-13 * sizes[..., :1]
        inverse = torch.where(kept, 1.0 / sizes, 0.0).unsqueeze(-1)
        found = turned.mT @ (inverse * (left.mT @ right))
        found = found + turned.mT @ (inverse * (left.mT @ (right - rows @ found)))
    solution: Tensor = found.squeeze(-1) / scale
    return solution
