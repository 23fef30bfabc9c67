r"""Confidence intervals, made where an entry is free and mapped back.

For an entry :math:`\theta` with standard error :math:`s` and a map :math:`g` onto the reals (the
logarithm for positive entries, the logit between two bounds, the identity without bounds)

.. math:: g^{-1}\big(g(\hat\theta) \pm z_{(1 + \gamma)/2} \, g'(\hat\theta) \, s\big),

so that an interval never leaves the support. For parameters that pass through these maps themselves
it is the interval of the unconstrained coordinate.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Interval", "between_bounds", "check_level"]


class Interval(NamedTuple):
    """The two ends of an interval for each entry, in the shape of the estimate."""

    lower: Tensor
    upper: Tensor


def check_level(level: object) -> float:
    """The level as a number.

    Raises:
        ValueError: If it is no number between 0 and 1.
    """
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0.0 < level < 1.0:
        raise ValueError(f"level={level!r} must be a number between 0 and 1, such as 0.95.")
    return float(level)


def between_bounds(
    value: Tensor, errors: Tensor, low: Tensor, high: Tensor, level: float
) -> Interval:
    """The ends for each value; NaN where it has no standard error.

    Args:
        value: The estimates.
        errors: Their standard errors.
        low: Their least values, minus infinity where there is none.
        high: Their largest.
        level: The probability of the interval.
    """
    half = torch.special.ndtri(torch.tensor(0.5 + 0.5 * level, dtype=torch.float64)) * errors
    above, below = value - low, high - value
    ends = []
    for sign in (-1.0, 1.0):
        plain = value + sign * half
        from_low = low + above * (sign * half / above).exp()
        from_high = high - below * (-sign * half / below).exp()
        logit = (above / below).log() + sign * half * (1.0 / above + 1.0 / below)
        inside = low + (high - low) * logit.sigmoid()
        one_sided = torch.where(low.isfinite(), from_low, from_high)
        bounded = torch.where(low.isfinite() & high.isfinite(), inside, one_sided)
        free = low.isinf() & high.isinf()
        end = torch.where(free, plain, bounded)
        ends.append(torch.where(errors == 0.0, value, torch.where(errors.isnan(), errors, end)))
    return Interval(*ends)
