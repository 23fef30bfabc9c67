"""What the catalogue of Gaussian latents is written with: sites, and data drawn from a seed."""

from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

GAUSSIAN: Any = {"integrate": "gaussian"}
POSITIVE = constraints.positive


def latent(name: str, fn: Any) -> Tensor:
    """A Gaussian latent site, marked."""
    value: Tensor = pyro.sample(name, fn, infer=GAUSSIAN)
    return value


def positive(name: str, value: float | Tensor) -> Tensor:
    """A positive parameter."""
    start = torch.as_tensor(value, dtype=torch.get_default_dtype())
    found: Tensor = pyro.param(name, start, constraint=POSITIVE)
    return found


def real(name: str, *value: float) -> Tensor:
    """A parameter without bounds: a number, or a vector of several."""
    start = torch.tensor(value if len(value) > 1 else value[0], dtype=torch.get_default_dtype())
    found: Tensor = pyro.param(name, start)
    return found


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def codes(seed: int, levels: int, rows: int) -> Tensor:
    """Level codes of the rows, unbalanced, every level seen at least twice."""
    generator = torch.Generator().manual_seed(seed)
    more = torch.randint(levels, (rows - 2 * levels,), generator=generator)
    every = torch.cat([torch.arange(levels).repeat(2), more])
    return every[torch.randperm(rows, generator=generator)]


def steps(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}_{t}" for t in range(count))
