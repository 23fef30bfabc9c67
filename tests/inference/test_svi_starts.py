"""SVI begins where EM does, ``pyro.param`` statements included, and inside of every support."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM, SVI
from ember.inference.inputs.shelter import sheltered
from ember.inference.variational import step_sizes
from ember.inference.variational.interior import moved_inside

X = torch.cat([torch.linspace(-6.0, -4.0, 30), torch.linspace(3.0, 6.0, 20)]).double()
START = {"weights": torch.tensor([0.45, 0.55]), "locs": torch.tensor([4.4, -4.8])}


def params_only(x: Tensor) -> None:
    weights = pyro.param("weights", torch.full((2,), 0.5), constraint=constraints.simplex)
    locs = pyro.param("locs", torch.zeros(2))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def mixed(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    locs = pyro.param("locs", torch.zeros(2))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


class Module(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.weights: Any = PyroParam(torch.full((2,), 0.5), constraints.simplex)
        self.locs: Any = PyroParam(torch.zeros(2), constraints.real)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(self.weights))
            pyro.sample("x", dist.Normal(self.locs[z], 1.0), obs=x)


@pytest.mark.parametrize("init", ["kmeans", START])
@pytest.mark.parametrize("model", [params_only, mixed, Module()])
def test_the_first_bound_is_the_first_objective_of_em(model: Any, init: Any) -> None:
    em = EM(model, init=init, seed=1).fit(X)
    svi = SVI(model, init=init, steps=200, seed=1).fit(X)
    assert float(svi.history[0]) == pytest.approx(float(em.history[0]), rel=1e-12)
    assert svi.log_posterior == pytest.approx(em.log_posterior, abs=0.5)


def table(y: Tensor, counts: Tensor) -> None:
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    p = pyro.param("p", torch.full((2,), 0.5), constraint=constraints.unit_interval)
    q = pyro.param("q", torch.tensor(0.3), constraint=constraints.interval(0.2, 0.9))
    rate = pyro.param("rate", torch.tensor(3.0), constraint=constraints.positive)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(torch.stack([p[0], p[1], q])).to_event(1), obs=y)
        pyro.sample("counts", dist.Poisson(rate), obs=counts)
        pyro.sample("kind", dist.Categorical(shares), obs=counts)


BOUNDARY = {
    "shares": torch.tensor([1.0, 0.0, 0.0]),
    "p": torch.tensor([0.0, 0.7]),
    "q": torch.tensor(0.9),
    "rate": torch.tensor(0.0),
}


@pytest.mark.parametrize("guide", ["delta", "normal"])
def test_a_start_on_the_boundary_is_drawn_inside(guide: str) -> None:
    y = torch.tensor([[1.0, 1, 0], [0, 1, 1], [0, 0, 1], [0, 1, 0]])
    counts = torch.tensor([0, 2, 1, 1])
    fit = SVI(table, guide, init=BOUNDARY, steps=1500, seed=0).fit(y, counts)
    assert torch.isfinite(fit.history).all()
    torch.testing.assert_close(
        fit.params["p"], torch.tensor([0.25, 0.75]).double(), rtol=0, atol=1e-3
    )
    assert float(fit.params["q"]) == pytest.approx(0.5, abs=1e-3)
    assert float(fit.params["rate"]) == pytest.approx(1.0, abs=1e-3)
    if guide == "delta":  # the mode in the space in which the model declares them
        expected = torch.tensor([0.25, 0.5, 0.25]).double()
        torch.testing.assert_close(fit.params["shares"], expected, rtol=0, atol=1e-3)


def test_values_inside_stay_as_they_are() -> None:
    """Events beside one on the boundary keep their values to the last bit."""
    plan = EM(table).plan(torch.tensor([[1.0, 1, 0], [0, 1, 1]]), torch.tensor([0, 2]))
    moved = moved_inside(plan.structure.parameters, {"p": torch.tensor([0.0, 0.7])})["p"]
    assert moved[1] == torch.tensor(0.7)
    assert float(moved[0]) == pytest.approx(0.025)


@pytest.mark.parametrize("units", [1e-4, 1.0, 1e5])
def test_curvatures_of_long_chains_are_those_of_second_derivatives(
    units: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Differences of the gradient stand in where second derivatives would be dear."""

    def chain(x: Tensor) -> None:
        stay = pyro.param("stay", torch.tensor(0.8), constraint=constraints.unit_interval)
        locs = pyro.param("locs", units * torch.tensor([-5.0, 4.0]))
        scale = pyro.param("scale", torch.tensor(units), constraint=constraints.positive)
        moves = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
        hidden = dist.DiscreteHMM(torch.zeros(2), moves.log(), dist.Normal(locs, scale))
        pyro.sample("x", hidden, obs=x)

    plan = EM(chain).plan(units * X)
    start = {name: p.start for name, p in plan.structure.parameters.items()}
    found = []
    for most in (0, 10**9):
        monkeypatch.setattr(step_sizes, "MOST_WORK", most)
        with sheltered(0, X):
            found.append(step_sizes.curvatures(plan, start))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=0.02, atol=0.0)
