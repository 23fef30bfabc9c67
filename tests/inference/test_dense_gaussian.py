"""The oracle of Gaussian latents against closed forms: marginal normals and a Kalman filter."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from tests.inference import brute_force
from tests.inference.dense_gaussian import NotGaussian, dense, log_evidence, maximum
from tests.inference.gaussian_groups import GROUP, Y_LINES, X, Y
from tests.inference.gaussian_models import CASES
from tests.inference.gaussian_refusals import REFUSED

Array = np.ndarray[Any, Any]


def gaussian_regression(
    y: Array, mean: Array, design: Array, prior: Array, noise: float
) -> tuple[float, Array, Array]:
    """Log density of ``y = mean + design u + e``, and the posterior of ``u``, in covariances."""
    total = design @ prior @ design.T + noise * np.eye(len(y))
    gain = prior @ design.T @ np.linalg.inv(total)
    log_density = float(multivariate_normal(mean, total).logpdf(y))
    return log_density, gain @ (y - mean), prior - gain @ design @ prior


def kalman(y: Array, mean: float, variance: float, q: float, r: float) -> tuple[float, Array]:
    """Log likelihood of a local level by the prediction errors, and the filtered levels."""
    total, filtered = 0.0, []
    for t, value in enumerate(y):
        variance = variance + q if t else variance
        if not np.isnan(value):
            spread = variance + r
            total -= 0.5 * (np.log(2.0 * np.pi * spread) + (value - mean) ** 2 / spread)
            mean = mean + variance / spread * (value - mean)
            variance = variance * r / spread
        filtered.append(mean)
    return total, np.array(filtered)


def values(**params: Any) -> dict[str, Tensor]:
    return {name: torch.as_tensor(v, dtype=torch.float64) for name, v in params.items()}


def test_random_slopes_are_a_marginal_normal() -> None:
    D, beta, se = np.array([[1.3, -0.4], [-0.4, 0.8]]), np.array([0.7, -1.1]), 0.6
    found = CASES["correlated slopes"].dense(values(beta=beta, D=D, se=se))
    x = X.numpy()
    design = np.zeros((len(x), 12))
    for n, group in enumerate(GROUP):
        design[n, 2 * int(group) : 2 * int(group) + 2] = x[n]
    log_density, mean, covariance = gaussian_regression(
        Y_LINES.numpy(), x @ beta, design, np.kron(np.eye(6), D), se**2
    )
    assert float(found.log_evidence) == pytest.approx(log_density, rel=1e-12)
    np.testing.assert_allclose(found.mean("u"), mean.reshape(6, 2), rtol=1e-10)
    blocks = covariance.reshape(6, 2, 6, 2)[np.arange(6), :, np.arange(6)]
    np.testing.assert_allclose(found.covariance("u"), blocks, rtol=1e-10)
    np.testing.assert_allclose(
        found.variance("u"), np.diagonal(blocks, axis1=1, axis2=2), rtol=1e-10
    )


def test_the_filter_and_the_joint_agree_on_a_chain() -> None:
    for name in ("local level", "local level with gaps"):
        case = CASES[name]
        found = case.dense(values(q=0.4, r=0.3))
        y = case.args[0].numpy().copy()
        y[list(case.kwargs.get("gaps", ()))] = np.nan
        total, filtered = kalman(y, 0.0, 100.0, 0.4, 0.3)
        assert float(found.log_evidence) == pytest.approx(total, rel=1e-12)
        last = case.latents[-1]
        np.testing.assert_allclose(float(found.mean(last)), filtered[-1], rtol=1e-10)


def test_a_mixture_over_discrete_latents_is_that_of_its_rows() -> None:
    """Rows are independent given the parameters: the evidence is a product of sums."""
    case = CASES["factor mixture"]
    params = case.params(3)
    found = case.dense(params)
    (x,) = case.args
    each = []
    for k in range(2):
        w, psi = params["loadings"][k].numpy(), params["psi"][k].numpy()
        normal = multivariate_normal(params["locs"][k].numpy(), np.outer(w, w) + np.diag(psi))
        each.append(np.log(float(params["weights"][k])) + normal.logpdf(x.numpy()))
    total = np.logaddexp(*each)
    assert float(found.log_evidence) == pytest.approx(float(total.sum()), rel=1e-11)
    np.testing.assert_allclose(
        found.marginal("k"), np.exp(np.stack(each, -1) - total[:, None]), rtol=1e-9, atol=1e-12
    )


def test_expected_values_of_quadratics() -> None:
    case = CASES["correlated slopes"]
    found = case.dense(case.params(2))
    second = found.expectation(lambda z: z["u"].unsqueeze(-1) * z["u"].unsqueeze(-2))
    mean = found.mean("u")
    torch.testing.assert_close(
        second, found.covariance("u") + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    )
    torch.testing.assert_close(found.expectation(lambda z: 3.0 * z["u"] + 1.0), 3.0 * mean + 1.0)


@pytest.mark.parametrize("name", ["random intercept", "two children", "autoregression", "kinship"])
def test_the_slope_of_the_evidence_is_the_expected_slope_of_the_log_joint(name: str) -> None:
    """Fisher's identity, which ties moments and evidence: two ways through the oracle."""
    case = CASES[name]
    params = {k: v.clone().requires_grad_() for k, v in case.params(4).items()}
    slopes = torch.autograd.grad(
        log_evidence(case.model, case.latents, params, *case.args, **case.kwargs),
        list(params.values()),
    )

    def slope(z: dict[str, Tensor]) -> Tensor:
        trace = brute_force.run(case.model, params, z, *case.args, **case.kwargs)
        found = torch.autograd.grad(trace.log_prob_sum(), list(params.values()))
        return torch.cat([each.reshape(-1) for each in found])

    frozen = case.dense({k: v.detach() for k, v in params.items()})
    expected = torch.cat([each.reshape(-1) for each in slopes])
    torch.testing.assert_close(frozen.expectation(slope), expected, rtol=1e-8, atol=1e-8)


