"""statsmodels as oracle: regressions as models without latents, zero inflation, Markov switching.

None of these models is Ember's own: they are written in Pyro, as a reader would write them.
"""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.models import hidden_markov_gaussian
from tests.peers.common import at, best_of, equal, gain_of_a_step

sm = pytest.importorskip("statsmodels.api")
datasets = pytest.importorskip("statsmodels.datasets")
counts = pytest.importorskip("statsmodels.discrete.count_model")

Array = np.ndarray[Any, Any]
positive = dist.constraints.positive
unit = dist.constraints.unit_interval


def table(name: str, columns: list[str], rows: int) -> Array:
    """Every so many rows of some columns."""
    frame = getattr(datasets, name).load_pandas().data
    found = frame[columns].to_numpy(dtype=float)
    return np.asarray(found[:: max(1, len(found) // rows)])


def design(x: Array) -> Array:
    """Standardised columns after a column of ones."""
    return np.column_stack([np.ones(len(x)), (x - x.mean(0)) / x.std(0)])


def linear(x: Tensor, y: Tensor) -> None:
    """Least squares with the scale that maximises the likelihood."""
    beta = pyro.param("beta", torch.zeros(x.shape[1]))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, scale), obs=y)


def logistic(x: Tensor, y: Tensor) -> None:
    """Logistic regression."""
    beta = pyro.param("beta", torch.zeros(x.shape[1]))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def multinomial(x: Tensor, y: Tensor) -> None:
    """Multinomial logistic regression, the first level being the base."""
    beta = pyro.param("beta", torch.zeros(2, x.shape[1]))
    logits = torch.cat([x.new_zeros(len(x), 1), x @ beta.T], -1)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def poisson(x: Tensor, y: Tensor) -> None:
    """Poisson regression."""
    beta = pyro.param("beta", torch.zeros(x.shape[1]))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson((x @ beta).exp()), obs=y)


def negative_binomial(x: Tensor, y: Tensor) -> None:
    """Poisson regression with Gamma noise of variance ``alpha``, which is integrated out."""
    beta = pyro.param("beta", torch.zeros(x.shape[1]))
    alpha = pyro.param("alpha", torch.tensor(1.0), constraint=positive)
    with pyro.plate("rows", len(y)):
        mean = (x @ beta).exp()
        pyro.sample("y", dist.NegativeBinomial(1.0 / alpha, logits=(alpha * mean).log()), obs=y)


def fair() -> tuple[Array, Array]:
    """Affairs, their number and what may explain it, of one respondent in 20."""
    found = table("fair", ["rate_marriage", "age", "yrs_married", "affairs"], 300)
    return design(found[:, :3]), np.ceil(found[:, 3])


def engel() -> tuple[Array, Array]:
    """Spending on food against income, on logarithmic scales."""
    found = np.log(table("engel", ["income", "foodexp"], 235))
    return design(found[:, :1]), found[:, 1]


def marriage() -> tuple[Array, Array]:
    """Good, fair and poor marriages against age and years."""
    found = table("fair", ["age", "yrs_married", "rate_marriage"], 300)
    return design(found[:, :2]), (found[:, 2] > 3).astype(float) + (found[:, 2] > 4)


