"""Legitimate Pyro that is written less often, and calls that are made in other ways."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from ember.inference import EM, SVI
from ember.models import gaussian_mixture, hidden_markov_gaussian, hidden_markov_poisson


def two_clusters(n: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    return noise + 5.0 * (torch.arange(n) % 2)


def test_families_by_mask_of_the_latent() -> None:
    x = two_clusters()

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Beta(2.0, 2.0))
        with pyro.plate("k", 2):
            mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("n", len(x)):
            z: Any = pyro.sample("z", dist.Bernoulli(w)).bool()
            with poutine.mask(mask=z):
                pyro.sample("a", dist.Normal(mu[0], 1.0), obs=x)
            with poutine.mask(mask=~z):
                pyro.sample("b", dist.Laplace(mu[1], 2.0), obs=x)

    fit = EM(model, seed=0).fit(x)
    w, mu = fit.params["w"], fit.params["mu"]
    joint = torch.stack(
        [
            w.log() + dist.Normal(mu[0], 1.0).log_prob(x),
            (1 - w).log() + dist.Laplace(mu[1], 2.0).log_prob(x),
        ]
    )
    assert fit.log_likelihood == pytest.approx(float(joint.logsumexp(0).sum()), rel=1e-7)


def test_factor_and_deterministic_statements() -> None:
    x = two_clusters()

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("k", 2):
            mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        pyro.factor("penalty", -0.1 * mu.square().sum())
        with pyro.plate("n", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            centre = pyro.deterministic("centre", mu[z])
            pyro.factor("tilt", -0.1 * z.double())
            pyro.sample("x", dist.Normal(centre, 1.0), obs=x)

    fit = EM(model, seed=0).fit(x)
    w, mu = fit.params["w"], fit.params["mu"]
    tilt = 0.1 * torch.arange(2).double()
    joint = w.log() - tilt + dist.Normal(mu, torch.ones(2)).log_prob(x[:, None])
    expected = joint.logsumexp(1).sum() - 0.1 * mu.square().sum()
    assert fit.log_likelihood == pytest.approx(float(expected), rel=1e-10)
    assert fit.log_prob().shape == (40,)
    draws = fit.sample(7)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {"z": (7,), "x": (7,)}


def test_draws_differ_without_a_seed_and_repeat_with_one() -> None:
    x = torch.randn(30, 2)
    fit = EM(gaussian_mixture, seed=0).fit(x, components=2)
    assert not torch.equal(fit.sample(5)["x"], fit.sample(5)["x"])
    assert torch.equal(fit.sample(5, seed=1)["x"], fit.sample(5, seed=1)["x"])


def test_rows_in_a_plate_that_is_not_the_last() -> None:
    x = torch.randn(6, 4) + torch.arange(6)[:, None] % 2 * 4.0

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("k", 2):
            mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("people", 6, dim=-2):
            z = pyro.sample("z", dist.Categorical(w))
            with pyro.plate("items", 4, dim=-1):
                pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    fit = EM(model, seed=0).fit(x)
    assert fit.predict().shape == (6,)
    draws = fit.sample(9)
    assert draws["z"].shape == (9,)
    assert draws["x"].shape == (9, 4)


def test_data_by_keyword_and_row_weights_as_a_list() -> None:
    x = torch.randn(30, 2) + 4.0 * (torch.arange(30) % 2)[:, None]
    fit = EM(gaussian_mixture, seed=0).fit(x=x, components=2)
    assert torch.equal(fit.predict(x[:3]), fit.predict()[:3])
    weighted = EM(gaussian_mixture, seed=0).fit(x, 2, frequency=[1.0] * 30)
    assert weighted.predict(x[:3]).shape == (3,)


@pytest.mark.parametrize("method", [EM, SVI])
def test_a_batch_of_one_sequence_is_that_sequence(method: Any) -> None:
    x = torch.randn(12, 2) + 4.0 * (torch.arange(12) // 6)[:, None]
    options = {"seed": 0} if method is EM else {"seed": 0, "steps": 5}
    one = method(hidden_markov_gaussian, **options).fit(x, states=2)
    batch = method(hidden_markov_gaussian, **options).fit(x[None], states=2)
    assert batch.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-6)
    counts = torch.tensor([[1.0, 0, 9, 8, 0, 1]])
    assert method(hidden_markov_poisson, **options).fit(counts, states=2).predict().shape == (1, 6)


class Mixture(PyroModule):
    """A mixture whose weights come from a linear layer and whose scales are PyroParams."""

    def __init__(self, trainable: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer: Any = PyroModule[torch.nn.Linear]
        self.linear = layer(1, 2)
        if trainable:
            self.linear.weight = PyroParam(self.linear.weight.detach().clone())
            self.linear.bias = PyroParam(self.linear.bias.detach().clone())
        self.locs = PyroParam(torch.tensor([-1.0, 1.0]))
        self.scales = PyroParam(torch.ones(2), constraint=dist.constraints.positive)

    def forward(self, c: Tensor, x: Tensor) -> None:
        logits = self.linear(c)
        with pyro.plate("n", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=logits))
            locs: Any = self.locs
            scales: Any = self.scales
            pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)


def test_parameters_that_a_module_keeps_to_itself_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'linear.weight'.*PyroParam"):
        EM(Mixture(trainable=False)).fit(torch.zeros(9, 1), torch.randn(9))


def test_a_pyro_module_is_fitted_and_left_alone() -> None:
    c = torch.linspace(-1.0, 1.0, 60)[:, None]
    x = torch.where(c[:, 0] > 0, 3.0, -3.0) + torch.randn(60)
    module = Mixture()
    before = {name: value.clone() for name, value in module.named_parameters()}
    with pytest.warns(RuntimeWarning, match=r"'linear\.weight'.* at infinity"):
        fit = EM(module, seed=0).fit(c, x)  # the sign of c separates the groups
    assert fit.log_likelihood > -120.0
    assert float(fit.params["linear.weight"].diff(dim=0).abs()) > 5.0
    first, second = (SVI(module, steps=20, seed=0).fit(c, x) for _ in range(2))
    torch.testing.assert_close(first.history, second.history, rtol=1e-12, atol=0)
    assert all(value.dtype == torch.float64 for value in first.params.values())
    for name, value in module.named_parameters():
        assert torch.equal(value, before[name]), name


def test_pyro_module_statements_are_refused() -> None:
    net = torch.nn.Linear(1, 2)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("n", len(x)):
            pyro.sample("x", dist.Normal(net(x[:, None])[:, 0], 1.0), obs=x)

    with pytest.raises(ValueError, match=r"'net'.*PyroModule"):
        EM(model).fit(torch.randn(9))


def test_pieces_with_different_priors_are_said() -> None:
    x = torch.randn(40, 2)
    em = EM(gaussian_mixture, seed=0)
    params = em.initialise(x, components=2)
    stats = em.e_step(params, x[:20], components=2) + em.e_step(params, x[20:], components=2)
    assert "2 pieces" in repr(stats)
    with pytest.warns(RuntimeWarning, match="different priors"):
        em.m_step(stats)


def test_an_impossible_start_and_zero_weights_are_refused() -> None:
    x = torch.tensor([0.0, 1.0, 30.0])

    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
        with pyro.plate("n", 3), poutine.scale(scale=torch.tensor([1.0, 0.0, 1.0])):
            pyro.sample("x", dist.Geometric(p), obs=x)

    with pytest.raises(ValueError, match="weight zero"):
        EM(model).fit(x)
    with pytest.raises(TypeError, match="integrate='x' must be a dict"):
        EM(model, integrate="x")  # type: ignore[arg-type]
