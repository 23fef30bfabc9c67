r"""L-BFGS on the objective, with the gradient that an E-step gives by Fisher's identity.

By Fisher's identity the gradient of the objective at ``theta`` is that of the expected log joint
with the statistics held fixed, so a value and a gradient cost one pass over the data and no
differentiation through it.

Reference: Lange (1995), *A gradient algorithm locally equivalent to the EM algorithm*, Journal of
the Royal Statistical Society B 57, 425-437.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.iteration.acceleration.em_map import EMMap, State
from ember.inference.iteration.trajectory import Movement
from ember.inference.maximisation.information import Information
from ember.inference.maximisation.objective import score
from ember.inference.optimality.curvature import Curvature
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.statistics import Statistics

__all__ = ["Lbfgs", "LbfgsState", "ascent_direction", "remembered"]


WARM_UP = 5  # EM steps before the first search
MEMORY = 60  # steps; flat ridges are learnt one direction at a time
TRIALS, SHORTENING = 3, 0.25  # of a step
STUCK = 3  # searches in a row that fail
ARMIJO = 1e-4  # share of the rise that the slope promises
MOST = 10.0  # times what the slope promises: more is no rise, but digits that are lost
ROUNDING = 1e-12  # of the objective, relative
TRUSTED = 0.02  # rates of EM down to which a sketch is
CURVED = 1e-12  # a pair must show curvature, beyond rounding

Pair = tuple[Tensor, Tensor]  # a step, and by how much the gradient fell along it


@dataclass(frozen=True)
class LbfgsState(State):
    """With the pairs that tell of the curvature, the last point and gradient, and failures."""

    iteration: int = 0
    pairs: tuple[Pair, ...] = ()
    last: tuple[Tensor, Tensor] | None = None
    metric: Tensor | None = None
    failures: int = 0

    @property
    def is_stuck(self) -> bool:
        """Whether one search after the other has failed, as on the way to a boundary."""
        return self.failures >= STUCK


@dataclass(frozen=True)
class Lbfgs:
    """A few EM steps, then L-BFGS on the objective itself, with EM as the fallback.

    A step must raise the objective; one that does not, shortened a few times, is replaced by an EM
    step and the memory is cleared.

    Attributes:
        warm_up: EM steps before the first search.
        memory: How many steps are remembered. Many learn the curvature of flat ridges; of few the
            oldest, which were made elsewhere, are soon forgotten.
        informed: Whether the curvature is taken to be that of the expected log joint until steps
            tell more (Jamshidian & Jennrich 1997, *Acceleration of the EM algorithm by using
            quasi-Newton methods*, JRSS B 59, 569-587), less what the latents hide of it where the
            map has a sketch of that; else to be the same in all directions.
    """

    warm_up: int = WARM_UP
    informed: bool = False
    memory: int = MEMORY

    def init(self, current: Statistics) -> LbfgsState:
        """The state where an iteration begins."""
        return LbfgsState(current)

    def step(self, em: EMMap, state: LbfgsState) -> tuple[LbfgsState, Movement]:
        """The state after one iteration, and its movement."""
        current, iteration = state.current, state.iteration + 1
        point, gradient = em.coordinates.flatten(current.params), score(current, em.coordinates)
        state = remembered(state, em.coordinates, point, gradient, self.memory)
        after, pairs, failures = None, state.pairs, state.failures
        metric = state.metric
        if iteration > self.warm_up and (pairs or self.informed):
            if self.informed and metric is None:
                metric = _metric(em, current)
            direction = ascent_direction(pairs, gradient, metric)
            after = _searched(em, current, (point, gradient), direction)
            failures = 0 if after is not None else failures + 1
        if after is None:
            # The EM step that replaces a failed search teaches the curvature afresh.
            pairs = pairs if iteration <= self.warm_up else ()
            metric = None
            after = em.e_step(em.m_step(current))
        gain = after.objective - current.objective
        movement = Movement.over(current.params, after.params, gain, state.length)
        state = LbfgsState(
            after, movement.last, iteration, pairs, state.last, metric, failures
        )  # fmt: skip
        return state, movement


def remembered(
    state: LbfgsState,
    coordinates: Coordinates,
    point: Tensor,
    gradient: Tensor,
    memory: int = MEMORY,
) -> LbfgsState:
    """The state with the change of the gradient over the last step, where it shows curvature."""
    pairs = state.pairs
    if state.last is not None:
        s, y = point - state.last[0], state.last[1] - gradient
        s = torch.where(coordinates.at_rest(point) | ~torch.isfinite(s), 0.0, s)
        finite = bool(torch.isfinite(s).all() and torch.isfinite(y).all())
        sizeable = float(y @ y) > 0.0  # a curvature may be too small for its square
        if finite and sizeable and float(s @ y) > CURVED * float(s.norm() * y.norm()):
            pairs = (*pairs, (s, y))[-memory:]
    return dataclasses.replace(state, pairs=pairs, last=(point, gradient))


def _metric(em: EMMap, current: Statistics) -> Tensor | None:
    """The inverse of the complete-data information, along the directions that it curves.

    That of the observed information where there is a sketch of it, as far as one can trust that.
    """
    try:
        if em.sketch is not None:
            sketch = Information.with_missing(em.coordinates, current, em.sketch)
            return None if sketch is None else sketch.metric(TRUSTED)
        found = Curvature.at(em.coordinates, current)
    except (RuntimeError, ValueError):
        return None
    if found is None or found.matrix is None:
        return None
    units = found.units[:, found.curved]
    return units @ units.mT


def ascent_direction(
    pairs: Sequence[Pair], gradient: Tensor, metric: Tensor | None = None
) -> Tensor:
    """The two-loop recursion of L-BFGS, for ascent."""
    # By numpy: the recursion is a hundred products of small vectors, one after the other.
    q, alphas = gradient.cpu().numpy().copy(), []
    each = [(s.cpu().numpy(), y.cpu().numpy()) for s, y in pairs]
    curvatures = [float(s @ y) for s, y in each]
    for (s, y), curvature in zip(reversed(each), reversed(curvatures), strict=True):
        alpha = float(s @ q) / curvature
        alphas.append(alpha)
        q -= alpha * y
    if metric is not None:
        q = metric.cpu().numpy() @ q
    elif each:
        _, y = each[-1]
        q *= curvatures[-1] / float(y @ y)
    for (s, y), curvature, alpha in zip(each, curvatures, reversed(alphas), strict=True):
        q += (alpha - float(y @ q) / curvature) * s
    return torch.from_numpy(q).to(gradient)


def _searched(
    em: EMMap, current: Statistics, at: tuple[Tensor, Tensor], direction: Tensor
) -> Statistics | None:
    """The objective raised along the direction, from a point with its gradient; or None."""
    point, gradient = at
    rests = em.coordinates.at_rest(point)
    if not bool((point.isfinite() | rests).all() and torch.isfinite(gradient).all()):
        return None
    direction = torch.where(rests, 0.0, direction)  # coordinates at rest stay as they are
    slope = float(direction @ gradient)
    if slope <= 0.0:
        return None
    length, rounding = 1.0, ROUNDING * (1.0 + abs(current.objective))
    # Where less is promised than rounding shows, the slope alone can tell.
    floor = current.objective - (rounding if slope <= rounding else 0.0)
    for _ in range(TRIALS):
        after = em.tried(em.coordinates.unflatten(point + length * direction))
        highest = current.objective + MOST * length * slope + rounding
        if after and floor + ARMIJO * length * slope <= after.objective <= highest:
            return after
        length *= SHORTENING
    return None
