"""Small data for the models with Gaussian latents, and how their parameters follow the data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ember.models import (
    animal_model,
    factor_analysis,
    linear_gaussian_state_space,
    linear_mixed_model,
    local_level,
    local_linear_trend,
    mixture_of_factor_analysers,
    multivariate_normal,
    probabilistic_pca,
    structural_dynamics,
)

__all__ = ["EXAMPLES", "Example"]


@dataclass(frozen=True)
class Example:
    """A call of a model.

    Attributes:
        model: The model.
        data: Its data, the first argument.
        args: Further arguments.
        kwargs: Options.
        latents: The names of its Gaussian latents.
        powers: By parameter, what power of the unit of the data it has, where it has any.
        locations: By parameter, what a shift of the data by one adds to it.
        discrete: Whether it has a discrete latent too.
    """

    model: Callable[..., None]
    data: Tensor
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    latents: tuple[str, ...] = ()
    powers: dict[str, float] = field(default_factory=dict)
    locations: dict[str, Tensor] = field(default_factory=dict)
    discrete: bool = False


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


GROUP = torch.arange(24) % 4
ITEM = torch.arange(24) // 8
DAY = torch.linspace(0.0, 5.0, 24, dtype=torch.float64)
DESIGN = torch.stack([torch.ones_like(DAY), DAY], -1)
Y = 10.0 + 2.0 * DAY + 3.0 * normal(0, 4)[GROUP] + normal(1, 24)
GAPS = torch.where(torch.arange(24) % 5 == 1, torch.nan, Y)
ROWS = normal(2, 20, 1) * torch.tensor([1.0, -2.0, 0.5]).double() + normal(3, 20, 3) + 4.0
HOLES = torch.where(
    torch.rand(20, 3, generator=torch.Generator().manual_seed(4)) < 0.2, torch.nan, ROWS
)
SERIES = 5.0 + (0.5 * normal(5, 12)).cumsum(0) + 0.5 * normal(6, 12)
KIN = torch.eye(6).double() + 0.5 * (torch.ones(6, 6) - torch.eye(6)).double() * (
    torch.arange(6)[:, None] // 2 == torch.arange(6) // 2
)

PEDIGREE = {
    "sire": torch.tensor([3, -1, 3, -1, 0, -1]),
    "dam": torch.tensor([1, -1, 5, -1, 2, -1]),
}

FIRST = torch.tensor([1.0, 0.0]).double()
LINE = {"coefficients": 1.0, "variance": 2.0}
FACTORS = {"loadings": 1.0, "locs": 1.0}
LEVELS = tuple(f"level_{t}" for t in range(12))
SLOPES = tuple(f"slope_{t}" for t in range(12))
ONES = torch.ones(3).double()

EXAMPLES: dict[str, Example] = {
    "random intercept": Example(
        linear_mixed_model, Y, (DAY,), {"groups": GROUP}, ("group_effects",),
        {**LINE, "group_variance": 2.0}, {"coefficients": FIRST},
    ),
    "correlated slopes with gaps": Example(
        linear_mixed_model, GAPS, (DAY,), {"groups": GROUP, "design": DESIGN}, ("group_effects",),
        {**LINE, "group_precision": -2.0}, {"coefficients": FIRST},
    ),
    "crossed": Example(
        linear_mixed_model, Y, (DAY,),
        {
            "groups": {"subject": GROUP, "item": ITEM},
            "design": {"subject": DESIGN},
            "correlated": False,
        },
        ("subject_effects", "item_effects"),
        {**LINE, "subject_variances": 2.0, "item_variance": 2.0}, {"coefficients": FIRST},
    ),
    "animal model": Example(
        animal_model, Y, (DAY,), {"relationship": KIN, "animal": torch.arange(24) % 6},
        ("breeding_values",), {**LINE, "additive_variance": 2.0}, {"coefficients": FIRST},
    ),
    "animal model, non-centred": Example(
        animal_model, Y, (DAY,),
        {"relationship": KIN, "animal": torch.arange(24) % 6, "coordinates": "non-centred"},
        ("standard_values",), {**LINE, "additive_variance": 2.0}, {"coefficients": FIRST},
    ),
    "animal model by a pedigree": Example(
        animal_model, Y, (DAY,),
        {**PEDIGREE, "animal": torch.arange(24) % 6},
        ("breeding_values_0", "breeding_values_1", "breeding_values_2"),
        {**LINE, "additive_variance": 2.0}, {"coefficients": FIRST},
    ),
    "animal model by a pedigree, non-centred": Example(
        animal_model, Y, (DAY,),
        {**PEDIGREE, "animal": torch.arange(24) % 6, "coordinates": "non-centred"},
        ("standard_values_0", "standard_values_1", "standard_values_2"),
        {**LINE, "additive_variance": 2.0}, {"coefficients": FIRST},
    ),
    "factor analysis": Example(
        factor_analysis, HOLES, (2,), {}, ("factors",), {**FACTORS, "uniquenesses": 2.0},
        {"locs": ONES},
    ),
    "probabilistic PCA": Example(
        probabilistic_pca, ROWS, (2,), {}, ("factors",), {**FACTORS, "variance": 2.0},
        {"locs": ONES},
    ),
    "mixture of factor analysers": Example(
        mixture_of_factor_analysers, HOLES[:6], (2, 1), {}, ("factors",),
        {**FACTORS, "uniquenesses": 2.0}, {"locs": ONES}, discrete=True,
    ),
    "tied mixture of factor analysers": Example(
        mixture_of_factor_analysers, ROWS[:6], (2, 1), {"uniquenesses": "tied"}, ("factors",),
        {**FACTORS, "uniquenesses": 2.0}, {"locs": ONES}, discrete=True,
    ),
    "local level": Example(
        local_level, torch.where(torch.arange(12) == 7, torch.nan, SERIES), (), {}, LEVELS,
        {"variance": 2.0, "level_variance": 2.0},
    ),
    "local linear trend": Example(
        local_linear_trend, SERIES, (), {}, LEVELS + SLOPES,
        {"variance": 2.0, "level_variance": 2.0, "slope_variance": 2.0},
    ),
    "state space": Example(
        linear_gaussian_state_space, ROWS, (2,), {}, (), {**FACTORS, "uniquenesses": 2.0},
        {"locs": ONES},
    ),
    "structural dynamics": Example(
        structural_dynamics, ROWS, (1,), {}, (), {**FACTORS, "uniquenesses": 2.0}, {"locs": ONES},
    ),
    "multivariate normal": Example(
        multivariate_normal, HOLES, (), {}, (), {"precisions": -2.0, "locs": 1.0}, {"locs": ONES},
    ),
}  # fmt: skip
