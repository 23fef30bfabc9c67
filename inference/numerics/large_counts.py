r"""Probabilities of large counts, to their last digits (Loader 2000).

:math:`x \log\mu - \mu - \log x!` is, for a count of a billion, a difference of numbers ten billion
times larger than itself. With the deviance and the rest of Stirling's formula,

.. math:: d(x, \mu) = x \log(x / \mu) + \mu - x, \qquad h(x) = \log x! - x \log x + x,

nothing large is subtracted: a Poisson probability is :math:`\exp(-d(x, \mu) - h(x))`, and those of
a binomial and a multinomial are alike.

Reference: Loader (2000), *Fast and accurate computation of binomial probabilities*.
"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["MANY", "binomial", "deviance", "gamma_poisson", "poisson", "stirling_rest"]


MANY = 1e5  # a count from which on the textbook formula loses more than its last six digits
CLOSE = 0.1
TERMS = 9  # of a series in squares of CLOSE, to the last digit
LARGE = 16.0  # from which on the series for the rest is exact
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def deviance(x: Tensor, mean: Tensor, away: Tensor | None = None) -> Tensor:
    """``x log(x / mean) + mean - x``, to its last digits where the two are close.

    Args:
        x: Counts.
        mean: What is expected.
        away: Their difference, if it is known better than from their own digits.
    """
    x, mean = torch.broadcast_tensors(x, mean)
    away = x - mean if away is None else away
    total = x + mean
    share = torch.where(total > 0.0, away / torch.where(total > 0.0, total, 1.0), 0.0)
    close = share.abs() < CLOSE
    v = torch.where(close, share, 0.0)
    series = away * v
    power = 2.0 * x * v
    for j in range(1, TERMS):
        power = power * v * v
        series = series + power / (2 * j + 1)
    apart = (x > 0.0) & ~close
    ratio = torch.where(apart, x, 1.0) / torch.where(apart, mean, 1.0)
    return torch.where(close, series, torch.where(apart, x * ratio.log(), 0.0) + mean - x)


def _series(x: Tensor) -> Tensor:
    """What Stirling's formula lacks, for large numbers."""
    inverse = 1.0 / (x * x)
    terms = (1.0 / 12.0, -1.0 / 360.0, 1.0 / 1260.0, -1.0 / 1680.0, 1.0 / 1188.0)
    total = torch.zeros_like(x)
    for term in reversed(terms):
        total = total * inverse + term
    return total / x


def stirling_rest(x: Tensor) -> Tensor:
    """``log x! - x log x + x``: about half the logarithm of ``2 pi x``."""
    large = torch.where(x > LARGE, x, LARGE)
    small = torch.where((x > 0.0) & (x <= LARGE), x, 1.0)
    direct = torch.lgamma(small + 1.0) - small * small.log() + small
    rest = torch.where(x > LARGE, HALF_LOG_2PI + 0.5 * large.log() + _series(large), direct)
    return torch.where(x > 0.0, rest, 0.0)


def poisson(fn: dist.Poisson, x: Tensor) -> Tensor:
    """The log probability of a Poisson count."""
    if not bool((x > MANY).any()):
        return torch.as_tensor(fn.log_prob(x))
    exact = -deviance(x, fn.rate) - stirling_rest(x)
    return torch.where(x > MANY, exact, fn.log_prob(x))


def binomial(fn: dist.Binomial, x: Tensor) -> Tensor:
    """The log probability of a binomial count."""
    n = fn.total_count.to(fn.probs.dtype)
    if not bool((n > MANY).any()):
        return torch.as_tensor(fn.log_prob(x))
    p, rest = fn.probs, n - x
    exact = -deviance(x, n * p) - deviance(rest, n * (1.0 - p))
    exact = exact + stirling_rest(n) - stirling_rest(x) - stirling_rest(rest)
    return torch.where(n > MANY, exact, fn.log_prob(x))


def gamma_poisson(r: Tensor, mean: Tensor, x: Tensor) -> Tensor:
    """The log probability of a large count whose rate is Gamma with shape ``r``."""
    # log Gamma(r) - r log r + r is the rest of r, less the logarithm of r.
    rest = stirling_rest(x + r) - (x + r).log() - stirling_rest(x) - stirling_rest(r) + r.log()
    return deviance(r + x, r + mean, x - mean) - deviance(x, mean) + rest
