"""What a fit says about Gaussian latents, against the joint distribution taken as a whole."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ember.inference import EM, Fit
from ember.inference.queries.gaussian.moments import check_joint
from ember.models import (
    factor_analysis,
    linear_mixed_model,
    local_level,
    local_linear_trend,
    mixture_of_factor_analysers,
    poisson_mixture,
)
from tests.inference.dense_gaussian import Dense, dense
from tests.inference.straight_growth import growth, marginal, measured

GAUSSIAN: Any = {"integrate": "gaussian"}
NAN = torch.nan
DRAWS = 4000
RNG = torch.Generator().manual_seed(3)
GROUP, OTHER = torch.arange(24) % 5, (7 * torch.arange(24)) % 3
X = torch.randn(24, generator=RNG, dtype=torch.float64)
Y = 1.0 + X + 0.5 * GROUP + 0.4 * torch.randn(24, generator=RNG, dtype=torch.float64)
ROWS = torch.randn(5, 3, generator=RNG, dtype=torch.float64)
MANY = torch.randn(40, 2, generator=RNG).double() @ torch.randn(2, 5, generator=RNG).double()
MANY = MANY + 0.3 * torch.randn(40, 5, generator=RNG).double()
FIXED = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.0, 0.4]], dtype=torch.float64)
SERIES = torch.tensor([1.0, 1.4, 0.9, NAN, 2.2, 2.1, 3.0, 2.4], dtype=torch.float64)


def nested(y: Tensor) -> None:
    """Schools in districts: two latents, and both in one component."""
    mean = pyro.param("mean", torch.tensor(0.5))
    spread = pyro.param("spread", torch.tensor(0.7), constraint=dist.constraints.positive)
    noise = pyro.param("noise", torch.tensor(0.5), constraint=dist.constraints.positive)
    with pyro.plate("districts", 2):
        district = pyro.sample("district", dist.Normal(mean, 1.0), infer=GAUSSIAN)
    with pyro.plate("schools", 5):
        parent = torch.tensor([0, 0, 1, 1, 1])
        school = pyro.sample("school", dist.Normal(district[parent], spread), infer=GAUSSIAN)
    with pyro.plate("pupils", len(y)):
        pyro.sample("y", dist.Normal(school[GROUP], noise), obs=y)


def vectors(y: Tensor) -> None:
    """Rows that are multivariate normal about a line through hidden numbers."""
    deviations = pyro.param("deviations", torch.ones(2), constraint=dist.constraints.positive)
    noise = pyro.param("noise", torch.eye(3), constraint=dist.constraints.positive_definite)
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, deviations).to_event(1), infer=GAUSSIAN)
        location = z @ FIXED.T
        pyro.sample("y", dist.MultivariateNormal(location, noise), obs=y)


@dataclass(frozen=True)
class Case:
    """A model, its data, its Gaussian latents and, if it has one, its discrete latent."""

    model: Callable[..., None]
    args: tuple[Any, ...]
    latents: tuple[str, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    discrete: str | None = None


STEPS = tuple(f"level_{t}" for t in range(8))
CASES = {
    "intercepts": Case(linear_mixed_model, (Y, X), ("group_effects",), {"groups": GROUP}),
    "slopes": Case(
        linear_mixed_model, (Y, X), ("id_effects",),
        {"groups": {"id": GROUP}, "design": {"id": torch.stack([torch.ones_like(X), X], -1)}},
    ),
    "crossed": Case(
        linear_mixed_model, (Y, X), ("a_effects", "b_effects"), {"groups": {"a": GROUP, "b": OTHER}}
    ),
    "nested": Case(nested, (Y,), ("district", "school")),
    "factors": Case(factor_analysis, (MANY[:9], 2), ("factors",)),
    "mixture": Case(
        mixture_of_factor_analysers, (ROWS,), ("factors",),
        {"components": 2, "factors": 2}, "assignment",
    ),
    "chain": Case(local_level, (SERIES,), STEPS),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def fitted(request: Any) -> tuple[Case, Fit, Dense]:
    """A few steps from the start are as good as a fit, and far from it too."""
    case = CASES[request.param]
    fit = EM(case.model, seed=0, max_iter=3, tol=0.0).fit(*case.args, **case.kwargs)
    truth = dense(case.model, case.latents, fit.params, *case.args, **case.kwargs)
    return case, fit, truth


def close(found: Tensor, true: Tensor) -> None:
    assert_close(found, true.detach(), rtol=1e-9, atol=1e-9)


def moments_agree(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Draws ``(n, D)`` against their mean and covariance, within five standard errors."""
    variance = covariance.diagonal()
    count = len(draws)
    assert bool(((draws.mean(0) - mean).abs() <= 5.0 * (variance / count).sqrt() + 1e-12).all())
    bound = 5.0 * (3.0 * variance.outer(variance) / count).sqrt()
    assert bool(((draws.T.cov(correction=0) - covariance).abs() <= bound + 1e-12).all())


