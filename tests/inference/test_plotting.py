"""The pictures show what was fitted; what they draw is checked, not how it looks."""

import dataclasses

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.patches import Ellipse
from torch import Tensor

from ember.inference import EM, SVI, compare
from ember.inference.comparison import Method
from ember.models import gaussian_mixture, hidden_markov_gaussian, poisson_mixture
from tests.inference.catalogue import CASES
from tests.inference.overlaps import overlapping_texts

X = CASES[0][1]


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_two_dimensions_are_drawn_with_the_ellipses_of_the_components(covariance: str) -> None:
    fit = EM(gaussian_mixture, seed=0)
    found = compare([fit], X, components=2, covariance=covariance)
    params = found.params["EM (MAP)"]
    ellipses = [p for p in found.plot().axes[0].patches if isinstance(p, Ellipse)]
    centres = torch.tensor(np.array([ellipse.center for ellipse in ellipses]))
    torch.testing.assert_close(centres, params["locs"])
    precisions = params["precisions"]
    if covariance == "spherical":
        areas = 1.0 / precisions
    elif covariance == "diag":
        areas = precisions.prod(-1) ** -0.5
    else:
        areas = torch.linalg.det(precisions).expand(2) ** -0.5
    drawn = torch.tensor([e.width * e.height for e in ellipses], dtype=torch.float64)
    torch.testing.assert_close(drawn, 16.0 * areas)


def test_one_dimension_is_drawn_with_the_fitted_density() -> None:
    table = pd.DataFrame({"wait": X[:, 0].numpy()})
    found = compare([EM(gaussian_mixture, seed=0)], table, components=2)
    axes = found.plot().axes[0]
    assert axes.get_xlabel() == "wait"
    grid, density = axes.lines[0].get_data()
    params = found.params["EM (MAP)"]
    sd = params["precisions"].reshape(-1) ** -0.5
    normal = torch.distributions.Normal(params["locs"].reshape(-1), sd)
    exact = normal.log_prob(torch.tensor(np.asarray(grid)).unsqueeze(-1)).exp() @ params["weights"]
    np.testing.assert_allclose(np.asarray(density, dtype=float), exact, rtol=1e-10)
    bars = sum(bar.get_width() * bar.get_height() for bar in axes.patches)  # type: ignore[attr-defined]
    assert bars == pytest.approx(1.0)


def test_counts_are_drawn_with_their_probabilities() -> None:
    x = next(case[1] for case in CASES if case[0] == "poisson_mixture")
    found = compare([EM(poisson_mixture, seed=0)], x, components=2)
    axes = found.plot().axes[0]
    grid, density = axes.lines[0].get_data()
    params = found.params["EM (MAP)"]
    poisson = torch.distributions.Poisson(params["rates"])
    exact = poisson.log_prob(torch.tensor(np.asarray(grid)).unsqueeze(-1)).exp() @ params["weights"]
    np.testing.assert_allclose(np.asarray(density, dtype=float), exact, rtol=1e-10)


def test_a_model_of_ones_own_with_other_names_is_drawn_as_well() -> None:
    def model(y: Tensor) -> None:
        share = pyro.sample("share", dist.Dirichlet(torch.full((2,), 2.0)))
        with pyro.plate("groups", 2):
            prior = dist.Normal(0.0, 10.0).expand([y.shape[1]]).to_event(1)
            middle = pyro.sample("middle", prior)
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Categorical(share))
            pyro.sample("y", dist.Normal(middle[z], 1.0).to_event(1), obs=y)

    two = compare([EM(model, seed=0)], X)
    data, _ = two.plot().axes
    assert (data.get_xlabel(), data.get_ylabel()) == ("y[0]", "y[1]")
    ellipses = [p for p in data.patches if isinstance(p, Ellipse)]
    centres = torch.tensor(np.array([ellipse.center for ellipse in ellipses]))
    torch.testing.assert_close(centres, two.params["EM (MAP)"]["middle"])
    assert [size for e in ellipses for size in (e.width, e.height)] == pytest.approx([4.0] * 4)
    three = torch.cat([X, X[:, :1]], 1)
    assert len(compare([EM(model, seed=0)], three).plot().axes) == 1  # nothing to draw in 3-D


def test_a_single_fit_is_shown_by_its_iterations() -> None:
    x = next(case[1] for case in CASES if case[0] == "hidden_markov_gaussian")
    found = compare([EM(hidden_markov_gaussian, seed=0)], x, states=2)
    (axes,) = found.plot().axes
    (fit,) = found.fits.values()
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), range(fit.iterations + 1))
    assert axes.get_xlabel().startswith("iteration")


def test_fits_stand_on_an_axis_of_decades_only_if_they_differ_by_as_much() -> None:
    x = next(case[1] for case in CASES if case[0] == "poisson_mixture")
    found = compare([EM(poisson_mixture, seed=0), EM(poisson_mixture, seed=0)], x, components=2)
    (first, fit), (second, other) = found.fits.items()
    times = torch.linspace(0.1, 0.15, len(fit.times))
    for ratio, scale in ((2.0, "linear"), (100.0, "log")):
        found.fits[first] = dataclasses.replace(fit, times=times)
        found.fits[second] = dataclasses.replace(other, times=ratio * times)
        assert found.plot().axes[-1].get_xscale() == scale


def test_each_method_has_its_colour_and_its_place_in_the_legend() -> None:
    methods: list[Method] = [
        EM(gaussian_mixture, "mle", seed=0),
        EM(gaussian_mixture, seed=0),
        SVI(gaussian_mixture, steps=60, seed=0),
        SVI(gaussian_mixture, "normal", steps=60, seed=0),
    ]
    found = compare(methods, X, components=2)
    figure = found.plot()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(found.fits)
    assert len({str(line.get_color()) for line in legend.get_lines()}) == 4
    assert len({str(line.get_linestyle()) for line in legend.get_lines()}) > 1
    assert overlapping_texts(figure) == []
    # EM (MAP) and SVI (AutoDelta) climb one density: their gaps are to one and the same top.
    curves = figure.axes[1].lines[::2]
    top = max(found.fits[name].log_posterior for name in ("EM (MAP)", "SVI (AutoDelta)"))
    for i, name in ((1, "EM (MAP)"), (2, "SVI (AutoDelta)")):
        gap = np.maximum(top - found.fits[name].history.numpy(), 1e-6)
        np.testing.assert_allclose(np.asarray(curves[i].get_ydata()), gap, rtol=1e-3, atol=2e-6)
