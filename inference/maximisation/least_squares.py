r"""The joint update of regression coefficients: one weighted least-squares problem for all of them.

Coefficients of one linear predictor may belong to several sites (an intercept, a slope) and some
may be shared between the states of a latent. Updated one site at a time they would crawl along
their correlations; together they solve one problem, for each start. It is put in coordinates in
which the columns are all but orthogonal (``numerics/design.py``), as a tall matrix: a root of the
cross-products of every row of coefficients, and a row for each pseudo-observation of a prior. No
matrix is squared where that would cost digits.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.factors.tied import TiedFactors
from ember.inference.families.conjugacy import pseudo_statistics
from ember.inference.families.kinds import COEFFICIENTS
from ember.inference.families.links import IDENTITY
from ember.inference.maximisation.parameter_plan import ParameterPlan
from ember.inference.maximisation.updates import Usage, tied_factors_of
from ember.inference.numerics.design import joint_coordinates
from ember.inference.parameters.affine_map import ParameterEntries

__all__ = ["solve_coefficients"]


Pooled = Sequence[tuple[Usage, TiedFactors, Tensor]]
System = tuple[Tensor, Tensor]  # rows (R, M, P) and right sides (R, M), for R starts
NOTHING = 1e-15  # of the largest eigenvalue: rounding


def solve_coefficients(
    plan: ParameterPlan, names: Sequence[str], pooled: Pooled, params: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The coefficients that maximise the expected log joint, the scales given.

    What the data leave open stays as it is: an intercept for each state and a common one are
    determined only up to a constant, and a state without rows not at all.

    Args:
        plan: For the priors; one of several starts has their dim before those of each parameter.
        names: The parameters to update together.
        pooled: What they feed, with its cells and statistics.
        params: Current parameters.
    """
    many = plan.starts
    sizes = [params[name].numel() // many for name in names]
    first = {name: sum(sizes[:i]) for i, name in enumerate(names)}
    inverse, seen = _coordinates(plan, pooled, tuple(zip(names, sizes, strict=True)))
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
    plan: ParameterPlan, pooled: Pooled, sizes: tuple[tuple[str, int], ...]
) -> tuple[Tensor, list[Tensor]]:
    """The joint coordinates of the coefficients; they depend on the designs alone."""
    factors = [None if tied.frame is None else tied.frame.factor for _, tied, _ in pooled]
    known = [tied_factors_of(plan, usage).frame for usage, _, _ in pooled]
    each = zip(factors, known, strict=True)
    if all(factor is None or (own is not None and factor is own.factor) for factor, own in each):
        return plan.once(_own_coordinates, tuple(usage for usage, _, _ in pooled), sizes)
    return _joint([(usage, tied) for usage, tied, _ in pooled], sizes, plan.starts)


def _own_coordinates(
    plan: ParameterPlan, usages: tuple[Usage, ...], sizes: tuple[tuple[str, int], ...]
) -> tuple[Tensor, list[Tensor]]:
    """Those of the designs of the plan's own data."""
    return _joint([(u, tied_factors_of(plan, u)) for u in usages], sizes, plan.starts)


def _joint(
    pooled: Sequence[tuple[Usage, TiedFactors]], sizes: tuple[tuple[str, int], ...], many: int
) -> tuple[Tensor, list[Tensor]]:
    designs = []
    for usage, tied in pooled:
        entries = _entries(tied, usage.position, sizes, many)
        one = torch.eye(entries.shape[1], dtype=torch.float64, device=entries.device)
        designs.append((one if tied.frame is None else tied.frame.determined, entries))
    return joint_coordinates(designs, sum(size for _, size in sizes))


def _entries(
    tied: TiedFactors, position: int, sizes: tuple[tuple[str, int], ...], many: int
) -> Tensor:
    """Which coefficients each row of a table holds, ``(R, F)``; the same for every start."""
    table = tied.parameters[position].table
    assert isinstance(table, ParameterEntries)
    size, first, total = dict(sizes), dict[str, int](), 0
    for name, count in sizes:
        first[name], total = total, total + count
    every = [
        first[source] + torch.arange(size[source], device=tied.cells.device)
        for source in table.sources
    ]
    entries = torch.cat([each.repeat(many) for each in every])[
        torch.tensor(table.entries, device=tied.cells.device)
    ]
    return entries[: len(entries) // many]


def _observations(
    each: tuple[Usage, TiedFactors, Tensor],
    columns: Tensor,
    params: Mapping[str, Tensor],
    many: int,
) -> System:
    """A root of the cross-products of every row of a table ``(R, F, P)``, as rows."""
    usage, tied, sums = each
    position = usage.position
    rows, width, count = columns.shape
    values = tied.parameter_values(params)
    linear, products = tied.family.contribution(position, sums, values)
    score = linear - (products @ values[position].unsqueeze(-1)).squeeze(-1)
    at = tied.cells[:, position]
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
    plan: ParameterPlan, name: str, inverse: Tensor, params: Mapping[str, Tensor], many: int
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
    found = pseudo_statistics(COEFFICIENTS, IDENTITY, fn)
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
