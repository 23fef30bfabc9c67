"""Anderson acceleration: the next point from a least-squares fit to the last few EM steps.

Reference: Walker & Ni (2011), *Anderson acceleration for fixed-point iterations*, SIAM Journal on
Numerical Analysis 49, 1715-1735.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.iteration.acceleration.em_map import EMMap, State
from ember.inference.iteration.trajectory import Movement
from ember.inference.plan.statistics import Statistics

__all__ = ["Anderson"]


MEMORY = 5  # differences of EM steps


@dataclass(frozen=True)
class AndersonState(State):
    """With the last few points, and their images under the EM map."""

    points: tuple[Tensor, ...] = ()
    images: tuple[Tensor, ...] = ()


class Anderson:
    """Anderson acceleration of the EM map with a short memory and a monotone guard."""

    def init(self, current: Statistics) -> AndersonState:
        """The state where an iteration begins."""
        return AndersonState(current)

    def step(self, em: EMMap, state: AndersonState) -> tuple[AndersonState, Movement]:
        """The state after one iteration, and the EM movement seen in it."""
        current, points, images, after = state.current, state.points, state.images, None
        image = em.m_step(current)
        point, flat = em.coordinates.flatten(current.params), em.coordinates.flatten(image)
        if bool(torch.isfinite(flat).all() and torch.isfinite(point).all()):
            points, images = (*points, point)[-MEMORY - 1 :], (*images, flat)[-MEMORY - 1 :]
            mixed = em.coordinates.unflatten(_mixed(points, images)) if len(points) > 1 else None
            after = em.tried(mixed) if mixed is not None else None
        if after is not None and not after.objective >= current.objective:
            points, images, after = (), (), None  # start the memory afresh
        if after is None:
            after = em.e_step(image)
        gain = after.objective - current.objective
        movement = Movement.over(current.params, image, gain, state.length)
        return AndersonState(after, movement.last, points, images), movement


def _mixed(points: tuple[Tensor, ...], images: tuple[Tensor, ...]) -> Tensor:
    """The combination of past images whose combined residual is smallest."""
    all_images = torch.stack(images)
    residuals = all_images - torch.stack(points)
    differences = (residuals[1:] - residuals[:-1]).T
    weights: Tensor = torch.linalg.lstsq(differences, residuals[-1], driver="gelsd").solution
    return images[-1] - (all_images[1:] - all_images[:-1]).T @ weights
