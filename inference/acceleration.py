r"""Acceleration: a wrapper around one EM iteration, seen as a map of parameters.

Plain EM moves along ``theta -> M(theta)``. SQUAREM (Varadhan & Roland 2008, Scandinavian Journal
of Statistics 35, 335-353) takes two EM steps, ``r = M(theta) - theta`` and
``v = M(M(theta)) - M(theta) - r``, and jumps to

.. math:: \theta' = \theta + 2 a r + a^2 v, \qquad a = \|r\| / \|v\| \ge 1,

in unconstrained coordinates. ``a = 1`` is the second EM step itself. The jump is kept only if
the objective there is at least that of the first EM step; otherwise the second EM step is taken
and the largest ``a`` allowed shrinks. The objective therefore never falls.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.convergence import Movement
from ember.inference.coordinates import Coordinates
from ember.inference.statistics import Statistics

__all__ = ["EMMap", "Step", "accelerated", "extrapolated"]


class EMMap:
    """The two halves of an EM iteration, and a count of passes over the data."""

    def __init__(
        self,
        e_step: Callable[[Mapping[str, Tensor]], Statistics],
        m_step: Callable[[Statistics], dict[str, Tensor]],
    ) -> None:
        self._e_step, self.m_step = e_step, m_step
        self.evaluations = 0

    def e_step(self, params: Mapping[str, Tensor]) -> Statistics:
        """One pass over the data."""
        self.evaluations += 1
        return self._e_step(params)


@dataclass(frozen=True)
class Step:
    """Where an iteration ended, and the EM movement seen on the way."""

    statistics: Statistics
    movement: Movement


Iterate = Callable[[Statistics], Step]


def accelerated(how: str | None, em: EMMap, coordinates: Coordinates) -> Iterate:
    """One iteration of the chosen scheme."""
    match how:
        case None:
            return _Plain(em)
        case "auto":
            return _Auto(em, coordinates)
        case "squarem":
            return _Squarem(em, coordinates)
        case "anderson":
            return _Anderson(em, coordinates)
        case "lbfgs":
            return _Lbfgs(em, coordinates)
        case _:
            raise ValueError(f"unknown acceleration {how!r}")


class _Plain:
    """EM as it is: every iterate is the M-step of the one before."""

    def __init__(self, em: EMMap) -> None:
        self._em = em
        self._previous = 0.0

    def __call__(self, current: Statistics) -> Step:
        after = self._em.e_step(self._em.m_step(current))
        length = Coordinates.distance(current.params, after.params)
        gain = after.objective - current.objective
        step = Step(after, Movement(self._previous, length, gain))
        self._previous = length
        return step


class _Auto:
    """SQUAREM, which is dependable, and L-BFGS where that has not converged after a while.

    Long runs are those along flat ridges and towards boundaries, where L-BFGS, which learns the
    curvature, needs a fraction of the passes. The two take turns.
    """

    TURN = 40

    def __init__(self, em: EMMap, coordinates: Coordinates) -> None:
        self._schemes: list[Callable[[], Iterate]] = [
            lambda: _Squarem(em, coordinates),
            lambda: _Lbfgs(em, coordinates),
        ]
        self._iteration = 0
        self._scheme: Iterate = self._schemes[0]()

    def __call__(self, current: Statistics) -> Step:
        turn, place = divmod(self._iteration, self.TURN)
        if place == 0:
            self._scheme = self._schemes[turn % 2]()
        self._iteration += 1
        return self._scheme(current)


class _Squarem:
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
        return length, params if _is_finite(params) else None


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


class _Anderson:
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
        return params if _is_finite(params) else None


class _Lbfgs:
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
        gradient = self._coordinates.gradient(current)
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
            if _is_finite(params):
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


def _is_finite(params: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in params.values())
