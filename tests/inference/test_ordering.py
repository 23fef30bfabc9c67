"""Where states are no mere names a start numbers them as the model asks, or they merge for good."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from ember.inference import EM

X = torch.from_numpy(np.r_[np.linspace(-4.5, -1.5, 14), np.linspace(1.8, 4.1, 10)])
OWN_SCALE, KNOWN_SCALE = (
    -46.5672174989,
    -47.1066548321,
)  # scipy, BFGS on the mixture density from 30 starts


def mixture(x: Tensor, weights: Tensor, locs: Tensor, scale: Any = 1.0) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


def shares() -> Tensor:
    weights: Tensor = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    return weights


def ordered(x: Tensor) -> None:
    locs = pyro.param("locs", torch.tensor([0.0, 1.0]), constraint=constraints.ordered_vector)
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    mixture(x, shares(), locs, scale)


def ordered_prior(x: Tensor) -> None:
    base = dist.Normal(torch.zeros(2), 100.0).to_event(1)
    prior = dist.TransformedDistribution(base, [dist.transforms.OrderedTransform()])
    mixture(x, shares(), pyro.sample("locs", prior))


def stacked(x: Tensor) -> None:
    first = pyro.sample("first", dist.Normal(0.0, 100.0))
    gap = pyro.sample("gap", dist.HalfNormal(100.0))
    mixture(x, shares(), torch.stack([first, first + gap]))


@pytest.mark.parametrize("init", ["kmeans", "points", "hierarchical", "random"])
@pytest.mark.parametrize("model", [ordered, ordered_prior, stacked])
def test_ordered_locations_end_apart(model: Any, init: str) -> None:
    right = OWN_SCALE if model is ordered else KNOWN_SCALE
    for seed in range(3):
        fit = EM(model, "mle", init=init, seed=seed).fit(X)
        assert fit.converged
        assert fit.log_likelihood == pytest.approx(right, abs=1e-5)
        locs = fit.params["locs"] if "locs" in fit.params else fit.params["first"]
        assert float(locs.reshape(-1)[0]) < -2.5


def test_many_states_are_put_in_order_by_their_means() -> None:
    def five(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(5)))
        locs = pyro.param("locs", torch.arange(5.0), constraint=constraints.ordered_vector)
        mixture(x, weights, locs, 0.5)

    noise = 0.5 * torch.randn(5, 30, generator=torch.Generator().manual_seed(0)).double()
    x = (4.0 * torch.arange(5.0).unsqueeze(1) + noise).reshape(-1)
    for seed in range(3):
        fit = EM(five, "mle", seed=seed).fit(x)
        assert fit.params["locs"].tolist() == pytest.approx([0.0, 4.0, 8.0, 12.0, 16.0], abs=0.4)


def test_locations_that_a_constraint_holds_together_are_warned_of() -> None:
    def turned(x: Tensor, group: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([0.0, 1.0]), constraint=constraints.ordered_vector)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(locs[group], 1.0), obs=x)

    with pytest.warns(RuntimeWarning, match="'locs'.*edge of its support"):
        fit = EM(turned, "mle", seed=0).fit(X, (X < 0.0).long())
    assert fit.converged
    assert fit.params["locs"].tolist() == pytest.approx([float(X.mean())] * 2, abs=1e-4)
