r"""Coordinates in which a regression loses no digits: features centred, scaled and orthogonal.

A line :math:`x'\theta` over years, or over seconds since 1970, is a small difference of large
numbers, and its cross-products keep none of the digits that tell the years apart. So the features
are moved to their means (where one of them is constant and can take up the difference), divided by
their spread and made orthogonal, and the response is measured from the one line of all rows:

.. math:: x'\theta = q'T\theta, \qquad T^\top q = x, \qquad z = y - q'l.

Coefficients that several predictors share get joint coordinates :math:`\theta = M\varphi` in the
same manner. Reference: Higham (2002), *Accuracy and Stability of Numerical Algorithms*, 2nd ed.,
SIAM, chapter 20.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Frame", "frame_of", "joint_coordinates", "level_frame"]


EPS = torch.finfo(torch.float64).eps
DEPENDENT = 1e-14  # what is left of a column that the others determine, relative to it


@dataclass(frozen=True, eq=False)
class Frame:
    """The coordinates ``q`` of the features ``x`` of one regression, and its line of reference.

    Attributes:
        constant: The place and the value of a feature that is the same in all rows, or None.
        centre: Where the other features are measured from, ``(F,)``; 0 without a constant one.
        factor: Upper triangular ``(F, F)``: centred features are ``q @ factor``.
        line: The coefficients of the line of reference, in these coordinates, ``(F,)``; one for
            each cell of a group, ``(C, F)``.
        dependent: Features that those before them determine, whose coordinate is always zero.
    """

    constant: tuple[int, float] | None
    centre: Tensor
    factor: Tensor
    line: Tensor
    dependent: Tensor

    @functools.cached_property
    def matrix(self) -> Tensor:
        """``T``: coefficients of ``q`` from those of ``x``."""
        return self.factor @ self._recentring(self.centre)

    @property
    def determined(self) -> Tensor:
        """``T`` without the rows of coordinates that are always zero."""
        return torch.where(self.dependent.unsqueeze(-1), 0.0, self.matrix)

    def _recentring(self, centre: Tensor) -> Tensor:
        """What moves the height of a line from the origin to the centre of the features."""
        moved = torch.eye(len(centre), dtype=torch.float64, device=centre.device)
        if self.constant is not None:
            place, value = self.constant
            moved[place] += centre / value
        return moved

    def features(self, x: Tensor) -> Tensor:
        """The coordinates of features, ``(..., F)``."""
        if self.constant is not None:
            place, value = self.constant
            x = x - self.centre * (x[..., place : place + 1] / value)
        flat = x.reshape(-1, x.shape[-1])
        q: Tensor = torch.linalg.solve_triangular(self.factor, flat, upper=True, left=False)
        return q.reshape(x.shape)

    def relative(self, coefficients: Tensor) -> Tensor:
        """Coefficients ``(..., F)`` in these coordinates, measured from the line of reference."""
        return coefficients @ self.matrix.mT - self.line

    def about(self, line: Tensor) -> "Frame":
        """The same coordinates, responses measured from another line, or from one a cell."""
        return dataclasses.replace(self, line=line)

    def widened(self, width: int) -> "Frame":
        """The same with features after these that stay as they are."""
        more = width - len(self.centre)
        if not more:
            return self
        zeros, own = self.centre.new_zeros(more), len(self.centre)
        factor = torch.eye(width, dtype=self.factor.dtype, device=self.factor.device)
        factor[:own, :own] = self.factor
        return Frame(
            self.constant,
            torch.cat([self.centre, zeros]),
            factor,
            torch.cat([self.line, zeros]),
            torch.cat([self.dependent, zeros != 0]),
        )

    def lines_of(self, other: "Frame") -> Tensor:
        """The other frame's lines of reference in these coordinates."""
        lines: Tensor = torch.linalg.solve(self._turn(other).mT, other.line.mT).mT
        return lines

    def from_other(self, other: "Frame") -> Tensor:
        """The matrices that take the other's ``(q, z)`` to these, ``(C, F + 1, F + 1)``."""
        turn = self._turn(other)
        full = torch.eye(len(turn) + 1, dtype=torch.float64, device=turn.device).repeat(
            len(self.line), 1, 1
        )
        full[:, :-1, :-1] = turn
        full[:, -1, :-1] = other.line - self.line @ turn
        return full

    def _turn(self, other: "Frame") -> Tensor:
        """``B`` with ``q = B q'`` for the other's coordinates ``q'``."""
        if self.constant is not None and self.constant == other.constant:
            between = self._recentring(other.centre - self.centre)
        else:
            between = other._recentring(other.centre) @ self._recentring(-self.centre)
        turned: Tensor = torch.linalg.solve_triangular(
            self.factor.mT, between.mT @ other.factor.mT, upper=False
        )
        return turned


