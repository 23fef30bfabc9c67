"""What is shown of models with Gaussian latents: tables, criteria, pictures, files."""

from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM, Fit
from ember.inference.command_line.output_files import assigned_rows
from ember.inference.reports.drawing.effects import INTERVAL
from ember.models import (
    factor_analysis,
    linear_mixed_model,
    local_level,
    local_linear_trend,
    mixture_of_factor_analysers,
    probabilistic_pca,
)
from tests.inference.overlaps import overlapping_texts

GAUSSIAN: Any = {"integrate": "gaussian"}
RNG = torch.Generator().manual_seed(1)
GROUP = torch.arange(40) % 8
X = torch.randn(40, generator=RNG, dtype=torch.float64)
Y = 1.0 + X + 0.7 * GROUP + 0.4 * torch.randn(40, generator=RNG, dtype=torch.float64)
ROWS = torch.randn(60, 2, generator=RNG).double() @ torch.randn(2, 5, generator=RNG).double()
ROWS = ROWS + 0.4 * torch.randn(60, 5, generator=RNG).double()
SERIES = torch.cumsum(0.5 * torch.randn(20, generator=RNG).double(), 0)
SERIES = SERIES + 0.5 * torch.randn(20, generator=RNG).double()
SERIES[7] = torch.nan


@pytest.fixture(scope="module")
def effects() -> Fit:
    design = torch.stack([torch.ones_like(X), X], -1)
    return EM(linear_mixed_model, seed=0).fit(Y, X, groups={"id": GROUP}, design={"id": design})


@pytest.fixture(scope="module")
def factors() -> Fit:
    frame = pd.DataFrame(ROWS.numpy(), columns=list("abcde"))
    return EM(factor_analysis, seed=0).fit(frame, 2)


@pytest.fixture(scope="module")
def mixture() -> Fit:
    return EM(mixture_of_factor_analysers, seed=0).fit(ROWS, components=2, factors=2)


@pytest.fixture(scope="module")
def chain() -> Fit:
    return EM(local_linear_trend, seed=0).fit(SERIES)


# -- the plan --------------------------------------------------------------------------------------


def test_the_plan_says_how_latents_are_integrated() -> None:
    table = EM(linear_mixed_model).explain(Y, X, groups=GROUP).set_index("site")
    latent, data = table.loc["group_effects"], table.loc["y"]
    assert latent["role"] == "latent"
    assert latent["E-step"] == "integrated exactly (Gaussian: 8 blocks of 1 entry)"
    assert (latent["M-step"], latent["why"]) == ("closed form", "marked integrate='gaussian'")
    assert data["role"] == "observed"
    wanted = "sufficient statistics of Normal, completed by moments of 'group_effects'"
    assert (data["M-step"], data["why"]) == ("closed form", wanted)
    assert table.loc["group_variance", "M-step"] == "closed form"


def test_the_plan_names_discrete_latents_beside() -> None:
    table = EM(mixture_of_factor_analysers).explain(ROWS, components=2, factors=1)
    row = table.set_index("site").loc["factors"]
    assert str(row["E-step"]).endswith("given 'assignment'")
    assert row["M-step"] == "-"  # its prior has no parameters


def test_the_plan_shows_a_chain_in_one_row() -> None:
    table = EM(local_level).explain(SERIES).set_index("site")
    assert table.loc["level_1 ... level_19", "role"] == "latent"
    assert str(table.loc["y_0 ... y_19", "why"]).endswith("'level'; 1 of 20 entries missing")


# -- criteria --------------------------------------------------------------------------------------


def test_rotations_of_factors_are_no_free_parameters(factors: Fit, mixture: Fit) -> None:
    assert factors.n_parameters == 5 * 2 + 5 + 5 - 1
    assert EM(factor_analysis, max_iter=1, tol=0).fit(ROWS, 3).n_parameters == 15 + 5 + 5 - 3
    assert EM(factor_analysis, max_iter=1, tol=0).fit(ROWS, 1).n_parameters == 5 + 5 + 5
    assert EM(probabilistic_pca, max_iter=1, tol=0).fit(ROWS, 2).n_parameters == 10 + 5 + 1 - 1
    assert mixture.n_parameters == 1 + 2 * (10 + 5 + 5 - 1)
    assert factors.n_observations == 60


def test_effects_are_no_parameters_and_gaps_no_observations(effects: Fit, chain: Fit) -> None:
    assert effects.n_parameters == 2 + 1 + 3
    assert effects.n_observations == 40
    assert effects.icl == effects.bic
    assert chain.n_parameters == 3
    assert chain.n_observations == 19
    wanted = -2.0 * chain.log_likelihood + 3 * float(torch.tensor(19.0).log())
    assert chain.bic == pytest.approx(wanted, rel=1e-6)


def test_reports_hold_parameters_only(effects: Fit) -> None:
    assert "id_effects" not in str(effects)
    assert list(effects.summary().index)[:3] == ["coefficients[0]", "coefficients[1]", "variance"]


