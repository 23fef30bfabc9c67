"""Models that branch on a parameter's value where no probe goes are fitted as they are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch
from scipy.special import logsumexp
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM, SVI
from ember.models import gaussian_mixture

FAR = 40.0 + 3.0 * torch.sin(torch.arange(30, dtype=torch.float64))
COUNTS = torch.tensor([70.0, 85.0, 62.0, 91.0, 77.0, 3.0, 5.0, 2.0, 4.0, 3.0, 6.0, 1.0]).double()


def observe(x: Tensor, loc: Any) -> None:
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def branch(mu: Tensor) -> Tensor:
    return mu if mu < 9.0 else 2.0 * mu


def where(mu: Tensor) -> Tensor:
    return torch.where(mu < 9.0, mu, 2.0 * mu)


def power(mu: Tensor) -> Tensor:
    return mu if mu < 9.0 else mu.square() / 9.0


ARMS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "branch": (branch, float(FAR.mean()) / 2.0),
    "where": (where, float(FAR.mean()) / 2.0),
    "power": (power, (9.0 * float(FAR.mean())) ** 0.5),
}


@pytest.mark.parametrize("name", ARMS)
def test_the_arm_in_which_the_fit_ends_is_the_one_that_counts(name: str) -> None:
    arm, best = ARMS[name]

    def model(x: Tensor) -> None:
        observe(x, arm(pyro.param("mu", torch.tensor(10.0))))

    em = EM(model, objective="mle", seed=0)
    assert em.explain(FAR).set_index("site").loc["mu", "M-step"] == "closed form"
    fit = em.fit(FAR)
    assert float(fit.params["mu"]) == pytest.approx(best, rel=1e-6)
    truth = float(dist.Normal(FAR.mean(), 1.0).log_prob(FAR).sum())
    assert fit.log_likelihood == pytest.approx(truth, rel=1e-9)
    assert bool((fit.history.diff() >= 0).all())
    assert "where the fit ends" in str(em.explain(FAR).set_index("site").loc["mu", "why"])
    # New data are read the same way.
    assert float(fit.log_prob(FAR).sum()) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("support", [constraints.real, constraints.positive])
@pytest.mark.parametrize("start", [1.0, 1e6])
def test_a_clamp_holds_the_estimate_where_nothing_is_left_to_gain(
    start: float, support: Any
) -> None:
    def model(x: Tensor) -> None:
        mu = pyro.param("mu", torch.tensor(start), constraint=support)
        observe(x, mu.clamp(max=25.0))

    fit = EM(model, objective="mle", seed=0).fit(FAR)
    assert fit.converged
    truth = float(dist.Normal(25.0, 1.0).log_prob(FAR).sum())
    assert fit.log_likelihood == pytest.approx(truth, rel=1e-12)


def test_a_branch_in_a_mixture_matches_a_search_of_the_likelihood() -> None:
    def model(x: Tensor) -> None:
        weight = pyro.param("weight", torch.tensor(0.5), constraint=constraints.unit_interval)
        start = torch.tensor([2.0, 30.0])
        rates = pyro.param("rates", start, constraint=constraints.positive)
        bent = torch.where(rates < 40.0, rates, 40.0 + 0.5 * (rates - 40.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(weight))
            pyro.sample("x", dist.Poisson(bent[z.long()]), obs=x)

    fit = EM(model, objective="mle", seed=0).fit(COUNTS)
    counts = COUNTS.numpy()

    def negative(free: Any) -> float:
        weight, rates = 1.0 / (1.0 + np.exp(-free[0])), np.exp(free[1:])
        bent = np.where(rates < 40.0, rates, 40.0 + 0.5 * (rates - 40.0))
        parts = np.log([1.0 - weight, weight])[:, None] + (
            counts * np.log(bent)[:, None] - bent[:, None] - torch.lgamma(COUNTS + 1.0).numpy()
        )
        return -float(logsumexp(parts, axis=0).sum())

    found = scipy.optimize.minimize(
        negative, [0.0, np.log(3.0), np.log(110.0)], method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-12, "maxiter": 5000},
    )  # fmt: skip
    assert fit.log_likelihood == pytest.approx(-found.fun, rel=1e-9)
    assert float(fit.params["rates"].max()) > 100.0


def test_a_prior_that_branches_is_the_prior_where_the_fit_ends() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.Gamma(2.0, 0.05))
        mu = pyro.sample("mu", dist.Normal(torch.where(scale < 20.0, 0.0, 30.0), 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mu, scale), obs=x)

    spread = 30.0 * torch.cos(torch.arange(40, dtype=torch.float64)) + 31.0
    fit = EM(model, seed=0).fit(spread)
    mu, scale = fit.params["mu"], fit.params["scale"]
    assert float(scale) > 20.0
    precision = len(spread) / scale.square()
    mode = (30.0 + precision * spread.mean()) / (1.0 + precision)
    assert float(mu) == pytest.approx(float(mode), rel=1e-6)


def test_variational_inference_sees_the_arm_too() -> None:
    def model(x: Tensor) -> None:
        observe(x, branch(pyro.sample("mu", dist.Normal(15.0, 10.0))))

    fit = SVI(model, "delta", steps=500, init={"mu": torch.tensor(19.7)}, seed=0).fit(FAR)
    precision = 4.0 * len(FAR)
    mode = (15.0 / 100.0 + 2.0 * float(FAR.sum())) / (0.01 + precision)
    assert float(fit.params["mu"]) == pytest.approx(mode, rel=1e-3)


def test_sites_that_come_with_an_arm_are_refused_by_name() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.param("mu", torch.tensor(1.0))
        if mu > 20.0:
            pyro.sample("extra", dist.Normal(mu, 1.0), obs=torch.tensor(3.0))
        observe(x, mu)

    with pytest.raises(ValueError, match=r"depends on parameter values.*'extra'"):
        EM(model, objective="mle").fit(FAR)


def test_a_model_that_fails_at_the_estimates_keeps_its_fit() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.param("mu", torch.tensor(1.0))
        if mu > 20.0:
            raise ValueError("mu must be at most 20.")
        observe(x, mu)

    fit = EM(model, objective="mle").fit(FAR)
    assert float(fit.params["mu"]) == pytest.approx(float(FAR.mean()), rel=1e-9)


def test_a_model_that_was_read_rightly_is_asked_once_more_only() -> None:
    runs = []

    def model(x: Tensor, components: int) -> None:
        runs.append(1)
        gaussian_mixture(x, components)

    x = torch.stack([FAR, FAR.cos()], -1)
    em = EM(model, seed=0)
    em.plan(x, components=2)
    reading = len(runs)
    fit = em.fit(x, components=2)
    assert fit.converged
    assert len(runs) == 2 * reading + 1
