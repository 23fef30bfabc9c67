"""Components that collapse or empty: named, survivable, never NaN; MAP does not collapse at all."""

import math
import warnings
from typing import Any

import mpmath
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from ember.models import gaussian_mixture
from ember.models.parts.priors import default_scale


def spread() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    cloud = torch.randn(30, generator=generator, dtype=torch.float64)
    return torch.cat([cloud, torch.full((8,), 6.0, dtype=torch.float64)])


def plane() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    cloud = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    return torch.cat([cloud, torch.full((8, 2), 6.0, dtype=torch.float64)])


def gaussians(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("components", 2):
        precisions = pyro.sample("precisions", dist.Gamma(2.0, 0.5))
        locs = pyro.sample("locs", dist.Normal(0.0, (0.01 * precisions).rsqrt()))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], precisions[z].rsqrt()), obs=x)


def full(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("components", 2):
        precisions = pyro.sample("precisions", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
        prior = dist.MultivariateNormal(torch.zeros(2), precision_matrix=0.01 * precisions)
        locs = pyro.sample("locs", prior)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], precision_matrix=precisions[z]), obs=x)


def poissons(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    rates = pyro.sample("rates", dist.Gamma(2.0, 0.5).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rates[z]), obs=x)


def check_survived(fit: Any) -> None:
    assert all(bool(torch.isfinite(value).all()) for value in fit.params.values())
    assert bool(torch.isfinite(fit.history).all())
    assert bool((fit.history.diff() >= -1e-9 * (1.0 + fit.history[1:].abs())).all())
    assert fit.log_posterior == pytest.approx(float(fit.history[-1]), rel=1e-9)
    rows = fit.log_prob()
    assert bool(torch.isfinite(rows).all())


@pytest.mark.parametrize("accelerate", [None, "auto", "squarem", "anderson"])
@pytest.mark.parametrize("case", ["line", "plane"])
def test_maximum_likelihood_collapses_and_says_where(case: str, accelerate: str | None) -> None:
    model, x = (gaussians, spread()) if case == "line" else (full, plane())
    with pytest.warns(RuntimeWarning, match=r"component \d of site 'precisions'.*collapsed.*map"):
        fit = EM(model, "mle", seed=1, accelerate=accelerate).fit(x)
    check_survived(fit)
    assert not fit.converged
    assert "component" in fit.stop_reason
    assert "precisions" in fit.stop_reason


@pytest.mark.parametrize("case", ["line", "plane"])
def test_map_does_not_collapse(case: str) -> None:
    model, x = (gaussians, spread()) if case == "line" else (full, plane())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = EM(model, seed=1).fit(x)
    assert fit.converged
    check_survived(fit)


@pytest.mark.parametrize("accelerate", [None, "auto"])
def test_a_component_that_starts_far_away_empties(accelerate: str | None) -> None:
    x = spread()
    start = {
        "weights": torch.tensor([0.5, 0.5]),
        "locs": torch.tensor([1.0, 1e6]),
        "precisions": torch.tensor([0.1, 1.0]),
    }
    with pytest.warns(RuntimeWarning, match=r"component 1 of site '\w+'.*(emptied|no observation)"):
        fit = EM(gaussians, "mle", init=start, accelerate=accelerate).fit(x)
    check_survived(fit)
    assert not fit.converged


