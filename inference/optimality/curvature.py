r"""Before a fit says *converged*: is the place a maximum, or a saddle at which EM has come to rest?

At a saddle the gradient vanishes too, and EM, started on the way down to it, never leaves. So the
curvature of the objective is asked for. By Fisher's identity its gradient at any parameters costs
one E-step, hence a product of its Hessian ``H`` with a direction is the difference of two
gradients, and a few steps of Lanczos find the largest eigenvalue of

.. math:: T^\top H T, \qquad T^\top B T = I,

where ``B`` is minus the Hessian of the expected log joint (the complete-data information), so that
a unit is one standard deviation whatever the units of the parameters. At a maximum all eigenvalues
lie between -1 and 0 (Dempster, Laird & Rubin 1977, theorem 4); a positive one is a direction in
which the objective rises on both sides, and the way out is a step along it.

Reference: Lanczos (1950), *An iteration method for the solution of the eigenvalue problem*, Journal
of Research of the National Bureau of Standards 45, 255-282.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.maximisation.information import CompleteInformation, Missing
from ember.inference.maximisation.objective import expected_log_joint, score
from ember.inference.numerics import nonsmooth
from ember.inference.numerics.draws import Draws
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.parameters.supports import all_finite
from ember.inference.plan.statistics import Statistics

__all__ = [
    "PRODUCTS",
    "Certificate",
    "Curvature",
    "EStep",
    "Rise",
    "Seen",
    "beyond_edges",
    "certificate",
    "climbed",
    "evaluated",
    "peaks",
    "rounding",
    "steepest_rise",
    "way_out",
]


EStep = Callable[[Mapping[str, Tensor]], Statistics]
Seen = tuple[Tensor, Tensor]  # free reals, and the gradient of the objective there
PRODUCTS = 8  # products with the Hessian, a pass over the data each
STEP = 1e-4  # of a difference of gradients, in standard deviations
WITHIN = 1e-5, 3e-2  # standard deviations between which the gradient at a place seen is of use
APART = 0.1  # of a direction to such a place, what must be left of it beside the others
MARGIN = 2e-2  # of eigenvalues that are known by such places
POSITIVE = 1e-3  # an eigenvalue above this is not one of zero with noise
DENSE = 48  # free reals whose complete-data information is taken as a whole
PROBES = 6  # products with it otherwise, for its rows' lengths
FLAT = 1e-10  # share of the largest eigenvalue below which there is no curvature
LENGTHS = (0.3, 1.0, 3.0, 10.0)  # of the step out of a saddle, in standard deviations
JITTERS = 3  # of the last digits
LAST_DIGITS = 4e-16  # relative
NEAR = 1e-4  # of a Newton step, within which a kink is looked for
SHORTENINGS = (1.0, 0.25, 0.05, 0.01)  # of a Newton step
RISE = 1e-10  # of the objective, relative, that rounding does not explain


@dataclass(frozen=True)
class Curvature:
    """The complete-data information around a point, and the units that it gives to directions.

    Attributes:
        point: The free reals ``(P,)``.
        gradient: The gradient of the objective there, 0 in coordinates at rest.
        units: ``T``, of shape ``(P, A)`` with a column for each direction; or ``(P,)``, a diagonal.
        curved: Along which directions the expected log joint is curved at all. The others change
            nothing, as the sum of a simplex's log-ratios does, or the data leave them open.
        matrix: ``B``, of shape ``(P, P)``, where it is known as a whole.
        missing: The information that the latents hide, ``(P, P)``, where it has a closed form.
    """

    point: Tensor
    gradient: Tensor
    units: Tensor
    curved: Tensor
    matrix: Tensor | None
    missing: Tensor | None = None

    @classmethod
    def at(
        cls,
        coordinates: Coordinates,
        statistics: Statistics,
        among: Tensor | None = None,
        missing: Missing | None = None,
    ) -> "Curvature | None":
        """The curvature at the statistics' own parameters; None where it is not finite.

        Args:
            coordinates: The free reals of the parameters.
            statistics: Of the place.
            among: The coordinates that count; of those that are not at rest, one for each dimension
                of the parameters, unless given.
            missing: The information that the latents hide, where there is a closed form of it.
        """
        point = coordinates.flatten(statistics.params)
        among = coordinates.independent(point.nan_to_num()) if among is None else among
        active = ~coordinates.at_rest(point) & point.isfinite() & among
        gradient = torch.where(active, score(statistics, coordinates), 0.0)
        if not bool(active.any()) or not bool(gradient.isfinite().all()):
            return None
        hidden = None
        if missing is not None:
            hidden = missing(coordinates, torch.where(active, point, coordinates.inside(point)))
        found = _units(coordinates, statistics, active, hidden is not None)
        return None if found is None else cls(point, gradient, *found, hidden)

    def direction(self, scaled: Tensor) -> Tensor:
        """From units of standard deviation to free reals."""
        return self.units * scaled if self.units.dim() == 1 else self.units @ scaled

    def scaled(self, gradient: Tensor) -> Tensor:
        """A gradient with respect to directions in units of standard deviation."""
        return self.units * gradient if self.units.dim() == 1 else self.units.mT @ gradient

    def length(self, direction: Tensor) -> float:
        """The length of free reals in standard deviations, 0 where that is not known."""
        if self.matrix is None:
            return 0.0
        return float((direction @ self.matrix @ direction).clamp_min(0.0).sqrt())

    @property
    def flat(self) -> Tensor:
        """The coordinates along which the expected log joint has no curvature at all, ``(P,)``."""
        if self.matrix is None:
            return torch.zeros_like(self.point, dtype=torch.bool)
        return self.matrix.diagonal() == 0.0

    @property
    def gain(self) -> float:
        """What a Newton step on the expected log joint would gain, to second order."""
        return 0.5 * float(self.scaled(self.gradient).square().sum())


def climbed(
    e_step: EStep, coordinates: Coordinates, statistics: Statistics, curvature: Curvature
) -> Statistics | None:
    """A higher place along Newton's step for the expected log joint, or None."""
    direction = curvature.direction(curvature.scaled(curvature.gradient))
    floor = statistics.objective + 1e-5 * RISE * (1.0 + abs(statistics.objective))
    for shortening in SHORTENINGS:
        moved = evaluated(e_step, coordinates.unflatten(curvature.point + shortening * direction))
        if moved is not None and moved.objective > floor:
            return moved
    return None


