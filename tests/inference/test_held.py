"""Parameters held by ``pyro.condition`` are no data: their priors are no likelihood."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from ember.inference import EM, SVI
from tests.inference import pyro_evidence
from tests.inference.brute_force import float64

X = torch.tensor([0.3, -0.2, 2.1, 1.8, 2.6, -0.9, 0.1, 2.2], dtype=torch.float64)
MOVES = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=torch.float64)
FORWARD = torch.tensor([[0.75, 0.25], [0.0, 1.0]], dtype=torch.float64)


def chain(x: Tensor) -> None:
    with pyro.plate("states", 2):
        transition = pyro.sample("transition", dist.Dirichlet(torch.full((2,), 3.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])


def elbo(model: Any, params: dict[str, Tensor], x: Tensor) -> float:
    """``TraceEnum_ELBO`` of the conditioned model with a delta at the parameters."""

    def guide(x: Tensor) -> None:
        for name, value in params.items():
            with pyro.plate("states", 2):
                pyro.sample(name, dist.Delta(value))

    with float64():
        return -float(TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(model), guide, x))


@pytest.mark.parametrize("moves", [MOVES, FORWARD])
def test_mle_leaves_the_prior_of_a_held_transition_out(moves: Tensor) -> None:
    model = pyro.condition(chain, data={"transition": moves})
    fit = EM(model, "mle", seed=0).fit(X)
    params = {"transition": moves, **fit.params}
    assert set(fit.params) == {"locs"}
    truth = pyro_evidence.log_evidence(chain, params, X)
    assert fit.log_likelihood == pytest.approx(truth, rel=1e-12)
    assert fit.log_posterior == fit.log_likelihood
    sample = fit.sample(3, seed=0)
    assert "transition" not in sample


@pytest.mark.parametrize("method", [EM(chain), SVI(chain, steps=20, seed=0)])
def test_map_counts_it_as_autodelta_does(method: Any) -> None:
    method.model = pyro.condition(chain, data={"transition": MOVES})
    fit = method.fit(X)
    assert fit.log_posterior == pytest.approx(elbo(method.model, fit.params, X), rel=1e-10)
    truth = pyro_evidence.log_evidence(chain, {"transition": MOVES, **fit.params}, X)
    assert fit.log_likelihood == pytest.approx(truth, rel=1e-10)


def test_several_starts_count_it_at_every_step() -> None:
    fit = EM(pyro.condition(chain, data={"transition": MOVES}), seed=0, restarts=4).fit(X)
    assert float(fit.history[-1]) == pytest.approx(fit.log_posterior, rel=1e-12)
    assert fit.starts.best == pytest.approx(fit.log_posterior, rel=1e-12)
    assert bool((fit.starts.objectives <= fit.log_posterior + 1e-6).all())


def test_map_at_a_value_of_prior_density_zero() -> None:
    fit = EM(pyro.condition(chain, data={"transition": FORWARD}), seed=0).fit(X)
    truth = pyro_evidence.log_evidence(chain, {"transition": FORWARD, **fit.params}, X)
    prior = dist.Normal(torch.zeros(2).double(), 3.0).log_prob(fit.params["locs"]).sum()
    assert fit.log_likelihood == pytest.approx(truth, rel=1e-12)
    assert fit.log_posterior == pytest.approx(truth + float(prior), rel=1e-12)


def test_explain_says_held() -> None:
    table = EM(pyro.condition(chain, data={"transition": MOVES})).explain(X).set_index("site")
    assert table.loc["transition", "role"] == "held"
    assert table.loc["locs", "role"] == "parameter"


def test_a_held_value_outside_its_support() -> None:
    model = pyro.condition(chain, data={"transition": MOVES * 2.0})
    with pytest.raises(ValueError, match=r"'transition' is held by pyro.condition.*support"):
        EM(model, "mle").fit(X)


def test_one_held_parameter_feeds_another() -> None:
    def model(x: Tensor) -> None:
        centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
        with pyro.plate("parts", 2):
            locs = pyro.sample("locs", dist.Normal(centre, 1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.25, 0.75])))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    both = {"centre": torch.tensor(0.5).double(), "locs": torch.tensor([0.0, 2.0]).double()}
    held = EM(pyro.condition(model, data=both), "mle").fit(X)
    truth = pyro_evidence.log_evidence(model, both, X)
    assert held.log_likelihood == pytest.approx(truth, rel=1e-12)
    # With the centre free, the locations are what is known of it: data.
    free = EM(pyro.condition(model, data={"locs": both["locs"]}), "mle").fit(X)
    known = dist.Normal(torch.ones(2).double(), 1.0).log_prob(both["locs"]).sum()
    assert float(free.params["centre"]) == pytest.approx(1.0)
    assert free.log_likelihood == pytest.approx(truth + float(known), rel=1e-12)


def test_conditioned_data_stay_data() -> None:
    def model(n: int) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("rows", n):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0))
            pyro.sample("noise", dist.Normal(0.0, 1.0))

    data = {"x": X, "noise": 0.5 * X}
    fit = EM(pyro.condition(model, data=data), "mle", seed=0).fit(len(X))
    noise = dist.Normal(torch.zeros(8).double(), 1.0).log_prob(0.5 * X).sum()
    alone = pyro_evidence.log_evidence(
        pyro.poutine.block(pyro.condition(model, data=data), hide=["noise"]), fit.params, len(X)
    )
    assert fit.log_likelihood == pytest.approx(alone + float(noise), rel=1e-12)
    assert fit.log_prob().shape == (8,)


def test_the_first_step_of_a_conditioned_series_is_data() -> None:
    def model(n: int) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        x: Any = pyro.sample("x_0", dist.Normal(0.0, 1.0))
        for t in pyro.markov(range(1, n)):
            x = pyro.sample(f"x_{t}", dist.Normal(slope * x, 1.0))

    data = {f"x_{t}": value for t, value in enumerate(X)}
    fit = EM(pyro.condition(model, data=data), "mle").fit(len(X))
    slope = (X[1:] @ X[:-1]) / (X[:-1] @ X[:-1])
    residuals = torch.cat([X[:1], X[1:] - slope * X[:-1]])
    assert float(fit.params["slope"]) == pytest.approx(float(slope))
    truth = dist.Normal(torch.zeros(8).double(), 1.0).log_prob(residuals).sum()
    assert fit.log_likelihood == pytest.approx(float(truth), rel=1e-12)
