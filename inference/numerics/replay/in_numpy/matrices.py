"""Factors of matrices, and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ember.inference.numerics.replay.in_numpy.operands import Expression, Making, Operand

__all__ = ["EXPRESSIONS", "HELPERS"]


def of_triangle(function: str) -> Expression:
    """The part of matrices on one side of the diagonal."""

    def expression(making: Making, x: Operand, diagonal: int = 0) -> str:
        ones = torch.ones(x.like.shape[-2:], dtype=torch.bool)
        kept = torch.tril(ones, diagonal) if function == "tril" else torch.triu(ones, diagonal)
        return f"where({making.constant(kept.numpy())}, {x}, {making.dtype}.type(0))"

    return expression


def factored(making: Making, x: Operand, upper: bool = False, check_errors: bool = False) -> str:
    """A Cholesky factor; where there is none the program ends."""
    if upper:
        raise NotImplementedError
    fine = making.constant(np.zeros(tuple(making.out[1].shape), np.int32))
    return f"(cholesky({x}), {fine})"


def solved(
    making: Making,
    matrix: Operand,
    right: Operand,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> str:
    """Division by a triangular matrix: the other half emptied, any solver will do."""
    if unitriangular or right.like.dim() < 2:
        raise NotImplementedError
    half = of_triangle("triu" if upper else "tril")(making, matrix)
    if left:
        return f"solve({half}, {right})"
    return f"solve(({half}).swapaxes(-1, -2), {right}.swapaxes(-1, -2)).swapaxes(-1, -2)"


def divided(
    making: Making, matrix: Operand, right: Operand, left: bool = True, check_errors: bool = False
) -> str:
    """Division by a matrix; torch gives the matrix's factors too, for who wants them."""
    fine = making.constant(np.zeros(tuple(making.out[3].shape), np.int32))
    if not left or any(making.is_read[1:3]):
        raise NotImplementedError
    if right.like.dim() == matrix.like.dim():
        return f"(solve({matrix}, {right}), None, None, {fine})"
    if right.like.dim() != matrix.like.dim() - 1:
        raise NotImplementedError
    return f"(solve({matrix}, {right}[..., None])[..., 0], None, None, {fine})"


def inverted(making: Making, factor: Operand, upper: bool = False) -> str:
    """The inverse of a matrix from its Cholesky factor."""
    if upper:
        raise NotImplementedError
    one = making.constant(np.eye(factor.like.shape[-1]))
    return f"squared({of_triangle('tril')(making, factor)}, {one})"


def onto_diagonal(
    making: Making, x: Operand, size: Sequence[int], offset: int, dim1: int, dim2: int
) -> str:
    """Numbers on the diagonal of zeros."""
    if offset or {dim1 % len(size), dim2 % len(size)} != {len(size) - 2, len(size) - 1}:
        raise NotImplementedError
    if size[-1] != size[-2]:
        raise NotImplementedError
    on = making.constant(np.eye(size[-1], dtype=bool))
    return f"where({on}, {x}[..., None], {making.dtype}.type(0))"


def diagonal_matrix(
    making: Making, x: Operand, offset: int = 0, dim1: int = -2, dim2: int = -1
) -> str:
    """The same, of the shape that it takes."""
    return onto_diagonal(making, x, making.shape, offset, dim1, dim2)


def checked(making: Making, codes: Operand, *args: object, **kwargs: object) -> str:
    """A check of the codes that torch gives next to factors."""
    return f"check({codes})"


def check(codes: np.ndarray) -> None:
    """Ends the program where a factor was not found."""
    if np.any(codes):
        raise np.linalg.LinAlgError


def inverse_squared(factor: np.ndarray, one: np.ndarray) -> np.ndarray:
    """The inverse of a factor times its transpose."""
    inverse = np.linalg.solve(factor, one)
    return inverse.swapaxes(-1, -2) @ inverse


HELPERS: dict[str, object] = {
    "check": check,
    "cholesky": np.linalg.cholesky,
    "solve": np.linalg.solve,
    "squared": inverse_squared,
}

EXPRESSIONS: dict[str, Expression] = {
    "tril.default": of_triangle("tril"),
    "triu.default": of_triangle("triu"),
    "linalg_cholesky_ex.default": factored,
    "linalg_solve_triangular.default": solved,
    "_linalg_solve_ex.default": divided,
    "cholesky_inverse.default": inverted,
    "diag_embed.default": diagonal_matrix,
    "diagonal_backward.default": onto_diagonal,
    "_linalg_check_errors.default": checked,
}
