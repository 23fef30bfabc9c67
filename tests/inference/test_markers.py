"""Factors that raise a column of their own: they begin the right way up, on their own columns."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM

positive = dist.constraints.positive


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def one_factor(Y: Tensor) -> None:
    """The loading of the first column is 1, and the factor has a scale of its own."""
    loadings = pyro.param("loadings", torch.ones(3, dtype=torch.float64))
    s = pyro.param("s", torch.ones(4, dtype=torch.float64), constraint=positive)
    t = pyro.param("t", torch.tensor(1.0, dtype=torch.float64), constraint=positive)
    with pyro.plate("rows", len(Y)):
        f = pyro.sample("f", dist.Normal(0.0, t))
        means = f.unsqueeze(-1) * torch.cat([torch.ones(1).double(), loadings])
        pyro.sample("Y", dist.Normal(means, s).to_event(1), obs=Y)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_marker_says_which_way_up_a_factor_is(seed: int, sign: float) -> None:
    """Upside down, EM would drive the factor's scale to zero and the loadings to infinity."""
    truth = torch.tensor([1.0, 0.7, 1.2, 0.4], dtype=torch.float64)
    Y = sign * normal(seed, 100, 1) * truth + 0.6 * normal(100 + seed, 100, 4)
    fit = EM(one_factor, "mle", seed=0).fit(Y)
    given = EM(one_factor, "mle", init={"loadings": truth[1:]}, seed=0).fit(Y)
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(given.log_likelihood, rel=1e-8)
    assert float(fit.params["t"]) > 0.3
    covariance = fit.params["t"] ** 2 * torch.outer(
        *[torch.cat([torch.ones(1).double(), fit.params["loadings"]])] * 2
    ) + torch.diag(fit.params["s"] ** 2)
    dense = dist.MultivariateNormal(torch.zeros(4).double(), covariance).log_prob(Y).sum()
    assert fit.log_likelihood == pytest.approx(float(dense), rel=1e-10)


def two_factors(Y: Tensor) -> None:
    """A questionnaire of two scales: each item reads one of two factors that are correlated."""
    loadings = pyro.param("loadings", torch.ones(4, dtype=torch.float64))
    s = pyro.param("s", torch.ones(6, dtype=torch.float64), constraint=positive)
    spread = pyro.param(
        "spread", torch.eye(2, dtype=torch.float64), constraint=dist.constraints.lower_cholesky
    )
    one, none = torch.ones(1).double(), torch.zeros(3).double()
    first = torch.cat([one, loadings[:2], none])
    second = torch.cat([none, one, loadings[2:]])
    with pyro.plate("rows", len(Y)):
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(2).double(), scale_tril=spread))
        means = f[..., :1] * first + f[..., 1:] * second
        pyro.sample("Y", dist.Normal(means, s).to_event(1), obs=Y)


@pytest.mark.parametrize("seed", range(3))
def test_factors_with_columns_of_their_own(seed: int) -> None:
    mixing = torch.tensor([[1.0, 0.0], [0.4, 0.9]], dtype=torch.float64)
    f = normal(seed, 200, 2) @ mixing.mT
    truth = torch.tensor([1.0, 0.8, 1.1, 1.0, 0.6, 0.9], dtype=torch.float64)
    Y = f.repeat_interleave(3, 1) * truth + 0.6 * normal(50 + seed, 200, 6)
    fit = EM(two_factors, "mle", seed=0).fit(Y)
    start = {"loadings": truth[[1, 2, 4, 5]], "spread": mixing}
    given = EM(two_factors, "mle", init=start, seed=0).fit(Y)
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(given.log_likelihood, rel=1e-7)