# -- the posterior ---------------------------------------------------------------------------------


def test_posteriors_are_those_of_the_joint_distribution(fitted: tuple[Case, Fit, Dense]) -> None:
    case, fit, truth = fitted
    for name in case.latents:
        found = fit.posterior(name)
        close(found.mean, truth.mean(name))
        close(found.variance, truth.variance(name))
        close(found.covariance, truth.covariance(name))
        close(found.stddev.square(), truth.variance(name))
        wanted = truth.mean(name)
        close(found.distribution.mean.reshape(wanted.shape), wanted)
        close(found.distribution.variance.reshape(wanted.shape), truth.variance(name))
    if case.discrete is not None:
        close(fit.posterior(case.discrete).probs, truth.marginal(case.discrete))


def test_joint_covariances(fitted: tuple[Case, Fit, Dense]) -> None:
    case, fit, truth = fitted
    if case.discrete is not None:
        with pytest.raises(ValueError, match="between rows are not known beside discrete latents"):
            fit.posterior(case.latents[0]).joint()
        return
    for name in case.latents:
        found, size = fit.posterior(name).joint(), truth.mean(name).numel()
        assert found.shape == (*truth.mean(name).shape, *truth.mean(name).shape)
        close(found.reshape(size, size), truth.cross_covariance(name, name))
    one, other = case.latents[0], case.latents[-1]
    pairs = fit.posterior_pairs((one, other))
    assert pairs.shape == (*truth.mean(one).shape, *truth.mean(other).shape)
    wanted = truth.cross_covariance(one, other)
    close(pairs.reshape(wanted.shape), wanted)


def test_joint_covariances_of_very_many_entries_are_refused() -> None:
    with pytest.raises(ValueError, match="the joint covariance of 'u' has 5,001 rows"):
        check_joint(5001, "'u'")


def test_steps_of_a_chain_are_taken_together(fitted: tuple[Case, Fit, Dense]) -> None:
    case, fit, truth = fitted
    if case.model is not local_level:
        return
    level = fit.posterior("level")
    close(level.mean, truth.flat_mean)
    close(level.covariance.reshape(-1), truth.flat_covariance.diagonal())
    close(level.joint(), truth.flat_covariance)
    lags = fit.posterior_pairs("level")
    assert lags.shape == (7, 1, 1)
    close(lags.reshape(-1), truth.flat_covariance.diagonal(1))


def test_predictions_are_posterior_means(fitted: tuple[Case, Fit, Dense]) -> None:
    case, fit, truth = fitted
    found = fit.predict()
    if case.model is local_level:
        close(found, truth.flat_mean)
        return
    values = found if isinstance(found, dict) else {case.latents[0]: found}
    for name in case.latents:
        close(values[name], truth.mean(name))
    if case.discrete is not None:
        assert torch.equal(values[case.discrete], truth.marginal(case.discrete).argmax(-1))


def test_posteriors_of_other_data() -> None:
    case = CASES["intercepts"]
    fit = EM(case.model, "mle", integrate={"group_effects": "gaussian"}).fit(Y, X, groups=GROUP)
    other = Y[:6] + 1.0, X[:6]
    keywords: dict[str, Any] = {"groups": torch.tensor([0, 1, 0, 1, 2, 2])}
    truth = dense(case.model, case.latents, fit.params, *other, **keywords)
    close(fit.posterior("group_effects", *other, **keywords).mean, truth.mean("group_effects"))
    close(fit.log_prob(*other, **keywords), truth.log_evidence)
    chain = EM(local_level).fit(SERIES)
    assert chain.posterior("level", SERIES[:5]).mean.shape == (5,)
    assert chain.posterior("level", torch.cat([SERIES, SERIES])).mean.shape == (16,)


