"""The mode of many functions at once, each of a few coordinates, by Newton's method."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["modes"]


STEPS = 100
SHORTENINGS = 40
SETTLED = 1e-10  # half the square of the step in standard deviations: what is left to gain
LEAST = 1e-8  # curvature relative to the largest


def modes(function: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, Tensor]:
    """Where each function is largest, and a root of the inverse of minus its Hessian there.

    Directions of positive curvature are followed uphill as if it were negative, and each step is
    shortened, function by function, until the function rises.

    Args:
        function: Of points ``(G, D)``, the value of each of ``G`` functions at its own.
        start: Where to begin, ``(G, D)``.

    Returns:
        The modes ``(G, D)``, and lower triangular roots ``(G, D, D)``.
    """
    point = start.detach()
    value, gradient, hessian = _derivatives(function, point)
    for _ in range(STEPS):
        curvature = _positive(-hessian)
        root = torch.linalg.cholesky(curvature)
        step = torch.cholesky_solve(gradient.unsqueeze(-1), root).squeeze(-1)
        gain = 0.5 * (gradient * step).sum(-1)
        open_ = gain > SETTLED
        if not bool(open_.any()):
            break
        moved, risen = _shortened(function, point, value, step, gain, open_)
        if not bool(risen.any()):
            break
        point = torch.where(risen.unsqueeze(-1), moved, point)
        value, gradient, hessian = _derivatives(function, point)
    root = torch.linalg.cholesky(_positive(-hessian))
    one = torch.eye(point.shape[1], dtype=point.dtype, device=point.device).expand_as(root)
    inverse = torch.cholesky_solve(one, root)
    return point, torch.linalg.cholesky((inverse + inverse.mT) / 2.0)


def _shortened(
    function: Callable[[Tensor], Tensor],
    point: Tensor,
    value: Tensor,
    step: Tensor,
    gain: Tensor,
    wanted: Tensor,
) -> tuple[Tensor, Tensor]:
    """The first points along the steps where functions rise enough, and which have done so."""
    length = wanted.to(point)
    risen = torch.zeros_like(wanted)
    moved = point
    for _ in range(SHORTENINGS):
        trial = point + length.unsqueeze(-1) * step
        with torch.no_grad():
            reached = function(trial)
        better = wanted & ~risen & (reached >= value + 1e-4 * length * gain)
        moved = torch.where(better.unsqueeze(-1), trial, moved)
        risen = risen | better
        if bool((risen | ~wanted).all()):
            break
        length = torch.where(risen, length, 0.25 * length)
    return moved, risen


def _derivatives(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values ``(G,)``, gradients ``(G, D)``, Hessians ``(G, D, D)``: none sees another."""
    with torch.enable_grad():
        free = at.clone().requires_grad_()
        value = function(free)
        (gradient,) = torch.autograd.grad(value.sum(), free, create_graph=True)
        rows = [
            torch.autograd.grad(gradient[:, d].sum(), free, retain_graph=True)[0]
            for d in range(at.shape[1])
        ]
    hessian = torch.stack(rows, -1).nan_to_num(nan=0.0)
    gradient = gradient.detach().nan_to_num(nan=0.0)
    return value.detach(), gradient, (hessian + hessian.mT) / 2.0


def _positive(matrix: Tensor) -> Tensor:
    """Matrices with their eigenvalues made positive, none next to nothing."""
    if matrix.shape[-1] == 1:
        size = matrix.abs()
        return torch.where(size > 1e-300, size, 1.0)
    _, wrong = torch.linalg.cholesky_ex(matrix)
    if not bool((wrong != 0).any()):
        return matrix
    values, vectors = torch.linalg.eigh(matrix)
    size = values.abs()
    size = torch.maximum(size, LEAST * size.amax(-1, keepdim=True)).clamp_min(1e-300)
    made: Tensor = (vectors * size.unsqueeze(-2)) @ vectors.mT
    return torch.where((wrong != 0)[:, None, None], made, matrix)
