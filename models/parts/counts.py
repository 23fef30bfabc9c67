"""Counts behind a gate: zero where it is shut; where it is open any count, or a positive one."""

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

__all__ = ["GammaPoisson", "GatedGammaPoisson", "PositiveGammaPoisson", "PositivePoisson"]


class _Gated(TorchDistribution):
    """A count where `occurs` is 1, zero where it is 0."""

    support = constraints.nonnegative_integer
    occurs: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        shut = torch.where(value == 0, 0.0, -torch.inf)
        return torch.where(self.occurs > 0, self._open_log_prob(value), shut)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw counts."""
        with torch.no_grad():
            expanded = self.expand(torch.Size(sample_shape) + self.batch_shape)
            return torch.where(expanded.occurs > 0, expanded._open_sample(), 0.0)

    def whole(self) -> TorchDistributionMixin:
        """The distribution of a count behind an open gate, before any truncation."""
        raise NotImplementedError

    def _open_log_prob(self, value: Tensor) -> Tensor:
        log_prob: Tensor = self.whole().log_prob(value)
        return log_prob

    def _open_sample(self) -> Tensor:
        drawn: Tensor = self.whole().sample()
        return drawn


class _Positive(_Gated):
    """A count truncated at zero where `occurs` is 1.

    Such a count is a sum of clusters, of which a Poisson process makes a random number, one at
    least.
    """

    def _open_log_prob(self, value: Tensor) -> Tensor:
        inside = torch.where(value > 0, value, 1.0)
        # No cluster has the probability exp(-rate of clusters).
        truncated = self.whole().log_prob(inside) - torch.log(-torch.expm1(-self._clusters()))
        return torch.where(value > 0, truncated, -torch.inf)

    def _clusters(self) -> Tensor:
        """The expected number of clusters."""
        raise NotImplementedError

    def _left(self) -> Tensor:
        """What is left of the unit interval after the first cluster, given that there is one."""
        rate = self._clusters()
        u = torch.rand(rate.shape, dtype=rate.dtype, device=rate.device)
        arrival = -torch.log1p(u * torch.expm1(-rate)) / rate
        return (1.0 - arrival).clamp_min(torch.finfo(rate.dtype).tiny)


class PositivePoisson(_Positive):
    """A Poisson count truncated at zero where `occurs` is 1, zero where it is 0."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "rate": constraints.positive,
        "occurs": constraints.boolean,
    }

    def __init__(self, rate: Tensor, occurs: Tensor, validate_args: bool | None = None) -> None:
        self.rate, self.occurs = broadcast_all(rate, occurs)
        super().__init__(self.rate.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "PositivePoisson":
        return PositivePoisson(self.rate.expand(batch_shape), self.occurs.expand(batch_shape))

    def whole(self) -> TorchDistributionMixin:
        return dist.Poisson(self.rate, validate_args=False)

    def _clusters(self) -> Tensor:
        return self.rate

    def _open_sample(self) -> Tensor:
        return 1.0 + torch.poisson(self.rate * self._left())


class GammaPoisson(dist.GammaPoisson):
    """Pyro's distribution, with a density that stays exact as it approaches the Poisson.

    At a concentration of a thousand million, which is where data that vary no more than Poisson
    counts lead, the textbook formula is a difference of numbers of that size times twenty.
    """

    def __init__(
        self, concentration: Tensor, rate: Tensor, validate_args: bool | None = None
    ) -> None:
        super().__init__(concentration, rate, validate_args)  # type: ignore[no-untyped-call]

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "GammaPoisson":
        return GammaPoisson(self.concentration.expand(batch_shape), self.rate.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log probability of each count, over the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        r: Tensor = self.concentration
        rate: Tensor = self.rate
        return (
            _log_rising(r, value)
            - torch.lgamma(value + 1.0)
            - r * torch.log1p(1.0 / rate)
            - value * torch.log1p(rate)
        )


def _log_rising(r: Tensor, x: Tensor) -> Tensor:
    """``log Gamma(r + x) - log Gamma(r)``; for large ``r`` by the difference of two series."""
    is_large = r > 1e4
    small, large = torch.where(is_large, 1.0, r), torch.where(is_large, r, 1e4)
    first = (1.0 / (large + x) - 1.0 / large) / 12.0  # the next term is below 1e-15
    series = (large - 0.5) * torch.log1p(x / large) + x * torch.log(large + x) - x + first
    return torch.where(is_large, series, torch.lgamma(small + x) - torch.lgamma(small))


class GatedGammaPoisson(_Gated):
    """A Gamma-Poisson (negative binomial) count where `occurs` is 1, zero where it is 0."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "concentration": constraints.positive,
        "rate": constraints.positive,
        "occurs": constraints.boolean,
    }

    def __init__(
        self,
        concentration: Tensor,
        rate: Tensor,
        occurs: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.concentration, self.rate, self.occurs = broadcast_all(concentration, rate, occurs)
        super().__init__(self.rate.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "GatedGammaPoisson":
        parts = (self.concentration, self.rate, self.occurs)
        concentration, rate, occurs = (part.expand(batch_shape) for part in parts)
        return type(self)(concentration, rate, occurs)

    def whole(self) -> TorchDistributionMixin:
        return GammaPoisson(self.concentration, self.rate, validate_args=False)


class PositiveGammaPoisson(_Positive, GatedGammaPoisson):
    """A Gamma-Poisson (negative binomial) count truncated at zero where `occurs` is 1."""

    def _clusters(self) -> Tensor:
        return self.concentration * torch.log1p(1.0 / self.rate)

    def _open_sample(self) -> Tensor:
        """A Poisson number of logarithmic clusters, the first of them certain.

        The clusters in what is left of the interval make up a Gamma-Poisson count of a smaller
        concentration. The first one's size is drawn by Kemp's method LK (1981, Applied Statistics
        30, 249-253).
        """
        rest = dist.GammaPoisson(self.concentration * self._left(), self.rate).sample()
        u, v = torch.rand((2, *rest.shape), dtype=rest.dtype, device=rest.device)
        miss = -torch.expm1(-u * torch.log1p(1.0 / self.rate))
        first = 1.0 + torch.floor(torch.log(v) / torch.log(miss))
        return torch.as_tensor(first + rest)
