"""Estimates that run to infinity, where no data hold them back.

Where groups of data are separated, or counts vary no more than Poisson's, the likelihood rises for
ever towards a limit. From the place where it no longer rises noticeably, ten standard deviations
onwards (as the curvature has them) change nothing, and ten backwards lose all; at a maximum either
way would cost some fifty.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.maximisation.updates import How, Update, updates
from ember.inference.optimality.curvature import Curvature
from ember.inference.optimality.nearby import EStep, evaluated
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.parameters.supports import EDGE, INFINITY, NATURAL, ends, shown
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["Runaway", "at_infinity", "runaway"]


FAR = 10.0  # standard deviations
NOTHING = 1e-9  # change of an objective, relative, that counts as none
STILL = 1e-4  # Newton step of a coordinate, relative, that has not come to rest
LEVEL = 1e-5  # change of an objective over three decades that does not count, relative
WEAK = 1e-3  # estimates over their standard deviations, below which the data do not show them
SMALL = 0.1  # of a direction along logarithms, what else may move
ROUGH = 0.02  # error of a direction far out, where derivatives are next to rounding
LARGE = 9.0  # of a logarithm, how far from its start it may be on its way to infinity
TRIED = 3  # coordinates asked one by one
HALVINGS = 16  # of a way along which a fall is looked for, a pass each
SUDDEN = 0.2  # of two stretches towards a limit, the later over the earlier: less where it ends
SHOWN = 4  # entries of a site that are named
RISE = 1.0  # of a log density at each of two steps, if it has no bound


@dataclass(frozen=True)
class Runaway:
    """Estimates that no data hold back.

    Attributes:
        name: The site that is named first.
        places: Its coordinates that run away.
        end: Where they lead: ``INFINITY``, or ``EDGE`` where two entries of an order meet.
        far: All coordinates that run with them.
    """

    name: str
    places: list[int]
    end: str
    far: list[int]


def at_infinity(
    plan: Plan,
    e_step: EStep,
    coordinates: Coordinates,
    statistics: Statistics,
    flattest: Tensor | None = None,
) -> tuple[str, bool]:
    """A sentence about estimates that no data hold back, or none; and whether they are infinite.

    If not, they are where two entries of an order meet, which may be a maximum.

    Args:
        plan: The plan.
        e_step: One pass over the data.
        coordinates: The free reals of the parameters.
        statistics: Of the place.
        flattest: The direction in which the objective is curved least, where that is known.
    """
    found = runaway(plan, e_step, coordinates, statistics, flattest)
    if found is None:
        return "", False
    sentence = _sentence(plan, coordinates, found.name, found.places, found.end)
    return sentence, found.end == INFINITY


def runaway(
    plan: Plan,
    e_step: EStep,
    coordinates: Coordinates,
    statistics: Statistics,
    flattest: Tensor | None = None,
) -> Runaway | None:
    """Estimates that no data hold back, the first that are found; None if there are none.

    See ``at_infinity``.
    """
    suspects = [update.name for update in updates(plan) if _may_run_away(update)]
    mine = coordinates.places(suspects)
    curvature = Curvature.at(coordinates, statistics, mine) if suspects else None
    if curvature is None or curvature.matrix is None:
        return None
    place = curvature.point
    beyond = (place.isinf() & coordinates.places(suspects)).nonzero()[:, 0].tolist()
    found = _named(plan, coordinates, suspects, beyond, place)
    ridges = [] if flattest is None else _ridges(coordinates, statistics, flattest, suspects)
    for direction in (*_directions(coordinates, curvature, suspects), *ridges):
        if found is not None:
            break
        if _is_one_sided(e_step, coordinates, statistics, place, direction):
            far = ((FAR * direction).abs() > place.abs()).nonzero()[:, 0].tolist()
            found = _named(plan, coordinates, suspects, far, direction)
    for direction in _plateaus(coordinates, curvature, suspects, plan):
        if found is not None:
            break
        if _is_level(e_step, coordinates, statistics, place, direction):
            largest = 0.5 * float(direction.abs().max())
            far = (direction.abs() > largest).nonzero()[:, 0].tolist()
            found = _named(plan, coordinates, suspects, far, direction)
    return found


def _named(
    plan: Plan, coordinates: Coordinates, names: Sequence[str], far: list[int], direction: Tensor
) -> Runaway | None:
    """The first site with coordinates that lead away from all natural ends."""
    for name in names:
        own, way = coordinates.places([name]), ends(plan.structure.parameters[name].support)
        for end in (INFINITY, EDGE):
            places = [i for i in far if own[i] and way[int(direction[i] > 0.0)] == end]
            if places:
                return Runaway(name, places, end, far)
    return None


def _may_run_away(update: Update) -> bool:
    """Whether an estimate can be infinite: it has no closed form of its own, or a link."""
    if update.kind is None:
        return update.how is How.NUMERICAL
    return update.how is How.IN_SUPPORT or update.kind.is_joint or update.link.is_free


def _directions(
    coordinates: Coordinates, curvature: Curvature, suspects: Sequence[str]
) -> Iterator[Tensor]:
    """Directions of one standard deviation in which estimates may run away, the likely ones."""
    point = curvature.point
    newton = curvature.direction(curvature.scaled(curvature.gradient))
    if bool((newton.abs() > STILL * point.abs()).any()):
        yield newton / curvature.length(newton)
    finite = torch.where(point.isfinite(), point, 0.0)
    for names in [suspects, *([name] for name in suspects if len(suspects) > 1)]:
        ray = torch.where(coordinates.places(names), finite, 0.0)
        length = curvature.length(ray)
        if length < WEAK and bool((ray != 0.0).any()):
            yield ray / length if length > 0.0 else ray
    if curvature.matrix is None:
        return
    information = curvature.matrix.diagonal().clamp_min(0.0)
    weak = (information.sqrt() * finite.abs() < WEAK) & coordinates.places(suspects)
    size = torch.where(weak, finite.abs(), 0.0)
    for i in torch.argsort(size, descending=True)[:TRIED].tolist():
        if float(size[i]) > 0.0:
            alone = torch.zeros_like(point)
            alone[i] = torch.sign(point[i]) * information[i].rsqrt().nan_to_num(
                posinf=float(size[i])
            )
            yield alone


def _ridges(
    coordinates: Coordinates, statistics: Statistics, flattest: Tensor, suspects: Sequence[str]
) -> Iterator[Tensor]:
    """Both ways along logarithms that are curved least, where they have come far from their start.

    Their own derivatives may be rounding there.
    """
    point, own = coordinates.flatten(statistics.params), coordinates.places(suspects)
    start = coordinates.flatten({p.name: p.start for p, _ in coordinates})
    way = torch.where(own & point.isfinite(), flattest, 0.0)
    large = float(way.abs().max())
    if large <= 0.0 or float((flattest - way).abs().max()) > SMALL * large:
        return
    size = float((point - start)[own].nan_to_num(posinf=0.0, neginf=0.0).abs().max())
    if size > LARGE:
        way = way / large
        powers = (2.0 * way).round() / 2.0  # of one another: then the direction is known exactly
        way = powers if float((way - powers).abs().max()) < ROUGH else way
        for sign in (1.0, -1.0):
            yield sign * 2.0 * size / FAR * way


def _is_one_sided(
    e_step: EStep,
    coordinates: Coordinates,
    statistics: Statistics,
    point: Tensor,
    direction: Tensor,
) -> bool:
    """Whether the objective falls on one side of a point alone."""
    if not bool(direction.isfinite().all()):
        return False
    reached, rounding = statistics.objective, NOTHING * (1.0 + abs(statistics.objective))
    height = _along(e_step, coordinates, point, direction)
    onwards = height(FAR)
    if onwards < reached - rounding:
        return False
    limit = max(onwards, reached)

    def fall(steps: float) -> float:
        return limit - height(steps)

    back = -FAR
    if not fall(back) > RISE:
        return False
    while (
        fall(0.0) <= RISE < fall(0.1 * back)
    ):  # a standard deviation where all is level is any number
        back *= 0.1
    return _is_gradual(fall, back, FAR if fall(-back) > rounding else -back, rounding)


def _along(
    e_step: EStep, coordinates: Coordinates, point: Tensor, direction: Tensor
) -> Callable[[float], float]:
    """The objective so many steps along a direction, minus infinity where it has none."""

    def height(steps: float) -> float:
        moved = evaluated(e_step, coordinates.unflatten(point + steps * direction))
        return -math.inf if moved is None else moved.objective

    return height


def _is_gradual(
    fall: Callable[[float], float], back: float, onwards: float, rounding: float
) -> bool:
    """Whether a limit is approached for ever, and not reached where a level stretch begins.

    Towards a limit, half of the way (along the logarithm of what is left to gain) takes about as
    many steps as the other half. Where a clamp holds a parameter's effect, next to none.
    """
    high = max(RISE, 100.0 * rounding)
    places = []
    for level in (high, math.sqrt(high * rounding), rounding):
        low, up = back, onwards
        for _ in range(HALVINGS):
            middle = 0.5 * (low + up)
            low, up = (middle, up) if fall(middle) > level else (low, middle)
        places.append(up)
    first, second = places[1] - places[0], places[2] - places[1]
    return second > SUDDEN * first


def _plateaus(
    coordinates: Coordinates, curvature: Curvature, suspects: Sequence[str], plan: Plan
) -> Iterator[Tensor]:
    """Directions along logarithms of which the data say next to nothing, towards infinity."""
    parameters = plan.structure.parameters
    logs = [n for n in suspects if ends(parameters[n].support)[0] == NATURAL]
    upwards = [n for n in logs if ends(parameters[n].support)[1] == INFINITY]
    places = (coordinates.places(logs) & curvature.point.isfinite()).nonzero()[:, 0]
    if not upwards or curvature.matrix is None or not len(places):
        return
    values, vectors = torch.linalg.eigh(curvature.matrix[places][:, places])
    up = coordinates.places(upwards)
    for value, vector in list(zip(values.tolist(), vectors.mT, strict=True))[:TRIED]:
        direction = torch.zeros_like(curvature.point)
        direction[places] = vector / vector.abs().max()
        high = torch.where(up, direction, 0.0)
        if value < WEAK and float(high.abs().max()) > 0.5:
            yield direction * torch.sign(high[high.abs().argmax()])


def _is_level(
    e_step: EStep,
    coordinates: Coordinates,
    statistics: Statistics,
    point: Tensor,
    direction: Tensor,
) -> bool:
    """Whether the objective is level for three decades back, and falls off before them.

    What comes after is not asked: dispersions that large drown in the rounding of their gammas.
    """
    reached, rounding = statistics.objective, LEVEL * (1.0 + abs(statistics.objective))
    height = _along(e_step, coordinates, point, math.log(10.0) * direction)

    def fall(decades: float) -> float:
        return reached - height(decades)

    if abs(fall(-3.0)) > rounding:
        return False
    falls = (
        decades for decades in (-6.0, -9.0, -12.0, -15.0, -20.0, -30.0) if fall(decades) > RISE
    )
    back = next(falls, None)
    return back is not None and _is_gradual(fall, back, 0.0, rounding)


def _sentence(plan: Plan, coordinates: Coordinates, name: str, places: list[int], end: str) -> str:
    parameter = plan.structure.parameters[name]
    first = int(coordinates.places([name]).nonzero()[0, 0])
    numbers = [place - first for place in places]
    what = f"site '{name}'"
    if parameter.shape.numel() > 1 and max(numbers) < parameter.shape.numel():
        at = [torch.unravel_index(torch.tensor(i), parameter.shape) for i in numbers[:SHOWN]]
        entries = ", ".join(str([int(j) for j in index]) for index in at)
        named = f"{'entries' if len(numbers) > 1 else 'entry'} {entries}"
        more = f" and {len(numbers) - SHOWN} others" if len(numbers) > SHOWN else ""
        what = f"site '{name}' ({named}{more})"
    if end == INFINITY:
        return (
            f"the estimate of {what} is at infinity: the objective rises towards a limit the "
            "farther it goes (as where groups are separated); give the site a prior that holds it "
            "back (objective='map'), or leave out what it stands for."
        )
    return (
        f"{what} has come to the edge of its support, {shown(parameter.support)}: entries that "
        "should rise are equal, and without the constraint they would change places; put them in "
        "another order, or take them for one."
    )
