"""A place at which the gradient vanishes is no maximum: saddles, and states that are all alike."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from ember.models import gaussian_mixture

NAN = float("nan")
# Murray (1977), in the discussion of Dempster, Laird & Rubin, JRSS B 39, 27-28: a saddle at
# correlation 0, and two maxima of one height, variances 8/3 and correlations of 1/2 and -1/2.
CORNERS = [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]
FIRST, SECOND = ([[v, NAN] for v in (2, 2, -2, -2)], [[NAN, v] for v in (2, 2, -2, -2)])
MURRAY = torch.tensor([*CORNERS, *FIRST, *SECOND], dtype=torch.float64)
SADDLE, MAXIMUM = -30.0333423863, -29.9742864105  # scipy, BFGS on the observed density, 30 starts

STEPS = torch.tensor(
    [0, 0, 1, 0, 0, 0, 1, 0, 2, 2, 2, 1, 2, 2, 2, 2, 0, 0, 0, 1, 0, 0, 2, 2, 1, 2, 2, 2]
)
ALIKE, APART = -29.0588089245, -22.2105022444  # one state; scipy, forward recursion, 40 starts


def one_normal(x: Tensor) -> None:
    matrix = pyro.param("cov", torch.eye(2), constraint=constraints.positive_definite)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=matrix), obs=x)


def chain(y: Tensor) -> None:
    probs = pyro.sample("initial", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("states", 2):
        moves = pyro.sample("moves", dist.Dirichlet(torch.ones(2)))
        levels = pyro.sample("levels", dist.Dirichlet(torch.ones(3)))
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Categorical(levels[z]), obs=y[t])
        probs = moves[z]


def classes(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("columns", 4, dim=-2), pyro.plate("classes", 2, dim=-1):
        probs = pyro.sample("probs", dist.Beta(1.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Bernoulli(probs.T[z]).to_event(1), obs=x)


def test_murray_s_rows_end_at_a_maximum_whatever_the_start() -> None:
    for restarts in (1, 4):
        fit = EM(gaussian_mixture, "mle", seed=0, restarts=restarts).fit(MURRAY, components=1)
        assert fit.converged
        assert fit.log_likelihood == pytest.approx(MAXIMUM, abs=1e-6)
    fit = EM(one_normal, "mle", init={"cov": 2.5 * torch.eye(2)}).fit(MURRAY)
    assert float(fit.history[0]) == pytest.approx(SADDLE, abs=1e-8)
    assert fit.log_likelihood == pytest.approx(MAXIMUM, abs=1e-6)
    assert bool((fit.history.diff() >= 0.0).all())
    assert fit.params["cov"].abs().flatten().tolist() == pytest.approx(
        [8.0 / 3.0, 4.0 / 3.0, 4.0 / 3.0, 8.0 / 3.0], abs=1e-3
    )


@pytest.mark.parametrize("accelerate", [None, "squarem", "anderson", "lbfgs"])
def test_every_scheme_leaves_a_saddle(accelerate: str | None) -> None:
    start = {"cov": 2.5 * torch.eye(2)}
    fit = EM(one_normal, "mle", init=start, accelerate=accelerate).fit(MURRAY)
    assert fit.log_likelihood == pytest.approx(MAXIMUM, abs=1e-6)


def test_starts_of_a_single_state_differ() -> None:
    fit = EM(gaussian_mixture, "mle", seed=0, restarts=6, max_iter=1)
    with pytest.warns(RuntimeWarning, match="max_iter"):
        starts = fit.fit(MURRAY, components=1).starts
    assert len({round(value, 6) for value in starts.objectives.tolist()}) > 2


@pytest.mark.parametrize("init", ["kmeans", "windows", "sticky"])
def test_steps_of_a_categorical_chain_do_not_start_alike(init: str) -> None:
    fit = EM(chain, "mle", init=init, seed=0).fit(STEPS)
    assert fit.log_likelihood == pytest.approx(APART, abs=1e-6)


def test_states_that_the_user_starts_alike_come_apart() -> None:
    even = {"initial": torch.ones(2) / 2, "moves": torch.ones(2, 2) / 2}
    start = {**even, "levels": torch.ones(2, 3) / 3}
    fit = EM(chain, "mle", init=start, seed=0).fit(STEPS)
    assert fit.log_likelihood > ALIKE + 1.0
    x = torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
    same = {"weights": torch.ones(2) / 2, "probs": torch.full((4, 2), 0.4)}
    best = EM(classes, restarts=10, seed=0).fit(x.double()).log_posterior
    fit = EM(classes, init=same, seed=0).fit(x.double())
    assert fit.log_posterior == pytest.approx(best, abs=1e-6)


def test_an_ordinary_fit_pays_a_few_passes() -> None:
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(1)).double()
    x[:30] += 5.0
    plain = EM(gaussian_mixture, seed=0, tol=0.0, max_iter=8).fit(x, components=2)
    fit = EM(gaussian_mixture, seed=0).fit(x, components=2)
    assert fit.converged
    assert fit.evaluations <= plain.evaluations + 10


def test_no_tolerance_runs_all_iterations() -> None:
    fit = EM(gaussian_mixture, seed=0, tol=0.0, max_iter=25, restarts=2).fit(
        MURRAY[:4].repeat(3, 1) + torch.arange(12.0).unsqueeze(1), components=1
    )
    assert fit.iterations == 25
    assert not fit.converged
    assert fit.warning == ""
    assert fit.stop_reason == "finished: all steps were taken"
