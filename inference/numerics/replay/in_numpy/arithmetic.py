"""Sums, products, functions, comparisons and reductions."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special
import torch

from ember.inference.numerics.replay.in_numpy.operands import (
    Expression,
    Making,
    Operand,
    number,
)

__all__ = ["EXPRESSIONS", "HELPERS"]


def infix(sign: str) -> Expression:
    """Two operands with a sign between them."""

    def expression(making: Making, left: object, right: object, alpha: object = 1) -> str:
        right = number(making, right)
        if alpha != 1:
            right = f"({number(making, alpha)} * {right})"
        return f"{number(making, left)} {sign} {right}"

    return expression


def prefix(function: str) -> Expression:
    """A function of one array of real numbers."""

    def expression(making: Making, x: Operand) -> str:
        if not x.like.is_floating_point():
            raise NotImplementedError
        return f"{function}({x})"

    return expression


def logical(sign: str) -> Expression:
    """A statement about statements."""

    def expression(making: Making, *operands: Operand) -> str:
        if any(x.like.dtype is not torch.bool for x in operands):
            raise NotImplementedError
        return f" {sign} ".join(operands) if len(operands) > 1 else f"{sign}{operands[0]}"

    return expression


def of_two(function: str) -> Expression:
    """A function of two arrays, or of an array and a number."""
    return lambda making, x, y: f"{function}({number(making, x)}, {number(making, y)})"


def clamped(making: Making, x: Operand, least: object = None, most: object = None) -> str:
    """Between two bounds."""
    made = str(x) if least is None else f"maximum({x}, {number(making, least)})"
    return made if most is None else f"minimum({made}, {number(making, most)})"


def product_added(
    making: Making, x: Operand, left: Operand, right: Operand, beta: object = 1, alpha: object = 1
) -> str:
    """A matrix plus a product."""
    if beta != 1 or alpha != 1:
        raise NotImplementedError
    return f"{x} + {left} @ {right}"


def power(making: Making, x: Operand, exponent: object) -> str:
    """A power; squares and roots are had more cheaply."""
    if exponent == 2:
        return f"square({x})"
    return f"{x} ** {number(making, exponent)}"


def replaced(making: Making, x: Operand, mask: Operand, value: object) -> str:
    """A value where a mask is true."""
    return f"where({mask}, {number(making, value)}, {x})"


def reduced(function: str) -> Expression:
    """A reduction over some dims, or all."""

    def expression(
        making: Making, x: Operand, dim: Any = None, keepdim: bool = False, dtype: object = None
    ) -> str:
        if dtype is not None:
            raise NotImplementedError
        if not x.like.dim():
            return str(x)
        axes = dim if dim is None or isinstance(dim, int) else tuple(dim) or None
        return f"{function}({x}, {axes}{', keepdims=True' if keepdim else ''})"

    return expression


def truth(making: Making, x: Operand) -> str:
    """A number as a value of Python."""
    return str(x)


def all_true(making: Making, x: Operand) -> str:
    """Whether all are true."""
    return f"all_of({x}, None)" if x.like.dim() else str(x)


def equal(making: Making, x: Operand, y: Operand) -> str:
    """Whether two arrays hold the same."""
    return f"array_equal({x}, {y})"


def log_sum_exp(x: Any, axes: Any, keepdims: bool = False) -> Any:
    """The logarithm of a sum of exponentials; of nothing but zeros it is minus infinity."""
    top = np.maximum.reduce(x, axes, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    found = np.log(np.add.reduce(np.exp(x - top), axes, keepdims=True)) + top
    return found if keepdims else np.squeeze(found, axes)


FUNCTIONS = "abs exp expm1 isinf isnan log log1p reciprocal sqrt tanh"
HELPERS: dict[str, object] = {
    **{name: getattr(np, name) for name in FUNCTIONS.split()},
    "add_up": np.add.reduce,
    "all_of": np.logical_and.reduce,
    "any_of": np.logical_or.reduce,
    "array_equal": np.array_equal,
    "greatest": np.maximum.reduce,
    "least": np.minimum.reduce,
    "log_sum_exp": log_sum_exp,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "sigmoid": scipy.special.expit,
    "square": np.square,
    "where": np.where,
    "xlogy": scipy.special.xlogy,
}

SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
COMPARISONS = {"eq": "==", "ne": "!=", "ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
INFIX = {
    **{
        f"{name}.{k}": s
        for name, s in {**SIGNS, **COMPARISONS}.items()
        for k in ("Tensor", "Scalar")
    },
    "bitwise_or.Tensor": "|",
    "bitwise_or.Scalar": "|",
    "bitwise_and.Tensor": "&",
    "bmm.default": "@",
    "mm.default": "@",
    "mv.default": "@",
    "dot.default": "@",
}
OF_TWO = {
    "xlogy.Tensor": "xlogy",
    "maximum.default": "maximum",
    "minimum.default": "minimum",
    "clamp_min.default": "maximum",
    "clamp_max.default": "minimum",
}
REDUCTIONS = {
    "sum.default": "add_up",
    "sum.dim_IntList": "add_up",
    "amax.default": "greatest",
    "amin.default": "least",
    "any.default": "any_of",
    "any.dim": "any_of",
    "all.default": "all_of",
    "all.dim": "all_of",
    "logsumexp.default": "log_sum_exp",
}
EXPRESSIONS: dict[str, Expression] = {
    **{name: infix(sign) for name, sign in INFIX.items()},
    **{name: of_two(function) for name, function in OF_TWO.items()},
    **{name: reduced(function) for name, function in REDUCTIONS.items()},
    **{f"{name}.default": prefix(name) for name in [*FUNCTIONS.split(), "sigmoid"]},
    "sigmoid_backward.default": lambda making, x, y: f"{x} * {y} * (1.0 - {y})",
    "rsub.Scalar": lambda making, x, y: f"{number(making, y)} - {x}",
    "neg.default": lambda making, x: f"-{x}",
    "bitwise_not.default": lambda making, x: f"~{x}",
    "logical_not.default": logical("~"),
    "logical_or.default": logical("|"),
    "logical_and.default": logical("&"),
    "pow.Tensor_Scalar": power,
    "pow.Tensor_Tensor": power,
    "addmm.default": product_added,
    "clamp.default": clamped,
    "clamp.Tensor": clamped,
    "where.self": lambda making, c, x, y: f"where({c}, {number(making, x)}, {number(making, y)})",
    "masked_fill.Scalar": replaced,
    "masked_fill.Tensor": replaced,
    "_local_scalar_dense.default": truth,
    "_is_all_true.default": all_true,
    "equal.default": equal,
}
