r"""The observed information where what the latents hide of it is at hand (Louis 1982).

.. math:: I = -\nabla^2 Q(\theta) - \sum_g \operatorname{Var}_q [s_{gq}]

with the expected log joint :math:`Q`, and :math:`s_{gq}` the gradient of the log density of unit
:math:`g` at node :math:`q`, which has a posterior weight. Those of a plain mixture are its rows,
each with the components for nodes.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.opaque import OpaquePosterior
from ember.inference.factors.tied import TiedFactors
from ember.inference.factors.units.component import UnitComponent
from ember.inference.maximisation.objective import expected_log_joint, near
from ember.inference.numerics.batched_derivatives import products
from ember.inference.numerics.forward_derivative import ForwardDerivatives, jacobian
from ember.inference.numerics.newton import derivatives
from ember.inference.numerics.threads import one_thread
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.statistics import Statistics

__all__ = ["MOST_PARAMETERS", "CompleteInformation", "Information", "Missing", "unit_scores"]


MOST_PARAMETERS = 30  # derivatives take as many backward passes, twice
CURVED = 1e-10  # share of the largest eigenvalue of the complete information that is no rounding

Missing = Callable[[Coordinates, Tensor], Tensor | None]
"""The missing information at some free reals ``(P,)``, ``(P, P)``; None where it is not known."""


@dataclass(frozen=True)
class Information:
    """Gradient and information at the parameters of some statistics, in free coordinates.

    Attributes:
        point: The coordinates ``(P,)``.
        gradient: Of the objective, 0 in coordinates at rest.
        complete: The information of the complete data ``(P, P)``.
        observed: That of the data.
        by_node: The gradient of all units together at each node, ``(P, Q)``: of nodes that are
            draws, one for each.
    """

    point: Tensor
    gradient: Tensor
    complete: Tensor
    observed: Tensor
    by_node: Tensor

    @classmethod
    def at(cls, coordinates: Coordinates, statistics: Statistics) -> "Information | None":
        """The information; None where it is not finite or the complete one not positive."""
        point = coordinates.flatten(statistics.params)
        rests = coordinates.at_rest(point) | ~point.isfinite()
        if bool(rests.any()):
            return None

        gradient, hessian = _expected_derivatives(coordinates, statistics, point)
        missing, by_node = torch.zeros_like(hessian), hessian.new_zeros(len(point), 1)
        for piece in statistics.opaque:
            for component in piece.factors.units:
                weights = piece.weights[next(iter(component.playback.sites))]
                scores = unit_scores(coordinates, statistics, point, component, piece)
                missing = missing + _missing(weights, scores)
                if component.monte_carlo is not None:
                    own = (weights * scores).sum(2)
                    by_node = own + (by_node if by_node.shape == own.shape else 0.0)
        complete = -hessian
        if not bool(torch.isfinite(complete + missing).all() and torch.isfinite(gradient).all()):
            return None
        return cls(point, gradient, complete, complete - missing, by_node)

    @classmethod
    def with_missing(
        cls, coordinates: Coordinates, statistics: Statistics, missing: Missing
    ) -> "Information | None":
        """The information where what is missing has a closed form; None where it is not finite.

        Coordinates at rest carry none.
        """
        point = coordinates.flatten(statistics.params)
        active = ~coordinates.at_rest(point) & point.isfinite() & coordinates.influential
        near = torch.where(active, point, coordinates.inside(point))
        with one_thread():
            hidden = missing(coordinates, near)
            if hidden is None:
                return None
            of_complete = CompleteInformation(coordinates, statistics, active)
            gradient, complete = of_complete.gradient, of_complete.matrix()
        hidden = torch.where(active & active.unsqueeze(-1), hidden, 0.0)
        if not bool(torch.isfinite(complete + hidden).all() and torch.isfinite(gradient).all()):
            return None
        return cls(point, gradient, complete, complete - hidden, hidden.new_zeros(len(point), 1))

    def ascent(self, least: float) -> Tensor | None:
        """Newton's step, no eigenvalue relative to the complete information below ``least``.

        None where the complete information is not positive. Directions along which nothing is
        curved, as in a matrix of more coordinates than it has entries, stay as they are.
        """
        if self._principal is None:
            return None
        units, rates = self._principal
        step: Tensor = units @ ((units.mT @ self.gradient) / rates.abs().clamp_min(least))
        return step

    def metric(self, least: float) -> Tensor | None:
        """The matrix that takes the gradient to the step of ``ascent``, as far as one can trust it.

        A negative rate is the error of a sketch near a maximum, so rates that are no larger than
        the most negative say nothing.
        """
        if self._principal is None:
            return None
        units, rates = self._principal
        least = min(max(least, -float(rates[0])), 1.0)
        return (units / rates.clamp_min(least)) @ units.mT

    @functools.cached_property
    def _principal(self) -> tuple[Tensor, Tensor] | None:
        """Directions in which both are diagonal, a column each, and the rates along them."""
        units = self._units(self.complete)
        if units is None:
            return None
        rates, turned = torch.linalg.eigh(units.mT @ self.observed @ units)
        return units @ turned, rates

    def inverse(self) -> Tensor | None:
        """That of the observed information, zero along what is not curved; None if negative."""
        units = self._units(self.observed)
        return None if units is None else units @ units.mT

    def _units(self, information: Tensor) -> Tensor | None:
        """Columns in which some information is one, for what it curves; None if it is negative."""
        sizes = self.complete.diagonal().abs().sqrt()
        inverse = torch.where(sizes > 0.0, 1.0 / sizes, 0.0)
        values, vectors = torch.linalg.eigh(information * inverse * inverse.unsqueeze(-1))
        if bool(values[0] < -CURVED * values[-1]):
            return None
        curved = values > CURVED * values[-1]
        units: Tensor = vectors[:, curved] / values[curved].sqrt() * inverse.unsqueeze(-1)
        return units


class CompleteInformation:
    """Minus the Hessian of the expected log joint: no pass over the data.

    Args:
        coordinates: The free reals of the parameters.
        statistics: Of the place.
        active: By which coordinates to differentiate, ``(P,)``; it is 0 by the others.
    """

    def __init__(self, coordinates: Coordinates, statistics: Statistics, active: Tensor) -> None:
        point = coordinates.flatten(statistics.params)
        place = torch.where(active, point, coordinates.inside(point))
        statistics = near(statistics, coordinates.unflatten(place))
        self._active, self._together = active, not statistics.opaque
        with torch.enable_grad():
            self._free = place.requires_grad_()
            value = expected_log_joint(statistics, coordinates.unflatten(self._free))
            (self._slope,) = torch.autograd.grad(value, self._free, create_graph=True)

    @property
    def gradient(self) -> Tensor:
        """The gradient of the expected log joint, which is that of the objective, ``(P,)``."""
        return torch.where(self._active, self._slope.detach(), 0.0)

    def products(self, vectors: Tensor) -> Tensor:
        """The products with some vectors ``(B, P)``.

        Raises:
            RuntimeError: If an operation cannot be differentiated twice.
        """
        found = products(self._slope, self._free, vectors, self._together)
        return torch.where(self._active, -found, 0.0)

    def matrix(self) -> Tensor:
        """All of it, ``(P, P)``; raises what ``products`` raises."""
        places, count = self._active.nonzero()[:, 0], len(self._active)
        eye = torch.eye(count, dtype=self._free.dtype, device=self._free.device)
        return torch.zeros_like(eye).index_copy(0, places, self.products(eye[places]))


def _missing(weights: Tensor, scores: Tensor) -> Tensor:
    """The variance of the scores of units over their nodes, summed over units."""
    total = weights.sum(0)
    mean = (weights * scores).sum(1) / torch.where(total > 0.0, total, 1.0)
    far = scores - mean.unsqueeze(1)
    return torch.einsum("pqg,qg,rqg->pr", far, weights.expand(scores.shape[1:]), far)


def _expected_derivatives(
    coordinates: Coordinates, statistics: Statistics, point: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient and the Hessian of the expected log joint.

    What is played back takes many passes over the rows, but few coordinates enter it.
    """
    pooled = dataclasses.replace(statistics, opaque=())

    def of_sums(free: Tensor) -> Tensor:
        return expected_log_joint(pooled, coordinates.unflatten(free)) + 0.0 * free.sum()

    gradient, hessian = derivatives(of_sums, point)
    for piece in statistics.opaque:
        own = _coordinates_of(coordinates, piece)

        def of_piece(part: Tensor, piece: OpaquePosterior = piece, own: Tensor = own) -> Tensor:
            params = coordinates.unflatten(point.index_put((own,), part))
            return piece.expected_log_prob(params) + 0.0 * part.sum()

        if len(own):
            slope, curvature = derivatives(of_piece, point[own])
            gradient = gradient.index_add(0, own, slope)
            hessian = hessian.index_put((own[:, None], own), curvature, accumulate=True)
    return gradient, hessian


