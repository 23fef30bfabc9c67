"""Models with latents of units, and their marginal likelihoods by brute force in numpy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import scipy.special
import scipy.stats
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]
Model = Callable[..., None]
RowDensity = Callable[[Array, Array], Array]
positive = dist.constraints.positive
ON_NODES: Any = {"integrate": "quadrature"}
LINE = np.linspace(-9.0, 9.0, 1801)  # in standard deviations of the prior
STEP = LINE[1] - LINE[0]


def data(family: str, groups: int = 30, rows: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Responses, a covariate, and the group of each row, in random order."""
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(groups * rows, generator=generator)
    group = torch.arange(groups).repeat_interleave(rows)[order]
    x = torch.randn(groups * rows, generator=generator, dtype=torch.float64)
    u = torch.randn(groups, generator=generator, dtype=torch.float64)
    line = 0.3 + 0.6 * x + 0.8 * u[group]
    torch.manual_seed(4)
    draws: Any = {
        "bernoulli": lambda: torch.bernoulli(line.sigmoid()),
        "binomial": lambda: torch.distributions.Binomial(6, logits=line).sample(),
        "poisson": lambda: torch.poisson(line.exp()),
        "gamma": lambda: torch.distributions.Gamma(2.0, 2.0 * (-line).exp()).sample(),
        "negative binomial": lambda: torch.poisson(
            torch.distributions.Gamma(3.0, 3.0 * (-line).exp()).sample()
        ),
        "normal": lambda: line + 0.5 * torch.randn(len(line), dtype=torch.float64),
    }
    y: Tensor = draws[family]()
    return y.double(), x, group


def response(family: str, line: Tensor) -> Any:
    """The distribution of a response with a linear predictor."""
    if family == "bernoulli":
        return dist.Bernoulli(logits=line)
    if family == "binomial":
        return dist.Binomial(6, logits=line)
    if family == "poisson":
        return dist.Poisson(line.exp())
    if family == "gamma":
        return dist.Gamma(2.0, 2.0 * (-line).exp())
    if family == "negative binomial":
        return dist.GammaPoisson(3.0, 3.0 * (-line).exp())
    return dist.Normal(line, 0.5)


def density(family: str, y: Array, line: Array) -> Array:
    """The log density of responses, by scipy."""
    if family == "bernoulli":
        return np.asarray(scipy.stats.bernoulli.logpmf(y, scipy.special.expit(line)))
    if family == "binomial":
        return np.asarray(scipy.stats.binom.logpmf(y, 6, scipy.special.expit(line)))
    if family == "poisson":
        return np.asarray(scipy.stats.poisson.logpmf(y, np.exp(line)))
    if family == "gamma":
        return np.asarray(scipy.stats.gamma.logpdf(y, 2.0, scale=np.exp(line) / 2.0))
    if family == "negative binomial":
        return np.asarray(scipy.stats.nbinom.logpmf(y, 3, 3.0 / (3.0 + np.exp(line))))
    return np.asarray(scipy.stats.norm.logpdf(y, line, 0.5))


def intercepts(family: str) -> Model:
    """A random intercept of each group."""

    def model(y: Tensor, x: Tensor, group: Tensor) -> None:
        b = pyro.param("b", torch.zeros(2))
        sd = pyro.param("sd", torch.tensor(1.0), constraint=positive)
        with pyro.plate("groups", int(group.max()) + 1):
            u = pyro.sample("u", dist.Normal(0.0, sd), infer=ON_NODES)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", response(family, b[0] + b[1] * x + u[group]), obs=y)

    return model


def moments(
    family: str, args: tuple[Tensor, ...], b: Array, sd: float
) -> tuple[Array, Array, Array]:
    """Of each group the log evidence, and the posterior mean and standard deviation of ``u``."""
    y, x, group = (each.numpy() for each in args)
    u = sd * LINE
    rows = density(family, y[:, None], (b[0] + b[1] * x)[:, None] + u)
    joint = np.zeros((group.max() + 1, len(u)))
    np.add.at(joint, group, rows)
    joint += scipy.stats.norm.logpdf(LINE) + np.log(STEP)
    evidence = scipy.special.logsumexp(joint, axis=1)
    weights = np.exp(joint - evidence[:, None])
    mean = weights @ u
    return evidence, mean, np.sqrt((weights * (u - mean[:, None]) ** 2).sum(1))


def slopes(y: Tensor, x: Tensor, group: Tensor) -> None:
    """A random intercept and slope of each group, as one vector."""
    b = pyro.param("b", torch.zeros(2))
    precision = pyro.param("precision", torch.eye(2), constraint=dist.constraints.positive_definite)
    with pyro.plate("groups", int(group.max()) + 1):
        normal = dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision)
        u = pyro.sample("u", normal, infer=ON_NODES)
    with pyro.plate("rows", len(y)):
        line = b[0] + b[1] * x + u[group, 0] + u[group, 1] * x
        pyro.sample("y", dist.Bernoulli(logits=line), obs=y)


def slopes_evidence(args: tuple[Tensor, ...], b: Array, precision: Array) -> float:
    """Its log likelihood, on a grid of 241 x 241 points."""
    y, x, group = (each.numpy() for each in args)
    line = np.linspace(-8.0, 8.0, 241)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    root = np.linalg.cholesky(np.linalg.inv(precision))
    u = grid @ root.T
    total = 0.0
    log_prior = scipy.stats.norm.logpdf(grid).sum(1) + 2.0 * np.log(line[1] - line[0])
    for g in range(group.max() + 1):
        own = group == g
        lines = (b[0] + b[1] * x[own])[:, None] + u[:, 0] + x[own][:, None] * u[:, 1]
        rows = density("bernoulli", y[own][:, None], lines).sum(0)
        total += float(scipy.special.logsumexp(rows + log_prior))
    return total
