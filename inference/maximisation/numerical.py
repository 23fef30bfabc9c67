"""Numerical updates: Newton or L-BFGS on the expected log joint, in unconstrained space."""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from ember.inference.maximisation.conditioning import directions
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.maximisation.parameter_plan import ParameterPlan
from ember.inference.numerics import newton
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.parameters.supports import all_within
from ember.inference.plan.statistics import Statistics

__all__ = ["numerical_update"]


LEVEL = 1e-13  # change of a function, relative, that is rounding


def numerical_update(
    plan: ParameterPlan, names: list[str], statistics: Statistics, params: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Newton or L-BFGS on the expected log joint over the named parameters, the others fixed.

    The search is for the way from the present parameters, along well-conditioned directions.
    """
    coordinates = Coordinates({name: plan.parameters[name] for name in names})

    start = coordinates.flatten(params).detach().nan_to_num(posinf=50.0, neginf=-50.0)
    directed, unseen = directions(plan.parameters, plan.designs, names)
    directed = directed.to(start)
    along = directed

    def objective(way: Tensor) -> Tensor:
        moved = {**params, **coordinates.unflatten(start + along @ way)}
        try:
            # A flat prior, where that is all a parameter enters, has no gradient but zero.
            return -expected_log_joint(statistics, moved) + 0.0 * way.sum()
        except ValueError:  # rounding has taken a value to the edge of its prior's support
            return way.sum() * 0.0 + torch.inf

    def derivative(free: Tensor) -> tuple[float, Tensor]:
        free = free.detach().requires_grad_()
        value = objective(free)
        (gradient,) = torch.autograd.grad(value, free)
        if not bool(torch.isfinite(value)):
            return float("inf"), torch.zeros_like(gradient)
        if not bool(torch.isfinite(gradient).all()):
            gradient = _differences(objective, free.detach())
        return float(value.detach()), gradient

    still = torch.zeros_like(start)
    if bool(unseen.any()):
        along = torch.where(_left_open(objective, unseen), 0.0, directed)
    before, slope = derivative(still)
    best = None
    if len(start) <= newton.MOST_PARAMETERS and not _asks_the_model(statistics):
        best = newton.minimise(objective, still)
    if best is not None:
        reached = float(objective(best).detach())
    else:
        here = torch.linalg.solve_triangular(directed, start.unsqueeze(-1), upper=True)[:, 0]
        units = coordinates.units(here, slope)

        def negative(x: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, Any]:
            value, gradient = derivative(units * torch.from_numpy(x).to(units))
            return value, (units * gradient).cpu().numpy()

        found = scipy.optimize.minimize(
            negative, still.cpu().numpy(), jac=True, method="L-BFGS-B",
            options={"maxiter": 100, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20},
        )  # fmt: skip
        best, reached = units * torch.from_numpy(np.asarray(found.x)).to(units), found.fun
    if not reached < before:
        return params
    with torch.no_grad():
        moved = coordinates.unflatten(start + along @ best)
        for name, value in moved.items():
            if not all_within(plan.parameters, {name: value}):
                # So near to an open edge of the support that rounding took it there.
                moved[name] = torch.nextafter(value, params[name])
    return {**params, **{name: value.detach().clone() for name, value in moved.items()}}


def _left_open(objective: Callable[[Tensor], Tensor], unseen: Tensor) -> Tensor:
    """Which of the directions that no design sees change nothing else either, such as a prior.

    Along them slope and curvature are rounding alone, and their quotient would be any number.
    """
    found = unseen.clone()
    with torch.no_grad():
        nothing = torch.zeros_like(unseen, dtype=torch.float64)
        value = float(objective(nothing))
        for i in unseen.nonzero()[:, 0].tolist():
            step = nothing.clone()
            step[i] = 1.0
            moved = [float(objective(step)), float(objective(-step))]
            found[i] = all(abs(each - value) <= LEVEL * (1.0 + abs(value)) for each in moved)
    return found


def _differences(objective: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient by central differences, for where automatic differentiation yields NaN.

    A count in a state whose rate is 0 is such a place: the state is impossible, so its term weighs
    nothing, but its derivative is infinity times 0.
    """
    gradient = torch.zeros_like(at)
    with torch.no_grad():
        for i in range(len(at)):
            step = torch.zeros_like(at)
            size = at[i].abs() if bool(at[i].abs() > 0.0) else at.new_ones(())
            step[i] = torch.finfo(at.dtype).eps ** (1 / 3) * size
            gradient[i] = (objective(at + step) - objective(at - step)) / (2.0 * step[i])
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _asks_the_model(statistics: Statistics) -> bool:
    """Whether an evaluation of the expected log joint runs the model, or plays back its tape.

    For either, Newton's many backward passes cost more than the evaluations of L-BFGS.
    """
    return statistics.prior.opaque is not None or any(
        piece.factors.asks_the_model for piece in statistics.opaque
    )