def test_log_probs_are_by_row_where_rows_are_apart(fitted: tuple[Case, Fit, Dense]) -> None:
    case, fit, truth = fitted
    found = fit.log_prob()
    rows = {"factors": (9,), "mixture": (5,)}
    named = next(name for name, each in CASES.items() if each is case)
    assert found.shape == rows.get(named, ())
    close(found.sum(), truth.log_evidence)


def test_unknown_names_are_refused() -> None:
    fit = EM(local_linear_trend).fit(SERIES)
    with pytest.raises(ValueError, match=r"its latent sites are \['level', 'slope'\]"):
        fit.posterior("season")
    with pytest.raises(ValueError, match="'season' is no Gaussian latent of the model"):
        fit.posterior_pairs(("level_0", "season"))


# -- draws -----------------------------------------------------------------------------------------


def test_draws_have_the_moments_of_the_posterior(fitted: tuple[Case, Fit, Dense]) -> None:
    case, fit, truth = fitted
    draws = fit.latent_samples(DRAWS, seed=0)
    if case.model is local_level:
        flat = draws["level"]
    else:
        flat = torch.cat([draws[name].reshape(DRAWS, -1) for name in case.latents], -1)
    moments_agree(flat, truth.flat_mean.detach(), truth.flat_covariance.detach())
    again = fit.latent_samples(DRAWS, seed=0)
    assert all(torch.equal(draws[name], again[name]) for name in draws)


def test_draws_of_the_model_hold_the_latents() -> None:
    fit = EM(factor_analysis, seed=0).fit(MANY, 2)
    drawn = fit.sample(5000, seed=0)
    assert drawn["factors"].shape == (5000, 2)
    moments_agree(drawn["factors"], torch.zeros(2), torch.eye(2).double())
    loadings, noise = fit.params["loadings"], fit.params["uniquenesses"]
    moments_agree(drawn["x"], fit.params["locs"], loadings @ loadings.T + noise.diag())
    whole = EM(local_level).fit(SERIES).sample(3, seed=0)
    assert whole["level"].shape == whole["y"].shape == (3, 8)


# -- the data --------------------------------------------------------------------------------------


def test_fitted_values_and_their_spread() -> None:
    design = torch.stack([torch.ones_like(X), X], -1)
    gappy = Y.clone()
    gappy[[2, 11]] = NAN
    fit = EM(linear_mixed_model, seed=0).fit(gappy, X, groups={"id": GROUP}, design={"id": design})
    truth = dense(
        linear_mixed_model, ["id_effects"], fit.params, gappy, X,
        groups={"id": GROUP}, design={"id": design},
    )  # fmt: skip
    line = design @ fit.params["coefficients"]

    def location(z: dict[str, Tensor]) -> Tensor:
        return line + (z["id_effects"][GROUP] * design).sum(-1)

    mean = truth.expectation(location)
    variance = truth.expectation(lambda z: (location(z) - mean).square())
    found = fit.predictive()
    close(found.mean, mean)
    close(found.variance, variance + fit.params["variance"])
    filled = fit.impute()
    close(filled[[2, 11]], mean[[2, 11]])
    shown = ~gappy.isnan()
    assert torch.equal(filled[shown], gappy[shown])
    draws = fit.impute(draws=DRAWS, seed=0)[:, [2, 11]]
    across = truth.expectation(lambda z: (location(z) - mean)[2] * (location(z) - mean)[11])
    covariance = torch.diag(found.variance[[2, 11]])
    covariance[0, 1] = covariance[1, 0] = across
    moments_agree(draws, mean[[2, 11]], covariance)


