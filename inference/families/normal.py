"""The normal distribution, with its location, its precision, or both to be estimated."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families.exponential_form import (
    ExponentialForm,
    Maps,
    Names,
    data_of,
    exponential_form,
    location_parameter,
    rate_parameter,
)
from ember.inference.families.family import Family
from ember.inference.families.rates import Rate
from ember.inference.numerics.log_space import LOG_2PI, safe_log

__all__ = ["Location", "Normal"]


class Location(Family):
    """``T = (h, J)``: a normal location whose precision is known, row by row."""

    kinds = ("location",)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        (m,) = values
        return torch.stack([m, -0.5 * m * m], -1)

    def contribution(
        self, position: int, statistics: Tensor, values: tuple[Tensor, ...]
    ) -> list[Tensor]:
        return [statistics[:, 0], statistics[:, 1]]

    def shift(self, statistics: Tensor, by: Tensor) -> Tensor:
        h, precision = statistics.unbind(-1)
        return torch.stack([h + by * precision, precision], -1)


class Normal(Family):
    """``T = (1, x, x^2)``: location ``m`` and precision ``r`` both to be estimated."""

    kinds = ("location", "rate")

    def natural_parameters(self, *values: Tensor) -> Tensor:
        m, r = values
        constant = 0.5 * (safe_log(r) - r * m * m - LOG_2PI)
        return torch.stack([constant, r * m, (-0.5 * r).expand_as(constant)], -1)

    def contribution(
        self, position: int, statistics: Tensor, values: tuple[Tensor, ...]
    ) -> list[Tensor]:
        n, s, q = statistics.unbind(-1)
        m, r = values
        if position == 0:
            return [r * s, r * n]
        scatter = q - 2.0 * m * s + n * m * m
        return [0.5 * n, 0.5 * scatter.clamp_min(0.0)]

    def shift(self, statistics: Tensor, by: Tensor) -> Tensor:
        n, s, q = statistics.unbind(-1)
        return torch.stack([n, s + by * n, q + 2.0 * by * s + by * by * n], -1)


@exponential_form(dist.LogNormal, dist.Normal)
def _normal(base: Any, maps: Maps, names: Names) -> ExponentialForm | str:
    location = location_parameter(maps["loc"])
    rate = rate_parameter(maps["scale"], -2.0)
    if isinstance(location, str):
        return location
    if isinstance(rate, str):
        return rate
    m_parameter, m_index, b = location
    r_parameter, r_index, c = rate
    is_log = isinstance(base, dist.LogNormal)

    def data(x: Tensor) -> tuple[Tensor, Tensor]:
        return (safe_log(x) - b, -safe_log(x)) if is_log else (x - b, torch.zeros(()))

    def scale_only(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        z, h = data(x)
        half = torch.full_like(c * z, 0.5)
        return torch.stack([half, 0.5 * c * z * z], -1), h + 0.5 * (
            safe_log(c) - LOG_2PI
        ) + torch.zeros_like(z)

    def location_only(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        z, h = data(x)
        z = z - reference
        r = c * r_parameter.constants[r_index]
        both = torch.stack(torch.broadcast_tensors(r * z, r), -1)
        return both, h + 0.5 * (safe_log(r) - r * z * z - LOG_2PI)

    def both(x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
        z, h = data(x)
        z = z - reference
        return torch.stack([torch.ones_like(z), z, z * z], -1), h if is_log else None

    if m_parameter.table is None:
        return ExponentialForm(Rate(), (r_parameter,), (r_index,), scale_only)
    if r_parameter.table is None:
        return ExponentialForm(
            Location(), (m_parameter,), (m_index,), location_only, 0, data_of(data)
        )
    if not bool((c == 1.0).all()):
        return "the scale multiplies its parameter by a number that varies"
    return ExponentialForm(
        Normal(), (m_parameter, r_parameter), (m_index, r_index), both, 0, data_of(data)
    )
