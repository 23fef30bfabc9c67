"""A plan for other rows without reading the model again: the same plan as a reading gives."""

import dataclasses
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.rows import rows_of, spread, taken
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration import kept_plan
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.plan.rebinding import can_be_rebound, rebound
from ember.models import gaussian_mixture, poisson_mixture
from tests.inference.catalogue import CASES, NUMERICAL, Case, case_id, model_of

# Every row of these has the same maps; a model added to the catalogue belongs here or not.
REBINDABLE = {
    "gaussian_mixture", "multivariate_normal", "poisson_mixture", "bernoulli_mixture",
    "categorical_mixture", "multinomial_mixture", "naive_bayes", "latent_profile",
}  # fmt: skip


def few(case: Case) -> tuple[Any, dict[str, Any]]:
    """Two thirds of the rows of a case."""
    whole = prepare((case[1],), case[2])
    rows = rows_of(whole)
    part = taken(whole, torch.arange(max(2, 2 * rows // 3)))
    return part.args[0], part.kwargs


def at_other_rows(model: Any, data: Any, new: Any, **options: Any) -> Plan | None:
    plan = EM(model, seed=0).plan(data, **options)
    with sheltered(0):
        return rebound(plan, prepare((new,), options))


def assert_same(one: Plan, other: Plan) -> None:
    """Equal statistics and objective at some parameters."""
    em = EM(one.structure.model, one.objective, seed=0)
    params = em.initialise(one)
    left, right = em.e_step(params, one), em.e_step(params, other)
    assert left.log_likelihood == pytest.approx(right.log_likelihood, rel=1e-12)
    assert left.log_prior == pytest.approx(right.log_prior, rel=1e-12)
    for key, (_, sums) in left.sums.items():
        assert torch.allclose(sums, right.sums[key][1], rtol=1e-9, atol=1e-9)
    after, again = em.m_step(left), em.m_step(right)
    for name, value in after.items():
        assert torch.allclose(value, again[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [*CASES, *NUMERICAL], ids=case_id)
def test_equals_a_reading_of_the_other_rows(case: Case) -> None:
    if case[0] == "emission_tomography":
        pytest.skip("its system has a row for each ray")
    whole = EM(model_of(case), seed=0).plan(case[1], **case[2])
    data, options = few(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = EM(model_of(case), seed=0).plan(data, **options)
    if case[0] in REBINDABLE and "labels" not in case[2]:
        assert can_be_rebound(plan)
    with sheltered(0):
        found = rebound(plan, prepare((case[1],), case[2]))
    assert (found is not None) == can_be_rebound(plan)
    if found is not None:
        assert_same(whole, found)


def points(rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return noise + 4.0 * (torch.arange(rows) % 2).unsqueeze(-1)


def test_gaps_may_come_with_the_other_rows() -> None:
    gaps = points(90).masked_fill(points(90, 1) > 5.0, torch.nan)
    for covariance in ("full", "diag"):
        options = {"components": 2, "covariance": covariance}
        found = at_other_rows(gaussian_mixture, points(50), gaps, **options)
        assert found is not None
        assert_same(EM(gaussian_mixture, seed=0).plan(gaps, **options), found)


def test_weights_go_with_their_rows() -> None:
    data = poisson_mixture, torch.arange(30.0) % 7
    plan = EM(data[0], seed=0).plan(data[1], components=2, frequency=torch.arange(30) % 3 + 1.0)
    options = {"components": 2, "frequency": torch.arange(80) % 4 + 0.5}
    counts = torch.arange(80.0) % 11
    with sheltered(0):
        found = rebound(plan, prepare((counts,), options))
    assert found is not None
    assert_same(EM(data[0], seed=0).plan(counts, **options), found)


def centred(x: Tensor) -> None:
    """A constant that is computed from the data."""
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(x.mean(), scale), obs=x)


def with_exposure(x: Tensor) -> None:
    """Rates that differ from row to row."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    exposure = 1.0 + torch.arange(len(x)) % 3
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Poisson(rate * exposure), obs=x)


def late_exposure(x: Tensor) -> None:
    """Rates that differ in rows that few data do not have."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    exposure = 1.0 + (torch.arange(len(x)) > 40)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Poisson(rate * exposure), obs=x)


def more_levels(x: Tensor) -> None:
    """As many categories as the data show."""
    probs = pyro.sample("probs", dist.Dirichlet(torch.ones(int(x.max()) + 1)))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Categorical(probs), obs=x)


@pytest.mark.parametrize("model", [centred, with_exposure, late_exposure, more_levels])
def test_what_depends_on_the_rows_is_read_again(model: Any) -> None:
    x = torch.arange(60) % 5 + (torch.arange(60) > 40)
    x = x if model is more_levels else x.double()
    assert at_other_rows(model, x[:30], x) is None
    assert at_other_rows(model, x[:30], x[:30] + 1) is None or model is late_exposure


def test_a_default_prior_is_that_of_the_other_rows_unless_kept() -> None:
    plan = EM(gaussian_mixture, seed=0).plan(points(40), components=2)
    wide = prepare((10.0 * points(50),), {"components": 2})
    params = {name: p.start for name, p in plan.structure.parameters.items()}
    with sheltered(0):
        found, kept = rebound(plan, wide), rebound(plan, wide, keep_prior=True)
    assert found is not None
    assert kept is not None
    before = float(plan.prior.log_prob(params))
    assert float(kept.prior.log_prob(params)) == before
    assert float(found.prior.log_prob(params)) != before


def test_many_rows_are_read_by_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def counting(model: Any, arguments: Any, **options: Any) -> Plan:
        rows.append(rows_of(arguments))
        return build_plan(model, arguments, **options)

    monkeypatch.setattr(kept_plan, "build_plan", counting)
    monkeypatch.setattr(kept_plan, "MANY_ROWS", 500)
    monkeypatch.setattr(kept_plan, "MANY_NUMBERS", 1000)
    monkeypatch.setattr(kept_plan, "FEW_ROWS", 199)
    x = points(700)
    found = EM(gaussian_mixture, seed=0).plan(x, components=2)
    assert rows == [199]
    with sheltered(0):
        whole = build_plan(gaussian_mixture, prepare((x,), {"components": 2}))
    assert_same(whole, found)
    for name, parameter in whole.structure.parameters.items():
        assert torch.equal(parameter.start, found.structure.parameters[name].start)


def test_data_that_few_rows_do_not_show_are_refused_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = torch.ones(700)
    counts[3] = -1.0
    with pytest.raises(ValueError, match="x") as whole:
        EM(poisson_mixture).plan(counts, components=2)
    monkeypatch.setattr(kept_plan, "MANY_ROWS", 500)
    monkeypatch.setattr(kept_plan, "MANY_NUMBERS", 500)
    with pytest.raises(ValueError, match="x") as by_few:
        EM(poisson_mixture).plan(counts, components=2)
    assert str(by_few.value) == str(whole.value)


def test_rows_are_taken_from_all_that_has_them() -> None:
    arguments = prepare(
        ({"x": torch.arange(6.0), "y": torch.eye(6)},),
        {"frequency": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "levels": 6, "prior": {"a": torch.ones(3)}},
    )
    found = taken(arguments, spread(6, 3))
    assert torch.equal(spread(6, 3), torch.tensor([0, 2, 5])) or len(spread(6, 3)) == 3
    data: Any = found.args[0]
    assert data["x"].shape == (3,)
    assert data["y"].shape == (3, 6)
    assert len(found.kwargs["frequency"]) == 3  # type: ignore[arg-type]
    assert found.kwargs["levels"] == 6
    assert found.kwargs["prior"]["a"].shape == (3,)  # type: ignore[index]


def test_a_plan_keeps_what_it_was_read_with() -> None:
    plan = EM(gaussian_mixture, mode="unconstrained", seed=0).plan(points(40), components=2)
    with sheltered(0):
        found = rebound(plan, prepare((points(50),), {"components": 2}))
    assert found is not None
    assert (found.objective, found.unconstrained) == ("map", True)
    assert dataclasses.replace(found).opaque.misread == plan.opaque.misread
