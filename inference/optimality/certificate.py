r"""Before a fit says *converged*: is the place a maximum, or a saddle at which EM has come to rest?

At a saddle the gradient vanishes too, and EM, started on the way down to it, never leaves. So the
curvature of the objective is asked for. By Fisher's identity its gradient at any parameters costs
one E-step, hence a product of its Hessian ``H`` with a direction is the difference of two
gradients, and a few steps of Lanczos find the largest eigenvalue of

.. math:: T^\top H T, \qquad T^\top B T = I,

in the units ``T`` of the complete-data information ``B`` (``curvature.py``). At a maximum all
eigenvalues lie between -1 and 0 (Dempster, Laird & Rubin 1977, theorem 4); a positive one is a
direction in which the objective rises on both sides, and the way out is a step along it.

Reference: Lanczos (1950), *An iteration method for the solution of the eigenvalue problem*, Journal
of Research of the National Bureau of Standards 45, 255-282.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.maximisation.objective import score
from ember.inference.numerics.draws import Draws
from ember.inference.optimality.curvature import Curvature
from ember.inference.optimality.nearby import EStep, evaluated
from ember.inference.parameters.coordinates import Coordinates

__all__ = ["PRODUCTS", "Certificate", "Rise", "Seen", "certificate", "steepest_rise"]


Seen = tuple[Tensor, Tensor]  # free reals, and the gradient of the objective there
PRODUCTS = 8  # products with the Hessian, a pass over the data each
STEP = 1e-4  # of a difference of gradients, in standard deviations
WITHIN = 1e-5, 3e-2  # standard deviations between which the gradient at a place seen is of use
APART = 0.1  # of a direction to such a place, what must be left of it beside the others
MARGIN = 2e-2  # of eigenvalues that are known by such places
POSITIVE = 1e-3  # an eigenvalue above this is not one of zero with noise


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


@dataclass(frozen=True)
class Rise:
    """What Lanczos has found of the objective's curvature around a place at rest.

    Attributes:
        largest: The largest eigenvalue found, relative to the complete-data information: between
            -1 and 0 at a maximum; None if there was none to be found.
        direction: A direction of positive curvature, of length one standard deviation; or None.
        flattest: That of the largest eigenvalue, whatever its sign; None if it was not found.
    """

    largest: float | None
    direction: Tensor | None
    flattest: Tensor | None = None


def certificate(curvature: Curvature, rise: Rise) -> Certificate:
    """What was found at a place, as a certificate."""
    least = None if rise.largest is None else max(-rise.largest, 0.0)
    return Certificate(float(curvature.scaled(curvature.gradient).norm()), least)


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
    direction = curvature.direction(scaled)
    return Rise(largest, direction if largest > POSITIVE else None, direction)


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
