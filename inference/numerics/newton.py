"""Newton's method for the few parameters that have no closed form: exact curvature, safe steps.

Regression coefficients on columns of unequal size make a long, narrow valley, in which L-BFGS
needs hundreds of evaluations. With the Hessian of a few dozen parameters by automatic
differentiation a handful of steps suffice.
"""

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ember.inference.numerics import nonsmooth

__all__ = [
    "MOST_PARAMETERS",
    "Quick",
    "block_derivatives",
    "derivatives",
    "minimise",
    "minimise_blocks",
    "slope",
    "value_and_slope",
]


MOST_PARAMETERS = 40  # the Hessian takes as many backward passes
STEPS = 50
ROUNDING = 1e-14  # relative to the function
PROMISE = 1e-10  # of a gain, relative, that a step does not keep where the function has an edge
KINK = 1e-6  # a step, in units, that is long beside the distance to an edge, and short otherwise
LONGEST = 1e30  # of a unit
SHORTENINGS = 60  # to a quarter each: almost without curvature a step is far too long


@runtime_checkable
class Quick(Protocol):
    """A function that knows a quicker way to its derivatives."""

    def value_and_slope(self, at: Tensor) -> tuple[float, Tensor]:
        """See ``value_and_slope``."""
        ...

    def derivatives(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """See ``derivatives``."""
        ...

    def block_derivatives(
        self, at: Tensor, places: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See ``block_derivatives``."""
        ...


def minimise(
    function: Callable[[Tensor], Tensor], start: Tensor, enough: float = ROUNDING
) -> Tensor | None:
    """A local minimiser near ``start``, or None where the curvature is not finite there.

    Directions of negative curvature are followed downhill as if it were positive, and each step
    is shortened until the function falls. The search ends where it no longer does; if that is at
    an edge of the function, across which its derivative jumps, it goes on along that.

    Args:
        function: Twice differentiable, of a vector of free reals.
        start: Where to begin, ``(P,)``.
        enough: What may be left to gain before the last step, relative to the function.
    """
    point, value = start.detach(), float(function(start.detach()))
    held = torch.zeros_like(point, dtype=torch.bool)
    for _ in range(STEPS):
        gradient, hessian = derivatives(function, point)
        if not bool(torch.isfinite(gradient).all()) or not bool(torch.isfinite(hessian).all()):
            return None
        units = _units(gradient, hessian)
        gradient = gradient.masked_fill(held, 0.0)
        if not bool((gradient != 0.0).any()):
            break
        free = (~held).nonzero().squeeze(-1)
        direction = torch.zeros_like(point)
        direction[free] = _downhill(gradient[free], hessian[free][:, free])
        slope = float(gradient @ direction)
        # What is left to gain, about half the slope, may drown in the rounding of the function.
        last = -slope <= enough * (1.0 + abs(value))
        moved, reached = _shortened(
            function, point, value, direction, slope, 1 if last else SHORTENINGS
        )
        stalls = not reached < value  # the step fell within the rounding of the function
        if stalls and -slope > PROMISE * (1.0 + abs(value)):
            kinks = _kinks(function, point, value, units) & ~held
            if bool(kinks.any()):
                held |= kinks
                continue
            return nonsmooth.descend(functools.partial(value_and_slope, function), point, units)
        point, value = moved, reached
        if last or stalls:
            break
    if bool(held.any()):
        return nonsmooth.descend(functools.partial(value_and_slope, function), point, units)
    return point


def minimise_blocks(
    function: Callable[[Tensor], Tensor], start: Tensor, blocks: Tensor
) -> Tensor | None:
    """The same for a function that is a sum of functions of blocks of coordinates.

    The Hessian takes as many products with a vector as the widest block has coordinates, however
    many blocks there are.

    Args:
        function: Twice differentiable, of a vector of free reals.
        start: Where to begin, ``(P,)``.
        blocks: The coordinates of each block, ``(B, W)``, -1 where it has fewer than ``W``.

    Returns:
        A local minimiser, or None where a step along Newton's direction does not lead down: the
        curvature is not finite, or the function has an edge.
    """
    point, value = start.detach(), float(function(start.detach()))
    inside, places = blocks >= 0, blocks.clamp_min(0)
    for _ in range(STEPS):
        gradient, hessian = block_derivatives(function, point, places, inside)
        if not bool(torch.isfinite(gradient).all()) or not bool(torch.isfinite(hessian).all()):
            return None
        steps = _downhill_blocks(torch.where(inside, gradient[places], 0.0), hessian)
        direction = torch.zeros_like(point)
        direction[blocks[inside]] = steps[inside]
        slope = float(gradient @ direction)
        last = -slope <= ROUNDING * (1.0 + abs(value))
        moved, reached = _shortened(
            function, point, value, direction, slope, 1 if last else SHORTENINGS
        )
        stalls = not reached < value
        if stalls and -slope > PROMISE * (1.0 + abs(value)):
            return None
        point, value = moved, reached
        if last or stalls:
            break
    return point


def block_derivatives(
    function: Callable[[Tensor], Tensor], at: Tensor, places: Tensor, inside: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient ``(P,)`` and blocks ``(B, W, W)`` of the Hessian, ones where there is none."""
    if isinstance(function, Quick):
        return function.block_derivatives(at, places, inside)
    with torch.enable_grad():
        free = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(free), free, create_graph=True)
        columns = []
        for column, there in zip(places.unbind(1), inside.unbind(1), strict=True):
            along = torch.zeros_like(at)
            along[column[there]] = 1.0
            (product,) = torch.autograd.grad((gradient * along).sum(), free, retain_graph=True)
            columns.append(product[places])
    hessian = torch.stack(columns, -1)
    both = inside.unsqueeze(-1) & inside.unsqueeze(-2)
    one = torch.eye(places.shape[1], dtype=hessian.dtype, device=hessian.device)
    return gradient.detach(), torch.where(both, (hessian + hessian.mT) / 2.0, one)


def _units(gradient: Tensor, hessian: Tensor) -> Tensor:
    """Of each coordinate a step that changes the function by about one."""
    scale = torch.maximum(hessian.diagonal().abs().sqrt(), gradient.abs())
    return torch.where(scale > 0, 1.0 / scale, 1.0).clamp_max(LONGEST)


def value_and_slope(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[float, Tensor]:
    """The value and the gradient."""
    if isinstance(function, Quick):
        return function.value_and_slope(at)
    value, gradient = slope(function, at)
    return float(value), gradient


def slope(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """The value and the gradient by automatic differentiation, as tensors."""
    with torch.enable_grad():
        free = at.clone().requires_grad_()
        value = function(free)
        (gradient,) = torch.autograd.grad(value, free)
    return value.detach(), gradient


def _shortened(
    function: Callable[[Tensor], Tensor],
    point: Tensor,
    value: float,
    direction: Tensor,
    slope: float,
    trials: int,
) -> tuple[Tensor, float]:
    """The first point along a direction, from far to near, where the function falls enough."""
    for trial in range(trials):
        length = 0.25**trial
        moved = point + length * direction
        if torch.equal(moved, point):
            break
        with torch.no_grad():
            reached = float(function(moved))
        if reached <= value + 1e-4 * length * slope:
            return moved, reached
    return point, value


def _kinks(
    function: Callable[[Tensor], Tensor], point: Tensor, value: float, units: Tensor
) -> Tensor:
    """Coordinates along which the function rises both ways, however short the step.

    At such an edge (of a ``Laplace`` density, say) the derivative jumps, and a step along it
    leads nowhere; the coordinate is at its best value, and the others must go on without it.
    """
    kinks = torch.zeros_like(point, dtype=torch.bool)
    with torch.no_grad():
        for i in range(len(point)):
            rises = []
            for size in (KINK, 0.1 * KINK):
                step = torch.zeros_like(point)
                step[i] = size * units[i]
                rises += [float(function(point + sign * step)) - value for sign in (1.0, -1.0)]
            # Where there is no edge, the sum of both ways falls as the square of the step.
            kinks[i] = min(rises) > 0.0 and sum(rises[2:]) > 0.05 * sum(rises[:2])
    return kinks


def derivatives(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient ``(P,)`` and the Hessian ``(P, P)`` by automatic differentiation."""
    if isinstance(function, Quick):
        return function.derivatives(at)
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
    return _downhill_blocks(gradient.unsqueeze(0), hessian.unsqueeze(0))[0]


def _downhill_blocks(gradient: Tensor, hessian: Tensor) -> Tensor:
    """The same in each block, ``(B, W)``."""
    scale = hessian.diagonal(dim1=-2, dim2=-1).abs().sqrt()
    scale = torch.where(scale > 0, scale, gradient.abs())
    scale = torch.where(scale > 0, scale, 1.0)
    values, vectors = torch.linalg.eigh(hessian / scale.unsqueeze(-2) / scale.unsqueeze(-1))
    size = values.abs()
    size = torch.where(size > 1e-12 * size.amax(-1, keepdim=True), size, 1.0)
    turned = (vectors.mT @ (gradient / scale).unsqueeze(-1)).squeeze(-1)
    step: Tensor = -(vectors @ (turned / size).unsqueeze(-1)).squeeze(-1) / scale
    return step
