r"""SQUAREM: a longer step along what two EM steps have in common, kept only where it helps.

Reference: Varadhan & Roland (2008), *Simple and globally convergent methods for accelerating the
convergence of any EM algorithm*, Scandinavian Journal of Statistics 35, 335-353.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.iteration.acceleration.em_map import EMMap, Step, is_finite
from ember.inference.iteration.convergence import Movement
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.statistics import Statistics

__all__ = ["Squarem", "extrapolated"]


class Squarem:
    """SQUAREM's third scheme, with an adaptive bound on the step and a monotone guard."""

    GROWTH = 4.0

    def __init__(self, em: EMMap, coordinates: Coordinates) -> None:
        self._em, self._coordinates = em, coordinates
        self._largest = 1.0

    def __call__(self, current: Statistics) -> Step:
        em = self._em
        first = em.e_step(em.m_step(current))
        second_params = em.m_step(first)
        movement = Movement(
            Coordinates.distance(current.params, first.params),
            Coordinates.distance(first.params, second_params),
            first.objective - current.objective,
        )
        length, jumped = self._jump(current.params, first.params, second_params)
        if jumped is not None:
            landed = em.e_step(jumped)
            if landed.objective >= first.objective:  # also false for NaN
                if length == self._largest:
                    self._largest *= self.GROWTH
                return Step(landed, movement)
            self._largest = max(1.0, self._largest / self.GROWTH)
        elif length == self._largest:
            self._largest *= self.GROWTH
        return Step(em.e_step(second_params), movement)

    def _jump(
        self,
        start: Mapping[str, Tensor],
        first: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
    ) -> tuple[float, dict[str, Tensor] | None]:
        """The length ``a`` and the parameters there; None where ``a`` is 1 or nothing moves."""
        largest = torch.tensor(self._largest, dtype=torch.float64)
        reached, x = extrapolated(self._coordinates, (start, first, second), largest)
        length = float(reached)
        if length == 1.0:
            return 1.0, None
        params = self._coordinates.unflatten(x)
        return length, params if is_finite(params) else None


def extrapolated(
    coordinates: Coordinates,
    steps: tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]],
    largest: Tensor,
) -> tuple[Tensor, Tensor]:
    """The length ``a`` of SQUAREM's jump and the coordinates there, for any leading dims.

    Coordinates on the boundary cannot be extrapolated; they take the second EM step.

    Args:
        coordinates: The free reals of the parameters.
        steps: Where the jump starts, and the parameters after one EM step and after two.
        largest: The bound on the length, of the leading dims' shape.
    """
    x0, x1, x2 = (coordinates.flatten(params) for params in steps)
    r, v = x1 - x0, x2 - 2.0 * x1 + x0
    usable = torch.isfinite(r) & torch.isfinite(v) & ~coordinates.at_rest(x2)
    r, v = torch.where(usable, r, 0.0), torch.where(usable, v, 0.0)
    bend = v.norm(dim=-1)
    length = torch.where(bend > 0.0, r.norm(dim=-1) / bend, 1.0)
    length = torch.minimum(length.clamp_min(1.0), largest)
    a = length.unsqueeze(-1)
    return length, torch.where(usable, x0 + 2.0 * a * r + a**2 * v, x2)
