"""Models whose parameters have no closed form."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.inference.family_cases import (
    COUNTS,
    PAIRS,
    POSITIVES,
    REALS,
    N,
)

MIXED = torch.cat([REALS[: N // 2] - 2.0, 0.5 * REALS[N // 2 :] + 2.0])


def weights_of(components: int = 2) -> Tensor:
    prior = dist.Dirichlet(torch.full((components,), 2.0))
    return torch.as_tensor(pyro.sample("weights", prior))


def vector(name: str, prior: Any, *shape: int) -> Tensor:
    return torch.as_tensor(pyro.sample(name, prior.expand(shape).to_event(len(shape))))


# -- no closed form: numerical, monotone, stationary ---------------------------------------------


def half_cauchy(x: Tensor) -> None:
    weights = weights_of()
    locs = vector("locs", dist.Normal(0.0, 3.0), 2)
    scales = vector("scales", dist.HalfCauchy(1.0), 2)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)


def log_normal_rate(x: Tensor) -> None:
    weights = weights_of()
    rates = vector("rates", dist.LogNormal(0.5, 1.0), 2)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rates[z]), obs=x)


def normal_logits(x: Tensor) -> None:
    logits = vector("logits", dist.Normal(0.0, 2.0), 2)
    rates = vector("rates", dist.Gamma(2.0, 1.0), 2)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=logits))
        pyro.sample("x", dist.Poisson(rates[z]), obs=x)


def soft_weights(x: Tensor, y: Tensor) -> None:
    slopes = vector("slopes", dist.Normal(0.0, 1.0), 2, 2)
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0], dtype=torch.float64))
    design = torch.stack([torch.ones_like(x), x], -1)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.softmax(design @ slopes, -1)))
        pyro.sample("y", dist.Normal(locs[z], 1.0), obs=y)


def student_t(x: Tensor) -> None:
    weights = weights_of()
    locs = vector("locs", dist.Normal(0.0, 3.0), 2)
    scales = vector("scales", dist.Gamma(2.0, 1.0), 2)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.StudentT(4.0, locs[z], scales[z]), obs=x)


def negative_binomial(x: Tensor) -> None:
    weights = weights_of()
    counts = vector("counts", dist.Gamma(2.0, 0.5), 2)
    p = vector("p", dist.Beta(2.0, 2.0), 2)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.NegativeBinomial(counts[z], p[z]), obs=x)


def gamma_shapes(x: Tensor) -> None:
    weights = weights_of()
    shapes = vector("shapes", dist.Gamma(2.0, 1.0), 2)
    rates = vector("rates", dist.Gamma(2.0, 1.0), 2)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Gamma(shapes[z], rates[z]), obs=x)


def correlated(x: Tensor) -> None:
    weights = weights_of()
    locs = pyro.param("locs", torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64))
    factor = pyro.sample("factor", dist.LKJCholesky(2, 2.0))
    scales = vector("scales", dist.LogNormal(0.0, 1.0), 2)
    tril = scales.diag_embed() @ factor
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=tril), obs=x)


NUMERICAL: dict[str, tuple[Callable[..., None], tuple[Tensor, ...], set[str]]] = {
    "half-Cauchy scale": (half_cauchy, (MIXED,), {"scales"}),
    "log-normal rate": (log_normal_rate, (COUNTS,), {"rates"}),
    "normal logits": (normal_logits, (COUNTS,), {"logits"}),
    "softmax regression": (soft_weights, (REALS, MIXED), {"slopes"}),
    "Student-t": (student_t, (MIXED,), {"locs", "scales"}),
    "negative binomial": (negative_binomial, (COUNTS,), {"counts", "p"}),
    "gamma shapes": (gamma_shapes, (POSITIVES,), {"shapes", "rates"}),
    "LKJ factor": (correlated, (PAIRS,), {"factor", "scales"}),
}
