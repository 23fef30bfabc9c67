"""Effects whose scale is zero at the maximum: the rest of the parameters are at theirs too."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch
from torch import Tensor

from ember.inference import EM, Fit
from tests.inference.straight_growth import growth, marginal, measured

ERRORS = torch.linspace(0.2, 0.7, 15, dtype=torch.float64)
X = torch.linspace(-1.0, 1.0, 15, dtype=torch.float64)
positive = dist.constraints.positive


def meta_analysis(y: Tensor) -> None:
    """Effects of studies about a line, observed with known errors."""
    b = pyro.param("b", torch.zeros(2, dtype=torch.float64))
    t = pyro.param("t", torch.tensor(0.5, dtype=torch.float64), constraint=positive)
    with pyro.plate("studies", len(y)):
        effect = pyro.sample("effect", dist.Normal(b[0] + b[1] * X, t))
        pyro.sample("y", dist.Normal(effect, ERRORS), obs=y)


def quietly(em: EM, y: Tensor) -> Fit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return em.fit(y)


@pytest.mark.parametrize("seed", [1, 3, 6, 9])
def test_a_line_beneath_effects_without_spread(seed: int) -> None:
    """EM stands still there: what it knows of the line is worth the effects' own precision."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(15, generator=generator, dtype=torch.float64)
    y = 0.5 + 0.3 * X + 0.5 * ERRORS * noise
    fit = quietly(EM(meta_analysis, "mle", seed=0), y)

    def loss(p: np.ndarray) -> float:
        variance = ERRORS.numpy() ** 2 + np.exp(2.0 * p[2])
        rest = y.numpy() - p[0] - p[1] * X.numpy()
        return float(0.5 * (rest**2 / variance + np.log(2.0 * np.pi * variance)).sum())

    starts = [[0.5, 0.3, log] for log in (-12.0, -1.0)]
    best = min(scipy.optimize.minimize(loss, start, tol=1e-12).fun for start in starts)
    there = loss(np.array([*fit.params["b"].tolist(), float(fit.params["t"].log())]))
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(-there, abs=1e-6)
    assert -best - fit.log_likelihood < 1e-5
    assert bool((fit.history.diff() >= 0.0).all())


def test_no_scheme_goes_where_the_effects_drown_the_data() -> None:
    """A slope without spread beside an intercept: its precision must not outgrow all digits."""
    Y = measured(torch.tensor([0.1, 0.001], dtype=torch.float64))
    fit = quietly(EM(growth, "mle", seed=0), Y)
    truth = marginal(fit.params).log_prob(Y).sum()
    assert fit.log_likelihood == pytest.approx(float(truth), abs=1e-5)
    assert fit.converged
    assert float(fit.params["t"].min()) > 1e-6


def test_a_scale_of_each_class_about_a_known_location() -> None:
    """Where a latent's location is the same number for all classes, or one for each."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.arange(20) % 2
    for known in (torch.zeros(2).double(), torch.tensor([0.0, 4.0], dtype=torch.float64)):
        scale = torch.tensor([1.0, 3.0], dtype=torch.float64)[classes]
        u = torch.randn(20, generator=generator, dtype=torch.float64) * scale + known[classes]
        Y = u.unsqueeze(-1) + torch.randn(20, 3, generator=generator, dtype=torch.float64)

        def model(Y: Tensor, known: Tensor = known) -> None:
            start = torch.tensor([1.0, 2.0], dtype=torch.float64)
            t = pyro.param("t", start, constraint=positive)
            with pyro.plate("rows", 20):
                c = pyro.sample("c", dist.Categorical(torch.ones(2).double() / 2))
                location = known[c] if bool(known.any()) else 0.0
                u = pyro.sample("u", dist.Normal(location, t[c]))
                for k in range(3):
                    pyro.sample(f"y{k}", dist.Normal(u, 1.0), obs=Y[:, k])

        fit = quietly(EM(model, "mle", seed=0), Y)
        each = [
            dist.MultivariateNormal(
                known[k] * torch.ones(3).double(),
                fit.params["t"][k] ** 2 * torch.ones(3, 3).double() + torch.eye(3).double(),
            ).log_prob(Y)
            for k in range(2)
        ]
        truth = (torch.stack(each).logsumexp(0) - np.log(2.0)).sum()
        assert fit.log_likelihood == pytest.approx(float(truth), rel=1e-10)
        assert fit.converged