def test_an_empty_component_is_its_prior_under_map() -> None:
    x = spread()
    start = {
        "weights": torch.tensor([0.5, 0.5]),
        "locs": torch.tensor([1.0, 1e6]),
        "precisions": torch.tensor([0.1, 1.0]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = EM(gaussians, init=start).fit(x)
    check_survived(fit)


def test_constant_data_collapse_at_once() -> None:
    x = torch.full((10,), 2.5, dtype=torch.float64)
    # Under maximum likelihood not even a start has a finite density.
    with pytest.raises(ValueError, match=r"'precisions'.*collapsed"):
        EM(gaussians, "mle", seed=0).fit(x)
    fit = EM(gaussians, seed=0).fit(x)
    assert fit.converged
    check_survived(fit)


def test_zero_counts_only() -> None:
    x = torch.zeros(10, dtype=torch.float64)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        fit = EM(poissons, seed=0).fit(x)
    assert fit.converged
    check_survived(fit)


def test_a_zero_rate_is_a_boundary_not_a_failure() -> None:
    # A zero-inflated start: the rate at 0 explains the zeros and stays there.
    x = torch.tensor([0.0] * 10 + [3.0, 4.0, 5.0, 3.0, 2.0], dtype=torch.float64)
    fit = EM(poissons, "mle", seed=0).fit(x)
    check_survived(fit)
    assert float(fit.params["rates"].min()) < 0.2


def test_an_unbounded_prior_is_named() -> None:
    # A Dirichlet below 1 has no mode at an empty cell.
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 0.1)))
        rates = pyro.sample("rates", dist.Gamma(2.0, 0.5).expand([2]).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rates[z]), obs=x)

    x = torch.tensor([2.0, 3.0, 2.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match=r"'weights'.*at least 1, or .*mle.*unconstrained"):
        fit = EM(model, seed=0).fit(x)
    assert all(bool(torch.isfinite(value).all()) for value in fit.params.values())


def test_the_best_of_several_starts_is_not_the_collapsed_one() -> None:
    x = spread()
    kept = {
        "weights": torch.tensor([0.5, 0.5]),
        "locs": torch.tensor([-0.5, 1.5]),
        "precisions": torch.tensor([0.3, 0.2]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = EM(gaussians, "mle", init=kept, restarts=4, seed=1).fit(x)
    assert len(fit.starts) >= 1
    check_survived(fit)


def test_m_step_by_hand_raises_an_error_that_names_the_component() -> None:
    em = EM(gaussians, "mle")
    x = spread()
    params = {
        "weights": torch.tensor([0.5, 0.5]),
        "locs": torch.tensor([0.0, 6.0]),
        "precisions": torch.tensor([1.0, 1e9]),
    }
    with pytest.raises(ArithmeticError, match="component 1 of site 'precisions'"):
        em.m_step(em.e_step(params, x))


def determined(noise: float) -> tuple[Tensor, Tensor]:
    """Rows whose third column is the sum of the others but for noise; and with noise instead."""
    generator = torch.Generator().manual_seed(0)
    two = torch.randn(100, 2, generator=generator, dtype=torch.float64)
    two[:50] += 3.0
    x = torch.cat([two, two.sum(1, keepdim=True)], 1)
    x[:, 2] += noise * torch.randn(100, generator=generator, dtype=torch.float64)
    rest = (x[:, 2:] - two.sum(1, keepdim=True)) / noise
    return x, torch.cat([two, rest], 1)


@pytest.mark.parametrize("components", [1, 2])
def test_columns_that_all_but_determine_each_other_are_fitted(components: int) -> None:
    # Equivariance: the likelihood is that of the rest in place of the sum, over the noise.
    x, clear = determined(1e-4)
    fit = EM(gaussian_mixture, "mle", seed=0).fit(x, components)
    truth = EM(gaussian_mixture, "mle", seed=0).fit(clear, components)
    assert fit.converged
    expected = truth.log_likelihood - 100 * math.log(1e-4)
    assert fit.log_likelihood == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("components", [1, 2])
def test_columns_that_determine_each_other_are_named_where_rounding_takes_over(
    components: int,
) -> None:
    x, _ = determined(1e-6)
    with pytest.warns(RuntimeWarning, match=r"'precisions' is all but singular .* drop columns"):
        fit = EM(gaussian_mixture, "mle", seed=0).fit(x, components)
    assert bool((fit.history.diff() >= 0).all())
    x, _ = determined(1e-9)
    with pytest.raises(ValueError, match=r"'precisions' has collapsed.*columns that determine"):
        EM(gaussian_mixture, "mle", seed=0).fit(x, components)


@pytest.mark.parametrize("covariance", ["full", "tied"])
@pytest.mark.parametrize("rows", [50, 300, 2000])
def test_a_proper_prior_fits_columns_that_determine_each_other(rows: int, covariance: str) -> None:
    # One component: the mode in closed form, in coordinates in which the columns are independent.
    a = torch.randn(rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.stack([a, 2.0 * a + 1.0], 1)
    fit = EM(gaussian_mixture, seed=0).fit(x, components=1, covariance=covariance)
    assert fit.converged
    with mpmath.workdps(50):
        own = mpmath.matrix(x.tolist())
        mean = mpmath.matrix([mpmath.fsum(own[:, j]) / rows for j in (0, 1)])
        scatter = mpmath.matrix(2, 2)
        for i in range(rows):
            away = own[i, :].T - mean
            scatter += away * away.T
        scale = mpmath.matrix(default_scale(x, torch.ones(rows).double(), 1).tolist())
        # The prior mean is that of the data, so that the location is too.
        precision = (rows + 2 + 2 + 1 - 2 - 1) * (scatter + scale) ** -1
        square = mpmath.fsum((scatter * precision)[j, j] for j in (0, 1))
        density = rows * (mpmath.log(mpmath.det(precision)) - 2 * mpmath.log(2 * mpmath.pi))
        truth = float((density - square) / 2)
    # The likelihood alone is not at its top: the last digits of the precision's entries count.
    assert fit.log_likelihood == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_several_components_of_columns_that_determine_each_other(covariance: str) -> None:
    # Equivariance once more: with (x_1, (x_2 - 2 x_1 - 1) / c) and the prior moved along.
    a = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a[:150] += 4.0
    x = torch.stack([a, 2.0 * a + 1.0], 1)
    fit = EM(gaussian_mixture, seed=0).fit(x, components=2, covariance=covariance)
    assert fit.converged
    scale = default_scale(x, torch.ones(300).double(), 2)
    small = float(torch.linalg.cholesky(scale)[1, 1])
    turn = torch.tensor([[1.0, 0.0], [-2.0 / small, 1.0 / small]], dtype=torch.float64)
    clear = torch.stack([a, (x[:, 1] - 2.0 * a - 1.0) / small], 1)
    moved = turn @ scale @ turn.mT
    prior = {"scale": (moved + moved.mT) / 2, "mean": clear.mean(0)}
    plain = EM(gaussian_mixture, seed=0).fit(clear, 2, covariance=covariance, prior=prior)
    expected = plain.log_likelihood - 300 * math.log(small)
    assert fit.log_likelihood == pytest.approx(expected, rel=1e-6)


def test_far_clusters_are_judged_by_their_own_scale() -> None:
    generator = np.random.default_rng(0)
    x = np.r_[generator.normal(size=50), 1e6 + generator.normal(size=50)][:, None]
    fit = EM(gaussian_mixture, "mle", seed=0).fit(x, components=2)
    variances = [half.astype(np.longdouble).var() for half in (x[:50], x[50:])]
    truth = sum(-25 * (np.log(2 * np.pi * v) + 1) for v in variances) - 100 * np.log(2)
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(float(truth), rel=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_a_cluster_of_equal_rows_collapses_wherever_it_lies(offset: float) -> None:
    x = spread() + offset
    with pytest.warns(RuntimeWarning, match=r"'precisions'.*collapsed"):
        fit = EM(gaussian_mixture, "mle", seed=1).fit(x.unsqueeze(1), components=2)
    assert not fit.converged


def test_advice_is_for_the_objective_at_hand() -> None:
    def model(x: Tensor, concentration: float) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), concentration)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
            scales = pyro.sample("scales", dist.ImproperUniform(constraints.positive, (), ()))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)

    with pytest.warns(RuntimeWarning, match=r"'scales' has collapsed.*give it a prior that rules"):
        EM(model, seed=1).fit(spread(), 2.0)
    with pytest.warns(RuntimeWarning) as caught:
        EM(model, "mle", seed=1).fit(spread(), 2.0)
    assert "objective='map' with a proper prior" in str(caught[0].message)


def test_without_latents_a_collapse_is_told_like_any_other() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    with pytest.warns(RuntimeWarning, match=r"'scale' has collapsed"):
        fit = EM(model, "mle").fit(torch.full((10,), 2.5, dtype=torch.float64))
    assert not fit.converged


def test_a_grid_may_have_more_values_than_there_are_rows() -> None:
    def model(x: Tensor, own: bool) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        locs = pyro.param("locs", torch.arange(10.0)) if own else torch.arange(10.0)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(10) / 10))
            pyro.sample("x", dist.Normal(locs[z], scale), obs=x)

    x = torch.tensor([0.4, 2.7, 3.1, 8.2, 6.6], dtype=torch.float64)

    def negative(log_scale: float) -> float:
        own = scipy.stats.norm.logpdf(x.numpy()[:, None], np.arange(10.0), np.exp(log_scale))
        return -float((scipy.special.logsumexp(own, 1) - np.log(10)).sum())

    best = scipy.optimize.minimize_scalar(negative, bounds=(-4, 2), method="bounded")
    fit = EM(model, "mle", init={"scale": torch.tensor(1.0)}).fit(x, own=False)
    assert fit.log_likelihood == pytest.approx(-best.fun, rel=1e-9)
    with pytest.raises(ValueError, match="latent site 'z' has 10 states"):
        EM(model, "mle").fit(x, own=True)


def sparse_classes(y: Tensor, concentration: float) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), concentration)))
    with pyro.plate("classes", 3):
        rates = pyro.sample("rates", dist.Gamma(2.0, 0.5))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Poisson(rates[z]), obs=y)


@pytest.mark.parametrize("seed", range(4))
def test_a_concentration_below_one_is_named_however_the_fit_ends(seed: int) -> None:
    """Two clusters leave one of three classes nothing: its weight is zero, the density infinite."""
    generator = torch.Generator().manual_seed(seed)
    rates = torch.tensor([1.0, 8.0])[(torch.rand(80, generator=generator) < 0.6).long()]
    y = torch.poisson(rates, generator=generator)
    with pytest.warns(RuntimeWarning, match=r"'weights' has a prior density without bound"):
        fit = EM(sparse_classes, seed=seed).fit(y, concentration=0.5)
    assert not fit.converged
    assert "mode='unconstrained'" in fit.warning
    assert EM(sparse_classes, seed=seed, mode="unconstrained").fit(y, concentration=0.5).converged
