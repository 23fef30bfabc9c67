"""Arguments that are affine in parameters: maps, weighted least squares, and generalised models."""

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch
from pyro import poutine
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.objective import score
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.building import build_plan
from ember.inference.reading.matching.arguments import probe_values

N = 80
Model = Callable[..., None]


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two lines with noise: covariates ``(N, 2)``, the first of them constant, and responses."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(N, generator=generator, dtype=torch.float64)
    y = torch.where(torch.arange(N) < 30, 1.0 + 2.0 * x, -1.0 - x) + noise
    return torch.stack([torch.ones_like(x), x], -1), y


def by_matrix(x: Tensor, y: Tensor) -> None:
    """``x @ beta[z]`` with a scale for each component."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("components", 2):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        variance = pyro.sample("variance", dist.InverseGamma(2.0, 0.5))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal((x * beta[z]).sum(-1), variance[z].sqrt()), obs=y)


def by_sites(x: Tensor, y: Tensor) -> None:
    """An intercept for each component, one slope for all, and a known offset."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("components", 2):
        intercept = pyro.sample("intercept", dist.Normal(0.0, 3.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        mean = 0.5 + intercept[z] + slope * x[:, 1]
        pyro.sample("y", dist.Normal(mean, precision.rsqrt()), obs=y)


def by_vectors(x: Tensor, y: Tensor) -> None:
    """Correlated priors on the coefficients; rows of known unequal noise."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    with pyro.plate("components", 2):
        beta = pyro.sample("beta", dist.MultivariateNormal(torch.ones(2), covariance))
    variance = pyro.sample("variance", dist.InverseGamma(2.0, 0.5))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        scale = variance.sqrt() * torch.linspace(0.5, 2.0, len(y))
        pyro.sample("y", dist.Normal((beta[z] * x).sum(-1), scale), obs=y)


REGRESSIONS = [by_matrix, by_sites, by_vectors]


@pytest.mark.parametrize("model", REGRESSIONS)
@pytest.mark.parametrize("objective", ["map", "mle"])
def test_plan_equals_reference_path(model: Model, objective: str) -> None:
    with sheltered(0):
        arguments = prepare(data(), {})
        plan = build_plan(model, arguments, objective)
        reference = build_plan(model, arguments, objective, probing=False)
        site = plan.sites["y"]
        assert site.density is not None
        assert isinstance(site.density.maps["loc"][1], AffineMap)
        params = probe_values(plan.structure, 9)
        ours, theirs = (
            LogEvidence.of(plan).statistics(params),
            LogEvidence.of(reference).statistics(params),
        )
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=1e-10)
        coordinates = Coordinates(plan.structure.parameters)
        torch.testing.assert_close(
            score(ours, coordinates), score(theirs, coordinates), rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("model", REGRESSIONS)
@pytest.mark.parametrize("objective", ["map", "mle"])
def test_every_update_is_closed_and_ends_at_a_stationary_point(
    model: Model, objective: str
) -> None:
    em = EM(model, objective, seed=0, tol=1e-10)
    table = em.explain(*data()).set_index("site")
    parameters = table[table["role"] == "parameter"]
    assert set(parameters["M-step"]) == {"closed form"}
    fit = em.fit(*data())
    assert fit.converged
    assert bool((fit.history.diff() >= 0).all())
    with sheltered():
        gradient = score(
            LogEvidence.of(fit.plan).statistics(fit.params),
            Coordinates(fit.plan.structure.parameters),
        )
    assert float(gradient.abs().max()) < 1e-5


def test_one_component_is_least_squares() -> None:
    x, y = data()

    def model(x: Tensor, y: Tensor) -> None:
        beta = pyro.param("beta", torch.zeros(2))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(x @ beta, scale), obs=y)

    fit = EM(model, "mle").fit(x, y)
    expected, residual, _, _ = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)
    np.testing.assert_allclose(fit.params["beta"].numpy(), expected, rtol=1e-10)
    assert float(fit.params["scale"]) == pytest.approx(float(np.sqrt(residual[0] / N)), rel=1e-10)
    assert fit.iterations == 1


def test_weights_are_those_of_weighted_least_squares() -> None:
    x, y = data()
    weights = torch.linspace(0.1, 2.0, N, dtype=torch.float64)

    def model(x: Tensor, y: Tensor) -> None:
        beta = pyro.param("beta", torch.zeros(2))
        with pyro.plate("rows", len(y)), poutine.scale(scale=weights):
            pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)

    fit = EM(model, "mle").fit(x, y)
    root = weights.sqrt().numpy()
    expected = np.linalg.lstsq(x.numpy() * root[:, None], y.numpy() * root, rcond=None)[0]
    np.testing.assert_allclose(fit.params["beta"].numpy(), expected, rtol=1e-10)


def test_what_the_data_leave_open_stays_where_it_is() -> None:
    x, y = data()

    def model(x: Tensor, y: Tensor) -> None:
        common = pyro.param("common", torch.tensor(3.0))
        effect = pyro.param("effect", torch.zeros(2))
        group = torch.arange(len(y)) % 2
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(common + effect[group], 1.0), obs=y)

    fit = EM(model, "mle").fit(x, y)
    means = torch.stack([y[0::2].mean(), y[1::2].mean()])
    torch.testing.assert_close(fit.params["common"] + fit.params["effect"], means)


@pytest.mark.parametrize("family", ["poisson", "logistic"])
def test_generalised_linear_mixtures_reach_the_optimum_of_the_marginal_likelihood(
    family: str,
) -> None:
    x, y = data()
    counts = torch.poisson(torch.exp(0.4 * y), generator=torch.Generator().manual_seed(1))
    response = counts if family == "poisson" else (counts > 1).double()

    def model(x: Tensor, y: Tensor) -> None:
        weights = pyro.param("weights", torch.ones(2) / 2, constraint=dist.constraints.simplex)
        with pyro.plate("components", 2):
            beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Categorical(weights))
            line = (x * beta[z]).sum(-1)
            fn = dist.Poisson(line.exp()) if family == "poisson" else dist.Bernoulli(logits=line)
            pyro.sample("y", fn, obs=y)

    fit = EM(model, seed=0, tol=1e-10).fit(x, response)

    def negative(flat: np.ndarray) -> float:
        beta, odds = torch.from_numpy(flat[:4]).reshape(2, 2), torch.from_numpy(flat[4:])
        line = x @ beta.T
        fn = dist.Poisson(line.exp()) if family == "poisson" else dist.Bernoulli(logits=line)
        joint = fn.log_prob(response[:, None]) + odds.log_softmax(0)
        prior = dist.Normal(0.0, torch.tensor(2.0).double()).log_prob(beta).sum()
        return -float(joint.logsumexp(1).sum() + prior)

    start = torch.cat([fit.params["beta"].reshape(-1), fit.params["weights"].log()]).numpy()
    assert -negative(start) == pytest.approx(fit.log_posterior, rel=1e-10)
    found = scipy.optimize.minimize(negative, start, method="BFGS", options={"gtol": 1e-9})
    assert fit.log_posterior >= -found.fun - 1e-6
