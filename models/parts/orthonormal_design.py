r"""The design of a regression in coordinates that do not know its units: centred and orthonormal.

With the features :math:`x`, the line :math:`x'\theta` is :math:`q'T\theta`, where the `q` have mean
square one over the rows and no correlation. Where a column is constant, the intercept, the others
are measured from their means. A prior that is spherical in :math:`T\theta` says the same whatever
the origin and the units of the covariates, and however they move together: it is Zellner's (1986)
g-prior, worth a fixed small part of a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.models.parts.of_data import of_data

__all__ = ["Design", "has_level", "orthonormal"]


@dataclass(frozen=True)
class Design:
    """The coordinates of a design matrix.

    Attributes:
        inverse: the inverse of `T` (F, F): coefficients of the columns from those of `q`.
        rows: `q` (N, F).
        level: the coefficients (F,) of a line that is one everywhere; None if no column is
            constant.
    """

    inverse: Tensor
    rows: Tensor
    level: Tensor | None

    def factor(self) -> Tensor:
        """The lower triangular `L` (F, F) with `L L' = (T' T)^-1`."""
        upper = torch.linalg.qr(self.inverse.mT).R
        lower: Tensor = (upper * upper.diagonal().sign().unsqueeze(-1)).mT
        return lower

    def left(self, y: Tensor, frequency: Tensor) -> Tensor:
        """What the best line leaves of a response (N,)."""
        weights = (frequency / frequency.sum()).double()
        y = y.double()
        for _ in range(2):  # the second time takes what rounding left
            if self.level is not None:
                y = y - weights @ y
            y = y - self.rows @ (self.rows.mT @ (weights * y))
        return y


@of_data
def orthonormal(design: Tensor, frequency: Tensor) -> Design:
    """The coordinates of a design (N, F), its rows counted by frequency (N,)."""
    x, counted = design.double(), (frequency > 0).unsqueeze(-1)
    width = x.shape[-1]
    size = torch.where(counted, x.abs(), 0.0).amax(0)
    weights = (frequency / frequency.sum()).double()
    place = _constant_column(x, frequency)
    centre = x.new_zeros(width)
    if place is not None:
        first = x[frequency > 0][0]
        centre = (first + weights @ (x - first)).index_fill(0, place, 0.0)
        x = x - centre
    spread = (weights @ x.square()).sqrt()
    eps = torch.finfo(design.dtype).eps
    spread = torch.where(spread > eps * size, spread, torch.where(size > 0, size, 1.0))
    triangle = _triangle(
        weights.sqrt().unsqueeze(-1) * x / spread, 32 * width * eps * size / spread
    )
    rows = torch.linalg.solve_triangular(triangle, x / spread, upper=True, left=False)
    # The coordinate of a column that others determine is rounding.
    rows = torch.where(rows.square().mul(weights.unsqueeze(-1)).sum(0) > 0.25, rows, 0.0)
    level = None if place is None else torch.eye(width, dtype=x.dtype)[place[0]] / design[0, place]
    eye = torch.eye(width, dtype=x.dtype)
    inverse = torch.linalg.solve_triangular(triangle, eye, upper=True) / spread.unsqueeze(-1)
    if level is not None:
        inverse = inverse - torch.outer(level, centre @ inverse)
    return Design(inverse, rows, level)


@of_data
def has_level(design: Tensor, frequency: Tensor) -> bool:
    """Whether a column of a design is the same number, not zero, in all rows that count."""
    return _constant_column(design, frequency) is not None


def _constant_column(x: Tensor, frequency: Tensor) -> Tensor | None:
    """The place (1,) of the first column that is the same number, not zero, in all rows."""
    counted = x[frequency > 0]
    same = ((counted == counted[0]).all(0) & (counted[0] != 0)).nonzero()
    return same[0] if len(same) else None


def _triangle(columns: Tensor, rounding: Tensor) -> Tensor:
    """The upper triangular factor of columns (N, F) of length one.

    A column that those before it determine, up to its rounding, keeps its own length: a prior on
    its coefficient, on top of theirs, is then proper.
    """
    least = rounding + 32 * columns.shape[1] * torch.finfo(columns.dtype).eps
    factor, basis = columns.new_zeros(2 * (columns.shape[1],)), torch.zeros_like(columns)
    for j in range(columns.shape[1]):
        left = columns[:, j]
        for _ in range(2):  # Gram and Schmidt: the second time takes what rounding left
            shares = basis[:, :j].mT @ left
            left = left - basis[:, :j] @ shares
            factor[:j, j] += shares
        length = left.norm()
        if bool(length > least[j]):
            factor[j, j], basis[:, j] = length, left / length
        else:
            factor[j, j] = 1.0
    return factor
