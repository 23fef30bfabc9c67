"""Poisson, exponential and Gamma: families with a rate."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families.exponential_form import (
    ExponentialForm,
    Maps,
    Names,
    exponential_form,
    rate_parameter,
)
from ember.inference.families.family import Family, Values
from ember.inference.families.kinds import RATE
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.log_space import log_chance, safe_log
from ember.inference.numerics.shapes import compact

__all__ = ["Rate"]


class Rate(Family):
    """``T = (a, b)`` with log density ``a log r - b r``: Poisson, exponential, Gamma, precision."""

    kinds = (RATE,)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        (r,) = values
        return torch.stack([log_chance(r), -r], -1)

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        return [statistics[:, 0], statistics[:, 1]]


@dataclass(frozen=True, eq=False)
class PoissonStatistics:
    """Counts and their exposure."""

    exposure: Tensor

    def __call__(self, x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        x, exposure = torch.broadcast_tensors(x, self.exposure)
        return torch.stack([x, exposure], -1), x * safe_log(exposure) - torch.lgamma(x + 1.0)


@dataclass(frozen=True, eq=False)
class ExponentialStatistics:
    """Waiting times whose rates have a known factor."""

    factor: Tensor

    def __call__(self, x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        scaled = self.factor * x
        base = safe_log(self.factor) + torch.zeros_like(x)
        return torch.stack([torch.ones_like(scaled), scaled], -1), base


@dataclass(frozen=True, eq=False)
class GammaStatistics:
    """Gamma variables of a known shape, whose rates have a known factor."""

    shape: Tensor
    factor: Tensor

    def __call__(self, x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        a, c = self.shape, self.factor
        h = (a - 1.0) * safe_log(x) - torch.lgamma(a) + a * safe_log(c)
        return torch.stack(torch.broadcast_tensors(a, c * x), -1), h


@exponential_form(dist.Poisson)
def _poisson(base: Distribution, maps: Maps, names: Names) -> ExponentialForm | str:
    bound = rate_parameter(maps["rate"], 1.0)
    if isinstance(bound, str):
        return bound
    parameter, index, exposure = bound
    return ExponentialForm(Rate(), (parameter,), (index,), PoissonStatistics(exposure))


@exponential_form(dist.Exponential)
def _exponential(base: Distribution, maps: Maps, names: Names) -> ExponentialForm | str:
    bound = rate_parameter(maps["rate"], 1.0)
    if isinstance(bound, str):
        return bound
    parameter, index, factor = bound
    return ExponentialForm(Rate(), (parameter,), (index,), ExponentialStatistics(factor))


@exponential_form(dist.Gamma)
def _gamma(base: Distribution, maps: Maps, names: Names) -> ExponentialForm | str:
    shape = maps["concentration"]
    if not shape.is_constant:
        return "the shape of a Gamma has no closed form"
    bound = rate_parameter(maps["rate"], 1.0)
    if isinstance(bound, str):
        return bound
    parameter, index, factor = bound
    statistics = GammaStatistics(compact(shape.offset), factor)
    return ExponentialForm(Rate(), (parameter,), (index,), statistics)