def beyond_edges(
    e_step: EStep, coordinates: Coordinates, statistics: Statistics, curvature: Curvature
) -> Statistics | None:
    """A higher place, where a search for densities with edges finds one; None at a true edge.

    What raises the expected log joint raises the objective, so the search passes over no data.
    """
    point = curvature.point
    active = (~coordinates.at_rest(point) & point.isfinite()).nonzero()[:, 0]
    inside = coordinates.inside(point)

    def derivative(values: Tensor) -> tuple[float, Tensor]:
        with torch.enable_grad():
            free = values.detach().requires_grad_()
            params = coordinates.unflatten(inside.index_put((active,), free))
            try:
                value = -expected_log_joint(statistics, params)
                (gradient,) = torch.autograd.grad(value, free)
            except (RuntimeError, ValueError, ArithmeticError):  # it has no value there
                return math.inf, torch.zeros_like(values)
        return float(value.detach()), gradient

    slopes, sizes = curvature.gradient.abs(), torch.zeros_like(point)
    if curvature.matrix is not None:
        sizes = curvature.matrix.diagonal().abs().sqrt()
    scale = torch.maximum(slopes, sizes)[active]
    units = torch.where(scale > 0.0, 1.0 / scale, 1.0).nan_to_num(posinf=1.0)
    found = nonsmooth.search(derivative, point[active], units)
    moved = evaluated(e_step, coordinates.unflatten(point.index_put((active,), found)))
    return moved if moved is not None and moved.objective > statistics.objective else None


def peaks(e_step: EStep, coordinates: Coordinates, curvature: Curvature) -> bool:
    """Whether the slope turns next to a place where the gradient is steep, as at a median.

    A density with a kink has its maximum there, and no gradient that vanishes.
    """
    direction = curvature.direction(curvature.scaled(curvature.gradient))
    ahead = evaluated(e_step, coordinates.unflatten(curvature.point + NEAR * direction))
    return ahead is not None and float(score(ahead, coordinates) @ direction) <= 0.0


@dataclass(frozen=True)
class Rise:
    """What Lanczos has found of the objective's curvature around a place at rest.

    Attributes:
        largest: The largest eigenvalue found, relative to the complete-data information: between
            -1 and 0 at a maximum; None if there was none to be found.
        direction: A direction of positive curvature, of length one standard deviation; or None.
    """

    largest: float | None
    direction: Tensor | None


@dataclass(frozen=True)
class Certificate:
    """Why a place may be called a maximum: the slope is small, and no direction leads up.

    Both are in units of the complete data: a unit of length is one standard deviation of the
    estimates if nothing were latent. With more than 48 free reals each has a unit of its own, as
    if the others were known, and the numbers are rough, unless what the latents hide has a closed
    form.

    Attributes:
        gradient: The length of the objective's gradient.
        curvature: The least curvature, or what a few steps of Lanczos found of it where what the
            latents hide has no closed form: 1 if nothing is latent, and 0 along a direction that
            the data do not identify. One less it is EM's rate of convergence, and the share of the
            information that is missing (Dempster, Laird & Rubin 1977). None if there was none to be
            found.
    """

    gradient: float
    curvature: float | None


