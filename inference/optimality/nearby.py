"""The E-step at places next to one that is known: where it can be made, and what rounding does."""

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from ember.inference.numerics.draws import Draws
from ember.inference.parameters.supports import all_finite
from ember.inference.plan.statistics import Statistics

__all__ = ["EStep", "evaluated", "rounding"]


EStep = Callable[[Mapping[str, Tensor]], Statistics]
JITTERS = 3  # of the last digits
LAST_DIGITS = 4e-16  # relative


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
