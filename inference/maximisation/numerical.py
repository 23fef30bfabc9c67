"""Numerical updates: Newton or L-BFGS on the expected log joint, in unconstrained space."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from ember.inference.maximisation.conditioning import directions
from ember.inference.maximisation.objective import expected_log_joint, near
from ember.inference.maximisation.parameter_plan import ParameterPlan
from ember.inference.maximisation.separable import blocks_of
from ember.inference.numerics import newton
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.parameters.supports import all_within
from ember.inference.plan.statistics import Statistics

__all__ = ["Search", "SearchOf", "along", "derivatives_along", "numerical_update"]


Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
LEVEL = 1e-13  # change of a function, relative, that is rounding
MOST_OF_LINES = 150  # coordinates of Newton's method where rows are looked at once
NEARLY = 1e-8  # what is left to gain, relative, before a last step where each takes many passes


def numerical_update(
    plan: ParameterPlan,
    names: list[str],
    statistics: Statistics,
    params: dict[str, Tensor],
    search_of: "SearchOf | None" = None,
) -> dict[str, Tensor]:
    """Newton or L-BFGS on the expected log joint over the named parameters, the others fixed.

    The search is for the way from the present parameters, along well-conditioned directions.

    Args:
        plan: The plan.
        names: The parameters.
        statistics: Expected statistics.
        params: The present parameters.
        search_of: Makes the function that is searched; ``Search`` unless given.
    """
    search = (search_of or Search)(plan, names, statistics, params)
    best = search.newton()
    if best is not None:
        reached = float(search(best).detach())
    else:
        best, reached = search.lbfgs()
    if not reached < search.before:
        return params
    with torch.no_grad():
        moved = search.at(best)
        for name, value in moved.items():
            if not all_within(plan.parameters, {name: value}):
                # So near to an open edge of the support that rounding took it there.
                moved[name] = torch.nextafter(value, params[name])
    return {**params, **{name: value.detach().clone() for name, value in moved.items()}}


def along(
    coordinates: Coordinates, statistics: Statistics, start: Tensor, directions: Tensor, way: Tensor
) -> Tensor:
    """The negative expected log joint at the end of a way from ``statistics.params``."""
    moved = {**statistics.params, **coordinates.unflatten(start + directions @ way)}
    # A flat prior, where that is all a parameter enters, has no gradient but zero.
    return -expected_log_joint(statistics, moved) + 0.0 * way.sum()


def derivatives_along(
    coordinates: Coordinates, statistics: Statistics, start: Tensor, directions: Tensor, way: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient and the Hessian of ``along``."""
    there = {**statistics.params, **coordinates.unflatten(start + directions @ way)}
    statistics = near(statistics, there)
    return newton.derivatives(lambda at: along(coordinates, statistics, start, directions, at), way)


class Search:
    """The negative expected log joint as a function of the way from the present parameters."""

    def __init__(
        self,
        plan: ParameterPlan,
        names: list[str],
        statistics: Statistics,
        params: dict[str, Tensor],
    ) -> None:
        self._plan, self._names = plan, names
        self._statistics, self._here = statistics, dataclasses.replace(statistics, params=params)
        self._coordinates = Coordinates({name: plan.parameters[name] for name in names})
        start = self._coordinates.flatten(params).detach()
        self._start = start.nan_to_num(posinf=50.0, neginf=-50.0)
        directed, unseen = directions(plan.parameters, plan.designs, names)
        self._directed = self._along = directed.to(start)
        if bool(unseen.any()):
            self._along = torch.where(_left_open(self, unseen), 0.0, self._directed)
        self._still = torch.zeros_like(start)
        self.before, self._slope = self._derivative(self._still)

    def at(self, way: Tensor) -> dict[str, Tensor]:
        """The parameters at the end of a way."""
        return self._coordinates.unflatten(self._start + self._along @ way)

    def __call__(self, way: Tensor) -> Tensor:
        try:
            return along(self._coordinates, self._here, self._start, self._along, way)
        except ValueError:  # rounding has taken a value to the edge of its prior's support
            return way.sum() * 0.0 + torch.inf

    def value_and_slope(self, at: Tensor) -> tuple[float, Tensor]:
        """See ``newton``."""
        value, gradient = newton.slope(self.__call__, at)
        return float(value), gradient

    def derivatives(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """See ``newton``."""
        try:
            return derivatives_along(self._coordinates, self._here, self._start, self._along, at)
        except ValueError:  # rounding has taken a value to the edge of its prior's support
            return newton.derivatives(self.__call__, at)

    def block_derivatives(
        self, at: Tensor, places: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See ``newton``."""
        return newton.block_derivatives(self.__call__, at, places, inside)

    def newton(self) -> Tensor | None:
        """The way found by Newton's method; None where that is too costly or fails."""
        if self._is_straight:
            blocks = blocks_of(self._plan, self._names, self._statistics)
            found = None if blocks is None else newton.minimise_blocks(self, self._still, blocks)
            if found is not None:
                return found
        count = newton.MOST_PARAMETERS
        too_many = len(self._start) > (MOST_OF_LINES if self._is_of_lines else count)
        if too_many or _asks_the_model(self._statistics):
            return None
        if any(piece.factors.units for piece in self._statistics.opaque):
            return newton.minimise(self, self._still, NEARLY)
        return newton.minimise(self, self._still)

    @property
    def _is_of_lines(self) -> bool:
        """Whether derivatives of second order take no passes over the rows beyond a first."""
        pieces = self._statistics.opaque
        return bool(pieces) and all(p.weights.keys() <= p.factors.predictors.keys() for p in pieces)

    @property
    def _is_straight(self) -> bool:
        """Whether the way is along the coordinates themselves."""
        one = torch.eye(len(self._start), dtype=self._along.dtype, device=self._along.device)
        return torch.equal(self._along, one)

    def lbfgs(self) -> tuple[Tensor, float]:
        """The way found by L-BFGS, and the function there."""
        end = self._start.unsqueeze(-1)
        here = torch.linalg.solve_triangular(self._directed, end, upper=True)[:, 0]
        units = self._coordinates.units(here, self._slope)

        def scaled(x: Array) -> tuple[float, Array]:
            value, gradient = self._derivative(units * torch.from_numpy(x).to(units))
            return value, (units * gradient).cpu().numpy()

        result = scipy.optimize.minimize(
            scaled, self._still.cpu().numpy(), jac=True, method="L-BFGS-B",
            options={"maxiter": 100, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20},
        )  # fmt: skip
        return units * torch.from_numpy(np.asarray(result.x)).to(units), result.fun

    def _derivative(self, way: Tensor) -> tuple[float, Tensor]:
        value, gradient = newton.value_and_slope(self, way.detach())
        if not math.isfinite(value):
            return math.inf, torch.zeros_like(gradient)
        if not bool(torch.isfinite(gradient).all()):
            gradient = _differences(self, way.detach())
        return value, gradient


SearchOf = Callable[[ParameterPlan, list[str], Statistics, dict[str, Tensor]], Search]


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