def test_new_rows_stand_beside_those_of_the_fit() -> None:
    fit = EM(linear_mixed_model, seed=0).fit(Y, X, groups=GROUP)
    x, group = torch.tensor([0.1, -1.0, 2.0]).double(), torch.tensor([0, 3, 6])
    effects, params = fit.posterior("group_effects"), fit.params
    line = params["coefficients"][0] + params["coefficients"][1] * x
    for found in (
        fit.predictive(X=x, groups=group),
        fit.predictive(torch.full((3,), NAN), x, groups=group),
    ):
        close(found.mean[:2], line[:2] + effects.mean[group[:2]])
        close(found.variance[:2], effects.variance[group[:2]] + params["variance"])
        close(found.mean[2], line[2])  # a level that the fit has not seen
        close(found.variance[2], params["group_variance"] + params["variance"])
    with pytest.raises(ValueError, match=r"have \[2, 3\] new rows"):
        fit.predictive(X=x, groups=group[:2])
    with pytest.raises(ValueError, match="have no new rows"):
        fit.predictive(intercept=True)


def test_a_series_goes_on() -> None:
    fit = EM(local_level).fit(SERIES)
    level = fit.posterior("level")
    ahead = fit.predictive(torch.full((3,), NAN))
    steps = torch.arange(1.0, 4.0).double() * fit.params["level_variance"]
    close(ahead.mean, level.mean[-1].expand(3))
    close(ahead.variance, level.variance[-1] + steps + fit.params["variance"])
    close(fit.impute()[3], level.mean[3])


def test_data_of_a_mixture_are_mixtures() -> None:
    rows = ROWS.clone()
    rows[1, 2] = NAN
    em = EM(mixture_of_factor_analysers, seed=0, max_iter=3, tol=0.0)
    fitted = em.fit(rows, components=2, factors=1)
    params = fitted.params
    truth = dense(mixture_of_factor_analysers, ["factors"], params, rows, components=2, factors=1)
    state = truth.discrete["assignment"]  # (M, N)
    factors = truth.means.reshape(-1, 5, 1)
    location = params["locs"][state] + (params["loadings"][state] * factors.unsqueeze(-2)).sum(-1)
    mean = torch.einsum("m,mnd->nd", truth.weights, location)
    close(fitted.predictive().mean, mean)
    close(fitted.impute()[1, 2], mean[1, 2])
    blocks = truth.covariances.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    spread = params["loadings"][state].square().squeeze(-1) * blocks
    second = location.square() + spread + params["uniquenesses"][state]
    variance = torch.einsum("m,mnd->nd", truth.weights, second) - mean.square()
    close(fitted.predictive().variance, variance)
    draws = fitted.impute(draws=DRAWS, seed=0)[:, 1, 2:]
    moments_agree(draws, mean[1, 2:].detach(), variance[1, 2:].detach().diag())


def test_vectors_about_hidden_numbers() -> None:
    rows = ROWS.clone()
    fit = EM(vectors, "mle", seed=0).fit(rows)
    truth = dense(vectors, ["z"], fit.params, rows)
    close(fit.posterior("z").covariance, truth.covariance("z"))
    found = fit.predictive()
    close(found.mean, truth.mean("z") @ FIXED.T)
    close(
        found.covariance_matrix,
        FIXED @ truth.covariance("z") @ FIXED.T + fit.params["noise"],
    )


def test_sites_without_gaussian_latents_have_no_such_distribution() -> None:
    fit = EM(poisson_mixture, seed=0).fit(torch.tensor([0.0, 1, 2, 9, 11]), components=2)
    with pytest.raises(ValueError, match="no observed site of the model reads a Gaussian latent"):
        fit.predictive()


# -- fits as objects -------------------------------------------------------------------------------


def test_fits_pickle(fitted: tuple[Case, Fit, Dense]) -> None:
    case, fit, _ = fitted
    if case.model is nested:
        return
    again = pickle.loads(pickle.dumps(fit))
    assert torch.equal(again.posterior(case.latents[0]).mean, fit.posterior(case.latents[0]).mean)
    assert pickle.loads(pickle.dumps(fit.posterior(case.latents[0]))).name == case.latents[0]


def test_rows_are_told_apart_where_a_known_coefficient_is_zero() -> None:
    """A slope that the first occasion does not read belongs to its subject all the same."""
    Y = measured()
    fit = EM(growth, "mle", seed=0).fit(Y)
    dense = marginal(fit.params)
    assert torch.allclose(fit.log_prob(), dense.log_prob(Y), rtol=1e-9)
    assert torch.allclose(fit.log_prob(Y[:3]), dense.log_prob(Y[:3]), rtol=1e-9)
    assert all(bool(e.isfinite().all()) for e in fit.standard_errors(robust=True).values())
