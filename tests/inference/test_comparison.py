"""The table compares like with like, keeps errors, and puts states in one order."""

import dataclasses
from typing import Any

import pandas as pd
import pytest
import torch

from ember.inference import EM, SVI, compare
from ember.inference.comparison import Comparison, Method
from ember.inference.plan.building import build_plan
from ember.inference.queries.relabelling import permute
from ember.models import gaussian_mixture, hidden_markov_poisson
from tests.inference.catalogue import CASES

X = CASES[0][1]


class Broken:
    """A method that fails."""

    name = "broken"

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no such luck")


class Turned:
    """EM with its states numbered the other way round."""

    name = "turned"

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        fit = EM(gaussian_mixture, seed=0).fit(*args, **kwargs)
        params = permute(fit.plan, fit.params, "assignment", [1, 0])
        return dataclasses.replace(fit, params=params)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    methods: list[Method] = [
        EM(gaussian_mixture, "mle", seed=0),
        EM(gaussian_mixture, seed=0),
        Broken(),
        Turned(),
        SVI(gaussian_mixture, steps=150, seed=0),
        EM(gaussian_mixture, seed=5),
    ]
    return compare(methods, X, components=2)


def test_there_is_a_row_for_each_method_in_order(comparison: Comparison) -> None:
    names = ["EM (MLE)", "EM (MAP)", "broken", "turned", "SVI (AutoDelta)", "EM (MAP) 2"]
    assert list(comparison.table.index) == names
    assert list(comparison.fits) == [name for name in names if name != "broken"]


def test_the_log_posterior_has_the_prior_for_every_method(comparison: Comparison) -> None:
    table, fits = comparison.table, comparison.fits
    mle = fits["EM (MLE)"]
    assert mle.log_posterior == mle.log_likelihood  # the method's own objective
    arguments = mle.plan.structure.arguments
    plan = build_plan(gaussian_mixture, arguments, "map")
    expected = mle.log_likelihood + float(plan.prior.log_prob(mle.params))
    assert table.loc["EM (MLE)", "log posterior"] == pytest.approx(expected, rel=1e-12)
    for name in ("EM (MAP)", "SVI (AutoDelta)"):
        assert table.loc[name, "log posterior"] == pytest.approx(fits[name].log_posterior)
    # So each method is best in its own column.
    assert table["log likelihood"].idxmax() == "EM (MLE)"
    assert table["log posterior"].idxmax() != "EM (MLE)"


def test_the_states_are_numbered_as_in_the_first_fit(comparison: Comparison) -> None:
    table = comparison.table
    locs = [column for column in table if str(column).startswith("locs[")]
    assert locs == ["locs[0, 0]", "locs[0, 1]", "locs[1, 0]", "locs[1, 1]"]
    spread = (table.drop(index="broken")[locs].max() - table.drop(index="broken")[locs].min()).max()
    assert spread < 0.2
    raw = comparison.fits["turned"].params["locs"]
    assert torch.equal(comparison.params["turned"]["locs"], raw.flip(0))


def test_a_method_that_fails_is_in_the_table_with_its_error(comparison: Comparison) -> None:
    row = comparison.table.loc["broken"]
    assert row["stop reason"] == "failed: no such luck"
    assert pd.isna(row["log likelihood"])
    assert pd.isna(row["weights[0]"])
    assert comparison.errors == {"broken": "no such luck"}


def test_the_report_can_be_read(comparison: Comparison) -> None:
    text = str(comparison)
    assert max(map(len, text.splitlines())) <= 112
    assert "nan" not in text.lower()
    assert "broken failed: no such luck" in text
    first = text.splitlines()[1].split()
    assert first[:2] == ["EM", "(MLE)"]
    assert float(first[2]) == pytest.approx(comparison.fits["EM (MLE)"].log_likelihood, abs=1e-4)
    assert first[-1] == "converged"
    assert any(line.startswith("weights[0]") for line in text.splitlines())


def test_counts_are_whole_numbers(comparison: Comparison) -> None:
    fit = comparison.fits["EM (MAP)"]
    assert comparison.table.loc["EM (MAP)", "iterations"] == fit.iterations
    assert str(comparison.table["passes"].dtype) == "Int64"


def test_a_long_list_of_estimates_is_cut_in_print_only() -> None:
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = compare([EM(gaussian_mixture, seed=0)], x, components=2)
    assert found.table.shape[1] > 80
    assert "more entries, in .table" in str(found)
    assert len(str(found).splitlines()) < 60


def test_chains_are_aligned_too() -> None:
    x = next(case[1] for case in CASES if case[0] == "hidden_markov_poisson")
    model = hidden_markov_poisson
    found = compare([EM(model, seed=0), EM(model, init="random", seed=2)], x, states=2)
    assert not found.errors
    rates = found.table[["rates[0]", "rates[1]"]]
    assert ((rates["rates[0]"] < rates["rates[1]"]).nunique()) == 1


def test_when_all_fail_the_first_error_is_raised() -> None:
    with pytest.raises(RuntimeError, match="no such luck"):
        compare([Broken()], X)


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ([], ValueError, "methods is empty"),
        (EM(gaussian_mixture), TypeError, "methods must be a list"),
        ([EM], TypeError, "is no method; pass instances"),
        (["EM"], TypeError, "'EM' is no method"),
    ],
)
def test_what_is_no_list_of_methods_is_refused(
    methods: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compare(methods, X, components=2)
