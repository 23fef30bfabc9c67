"""``fit.plot()``: what it draws is checked against the estimates, for every kind of model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Ellipse
from torch import Tensor

from ember.inference import EM, SVI, Fit
from ember.inference.inputs.shelter import sheltered
from ember.inference.inputs.tables import air_quality, law_school_test, old_faithful
from ember.inference.reports.drawing.densities import component_densities
from ember.inference.reports.drawing.emissions import read_emissions
from ember.inference.reports.drawing.palette import STATES
from ember.models import (
    bernoulli_mixture,
    categorical_mixture,
    gaussian_mixture,
    hidden_markov_bernoulli,
    hidden_markov_gaussian,
    hidden_markov_gaussian_mixture,
    hidden_markov_poisson,
    hidden_markov_regression,
    item_response,
    latent_profile,
    multinomial_mixture,
    poisson_mixture,
    regression_mixture,
)
from tests.inference.overlaps import overlapping_texts

RNG = np.random.default_rng(0)
COUNTS = torch.tensor([1.0, 0, 2, 9, 8, 10, 1, 0, 11, 9, 12, 1, 2])
WIDE = pd.DataFrame(
    RNG.normal(size=(90, 7)) + 4.0 * np.repeat(np.eye(3, 7), 30, 0), columns=list("abcdefg")
)
ITEMS = pd.DataFrame(RNG.integers(0, 3, (60, 3)).astype(float), columns=["colour", "size", "form"])
TIMES = np.arange(60.0)
COVARIATES = pd.DataFrame({"age": RNG.normal(size=80), "dose": RNG.normal(size=80)})
RESPONSE = pd.Series(
    np.where(np.arange(80) % 2, 3.0 + 2.0 * COVARIATES["age"], -3.0 + COVARIATES["dose"])
    + 0.1 * RNG.normal(size=80),
    name="yield",
)


def drawn(fit: Fit) -> Any:
    figure = fit.plot()
    assert overlapping_texts(figure) == []
    return figure


def ellipses(axes: Any) -> Tensor:
    return torch.tensor(np.array([p.center for p in axes.patches if isinstance(p, Ellipse)]))


def test_one_column_has_a_weighted_density_for_each_component() -> None:
    fit = EM(gaussian_mixture, seed=0).fit(old_faithful()[["waiting"]], components=2)
    (axes,) = drawn(fit).axes
    assert axes.get_xlabel() == "waiting"
    total, *parts = axes.lines
    grid = torch.tensor(np.asarray(total.get_xdata()))
    sd = fit.params["precisions"].reshape(-1) ** -0.5
    normal = dist.Normal(fit.params["locs"].reshape(-1), sd)
    exact = fit.params["weights"] * normal.log_prob(grid.unsqueeze(-1)).exp()
    for part, truth in zip(parts, exact.T, strict=True):
        # Shares of the rows under the posterior differ from MAP weights by the prior alone.
        np.testing.assert_allclose(part.get_ydata(), truth, rtol=0.02)
    np.testing.assert_allclose(
        total.get_ydata(), sum(np.asarray(p.get_ydata()) for p in parts), rtol=1e-12
    )


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_two_columns_have_an_ellipse_for_each_component(covariance: str) -> None:
    fit = EM(gaussian_mixture, seed=0).fit(old_faithful(), components=2, covariance=covariance)
    figure = drawn(fit)
    (axes,) = figure.axes
    # Each has a white line below its own.
    torch.testing.assert_close(ellipses(axes)[::2], fit.params["locs"])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("eruptions", "waiting")
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    shares = fit.posterior("assignment").probs.mean(0)
    assert texts == [f"assignment {k} ({100 * shares[k]:.0f} %)" for k in range(2)]
    assert sum(len(line.get_xdata()) for line in axes.lines) == 272 + 2


def test_a_few_columns_are_drawn_in_pairs_and_gaps_left_out() -> None:
    fit = EM(gaussian_mixture, seed=0).fit(air_quality(), components=2)
    figure = drawn(fit)
    grid = np.array(figure.axes).reshape(4, 4)
    assert [axes.get_xlabel() for axes in grid[3]] == ["Ozone", "Solar.R", "Wind", "Temp"]
    torch.testing.assert_close(ellipses(grid[3, 0])[::2], fit.params["locs"][:, [0, 3]])
    points = sum(len(line.get_xdata()) for line in grid[3, 0].lines) - 2
    assert points == int(air_quality()[["Ozone", "Temp"]].notna().all(axis=1).sum())


def test_many_columns_are_drawn_in_the_discriminant_plane() -> None:
    fit = EM(gaussian_mixture, seed=0).fit(WIDE, components=3, covariance="tied")
    (axes,) = drawn(fit).axes
    assert axes.get_xlabel().startswith("discriminant 1 (mainly ")
    # There, components have unit variance: an ellipse of two deviations is a circle.
    shapes = [p for p in axes.patches if isinstance(p, Ellipse)]
    assert [size for p in shapes for size in (p.width, p.height)] == pytest.approx([4.0] * 12)
    # Euclidean distances between centres are Mahalanobis distances, three components spanning it.
    centres, locs = ellipses(axes)[::2], fit.params["locs"]
    gap = locs[0] - locs[1]
    exact = (gap @ fit.params["precisions"] @ gap).sqrt()
    torch.testing.assert_close((centres[0] - centres[1]).norm(), exact)


def test_counts_have_their_probabilities_at_whole_numbers() -> None:
    fit = EM(poisson_mixture, seed=0).fit(COUNTS, components=2)
    (axes,) = drawn(fit).axes
    grid = np.asarray(axes.lines[0].get_xdata())
    np.testing.assert_array_equal(grid, np.arange(13.0))
    (emission,) = read_emissions(fit.plan, fit.params, {})
    found = component_densities(emission, 0, torch.tensor(grid))
    exact = dist.Poisson(fit.params["rates"]).log_prob(torch.tensor(grid).unsqueeze(-1)).exp()
    torch.testing.assert_close(found, exact.T)


def test_items_are_a_table_of_probabilities() -> None:
    fit = EM(categorical_mixture, seed=0).fit(ITEMS, components=2)
    figure = drawn(fit)
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image, fit.params["probs"].reshape(2, 9).T)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels[:4] == ["colour = 0", "colour = 1", "colour = 2", "size = 0"]
    yes = EM(bernoulli_mixture, seed=0).fit((ITEMS > 1).astype(float), components=2)
    np.testing.assert_allclose(drawn(yes).axes[0].images[0].get_array(), yes.params["probs"].T)


def test_a_chain_is_drawn_over_time_in_the_colours_of_its_states() -> None:
    series = pd.Series(COUNTS.numpy(), name="quakes")
    fit = EM(hidden_markov_poisson, seed=0).fit(series, states=2)
    data, probabilities = drawn(fit).axes
    assert (data.get_ylabel(), probabilities.get_ylabel()) == ("quakes", "probability")
    path = fit.predict()
    for line in data.lines[1:]:
        k = [to_hex(c) for c in STATES].index(to_hex(line.get_color()))
        if line.get_marker() == "o":
            np.testing.assert_array_equal(line.get_xdata(), (path == k).nonzero().reshape(-1))
        else:
            np.testing.assert_allclose(line.get_ydata(), float(fit.params["rates"][k]), rtol=1e-12)
    area = probabilities.collections[0].get_paths()[0].vertices
    assert area[:, 1].max() == pytest.approx(float(fit.posterior("state").probs[:, 0].max()))


def test_sequences_stand_side_by_side_up_to_their_ends() -> None:
    x = torch.stack([COUNTS, COUNTS.flip(0), COUNTS, COUNTS])
    lengths = torch.tensor([13, 9, 13, 5])
    fit = EM(hidden_markov_poisson, seed=0).fit(x, states=2, lengths=lengths)
    figure = drawn(fit)
    assert len(figure.axes) == 6
    assert figure.axes[0].get_title() == "sequence 0 of 4"
    assert len(figure.axes[1].lines[0].get_xdata()) == 9


@pytest.mark.filterwarnings("ignore:.*not converged")
def test_the_components_of_a_chain_of_mixtures_are_summed_out() -> None:
    fit = EM(hidden_markov_gaussian_mixture, seed=0, max_iter=10).fit(
        old_faithful(), states=2, components=2
    )
    with sheltered():
        (emission,) = read_emissions(fit.plan, fit.params, {})
    torch.testing.assert_close(emission.posterior, fit.posterior("state").probs)
    low, high = fit.params["locs"].amin(1), fit.params["locs"].amax(1)
    means = emission.means.reshape(2, 2)
    assert bool(((low <= means) & (means <= high)).all())
    assert len(drawn(fit).axes) == 3


def looped(x: Tensor) -> None:
    moves = pyro.sample("moves", dist.Dirichlet(2.0 * torch.ones(2, 2)).to_event(1))
    locs = pyro.sample("locs", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    z = torch.tensor(0)
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]))
        pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])


def test_a_loop_is_drawn_as_the_chain_that_it_is() -> None:
    fit = EM(looped, seed=0).fit(torch.tensor([0.1, -0.4, 0.2, 5.1, 5.3, 4.8, 0.3, 0.0]))
    data, probabilities = drawn(fit).axes
    assert len(data.lines[0].get_xdata()) == 8
    assert data.get_ylabel() == "x"
    assert probabilities.get_xlabel() == "step"


def test_a_regression_has_its_lines_among_the_points() -> None:
    fit = EM(regression_mixture, seed=0).fit(RESPONSE, COVARIATES[["age"]], components=2)
    (axes,) = drawn(fit).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("age", "yield")
    lines = [line for line in axes.lines if line.get_linestyle() == "-"][1::2]
    for line, (a, b) in zip(lines, fit.params["coefficients"], strict=True):
        x = torch.tensor(np.asarray(line.get_xdata()))
        np.testing.assert_allclose(line.get_ydata(), a + b * x, rtol=1e-9)


def bands(axes: Any) -> list[Any]:
    """The lower and upper edge of each band, ``(G, 2)``, along its grid."""
    found = []
    for shape in axes.collections:
        points = shape.get_paths()[0].vertices
        half = (len(points) - 1) // 2
        low, high = points[1 : half - 1, 1], points[-3 : half + 1 : -1, 1]
        count = min(len(low), len(high))
        found.append(np.stack([low[:count], high[:count]], -1))
    return found


def test_a_line_has_a_band_as_wide_as_its_formula_says() -> None:
    x = np.linspace(0.0, 4.0, 30)
    y = 1.0 + 0.5 * x + RNG.normal(size=30)
    fit = EM(regression_mixture, "mle", seed=0).fit(y, x, components=1)
    figure: Any = fit.plot(errors=True)
    (axes,) = [axes for axes in figure.axes if axes.lines]
    design = np.stack([np.ones(30), x], -1)
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    inverse = np.linalg.inv(design.T @ design) * (residual**2).mean()
    (band,) = bands(axes)
    ends = np.array([[1.0, x[0]], [1.0, x[-1]]])
    widths = 2 * 1.959964 * np.sqrt(np.einsum("ij,jk,ik->i", ends, inverse, ends))
    assert band[0, 1] - band[0, 0] == pytest.approx(widths[0], rel=0.02)
    assert band[-1, 1] - band[-1, 0] == pytest.approx(widths[1], rel=0.02)
    plain: Any = fit.plot()
    assert not any(axes.collections for axes in plain.axes)


@pytest.mark.thorough
def test_draws_have_bands_too() -> None:
    x = np.linspace(0.0, 4.0, 30)
    y = 1.0 + 0.5 * x + RNG.normal(size=30)
    fit = SVI(regression_mixture, "normal", steps=20, seed=0).fit(y, x, components=1)
    figure: Any = fit.plot(errors=True)
    (band,) = [band for axes in figure.axes for band in bands(axes)]
    assert bool((band[:, 1] > band[:, 0]).all())


def test_bands_of_counts_and_of_items_stay_within_bounds() -> None:
    x = torch.linspace(-2.0, 2.0, 40).double()
    y = torch.poisson((0.5 + x).exp(), generator=torch.Generator().manual_seed(0))
    fit = EM(regression_mixture, seed=0).fit(y, x, components=1, family="poisson")
    figure: Any = fit.plot(errors=True)
    assert all(bool((band > 0.0).all()) for axes in figure.axes for band in bands(axes))
    items: Any = EM(item_response).fit(law_school_test()).plot(errors=True)
    found = bands(items.axes[0])
    assert len(found) == 5
    assert all(bool(((band > 0.0) & (band < 1.0)).all()) for band in found)


def test_each_covariate_has_a_panel_and_points_scatter_as_about_the_whole_line() -> None:
    fit = EM(regression_mixture, seed=0).fit(RESPONSE, COVARIATES, components=2)
    left, right = drawn(fit).axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("age", "dose")
    mean = float(COVARIATES["dose"].mean())
    a, b, c = fit.params["coefficients"][0]
    line = [line for line in left.lines if line.get_linestyle() == "-"][1]
    x = torch.tensor(np.asarray(line.get_xdata()))
    np.testing.assert_allclose(line.get_ydata(), a + b * x + c * mean, rtol=1e-9)
    mine = (fit.predict() == 0).numpy()
    age, dose = COVARIATES["age"][mine], COVARIATES["dose"][mine]
    partial = RESPONSE[mine] - float(c) * (dose - mean)
    np.testing.assert_allclose(left.lines[0].get_xdata(), age)
    np.testing.assert_allclose(left.lines[0].get_ydata(), partial, atol=1e-9)


def flat(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Gamma(2.0, loc.exp()), obs=x)


def profile() -> Fit:
    columns = {
        "continuous": pd.DataFrame(COVARIATES),
        "counts": pd.DataFrame({"n": RNG.poisson(3.0, 80).astype(float)}),
        "nominal": pd.DataFrame({"c": RNG.integers(0, 3, 80).astype(float)}),
    }
    return EM(latent_profile, seed=0).fit(columns, components=2)


@pytest.mark.filterwarnings("ignore:.*not converged")
@pytest.mark.parametrize(
    "fitted",
    [
        profile,
        lambda: EM(flat, seed=0).fit(COUNTS + 1.0),
        lambda: EM(gaussian_mixture, seed=0).fit(WIDE[["a", "b"]], components=9),
        lambda: EM(gaussian_mixture, seed=0, max_iter=5).fit(WIDE, components=1),
        lambda: EM(poisson_mixture, seed=0).fit((WIDE.abs() * 3).round(), components=2),
        lambda: EM(multinomial_mixture, seed=0).fit(torch.ones(6, 5) + torch.eye(6, 5), 2),
        lambda: EM(hidden_markov_gaussian, seed=0).fit(WIDE, states=2),
        lambda: EM(hidden_markov_bernoulli, seed=0, max_iter=20).fit((ITEMS > 1) * 1.0, states=2),
        lambda: EM(hidden_markov_regression, seed=0, max_iter=20).fit(RESPONSE, COVARIATES, 2),
    ],
)
def test_every_kind_of_model_has_a_picture_without_overlapping_texts(
    fitted: Callable[[], Fit],
) -> None:
    figure = drawn(fitted())
    assert figure.axes
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_where_there_is_nothing_to_draw_a_sentence_says_so() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([4]).to_event(1))
        with pyro.plate("rows", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.3))
            b = pyro.sample("b", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(loc[(2 * a + b).long()], 1.0), obs=x)

    with pytest.raises(ValueError, match="nothing to draw: site 'x' depends on several latent"):
        EM(model, seed=0).fit(COUNTS).plot()


def test_item_curves_and_abilities() -> None:
    """A curve for each item, which rises, and below it a bar for every person."""
    answers = law_school_test(7)
    fit = EM(item_response, seed=0).fit(answers)
    top, below = fit.plot().axes
    lines = top.get_lines()
    assert [line.get_label() for line in lines] == [*answers.columns]
    x, y = (np.asarray(values) for values in lines[2].get_data())
    assert (np.diff(y) > 0).all()
    a, d = (float(fit.params[name][2]) for name in ("discriminations", "intercepts"))
    assert y == pytest.approx(1.0 / (1.0 + np.exp(-a * x - d)), abs=2e-3)
    bars: Any = below.patches
    assert sum(bar.get_height() for bar in bars) == len(answers)


def test_levels_rise_to_the_highest() -> None:
    answers = (torch.arange(240).reshape(60, 4) * 7 % 11 % 3).double()
    (top, _) = EM(item_response, seed=0).fit(answers, model="graded").plot().axes
    heights = np.concatenate([np.asarray(line.get_ydata()) for line in top.get_lines()])
    assert 0.0 <= heights.min() <= heights.max() <= 2.0


def test_abilities_of_two_dims_are_points() -> None:
    answers = torch.bernoulli(torch.sigmoid(torch.randn(80, 2) @ torch.randn(2, 6)))
    fit = EM(item_response, seed=0).fit(answers, dimensions=2)
    (axes,) = fit.plot().axes
    points = np.asarray(axes.get_lines()[0].get_xydata())
    assert points == pytest.approx(fit.predict().numpy())


def test_the_way_of_every_start_is_drawn_down_to_the_best() -> None:
    x = torch.cat([torch.randn(20, 1) + 4.0 * k for k in range(5)]).double()
    fit = EM(gaussian_mixture, restarts=8, init="random", seed=0).fit(x, components=5)
    starts = fit.starts
    assert [len(history) > 1 for history in starts.histories] == 8 * [True]
    for history, end in zip(starts.histories, starts.objectives, strict=True):
        assert float(history[-1]) == float(end)
        assert bool((history.diff() >= 0.0).all())
    (axes,) = fit.plot_starts().axes
    ends = [np.asarray(line.get_ydata())[-1] for line in axes.lines]
    assert min(ends) == pytest.approx(1e-6)
    assert axes.get_title() == f"8 starts, {starts.reached} of them at the best objective"
    with pytest.raises(ValueError, match="there was one start only"):
        EM(gaussian_mixture, seed=0).fit(x, components=2).plot_starts()
