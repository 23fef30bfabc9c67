"""How EM moves with Gaussian latents: expansion, factors in canonical spread, variances of zero."""

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.factors.gaussian.row_wise_component import RowWiseComponent
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.expanded import expanded_m_step
from ember.inference.maximisation.m_step import MStep
from ember.inference.plan.loadings import loadings_of
from ember.inference.reading.gaussian import slices
from ember.models import factor_analysis, linear_mixed_model
from tests.inference.gaussian_fits import em_of
from tests.inference.gaussian_models import CASES

GROUPED = ("random intercept", "correlated slopes", "slopes with priors", "crossed", "weighted")
FACTORS = ("factor analysis", "ppca")


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", [*GROUPED, *FACTORS])
def test_an_expanded_step_rises_at_least_as_the_plain_one_may(name: str, seed: int) -> None:
    """It never lowers the objective, and its optimum is that of the plain step."""
    case = CASES[name]
    plan = em_of(case).plan(*case.args, **case.kwargs)
    params, evidence, m_step = case.params(seed), LogEvidence.of(plan), MStep.of(plan)
    with sheltered(0):
        for _ in range(5):
            statistics = evidence.statistics(params, expanded=True)
            plain = evidence.statistics(params)
            assert statistics.objective == pytest.approx(plain.objective, rel=1e-13)
            for key, (_, sums) in plain.sums.items():
                torch.testing.assert_close(statistics.sums[key][1], sums, rtol=1e-9, atol=1e-9)
            params = expanded_m_step(m_step, statistics, loadings_of(plan))
            after = evidence.statistics(params).objective
            assert after >= statistics.objective - 1e-9 * (1.0 + abs(after))


@pytest.mark.parametrize("name", [*GROUPED, *FACTORS])
def test_expansion_and_plain_steps_have_one_optimum(name: str) -> None:
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # plain steps may need more than there are
        plain = em_of(case, accelerate=None, init=case.start(), max_iter=4000, tol=1e-12).fit(
            *case.args, **case.kwargs
        )
    fit = em_of(case, init=case.start(), tol=1e-12).fit(*case.args, **case.kwargs)
    better = fit.log_posterior - plain.log_posterior
    assert better > -1e-6 * (1.0 + abs(plain.log_posterior))
    assert fit.evaluations < plain.evaluations


def test_changes_of_several_components_follow_each_other() -> None:
    """Two mixed models side by side move as each moves by itself."""
    y, w, group = normal(6, 40), 3.0 + 2.0 * normal(7, 40), torch.arange(40) % 8

    def one(name: str, data: Tensor) -> None:
        mu = pyro.param(f"mu_{name}", torch.zeros(()))
        positive = dist.constraints.positive
        within, between = (
            pyro.param(f"{part}_{name}", torch.ones(()), constraint=positive)
            for part in ("within", "between")
        )
        with pyro.plate(f"groups_{name}", 8):
            mark: Any = {"integrate": "gaussian"}
            u = pyro.sample(f"u_{name}", dist.Normal(0.0, between), infer=mark)
        with pyro.plate(f"rows_{name}", len(data)):
            pyro.sample(name, dist.Normal(mu + u[group], within), obs=data)

    def both() -> None:
        one("y", y)
        one("w", w)

    def moved(model: Any, *args: Any) -> dict[str, Tensor]:
        plan = EM(model, "mle").plan(*args)
        with sheltered(0):
            params = {n: p.start for n, p in plan.structure.parameters.items()}
            statistics = LogEvidence.of(plan).statistics(params, expanded=True)
            return expanded_m_step(MStep.of(plan), statistics)

    alone = {**moved(one, "y", y), **moved(one, "w", w)}
    together = moved(both)
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value)


def heywood() -> Tensor:
    """Columns of which the first is the factor itself."""
    z = normal(3, 60)
    noise = torch.stack([0.0 * z, *normal(53, 3, 60)])
    return (torch.tensor([1.0, 0.8, 0.7, 0.6]).double()[:, None] * z + 0.6 * noise).T


def test_a_column_that_a_factor_explains_altogether_is_named() -> None:
    with pytest.warns(RuntimeWarning, match=r"'uniquenesses' \(entry 0\) is zero at the maximum"):
        fit = EM(factor_analysis, "mle").fit(heywood(), 1)
    assert fit.converged
    share = fit.params["uniquenesses"][0] / heywood()[:, 0].var(correction=0)
    assert 0.0 < float(share) < 1e-6
    assert fit.iterations < 60
    assert bool((fit.history.diff() >= -1e-9 * (1.0 + fit.history[1:].abs())).all())
    prior = EM(factor_analysis).fit(heywood(), 1)
    assert prior.converged
    assert not prior.warning


def test_rows_add_up_to_their_pooled_sum() -> None:
    em = EM(factor_analysis, "mle")
    plan = em.plan(normal(3, 40, 5), 2)
    (component,) = plan.components
    assert isinstance(component, RowWiseComponent)
    assert component.is_pooled
    with sheltered(0):
        params = em.initialise(plan)
        pooled = LogEvidence.of(plan).statistics(params).log_likelihood
        rows = LogEvidence.of(plan).rows(params)
    assert rows.shape == (40,)
    assert pooled == pytest.approx(float(rows.sum()), rel=1e-12)


@pytest.mark.parametrize("gaps", [False, True])
def test_a_slice_of_the_rows_reads_as_all_of_them(
    gaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = normal(4, 150, 4)
    if gaps:
        x[torch.arange(150) % 7 == 0, 1] = torch.nan
    groups = torch.arange(150) % 5

    def plans() -> list[Any]:
        return [
            EM(factor_analysis, "mle").plan(x, 2),
            EM(linear_mixed_model, "mle").plan(x[:, 0].clone(), x[:, 2], groups=groups),
        ]

    whole = plans()
    monkeypatch.setattr(slices, "MANY", 100)
    for one, other in zip(whole, plans(), strict=True):
        for name, site in one.sites.items():
            for slot, again in zip(site.slots, other.sites[name].slots, strict=True):
                assert (slot.latent, slot.column) == (again.latent, again.column)
                assert torch.equal(slot.entries, again.entries)
                torch.testing.assert_close(slot.coefficient, again.coefficient)


def test_a_step_of_the_users_own_is_plain() -> None:
    """What the four public methods do is the textbook's EM, without expansion."""
    y, groups = normal(5, 30), torch.arange(30) % 6
    em = EM(linear_mixed_model, "mle")
    params = em.initialise(y, groups=groups)
    stats = em.e_step(params, y, groups=groups)
    assert not stats.expansions
    moved = em.m_step(stats)["group_variance"]
    posterior = em_posterior(y, groups, params)
    torch.testing.assert_close(moved, posterior)


def em_posterior(y: Tensor, groups: Tensor, params: dict[str, Tensor]) -> Tensor:
    """The mean of the expected squares of the effects, by hand."""
    total = torch.zeros((), dtype=torch.float64)
    for group in range(6):
        rows = y[groups == group] - params["coefficients"]
        precision = 1.0 / params["group_variance"] + len(rows) / params["variance"]
        mean = rows.sum() / params["variance"] / precision
        total += mean.square() + 1.0 / precision
    return total / 6
