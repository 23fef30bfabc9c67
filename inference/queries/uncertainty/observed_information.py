r"""The observed information: minus the Hessian of the objective at the estimates.

By Fisher's identity the gradient of the objective at any parameters costs one E-step, whatever the
latents, so two E-steps for each free parameter :math:`u_i`, which may share a pass over the data,
give a column of

.. math:: I_{ij} = -\frac{\partial^2}{\partial u_i \, \partial u_j}
          \log p(x, \hat\theta(u)) \approx
          -\frac{g_j(\hat u + h_i e_i) - g_j(\hat u - h_i e_i)}{2 h_i}.

The objective is what the fit maximised, for MAP with the log prior (a density in the space in which
the model declares its sites, without a Jacobian), as a function on the parameters: where its
gradient vanishes, what follows for the parameters does not depend on the coordinates :math:`u`
(logarithms, log-ratios, log-Cholesky factors). Where it does not, the estimate lies at a boundary,
and such coordinates are held there.

Densities with edges, such as ``Laplace``, have slopes that jump and no curvature of use. There the
scores of independent rows take its place, :math:`\sum_n s_n s_n^\top`, which has the same
expectation if the model is right; where rows are not independent, differences over a standard
deviation.

References: Jamshidian & Jennrich (2000), *Standard errors for EM estimation*, JRSS B 62, 257-270;
Berndt, Hall, Hall & Hausman (1974), *Estimation and inference in nonlinear structural models*,
Annals of Economic and Social Measurement 3, 653-665.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.maximisation.edges import has_edges
from ember.inference.maximisation.objective import expected_log_joint, near, score
from ember.inference.numerics import newton
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.optimality.vanishing import off_zero
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Params
from ember.inference.plan.statistics import Statistics
from ember.inference.queries.uncertainty.boundaries import (
    are_logarithms,
    at_boundary,
    on_their_way,
)
from ember.inference.queries.uncertainty.differences import Several, smoothed, steps_around
from ember.inference.queries.uncertainty.passes import Passes
from ember.inference.queries.uncertainty.sandwich import Rows, spread_of_scores

__all__ = ["ObservedInformation", "observed_information"]


STEP = 1e-4  # of a difference of gradients, in standard deviations or units of a logarithm
SHORT = 30.0  # times shorter than that, and a difference is taken once more
MOST = 10_000  # free parameters
LONGEST = 1e4  # times as long as at first

NO_CURVATURE = (
    "the objective has no finite curvature at the estimates, so these have no standard errors; "
    "fit.stop_reason says how the fit ended."
)
TOO_MANY = (
    "the standard errors of {0} free parameters take a matrix of as many rows and columns, and "
    "twice as many passes over the data; at most {1} are allowed: hold some at their estimates "
    "with pyro.condition."
)


@dataclass(frozen=True)
class ObservedInformation:
    """The information about those coordinates that are free, around the estimates.

    Attributes:
        coordinates: All free reals of the parameters.
        point: Their values ``(P,)``; variances that are zero in all but name are a little larger.
        places: Which of them are free ``(A,)``: one for each dimension of the parameters, but for
            those at a boundary.
        at_boundary: Which are held where they are, at a boundary or on their way to one, ``(P,)``.
        steps: The length of the differences ``(A,)``.
        gradient: That of the objective by the free coordinates, ``(A,)``.
        matrix: The information ``(A, A)``.
        noise: How far derivatives that should be equal differ, in units of the information's
            diagonal, at most.
        complete: That of the expected log joint (nothing latent), its diagonal ``(A,)``.
        has_edges: Whether densities have edges, so that the gradient says nothing.
    """

    coordinates: Coordinates
    point: Tensor
    places: Tensor
    at_boundary: Tensor
    steps: Tensor
    gradient: Tensor
    matrix: Tensor
    complete: Tensor
    noise: float
    has_edges: bool = False


def observed_information(
    data: Passes, params: Params, is_infinite: bool = False
) -> ObservedInformation:
    """The observed information at the estimates, by two E-steps for each free parameter.

    Args:
        data: The data, with the plan of the model.
        params: The estimates.
        is_infinite: Whether the fit has found some of them to run to infinity.

    Raises:
        ValueError: If the objective has no finite curvature there, or parameters are too many.
    """
    plan, e_step = data.plan, data.statistics
    coordinates, estimates = Coordinates(plan.structure.parameters), e_step(params)
    if not math.isfinite(estimates.objective) or estimates.objective <= 0.1 * IMPOSSIBLE:
        raise ValueError(NO_CURVATURE)
    away = off_zero(plan, estimates)
    moved = any(not torch.equal(away[name], value) for name, value in estimates.params.items())
    current = e_step(away) if moved else estimates
    point, slopes = coordinates.flatten(current.params), score(current, coordinates)
    held = at_boundary(plan, e_step, coordinates, estimates, is_infinite)
    held &= coordinates.independent(point.nan_to_num())
    places = (coordinates.independent(point.nan_to_num()) & ~held).nonzero()[:, 0]
    if len(places) > MOST:
        raise ValueError(TOO_MANY.format(len(places), MOST))
    complete = _complete_information(coordinates, current, point, places)

    def derivatives(vectors: Iterable[Tensor]) -> Iterator[Tensor]:
        for found in data.statistics_at(map(coordinates.unflatten, vectors)):
            if found is None:
                raise ValueError(NO_CURVATURE)
            yield score(found, coordinates)[places]

    steps = _steps(coordinates, point, slopes, places, complete)
    edged = has_edges(plan, current)
    if edged:
        matrix = _by_scores(data, coordinates, point, places, steps)
        if matrix is None:
            matrix, _ = smoothed(derivatives, point, places, steps)
        noise = 0.0
    else:
        matrix, steps, noise = _differences(derivatives, coordinates, point, places, steps)
    if not bool(matrix.isfinite().all()) or not bool(slopes[places].isfinite().all()):
        raise ValueError(NO_CURVATURE)
    gone = on_their_way(e_step, coordinates, current, places, slopes[places], matrix.diagonal())
    held[places[gone]], kept = True, ~gone
    return ObservedInformation(
        coordinates,
        point,
        places[kept],
        held,
        steps[kept],
        slopes[places[kept]],
        matrix[kept][:, kept],
        complete[kept],
        noise,
        edged,
    )


def _by_scores(
    data: Passes, coordinates: Coordinates, point: Tensor, places: Tensor, steps: Tensor
) -> Tensor | None:
    """The information by the products of the rows' scores, and that of the prior.

    None where rows are not independent.
    """

    def log_prior(free: Tensor) -> Tensor:
        params = coordinates.unflatten(point.index_put((places,), free))
        return data.plan.prior.log_prob(params) + 0.0 * free.sum()

    _, prior = newton.derivatives(log_prior, point[places])
    rows = Rows(coordinates.unflatten(point), coordinates, point, places, steps)
    try:
        return spread_of_scores(data, rows) - prior
    except ValueError:
        return None


def _differences(
    derivatives: Several,
    coordinates: Coordinates,
    point: Tensor,
    places: Tensor,
    steps: Tensor,
) -> tuple[Tensor, Tensor, float]:
    """Minus the derivative of a gradient, the steps by which it was found, and their noise.

    Where the latents hide nearly all, as next to a variance of zero, steps that suit the expected
    log joint are too short for the objective.
    """

    def columns(which: Tensor) -> Tensor:
        found = steps_around(derivatives, point, places[which], steps[which])
        each = [(down - up) / width for up, down, width in found]
        return torch.stack(each) if each else point.new_zeros(0, len(places))

    matrix = columns(torch.arange(len(places)))
    better = STEP * matrix.diagonal().abs().rsqrt()
    logs = are_logarithms(coordinates)[places]
    better = torch.where(logs, better.clamp_max(STEP), better)
    short = (better > SHORT * steps).nonzero()[:, 0]
    steps = steps.index_copy(0, short, torch.minimum(better, LONGEST * steps)[short])
    matrix[short] = columns(short)
    # Of two derivatives that should be equal the one by the longer step, in its own units, counts.
    units = matrix.diagonal().abs().sqrt()
    ratio = (steps * units).unsqueeze(0) / (steps * units).unsqueeze(-1)
    is_other = (ratio > SHORT) & ~(ratio < 1.0 / SHORT)
    own = torch.where(is_other, 0.0, torch.where(ratio < 1.0 / SHORT, 1.0, 0.5))
    apart = torch.where(own == 0.5, (matrix - matrix.mT).abs(), 0.0) / units / units.unsqueeze(-1)
    noise = float(apart.nan_to_num(posinf=0.0).amax()) if len(places) else 0.0
    return own * matrix + (1.0 - own) * matrix.mT, steps, noise


def _complete_information(
    coordinates: Coordinates, statistics: Statistics, point: Tensor, places: Tensor
) -> Tensor:
    """The diagonal of minus the Hessian of the expected log joint; zero where it has none."""
    place, nothing = coordinates.inside(point), point.new_zeros(len(places))
    statistics = near(statistics, coordinates.unflatten(place))
    with torch.enable_grad():
        free = place.requires_grad_()
        value = expected_log_joint(statistics, coordinates.unflatten(free))
        if not value.requires_grad:
            return nothing
        try:
            (gradient,) = torch.autograd.grad(value, free, create_graph=True)
            if not gradient.requires_grad:
                return nothing
            rows = [
                torch.autograd.grad(gradient[i], free, retain_graph=True, allow_unused=True)[0]
                for i in places.tolist()
            ]
        except RuntimeError:  # an operation that cannot be differentiated twice
            return nothing
    pairs = zip(rows, places.tolist(), strict=True)
    diagonal = [nothing.new_zeros(()) if row is None else -row[i] for row, i in pairs]
    return torch.stack(diagonal).detach() if diagonal else nothing


def _steps(
    coordinates: Coordinates, point: Tensor, gradient: Tensor, places: Tensor, complete: Tensor
) -> Tensor:
    """A length for the differences along each coordinate, whatever its units."""
    units = coordinates.units(point.nan_to_num(), gradient)[places]
    deviations = complete.abs().rsqrt()
    deviations = torch.where(deviations.isfinite(), deviations, units)
    logs = are_logarithms(coordinates)[places]
    return STEP * torch.where(logs, torch.minimum(deviations, units), deviations)
