r"""Densities that are ratios of gamma functions, exact where they approach their limits.

Data without overdispersion lead a negative binomial to a Poisson, a beta-binomial to a binomial,
normal data a Student's t to a normal: some parameter grows without bound. The textbook formula is
then a difference of numbers so much larger than itself that nothing but rounding is left of it,
and a maximisation would climb that rounding. All of them can be written with

.. math:: \log r^{\overline{x}} = \log\Gamma(r + x) - \log\Gamma(r),

which has a series for large ``r``.
"""

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.large_counts import MANY, binomial, gamma_poisson, poisson
from ember.inference.numerics.log_space import safe_log

__all__ = ["exact_log_prob", "log_rising", "stirling_rest"]


LARGE = 1e4


def log_rising(r: Tensor, x: Tensor) -> Tensor:
    """``log Gamma(r + x) - log Gamma(r)``; for large ``r`` by the difference of two series."""
    is_large = r > LARGE
    small, large = torch.where(is_large, 1.0, r), torch.where(is_large, r, LARGE)
    first = (1.0 / (large + x) - 1.0 / large) / 12.0  # the next term is below 1e-15
    series = (large - 0.5) * torch.log1p(x / large) + x * torch.log(large + x) - x + first
    return torch.where(is_large, series, torch.lgamma(small + x) - torch.lgamma(small))


def stirling_rest(r: Tensor) -> Tensor:
    """``r log r - r - log Gamma(r)``; for large ``r`` what Stirling's formula leaves of it."""
    is_large = r > LARGE
    small, large = torch.where(is_large, 1.0, r), torch.where(is_large, r, LARGE)
    series = 0.5 * torch.log(large / (2.0 * math.pi)) - 1.0 / (12.0 * large)
    return torch.where(is_large, series, torch.xlogy(small, small) - small - torch.lgamma(small))


def _negative_binomial(fn: dist.NegativeBinomial, x: Tensor) -> Tensor:
    r, logits = fn.total_count, fn.logits
    occurs = r * F.logsigmoid(-logits) + x * F.logsigmoid(logits)
    # Where total_count is 0 the count is 0 for certain.
    certain = (r + x) == 0.0
    rising = log_rising(torch.where(certain, 1.0, r), x)
    direct = occurs + rising - torch.lgamma(x + 1.0)
    return _with_large(direct, r, r * torch.exp(logits), x)


def _with_large(direct: Tensor, r: Tensor, mean: Tensor, x: Tensor) -> Tensor:
    """Log probabilities of counts, those of large ones without a difference of large numbers."""
    many = (x > MANY) & (r > 0.0)
    if not bool(many.any()):
        return direct
    safe = torch.where(r > 0.0, r, 1.0)
    return torch.where(many, gamma_poisson(safe, mean, torch.where(many, x, 1.0)), direct)


def _gamma_poisson(fn: dist.GammaPoisson, x: Tensor) -> Tensor:
    r, rate = fn.concentration, fn.rate
    counts = log_rising(r, x) - torch.lgamma(x + 1.0)
    direct = counts - r * torch.log1p(1.0 / rate) - x * torch.log1p(rate)
    return _with_large(direct, r, r / rate, x)


def _beta_binomial(fn: dist.BetaBinomial, x: Tensor) -> Tensor:
    a, b, n = fn.concentration1, fn.concentration0, fn.total_count
    rest = n - x
    choices = torch.lgamma(n + 1.0) - torch.lgamma(x + 1.0) - torch.lgamma(rest + 1.0)
    direct = choices + log_rising(a, x) + log_rising(b, rest) - log_rising(a + b, n)
    if not bool((n > MANY).any()):
        return direct
    ways = _over_factorial(x, a) + _over_factorial(rest, b) - _over_factorial(n, a + b)
    large = ways + torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
    return torch.where((n > MANY) & (n > a + b), large, direct)


def _over_factorial(x: Tensor, a: Tensor) -> Tensor:
    """``log Gamma(x + a) - log x!``, which is no larger than ``a log x``."""
    return log_rising(x + 1.0, a - 1.0)


def _dirichlet_multinomial(fn: dist.DirichletMultinomial, x: Tensor) -> Tensor:
    a, n = fn.concentration, x.sum(-1)
    ways = torch.lgamma(n + 1.0) - torch.lgamma(x + 1.0).sum(-1)
    direct = ways + log_rising(a, x).sum(-1) - log_rising(a.sum(-1), n)
    if not bool((n > MANY).any()):
        return direct
    large = _over_factorial(x, a).sum(-1) - _over_factorial(n, a.sum(-1))
    large = large + torch.lgamma(a.sum(-1)) - torch.lgamma(a).sum(-1)
    return torch.where((n > MANY) & (n > a.sum(-1)), large, direct)


def _student(fn: dist.StudentT, x: Tensor) -> Tensor:
    df, scale = fn.df, fn.scale
    squared = ((x - fn.loc) / scale).square()
    constant = log_rising(0.5 * df, df.new_full((), 0.5))
    constant = constant - 0.5 * torch.log(math.pi * df) - torch.log(scale)
    density: Tensor = constant - 0.5 * (df + 1.0) * torch.log1p(squared / df)
    return density


def _zero_inflated(fn: dist.ZeroInflatedDistribution, x: Tensor) -> Tensor:
    if "gate" in fn.__dict__:
        shut, is_open = safe_log(fn.gate), torch.log1p(-fn.gate)
    else:
        shut, is_open = F.logsigmoid(fn.gate_logits), F.logsigmoid(-fn.gate_logits)
    count = is_open + exact_log_prob(fn.base_dist, x)
    return torch.where(x == 0, torch.logaddexp(shut, count), count)


def exact_log_prob(fn: Distribution, x: Tensor) -> Tensor:
    """The log density of a distribution, by the formulas above where it is one of theirs."""
    log_prob: Tensor = RATIOS.get(type(fn), type(fn).log_prob)(fn, x)
    return log_prob


RATIOS: dict[type, Callable[..., Tensor]] = {
    dist.Poisson: poisson,
    dist.Binomial: binomial,
    dist.NegativeBinomial: _negative_binomial,
    dist.GammaPoisson: _gamma_poisson,
    dist.BetaBinomial: _beta_binomial,
    dist.DirichletMultinomial: _dirichlet_multinomial,
    dist.StudentT: _student,
    dist.ZeroInflatedDistribution: _zero_inflated,
    dist.ZeroInflatedNegativeBinomial: _zero_inflated,
    dist.ZeroInflatedPoisson: _zero_inflated,
}
