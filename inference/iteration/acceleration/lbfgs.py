"""L-BFGS on the objective, with the gradient that an E-step gives by Fisher's identity."""

import torch
from torch import Tensor

from ember.inference.iteration.acceleration.em_map import EMMap, Step, is_finite
from ember.inference.iteration.convergence import Movement
from ember.inference.maximisation.objective import score
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.statistics import Statistics

__all__ = ["Lbfgs"]


class Lbfgs:
    r"""A few EM steps, then L-BFGS on the objective itself, with EM as the fallback.

    By Fisher's identity the gradient of the objective at ``theta`` is that of the expected log
    joint with the statistics held fixed, so a value and a gradient cost one pass over the data
    and no differentiation through it. A step must raise the objective; one that does not,
    halved a few times, is replaced by an EM step and the memory is cleared.

    Reference: Lange (1995), Journal of the Royal Statistical Society B 57, 425-437.
    """

    WARM_UP, MEMORY, HALVINGS, ARMIJO = 5, 10, 3, 1e-4

    def __init__(self, em: EMMap, coordinates: Coordinates) -> None:
        self._em, self._coordinates = em, coordinates
        self._iteration = 0
        self._previous = 0.0
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, current: Statistics) -> Step:
        self._iteration += 1
        point = self._coordinates.flatten(current.params)
        gradient = score(current, self._coordinates)
        self._remember(point, gradient)
        after = None
        if self._iteration > self.WARM_UP and self._pairs:
            after = self._search(current, point, gradient)
        if after is None:
            # The EM step that replaces a failed search teaches the curvature afresh.
            self._pairs = self._pairs if self._iteration <= self.WARM_UP else []
            after = self._em.e_step(self._em.m_step(current))
        length = Coordinates.distance(current.params, after.params)
        step = Step(after, Movement(self._previous, length, after.objective - current.objective))
        self._previous = length
        return step

    def _remember(self, point: Tensor, gradient: Tensor) -> None:
        """Keeps the change of the gradient over the last step, where it shows curvature."""
        if self._last is not None:
            s, y = point - self._last[0], self._last[1] - gradient
            s = torch.where(self._coordinates.at_rest(point) | ~torch.isfinite(s), 0.0, s)
            finite = bool(torch.isfinite(s).all() and torch.isfinite(y).all())
            told = float(y @ y) > 0.0  # a curvature may be too small for its square
            if finite and told and float(s @ y) > 1e-12 * float(s.norm() * y.norm()):
                self._pairs = [*self._pairs, (s, y)][-self.MEMORY :]
        self._last = (point, gradient)

    def _search(self, current: Statistics, point: Tensor, gradient: Tensor) -> Statistics | None:
        """The objective raised along the quasi-Newton direction, or None."""
        rests = self._coordinates.at_rest(point)
        if not bool((point.isfinite() | rests).all() and torch.isfinite(gradient).all()):
            return None
        # Coordinates at rest stay as they are.
        direction = torch.where(rests, 0.0, self._direction(gradient))
        slope = float(direction @ gradient)
        if slope <= 0.0:
            return None
        length = 1.0
        for _ in range(self.HALVINGS):
            params = self._coordinates.unflatten(point + length * direction)
            if is_finite(params):
                after = self._em.e_step(params)
                if after.objective >= current.objective + self.ARMIJO * length * slope:
                    return after
            length *= 0.25
        return None

    def _direction(self, gradient: Tensor) -> Tensor:
        """The two-loop recursion of L-BFGS, for ascent."""
        q, alphas = gradient.clone(), []
        for s, y in reversed(self._pairs):
            alpha = float(s @ q) / float(s @ y)
            alphas.append(alpha)
            q -= alpha * y
        if self._pairs:
            s, y = self._pairs[-1]
            q *= float(s @ y) / float(y @ y)
        for (s, y), alpha in zip(self._pairs, reversed(alphas), strict=True):
            q += (alpha - float(y @ q) / float(s @ y)) * s
        return q
