"""statsmodels and scipy as oracles of models whose latents have conjugate priors."""

import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from ember.inference import EM
from ember.models import student_t_regression
from tests.peers.common import equal

sm = pytest.importorskip("statsmodels.api")
datasets = pytest.importorskip("statsmodels.datasets")
tmodel = pytest.importorskip("statsmodels.miscmodels.tmodel")

positive = dist.constraints.positive
Array = np.ndarray[Any, Any]


def stack_loss() -> tuple[Array, Array]:
    """The loss of ammonia on 21 days, and what may explain it, centred."""
    frame = datasets.stackloss.load_pandas().data.to_numpy(dtype=float)
    return frame[:, 0], frame[:, 1:] - frame[:, 1:].mean(0)


@pytest.mark.parametrize("df", [3.0, 8.0])
def test_a_t_regression_with_known_degrees_of_freedom(df: float) -> None:
    y, X = stack_loss()
    model = tmodel.TLinearModel(y, sm.add_constant(X))
    ours = EM(student_t_regression, "mle").fit(torch.from_numpy(y), torch.from_numpy(X), df=df)
    scale = float(ours.params["precision"].rsqrt())
    at = np.r_[ours.params["coefficients"].numpy(), df, scale]
    equal(-model.nloglikeobs(at).sum(), ours.log_likelihood, 1e-10)
    for place in (0, 1, 2, 3, 5):  # no small move makes it more likely
        for move in (-1e-4, 1e-4):
            other = at.copy()
            other[place] *= 1.0 + move
            assert -model.nloglikeobs(other).sum() <= ours.log_likelihood + 1e-10


def test_a_t_regression_with_free_degrees_of_freedom() -> None:
    y, X = stack_loss()
    model = tmodel.TLinearModel(y, sm.add_constant(X))
    ours = EM(student_t_regression, "mle").fit(torch.from_numpy(y), torch.from_numpy(X))
    scale = float(ours.params["precision"].rsqrt())
    start = np.r_[ours.params["coefficients"].numpy(), float(ours.params["df"]), scale]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = model.fit(start_params=start, method="nm", maxiter=5000, disp=0)
    assert ours.log_likelihood >= theirs.llf - 1e-6
    equal(theirs.params, start, 1e-3)


def test_location_scale_and_degrees_of_freedom_are_scipy_s() -> None:
    y = stats.t(3.0, 5.0, 2.0).rvs(400, random_state=np.random.default_rng(0))
    ours = EM(student_t_regression, "mle").fit(torch.from_numpy(y))
    df, loc, scale = stats.t.fit(y, 3.0, loc=5.0, scale=2.0)
    assert ours.log_likelihood >= stats.t(df, loc, scale).logpdf(y).sum() - 1e-6
    equal(float(ours.params["df"]), df, 1e-2)
    equal(ours.params["coefficients"].numpy(), [loc], 1e-3)
    equal(float(ours.params["precision"].rsqrt()), scale, 1e-3)


def overdispersed(x: Tensor, y: Tensor) -> None:
    """Poisson regression with a Gamma latent of variance ``alpha`` in each row."""
    beta = pyro.param("beta", torch.zeros(x.shape[1]))
    alpha = pyro.param("alpha", torch.tensor(1.0), constraint=positive)
    with pyro.plate("rows", len(y)):
        u = pyro.sample("u", dist.Gamma(1.0 / alpha, 1.0 / alpha))
        pyro.sample("y", dist.Poisson(u * (x @ beta).exp()), obs=y)


def test_a_negative_binomial_regression() -> None:
    frame = datasets.fair.load_pandas().data[["rate_marriage", "age", "yrs_married", "affairs"]]
    found = frame.to_numpy(dtype=float)[::20]
    covariates = (found[:, :3] - found[:, :3].mean(0)) / found[:, :3].std(0)
    x, y = np.column_stack([np.ones(len(found)), covariates]), np.ceil(found[:, 3])
    theirs = sm.NegativeBinomial(y, x).fit(disp=0, maxiter=500, gtol=1e-8)
    ours = EM(overdispersed, "mle").fit(torch.from_numpy(x), torch.from_numpy(y))
    assert ours.plan.structure.conjugate.keys() == {"u"}
    assert ours.log_likelihood == pytest.approx(theirs.llf, abs=1e-6)
    equal(ours.params["beta"], theirs.params[:-1], 1e-3)
    equal(ours.params["alpha"], theirs.params[-1], 1e-3)


def test_counts_of_categories_are_scipy_s() -> None:
    def model(x: Tensor) -> None:
        a = pyro.param("a", torch.ones(3), constraint=positive)
        with pyro.plate("rows", len(x)):
            u = pyro.sample("u", dist.Dirichlet(a))
            pyro.sample("x", dist.Multinomial(12, u, validate_args=False), obs=x)

    rng = np.random.default_rng(1)
    x = np.stack([rng.multinomial(12, rng.dirichlet([0.5, 2.0, 1.0])) for _ in range(80)])
    fit = EM(model, "mle").fit(torch.from_numpy(x).double())
    theirs = stats.dirichlet_multinomial(fit.params["a"].numpy(), np.array(12)).logpmf(x)
    equal(fit.log_prob(), theirs, 1e-12)
