"""Logarithms of probabilities that may be zero, finite so that their gradients are."""

import math

import torch
from torch import Tensor

__all__ = ["log_chance", "safe_log"]


LOG_2PI = math.log(2.0 * math.pi)
IMPOSSIBLE = -1e30  # stands for log 0: finite, so that its gradient is 0 and not NaN


def safe_log(x: Tensor) -> Tensor:
    """Logarithm that stays finite at zero, so that an impossible event times no count is zero."""
    return x.clamp_min(torch.finfo(x.dtype).tiny).log()


def log_chance(x: Tensor) -> Tensor:
    """Logarithm of a probability or rate: of zero a number that no data outweigh, and finite.

    The logarithm of the least number, -708, would not do: a row that lies 40 standard deviations
    from everything that is possible would rather do what the model forbids.
    """
    return torch.where(x > 0.0, safe_log(x), IMPOSSIBLE)
