"""What ArviZ gets of a fit: groups, dims, coordinates, and numbers that are our own."""

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from ember.inference import EM, NUTS, SVI, VBEM, Fit
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.reports import arviz_groups
from ember.inference.tables import old_faithful
from ember.models import (
    gaussian_mixture,
    hidden_markov_gaussian,
    linear_mixed_model,
    local_level,
    poisson_mixture,
    regression_mixture,
)
from tests.inference.catalogue import CASES, INTEGRATED, NUMERICAL, Case, case_id, model_of

pytest.importorskip("arviz")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    arviz: Any = importlib.import_module("arviz")

GROUPS = {"posterior", "log_likelihood", "posterior_predictive", "observed_data"}
COUNTS = torch.poisson(
    torch.tensor([2.0, 9.0]).repeat(30), generator=torch.Generator().manual_seed(1)
)


def faithful() -> Fit:
    return EM(gaussian_mixture, "mle", seed=0).fit(old_faithful()[::3], components=2)


def group(tree: Any, name: str) -> Any:
    """A group as a data set, whichever ArviZ made it."""
    found = tree[name]
    return found.to_dataset() if hasattr(found, "to_dataset") else found


def test_groups_dims_and_coordinates_have_names() -> None:
    tree = faithful().to_arviz(draws=7, seed=0)
    names = tree.groups() if callable(tree.groups) else [*tree.children]
    assert set(names) == GROUPS
    posterior, data = group(tree, "posterior"), group(tree, "observed_data")
    assert posterior["locs"].dims == ("chain", "draw", "components", "column")
    assert posterior["locs"].shape == (1, 7, 2, 2)
    assert posterior["precisions"].dims[-2:] == ("column", "column_2")
    assert posterior["weights"].dims == ("chain", "draw", "weights_dim_0")
    assert posterior["assignment"].dims == ("chain", "draw", "data")
    for name in ("column", "column_2"):
        assert posterior[name].values.tolist() == ["eruptions", "waiting"]
    assert data["x"].dims == ("data", "column")
    assert np.array_equal(data["x"].values, old_faithful()[::3].to_numpy())
    replicates = group(tree, "posterior_predictive")["x"]
    assert replicates.dims == ("chain", "draw", "data", "column")
    assert replicates.shape == (1, 7, 91, 2)
    assert group(tree, "log_likelihood")["joint"].dims == ("chain", "draw", "data")


def test_draws_and_their_log_likelihoods_are_our_own() -> None:
    fit = faithful()
    tree = fit.to_arviz(draws=5, seed=3)
    drawn, posterior = fit.laplace_samples(5, seed=3), group(tree, "posterior")
    rows = group(tree, "log_likelihood")["joint"].values[0]
    for name, values in drawn.items():
        assert np.array_equal(posterior[name].values[0], values.numpy())
    for place in range(5):
        params = {name: values[place] for name, values in drawn.items()}
        mixture = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(params["weights"]),
            torch.distributions.MultivariateNormal(
                params["locs"], precision_matrix=params["precisions"]
            ),
        )
        expected = mixture.log_prob(torch.tensor(old_faithful()[::3].to_numpy()))
        assert rows[place] == pytest.approx(expected.numpy(), abs=1e-9)
    again = fit.to_arviz(draws=5, seed=3)
    for name in posterior:
        assert np.array_equal(group(again, "posterior")[name].values, posterior[name].values)


