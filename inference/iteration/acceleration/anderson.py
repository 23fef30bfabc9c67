"""Anderson acceleration: the next point from a least-squares fit to the last few EM steps."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.iteration.acceleration.em_map import EMMap, Step, is_finite
from ember.inference.iteration.convergence import Movement
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.statistics import Statistics

__all__ = ["Anderson"]


class Anderson:
    """Anderson acceleration of the EM map with a short memory and a monotone guard.

    Reference: Walker & Ni (2011), SIAM Journal on Numerical Analysis 49, 1715-1735.
    """

    MEMORY = 5

    def __init__(self, em: EMMap, coordinates: Coordinates) -> None:
        self._em, self._coordinates = em, coordinates
        self._points: list[Tensor] = []
        self._images: list[Tensor] = []
        self._previous = 0.0

    def __call__(self, current: Statistics) -> Step:
        image = self._em.m_step(current)
        length = Coordinates.distance(current.params, image)
        mixed = self._mix(self._coordinates.flatten(current.params), image)
        after = self._em.e_step(mixed) if mixed is not None else None
        if after is not None and not after.objective >= current.objective:
            self._points, self._images, after = [], [], None  # start the memory afresh
        if after is None:
            after = self._em.e_step(image)
        movement = Movement(self._previous, length, after.objective - current.objective)
        self._previous = length
        return Step(after, movement)

    def _mix(self, point: Tensor, image: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The combination of past images whose combined residual is smallest."""
        flat = self._coordinates.flatten(image)
        if not bool(torch.isfinite(flat).all() and torch.isfinite(point).all()):
            return None
        self._points = [*self._points, point][-self.MEMORY - 1 :]
        self._images = [*self._images, flat][-self.MEMORY - 1 :]
        if len(self._points) < 2:
            return None
        residuals = torch.stack(self._images) - torch.stack(self._points)
        differences = (residuals[1:] - residuals[:-1]).T
        weights = torch.linalg.lstsq(differences, residuals[-1], driver="gelsd").solution
        images = torch.stack(self._images)
        mixed = flat - (images[1:] - images[:-1]).T @ weights
        params = self._coordinates.unflatten(mixed)
        return params if is_finite(params) else None
