"""What print and summary show: names of columns, labels, and computed values."""

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM, SVI
from ember.inference.tables import old_faithful
from ember.models import (
    gaussian_mixture,
    hidden_markov_gaussian,
    hidden_markov_poisson,
    poisson_mixture,
    regression_mixture,
)


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_estimates_stand_below_the_names_of_their_columns(covariance: str) -> None:
    fit = EM(gaussian_mixture, seed=0).fit(old_faithful(), components=2, covariance=covariance)
    names = {"full": 2, "tied": 2, "diag": 1, "spherical": 0}[covariance]
    summary = fit.summary()
    assert summary.loc["locs[1, 0]", "column"] == "eruptions"
    assert summary.loc["weights[1]", "column"] == ""
    precisions = summary[summary.index.str.startswith("precisions")]["column"]
    assert {len(column.split(", ")) if column else 0 for column in precisions} == {names}
    assert "eruptions  waiting" in str(fit)
    assert summary["estimate"]["locs[1, 0]"] == float(fit.params["locs"][1, 0])


def test_states_are_not_taken_for_columns_where_there_are_as_many() -> None:
    fit = EM(hidden_markov_gaussian, seed=0).fit(old_faithful(), states=2)
    assert set(fit.axes) == {"locs", "precisions"}  # and not the transitions, (2, 2) as well


def test_coefficients_bear_the_names_of_covariates() -> None:
    generator = torch.Generator().manual_seed(0)
    table = pd.DataFrame(torch.randn(40, 2, generator=generator).numpy(), columns=["age", "dose"])
    y = (1.0 + 2.0 * table["age"] - table["dose"]).rename("response")
    fit = EM(regression_mixture, seed=0).fit(y + 0.1 * torch.randn(40).numpy(), table, components=1)
    assert fit.axes["coefficients"] == {1: ("intercept", "age", "dose")}
    assert "intercept" in str(fit)


def test_a_single_column_is_named_and_data_without_names_are_not() -> None:
    counts = pd.Series([0.0, 1, 0, 2, 9, 11, 8], name="visits")
    fit = EM(poisson_mixture, seed=0).fit(counts, components=2)
    assert fit.summary().loc["rates[0]", "column"] == "visits"
    assert "(visits)" in str(fit)
    bare = EM(poisson_mixture, seed=0).fit(counts.to_numpy(), components=2)
    assert list(bare.summary().columns) == ["estimate"]
    assert bare.axes == {}


def test_svi_knows_the_names_too() -> None:
    fit = SVI(gaussian_mixture, steps=2, seed=0).fit(old_faithful(), components=2)
    assert fit.columns["x"] == ("eruptions", "waiting")


def grouped(x: Tensor) -> None:
    with pyro.plate("groups", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    pyro.deterministic("gap", loc[1] - loc[0])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        mean = pyro.deterministic("mean", loc[z])
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_computed_values_are_those_at_the_estimates() -> None:
    fit = EM(grouped, seed=0).fit(torch.tensor([0.0, 0.1, 0.2, 5.0, 5.2, 5.4]))
    gap = fit.params["loc"][1] - fit.params["loc"][0]
    assert set(fit.deterministic) == {"gap"}  # the mean is another in each state
    torch.testing.assert_close(fit.deterministic["gap"], gap)
    assert fit.summary().loc["gap", "estimate"] == pytest.approx(float(gap))
    assert "Computed\n  gap: " in str(fit)
    turned = fit.relabel([1, 0])
    torch.testing.assert_close(turned.deterministic["gap"], -gap)


def test_the_stationary_start_of_a_chain_is_computed() -> None:
    x = torch.tensor([1.0, 0, 2, 9, 8, 10, 1, 0, 11, 9])
    fit = EM(hidden_markov_poisson, seed=0).fit(x, states=2, stationary=True)
    start = fit.deterministic["initial"]
    torch.testing.assert_close(start @ fit.params["transition"], start)
    assert EM(poisson_mixture, seed=0).fit(x, components=2).deterministic == {}
