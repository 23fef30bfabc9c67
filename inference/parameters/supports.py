"""Supports of parameters: what they are of, and whether values and closed forms stay in them."""

import math
from collections.abc import Mapping

import pyro.distributions.constraints as constraints
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from ember.inference.parameters.parameter import Parameter

__all__ = [
    "EDGE",
    "INFINITY",
    "NATURAL",
    "all_finite",
    "all_within",
    "base_support",
    "bounds",
    "ends",
    "inwards",
    "is_matrix",
    "is_real",
    "is_simplex",
    "limits",
    "off_open_bounds",
    "shown",
]


EDGE, INFINITY, NATURAL = "edge", "infinity", "natural"  # where a free real may lead
NEAR = 1e-6  # to a bound, in the units in which one leads off it
REAL = ("real", "real_vector")
MATRICES = ("positive_definite", "lower_cholesky", "softplus_lower_cholesky")


def is_real(support: Constraint) -> bool:
    """Whether a parameter's entries may be any real numbers."""
    return _is_one_of(base_support(support), REAL)


def is_simplex(support: Constraint) -> bool:
    """Whether a parameter holds the probabilities of categories."""
    return _is_one_of(base_support(support), ("simplex",))


def is_matrix(support: Constraint) -> bool:
    """Whether a parameter holds positive-definite matrices, or Cholesky factors of such."""
    return _is_one_of(base_support(support), MATRICES)


def bounds(support: Constraint) -> tuple[float | None, float | None] | None:
    """The least and the greatest value of a support that is an interval; None if it is none.

    A bound that varies from entry to entry is NaN, an end without a bound None.
    """
    lower, upper = limits(support)
    if lower is None and upper is None:
        return None
    return _number(lower), _number(upper)


def limits(support: Constraint) -> tuple[Tensor | None, Tensor | None]:
    """The least and the greatest values of entries, where a support is an interval."""
    base = base_support(support)
    found = (getattr(base, name, None) for name in ("lower_bound", "upper_bound"))
    lower, upper = (None if each is None else torch.as_tensor(each).detach() for each in found)
    return lower, upper


def inwards(parameter: Parameter, value: Tensor) -> Tensor | None:
    """For entries next to a bound a unit of length that leads off it, 0 for others; None without.

    The unit is the width of an interval, or how far the parameter starts from the bound.
    """
    lower, upper = (None if e is None else e.to(value) for e in limits(parameter.support))
    if lower is None and upper is None:
        return None
    if lower is not None and upper is not None:
        unit = upper - lower
    else:
        (bound,) = (each for each in (lower, upper) if each is not None)
        unit = (parameter.start.to(value) - bound).abs()
    found = torch.zeros_like(value)
    if lower is not None:
        found = torch.where(value - lower <= NEAR * unit, unit, found)
    if upper is not None:
        found = torch.where(upper - value <= NEAR * unit, -unit, found)
    return found if bool((found != 0.0).any()) else None


def _number(bound: Tensor | None) -> float | None:
    """A bound that all entries share; NaN where they have several."""
    if bound is None:
        return None
    values = bound.reshape(-1)
    shared = len(values) > 0 and bool((values == values[0]).all())
    return float(values[0]) if shared else math.nan


def ends(support: Constraint) -> tuple[str, str]:
    """Where the free reals of a support lead, downwards and upwards.

    Bounds, such as 0 of a rate or those of an interval, are estimates like any others, at a
    *natural* end. At the *edge* of an order two entries meet.
    """
    base = base_support(support)
    if _is_one_of(base, REAL):
        return INFINITY, INFINITY
    limits = bounds(base)
    if limits is None:
        return (EDGE, INFINITY) if "Ordered" in type(base).__name__ else (NATURAL, NATURAL)
    return NATURAL, NATURAL if limits[0] is not None and limits[1] is not None else INFINITY


def shown(support: Constraint) -> str:
    """A support as a reader of the model knows it, such as "Interval(0.5, 2.5)"."""
    base = base_support(support)
    named = next((n for n in constraints.__all__ if getattr(constraints, n) is base), "")
    ends_of = [bound for bound in bounds(base) or () if bound is not None]
    is_one = bool(ends_of) and all(bound == bound for bound in ends_of)  # for all entries
    interval = f"({', '.join(f'{bound:g}' for bound in ends_of)})" if is_one else ""
    return named or f"{type(base).__name__.strip('_')}{interval}"


def base_support(support: Constraint) -> Constraint:
    """The support of one entry (or vector, or matrix) of a parameter of many."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def all_within(parameters: Mapping[str, Parameter], params: Mapping[str, Tensor]) -> bool:
    """Whether every value lies in the support that the model declares for its parameter."""
    checks = (parameters[name].support.check(value) for name, value in params.items())
    return all(bool(each.all() if isinstance(each, Tensor) else each) for each in checks)


def all_finite(params: Mapping[str, Tensor]) -> bool:
    """Whether all entries of all parameters are finite."""
    # A sum is finite where all its terms are, unless it overflows.
    return all(
        math.isfinite(float(value.sum())) or bool(value.isfinite().all())
        for value in params.values()
    )


def off_open_bounds(support: Constraint, value: Tensor) -> Tensor:
    """Values that rounding took to a bound that a support leaves out, moved off it by one rounding.

    Next to zero no rounding does so: there the numbers are as dense as logarithms ask.
    """
    base = base_support(support)
    for kinds, name, way in (
        ((constraints.greater_than,), "lower_bound", math.inf),
        ((constraints.less_than, constraints.half_open_interval), "upper_bound", -math.inf),
    ):
        if isinstance(base, kinds) and not _is_zero(getattr(base, name)):
            bound = torch.as_tensor(getattr(base, name), dtype=value.dtype, device=value.device)
            inside = torch.nextafter(bound, torch.full_like(bound, way))
            value = torch.where((value == bound) & (bound != 0.0), inside, value)
    return value


def _is_zero(bound: object) -> bool:
    return isinstance(bound, (int, float)) and bound == 0


def _is_one_of(support: Constraint, names: tuple[str, ...]) -> bool:
    return any(support is getattr(constraints, name) for name in names)
