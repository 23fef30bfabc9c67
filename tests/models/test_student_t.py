"""Models with heavy tails: sites, densities, and what outliers do to them."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from ember.inference import EM
from ember.models import gaussian_mixture, student_t_mixture, student_t_regression

N, K = 60, 2
COVARIANCES = ["full", "tied", "diag", "spherical"]

# Brownlee (1965): the loss of ammonia on 21 days; air, water and acid.
LOSS = [42, 37, 37, 28, 18, 18, 19, 20, 15, 14, 14, 13, 11, 12, 8, 7, 8, 8, 9, 15, 15]
PLANT = [
    [80, 80, 75, 62, 62, 62, 62, 62, 58, 58, 58, 58, 58, 58, 50, 50, 50, 50, 50, 56, 70],
    [27, 27, 25, 24, 22, 23, 24, 24, 23, 18, 18, 17, 18, 19, 18, 18, 19, 19, 20, 20, 20],
    [89, 88, 90, 87, 87, 87, 93, 93, 87, 80, 89, 88, 82, 93, 89, 86, 72, 79, 80, 82, 91],
]


def line_data(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    X = np.stack([rng.normal(size=N), 2000 + 10 * rng.normal(size=N)], 1)
    y = 1.0 + X[:, 0] - 0.05 * (X[:, 1] - 2000) + 0.3 * rng.standard_t(3, size=N)
    return torch.from_numpy(y).to(dtype), torch.from_numpy(X).to(dtype)


def clouds(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rng = np.random.default_rng(1)
    centres = np.array([[0.0, 0.0], [6.0, 4.0]])[np.arange(N) % 2]
    return torch.from_numpy(centres + rng.standard_t(4, size=(N, 2))).to(dtype)


# -- sites and densities ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sites(dtype: torch.dtype, check_sites: Any) -> None:
    y, X = line_data(dtype)
    shapes = {"coefficients": (3,), "precision": (), "df": (), "u": (N,), "y": (N,)}
    check_sites(shapes, dtype, student_t_regression, y, X)
    matrices = {"full": (K, 2, 2), "tied": (2, 2), "diag": (K, 2), "spherical": (K,)}
    for covariance, shape in matrices.items():
        shapes = {
            "weights": (K,), "precisions": shape, "locs": (K, 2), "df": (K,),
            "assignment": (N,), "u": (N,), "x": (N, 2),
        }  # fmt: skip
        check_sites(shapes, dtype, student_t_mixture, clouds(dtype), K, covariance=covariance)


def test_models_run_under_guides(check_guides: Any) -> None:
    y, X = line_data(torch.float32)
    check_guides(student_t_regression, y, X[:, 0], df=4.0)
    check_guides(student_t_mixture, clouds(torch.float32), K, covariance="diag")


def test_log_joint_equals_scipy(prior_draw: Any, log_joint: Any) -> None:
    y, X = line_data()
    prior: dict[str, Any] = {
        "mean": [0.1, 0.1, 0.0], "deviation": [0.5, 0.2, 1e-3], "noise_df": 5.0,
        "noise_scale": 2.0, "df_shape": 3.0, "df_rate": 0.2,
    }  # fmt: skip
    params = prior_draw(student_t_regression, y, X, prior=prior)
    u = torch.linspace(0.2, 3.0, N, dtype=torch.float64)
    ours = float(log_joint(student_t_regression, {**params, "u": u}, y, X, prior=prior))
    p = {name: value.numpy() for name, value in params.items()}
    line = np.column_stack([np.ones(N), X.numpy()]) @ p["coefficients"]
    theirs = stats.norm(prior["mean"], prior["deviation"]).logpdf(p["coefficients"]).sum()
    theirs += stats.gamma.logpdf(p["precision"], 2.5, scale=1.0)
    theirs += stats.gamma.logpdf(p["df"], 3.0, scale=5.0)
    theirs += stats.gamma.logpdf(u.numpy(), p["df"] / 2, scale=2 / p["df"]).sum()
    theirs += stats.norm(line, (p["precision"] * u.numpy()) ** -0.5).logpdf(y.numpy()).sum()
    assert ours == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("df", [None, 3.0])
def test_rows_have_scipy_s_density(covariance: str, df: float | None) -> None:
    x = clouds()
    fit = EM(student_t_mixture, seed=0).fit(x, K, df=df, covariance=covariance)
    assert fit.converged
    p = {name: value.numpy() for name, value in fit.params.items()}
    tails = np.full(K, df) if df else p["df"]
    found = p["precisions"]
    by_kind: dict[str, Callable[[], list[Any]]] = {
        "diag": lambda: [np.diag(row) for row in found],
        "spherical": lambda: [row * np.eye(2) for row in found],
        "tied": lambda: [found, found],
        "full": lambda: list(found),
    }
    matrices = by_kind[covariance]()
    each = [
        np.log(p["weights"][k])
        + stats.multivariate_t(p["locs"][k], np.linalg.inv(matrices[k]), tails[k]).logpdf(x)
        for k in range(K)
    ]
    np.testing.assert_allclose(fit.log_prob(), np.logaddexp(*each), rtol=1e-10)


# -- estimates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("df", "published"),
    [
        (8.0, [-40.71, 0.81, 0.97, -0.13]),
        (4.0, [-40.07, 0.86, 0.75, -0.12]),
        (2.0, [-38.12, 0.85, 0.56, -0.09]),
        (None, [-38.50, 0.85, 0.49, -0.07]),
    ],
)
def test_stack_loss(df: float | None, published: list[float]) -> None:
    """Lange, Little & Taylor (1989), JASA 84, 881-896: maximum likelihood; df = 1.1."""
    y, X = torch.tensor(LOSS).double(), torch.tensor(PLANT).double().T
    fit = EM(student_t_regression, "mle").fit(y, X, df=df)
    assert fit.converged
    assert fit.iterations <= (30 if df else 60)
    tolerance = [0.006 if df else 0.03, 0.006, 0.006, 0.006]  # as they round, df too
    apart = np.abs(fit.params["coefficients"].numpy() - published)
    assert (apart < tolerance).all()
    if df is None:
        assert float(fit.params["df"]) == pytest.approx(1.1, abs=0.05)
    lightest = fit.posterior("u").mean.argsort()[:4] + 1
    assert {*lightest.tolist()} <= {1, 3, 4, 21, 13}


def test_an_outlier_is_forgotten() -> None:
    y, X = line_data()
    fit = EM(student_t_regression, "mle").fit(y, X, df=4.0)
    for far in (1e3, 1e6, 1e9):
        moved = y.clone()
        moved[5] = far
        other = EM(student_t_regression).fit(moved, X, df=4.0)
        apart = (other.params["coefficients"] - fit.params["coefficients"])[1:].abs()
        assert float(apart[0]) < 0.1
        assert float(other.posterior("u").mean[5]) < 1e-3
        assert (other.history.diff() >= 0).all()


@pytest.mark.thorough
def test_clusters_among_noise() -> None:
    x = torch.cat([clouds(), 200.0 * torch.rand(4, 2, generator=torch.Generator().manual_seed(0))])
    heavy = EM(student_t_mixture, seed=0, restarts=4).fit(x, K)
    truth = torch.tensor([[0.0, 0.0], [6.0, 4.0]], dtype=torch.float64)
    assert float(torch.cdist(heavy.params["locs"], truth).amin(0).max()) < 1.0
    gaussian = EM(gaussian_mixture, seed=0).fit(x, K)
    assert heavy.log_likelihood > gaussian.log_likelihood + 10.0


def test_units_do_not_matter() -> None:
    y, X = line_data()
    fit = EM(student_t_regression).fit(y, X)
    other = EM(student_t_regression).fit(1000.0 * y + 7.0, X * torch.tensor([0.01, 5.0]).double())
    assert float(other.params["df"]) == pytest.approx(float(fit.params["df"]), rel=1e-3)
    weights = fit.posterior("u").mean, other.posterior("u").mean
    torch.testing.assert_close(*weights, rtol=1e-2, atol=1e-3)


def test_frequency_repeats_rows() -> None:
    y, X = line_data()
    counts = (torch.arange(N) % 3).double()
    fit = EM(student_t_regression).fit(y, X, frequency=counts)
    kept = counts.long()
    other = EM(student_t_regression).fit(y.repeat_interleave(kept), X.repeat_interleave(kept, 0))
    assert fit.log_posterior == pytest.approx(other.log_posterior, rel=1e-8)
    x = clouds()
    mixed = EM(student_t_mixture, seed=0).fit(x, K, frequency=counts)
    repeated = EM(student_t_mixture, seed=0).fit(x.repeat_interleave(kept, 0), K)
    assert mixed.log_posterior == pytest.approx(repeated.log_posterior, rel=1e-6)


def test_gaps_drop_out() -> None:
    y, X = line_data()
    y[::9] = torch.nan
    shown = ~y.isnan()
    fit = EM(student_t_regression).fit(y, X)
    less = EM(student_t_regression).fit(y[shown], X[shown])
    assert fit.log_posterior == pytest.approx(less.log_posterior, rel=1e-10)
    assert not bool(fit.impute().isnan().any())


def test_entries_drop_out() -> None:
    x = clouds()[:30]
    x[3, 0], x[7, 1], x[9] = torch.nan, torch.nan, torch.nan
    with pytest.warns(RuntimeWarning, match="max_iter was reached"):
        fit = EM(student_t_mixture, seed=0, max_iter=5).fit(x, K, df=4.0)
    assert (fit.history.diff() >= 0).all()
    p = {name: value.numpy() for name, value in fit.params.items()}
    scales = np.linalg.inv(p["precisions"])
    each = [
        np.log(p["weights"][k])
        + stats.t(4.0, p["locs"][k, 1], scales[k, 1, 1] ** 0.5).logpdf(float(x[3, 1]))
        for k in range(K)
    ]
    assert float(fit.log_prob()[3]) == pytest.approx(np.logaddexp(*each), rel=1e-10)
    assert abs(float(fit.log_prob()[9])) < 1e-12


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"df": "four"}, TypeError, "`df` must be a number"),
        ({"df": -1.0}, ValueError, "must be positive and finite"),
        ({"df": float("inf")}, ValueError, "use the Gaussian model"),
        ({"prior": {"df": 3.0}}, ValueError, "unknown key 'df'"),
        ({"prior": {"df_rate": 0.0}}, ValueError, "must be greater than 0"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], words: str) -> None:
    y, X = line_data()
    with pytest.raises(error, match=re.escape(words)):
        student_t_regression(y, X, **options)
