r"""Normal families whose precisions have a factor of each event: what scale mixtures are made of.

With the factor :math:`w` the log density is

.. math:: \tfrac12 \log r - \tfrac12 r w (x - m)^2 + \tfrac12 \log w

up to a constant. The first term is counted by events and the second by their weights, so the
families without factors, which count both by one statistic, have one statistic fewer.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.families.exponential_form import ExponentialForm
from ember.inference.families.family import Family, Values
from ember.inference.families.kinds import LOCATION, MATRIX, RATE, VECTOR
from ember.inference.families.multivariate_normal import MultivariateNormal
from ember.inference.families.normal import Normal
from ember.inference.numerics.log_space import LOG_2PI, safe_log
from ember.inference.numerics.symmetric import log_diagonal

__all__ = ["WeightedMultivariateNormal", "WeightedNormal", "with_weights"]


class WeightedNormal(Family):
    """``T = (1, w, w x, w x^2)``: location ``m`` and precision ``r``."""

    kinds = (LOCATION, RATE)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        m, r = values
        constant = 0.5 * (safe_log(r) - LOG_2PI)
        return torch.stack(torch.broadcast_tensors(constant, -0.5 * r * m * m, r * m, -0.5 * r), -1)

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        n, w, s, q = statistics.unbind(-1)
        if position == 0:
            r = values[1]
            return [r * s, r * w]
        m = values[0]
        scatter = q - 2.0 * m * s + w * m * m
        return [0.5 * n, 0.5 * scatter.clamp_min(0.0)]

    def shift(self, statistics: Tensor, by: Tensor) -> Tensor:
        n, w, s, q = statistics.unbind(-1)
        return torch.stack([n, w, s + by * w, q + 2.0 * by * s + by * by * w], -1)


class WeightedMultivariateNormal(Family):
    """``T = (1, w, w x, w vech(x x'))``: location vector ``m`` and precision matrix ``P``."""

    kinds = (VECTOR, MATRIX)

    def natural_parameters(self, *values: Tensor) -> Tensor:
        m, precision = values
        alike = MultivariateNormal().natural_parameters(m, precision)
        log_det = 2.0 * log_diagonal(precision).sum(-1)
        constant = 0.5 * (log_det - m.shape[-1] * LOG_2PI)
        constant = constant.expand(alike.shape[:-1]).unsqueeze(-1)
        return torch.cat([constant, alike[..., :1] - constant, alike[..., 1:]], -1)

    def contribution(self, position: int, statistics: Tensor, values: Values) -> list[Tensor]:
        found = MultivariateNormal().contribution(position, statistics[..., 1:], values)
        return found if position == 0 else [statistics[..., 0], found[1]]

    def shift(self, statistics: Tensor, by: Tensor) -> Tensor:
        moved = MultivariateNormal().shift(statistics[..., 1:], by)
        return torch.cat([statistics[..., :1], moved], -1)


@dataclass(frozen=True, eq=False)
class WeightedStatistics:
    """Those of a family without weights where all weights are one."""

    statistics: Callable[..., tuple[Tensor, Tensor | None]]

    def __call__(self, x: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
        statistics, base = self.statistics(x, reference)
        return torch.cat([statistics[..., :1], statistics], -1), base


WEIGHTED: dict[type[Family], Family] = {
    Normal: WeightedNormal(),
    MultivariateNormal: WeightedMultivariateNormal(),
}


def with_weights(form: ExponentialForm) -> ExponentialForm:
    """A form whose family has room for weights of events; its statistics are at weight one."""
    family = WEIGHTED.get(type(form.family))
    if family is None:
        return form
    statistics = WeightedStatistics(form.statistics)
    return dataclasses.replace(form, family=family, statistics=statistics)
