"""Regressions switched by a hidden Markov chain: sites, densities, fits against statsmodels."""

import itertools
import re
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor

from ember.inference import EM
from ember.models import hidden_markov_regression

S, T, F, K = 3, 5, 2, 2
NAN = torch.nan


def data(*batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two lines in force for twenty steps each; covariates with a zero here and there."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(*batch, F, generator=generator, dtype=torch.float64)
    X[..., ::7, 0] = 0.0
    turn = torch.arange(batch[-1]) // 20 % 2
    line = torch.where(turn == 0, 1.0 + X @ torch.tensor([1.0, 0.5]).double(), -1.0 - X[..., 0])
    noise = torch.randn(batch, generator=generator, dtype=torch.float64)
    return (line + 0.3 * noise).to(dtype), X.to(dtype)


@pytest.mark.parametrize("batch", [(T,), (S, T)])
@pytest.mark.parametrize("scale", ["free", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sites(
    batch: tuple[int, ...], scale: str, dtype: torch.dtype, check_sites: Any, check_guides: Any
) -> None:
    y, X = data(*batch, dtype=dtype)
    shapes = {
        "coefficients": (K, F + 1),
        "precisions": () if scale == "tied" else (K,),
        "initial": (K,),
        "transition": (K, K),
        "y": batch,
    }
    check_sites(shapes, dtype, hidden_markov_regression, y, X, K, scale=scale)
    if dtype == torch.float32:
        options = {"scale": scale, "lengths": [5, 2, 3] if len(batch) == 2 else None}
        check_guides(hidden_markov_regression, y, X, K, **options)
        check_guides(hidden_markov_regression, y, None, K, **options)


@pytest.mark.parametrize("scale", ["free", "tied"])
@pytest.mark.parametrize("intercept", [True, False])
def test_log_likelihood_equals_brute_force(
    scale: str, intercept: bool, prior_draw: Any, log_likelihood: Any
) -> None:
    y, X = data(S, T)
    y[0, 1] = y[1, 0] = NAN
    lengths = [T, T, 3]
    options = {"scale": scale, "intercept": intercept, "lengths": lengths}
    params = prior_draw(hidden_markov_regression, y, X, K, **options)
    values = {name: value.numpy() for name, value in params.items()}
    total = 0.0
    for row, length in enumerate(lengths):
        design = X[row, :length].numpy()
        design = np.column_stack([np.ones(length), design]) if intercept else design
        lines = design @ values["coefficients"].T
        deviations = np.broadcast_to(values["precisions"] ** -0.5, (K,))
        steps = np.nan_to_num(stats.norm(lines, deviations).logpdf(y[row, :length, None]))
        total += logsumexp([
            np.log(values["initial"][path[0]])
            + sum(np.log(values["transition"][i, j]) for i, j in itertools.pairwise(path))
            + sum(steps[t, z] for t, z in enumerate(path))
            for path in itertools.product(range(K), repeat=length)
        ])  # fmt: skip
    for padding in (5.0, NAN):
        y[2, 3:], X[2, 3:] = padding, padding
        found = log_likelihood(hidden_markov_regression, params, y, X, K, **options)
        assert found.item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("scale", ["free", "tied"])
def test_one_state_is_ordinary_regression(scale: str) -> None:
    y, X = data(2, 30)
    y[0, 3] = y[1, 7] = NAN
    seen = ~y.isnan()
    fit = EM(hidden_markov_regression, "mle", seed=0).fit(y, X, states=1, scale=scale)
    theirs = sm.OLS(y[seen].numpy(), sm.add_constant(X[seen].numpy())).fit()
    np.testing.assert_allclose(fit.params["coefficients"][0], theirs.params, rtol=1e-9)
    assert fit.log_likelihood == pytest.approx(theirs.llf, rel=1e-10)
    assert float(fit.params["precisions"].sum()) == pytest.approx(
        len(theirs.resid) / theirs.ssr, rel=1e-9
    )


@pytest.mark.parametrize("scale", ["free", "tied"])
def test_statsmodels_has_the_same_likelihood_and_optimum(scale: str) -> None:
    """Its chains start in their stationary distribution."""
    y, X = data(100)
    fit = EM(hidden_markov_regression, "mle", seed=0, restarts=4, tol=1e-10).fit(
        y, X, states=K, scale=scale, stationary=True
    )
    theirs = sm.tsa.MarkovRegression(
        y.numpy(), K, exog=X.numpy(), switching_variance=scale == "free"
    )
    move, beta = fit.params["transition"], fit.params["coefficients"]
    variances = 1.0 / fit.params["precisions"].reshape(-1)
    point = torch.cat([move[:, 0], beta.T.reshape(-1), variances]).numpy()
    assert theirs.loglike(point) == pytest.approx(fit.log_likelihood, rel=1e-9)
    smoothed = theirs.smooth(point).smoothed_marginal_probabilities
    np.testing.assert_allclose(fit.posterior("state").probs, smoothed, atol=1e-8)
    best = theirs.fit(start_params=point, disp=False)
    assert fit.log_likelihood >= best.llf - 1e-6


@pytest.mark.parametrize("sequences", [1, 4])
def test_the_update_is_weighted_least_squares(sequences: int) -> None:
    y, X = data(sequences, 40)
    if sequences == 1:
        y, X = y[0], X[0]
    em = EM(hidden_markov_regression, seed=0)
    rows = [line.split() for line in str(em.explain(y, X, states=K)).splitlines()]
    assert {r[0] for r in rows if "closed" in r} >= {"coefficients", "precisions", "transition"}
    fit = EM(hidden_markov_regression, "mle", seed=0, tol=1e-12).fit(y, X, states=K)
    weights = fit.posterior("state").probs.reshape(-1, K)
    for k in range(K):
        theirs = sm.WLS(
            y.reshape(-1).numpy(), sm.add_constant(X.reshape(-1, F).numpy()), weights[:, k].numpy()
        ).fit()
        np.testing.assert_allclose(fit.params["coefficients"][k], theirs.params, rtol=1e-5)
        spread = theirs.ssr / float(weights[:, k].sum())
        assert 1.0 / float(fit.params["precisions"][k]) == pytest.approx(spread, rel=1e-5)


Y, COVARIATES = data(2, 6)
ERRORS: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    (Y.numpy(), COVARIATES, {}, TypeError, "`y` must be a torch.Tensor"),
    (Y.long(), COVARIATES, {}, TypeError, "`y` must have a floating dtype"),
    (Y, COVARIATES[:, :3], {}, ValueError, "`X` has shape (2, 3, 2) but `y` has (2, 6)"),
    (Y, COVARIATES[0, :, 0], {}, ValueError, "`X` must have shape (S, T) or (S, T, F)"),
    (Y, COVARIATES * NAN, {}, ValueError, "`X` has 24 NaN or infinite value(s)"),
    (Y, None, {"intercept": False}, ValueError, "nothing to regress on"),
    (Y * NAN, COVARIATES, {}, ValueError, "nothing but NaN"),
    (Y * 0, COVARIATES, {}, ValueError, "`y` is constant"),
    (Y, COVARIATES, {"states": 13}, ValueError, "more than the 12 rows of `y`"),
    (Y, COVARIATES, {"scale": "x"}, ValueError, "`scale` must be one of"),
    (Y, COVARIATES, {"lengths": [6, 7]}, ValueError, "between 1 and the 6 steps of `y`"),
    (Y, COVARIATES, {"prior": {"kappa": 1}}, ValueError, "'mean', 'deviation', 'df', 'scale'"),
]


@pytest.mark.parametrize(("y", "X", "options", "error", "message"), ERRORS)
def test_errors(
    y: Any, X: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        hidden_markov_regression(y, X, **{"states": K, **options})
