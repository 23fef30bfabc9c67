"""Each family in each parameterisation: the closed form is the numerical maximum of the same Q."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from ember.inference import EM
from tests.inference.examples import Example
from tests.inference.family_cases import (
    CASES,
    COUNTS,
    EXPOSURE,
    REALS,
    SHOWN,
    K,
    assert_stationary,
    assert_update,
    closed_form,
    rates,
)


@pytest.mark.parametrize("objective", ["map", "mle"])
@pytest.mark.parametrize("name", CASES)
def test_closed_form_is_the_numerical_maximum(name: str, objective: str) -> None:
    case = CASES[name]
    how = closed_form(EM(case.model, objective), case.data)
    assert set(how.values()) == {"closed form"}, how
    order = case.order if objective == "map" else ()
    assert_update(case.model, objective, order, case.data)


@pytest.mark.parametrize("name", CASES)
def test_objective_rises_and_ends_at_a_stationary_point(name: str) -> None:
    case = CASES[name]
    params = Example("case", case.model, (case.data,)).params(2)
    fit = EM(case.model, init=params, tol=1e-13).fit(case.data)
    assert fit.converged
    assert bool((fit.history.diff() >= -1e-9 * (1.0 + fit.history[1:].abs())).all())
    assert_stationary(case.model, fit.params, case.data)


# -- weights and masks on the model --------------------------------------------------------------


def weighed(x: Tensor, weight: Any) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((K,), 2.0)))
    with pyro.plate("components", K):
        precisions = pyro.sample("precisions", dist.Gamma(2.5, 1.5))
        locs = pyro.sample("locs", dist.Normal(0.3, (0.4 * precisions).rsqrt()))
    with pyro.plate("rows", len(x)), poutine.scale(scale=weight):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], precisions[z].rsqrt()), obs=x)


@pytest.mark.parametrize("weight", [2.5, EXPOSURE], ids=["scalar", "by row"])
def test_scaled_rows(weight: Any) -> None:
    assert set(closed_form(EM(weighed), REALS, weight).values()) == {"closed form"}
    assert_update(weighed, "map", (), REALS, weight)
    assert_update(weighed, "mle", (), REALS, weight)


def test_masked_rows() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((K,), 2.0)))
        r = rates("r", K)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            with poutine.mask(mask=SHOWN):
                pyro.sample("x", dist.Poisson(r[z]), obs=x)

    assert set(closed_form(EM(model), COUNTS).values()) == {"closed form"}
    assert_update(model, "map", (), COUNTS)


def test_scaled_prior() -> None:
    def model(x: Tensor) -> None:
        with poutine.scale(scale=0.3):
            weights = pyro.sample("weights", dist.Dirichlet(torch.full((K,), 3.0)))
            r = rates("r", K)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(r[z]), obs=x)

    assert set(closed_form(EM(model), COUNTS).values()) == {"closed form"}
    assert_update(model, "map", (), COUNTS)


def test_data_far_from_zero_lose_no_digits() -> None:
    # Sums of squares of data at 1e6 would lose 12 digits of a variance of 1.
    case = CASES["normal, normal-gamma"]
    params = Example("case", case.model, (REALS,)).params(1)
    em = EM(case.model, "mle")
    near = em.m_step(em.e_step(params, REALS))
    moved = {**params, "locs": params["locs"] + 1e6}
    far = em.m_step(em.e_step(moved, REALS + 1e6))
    torch.testing.assert_close(far["locs"] - 1e6, near["locs"], rtol=0, atol=1e-8)
    torch.testing.assert_close(far["precisions"], near["precisions"], rtol=1e-7, atol=0)