REGRESSIONS: dict[str, Any] = {
    "ols": (linear, engel, lambda y, x: sm.OLS(y, x).fit()),
    "logit": (logistic, fair, lambda y, x: sm.Logit(y > 0, x).fit(disp=0, tol=1e-12)),
    "mnlogit": (multinomial, marriage, lambda y, x: sm.MNLogit(y, x).fit(disp=0, tol=1e-12)),
    "poisson": (poisson, fair, lambda y, x: sm.Poisson(y, x).fit(disp=0, tol=1e-12)),
    "negative binomial": (
        negative_binomial,
        fair,
        lambda y, x: sm.NegativeBinomial(y, x).fit(disp=0, maxiter=500, gtol=1e-8),
    ),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_regressions(name: str) -> None:
    model, data, fit = REGRESSIONS[name]
    x, y = data()
    theirs = fit(y, x)
    estimates = np.asarray(theirs.params).T
    params: dict[str, Any] = {"beta": estimates}
    if name == "ols":  # its `scale` is unbiased, its likelihood that of the maximum
        params["scale"] = np.sqrt(theirs.ssr / len(y))
    if name == "negative binomial":
        params = {"beta": estimates[:-1], "alpha": estimates[-1]}
    observed = torch.from_numpy((y > 0).astype(float) if name == "logit" else y)
    both = (torch.from_numpy(x), observed)
    equal(EM(model, "mle").e_step(params, *both).log_likelihood, theirs.llf, 1e-10)
    ours = best_of(model, 1, *both)
    assert ours.log_likelihood >= theirs.llf - 1e-8
    assert ours.log_likelihood == pytest.approx(theirs.llf, abs=1e-6)
    for site, value in params.items():
        equal(ours.params[site], value, 1e-4 if name == "negative binomial" else 1e-6)


def zero_inflated(x: Tensor, y: Tensor) -> None:
    """Some cannot have any; the others have a number that depends on covariates."""
    share = pyro.param("share", torch.tensor(0.5), constraint=unit)
    beta = pyro.param("beta", torch.zeros(x.shape[1]))
    with pyro.plate("rows", len(y)):
        never = pyro.sample("never", dist.Bernoulli(share))
        rate = torch.where(never > 0, torch.zeros(()), (x @ beta).exp())
        pyro.sample("y", dist.Poisson(rate), obs=y)


def zero_inflated_by_a_factor(x: Tensor, y: Tensor) -> None:
    """The same: but a count at a rate of 0 now has the derivative infinity times 0."""
    share = pyro.param("share", torch.tensor(0.5), constraint=unit)
    beta = pyro.param("beta", torch.zeros(x.shape[1]))
    with pyro.plate("rows", len(y)):
        never = pyro.sample("never", dist.Bernoulli(share))
        pyro.sample("y", dist.Poisson((1.0 - never) * (x @ beta).exp()), obs=y)


@pytest.mark.parametrize("model", [zero_inflated, zero_inflated_by_a_factor])
def test_zero_inflated_poisson(model: Any) -> None:
    x, y = fair()
    x = x if model is zero_inflated else x[:, :2]
    theirs = counts.ZeroInflatedPoisson(y, x).fit(disp=0, maxiter=500, gtol=1e-9)
    share = 1.0 / (1.0 + np.exp(-theirs.params[0]))
    params = {"share": share, "beta": theirs.params[1:]}
    both = (torch.from_numpy(x), torch.from_numpy(y))
    at_theirs = at(model, params, *both)
    equal(at_theirs.log_likelihood, theirs.llf, 1e-10)
    zero = np.exp(-np.exp(x @ theirs.params[1:]))
    never = np.where(y == 0, share / (share + (1.0 - share) * zero), 0.0)
    equal(at_theirs.posterior("never").probs[:, 1], never)
    assert gain_of_a_step(model, params, *both) < 1e-6
    ours = best_of(model, 1, *both)
    assert ours.log_likelihood >= theirs.llf - 1e-6
    equal(ours.params["beta"], theirs.params[1:], 1e-3)


def switching(y: Tensor) -> None:
    """Two regimes with their own mean and variance, the chain in its steady state from the start.

    The steady state is a function of the transition probabilities, so that these have no update in
    closed form: the first step tells of them too.
    """
    stay = pyro.param("stay", torch.tensor([0.9, 0.8]), constraint=unit)
    leave = 1.0 - stay
    transition = torch.stack([torch.stack([stay[0], leave[0]]), torch.stack([leave[1], stay[1]])])
    steady = leave.flip(0) / leave.sum()
    locs = pyro.param("locs", torch.stack([y.mean() - y.std(), y.mean() + y.std()]))
    variances = pyro.param("variances", y.var().expand(2).clone(), constraint=positive)
    state: Any = None
    for t in pyro.markov(range(len(y))):
        probs = steady if state is None else transition[state]
        state = pyro.sample(f"state_{t}", dist.Categorical(probs))
        pyro.sample(f"y_{t}", dist.Normal(locs[state], variances[state].sqrt()), obs=y[t])


def growth() -> Array:
    """Growth of the gross domestic product, per cent in a quarter: it calms down, and collapses."""
    level = datasets.macrodata.load_pandas().data["realgdp"].to_numpy()
    return np.asarray(100.0 * np.diff(np.log(level)))[-80:]


def switching_rival(y: Array, **options: Any) -> Any:
    model = sm.tsa.MarkovRegression(y, k_regimes=2, switching_variance=True)
    return model, model.fit(disp=0, gtol=1e-8, maxiter=500, **options)


def regimes(found: Any) -> dict[str, Any]:
    """The rival's estimates, its columns being "from", in the order of our sites."""
    named = dict(zip(found.model.param_names, found.params, strict=True))
    return {
        "stay": [named["p[0->0]"], 1.0 - named["p[1->0]"]],
        "locs": [named["const[0]"], named["const[1]"]],
        "variances": [named["sigma2[0]"], named["sigma2[1]"]],
    }


def test_markov_switching_regression() -> None:
    y = growth()
    _, theirs = switching_rival(y)
    params = regimes(theirs)
    x = torch.from_numpy(y)
    ours = at(switching, params, x)
    equal(ours.log_likelihood, theirs.llf, 1e-9)
    equal(ours.posterior("state").probs, theirs.smoothed_marginal_probabilities)
    assert gain_of_a_step(switching, params, x) < 1e-6
    worse = EM(switching, "mle").e_step({**params, "stay": [0.9, 0.9]}, x)
    assert worse.log_likelihood < theirs.llf - 1e-3


def test_a_free_first_state_is_the_more_general_model() -> None:
    """The rival's chain starts in its steady state unless a distribution is given.

    One that is given (``initialize_known``), by its description that of the first regime, is moved
    by the chain twice before anything is seen. In the steady state that makes no difference.
    """
    y = growth()
    model, theirs = switching_rival(y)
    params = regimes(theirs)
    stay = np.array(params["stay"])
    transition = np.array([[stay[0], 1 - stay[0]], [1 - stay[1], stay[1]]])
    before = np.array([0.3, 0.7])
    model.initialize_known(before)
    x = torch.from_numpy(y[:, None])
    chain = {
        "initial": before @ transition @ transition,
        "transition": transition,
        "locs": np.array(params["locs"])[:, None],
        "precisions": 1.0 / np.array(params["variances"])[:, None, None],
    }
    ours = at(hidden_markov_gaussian, chain, x, states=2)
    equal(ours.log_likelihood, model.loglike(theirs.params), 1e-9)
    smoothed = model.smooth(theirs.params).smoothed_marginal_probabilities
    equal(ours.posterior("state").probs, smoothed)
    free = best_of(hidden_markov_gaussian, 1, x, states=2)
    assert free.log_likelihood >= theirs.llf - 1e-8  # the steady state is one of its cases


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_where_the_rival_fails() -> None:
    """The flow of the Nile fell in 1899. The rival starts one regime at a mean of 0, far from all.

    By default, with five iterations of EM, the variance of that regime collapses and it raises; by
    BFGS alone it ends at a single regime. Ours starts from clusters of the data.
    """
    y = table("nile", ["volume"], 100)[:, 0] / 100.0
    with pytest.raises(np.linalg.LinAlgError):
        switching_rival(y)
    _, theirs = switching_rival(y, em_iter=0)
    single = -50.0 * (np.log(2.0 * np.pi * y.var()) + 1.0)
    assert theirs.llf == pytest.approx(single, abs=1e-3)
    ours = best_of(hidden_markov_gaussian, 1, torch.from_numpy(y[:, None]), states=2)
    assert ours.log_likelihood > theirs.llf + 10.0
    regime = ours.predict()
    assert bool((regime[1:28] == regime[0]).all())  # 1871 to 1898
    assert bool((regime[28:] != regime[0]).all())


def state_space(y: Tensor) -> None:
    """A turning state, seen by two sensors: as statsmodels has it, the first step is given."""
    free = pyro.param("A", 0.5 * torch.eye(2))
    seen = pyro.param("C", torch.eye(2))
    noise = pyro.param("r", torch.ones(2), constraint=positive)
    standard = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    level = dist.Normal(torch.zeros(2), noise).to_event(1)
    chain = dist.GaussianHMM(standard, free, standard, seen, level, duration=len(y))
    pyro.sample("y", chain, obs=y)


@pytest.mark.parametrize("gaps", [False, True])
def test_the_smoother_of_a_state_space(gaps: bool) -> None:
    y = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = y.cumsum(0) - 0.9 * y.cumsum(0).roll(1, 0)
    if gaps:
        y[40:60], y[100:, 0] = torch.nan, torch.where(y[100:, 0] > 1.0, torch.nan, y[100:, 0])
    params = {
        "A": torch.tensor([[0.8, 0.3], [-0.2, 0.7]], dtype=torch.float64),
        "C": torch.tensor([[1.0, 0.4], [-0.3, 0.8]], dtype=torch.float64),
        "r": torch.tensor([0.5, 0.8], dtype=torch.float64),
    }
    smoother = sm.tsa.statespace.MLEModel(y.numpy(), k_states=2, k_posdef=2).ssm
    move = params["A"].mT.numpy()
    smoother["transition"], smoother["selection"], smoother["state_cov"] = (
        move,
        np.eye(2),
        np.eye(2),
    )
    smoother["design"], smoother["obs_cov"] = (
        params["C"].mT.numpy(),
        np.diag(params["r"].numpy() ** 2),
    )
    smoother.initialize_known(np.zeros(2), move @ move.T + np.eye(2))
    smoother.loglikelihood_burn = 0
    found = smoother.smooth()
    fit = at(state_space, params, y)
    assert fit.log_likelihood == pytest.approx(float(found.llf_obs.sum()), rel=1e-10)
    posterior = fit.posterior("state")
    np.testing.assert_allclose(posterior.mean.numpy(), found.smoothed_state.T, atol=1e-9)
    covariance = np.moveaxis(found.smoothed_state_cov, -1, 0)
    np.testing.assert_allclose(posterior.covariance.numpy(), covariance, atol=1e-9)