def frame_of(x: Tensor, y: Tensor, weights: Tensor) -> Frame:
    """The frame of features ``(N, F)`` and responses ``(N,)``, rows weighted ``(N,)``."""
    shown = (weights > 0) & x.isfinite().all(-1) & y.isfinite()
    x, y, weights = x[shown], y[shown], weights[shown]
    width = x.shape[-1]
    nothing, eye = x.new_zeros(width), torch.eye(width, dtype=x.dtype, device=x.device)
    if not x.numel():
        return Frame(None, nothing, eye, nothing, nothing == 0)
    weights = weights / weights.sum()
    same = ((x == x[0]).all(0) & (x[0] != 0)).nonzero().reshape(-1)
    constant = (int(same[0]), float(x[0, same[0]])) if len(same) else None
    centre = nothing
    if constant is not None:
        mean = x[0] + weights @ (x - x[0])
        centre = torch.where(torch.arange(width, device=x.device) == constant[0], 0.0, mean)
    frame = Frame(constant, centre, eye, nothing, nothing == 0)
    centred, root = frame.features(x), weights.sqrt().unsqueeze(-1)
    spread = (root * centred).norm(dim=0)
    size = x.abs().amax(0)
    spread = torch.where(spread > EPS * size, spread, torch.where(size > 0, size, 1.0))
    rounding = 32.0 * width * EPS * (1.0 + size / spread)
    triangle, dependent = _triangle(root * centred / spread, rounding)
    frame = Frame(constant, centre, triangle * spread, nothing, dependent)
    weighted = root * frame.features(x)
    found = torch.linalg.lstsq(weighted, root * y.unsqueeze(-1), driver="gelsd").solution[:, 0]
    # The solution stands in memory of the length of the data, which a frame should not keep.
    return dataclasses.replace(frame, line=found.clone())


def level_frame(value: float, mean: float) -> Frame:
    """The frame of rows with one feature, of the same value in all, and the mean of responses."""
    nothing = torch.zeros(1, dtype=torch.float64)
    line = torch.tensor([math.copysign(mean, value * mean)], dtype=torch.float64)
    size = torch.tensor([[abs(value)]], dtype=torch.float64)
    return Frame((0, value), nothing, size, line, nothing != 0)


def _triangle(columns: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """An upper triangular ``R`` such that ``columns @ R^-1`` is orthonormal.

    A column that those before it determine, up to its ``rounding``, keeps a length of its own;
    the second result marks such columns.
    """
    width = columns.shape[1]
    factor, failed = torch.linalg.cholesky_ex(columns.mT @ columns, upper=True)
    if not int(failed) and bool((factor.diagonal() > 1e-3).all()):
        return factor, columns.new_zeros(width, dtype=torch.bool)
    # Gram-Schmidt, twice: unlike reflections it gives a dependent column no direction of its own.
    triangle, basis = torch.zeros_like(factor), torch.zeros_like(columns)
    for j in range(width):
        left = columns[:, j]
        for _ in range(2):
            shares = basis[:, :j].mT @ left
            left = left - basis[:, :j] @ shares
            triangle[:j, j] += shares
        length = left.norm()
        if float(length) > float(rounding[j]):
            triangle[j, j], basis[:, j] = length, left / length
    dependent = triangle.diagonal() == 0.0
    return triangle + torch.diag(dependent.to(triangle.dtype)), dependent


def joint_coordinates(
    rows: Sequence[tuple[Tensor, Tensor]], count: int
) -> tuple[Tensor, list[Tensor]]:
    """Coordinates of all coefficients together: ``theta = M phi``.

    Args:
        rows: For each design the matrix ``T (F, F)`` of its frame, and which of the coefficients
            each row of its table holds, ``(R, F)``.
        count: The number ``P`` of coefficients.

    Returns:
        ``M (P, P)``, and for each design the columns of ``T`` in the new coordinates,
        ``(R, F, P)``. Directions that no design determines are free coordinates of their own.
    """
    blocks = []
    for matrix, places in rows:
        block = matrix.new_zeros(len(places), len(matrix), count)
        spread = places.unsqueeze(1).expand(-1, len(matrix), -1)
        blocks.append(block.scatter_add_(2, spread, matrix.expand(len(places), -1, -1)))
    stacked = torch.cat([block.flatten(0, 1) for block in blocks])
    scale = stacked.norm(dim=0)
    scale = torch.where(scale > 0, scale, 1.0)
    triangle, dependent = _triangle(stacked / scale, scale.new_full((count,), DEPENDENT * count))
    turned = torch.linalg.solve_triangular(triangle, stacked / scale, upper=True, left=False)
    turned = torch.where(dependent, 0.0, turned)
    inverse = torch.linalg.solve_triangular(
        triangle, torch.eye(count, dtype=scale.dtype, device=scale.device), upper=True
    )
    sizes = [block.shape[0] * block.shape[1] for block in blocks]
    pieces = turned.split(sizes)
    seen = [piece.reshape(block.shape) for piece, block in zip(pieces, blocks, strict=True)]
    return inverse / scale.unsqueeze(-1), seen
