"""A search for functions with edges, across which the derivative jumps: Laplace densities, say.

Newton's method and L-BFGS come to a halt at the first edge that they meet. BFGS with a line search
that asks no more than a slope that has lessened does not: it learns the edge as a direction of
large curvature and goes on along it. Where it stops too, gradients are sampled nearby; the shortest
vector of their convex hull leads down unless the point is stationary.

Reference: Lewis & Overton (2013), *Nonsmooth optimization via quasi-Newton methods*, Mathematical
Programming 141, 135-163. Burke, Lewis & Overton (2005), *A robust gradient sampling algorithm for
nonsmooth, nonconvex optimization*, SIAM Journal on Optimization 15, 751-779.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import scipy.optimize
import torch
from torch import Tensor

from ember.inference.numerics.draws import Draws

__all__ = ["Derivative", "descend", "search"]


Derivative = Callable[[Tensor], tuple[float, Tensor]]
STEPS = 200
TRIALS = 40  # of a line search: doublings, then halvings
LOWERS, LESSENS = 1e-4, 0.5  # shares of the slope, of a step that is long enough and not too long
NOTHING = 1e-14  # a gain, relative, that is rounding
STALLS = 5  # steps without one
RADII = (1e-1, 1e-2, 1e-3, 1e-5)  # within which gradients are sampled, in units
SAMPLES = 100  # of them at most
ROUNDS = 4  # of sampling and descending in turn
WORTH = 1e-10  # a gain, relative, after which another is tried


@dataclass(frozen=True)
class _Point:
    x: Tensor
    value: float
    gradient: Tensor


def search(derivative: Derivative, start: Tensor, units: Tensor) -> Tensor:
    """A local minimiser near ``start``, below all points that sampled directions lead to.

    Args:
        derivative: The function and its gradient, of a vector of free reals.
        start: Where to begin, ``(P,)``.
        units: Of the free reals: a step that changes the function by about one, ``(P,)``.
    """
    function = _in_units(derivative, start, units)
    point = _point_at(function, torch.zeros_like(start))
    for _ in range(ROUNDS):
        before = point.value
        point = _sampled(function, _quasi_newton(function, point))
        if not before - point.value > WORTH * (1.0 + abs(before)):
            break
    return start + units * point.x


def descend(derivative: Derivative, start: Tensor, units: Tensor) -> Tensor:
    """The first part of the search alone: quasi-Newton steps."""
    function = _in_units(derivative, start, units)
    return start + units * _quasi_newton(function, _point_at(function, torch.zeros_like(start))).x


def _in_units(derivative: Derivative, start: Tensor, units: Tensor) -> Derivative:
    def function(x: Tensor) -> tuple[float, Tensor]:
        value, gradient = derivative(start + units * x)
        return value if math.isfinite(value) else math.inf, (units * gradient).nan_to_num()

    return function


def _point_at(function: Derivative, x: Tensor) -> _Point:
    return _Point(x, *function(x))


def _quasi_newton(function: Derivative, point: _Point) -> _Point:
    inverse, stalled = torch.eye(len(point.x), dtype=point.x.dtype), 0
    for _ in range(STEPS):
        direction = -(inverse @ point.gradient)
        moved = _line_search(function, point, direction)
        if moved is point:
            break
        gained = point.value - moved.value > NOTHING * (1.0 + abs(point.value))
        stalled = 0 if gained else stalled + 1
        if stalled >= STALLS:
            return moved
        inverse = _updated(inverse, moved.x - point.x, moved.gradient - point.gradient)
        point = moved
    return point


def _line_search(function: Derivative, point: _Point, direction: Tensor) -> _Point:
    """A step of which the function falls and the slope lessens: the weak conditions of Wolfe."""
    slope = float(point.gradient @ direction)
    if not slope < 0.0:
        return point
    near, far, length, best = 0.0, math.inf, 1.0, point
    for _ in range(TRIALS):
        moved = _point_at(function, point.x + length * direction)
        if not moved.value <= point.value + LOWERS * length * slope:
            far = length
        else:
            best = moved if moved.value < best.value else best
            if not float(moved.gradient @ direction) < LESSENS * slope:
                return moved if moved.value < point.value else point
            near = length
        length = 2.0 * length if far == math.inf else (near + far) / 2.0
    return best


def _updated(inverse: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The inverse Hessian after a step (BFGS), unchanged where the slope did not grow."""
    product = float(step @ change)
    if not product > 0.0 or not math.isfinite(1.0 / product):
        return inverse
    along = inverse @ change
    factor = (1.0 + float(change @ along) / product) / product
    cross = torch.outer(along, step) / product
    updated: Tensor = inverse + factor * torch.outer(step, step) - cross - cross.mT
    return (
        updated
        if bool(updated.isfinite().all())
        else torch.eye(len(step), dtype=step.dtype, device=step.device)
    )


def _sampled(function: Derivative, point: _Point) -> _Point:
    """A lower point along directions sampled nearby, or the same one."""
    draws = Draws(0, point.x.device)
    for radius in RADII:
        for direction in _directions(function, point, radius, draws):
            length = radius
            for _ in range(4):
                moved = _point_at(function, point.x + length * direction)
                if moved.value < point.value - NOTHING * (1.0 + abs(point.value)):
                    return moved
                length *= 0.25
    return point


def _directions(
    function: Derivative, point: _Point, radius: float, draws: Draws
) -> Iterator[Tensor]:
    """Unit vectors: down the hull of gradients nearby, down each of them, and the coordinates."""
    count = len(point.x)
    gradients = [point.gradient]
    for _ in range(min(2 * count, SAMPLES)):
        step = draws.normal((count,))
        moved = _point_at(function, point.x + radius * step / math.sqrt(count))
        if math.isfinite(moved.value):
            gradients.append(moved.gradient)
    for candidate in (_shortest(torch.stack(gradients)), point.gradient):
        if float(candidate.norm()) > 0.0:
            yield -candidate / candidate.norm()
    for axis in torch.eye(count, dtype=point.x.dtype, device=point.x.device):
        yield axis
        yield -axis


def _shortest(gradients: Tensor) -> Tensor:
    """The shortest vector of the convex hull of some vectors, ``(S, P)``."""
    size = gradients.norm(dim=1).amax().clamp_min(torch.finfo(gradients.dtype).tiny)
    rows = gradients / size
    ones = 1e3 * torch.ones(len(rows), 1, dtype=rows.dtype)
    target = torch.cat([rows.new_zeros(rows.shape[1]), ones[0]])
    try:
        weights = scipy.optimize.nnls(
            torch.cat([rows, ones], 1).mT.cpu().numpy(), target.cpu().numpy()
        )[0]
    except RuntimeError:  # too many iterations
        return gradients[0]
    shares = torch.from_numpy(weights).to(rows)
    return (shares / shares.sum()) @ gradients