def certificate(curvature: Curvature, rise: Rise) -> Certificate:
    """What was found at a place, as a certificate."""
    least = None if rise.largest is None else max(-rise.largest, 0.0)
    return Certificate(float(curvature.scaled(curvature.gradient).norm()), least)


def way_out(
    e_step: EStep,
    coordinates: Coordinates,
    statistics: Statistics,
    curvature: Curvature,
    direction: Tensor,
) -> Statistics | None:
    """A higher place near a saddle, along a direction of positive curvature; None if none is found.

    Args:
        e_step: One pass over the data.
        coordinates: The free reals of the parameters.
        statistics: Of the place where the loop has come to rest.
        curvature: There.
        direction: The direction, of length one standard deviation.
    """
    if float(direction @ curvature.gradient) < 0.0:
        direction = -direction
    best = statistics
    floor = statistics.objective + RISE * (1.0 + abs(statistics.objective))
    for sign in (1.0, -1.0):
        for length in LENGTHS:
            params = coordinates.unflatten(curvature.point + sign * length * direction)
            moved = evaluated(e_step, params)
            if moved is None or not moved.objective > max(best.objective, floor):
                break
            best = moved
        if best is not statistics:
            return best
    return None


def steepest_rise(
    e_step: EStep, coordinates: Coordinates, curvature: Curvature, seen: Sequence[Seen] = ()
) -> Rise:
    """The direction along which the objective is curved upwards most, by Lanczos.

    Where what the latents hide has a closed form, the whole Hessian is known. Else that of few
    parameters is found: what the way here has not shown of it, by a pass each. Where that is not
    clearly negative, nothing but passes counts.

    Args:
        e_step: One pass over the data.
        coordinates: The free reals of the parameters.
        curvature: Of the place.
        seen: Places on the way there, the latest last, with the gradients there.
    """
    if not bool(curvature.curved.any()):
        return Rise(None, None)
    if curvature.missing is not None and curvature.matrix is not None:
        return _of_hessian(curvature, curvature.missing - curvature.matrix)
    known = _known(curvature, seen)
    if known[0] and int(curvature.curved.sum()) <= PRODUCTS:
        found = _steepest(e_step, coordinates, curvature, known, -MARGIN)
        if found is not None and found[0] < -MARGIN:
            return Rise(found[0], None)
    found = _steepest(e_step, coordinates, curvature, ([], []), POSITIVE)
    return Rise(None, None) if found is None else _rise(curvature, *found)


def _rise(curvature: Curvature, largest: float, scaled: Tensor) -> Rise:
    return Rise(largest, curvature.direction(scaled) if largest > POSITIVE else None)


def _of_hessian(curvature: Curvature, hessian: Tensor) -> Rise:
    """The same where the whole Hessian is known."""
    units = torch.where(curvature.curved, curvature.units, 0.0)
    found = units.mT @ hessian @ units
    found = torch.where(curvature.curved, found, -torch.eye(len(found)).to(found))
    values, vectors = torch.linalg.eigh((found + found.mT) / 2.0)
    return _rise(curvature, float(values[-1]), vectors[:, -1])


def _known(curvature: Curvature, seen: Sequence[Seen]) -> tuple[list[Tensor], list[Tensor]]:
    """Orthonormal directions, and the Hessian's products with them, from gradients near by."""
    basis, images = list[Tensor](), list[Tensor]()
    if curvature.matrix is None:
        return basis, images
    start = curvature.scaled(curvature.gradient)
    still = curvature.matrix.diagonal() == 0.0
    for point, gradient in reversed(seen):
        step = point - curvature.point
        moved = torch.where(still, step.nan_to_num(), 0.0)
        step = torch.where(still, 0.0, step)
        if bool(moved.any()) or not bool(step.isfinite().all() and gradient.isfinite().all()):
            continue
        direction = curvature.scaled(curvature.matrix @ step)
        direction = torch.where(curvature.curved, direction, 0.0)
        length = float(direction.norm())
        if not WITHIN[0] <= length <= WITHIN[1]:
            continue
        rest, image = direction / length, (curvature.scaled(gradient) - start) / length
        for one, its in zip(basis, images, strict=True):
            share = one @ rest
            rest, image = rest - share * one, image - share * its
        size = float(rest.norm())
        if size >= APART:
            basis.append(rest / size)
            images.append(image / size)
    return basis, images


