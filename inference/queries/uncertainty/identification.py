r"""Which directions the data identify, and the covariance of the estimates along them.

The information is scaled to a unit diagonal first, so that the verdict does not depend on units: a
direction along which it is less than 1e-7 of its largest eigenvalue is not identified, as a
rotation of hidden factors, or shares of components that are all alike. What such a direction moves
has no standard error.

Exchanging the numbers of two states is no such direction: it leads from one maximum to another.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.queries.uncertainty.observed_information import ObservedInformation

__all__ = ["Identification", "identification"]


NOTHING = 1e-7  # of the largest eigenvalue
LOUD = 10.0  # times the noise of its entries, below which an eigenvalue is rounding too
HIDDEN = 1e-10  # of the information if nothing were latent: rounding alone
UPWARDS = 1e-5  # of it, against the sign of a maximum, that rounding does not explain
MOVED = 1e-3  # share of what moves a value that may be idle


@dataclass(frozen=True)
class Identification:
    """The information, taken apart.

    Attributes:
        units: The scale of each free coordinate, ``(A,)``.
        root: ``R`` of shape ``(A, I)`` with the covariance ``R R'``, one column for each direction
            that is identified.
        idle: The other directions, ``(A, A - I)``, orthonormal in these units.
        is_maximum: Whether the objective is curved upwards nowhere.
    """

    units: Tensor
    root: Tensor
    idle: Tensor
    is_maximum: bool

    @property
    def covariance(self) -> Tensor:
        """Of the free coordinates ``(A, A)``, idle directions held fixed."""
        return self.root @ self.root.mT

    def is_idle(self, jacobian: Tensor) -> Tensor:
        """Which functions of the coordinates an idle direction moves: of rows ``(E, A)``."""
        scaled = jacobian * self.units
        length = torch.linalg.vector_norm(scaled, dim=-1)
        along = torch.linalg.vector_norm(scaled @ self.idle, dim=-1)
        moved: Tensor = (along > MOVED * length) & (length > 0.0)
        return moved


def identification(information: ObservedInformation) -> Identification:
    """Tells the directions that are identified from those that are not."""
    matrix, complete = information.matrix, information.complete
    diagonal = matrix.diagonal().abs()
    # A coordinate of which the data say nothing has rounding alone on the diagonal.
    sizes = torch.where(diagonal > HIDDEN * complete.abs(), diagonal, complete.abs())
    units = torch.where(sizes > 0.0, sizes.rsqrt(), 1.0)
    values, vectors = torch.linalg.eigh(matrix * units * units.unsqueeze(-1))
    largest = values.abs().amax() if len(values) else values.new_ones(())
    noise = LOUD * information.noise
    known = values > max(NOTHING, noise) * largest
    root = units.unsqueeze(-1) * vectors[:, known] / values[known].sqrt()
    is_maximum = bool((values > -max(UPWARDS, noise) * largest).all())
    return Identification(units, root, vectors[:, ~known], is_maximum)
