"""Newton's method for the few parameters that have no closed form: exact curvature, safe steps.

Regression coefficients on columns of unequal size make a long, narrow valley, in which L-BFGS
needs hundreds of evaluations. With the Hessian of a few dozen parameters by automatic
differentiation a handful of steps suffice.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["MOST_PARAMETERS", "minimise"]

MOST_PARAMETERS = 40  # the Hessian takes as many backward passes
STEPS = 50
ROUNDING = 1e-14  # relative to the function
SHORTENINGS = 60  # by four each: where the curvature is e^-50, so is its word on the step


def minimise(function: Callable[[Tensor], Tensor], start: Tensor) -> Tensor | None:
    """A local minimiser near ``start``, or None where the curvature is not finite there.

    Directions of negative curvature are followed downhill as if it were positive, and each step
    is shortened until the function falls. The search ends where it no longer does.

    Args:
        function: Twice differentiable, of a vector of free reals.
        start: Where to begin, ``(P,)``.
    """
    point, value = start.detach(), float(function(start.detach()))
    for _ in range(STEPS):
        gradient, hessian = _derivatives(function, point)
        if not bool(torch.isfinite(gradient).all()) or not bool(torch.isfinite(hessian).all()):
            return None
        if not bool((gradient != 0.0).any()):
            break
        direction = _downhill(gradient, hessian)
        slope = float(gradient @ direction)
        length = 1.0
        # What is left to gain, about half the slope, may drown in the rounding of the function.
        last = -slope <= ROUNDING * (1.0 + abs(value))
        for _ in range(1 if last else SHORTENINGS):
            moved = point + length * direction
            if torch.equal(moved, point):
                return point
            with torch.no_grad():
                reached = float(function(moved))
            if reached <= value + 1e-4 * length * slope:
                break
            length /= 4.0
        else:
            break
        stalls = not reached < value  # the step fell within the rounding of the function
        point, value = moved, reached
        if last or stalls:
            break
    return point


def _derivatives(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        free = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(free), free, create_graph=True)
        rows = [
            torch.autograd.grad(g, free, retain_graph=True, allow_unused=True)[0]
            if g.requires_grad
            else None
            for g in gradient
        ]
    hessian = torch.stack([torch.zeros_like(at) if row is None else row for row in rows])
    return gradient.detach(), (hessian + hessian.mT) / 2.0


def _downhill(gradient: Tensor, hessian: Tensor) -> Tensor:
    """Newton's step, each coordinate measured by its own curvature, none of it negative.

    Along coordinates without curvature, which the data may leave open, as far as lowers the
    function by one, whatever their units.
    """
    scale = hessian.diagonal().abs().sqrt()
    scale = torch.where(scale > 0, scale, gradient.abs())
    scale = torch.where(scale > 0, scale, torch.ones(()))
    values, vectors = torch.linalg.eigh(hessian / scale / scale.unsqueeze(-1))
    size = values.abs()
    size = torch.where(size > 1e-12 * float(size.max()), size, 1.0)
    step: Tensor = -(vectors @ ((vectors.mT @ (gradient / scale)) / size)) / scale
    return step
