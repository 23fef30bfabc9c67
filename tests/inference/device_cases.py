"""Fits that must come out alike wherever their data are."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ember.inference import EM, Fit
from ember.models import (
    categorical_mixture,
    factor_analysis,
    gaussian_mixture,
    hidden_markov_gaussian,
    linear_mixed_model,
    local_level,
    poisson_mixture,
    regression_mixture,
    student_t_regression,
)

__all__ = ["CASES", "Case", "on"]


@dataclass(frozen=True)
class Case:
    """A fit: a model with its arguments, and options of ``EM``."""

    model: Any
    args: tuple[Tensor, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def fit(self, device: torch.device | None = None) -> Fit:
        """The fit, its tensors on a device."""
        args, kwargs = on(device, (self.args, self.kwargs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # some fits are cut short
            return EM(self.model, seed=0, **self.options).fit(*args, **kwargs)


def on(device: torch.device | None, value: Any) -> Any:
    """The same with its tensors on a device; as it is without one."""
    if device is None:
        return value
    return tree_map(lambda each: each.to(device) if isinstance(each, Tensor) else each, value)


_random = torch.Generator().manual_seed(0)


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_random, dtype=torch.float64)


ROWS = 36
FIRST = torch.arange(ROWS) < 16
POINTS = torch.where(FIRST[:, None], _normal(ROWS, 2), 5.0 + 0.7 * _normal(ROWS, 2))
HOLES = torch.where(torch.arange(2 * ROWS).reshape(ROWS, 2) % 11 == 5, torch.nan, POINTS)
COUNTS = torch.poisson(torch.where(FIRST, 2.0, 9.0), generator=_random).double()
LEVELS = torch.stack([(FIRST.long() + (torch.arange(ROWS) % k == 0)) % 3 for k in (3, 4, 5)], 1)
LINE = torch.arange(ROWS, dtype=torch.float64) % 18 / 4.0
ON_LINES = torch.where(FIRST, 1.0 + 2.0 * LINE, 9.0 - LINE) + 0.3 * _normal(ROWS)
GROUPS = torch.arange(ROWS) % 6
IN_GROUPS = ON_LINES + 2.0 * _normal(6)[GROUPS]
FACTORS = _normal(ROWS, 1) * torch.tensor([1.0, -2.0, 0.5, 1.0]).double() + 0.5 * _normal(ROWS, 4)

TWO: dict[str, Any] = {"components": 2}
SHORT: dict[str, Any] = {"max_iter": 3}
CASES = {
    "full covariances": Case(gaussian_mixture, (POINTS,), TWO),
    "diagonal covariances": Case(
        gaussian_mixture, (POINTS,), {**TWO, "covariance": "diag"}, SHORT
    ),
    "spheres": Case(gaussian_mixture, (POINTS,), {**TWO, "covariance": "spherical"}, SHORT),
    "one covariance": Case(gaussian_mixture, (POINTS,), {**TWO, "covariance": "tied"}, SHORT),
    "maximum likelihood": Case(
        gaussian_mixture, (POINTS,), TWO, {"objective": "mle", **SHORT}
    ),
    "missing entries": Case(gaussian_mixture, (HOLES,), TWO),
    "weights and a prior": Case(
        gaussian_mixture, (POINTS,),
        {**TWO, "frequency": 1.0 + COUNTS, "prior": {"concentration": torch.tensor([2.0, 3.0])}},
        SHORT,
    ),
    "single precision": Case(gaussian_mixture, (POINTS.float(),), TWO, SHORT),
    "several starts": Case(poisson_mixture, (COUNTS,), TWO, {"restarts": 3, **SHORT}),
    "levels": Case(categorical_mixture, (LEVELS,), TWO),
    "a chain": Case(hidden_markov_gaussian, (POINTS,), {"states": 2}),
    "chains": Case(
        hidden_markov_gaussian, (POINTS.reshape(2, 18, 2),), {"states": 2, "lengths": [18, 12]},
        SHORT,
    ),
    "lines": Case(regression_mixture, (ON_LINES, LINE), TWO, SHORT),
    "heavy tails": Case(student_t_regression, (ON_LINES, LINE), {"df": 4}, SHORT),
    "factors": Case(factor_analysis, (FACTORS,), {"factors": 1}, SHORT),
    "effects of groups": Case(
        linear_mixed_model, (IN_GROUPS, LINE.unsqueeze(-1)), {"groups": GROUPS},
        {"objective": "mle"},
    ),
    "a series": Case(local_level, (ON_LINES[:8],), {}, SHORT),
}  # fmt: skip