def _steepest(
    e_step: EStep,
    coordinates: Coordinates,
    curvature: Curvature,
    known: tuple[list[Tensor], list[Tensor]],
    enough: float,
) -> tuple[float, Tensor] | None:
    """The largest eigenvalue and its direction, by Lanczos; one above ``enough`` ends the search.

    Args:
        e_step: One pass over the data.
        coordinates: The free reals of the parameters.
        curvature: Of the place.
        known: Orthonormal directions, and the products with them.
        enough: Where to end.
    """
    start = curvature.scaled(curvature.gradient)
    basis, images = [*known[0]], [*known[1]]
    vector = Draws(0, start.device).normal(start.shape)
    vector = torch.where(curvature.curved, vector, 0.0)
    found = _largest(basis, images) if basis else None
    for _ in range(min(PRODUCTS, int(curvature.curved.sum())) - len(known[0])):
        if found is not None and found[0] > enough:
            return found
        size = float(vector.norm())
        for _ in range(2 if basis else 0):
            span = torch.stack(basis)
            vector = vector - span.mT @ (span @ vector)
        length = float(vector.norm())
        if length <= 1e-6 * size or length == 0.0:
            break
        basis.append(vector / length)
        params = coordinates.unflatten(curvature.point + STEP * curvature.direction(basis[-1]))
        moved = evaluated(e_step, params)
        if moved is None:
            return None
        vector = (curvature.scaled(score(moved, coordinates)) - start) / STEP
        vector = torch.where(curvature.curved, vector, 0.0)
        if not bool(vector.isfinite().all()):
            return None
        images.append(vector)
        found = _largest(basis, images)
    return found


def _largest(basis: Sequence[Tensor], images: Sequence[Tensor]) -> tuple[float, Tensor]:
    """The largest eigenvalue within the span of directions, and its direction."""
    span = torch.stack([*basis])
    projected = span @ torch.stack([*images]).mT
    values, vectors = torch.linalg.eigh((projected + projected.mT) / 2.0)
    return float(values[-1]), vectors[:, -1] @ span


def evaluated(e_step: EStep, params: Mapping[str, Tensor]) -> Statistics | None:
    """The E-step at parameters nearby; None where it cannot be made."""
    if not all_finite(params):
        return None
    try:
        found = e_step(params)
    except (RuntimeError, ValueError, ArithmeticError):
        return None
    return found if math.isfinite(found.objective) else None


def rounding(
    e_step: EStep, statistics: Statistics, jitters: int = JITTERS, by: float = LAST_DIGITS
) -> float:
    """How much the objective moves when the last digits of the parameters do.

    Args:
        e_step: One pass over the data.
        statistics: Of the place.
        jitters: How often they are moved.
        by: By how much, relative.
    """
    draws = Draws(0)
    values = [statistics.objective]
    for _ in range(jitters):
        moved = {
            name: value * (1.0 + by * draws.normal(value.shape))
            for name, value in statistics.params.items()
        }
        found = evaluated(e_step, moved)
        values.append(math.inf if found is None else found.objective)
    return max(values) - min(values)


def _units(
    coordinates: Coordinates, statistics: Statistics, active: Tensor, whole: bool
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """``T`` with ``T' B T = I`` over the active coordinates, which are curved, and ``B``.

    Of more than a few coordinates ``B`` is found only where it is wanted as a ``whole``.
    """
    point = coordinates.flatten(statistics.params)
    count = int(active.sum())
    places = active.nonzero()[:, 0]
    try:
        information = CompleteInformation(coordinates, statistics, active)
        if count > DENSE and not whole:
            return _equilibrated(information, active)
        full = information.matrix()
    except RuntimeError:  # an operation that cannot be differentiated twice
        return None
    matrix = full[places][:, places]
    if not bool(matrix.isfinite().all()):
        return None
    scale = matrix.diagonal().abs().sqrt()
    scale = torch.where(scale > 0.0, scale, 1.0)
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / (2.0 * scale * scale.unsqueeze(-1)))
    size = values.abs()
    curved = size > FLAT * float(size.max())
    size = torch.where(curved, size, 1.0)
    units = torch.zeros(len(point), count, dtype=point.dtype)
    units[places] = vectors / size.sqrt() / scale.unsqueeze(-1)
    return units, curved, full


def _equilibrated(
    information: CompleteInformation, active: Tensor
) -> tuple[Tensor, Tensor, None] | None:
    """A diagonal ``T`` that gives the rows of ``T B T`` about equal lengths.

    Reference: Bradley & Murray (2011), *Matrix-free approximate equilibration*, arXiv:1110.2805.
    """
    draws = Draws(0, active.device)
    units = active.to(torch.float64)
    for _ in range(PROBES):
        signs = draws.below(2, active.shape)
        probe = 2.0 * signs.to(units.dtype) - 1.0
        length = (units * information.products((units * probe).unsqueeze(0))[0]).abs()
        if not bool(length.isfinite().all()):
            return None
        units = torch.where(length > 0.0, units / length.sqrt(), units)
    return units, active & (length > 0.0), None
