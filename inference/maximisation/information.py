r"""The observed information where latents of units have weights at nodes (Louis 1982).

.. math:: I = -\nabla^2 Q(\theta) - \sum_g \operatorname{Var}_q [s_{gq}]

with the expected log joint :math:`Q`, and :math:`s_{gq}` the gradient of the log density of unit
:math:`g` at node :math:`q`, which has a posterior weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.opaque import OpaquePosterior
from ember.inference.factors.units.component import UnitComponent
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.numerics.forward_derivative import ForwardDerivatives
from ember.inference.numerics.newton import derivatives
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.statistics import Statistics

__all__ = ["MOST_PARAMETERS", "Information", "unit_scores"]


MOST_PARAMETERS = 30  # derivatives take as many backward passes, twice
CURVED = 1e-10  # share of the largest eigenvalue of the complete information that is no rounding


@dataclass(frozen=True)
class Information:
    """Gradient and information at the parameters of some statistics, in free coordinates.

    Attributes:
        point: The coordinates ``(P,)``.
        gradient: Of the objective, 0 in coordinates at rest.
        complete: The information of the complete data ``(P, P)``.
        observed: That of the data.
    """

    point: Tensor
    gradient: Tensor
    complete: Tensor
    observed: Tensor

    @classmethod
    def at(cls, coordinates: Coordinates, statistics: Statistics) -> "Information | None":
        """The information; None where it is not finite or the complete one not positive."""
        point = coordinates.flatten(statistics.params)
        rests = coordinates.at_rest(point) | ~point.isfinite()
        if bool(rests.any()):
            return None

        def objective(free: Tensor) -> Tensor:
            return expected_log_joint(statistics, coordinates.unflatten(free)) + 0.0 * free.sum()

        gradient, hessian = derivatives(objective, point)
        missing = torch.zeros_like(hessian)
        for piece in statistics.opaque:
            for component in piece.factors.units:
                missing = missing + _missing(coordinates, statistics, point, component, piece)
        complete = -hessian
        if not bool(torch.isfinite(complete + missing).all() and torch.isfinite(gradient).all()):
            return None
        return cls(point, gradient, complete, complete - missing)

    def ascent(self, least: float) -> Tensor | None:
        """Newton's step, no eigenvalue relative to the complete information below ``least``.

        None where the complete information is not positive. Directions along which nothing is
        curved, as in a matrix of more coordinates than it has entries, stay as they are.
        """
        sizes = self.complete.diagonal().abs().sqrt()
        inverse = torch.where(sizes > 0.0, 1.0 / sizes, 0.0)
        values, vectors = torch.linalg.eigh(self.complete * inverse * inverse.unsqueeze(-1))
        if bool(values[0] < -CURVED * values[-1]):
            return None
        curved = values > CURVED * values[-1]
        units = vectors[:, curved] / values[curved].sqrt() * inverse.unsqueeze(-1)
        rates, turned = torch.linalg.eigh(units.mT @ self.observed @ units)
        units = units @ turned
        step: Tensor = units @ ((units.mT @ self.gradient) / rates.abs().clamp_min(least))
        return step


def _missing(
    coordinates: Coordinates,
    statistics: Statistics,
    point: Tensor,
    component: UnitComponent,
    piece: OpaquePosterior,
) -> Tensor:
    """The variance of the scores of units over their nodes, summed over units."""
    weights = piece.weights[next(iter(component.playback.sites))]
    scores = unit_scores(coordinates, statistics, point, component)
    total = weights.sum(0)
    mean = (weights * scores).sum(1) / torch.where(total > 0.0, total, 1.0)
    far = scores - mean.unsqueeze(1)
    return torch.einsum("pqg,qg,rqg->pr", far, weights, far)


def unit_scores(
    coordinates: Coordinates, statistics: Statistics, point: Tensor, component: UnitComponent
) -> Tensor:
    """The gradient of the log density of each unit at each node, ``(P, Q, G)``."""
    tied = {key: tied for key, (tied, _) in statistics.sums.items()}
    keys = {prior.cells.key for prior in component.priors.values()}
    assert component.at is not None
    with torch.enable_grad():
        free = point.detach().clone().requires_grad_()
        params: Mapping[str, Tensor] = coordinates.unflatten(free)
        natural = {key: tied[key].natural_parameters(params) for key in keys}
        joint = component.joint(natural, component.playback.at(params, component.at.values))
        derivatives_of = ForwardDerivatives([joint], [free])
    eye = torch.eye(len(point), dtype=point.dtype, device=point.device)
    return torch.stack([derivatives_of.along([0], [direction])[0] for direction in eye])
