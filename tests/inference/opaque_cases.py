"""Models with sites that have no sufficient statistics, and data for them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference import EM, Fit
from ember.models import count_mixture, mixture_of_experts, regression_mixture

ROWS = 240
GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(ROWS, 2, generator=GENERATOR, dtype=torch.float64)
HALF = torch.arange(ROWS) % 2 == 0
LINE = torch.where(HALF, 0.3 + 0.6 * X[:, 0], 2.0 - 0.4 * X[:, 1])
UNIFORM = torch.rand(ROWS, generator=GENERATOR, dtype=torch.float64)
NOISE = torch.randn(ROWS, generator=GENERATOR, dtype=torch.float64)


class Case(NamedTuple):
    """A model, what it is told of each row, and of all."""

    model: Callable[..., Any]
    rows: dict[str, Tensor]
    options: dict[str, Any]

    def pieces(self, size: int) -> list[dict[str, Tensor]]:
        """Its rows in pieces."""
        return [
            {name: value[i : i + size] for name, value in self.rows.items()}
            for i in range(0, ROWS, size)
        ]

    def whole(self, em: EM) -> Fit:
        """The fit of all rows."""
        return em.fit(**self.rows, **self.options)


def robust_mixture(x: Tensor) -> None:
    """Clusters with tails of a fixed shape, which have no sufficient statistics."""
    weights = pyro.sample("weights", dist.Dirichlet(2.0 * torch.ones(2)))
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Cauchy(loc[z], scale[z]), obs=x)


def computed(x: Tensor) -> None:
    """A location that no map describes, so that the model itself is asked."""
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        pyro.sample("x", dist.StudentT(4.0, torch.sin(a) * 3.0 * z + a, scale), obs=x)


COUNTS = torch.poisson(LINE.exp(), generator=GENERATOR)
CASES = {
    "poisson": Case(
        regression_mixture, {"y": COUNTS, "X": X}, {"components": 2, "family": "poisson"}
    ),
    "logistic": Case(
        regression_mixture,
        {"y": (LINE.sigmoid() > UNIFORM).double(), "X": X},
        {"components": 2, "family": "logistic"},
    ),
    "negative binomial": Case(
        count_mixture, {"x": COUNTS}, {"components": 2, "family": "negative_binomial"}
    ),
    "experts": Case(mixture_of_experts, {"y": LINE + 0.3 * NOISE, "X": X}, {"components": 2}),
    "Cauchy": Case(robust_mixture, {"x": 6.0 * HALF + NOISE}, {}),
    "computed": Case(computed, {"x": 3.0 * HALF + NOISE}, {}),
}
