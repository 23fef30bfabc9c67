"""Parameters stay in the support that the model declares, at the best place within it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch
from pyro.distributions import constraints
from torch import Tensor

from ember.inference import EM
from ember.inference.families.kinds import (
    LOCATION,
    MATRIX,
    PROBABILITY,
    RATE,
    SIMPLEX,
    VECTOR,
)
from ember.inference.families.links import IDENTITY, PRECISION, SCALE_TRIL, Exponential, Power
from ember.inference.parameters.supports import shown

GENERATOR = torch.Generator().manual_seed(4)
X = torch.cat(
    [
        3.0 + torch.randn(40, generator=GENERATOR, dtype=torch.float64),
        torch.randn(60, generator=GENERATOR, dtype=torch.float64),
    ]
)
COUNTS = torch.poisson(X.abs() * 4.0, generator=GENERATOR)
HITS = (X > 1.0).double()
CENTRES = torch.tensor([0.0, 3.0], dtype=torch.float64)


def normal_locs(value: Tensor, z: Tensor) -> Any:
    return dist.Normal(value[z], 1.0)


def normal_scales(value: Tensor, z: Tensor) -> Any:
    return dist.Normal(CENTRES[z], value[z])


def poisson_rates(value: Tensor, z: Tensor) -> Any:
    return dist.Poisson(value[z])


def bernoulli_probs(value: Tensor, z: Tensor) -> Any:
    return dist.Bernoulli(value[z])


Case = tuple[Any, list[float], Callable[[Tensor, Tensor], Any], Tensor]
CASES: dict[str, Case] = {
    "ordered locs": (constraints.ordered_vector, [0.0, 1.0], normal_locs, X),
    "positive ordered locs": (
        constraints.positive_ordered_vector, [0.5, 1.0], normal_locs, X + 2.0,
    ),
    "locs in an interval": (constraints.interval(0.5, 2.5), [1.0, 2.0], normal_locs, X),
    "positive locs": (constraints.positive, [1.0, 2.0], normal_locs, X - 1.0),
    "locs in the unit interval": (constraints.unit_interval, [0.1, 0.9], normal_locs, X),
    "locs above": (constraints.greater_than(1.0), [1.5, 2.0], normal_locs, X),
    "locs below": (constraints.less_than(1.0), [0.5, 0.0], normal_locs, X),
    "scales in an interval": (constraints.interval(0.1, 0.7), [0.2, 0.3], normal_scales, X),
    "scales above": (constraints.greater_than(1.2), [2.0, 1.5], normal_scales, X),
    "scales in an interval that holds": (
        constraints.interval(0.1, 5.0), [2.0, 1.5], normal_scales, X,
    ),
    "ordered rates": (constraints.positive_ordered_vector, [2.0, 9.0], poisson_rates, COUNTS),
    "rates in an interval": (constraints.interval(6.0, 9.0), [7.0, 8.0], poisson_rates, COUNTS),
    "probs in an interval": (constraints.interval(0.6, 0.9), [0.7, 0.8], bernoulli_probs, HITS),
}  # fmt: skip


def mixture(case: Case) -> Callable[[Tensor], None]:
    support, start, emission, _ = case

    def model(x: Tensor) -> None:
        value = pyro.param("value", torch.tensor(start), constraint=support)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.6, 0.4])))
            pyro.sample("x", emission(value, z), obs=x)

    return model


def log_likelihood(case: Case, value: Tensor) -> float:
    _, _, emission, x = case
    weights = torch.tensor([0.6, 0.4], dtype=torch.float64).log()
    parts = emission(value, torch.arange(2)).log_prob(x.unsqueeze(-1))
    return float((weights + parts).logsumexp(-1).sum())


def optimum(case: Case, start: Tensor) -> float:
    """The local maximum within the support that a search finds near a start."""
    support = case[0]
    bounds = [(getattr(support, "lower_bound", None), getattr(support, "upper_bound", None))] * 2
    if support is constraints.positive_ordered_vector:
        bounds = [(1e-12, None)] * 2
    is_ordered = "ordered" in shown(support)
    order = [scipy.optimize.LinearConstraint(np.array([[-1.0, 1.0]]), 0.0, np.inf)]

    def negative(value: Any) -> float:
        return -log_likelihood(case, torch.from_numpy(np.asarray(value)))

    low, high = bounds[0]
    result = scipy.optimize.minimize(
        negative, np.clip(start.numpy(), low, high), method="SLSQP", bounds=bounds,
        constraints=order if is_ordered else (), options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    return -float(result.fun)


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_the_best_within_its_support(name: str) -> None:
    case = CASES[name]
    support, start, _, x = case
    given = torch.tensor(start, dtype=torch.float64)
    fit = EM(mixture(case), objective="mle", init={"value": given}, seed=0).fit(x)
    value = fit.params["value"]
    assert bool(support.check(value).all())
    assert fit.converged
    assert bool((fit.history.diff() >= 0).all())
    assert fit.log_likelihood == pytest.approx(log_likelihood(case, value), rel=1e-12)
    nearby = torch.tensor([-0.02, 0.02], dtype=torch.float64) + value
    assert fit.log_likelihood == pytest.approx(optimum(case, nearby), rel=1e-7)
    # And no step within the support leads higher.
    generator = torch.Generator().manual_seed(0)
    for step in (1e-4, 1e-3, 1e-2):
        for _ in range(20):
            near = value + step * torch.randn(2, generator=generator, dtype=torch.float64)
            if bool(support.check(near).all()):
                assert log_likelihood(case, near) <= fit.log_likelihood + 1e-7


def test_the_plan_says_so() -> None:
    row = EM(mixture(CASES["locs in an interval"])).explain(X).set_index("site").loc["value"]
    assert row["M-step"] == "closed form in support"
    assert "Interval(0.5, 2.5)" in row["why"]
    row = EM(mixture(CASES["ordered rates"])).explain(COUNTS).set_index("site").loc["value"]
    assert row["M-step"] == "closed form in support"
    assert "positive_ordered_vector" in row["why"]


@pytest.mark.parametrize("name", CASES)
def test_every_step_stays_in_the_support_and_climbs(name: str) -> None:
    case = CASES[name]
    support, start, _, x = case
    em = EM(mixture(case), objective="mle")
    params: dict[str, Any] = {"value": torch.tensor(start, dtype=torch.float64)}
    last = -float("inf")
    for _ in range(15):
        statistics = em.e_step(params, x)
        assert statistics.objective >= last - 1e-10 * abs(last)
        last = statistics.objective
        params = em.m_step(statistics)
        assert bool(support.check(params["value"]).all())


def test_starts_in_a_batch_stay_in_the_support_too() -> None:
    case = CASES["locs in an interval"]
    fit = EM(mixture(case), objective="mle", restarts=5, seed=0).fit(X)
    assert bool(case[0].check(fit.params["value"]).all())
    ends = [optimum(case, torch.tensor(start)) for start in ([1.0, 2.0], [2.0, 1.0])]
    assert fit.log_likelihood == pytest.approx(max(ends), rel=1e-7)


def test_a_prior_that_is_flat_on_an_ordered_space() -> None:
    flat = dist.ImproperUniform(constraints.ordered_vector, (), (2,))

    def model(x: Tensor, swapped: bool) -> None:
        value = pyro.sample("value", flat)
        weights = torch.tensor([0.4, 0.6] if swapped else [0.6, 0.4])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(value[z], 1.0), obs=x)

    for swapped in (False, True):
        fit = EM(model, seed=0).fit(X, swapped=swapped)
        assert bool(constraints.ordered_vector.check(fit.params["value"]))
        assert bool((fit.history.diff() >= 0).all())


def test_which_supports_a_closed_form_cannot_leave() -> None:
    assert LOCATION.natural(constraints.real, IDENTITY)
    assert VECTOR.natural(constraints.real_vector, IDENTITY)
    assert RATE.natural(constraints.positive, Power(-2.0))
    assert RATE.natural(constraints.independent(constraints.nonnegative, 1), Power(1.0))
    assert RATE.natural(constraints.softplus_positive, Power(1.0))
    assert RATE.natural(constraints.real, Exponential())
    assert PROBABILITY.natural(constraints.interval(0.0, 1.0), IDENTITY)
    assert SIMPLEX.natural(constraints.simplex, IDENTITY)
    assert MATRIX.natural(constraints.lower_cholesky, SCALE_TRIL)
    assert not LOCATION.natural(constraints.positive, IDENTITY)
    assert not RATE.natural(constraints.greater_than(0.1), Power(-2.0))
    assert not RATE.natural(constraints.interval(0.0, torch.ones(2)), Power(1.0))
    assert not RATE.natural(constraints.positive, Exponential())
    assert not MATRIX.natural(constraints.corr_matrix, PRECISION)


@pytest.mark.parametrize("power", [1.0, 2.0], ids=["closed form", "numerical"])
@pytest.mark.parametrize("rows", [3, 10])
def test_an_estimate_may_lie_at_the_upper_bound_of_a_uniform_prior(power: float, rows: int) -> None:
    def model(x: Tensor) -> None:  # all succeed: the likelihood rises to p = 1, and so to 1
        p = pyro.sample("p", dist.Uniform(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Bernoulli(p**power), obs=x)

    fit = EM(model, seed=0).fit(torch.ones(rows))
    assert fit.converged, fit.stop_reason
    assert float(fit.params["p"]) == pytest.approx(1.0, abs=1e-9)
    assert fit.log_posterior == pytest.approx(0.0, abs=1e-9)
    assert dist.Uniform(0.0, 1.0).log_prob(fit.params["p"]) == 0.0  # Pyro agrees that it may


def test_survival_of_animals_that_all_live_is_one() -> None:
    seen = torch.tensor([[1.0, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 0]], dtype=torch.float64)

    def model(seen: Tensor) -> None:  # capture and recapture, survival by year
        recapture = pyro.sample("recapture", dist.Uniform(0.0, 1.0))
        alive, animals = torch.ones(3), pyro.plate("animals", 3)
        for t in pyro.markov(range(1, 4)):
            survival = pyro.sample(f"survival_{t}", dist.Uniform(0.0, 1.0))
            with animals:
                alive = pyro.sample(f"alive_{t}", dist.Bernoulli(survival * alive))
                pyro.sample(f"seen_{t}", dist.Bernoulli(recapture * alive), obs=seen[:, t])

    fits = [EM(model, o, seed=0).fit(seen) for o in ("map", "mle")]
    for fit in fits:  # with a prior that is flat the mode is the maximum of the likelihood
        assert fit.converged, fit.stop_reason
        assert fit.log_likelihood == pytest.approx(fits[1].log_likelihood, rel=1e-7)
