r"""The complete-data information around a place, and the units that it gives to directions.

With ``B``, minus the Hessian of the expected log joint, directions are measured by ``T``,

.. math:: T^\top B T = I,

so that a unit is one standard deviation if nothing were latent, whatever the units of the
parameters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.maximisation.information import CompleteInformation, Missing
from ember.inference.numerics.draws import Draws
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.statistics import Statistics

__all__ = ["Curvature"]


DENSE = 48  # free reals whose complete-data information is taken as a whole
PROBES = 6  # products with it otherwise, for its rows' lengths
FLAT = 1e-10  # share of the largest eigenvalue below which there is no curvature


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
        if not bool(active.any()):
            return None
        try:
            information = CompleteInformation(coordinates, statistics, active)
            gradient, hidden = information.gradient, None
            if not bool(gradient.isfinite().all()):
                return None
            if missing is not None:
                near = torch.where(active, point, coordinates.inside(point))
                hidden = missing(coordinates, near)
            found = _units(information, active, hidden is not None)
        except RuntimeError:  # an operation that cannot be differentiated twice
            return None
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


def _units(
    information: CompleteInformation, active: Tensor, whole: bool
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """``T`` with ``T' B T = I`` over the active coordinates, which are curved, and ``B``.

    Of more than a few coordinates ``B`` is found only where it is wanted as a ``whole``.
    """
    count = int(active.sum())
    if count > DENSE and not whole:
        return _equilibrated(information, active)
    full, places = information.matrix(), active.nonzero()[:, 0]
    matrix = full[places][:, places]
    if not bool(matrix.isfinite().all()):
        return None
    scale = matrix.diagonal().abs().sqrt()
    scale = torch.where(scale > 0.0, scale, 1.0)
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / (2.0 * scale * scale.unsqueeze(-1)))
    size = values.abs()
    curved = size > FLAT * float(size.max())
    size = torch.where(curved, size, 1.0)
    units = matrix.new_zeros(len(active), count)
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