def test_the_maximum_of_a_balanced_design_has_a_closed_form() -> None:
    """One-way layout: the noise is the mean square within, the effects' what is left between."""
    y = CASES["nested plates"].args[0]
    groups, rows = y.shape
    case = CASES["nested plates"]
    found, _ = case.maximum(case.start())
    within = float(((y - y.mean(1, keepdim=True)) ** 2).sum() / (groups * (rows - 1)))
    between = float(((y.mean(1) - y.mean()) ** 2).mean())
    assert float(found["mu"]) == pytest.approx(float(y.mean()), rel=1e-6)
    assert float(found["se"]) ** 2 == pytest.approx(within, rel=1e-6)
    assert float(found["su"]) ** 2 == pytest.approx(between - within / rows, rel=1e-6)


def test_with_a_prior_the_maximum_is_that_of_the_posterior() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    found, value = maximum(model, ["z"], values(mu=0.0), y, objective="map")
    assert float(found["mu"]) == pytest.approx(9.0 / 5.0)  # y has the variance 2: 4.5 / (1.5 + 1)
    total = multivariate_normal(np.full(3, 1.8), 2.0 * np.eye(3)).logpdf(y.numpy())
    prior = -0.5 * (np.log(2.0 * np.pi) + 1.8**2)
    assert value == pytest.approx(float(total + prior))


QUADRATIC = {"class of the row", "kinship, non-centred"}  # refused for other reasons


@pytest.mark.parametrize("name", sorted({*REFUSED} - QUADRATIC))
def test_what_is_no_quadratic_is_noticed(name: str) -> None:
    refused = REFUSED[name]
    latents = [each for each in refused.names if each != "y"]
    params = {"su": torch.tensor(1.0), "se": torch.tensor(1.0)}
    with pytest.raises(NotGaussian):
        dense(refused.model, latents, params, *refused.args)


@pytest.mark.parametrize("name", CASES)
def test_every_case_of_the_catalogue_is_gaussian(name: str) -> None:
    case = CASES[name]
    params = case.params(1)
    assert not params.keys() & set(case.latents)
    found = case.dense(params)
    assert bool(found.log_evidence.isfinite())
    torch.testing.assert_close(found.weights.sum(), torch.ones(()).double())
    for latent in case.latents:
        assert found.mean(latent).shape == found.variance(latent).shape
        assert bool((found.variance(latent) > 0).all())


def test_the_data_of_groups_are_as_the_models_think() -> None:
    """Every group is seen, so that permutations of groups move all that there is."""
    assert GROUP.bincount().min() >= 2
    assert len(Y) == len(GROUP) == len(X)
