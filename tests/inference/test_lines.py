"""Densities of lines in coefficients, to second order: what automatic differentiation says."""

from collections.abc import Callable
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.factors import predictors
from ember.inference.maximisation.numerical import Search
from ember.inference.maximisation.objective import expected_log_joint, near
from ember.inference.numerics.newton import derivatives
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics
from tests.inference import catalogue
from tests.inference.catalogue import case_id, model_of
from tests.inference.opaque_cases import COUNTS, HALF, LINE, NOISE, ROWS, UNIFORM, X

Model = Callable[..., Any]


SHOWN = cast(torch.BoolTensor, UNIFORM > 0.2)


def experts(y: Tensor) -> None:
    """Three experts by a gate of vectors of logits, with counts beside numbers."""
    gate = pyro.param("gate", 0.1 * torch.arange(9.0).reshape(3, 3).double())
    rates = pyro.param("rates", torch.tensor([[0.2, 0.1], [0.5, -0.1], [1.0, 0.3]]).double())
    logits = torch.cat([torch.ones(len(y), 1), X[: len(y)]], 1) @ gate.mT
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(logits=logits))
        eta = rates[z, 0] + rates[z, 1] * X[: len(y), 0] + 0.1
        pyro.sample("y", dist.Poisson(eta.exp()), obs=y)


def two_arguments(y: Tensor) -> None:
    """A line beside a number, both unknown, that meet in the curvature."""
    slope = pyro.param("slope", torch.tensor([0.3, -0.2]).double())
    size = pyro.param("size", torch.tensor([2.0, 5.0]).double(), constraint=positive)
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        logits = slope[z] * X[: len(y), 0] - 0.5
        pyro.sample("y", dist.NegativeBinomial(size[z], logits=logits), obs=y)


def weighed(y: Tensor) -> None:
    """Rows that are masked, or count more than once."""
    slope = pyro.param("slope", torch.tensor([[0.3, 0.1], [-0.2, 0.4]]).double())
    with pyro.plate("rows", len(y)), pyro.poutine.scale(scale=1.0 + HALF.double()):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        with pyro.poutine.mask(mask=SHOWN):
            pyro.sample("y", dist.Bernoulli(logits=(slope[z] * X).sum(-1)), obs=y)


def years(y: Tensor) -> None:
    """A line that is a small difference of large numbers."""
    slope = pyro.param("slope", torch.tensor([[-20.0, 0.01], [20.0, -0.01]]).double())
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        year = 1960.0 + torch.arange(len(y)) % 60
        pyro.sample("y", dist.Poisson((slope[z, 0] + slope[z, 1] * year).exp()), obs=y)


def steps(y: Tensor) -> None:
    """The states of a chain, one after the other, each with a number of its own."""
    loc = pyro.param("loc", torch.tensor([0.0, 5.0]).double())
    even = torch.ones(2).double() / 2
    chain = dist.DiscreteHMM(even.log(), torch.ones(2, 2).double().log(), dist.Cauchy(loc, 1.0))
    pyro.sample("y", chain, obs=y)


positive = dist.constraints.positive
OWN: dict[str, tuple[Model, tuple[Tensor, ...], dict[str, Any]]] = {
    "experts": (experts, (COUNTS,), {}),
    "two arguments": (two_arguments, (COUNTS,), {}),
    "weighed": (weighed, ((LINE.sigmoid() > UNIFORM).double(),), {}),
    "years": (years, (COUNTS,), {}),
    "steps": (steps, (6.0 * HALF[:40] + NOISE[:40],), {}),
}
READY = {
    case_id(case): (model_of(case), (case[1],), case[2])
    for case in catalogue.NUMERICAL
    if case[0] in ("regression_mixture", "mixture_of_experts", "count_mixture")
}
CASES = OWN | READY


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few rows are looked at in the same way as many."""
    monkeypatch.setattr(predictors, "FEWEST", 0)


def expected(plan: Plan, params: dict[str, Tensor]) -> Statistics:
    return LogEvidence.of(plan).statistics(params)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_automatic_differentiation(name: str) -> None:
    model, data, options = CASES[name]
    em = EM(model, seed=0)
    plan = em.plan(*data, **options)
    params = em.initialise(plan)
    whole = expected(plan, params)
    quick = near(whole, params)
    if not whole.opaque:  # it has sufficient statistics
        assert quick is whole
        return
    assert len(quick.near) == len(plan.opaque.factors)
    assert not quick.opaque
    coordinates = Coordinates(plan.structure.parameters)
    point = coordinates.flatten(params)

    def along(statistics: Statistics) -> tuple[Tensor, Tensor]:
        return derivatives(
            lambda free: expected_log_joint(statistics, coordinates.unflatten(free)), point
        )

    (slope, hessian), (gradient, curvature) = along(whole), along(quick)
    assert float(expected_log_joint(quick, params)) == pytest.approx(
        float(expected_log_joint(whole, params)), rel=1e-14
    )
    size = float(hessian.abs().max())
    assert torch.allclose(
        gradient, slope, rtol=1e-10, atol=1e-10 * (1.0 + float(slope.abs().max()))
    )
    assert torch.allclose(curvature, hessian, rtol=1e-10, atol=1e-12 * size)


def test_what_is_no_line_is_differentiated_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, options = CASES["two arguments"]
    monkeypatch.setattr(predictors, "MOST_GROUPS", 1)
    em = EM(model, seed=0)
    plan = em.plan(*data, **options)
    whole = expected(plan, em.initialise(plan))
    assert not near(whole, whole.params).near
    assert near(whole, whole.params).opaque[0].weights.keys() == {"y"}


def test_many_coefficients_of_lines_are_newton_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows are looked at once, Newton's method takes more of them than forty."""
    wide = torch.randn(400, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    line = 0.1 * wide[:, :5].sum(1) + torch.arange(400) % 2
    y = torch.poisson(line.exp(), generator=torch.Generator().manual_seed(2))

    def refused(self: Search) -> Any:
        raise AssertionError("Newton's method does it")

    def model(y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2, 24), 0.3).to_event(2))
        heights = pyro.sample("heights", dist.Normal(torch.tensor([0.0, 1.0]), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("y", dist.Poisson((heights[z] + (wide * slopes[z]).sum(-1)).exp()), obs=y)

    monkeypatch.setattr(Search, "lbfgs", refused)
    fit = EM(model, seed=0).fit(y)
    assert fit.converged
    assert fit.certificate is not None
    assert fit.certificate.gradient < 1e-4


def test_years_find_their_optimum() -> None:
    """Newton's steps along directions of their own keep the digits that years lose."""
    y = torch.poisson(torch.where(HALF, 1.0 + 0.02 * (torch.arange(ROWS) % 60), 6.0 + NOISE.abs()))
    fit = EM(years, "mle", init={"slope": torch.tensor([[0.0, 0.0], [1.7, 0.0]])}, seed=0).fit(y)
    assert fit.converged
    assert fit.certificate is not None
    assert fit.certificate.gradient < 1e-4