def _coordinates_of(coordinates: Coordinates, piece: OpaquePosterior) -> Tensor:
    """The coordinates that enter the sites without sufficient statistics."""
    names = piece.factors.read_by(piece.weights)
    slices = coordinates.slices()
    every = [slices[name] for name in slices if name in names]
    return torch.cat(every) if every else torch.zeros(0, dtype=torch.long)


def unit_scores(
    coordinates: Coordinates,
    statistics: Statistics,
    point: Tensor,
    component: UnitComponent,
    piece: OpaquePosterior,
) -> Tensor:
    """The gradient of the log density of each unit at each node, ``(P, Q, G)``.

    By a prior it is linear in the natural parameters' own; the rest is played back.
    """
    assert component.at is not None
    values, own = component.at.values, _coordinates_of(coordinates, piece)
    scores = torch.zeros(len(point), *component.at.log_weights.shape, dtype=point.dtype)
    with torch.enable_grad():
        part = point[own].clone().requires_grad_()
        params = coordinates.unflatten(point.index_put((own,), part))
        played = component.playback.at(params, values)
        derivatives_of = ForwardDerivatives([torch.stack(list(played.values())).sum(0)], [part])
    for place, direction in zip(own, torch.eye(len(own), dtype=point.dtype), strict=True):
        scores[place] = derivatives_of.along([0], [direction])[0]
    tied = {key: tied for key, (tied, _) in statistics.sums.items()}
    for name, prior in component.priors.items():
        of_prior = functools.partial(_natural, tied[prior.cells.key], coordinates)
        slopes = jacobian(of_prior, point)  # (C, K, P)
        none = prior.log_prob(torch.zeros_like(slopes[..., 0]), values[name])
        for i in range(len(point)):
            if bool((slopes[..., i] != 0).any()):
                scores[i] += prior.log_prob(slopes[..., i].contiguous(), values[name]) - none
    return scores


def _natural(tied: TiedFactors, coordinates: Coordinates, free: Tensor) -> Tensor:
    """The natural parameters of tied factors as a function of the free coordinates."""
    return tied.natural_parameters(coordinates.unflatten(free))
