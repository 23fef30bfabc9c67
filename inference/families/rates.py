"""Poisson, exponential and Gamma: families with a rate."""

from typing import Any

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
from ember.inference.families.family import Family
from ember.inference.numerics.log_space import log_chance, safe_log
from ember.inference.numerics.shapes import compact

__all__ = ["Rate"]


class Rate(Family):
    """``T = (a, b)`` with log density ``a log r - b r``: Poisson, exponential, Gamma, precision."""

    kinds = ("rate",)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        (r,) = values
        return torch.stack([log_chance(r), -r], -1)

    def contribution(
        self, position: int, statistics: Tensor, values: tuple[Tensor, ...]
    ) -> list[Tensor]:
        return [statistics[:, 0], statistics[:, 1]]


@exponential_form(dist.Poisson)
def _poisson(base: Any, maps: Maps, names: Names) -> ExponentialForm | str:
    bound = rate_parameter(maps["rate"], 1.0)
    if isinstance(bound, str):
        return bound
    family_parameter, index, c = bound

    def statistics(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        x, exposure = torch.broadcast_tensors(x, c)
        return torch.stack([x, exposure], -1), x * safe_log(exposure) - torch.lgamma(x + 1.0)

    return ExponentialForm(Rate(), (family_parameter,), (index,), statistics)


@exponential_form(dist.Exponential)
def _exponential(base: Any, maps: Maps, names: Names) -> ExponentialForm | str:
    bound = rate_parameter(maps["rate"], 1.0)
    if isinstance(bound, str):
        return bound
    family_parameter, index, c = bound

    def statistics(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        return torch.stack([torch.ones_like(c * x), c * x], -1), safe_log(c) + torch.zeros_like(x)

    return ExponentialForm(Rate(), (family_parameter,), (index,), statistics)


@exponential_form(dist.Gamma)
def _gamma(base: Any, maps: Maps, names: Names) -> ExponentialForm | str:
    shape = maps["concentration"]
    if not shape.is_constant:
        return "the shape of a Gamma has no closed form"
    bound = rate_parameter(maps["rate"], 1.0)
    if isinstance(bound, str):
        return bound
    family_parameter, index, c = bound
    a = compact(shape.offset)

    def statistics(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        h = (a - 1.0) * safe_log(x) - torch.lgamma(a) + a * safe_log(c)
        return torch.stack(torch.broadcast_tensors(a, c * x), -1), h

    return ExponentialForm(Rate(), (family_parameter,), (index,), statistics)
