"""Latents of units that are few or apart: one behind all rows, groups in a loop, of a class."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM, Adaptive, Quadrature

QUADRATURE: Any = {"integrate": "quadrature"}


def shared_log_rate(y: Tensor, how: Any) -> None:
    mean = pyro.param("mean", torch.tensor(0.0, dtype=torch.float64))
    u = pyro.sample("u", dist.Normal(mean, 1.0), infer=how)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(u.exp()), obs=y)


@pytest.mark.parametrize("how", ["quadrature", Adaptive()], ids=str)
def test_one_value_behind_all_rows_is_a_unit(how: Any) -> None:
    y = torch.tensor([1.0, 0, 2, 3, 1, 2, 2, 4, 1, 0] * 3, dtype=torch.float64)
    fit = EM(shared_log_rate, "mle").fit(y, how={"integrate": how})
    u = torch.linspace(-3, 4, 70_001, dtype=torch.float64)
    joint = dist.Normal(fit.params["mean"], 1.0).log_prob(u)
    joint = joint + dist.Poisson(u.exp()).log_prob(y.unsqueeze(-1)).sum(0)
    exact = float(joint.max() + torch.trapezoid((joint - joint.max()).exp(), u).log())
    assert fit.log_likelihood == pytest.approx(exact, rel=1e-9)
    # At the maximum the prior stands around the posterior's mean.
    assert float(fit.posterior("u").mean) == pytest.approx(float(fit.params["mean"]), abs=1e-4)


def test_groups_in_a_loop_are_those_in_a_plate() -> None:
    y = torch.poisson(torch.linspace(1, 6, 30).double(), generator=torch.Generator().manual_seed(0))
    group = torch.arange(30) // 6

    def looped(y: Tensor) -> None:
        mean, scale = (
            pyro.param("mean", torch.tensor(0.0)),
            pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive),
        )
        for j in pyro.plate("groups", 5):
            u = pyro.sample(f"u_{j}", dist.Normal(mean, scale), infer=QUADRATURE)
            with pyro.plate(f"rows_{j}", 6):
                pyro.sample(f"y_{j}", dist.Poisson(u.exp()), obs=y[group == j])

    def indexed(y: Tensor) -> None:
        mean, scale = (
            pyro.param("mean", torch.tensor(0.0)),
            pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive),
        )
        with pyro.plate("groups", 5):
            u = pyro.sample("u", dist.Normal(mean, scale), infer=QUADRATURE)
        with pyro.plate("rows", 30):
            pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)

    one, other = (EM(model, "mle").fit(y) for model in (looped, indexed))
    assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-9)


def test_a_class_in_the_prior_of_an_effect_is_refused() -> None:
    group = torch.arange(30) // 6

    def classes(y: Tensor) -> None:
        means = pyro.param("means", torch.tensor([-1.0, 1.0]))
        with pyro.plate("groups", 5):
            z = pyro.sample("z", dist.Bernoulli(0.5)).long()
            u = pyro.sample("u", dist.Normal(means[z], 1.0), infer=QUADRATURE)
        with pyro.plate("rows", 30):
            pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)

    with pytest.raises(ValueError, match=r"latent 'u' .* its prior depends on a discrete latent"):
        EM(classes, "mle").fit(torch.ones(30))


def test_a_prior_with_an_edge_is_refused() -> None:
    group = torch.arange(30) // 6

    def peaked(y: Tensor) -> None:
        with pyro.plate("groups", 5):
            u = pyro.sample(
                "u", dist.Laplace(0.0, pyro.param("b", torch.ones(()))), infer=QUADRATURE
            )
        with pyro.plate("rows", 30):
            pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)

    with pytest.raises(ValueError, match=r"site 'u' .* its Laplace prior has an edge"):
        EM(peaked, "mle").fit(torch.ones(30))


@pytest.mark.parametrize("prior", [dist.StudentT(3.0), dist.Gamma(8.0, 2.0)], ids=["t", "gamma"])
def test_rows_with_a_prior_that_no_grid_is_known_for(prior: Any) -> None:
    """They are integrated around the mode of each."""
    y = torch.linspace(-1.0, 4.0, 12, dtype=torch.float64)

    def model(y: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.0, dtype=torch.float64))
        with pyro.plate("rows", len(y)):
            u = pyro.sample("u", prior, infer=QUADRATURE)
            pyro.sample("y", dist.Normal(shift + u, 0.5), obs=y)

    fit = EM(model, "mle").fit(y)
    u = torch.linspace(-60 if prior.support is constraints.real else 1e-9, 60, 1_200_001).double()
    joint = prior.log_prob(u) + dist.Normal(fit.params["shift"] + u, 0.5).log_prob(y[:, None])
    exact = torch.trapezoid(joint.exp(), u).log()
    torch.testing.assert_close(fit.log_prob(), exact, rtol=1e-5, atol=1e-5)


def test_missing_answers_are_left_out_by_a_mask() -> None:
    """An ``obs_mask`` makes a discrete latent of them, which nodes have no place for."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(40, 4, generator=generator) < 0.6).double()
    shown = torch.rand(40, 4, generator=generator) < 0.8

    def model(y: Tensor, shown: Any, how: str) -> None:
        with pyro.plate("items", 4, dim=-1):
            b = pyro.sample("b", dist.Normal(0.0, 2.0))
        with pyro.plate("persons", len(y), dim=-2):
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0), infer=QUADRATURE)
            with pyro.plate("answers", 4, dim=-1):
                fn: Any = dist.Bernoulli(logits=ability - b)
                if how == "obs_mask":
                    pyro.sample("y", fn, obs=y, obs_mask=shown)
                elif how == "mask":
                    pyro.sample("y", fn.mask(shown), obs=y)
                else:
                    pyro.sample("y", fn, obs=torch.where(shown, y, torch.nan))

    with pytest.raises(ValueError, match=r"write NaN for them in the data, or put 'y' under"):
        EM(model, seed=0).fit(y, shown, how="obs_mask")
    one, other = (EM(model, seed=0).fit(y, shown, how=how) for how in ("mask", "NaN"))
    assert one.log_posterior == pytest.approx(other.log_posterior, rel=1e-9)


