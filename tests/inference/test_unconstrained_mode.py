"""The mode in unconstrained coordinates: the minimum of the energy in which NUTS moves."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM

GENERATOR = torch.Generator().manual_seed(3)
X = torch.poisson(torch.tensor([1.0, 8.0]).repeat(15), generator=GENERATOR).double()
NOTES = torch.randint(0, 4, (20,), generator=GENERATOR)


def counts(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([0.3, 0.4], dtype=torch.float64)))
    with pyro.plate("states", 2):
        rates = pyro.sample("rates", dist.Gamma(0.5, torch.tensor(0.1, dtype=torch.float64)))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rates[z]), obs=x)


def notes(y: Tensor) -> None:
    """The priors of Pyro's hmm example: persistent moves, and rare notes."""
    with pyro.plate("states", 2):
        moves = pyro.sample("moves", dist.Dirichlet(0.9 * torch.eye(2, dtype=torch.float64) + 0.1))
        levels = pyro.sample("levels", dist.Dirichlet(torch.full((4,), 0.2, dtype=torch.float64)))
    z: Any = 0
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Categorical(levels[z]), obs=y[t])


def scales(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.HalfCauchy(torch.tensor(2.0).double()))
    share = pyro.sample("share", dist.Beta(torch.tensor(0.1, dtype=torch.float64), 0.9))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(share))
        pyro.sample("x", dist.Normal(loc + 3.0 * z, scale), obs=x)


def potential(model: Any, params: dict[str, Tensor], data: Tensor, nesting: int) -> Any:
    """Pyro's potential energy at ``params``, and its gradient in unconstrained coordinates."""
    _, energy, transforms, _ = initialize_model(
        model, (data,), max_plate_nesting=nesting, jit_compile=False
    )
    free = {n: transforms[n](v).detach().requires_grad_() for n, v in params.items()}
    value = energy(free)
    return float(value.detach()), torch.autograd.grad(value, list(free.values()))


@pytest.mark.parametrize(("model", "data"), [(counts, X), (notes, NOTES), (scales, X)])
def test_it_is_the_minimum_of_the_potential_that_nuts_moves_in(model: Any, data: Tensor) -> None:
    fit = EM(model, mode="unconstrained", seed=0, tol=1e-12).fit(data)
    assert fit.converged
    energy, gradient = potential(model, fit.params, data, 1)
    assert fit.log_posterior == pytest.approx(-energy, rel=1e-9)
    assert max(float(g.abs().max()) for g in gradient) < 1e-3
    assert all(bool(torch.isfinite(value).all()) for value in fit.params.values())


def test_restarts_are_judged_by_the_same_objective() -> None:
    fit = EM(counts, mode="unconstrained", seed=0, restarts=4).fit(X)
    energy, _ = potential(counts, fit.params, X, 1)
    assert fit.log_posterior == pytest.approx(-energy, rel=1e-8)
    assert bool((fit.history.diff() >= -1e-9 * (1.0 + fit.history[1:].abs())).all())


def test_concentrations_are_counts() -> None:
    """Of a Dirichlet the mode in unconstrained coordinates is its posterior mean."""

    def model(x: Tensor) -> None:
        shares = pyro.sample(
            "shares", dist.Dirichlet(torch.tensor([0.2, 0.5, 0.1], dtype=torch.float64))
        )
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Categorical(shares), obs=x)

    fit = EM(model, mode="unconstrained").fit(torch.tensor([0, 0, 0, 1]))
    assert fit.params["shares"].tolist() == pytest.approx([3.2 / 4.8, 1.5 / 4.8, 0.1 / 4.8])


def test_real_parameters_and_likelihoods_have_one_mode() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    usual, other = (
        EM(model, mode=m).fit(X).log_posterior for m in ("constrained", "unconstrained")
    )
    assert other == pytest.approx(usual, rel=1e-12)
    with pytest.raises(ValueError, match=r"mode='unconstrained' .*objective='map'"):
        EM(model, "mle", mode="unconstrained")
    with pytest.raises(ValueError, match="mode='free' is unknown"):
        EM(model, mode="free")
