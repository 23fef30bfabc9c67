"""A model must be a function of its parameters: what draws on its own is refused."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

from ember.inference import EM, SVI

X = torch.linspace(-2.0, 3.0, 12, dtype=torch.float64).cos() * 2.0
CALLS = itertools.count()


def observe(x: Tensor, loc: Any, scale: Any = 1.0) -> None:
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def noisy_location(x: Tensor) -> None:
    observe(x, pyro.sample("mu", dist.Normal(0.0, 1.0)) + torch.randn(()))


def noisy_scale_in_a_mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], torch.rand(len(x)) + 0.5), obs=x)


def noisy_latent(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.rand(())))
        pyro.sample("x", dist.Normal(mu * z, 1.0), obs=x)


def noisy_prior(x: Tensor) -> None:
    observe(x, pyro.sample("mu", dist.Normal(torch.randn(()), 1.0)))


def noisy_part_of_a_mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    parts = dist.Normal(torch.randn(2), 1.0)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=x)


def noisy_transform(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    moved = dist.TransformedDistribution(
        dist.Normal(mu, 1.0), [dist.transforms.AffineTransform(torch.randn(()), 1.0)]
    )
    with pyro.plate("rows", len(x)):
        pyro.sample("x", moved, obs=x)


def noisy_mask(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    shown: Any = torch.rand(len(x)) < 0.5
    with poutine.mask(mask=shown):
        observe(x, mu)


def noisy_weights(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=float(torch.rand(())) + 0.1):
        observe(x, mu)


def own_data(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    observe(x[torch.randperm(len(x))], mu)


def hidden_site(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with poutine.block():
        noise = pyro.sample("noise", dist.Normal(0.0, 1.0))
    observe(x, mu + noise)


def counts_its_calls(x: Tensor) -> None:
    observe(x, pyro.sample("mu", dist.Normal(0.0, 1.0)) + 0.1 * next(CALLS))


class Dropout(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)
        self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    def forward(self, x: Tensor) -> None:
        design = self.drop(torch.stack([torch.ones_like(x), x.cos(), x.sin()], -1))
        observe(x, design @ self.weight)


MODELS: dict[str, tuple[Callable[..., Any], str]] = {
    "location": (noisy_location, "Normal of site 'x'"),
    "scale": (noisy_scale_in_a_mixture, "Normal of site 'x'"),
    "latent": (noisy_latent, "Bernoulli of site 'z'"),
    "prior": (noisy_prior, "Normal of site 'mu'"),
    "composite": (noisy_part_of_a_mixture, "site 'x'"),
    "transform": (noisy_transform, "site 'x'"),
    "mask": (noisy_mask, "site 'x'"),
    "weights of rows": (noisy_weights, "site 'x'"),
    "data": (own_data, "data of site 'x'"),
    "site out of sight": (hidden_site, "Normal of site 'x'"),
    "state": (counts_its_calls, "Normal of site 'x'"),
    "dropout": (Dropout(), "Normal of site 'x'"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_draws_on_its_own_is_refused(name: str) -> None:
    model, match = MODELS[name]
    for work in (EM(model).fit, EM(model).explain, SVI(model).fit):
        with pytest.raises(ValueError, match=f"{match}.*random numbers of its own.*eval") as error:
            work(X)
        assert "\n" not in str(error.value)


def test_a_site_that_comes_and_goes_is_named() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if next(CALLS) % 2:
            pyro.sample("extra", dist.Normal(mu, 1.0), obs=torch.tensor(0.5))
        observe(x, mu)

    with pytest.raises(ValueError, match="'extra' is there in some runs only"):
        EM(model).fit(X)


def test_draws_that_change_nothing_are_welcome() -> None:
    def model(x: Tensor) -> None:
        torch.randn(3)
        mu = pyro.param("mu", torch.randn(()))
        drawn = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        observe(x, mu, drawn)

    fit = EM(model, objective="mle").fit(X)
    assert float(fit.params["mu"]) == pytest.approx(float(X.mean()), rel=1e-9)


def test_dropout_that_is_switched_off_is_welcome() -> None:
    assert EM(Dropout().eval(), seed=0).fit(X).converged


def test_a_distribution_whose_transforms_name_their_inverses() -> None:
    x = torch.tensor([0.3, -1.1, 2.5, 0.4, 0.9, 1.7])

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Gumbel(loc, 1.0), obs=x)

    fit = EM(model).fit(x)  # the score is N - sum exp(-(x - loc)) = 0
    assert float(fit.params["loc"]) == pytest.approx(-math.log(float((-x).exp().mean())), rel=1e-6)