def test_one_value_beside_a_value_of_each_row_stays_on_a_grid() -> None:
    y = torch.poisson(torch.full((20,), 2.0), generator=torch.Generator().manual_seed(0)).double()

    def model(y: Tensor) -> None:
        mean = pyro.param("mean", torch.tensor(0.5, dtype=torch.float64))
        level = pyro.sample("level", dist.Normal(mean, 0.5), infer=QUADRATURE)
        with pyro.plate("rows", len(y)):
            own = pyro.sample("own", dist.Normal(0.0, 0.5), infer=QUADRATURE)
            pyro.sample("y", dist.Poisson((level + own).exp()), obs=y)

    fit = EM(model, "mle", seed=0).fit(y)
    u = torch.linspace(-6, 6, 481, dtype=torch.float64)
    step = float(u[1] - u[0])
    rows = dist.Poisson((u[:, None] + u).exp()).log_prob(y[:, None, None])
    rows = (rows + dist.Normal(0.0, 0.5).log_prob(u)).logsumexp(-1) + math.log(step)
    joint = rows.sum(0) + dist.Normal(fit.params["mean"], 0.5).log_prob(u)
    exact = float(joint.logsumexp(0)) + math.log(step)
    assert fit.log_likelihood == pytest.approx(exact, rel=1e-4)


def test_a_grid_that_is_asked_for_is_one() -> None:
    y = torch.tensor([1.0, 0, 2, 3, 1, 2, 2, 4, 1, 0] * 3, dtype=torch.float64)
    fit = EM(shared_log_rate, "mle").fit(y, how={"integrate": Quadrature(241)})
    assert "241 for 'u' (even and odd" in str(fit)
