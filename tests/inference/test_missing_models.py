"""Missing entries in models of every make, and what else is told and done about them."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM, select
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.numerics.observed_density import row_patterns
from ember.inference.plan.building import build_plan
from ember.models import (
    bernoulli_mixture,
    gaussian_mixture,
)
from tests.inference import brute_force
from tests.inference.gaps import clusters, row_log_prob, with_gaps
from tests.inference.missing_models import MODELS, plain


def by_group(x: Tensor, group: Tensor) -> None:
    """The location varies along the rows, not along a latent."""
    with pyro.plate("groups", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 9.0).expand([3]).to_event(1))
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(5.0), torch.eye(3)))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.MultivariateNormal(locs[group], precision_matrix=precision), obs=x)


def scaled(x: Tensor, group: Tensor) -> None:
    """A known number for each row multiplies the precision."""
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(5.0), torch.eye(3)))
    with pyro.plate("rows", len(x)):
        matrix = (1.0 + group)[:, None, None] * precision
        pyro.sample("x", dist.MultivariateNormal(torch.ones(3), precision_matrix=matrix), obs=x)


def nested_event(x: Tensor, group: Tensor) -> None:
    """Two vectors make one event."""
    locs = pyro.sample("locs", dist.Normal(0.0, 9.0).expand([2, 3]).to_event(2))
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(5.0), torch.eye(3)))
    pairs = x.reshape(-1, 2, 3)
    with pyro.plate("pairs", len(pairs)):
        fn = dist.MultivariateNormal(locs, precision_matrix=precision).to_event(1)
        pyro.sample("x", fn, obs=pairs)


def two_plates(x: Tensor, group: Tensor) -> None:
    """Rows in a grid, with a dim of size one for what could be a latent."""
    locs = pyro.sample("locs", dist.Normal(0.0, 9.0).expand([3]).to_event(1))
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(5.0), torch.eye(3)))
    grid = x.reshape(4, -1, 1, 3)
    with pyro.plate("sequences", 4, dim=-3), pyro.plate("steps", grid.shape[1], dim=-2):
        pyro.sample("x", dist.MultivariateNormal(locs, precision_matrix=precision), obs=grid)


def computed(x: Tensor, group: Tensor) -> None:
    """A location that no map describes: only the model can say it."""
    locs = pyro.sample("locs", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(5.0), torch.eye(3)))
    with pyro.plate("rows", len(x)):
        loc = torch.tanh(locs) * 2.0
        pyro.sample("x", dist.MultivariateNormal(loc, precision_matrix=precision), obs=x)


def per_row_matrix(x: Tensor, group: Tensor) -> None:
    """A computed matrix for each row."""
    noise = pyro.sample("noise", dist.Gamma(2.0, 2.0))
    with pyro.plate("rows", len(x)):
        eye = torch.eye(3) * noise + 0.1 * (1.0 + group)[:, None, None]
        pyro.sample("x", dist.MultivariateNormal(torch.ones(3), covariance_matrix=eye), obs=x)


MVN_MODELS = {m.__name__: m for m in
              (by_group, scaled, nested_event, two_plates, computed, per_row_matrix)}  # fmt: skip


@pytest.mark.parametrize("probing", [True, False], ids=["plan", "reference path"])
@pytest.mark.parametrize("name", MVN_MODELS)
def test_any_normal_site_may_have_gaps(name: str, probing: bool) -> None:
    model = MVN_MODELS[name]
    x = with_gaps(clusters(24), 0.4)
    x[4:6] = torch.nan
    group = torch.arange(24) % 2
    with sheltered():
        plan = build_plan(model, prepare((x, group), {}), probing=probing)
        params = {
            n: p.to_constrained(0.3 * torch.randn(p.to_unconstrained(p.start).shape))
            for n, p in plan.structure.parameters.items()
        }
        found = LogEvidence.of(plan).statistics(params)
        trace: Any = plan.structure.trace(params)
    site = trace.nodes["x"]
    fn = site["fn"].base_dist if name == "nested_event" else site["fn"]
    shape = site["value"].shape
    locs = fn.loc.expand(shape).reshape(-1, 3).numpy()
    covariances = fn.covariance_matrix.expand(*shape, 3).reshape(-1, 3, 3).numpy()
    rows = [row_log_prob(*r) for r in zip(x.numpy(), locs, covariances, strict=True)]
    assert found.log_likelihood == pytest.approx(sum(rows), rel=1e-11)
    with sheltered():  # every statistic at once: the gradient of the evidence is that of Q
        supports = {n: p.support for n, p in plan.structure.parameters.items()}
        left = brute_force.free_gradient(LogEvidence.of(plan), params, supports)
        right = brute_force.free_gradient(
            lambda at: expected_log_joint(found, at) - plan.prior.log_prob(at), params, supports
        )
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
    if name in ("by_group", "two_plates") and probing:
        fit = EM(model, seed=0).fit(x, group)
        assert fit.converged
        assert bool((fit.history.diff() >= -1e-9).all())


def test_many_columns_and_as_many_patterns_as_rows() -> None:
    x = with_gaps(clusters(30, features=40), 0.3)
    plan_patterns, index = row_patterns(x.isnan())
    assert len(plan_patterns) == 30
    assert torch.equal(plan_patterns[index], x.isnan())
    params = {
        "locs": torch.zeros(2, 40, dtype=torch.float64),
        "matrices": torch.eye(40, dtype=torch.float64).expand(2, 40, 40) + 0.3,
        "weights": torch.tensor([0.5, 0.5], dtype=torch.float64),
    }
    stats = EM(plain("covariance_matrix"), "mle").e_step(params, x)
    truth = [row_log_prob(row, np.zeros(40), params["matrices"][0].numpy()) for row in x.numpy()]
    assert stats.log_likelihood == pytest.approx(sum(truth), rel=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_entries_that_are_independent_keep_the_fast_kernel(name: str) -> None:
    model, x, options = MODELS[name]
    with sheltered():
        plan = build_plan(model, prepare((x,), {"components": 2, **options}))
    assert (LogEvidence.of(plan).kernel is None) is plan.has_gaps is (name in ("full", "tied"))


def test_missing_integers_of_a_data_frame() -> None:
    frame = pd.DataFrame({"a": [0, 1, None, 1, 0, 1], "b": [1, 0, 1, 1, 0, None]}, dtype="Int64")
    data = torch.tensor(frame.to_numpy(dtype="float64", na_value=np.nan))
    left = EM(bernoulli_mixture, seed=0).fit(frame, components=2)
    right = EM(bernoulli_mixture, seed=0).fit(data, components=2)
    assert left.log_posterior == right.log_posterior


def test_a_mixture_distribution_takes_gaps() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 9.0).expand([3]).to_event(1))
            matrices = pyro.sample("matrices", dist.Wishart(torch.tensor(5.0), torch.eye(3)))
        with pyro.plate("rows", len(x)):
            parts = dist.MultivariateNormal(locs, precision_matrix=matrices)
            fn = dist.MixtureSameFamily(dist.Categorical(weights), parts)
            pyro.sample("x", fn, obs=x)

    x = with_gaps(clusters(40))
    left, right = EM(model, seed=0).fit(x), EM(plain("precision_matrix"), seed=0).fit(x)
    assert left.log_posterior == pytest.approx(right.log_posterior, rel=1e-9)
    torch.testing.assert_close(left.impute(), right.impute(), rtol=1e-4, atol=1e-4)


def test_regression_with_missing_responses() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    y = features @ torch.tensor([1.0, -2.0], dtype=torch.float64) + torch.randn(
        60, generator=generator, dtype=torch.float64
    )
    y[::4] = torch.nan

    def model(features: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(3.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(features @ beta, sigma), obs=y)

    shown = ~y.isnan()
    left = EM(model, seed=0).fit(features, y)
    right = EM(model, seed=0).fit(features[shown], y[shown])
    assert left.log_posterior == pytest.approx(right.log_posterior, rel=1e-10)
    torch.testing.assert_close(left.params["beta"], right.params["beta"], rtol=1e-6, atol=1e-8)


def test_an_event_without_a_marginal_may_be_missing_as_a_whole() -> None:
    def model(x: Tensor) -> None:
        concentration = pyro.sample("concentration", dist.Gamma(2.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Dirichlet(concentration), obs=x)

    x = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]], dtype=torch.float64)
    gappy = torch.cat([x, torch.full((1, 3), torch.nan)])
    left, right = EM(model, seed=0).fit(x), EM(model, seed=0).fit(gappy)
    assert left.log_posterior == pytest.approx(right.log_posterior, rel=1e-8)


def test_the_plan_says_how_much_is_missing() -> None:
    x = with_gaps(clusters(50))
    missing = f"{int(x.isnan().sum())} of 150 entries missing"
    for covariance in ("full", "diag"):
        table = EM(gaussian_mixture).explain(x, components=2, covariance=covariance)
        assert missing in str(table)
    assert "missing" not in str(EM(gaussian_mixture).explain(clusters(50), components=2))


def test_gaps_in_the_steps_of_a_chain_are_counted_together() -> None:
    def chain(x: Tensor, skip: bool = False) -> None:
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        z = None
        for t in pyro.markov(range(len(x))):
            stay = torch.tensor(0.5) if z is None else 0.2 + 0.6 * z
            z = pyro.sample(f"z_{t}", dist.Bernoulli(stay))
            if not (skip and bool(x[t].isnan())):
                pyro.sample(f"x_{t}", dist.Normal(locs[z.long()], 1.0), obs=x[t])

    x = torch.tensor([0.3, torch.nan, 2.0, torch.nan, 1.0, -1.0], dtype=torch.float64)
    table = EM(chain).explain(x)
    assert "x_0 ... x_5" in table["site"].tolist()
    assert "2 of 6 entries missing" in str(table)
    fit = EM(chain, seed=0).fit(x)
    truth = brute_force.enumerate_latents(chain, fit.params, x, True)
    assert fit.log_likelihood == pytest.approx(float(truth.log_evidence), rel=1e-12)
    filled, smoothed = fit.impute(), fit.posterior("z").probs
    assert torch.equal(filled[~x.isnan()], x[~x.isnan()])
    torch.testing.assert_close(filled[1], smoothed[1] @ fit.params["locs"], rtol=1e-10, atol=0.0)


def test_a_sweep_over_models_takes_gaps() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        chosen = select(
            gaussian_mixture, with_gaps(clusters(60)), components=[1, 2], folds=2, em={"seed": 0}
        )
    assert chosen.options == {"components": 2}
    assert chosen.table["held_out"].notna().all()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinite_values_stay_an_error(value: float) -> None:
    x = with_gaps(clusters(20))
    x[0, 0] = value
    with pytest.raises(ValueError, match=r"'x'.*infinite.*mask"):
        EM(plain("precision_matrix")).fit(x)
    with pytest.raises(ValueError, match=r"`x` has 1 infinite"):
        EM(gaussian_mixture).fit(x, components=2)
