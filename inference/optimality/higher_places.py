"""Ways to a place above one at which a loop has come to rest: off a slope, an edge or a saddle."""

import math

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from ember.inference.maximisation.objective import expected_log_joint, score
from ember.inference.numerics import nonsmooth
from ember.inference.optimality.curvature import Curvature
from ember.inference.optimality.nearby import EStep, evaluated
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.statistics import Statistics

__all__ = ["beyond_edges", "climbed", "peaks", "slid", "way_out"]


Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
LENGTHS = (0.3, 1.0, 3.0, 10.0)  # of the step out of a saddle, in standard deviations
NEAR = 1e-4  # of a Newton step, within which a kink is looked for
SHORTENINGS = (1.0, 0.25, 0.05, 0.01)  # of a Newton step
SLIDES = 30  # steps of L-BFGS
RISE = 1e-10  # of the objective, relative, that rounding does not explain


def climbed(
    e_step: EStep, coordinates: Coordinates, statistics: Statistics, curvature: Curvature
) -> Statistics | None:
    """A higher place along Newton's step for the expected log joint, or None."""
    direction = curvature.direction(curvature.scaled(curvature.gradient))
    floor = statistics.objective + 1e-5 * RISE * (1.0 + abs(statistics.objective))
    for shortening in SHORTENINGS:
        moved = evaluated(e_step, coordinates.unflatten(curvature.point + shortening * direction))
        if moved is not None and moved.objective > floor:
            return moved
    return None


def slid(
    e_step: EStep,
    coordinates: Coordinates,
    statistics: Statistics,
    curvature: Curvature,
    held: Tensor,
) -> Statistics | None:
    """A higher place by L-BFGS on the objective itself, some coordinates held; or None.

    Where a variance has vanished, EM stands still: what moves the latents' location is known to
    the expected log joint to within that variance, however much the data ask for another one.

    Args:
        e_step: One pass over the data.
        coordinates: The free reals of the parameters.
        statistics: Of the place where the loop has come to rest.
        curvature: There.
        held: The coordinates that stay, ``(P,)``.
    """
    point = curvature.point
    free = (~held & ~coordinates.at_rest(point) & point.isfinite()).nonzero()[:, 0]
    units = coordinates.units(point.nan_to_num(), curvature.gradient)[free]
    best = statistics

    def downhill(way: Array) -> tuple[float, Array]:
        nonlocal best
        there = point.index_add(0, free, units * torch.from_numpy(way).to(units))
        found = evaluated(e_step, coordinates.unflatten(there))
        if found is None:
            return math.inf, np.zeros_like(way)
        best = found if found.objective > best.objective else best
        slope = score(found, coordinates)[free]
        return -found.objective, -(units * slope).nan_to_num().cpu().numpy()

    start = np.zeros(len(free))
    if len(free):
        scipy.optimize.minimize(
            downhill, start, jac=True, method="L-BFGS-B",
            options={"maxiter": SLIDES, "ftol": 1e-9, "gtol": 1e-8},
        )  # fmt: skip
    floor = statistics.objective + RISE * (1.0 + abs(statistics.objective))
    return best if best.objective > floor else None


def beyond_edges(
    e_step: EStep, coordinates: Coordinates, statistics: Statistics, curvature: Curvature
) -> Statistics | None:
    """A higher place, where a search for densities with edges finds one; None at a true edge.

    What raises the expected log joint raises the objective, so the search passes over no data.
    """
    point = curvature.point
    active = (~coordinates.at_rest(point) & point.isfinite()).nonzero()[:, 0]
    inside = coordinates.inside(point)

    def derivative(values: Tensor) -> tuple[float, Tensor]:
        with torch.enable_grad():
            free = values.detach().requires_grad_()
            params = coordinates.unflatten(inside.index_put((active,), free))
            try:
                value = -expected_log_joint(statistics, params)
                (gradient,) = torch.autograd.grad(value, free)
            except (RuntimeError, ValueError, ArithmeticError):  # it has no value there
                return math.inf, torch.zeros_like(values)
        return float(value.detach()), gradient

    slopes, sizes = curvature.gradient.abs(), torch.zeros_like(point)
    if curvature.matrix is not None:
        sizes = curvature.matrix.diagonal().abs().sqrt()
    scale = torch.maximum(slopes, sizes)[active]
    own = coordinates.units(point.nan_to_num(), curvature.gradient)[active]
    # Along an even number of kinks the slope may be rounding, and so no measure.
    units = torch.where(scale > 0.0, torch.minimum(1.0 / scale, own), own)
    found = nonsmooth.search(derivative, point[active], units)
    moved = evaluated(e_step, coordinates.unflatten(point.index_put((active,), found)))
    return moved if moved is not None and moved.objective > statistics.objective else None


def peaks(e_step: EStep, coordinates: Coordinates, curvature: Curvature) -> bool:
    """Whether the slope turns next to a place where the gradient is steep, as at a median.

    A density with a kink has its maximum there, and no gradient that vanishes.
    """
    direction = curvature.direction(curvature.scaled(curvature.gradient))
    ahead = evaluated(e_step, coordinates.unflatten(curvature.point + NEAR * direction))
    return ahead is not None and float(score(ahead, coordinates) @ direction) <= 0.0


def way_out(
    e_step: EStep,
    coordinates: Coordinates,
    statistics: Statistics,
    curvature: Curvature,
    direction: Tensor,
) -> Statistics | None:
    """A higher place near a saddle, along a direction of positive curvature; None if none is found.

    Args:
        e_step: One pass over the data.
        coordinates: The free reals of the parameters.
        statistics: Of the place where the loop has come to rest.
        curvature: There.
        direction: The direction, of length one standard deviation.
    """
    if float(direction @ curvature.gradient) < 0.0:
        direction = -direction
    best = statistics
    floor = statistics.objective + RISE * (1.0 + abs(statistics.objective))
    for sign in (1.0, -1.0):
        for length in LENGTHS:
            params = coordinates.unflatten(curvature.point + sign * length * direction)
            moved = evaluated(e_step, params)
            if moved is None or not moved.objective > max(best.objective, floor):
                break
            best = moved
        if best is not statistics:
            return best
    return None
