"""What a model forbids stays forbidden, however far the data lie; chains of unusual sizes."""

import itertools
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM

LEFT_RIGHT = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]], dtype=torch.float64)
FIRST = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
LOCS = torch.tensor([0.0, 60.0, 30.0], dtype=torch.float64)
X = torch.tensor([0.3, -0.2, 59.0, 0.1, 60.5, 61.0], dtype=torch.float64)  # goes back, forbidden
SHIFT = torch.tensor(0.25, dtype=torch.float64)


def left_right(x: Tensor) -> None:
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    emission = dist.Normal(LOCS + shift, 1.0)
    pyro.sample("x", dist.DiscreteHMM(FIRST.log(), LEFT_RIGHT.log(), emission), obs=x)


def left_right_unrolled(x: Tensor) -> None:
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    z = pyro.sample("z_0", dist.Categorical(FIRST @ LEFT_RIGHT))
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(LEFT_RIGHT[z])) if t else z
        pyro.sample(f"x_{t}", dist.Normal(LOCS[z] + shift, 1.0), obs=x[t])


def one_component(x: Tensor) -> None:
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(FIRST))
        pyro.sample("x", dist.Normal(LOCS[z] + shift, 1.0), obs=x)


def one_component_summed(x: Tensor) -> None:
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        both = dist.MixtureSameFamily(dist.Categorical(FIRST), dist.Normal(LOCS + shift, 1.0))
        pyro.sample("x", both, obs=x)


def _log_emissions() -> Tensor:
    residuals = X.unsqueeze(-1) - LOCS - SHIFT
    return -0.5 * residuals.square() - 0.5 * math.log(2.0 * math.pi)


def _paths(initial: Tensor, moves: Tensor, emissions: Tensor) -> tuple[Tensor, Tensor]:
    """Every path of a chain's emitting states, and its log probability jointly with the data."""
    first, steps = (initial @ moves).log(), range(len(emissions))
    paths = torch.tensor(list(itertools.product(range(len(initial)), repeat=len(emissions))))
    joint = first[paths[:, 0]] + sum(emissions[t, paths[:, t]] for t in steps)
    for t in steps[1:]:
        joint = joint + moves.log()[paths[:, t - 1], paths[:, t]]
    return paths, joint


@pytest.mark.parametrize("model", [left_right, left_right_unrolled])
def test_no_outlier_makes_a_chain_take_a_forbidden_move(model: Callable[[Tensor], None]) -> None:
    truth = _paths(FIRST, LEFT_RIGHT, _log_emissions())[1].logsumexp(0)
    found = EM(model).e_step({"shift": SHIFT}, X).log_likelihood
    assert found == pytest.approx(float(truth), rel=1e-12)


@pytest.mark.parametrize("model", [one_component, one_component_summed])
def test_no_outlier_makes_a_row_join_an_empty_component(model: Callable[[Tensor], None]) -> None:
    found = EM(model).e_step({"shift": SHIFT}, X).log_likelihood
    assert found == pytest.approx(float(_log_emissions()[:, 0].sum()), rel=1e-12)


def test_impossible_data_are_refused_and_new_impossible_data_have_no_density() -> None:
    def switch(x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        stay = torch.eye(2, dtype=torch.float64).log()
        emission = dist.Bernoulli(torch.tensor([0.0, 1.0], dtype=torch.float64))
        with pyro.plate("sequences", len(x)):
            pyro.sample("y", dist.Normal(shift, 1.0), obs=x[:, 0])
            chain = dist.DiscreteHMM(torch.zeros(2), stay, emission, duration=x.shape[1] - 1)
            pyro.sample("x", chain, obs=x[:, 1:])

    possible = torch.tensor([[0.5, 0.0, 0.0, 0.0], [0.1, 1.0, 1.0, 1.0]])
    mixed = torch.tensor([[0.5, 0.0, 1.0, 0.0], [0.1, 1.0, 1.0, 1.0]])
    fit = EM(switch).fit(possible)
    assert fit.log_prob(mixed).isneginf().tolist() == [True, False]
    with pytest.raises(ValueError, match="no finite density"):
        EM(switch).fit(mixed)


def test_the_path_is_the_most_probable_one_of_the_emitting_states() -> None:
    """Pyro's chain moves before it emits: the state before the first step is summed out."""
    initial = torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64)
    moves = torch.tensor(
        [[1.0, 0.0, 0.0], [0.05, 0.95, 0.0], [0.05, 0.95, 0.0]], dtype=torch.float64
    )

    def model(x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        emission = dist.Normal(torch.arange(3.0) * 0.01 + shift, 1.0)
        pyro.sample("x", dist.DiscreteHMM(initial.log(), moves.log(), emission), obs=x)

    x = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    fit = EM(model).fit(x)
    residuals = x.unsqueeze(-1) - 0.01 * torch.arange(3.0, dtype=torch.float64)
    emissions = -0.5 * (residuals - fit.params["shift"]).square()
    paths, joint = _paths(initial, moves, emissions)
    assert fit.predict().tolist() == paths[joint.argmax()].tolist()


def test_two_chains_of_different_lengths_in_one_model() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("states", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
        stay, even = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).log(), torch.zeros(2)
        pyro.sample("x", dist.DiscreteHMM(even, stay, dist.Normal(locs, 1.0)), obs=x)
        pyro.sample("y", dist.DiscreteHMM(even, stay.T, dist.Normal(locs, 1.0)), obs=y)

    fit = EM(model, seed=0).fit(X[:4] / 30.0, X[1:] / 30.0)
    assert fit.predict()["state"].shape == (4,)
    assert fit.predict()["y_state"].shape == (5,)
    found = 0.0
    moves = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double()
    for x, own in ((X[:4] / 30.0, moves), (X[1:] / 30.0, moves.T / moves.sum(0).unsqueeze(-1))):
        residuals = x.unsqueeze(-1) - fit.params["locs"]
        emissions = -0.5 * residuals.square() - 0.5 * math.log(2.0 * math.pi)
        even = torch.full((2,), 0.5, dtype=torch.float64)
        found += float(_paths(even, own, emissions)[1].logsumexp(0))
    assert fit.log_likelihood == pytest.approx(found, rel=1e-6)  # the moves are known in float32


@pytest.mark.parametrize("sequences", [None, 3])
def test_a_chain_of_one_state_has_pairs_and_forecasts(sequences: int | None) -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([1]).to_event(1))
        whole = dist.DiscreteHMM(
            torch.zeros(1), torch.zeros(1, 1), dist.Normal(loc, 1.0), duration=x.shape[-1]
        )
        if x.dim() == 1:
            pyro.sample("x", whole, obs=x)
        else:
            with pyro.plate("sequences", len(x)):
                pyro.sample("x", whole, obs=x)

    x = X[:4] if sequences is None else X[:4].expand(sequences, 4)
    fit = EM(model).fit(x)
    lead = () if sequences is None else (sequences,)
    assert torch.equal(fit.posterior_pairs("state"), torch.ones((*lead, 3, 1, 1)).double())
    assert fit.forecast("state").probs.shape == (*lead, 5, 1)
    ahead = fit.forecast("x").log_prob(torch.nn.functional.pad(x, (0, 1)))
    assert float(ahead[..., :-1].sum()) == pytest.approx(fit.log_likelihood)