def test_computed_values_that_follow_a_latent_are_left_out() -> None:
    def model(y: Tensor) -> None:
        spread = pyro.param("spread", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.deterministic("variance", spread**2)
        with pyro.plate("groups", 8):
            u = pyro.sample("u", dist.Normal(0.0, spread), infer=GAUSSIAN)
        pyro.deterministic("largest", u.max())
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(u[GROUP], 1.0), obs=y)

    fit = EM(model, "mle").fit(Y)
    assert set(fit.deterministic) == {"variance"}


# -- options about discrete latents ----------------------------------------------------------------


def test_options_about_discrete_latents_are_refused_where_there_are_none() -> None:
    for option in ({"assignment": "hard"}, {"anneal": (0.5,)}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}=.*'group_effects' is "):
            EM(linear_mixed_model, **option).fit(Y, X, groups=GROUP)


def test_classification_beside_gaussian_latents_never_falls() -> None:
    em = EM(mixture_of_factor_analysers, assignment="hard", seed=0)
    fit = em.fit(ROWS, components=2, factors=1)
    assert float(fit.history.diff().min()) > -1e-9
    # What it climbs is the largest term of each row's sum over the components.
    assert float(fit.history[-1]) < fit.log_posterior
    annealed = EM(mixture_of_factor_analysers, anneal=(0.3, 0.6), seed=0)
    assert annealed.fit(ROWS, components=2, factors=1).converged


# -- pictures --------------------------------------------------------------------------------------


def test_effects_are_drawn_in_order_with_intervals(effects: Fit) -> None:
    figure: Any = effects.plot()
    assert overlapping_texts(figure) == []
    first, second, fitted = figure.axes
    found = effects.posterior("id_effects")
    order = found.mean[:, 0].argsort()
    for k, axes in enumerate((first, second)):
        assert axes.get_xlabel() == f"id_effects[{k}]"
        points = axes.lines[1]
        np.testing.assert_allclose(points.get_xdata(), found.mean[order, k])
        ends = np.array([line[:, 0] for line in axes.collections[0].get_segments()])
        half = INTERVAL * found.stddev[order, k]
        np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2.0 * half)
    labels = [text.get_text() for text in first.get_yticklabels()]
    assert labels == [str(int(level)) for level in order]
    points = fitted.lines[0]
    np.testing.assert_allclose(points.get_xdata(), effects.predictive().mean)
    np.testing.assert_allclose(points.get_ydata(), Y)


def test_loadings_are_drawn_with_the_names_of_columns(factors: Fit) -> None:
    figure: Any = factors.plot()
    assert overlapping_texts(figure) == []
    table, scores, *_ = (axes for axes in figure.axes if axes.get_label() != "<colorbar>")
    np.testing.assert_allclose(table.images[0].get_array(), factors.params["loadings"])
    assert [text.get_text() for text in table.get_yticklabels()] == list("abcde")
    mean = factors.posterior("factors").mean
    np.testing.assert_allclose(scores.lines[0].get_xydata(), mean)


def test_loadings_of_a_mixture_are_drawn_by_component(mixture: Fit) -> None:
    figure: Any = mixture.plot()
    assert overlapping_texts(figure) == []
    tables = [axes for axes in figure.axes if axes.images]
    for k, axes in enumerate(tables):
        assert axes.get_title() == f"assignment {k}"
        np.testing.assert_allclose(axes.images[0].get_array(), mixture.params["loadings"][k])
    assert len(tables) == 2
    scores = next(axes for axes in figure.axes if axes.get_xlabel().startswith("factors[0]: "))
    drawn = sum(len(line.get_xdata()) for line in scores.lines[:2])
    assert drawn == 60


def test_paths_are_drawn_with_bands_and_data(chain: Fit) -> None:
    figure: Any = chain.plot()
    assert overlapping_texts(figure) == []
    level, slope = figure.axes
    assert (level.get_ylabel(), slope.get_ylabel()) == ("y (points), level", "slope")
    points, path = level.lines
    np.testing.assert_allclose(points.get_ydata(), SERIES)
    found = chain.posterior("level")
    np.testing.assert_allclose(path.get_ydata(), found.mean)
    band = level.collections[0].get_paths()[0].get_extents()
    low = (found.mean - INTERVAL * found.stddev).min()
    assert band.y0 == pytest.approx(float(low))
    assert len(slope.lines) == 1


# -- files -----------------------------------------------------------------------------------------


def test_files_hold_means_and_deviations_by_row(factors: Fit, mixture: Fit) -> None:
    table = pd.DataFrame(ROWS.numpy(), columns=list("abcde"))
    written, found = assigned_rows(factors, table), factors.posterior("factors")
    np.testing.assert_allclose(written["factors_1"], found.mean[:, 1])
    np.testing.assert_allclose(written["factors_1_stddev"], found.stddev[:, 1])
    both = assigned_rows(mixture, table)
    assert {"assignment", "assignment_probability_1", "factors_0"} <= set(both.columns)
    fit = EM(local_level).fit(SERIES)
    series = assigned_rows(fit, pd.DataFrame({"y": SERIES.numpy()}))
    np.testing.assert_allclose(series["level"], fit.posterior("level").mean)