def test_leaving_one_out_agrees_with_really_leaving_it_out() -> None:
    """Of a regression with a flat prior, PSIS on our draws against fits without each row."""
    x = torch.linspace(-1.0, 1.0, 60, dtype=torch.float64)
    noise = torch.randn(60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = 1.0 + 2.0 * x + 0.5 * noise
    fit = EM(regression_mixture, "mle", seed=0).fit(y, X=x.unsqueeze(-1), components=1)
    tree = fit.to_arviz(draws=600, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = arviz.loo(tree, pointwise=True)
    assert float(np.max(found.pareto_k)) < 0.5
    # Exactly, with the flat prior and the variance's own: Student's t predictive densities.
    exact = []
    for i in range(60):
        kept = torch.arange(60) != i
        design = torch.stack([torch.ones(59, dtype=torch.float64), x[kept]], 1)
        inverse = torch.linalg.inv(design.T @ design)
        beta = inverse @ design.T @ y[kept]
        square = (y[kept] - design @ beta).square().sum() / 57
        new = torch.tensor([1.0, float(x[i])], dtype=torch.float64)
        scale = (square * (1.0 + new @ inverse @ new)).sqrt()
        t = torch.distributions.StudentT(57.0, new @ beta, scale)
        exact.append(float(t.log_prob(y[i])))
    elpd = float(getattr(found, "elpd_loo", getattr(found, "elpd", math.nan)))
    assert elpd == pytest.approx(sum(exact), abs=0.5)


@pytest.mark.parametrize("case", CASES + NUMERICAL + INTEGRATED, ids=case_id)
def test_every_model_of_the_catalogue(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """At draws that are the estimates, all that is said must be what the fit says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        fit = EM(model_of(case), seed=0, max_iter=2).fit(case[1], **case[2])
    several = {name: value.expand(1, 2, *value.shape) for name, value in fit.params.items()}
    monkeypatch.setattr(Fit, "_draws_by_chain", lambda *_: several)
    tree = fit.to_arviz(draws=2, seed=0)
    (rows,) = group(tree, "log_likelihood").data_vars.values()
    observed, replicates = group(tree, "observed_data"), group(tree, "posterior_predictive")
    if fit.plan.row is not None or fit.plan.structure.latent:
        expected = fit.log_prob().numpy()
        assert rows.values[0, 1] == pytest.approx(expected, rel=1e-12)
    else:  # given the latents: how many terms there are is all that is fixed
        assert np.isfinite(rows.values).all()
    for name in observed:
        assert replicates[name].shape == (1, 2, *observed[name].shape)
        assert replicates[name].dims == ("chain", "draw", *observed[name].dims)
    latents = fit.latent_samples(2, seed=0) if fit.plan.is_incomplete and _latent(fit) else {}
    for name, values in latents.items():
        assert group(tree, "posterior")[name].shape == (1, *values.shape)


def _latent(fit: Fit) -> bool:
    structure = fit.plan.structure
    return bool(structure.latent or structure.gaussian or structure.conjugate)


def test_rows_that_share_effects_are_taken_given_them() -> None:
    y = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    groups = torch.arange(40) % 5
    y = y + torch.tensor([2.0, -1.0, 0.5, 0.0, -2.0], dtype=torch.float64)[groups]
    fit = EM(linear_mixed_model, "mle").fit(y, groups=groups)
    tree = fit.to_arviz(draws=6, seed=0)
    posterior = group(tree, "posterior")
    effects = torch.tensor(posterior["group_effects"].values[0])
    mean = torch.tensor(posterior["coefficients"].values[0]) + effects[:, groups]
    scale = torch.tensor(posterior["variance"].values[0]).sqrt().unsqueeze(-1)
    expected = torch.distributions.Normal(mean, scale).log_prob(y)
    found = group(tree, "log_likelihood")["y"]
    assert found.dims == ("chain", "draw", "data")
    assert found.values[0] == pytest.approx(expected.numpy(), rel=1e-9)


def test_steps_of_a_series_are_taken_given_its_level() -> None:
    y = torch.tensor([1.0, 1.4, 0.9, 2.0, 2.2, 2.1, 3.0, 2.8])
    fit = EM(local_level).fit(y)
    tree = fit.to_arviz(draws=4, seed=0)
    posterior = group(tree, "posterior")
    level = torch.tensor(posterior["level"].values[0])
    scale = torch.tensor(posterior["variance"].values[0]).sqrt().unsqueeze(-1)
    expected = torch.distributions.Normal(level, scale).log_prob(y)
    assert group(tree, "log_likelihood")["y"].values[0] == pytest.approx(expected.numpy())
    assert group(tree, "observed_data")["y"].values.tolist() == y.tolist()


def test_chains_are_named_by_their_time() -> None:
    x = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(1))
    x[:, 4:] += 5.0
    fit = EM(hidden_markov_gaussian, seed=0).fit(x, states=2)
    tree = fit.to_arviz(draws=3, seed=0)
    assert group(tree, "posterior")["state"].dims == ("chain", "draw", "sequences", "time")
    assert group(tree, "posterior_predictive")["x"].dims[2:4] == ("sequences", "time")
    assert group(tree, "log_likelihood")["joint"].dims == ("chain", "draw", "sequences")


def via_svi() -> Fit:
    return SVI(poisson_mixture, "normal", steps=50, seed=0).fit(COUNTS, components=2)


def via_vbem() -> Fit:
    return VBEM(poisson_mixture, seed=0).fit(COUNTS, components=2)


@pytest.mark.parametrize("make", [via_svi, via_vbem])
def test_methods_with_a_posterior_give_its_draws(make: Callable[[], Any]) -> None:
    fit = make()
    tree = fit.to_arviz(draws=8, seed=1)
    drawn = fit.posterior_samples(8, seed=1)
    rates: Tensor = drawn["rates"]
    assert np.array_equal(group(tree, "posterior")["rates"].values[0], rates.numpy())
    params = {name: drawn[name][7] for name in fit.params}
    rows = LogEvidence.of(fit.plan).rows(params)
    assert np.array_equal(group(tree, "log_likelihood")["x"].values[0, 7], rows.numpy())


def test_chains_stay_chains() -> None:
    method = NUTS(poisson_mixture, draws=6, warmup=4, chains=2, seed=0)
    fit = method.fit(COUNTS, components=2)
    tree = fit.to_arviz(draws=3, seed=1)
    rates = group(tree, "posterior")["rates"]
    assert rates.dims == ("chain", "draw", "components")
    assert np.array_equal(rates.values, fit.draws["rates"][:, [0, 2, 5]].numpy())
    params = {name: value[1, 5] for name, value in fit.draws.items()}
    rows = LogEvidence.of(fit.plan).rows(params)
    assert np.array_equal(group(tree, "log_likelihood")["x"].values[1, 2], rows.numpy())


def test_a_column_may_be_called_like_a_dim() -> None:
    frame = pd.DataFrame({"column": [0.1, 0.2, 3.0, 3.1, 0.3], "data": [1.0, 1.1, 5.0, 5.2, 1.2]})
    tree = EM(gaussian_mixture, seed=0).fit(frame, components=1).to_arviz(draws=2, seed=0)
    assert group(tree, "observed_data")["column"].values.tolist() == ["column", "data"]


def test_without_arviz_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match="to_arviz needs ArviZ"):
        EM(poisson_mixture, seed=0).fit(COUNTS, components=2).to_arviz(draws=2)


def test_both_ways_in_which_arviz_takes_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later:
        """ArviZ from version 1 on."""

        @staticmethod
        def from_dict(data: Any, *, coords: Any = None, dims: Any = None) -> Any:
            return data, coords, dims

    monkeypatch.setattr(arviz_groups, "_arviz", lambda: Later)
    fit = EM(poisson_mixture, seed=0).fit(COUNTS, components=2)
    data, coords, dims = fit.to_arviz(draws=2, seed=0)
    assert set(data) == GROUPS
    assert coords["components"] == [0, 1]
    assert dims["rates"] == ["components"]
