"""The normal distribution, with its location, its precision, or both to be estimated."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families.exponential_form import (
    ExponentialForm,
    Maps,
    Names,
    exponential_form,
    location_parameter,
    rate_parameter,
)
from ember.inference.families.family import Family, Values
from ember.inference.families.kinds import LOCATION, RATE
from ember.inference.families.rates import Rate
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.log_space import LOG_2PI, safe_log

__all__ = ["Location", "Normal"]


class Location(Family):
    """``T = (h, J)``: a normal location whose precision is known, row by row."""

    kinds = (LOCATION,)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        (m,) = values
        return torch.stack([m, -0.5 * m * m], -1)

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        return [statistics[:, 0], statistics[:, 1]]

    def shift(self, statistics: Tensor, by: Tensor) -> Tensor:
        h, precision = statistics.unbind(-1)
        return torch.stack([h + by * precision, precision], -1)


class Normal(Family):
    """``T = (1, x, x^2)``: location ``m`` and precision ``r`` both to be estimated."""

    kinds = (LOCATION, RATE)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        m, r = values
        constant = 0.5 * (safe_log(r) - r * m * m - LOG_2PI)
        return torch.stack([constant, r * m, (-0.5 * r).expand_as(constant)], -1)

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        n, s, q = statistics.unbind(-1)
        if position == 0:
            r = values[1]
            return [r * s, r * n]
        m = values[0]
        scatter = q - 2.0 * m * s + n * m * m
        return [0.5 * n, 0.5 * scatter.clamp_min(0.0)]

    def scatter(self, statistics: Tensor) -> list[Tensor]:
        return [0.5 * statistics[:, 0], 0.5 * statistics[:, 2].clamp_min(0.0)]

    def shift(self, statistics: Tensor, by: Tensor) -> Tensor:
        n, s, q = statistics.unbind(-1)
        return torch.stack([n, s + by * n, q + 2.0 * by * s + by * by * n], -1)


@dataclass(frozen=True, eq=False)
class NormalData:
    """Normal variables less a known offset, or log-normal ones by their logarithms."""

    offset: Tensor
    is_log: bool

    def values(self, x: Tensor) -> Tensor:
        """What the location is subtracted from."""
        return (safe_log(x) if self.is_log else x) - self.offset

    def base(self, x: Tensor) -> Tensor:
        """The logarithm of the derivative of the values."""
        return -safe_log(x) if self.is_log else x.new_zeros(())


@dataclass(frozen=True, eq=False)
class ScaleStatistics:
    """A known location: squares, times the known factor of their precisions."""

    data: NormalData
    factor: Tensor

    def __call__(self, x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        z, c = self.data.values(x), self.factor
        half = torch.full_like(c * z, 0.5)
        base = self.data.base(x) + 0.5 * (safe_log(c) - LOG_2PI) + torch.zeros_like(z)
        return torch.stack([half, 0.5 * c * z * z], -1), base


@dataclass(frozen=True, eq=False)
class LocationStatistics:
    """A known precision of every entry: the entries, weighed by it."""

    data: NormalData
    precision: Tensor

    def __call__(self, x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor]:
        z, r = self.data.values(x) - reference, self.precision
        both = torch.stack(torch.broadcast_tensors(r * z, r), -1)
        return both, self.data.base(x) + 0.5 * (safe_log(r) - r * z * z - LOG_2PI)


@dataclass(frozen=True, eq=False)
class NormalStatistics:
    """Entries and their squares."""

    data: NormalData

    @property
    def is_plain(self) -> bool:
        """Whether the statistics are powers of the centred data, without a base measure."""
        return not self.data.is_log

    def centred(self, x: Tensor, reference: Tensor | float) -> Tensor:
        """The statistics of first order: the data about a reference."""
        return self.data.values(x) - reference

    def __call__(self, x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
        z = self.centred(x, reference)
        base = self.data.base(x) if self.data.is_log else None
        return torch.stack([torch.ones_like(z), z, z * z], -1), base


@exponential_form(dist.LogNormal, dist.Normal)
def _normal(base: Distribution, maps: Maps, names: Names) -> ExponentialForm | str:
    location = location_parameter(maps["loc"])
    rate = rate_parameter(maps["scale"], -2.0)
    if isinstance(location, str):
        return location
    if isinstance(rate, str):
        return rate
    m, m_index, offset = location
    r, r_index, factor = rate
    data = NormalData(offset, isinstance(base, dist.LogNormal))
    if m.table is None:
        return ExponentialForm(Rate(), (r,), (r_index,), ScaleStatistics(data, factor))
    if r.table is None:
        known = LocationStatistics(data, factor * r.constants[r_index])
        return ExponentialForm(Location(), (m,), (m_index,), known, centred=data.values)
    if not bool((factor == 1.0).all()):
        return "the scale multiplies its parameter by a number that varies"
    statistics = NormalStatistics(data)
    return ExponentialForm(Normal(), (m, r), (m_index, r_index), statistics, centred=data.values)
