"""Whether a point is a maximum: how much a climb by the oracle's own derivatives can gain."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["gain"]

LONGEST = 3.0  # of a step, in units of the curvature (about standard errors)
LENGTHS = (1.0, 0.3, 0.1, 0.01, 1e-3)


def gain(objective: Callable[[Tensor], Tensor], point: Tensor) -> tuple[float, str]:
    """The largest gain near a point, and along which direction it was found.

    Newton's direction, the gradient, and the direction of most positive curvature are tried, both
    ways and at several lengths. Where a derivative does not exist (at a boundary) nothing is.
    """
    if not len(point):
        return 0.0, ""
    point = point.detach()
    gradient, hessian = _derivatives(objective, point)
    if not bool(torch.isfinite(gradient).all() and torch.isfinite(hessian).all()):
        return 0.0, "no derivative"
    unit = (hessian.diagonal().abs() + 0.01 / (1.0 + point.abs()) ** 2).rsqrt()
    values, vectors = torch.linalg.eigh(unit[:, None] * hessian * unit)
    slope = vectors.mT @ (unit * gradient)
    ways = {
        "Newton": vectors @ (slope / values.abs().clamp_min(1e-6)),
        "gradient": vectors @ slope,
        "positive curvature": vectors[:, -1] * (values[-1] > 1e-6),
    }
    best = (0.0, "")
    with torch.no_grad():
        start = float(objective(point))
        for name, way in ways.items():
            length = float(way.norm())
            if length == 0.0:
                continue
            way = unit * way * min(1.0, LONGEST / length)
            for factor in LENGTHS:
                for sign in (1.0, -1.0) if name == "positive curvature" else (1.0,):
                    more = float(objective(point + sign * factor * way)) - start
                    best = max(best, (more, name))
    return best


def _derivatives(objective: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor]:
    at = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(at), at, create_graph=True)
    rows = [
        torch.autograd.grad(entry, at, retain_graph=True, materialize_grads=True)[0]
        if entry.requires_grad
        else torch.zeros_like(point)
        for entry in gradient
    ]
    hessian = torch.stack(rows)
    return gradient.detach(), 0.5 * (hessian + hessian.mT)
