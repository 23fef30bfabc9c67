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
from ember.models.parts.triangles import Constants, Triangle, constants, triangle

__all__ = ["Design", "has_level", "left_variance", "orthonormal"]


@dataclass(frozen=True)
class Design:
    """The coordinates of a design matrix.

    Attributes:
        inverse: the inverse of `T` (F, F): coefficients of the columns from those of `q`.
        level: the coefficients (F,) of a line that is one everywhere; None if no column is
            constant.
    """

    inverse: Tensor
    level: Tensor | None

    def factor(self) -> Tensor:
        """The lower triangular `L` (F, F) with `L L' = (T' T)^-1`."""
        upper = torch.linalg.qr(self.inverse.mT).R
        lower: Tensor = (upper * upper.diagonal().sign().unsqueeze(-1)).mT
        return lower


@of_data
def orthonormal(design: Tensor, frequency: Tensor) -> Design:
    """The coordinates of a design (N, F), its rows counted by frequency (N,)."""
    known = constants(design, frequency)
    found = _Columns.of(triangle(design, frequency), known, torch.finfo(design.dtype).eps)
    if found.place is None or known.value is None:
        return Design(found.inverse, None)
    unit = torch.eye(len(found.centre), dtype=found.centre.dtype)[found.place]
    level = unit / known.value[found.place]
    return Design(found.inverse - torch.outer(level, found.centre @ found.inverse), level)


@of_data
def has_level(design: Tensor, frequency: Tensor) -> bool:
    """Whether a column of a design is the same number, not zero, in all rows that count."""
    return _constant_column(constants(design, frequency)) is not None


@of_data
def left_variance(y: Tensor, design: Tensor, frequency: Tensor) -> Tensor:
    """The variance that the best line of a design (N, F) leaves of a response (N,).

    Never less than a ten-thousandth of the response's own; one where that is zero.
    """
    rows = torch.cat([design, y.unsqueeze(-1)], 1)
    both, known = triangle(rows, frequency), constants(design, frequency)
    of_design = Triangle(both.factor[:, :-1], both.reference[:-1], both.size[:-1])
    found = _Columns.of(of_design, known, torch.finfo(design.dtype).eps)
    centred = both.about_mean[:, -1]
    overall = centred.square().sum() / both.total
    rest = centred
    if found.place is None:
        rest = both.about(torch.zeros_like(both.reference))[:, -1]
    for _ in range(2):  # the second time takes what rounding left
        rest = rest - found.rows @ (found.rows.mT @ rest)
    left = rest.square().sum() / both.total
    return torch.maximum(left, torch.where(overall > 0, 1e-4 * overall, 1.0)).to(y)


@dataclass(frozen=True)
class _Columns:
    """The columns of a design in coordinates of their own.

    Attributes:
        inverse: the coefficients (F, F) of the columns from those of `q`.
        rows: orthonormal (M, F), `q` of the rows that stand for all; 0 where others determine it.
        centre: what the columns are measured from (F,), their means if one of them is constant.
        place: that of the constant column; None if there is none.
    """

    inverse: Tensor
    rows: Tensor
    centre: Tensor
    place: int | None

    @classmethod
    def of(cls, of_rows: Triangle, known: Constants, eps: float) -> "_Columns":
        width, size, place = len(of_rows.reference), of_rows.size, _constant_column(known)
        if place is None:
            centre = torch.zeros_like(of_rows.reference)
            x = of_rows.about(centre)
        else:
            centre, x = of_rows.mean, of_rows.about_mean
            centre[place] = 0.0
            x[:, place] = of_rows.about(centre)[:, place]
        x = x / of_rows.total.sqrt()
        spread = x.square().sum(0).sqrt()
        spread = torch.where(spread > eps * size, spread, torch.where(size > 0, size, 1.0))
        upper = _triangle(x / spread, 32 * width * eps * size / spread)
        rows = torch.linalg.solve_triangular(upper, x / spread, upper=True, left=False)
        # The coordinate of a column that others determine is rounding.
        rows = torch.where(rows.square().sum(0) > 0.25, rows, 0.0)
        eye = torch.eye(width, dtype=x.dtype)
        inverse = torch.linalg.solve_triangular(upper, eye, upper=True) / spread.unsqueeze(-1)
        return cls(inverse, rows, centre, place)


def _constant_column(known: Constants) -> int | None:
    """The place of the first column that is the same number, not zero, in all rows."""
    if known.value is None:
        return None
    same = (~known.value.isnan() & (known.value != 0)).nonzero()
    return int(same[0]) if len(same) else None


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
