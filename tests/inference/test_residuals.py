"""Residuals and their picture, against distribution functions written out here."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from torch.distributions import Normal

from ember.inference import EM, Fit
from ember.models import (
    gaussian_mixture,
    generalised_linear_mixed_model,
    hidden_markov_gaussian,
    latent_profile,
    linear_mixed_model,
    regression_mixture,
    student_t_regression,
)
from tests.inference.overlaps import overlapping_texts

RNG = np.random.default_rng(3)
X = torch.tensor(RNG.normal(size=200))
FIRST = torch.tensor(RNG.random(200) < 0.4)
Y = torch.where(FIRST, 2.0 + 3.0 * X, -1.0 - X) + 0.5 * torch.tensor(RNG.normal(size=200))
COUNTS = torch.poisson((0.5 + 0.6 * X).exp(), generator=torch.Generator().manual_seed(0))
GROUP = torch.arange(200) % 10


def drawn(fit: Fit) -> Any:
    figure = fit.plot_residuals()
    assert overlapping_texts(figure) == []
    return figure


def test_of_a_mixture_of_regressions() -> None:
    fit = EM(regression_mixture, "mle", seed=0).fit(Y, X, components=2)
    line = fit.params["coefficients"][:, 0] + X.unsqueeze(-1) * fit.params["coefficients"][:, 1]
    below = Normal(line, fit.params["precisions"].rsqrt()).cdf(Y.unsqueeze(-1))
    wanted = scipy.stats.norm.ppf((below @ fit.params["weights"]).numpy())
    found = fit.residuals()
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8)
    left, right = drawn(fit).axes
    np.testing.assert_allclose(left.lines[1].get_xdata(), line @ fit.params["weights"])
    np.testing.assert_allclose(left.lines[1].get_ydata(), found)
    np.testing.assert_allclose(right.lines[1].get_ydata(), found.sort().values)
    assert scipy.stats.kstest(found.numpy(), "norm").pvalue > 0.05  # the model is right


def test_of_one_regression_they_are_in_its_deviations() -> None:
    fit = EM(regression_mixture, "mle", seed=0).fit(Y, X, components=1)
    (a, b), precision = fit.params["coefficients"][0], fit.params["precisions"]
    torch.testing.assert_close(fit.residuals(), (Y - a - b * X) * precision.sqrt())
    assert float(fit.residuals().square().mean()) == pytest.approx(1.0)  # at the maximum


def test_of_effects_they_are_about_fitted_values() -> None:
    y = (Y + GROUP).masked_fill(GROUP == 3, torch.nan).masked_fill(torch.arange(200) > 50, 1.0)
    y = torch.where(torch.arange(200) > 50, Y + GROUP, y)
    fit = EM(linear_mixed_model, "mle").fit(y, X, groups=GROUP)
    wanted = (y - fit.predictive().mean) / fit.params["variance"].sqrt()
    torch.testing.assert_close(fit.residuals(), wanted, equal_nan=True)
    points = drawn(fit).axes[0].lines[1].get_xdata()
    assert len(points) == int((~y.isnan()).sum()) < 200


def test_of_counts_they_lie_within_their_steps() -> None:
    fit = EM(regression_mixture, "mle", seed=0).fit(COUNTS, X, components=1, family="poisson")
    a, b = fit.params["coefficients"][0]
    poisson = scipy.stats.poisson((a + b * X).exp().numpy())
    found, again = fit.residuals(seed=1), fit.residuals(seed=2)
    share = scipy.stats.norm.cdf(found)
    assert (share <= poisson.cdf(COUNTS) + 1e-12).all()
    assert (share >= poisson.cdf(COUNTS - 1) - 1e-12).all()
    assert not torch.equal(found, again)
    assert torch.equal(found, fit.residuals(seed=1))


def test_yes_and_no_are_calibrated() -> None:
    won = pd.Series(np.where(RNG.random(200) < 1 / (1 + np.exp(-X.numpy())), "yes", "no"), name="w")
    fit = EM(regression_mixture, "mle", seed=0).fit(won, X, components=1, family="logistic")
    left = drawn(fit).axes[0]
    expected, share = left.lines[1].get_data()
    a, b = fit.params["coefficients"][0]
    chances, seen = torch.sigmoid(a + b * X).sort(), torch.tensor((won == "yes").to_numpy())
    np.testing.assert_allclose(expected, chances.values.reshape(10, 20).mean(1))
    np.testing.assert_allclose(share, seen[chances.indices].double().reshape(10, 20).mean(1))
    assert left.get_ylabel() == "share of w = yes"


def test_of_mixtures_and_of_several_sites() -> None:
    fit = EM(gaussian_mixture, "mle", seed=0).fit(Y.unsqueeze(-1), components=2)
    normal = Normal(fit.params["locs"][:, 0], fit.params["precisions"].reshape(-1).rsqrt())
    below = normal.cdf(Y.unsqueeze(-1)) @ fit.params["weights"]
    torch.testing.assert_close(fit.residuals(), torch.special.ndtri(below))
    data = {"continuous": Y.unsqueeze(-1), "counts": COUNTS.unsqueeze(-1)}
    several = EM(latent_profile, seed=0).fit(data, components=2)
    assert set(several.residuals()) == {"continuous", "counts"}
    assert len(drawn(several).axes) == 4


def test_of_counts_with_effects_of_groups() -> None:
    groups, family = {"g": GROUP}, "poisson"
    fit = EM(generalised_linear_mixed_model, "mle").fit(COUNTS, X, groups=groups, family=family)
    a, b = fit.params["coefficients"]
    rates = (a + b * X + fit.posterior("g_effects").mean[GROUP]).exp()
    left = drawn(fit).axes[0].lines[1]
    np.testing.assert_allclose(left.get_xdata(), rates)
    share = scipy.stats.norm.cdf(left.get_ydata())
    assert (share <= scipy.stats.poisson.cdf(COUNTS, rates) + 1e-12).all()
    assert (share >= scipy.stats.poisson.cdf(COUNTS - 1, rates) - 1e-12).all()


@pytest.mark.parametrize(
    "fit",
    [
        lambda: EM(student_t_regression).fit(Y, X),  # its scales have conjugate priors
        lambda: EM(hidden_markov_gaussian).fit(Y[:40].unsqueeze(-1), 2),
        lambda: EM(gaussian_mixture).fit(torch.stack([X, Y], -1), components=1),
    ],
)
def test_where_there_are_none(fit: Any) -> None:
    with pytest.raises(ValueError, match="residuals are of single numbers"):
        fit().plot_residuals()
