"""The order in which states come out: by their share of the data, where the model allows it."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.plan.building import build_plan
from ember.inference.queries.relabelling import in_canonical_order
from ember.models import gaussian_mixture, hidden_markov_poisson
from tests.inference.examples import EXAMPLES

SHARES = (10, 60, 30)


def clouds() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([-8.0, 0.0, 8.0], dtype=torch.float64)
    centres = means.repeat_interleave(torch.tensor(SHARES))
    return (centres + torch.randn(100, generator=generator, dtype=torch.float64)).unsqueeze(1)


@pytest.mark.parametrize("covariance", ["full", "tied", "spherical"])
@pytest.mark.parametrize("init", ["kmeans", "random", "hierarchical"])
def test_components_come_by_size(init: str, covariance: str) -> None:
    options = {"components": 3, "covariance": covariance}
    fit = EM(gaussian_mixture, init=init, restarts=3, seed=5).fit(clouds(), **options)
    assert fit.params["locs"].reshape(-1).tolist() == pytest.approx([0.0, 8.0, -8.0], abs=1.0)
    assert bool((fit.params["weights"].diff() < 0).all())
    again = EM(gaussian_mixture).e_step(fit.params, clouds(), **options)
    assert again.objective == pytest.approx(fit.log_posterior, rel=1e-12)
    assert fit.predict().tolist() == [2] * 10 + [0] * 60 + [1] * 30


def test_the_order_of_a_given_start_stays() -> None:
    start = {"locs": torch.tensor([[-8.0], [0.0], [8.0]])}
    for init in (start, lambda x, components: start):
        fit = EM(gaussian_mixture, init=init, seed=0).fit(clouds(), components=3)
        assert fit.params["locs"].reshape(-1).tolist() == pytest.approx([-8.0, 0.0, 8.0], abs=1.0)


def test_states_of_a_chain_come_by_time_spent() -> None:
    x = torch.tensor([9.0, 8, 10, 1, 0, 2, 1, 0, 2, 1, 11, 9, 1, 0, 1])
    for seed in range(3):
        fit = EM(hidden_markov_poisson, init="random", restarts=3, seed=seed).fit(x, states=2)
        rates = fit.params["rates"].reshape(-1)
        assert rates[0] < rates[1]
        again = EM(hidden_markov_poisson).e_step(fit.params, x, states=2)
        assert again.objective == pytest.approx(fit.log_posterior, rel=1e-12)


def two_states(kind: str, x: Tensor) -> None:
    """Two states that differ by their prior, by an order, by a constant, or not at all."""
    prior = torch.tensor([3.0, 2.0]) if kind == "prior" else torch.tensor([2.0, 2.0])
    weights = pyro.sample("weights", dist.Dirichlet(prior))
    if kind == "ordered":
        start, support = torch.tensor([-1.0, 1.0]), dist.constraints.ordered_vector
        locs = pyro.param("locs", start, constraint=support)
    else:
        locs = pyro.sample("locs", dist.Normal(0.0, 9.0).expand([2]).to_event(1))
    scales = torch.tensor([1.0, 1.5]) if kind == "constant" else torch.ones(2)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)


@pytest.mark.parametrize("kind", ["alike", "prior", "ordered", "constant"])
def test_states_that_the_model_tells_apart_are_never_renumbered(kind: str) -> None:
    x = torch.tensor([-2.0, -1.0, 1.0, 2.0, 3.0, 2.5])

    def model(x: Tensor) -> None:
        two_states(kind, x)

    params = {"weights": torch.tensor([0.3, 0.7]), "locs": torch.tensor([-1.5, 2.0])}
    params = {name: value.double() for name, value in params.items()}
    with sheltered(0):
        plan = build_plan(model, prepare((x,), {}))
        found = in_canonical_order(plan, params)
    order = [1, 0] if kind == "alike" else [0, 1]
    for name, value in found.items():
        assert torch.equal(value, params[name][order])


@pytest.mark.parametrize("unit", [1.0, 1e-8, 1e12])
def test_labels_tell_states_apart_in_any_unit(unit: float) -> None:
    x = unit * torch.tensor([-2.0, -1.0, 1.0, 2.0, 3.0, 2.5, 2.2, 1.9])
    known: Any = torch.tensor([True, False, True, False, False, False, False, False])

    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 9.0 * unit).expand([2]).to_event(1))
        with pyro.plate("rows", len(x)):
            labels = torch.arange(len(x)) // 2 % 2
            z = pyro.sample("z", dist.Categorical(weights), obs=labels, obs_mask=known)
            pyro.sample("x", dist.Normal(locs[z], unit), obs=x)

    fit = EM(model, seed=0).fit(x)
    assert fit.params["locs"][0] < 0.0 < fit.params["locs"][1]
    assert float(fit.log_prob().sum()) == pytest.approx(fit.log_likelihood, rel=1e-12)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "name", ["labelled_by_masks", "switch", "zero_inflated", "tree", "experts"]
)
def test_the_estimates_stay_those_of_the_reported_objective(name: str) -> None:
    example = EXAMPLES[name]
    em = EM(example.model, seed=1, max_iter=50)
    fit = em.fit(*example.args, **example.kwargs)
    again = em.e_step(fit.params, *example.args, **example.kwargs)
    assert again.objective == pytest.approx(fit.log_posterior, rel=1e-11)


def test_a_row_that_counts_three_times_explains_three_rows() -> None:
    frequency = torch.ones(100).index_fill(0, torch.arange(10), 20.0)
    fit = EM(gaussian_mixture, seed=5).fit(clouds(), components=3, frequency=frequency)
    assert fit.params["locs"].reshape(-1).tolist() == pytest.approx([-8.0, 0.0, 8.0], abs=1.0)
    assert fit.relabel().params["locs"].equal(fit.params["locs"])
