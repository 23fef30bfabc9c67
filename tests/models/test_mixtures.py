"""Mixtures of Gaussians and Poissons: sites, densities against scipy, priors, frequency, errors."""

import re
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

from ember.models import gaussian_mixture, poisson_mixture

COVARIANCES = ("full", "diag", "spherical", "tied")
N, D, K = 12, 3, 2
PRECISIONS = {"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(N, D, dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.1]) + 5


@pytest.fixture
def z() -> torch.Tensor:
    return torch.arange(N) % K


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_gaussian_sites(
    x: torch.Tensor, covariance: str, dtype: torch.dtype, default: torch.dtype, check_sites: Any
) -> None:
    torch.set_default_dtype(default)
    shapes = {
        "weights": (K,),
        "precisions": PRECISIONS[covariance],
        "locs": (K, D),
        "assignment": (N,),
        "x": (N, D),
    }
    check_sites(shapes, dtype, gaussian_mixture, x.to(dtype), K, covariance=covariance)


@pytest.mark.parametrize("columns", [(), (D,)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_poisson_sites(columns: tuple[int, ...], dtype: torch.dtype, check_sites: Any) -> None:
    counts = torch.poisson(torch.full((N, *columns), 4.0)).to(dtype)
    shapes = {
        "weights": (K,),
        "rates": (K, *columns),
        "assignment": (N,),
        "x": (N, *columns),
    }
    expected = dtype if dtype.is_floating_point else torch.float32
    check_sites(shapes, expected, poisson_mixture, counts, K)
    torch.set_default_dtype(torch.float64)
    expected = dtype if dtype.is_floating_point else torch.float64
    check_sites(shapes, expected, poisson_mixture, counts, K)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gaussian_runs_under_guides(x: torch.Tensor, covariance: str, check_guides: Any) -> None:
    check_guides(gaussian_mixture, x, K, covariance=covariance)


@pytest.mark.parametrize("columns", [(), (D,)])
def test_poisson_runs_under_guides(columns: tuple[int, ...], check_guides: Any) -> None:
    counts = torch.poisson(torch.full((N, *columns), 4.0))
    check_guides(poisson_mixture, counts, K)
    check_guides(poisson_mixture, counts, 1)


def gaussian_log_joint(
    x: np.ndarray, z: np.ndarray, params: dict[str, np.ndarray], covariance: str
) -> float:
    """The log joint under the default prior, from scipy and the formulae of the docstring."""
    precisions, locs = params["precisions"], params["locs"]
    scale = np.cov(x.T) / K ** (2 / D)
    total = stats.dirichlet.logpdf(params["weights"], np.full(K, 2.0))
    total += np.log(params["weights"])[z].sum()
    match covariance:
        case "full":
            wishart = stats.wishart(D + 2, np.linalg.inv(scale))
            total += sum(wishart.logpdf(matrix) for matrix in precisions)
            matrices = list(precisions)
        case "tied":
            total += stats.wishart(D + 2, np.linalg.inv(scale)).logpdf(precisions)
            matrices = [precisions] * K
        case "diag":
            total += stats.gamma(1.5, scale=2 / np.diag(scale)).logpdf(precisions).sum()
            matrices = [np.diag(row) for row in precisions]
        case "spherical":
            gamma = stats.gamma((D + 2) / 2, scale=2 / np.diag(scale).mean())
            total += gamma.logpdf(precisions).sum()
            matrices = [value * np.eye(D) for value in precisions]
    for k, matrix in enumerate(matrices):
        covariance_k = np.linalg.inv(matrix)
        total += stats.multivariate_normal(x.mean(0), covariance_k / 0.01).logpdf(locs[k])
        total += stats.multivariate_normal(locs[k], covariance_k).logpdf(x[z == k]).sum()
    return float(total)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gaussian_log_joint_equals_scipy(
    x: torch.Tensor, z: torch.Tensor, covariance: str, prior_draw: Any, log_joint: Any
) -> None:
    options = {"covariance": covariance}
    for _ in range(3):
        params = prior_draw(gaussian_mixture, x, K, **options)
        ours = log_joint(gaussian_mixture, {**params, "assignment": z}, x, K, **options)
        arrays = {name: value.numpy() for name, value in params.items()}
        theirs = gaussian_log_joint(x.numpy(), z.numpy(), arrays, covariance)
        assert float(ours) == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("columns", [(), (D,)])
def test_poisson_log_joint_equals_scipy(
    columns: tuple[int, ...], z: torch.Tensor, prior_draw: Any, log_joint: Any
) -> None:
    counts = torch.poisson(torch.full((N, *columns), 4.0, dtype=torch.float64))
    params = prior_draw(poisson_mixture, counts, K)
    ours = log_joint(poisson_mixture, {**params, "assignment": z}, counts, K)
    weights, rates = params["weights"].numpy(), params["rates"].numpy()
    rate = 1.5 / counts.numpy().mean(0)
    theirs = (
        stats.dirichlet.logpdf(weights, np.full(K, 2.0))
        + stats.gamma(1.5, scale=1 / rate).logpdf(rates).sum()
        + np.log(weights)[z].sum()
        + stats.poisson(rates[z.numpy()]).logpmf(counts.numpy()).sum()
    )
    assert float(ours) == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("model", [*COVARIANCES, "poisson"])
def test_integer_frequency_equals_repeated_rows(
    x: torch.Tensor, z: torch.Tensor, model: str, prior_draw: Any, log_joint: Any
) -> None:
    frequency = torch.tensor([3, 1, 0, 2] * (N // 4))
    function: Any = gaussian_mixture
    options = {"covariance": model}
    if model == "poisson":
        function, options = poisson_mixture, {}
        x = torch.poisson(torch.full((N, D), 4.0, dtype=torch.float64))
    params = prior_draw(function, x, K, **options)
    weighted = log_joint(
        function, {**params, "assignment": z}, x, K, frequency=frequency, **options
    )
    repeated = log_joint(
        function,
        {**params, "assignment": z.repeat_interleave(frequency)},
        x.repeat_interleave(frequency, 0),
        K,
        **options,
    )
    plain = log_joint(function, {**params, "assignment": z}, x, K, **options)
    assert float(weighted) == pytest.approx(float(repeated), rel=1e-10)
    assert abs(float(weighted - plain)) > 1e-3


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gaussian_prior_is_overridden(x: torch.Tensor, covariance: str) -> None:
    nodes: Any
    matrix = torch.eye(D) * 4 + 1
    scale = {"full": matrix, "tied": matrix, "diag": torch.tensor([1.0, 2.0, 3.0]), "spherical": 7}
    prior = {
        "concentration": [1.0, 3.0],
        "kappa": 0.5,
        "mean": np.arange(3.0),
        "df": 9,
        "scale": scale[covariance],
    }
    trace = poutine.trace(gaussian_mixture).get_trace(x, K, covariance=covariance, prior=prior)
    nodes = trace.nodes
    precisions = nodes["precisions"]["value"]
    assert nodes["weights"]["fn"].concentration.tolist() == [1.0, 3.0]
    locs, base = nodes["locs"]["fn"], nodes["precisions"]["fn"]
    if covariance in ("full", "tied"):
        assert (base.df == 9).all()
        torch.testing.assert_close(base.precision_matrix.reshape(-1, D, D)[0], matrix.double())
        expected = (0.5 * precisions).expand(K, D, D)
        torch.testing.assert_close(locs.precision_matrix, expected)
        mean = locs.loc
    else:
        gamma = base.base_dist if covariance == "diag" else base
        assert (gamma.concentration == 4.5).all()
        rate = torch.as_tensor(scale[covariance], dtype=x.dtype).expand(gamma.rate.shape) / 2
        torch.testing.assert_close(gamma.rate, rate)
        precisions = precisions.reshape(K, -1).expand(K, D)
        torch.testing.assert_close(locs.base_dist.scale, (0.5 * precisions).rsqrt())
        mean = locs.base_dist.loc
    assert (mean == torch.arange(3.0)).all()


def test_poisson_prior_is_overridden() -> None:
    nodes: Any
    counts = torch.tensor([0.0, 1.0, 5.0, 6.0])
    prior = {"concentration": 1, "shape": [2.0, 3.0], "rate": 0.5}
    nodes = poutine.trace(poisson_mixture).get_trace(counts, K, prior=prior).nodes
    assert nodes["weights"]["fn"].concentration.tolist() == [1.0, 1.0]
    assert nodes["rates"]["fn"].concentration.tolist() == [2.0, 3.0]
    assert nodes["rates"]["fn"].rate.tolist() == [0.5, 0.5]


def test_poisson_prior_is_finite_for_zeros(check_sites: Any) -> None:
    shapes = {"weights": (K,), "rates": (K,), "assignment": (N,), "x": (N,)}
    check_sites(shapes, torch.float32, poisson_mixture, torch.zeros(N), K)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_prior_stays_proper(covariance: str, dtype: torch.dtype) -> None:
    wide = torch.randn(4, 9, dtype=dtype)  # more columns than rows
    copied = torch.randn(20, 2, dtype=dtype)[:, [0, 0, 1]] * 1000 + 1e4  # one column twice
    for data in (wide, copied):
        trace = poutine.trace(gaussian_mixture).get_trace(data, 2, covariance=covariance)
        assert torch.as_tensor(trace.log_prob_sum()).isfinite()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_constant_column(x: torch.Tensor, covariance: str) -> None:
    x[:, 1] = 0.1
    x[:, 2] = 0.0
    with pytest.raises(ValueError, match=re.escape("`x` is constant in column(s) 1, 2")):
        gaussian_mixture(x, K, covariance=covariance)
    scale = torch.eye(D) if covariance in ("full", "tied") else 1.0
    gaussian_mixture(x, K, covariance=covariance, prior={"scale": scale})
    with pyro.validation_enabled(False):
        trace = poutine.trace(gaussian_mixture).get_trace(x, K, covariance=covariance)
        assert torch.as_tensor(trace.log_prob_sum()).isfinite()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_one_row_meets_known_parameters_without_validation(
    x: torch.Tensor, covariance: str, prior_draw: Any, log_likelihood: Any
) -> None:
    options = {"covariance": covariance}
    params = prior_draw(gaussian_mixture, x, K, **options)
    whole = log_likelihood(gaussian_mixture, params, x, K, **options)
    with pyro.validation_enabled(False):
        rows = [log_likelihood(gaussian_mixture, params, row[None], K, **options) for row in x]
    assert torch.stack(rows).sum().item() == pytest.approx(whole.item(), rel=1e-10)


def test_wishart_draws_without_warning() -> None:
    # torch warns of every sound sample, and warnings are errors here
    trace = poutine.trace(gaussian_mixture).get_trace(torch.randn(9, 2), 3)
    fn = trace.nodes["precisions"]["fn"]
    assert isinstance(fn, dist.Wishart)
    draws = fn.sample((4000,))
    expected = fn.mean.sum(0) / 3
    relative = (draws.mean((0, 1)) - expected).abs() / expected.diagonal().max()
    assert relative.max() < 0.05


GOOD = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
HOLED = torch.tensor([[1.0, torch.nan], [2.0, 3.0], [torch.inf, 1.0]])

GAUSSIAN_ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (GOOD.numpy(), {}, TypeError, "`x` must be a torch.Tensor, not ndarray"),
    ([[1.0]], {}, TypeError, "convert it with torch.as_tensor"),
    (
        GOOD.long(),
        {},
        TypeError,
        "`x` must have a floating dtype, float32 or float64, not torch.int64",
    ),
    (GOOD.half(), {}, TypeError, "float32 or float64, not torch.float16"),
    (GOOD.to(torch.complex64), {}, TypeError, "`x` must hold real numbers"),
    (GOOD[:, 0], {}, ValueError, "`x` must have shape (N, D), not (8,): a single column"),
    (GOOD[None], {}, ValueError, "`x` must have shape (N, D), not (1, 8, 2)"),
    (GOOD[:0], {}, ValueError, "`x` is empty (shape (0, 2))"),
    (GOOD[:1], {"components": 1}, ValueError, "`x` has 1 row(s) in all"),
    (HOLED, {}, ValueError, "`x` has 1 infinite value(s)"),
    (GOOD * torch.tensor([1.0, torch.nan]), {}, ValueError, "nothing but NaN in column(s) 1"),
    (GOOD, {"components": 9}, ValueError, "`components=9` is more than the 8 rows of `x`"),
    (GOOD, {"components": 0}, ValueError, "`components` must be at least 1, not 0"),
    (GOOD, {"components": 2.0}, TypeError, "`components` must be an integer, not float"),
    (GOOD, {"covariance": "ful"}, ValueError, "`covariance` must be one of 'full', 'diag'"),
    (GOOD, {"prior": 3}, TypeError, "`prior` must be a mapping"),
    (GOOD, {"prior": {"nu": 3}}, ValueError, "takes 'concentration', 'kappa', 'mean', 'df', 's"),
    (GOOD, {"prior": {"concentration": -1}}, ValueError, "prior['concentration'] must be greater"),
    (GOOD, {"prior": {"kappa": 0}}, ValueError, "prior['kappa'] must be greater than 0"),
    (GOOD, {"prior": {"df": 1}}, ValueError, "prior['df'] must be greater than 1"),
    (GOOD, {"prior": {"scale": -torch.eye(2)}}, ValueError, "prior['scale'] must be symmetric"),
    (
        GOOD,
        {"prior": {"scale": -1.0}, "covariance": "diag"},
        ValueError,
        "prior['scale'] must be greater than 0",
    ),
    (GOOD, {"prior": {"mean": [1, 2, 3]}}, ValueError, "broadcasts to shape (2, 2), not list"),
    (GOOD, {"prior": {"mean": torch.ones(3)}}, ValueError, "not shape (3,)"),
    (GOOD, {"prior": {"mean": "a"}}, ValueError, "prior['mean'] must be a number"),
    (GOOD, {"prior": {"mean": torch.nan}}, ValueError, "prior['mean'] must be finite"),
    (GOOD, {"frequency": torch.ones(3)}, ValueError, "`frequency` must have shape (8,)"),
    (GOOD, {"frequency": -torch.ones(8)}, ValueError, "finite and non-negative"),
    (GOOD, {"frequency": "twice"}, TypeError, "`frequency` must hold numbers, not str"),
    (GOOD, {"frequency": torch.zeros(8)}, ValueError, "`frequency` is 0 for every row"),
    (GOOD, {"frequency": torch.full((8,), 0.1)}, ValueError, "`x` has 0.8 row(s) in all"),
]

POISSON_ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ([1, 2], {}, TypeError, "`x` must be a torch.Tensor, not list"),
    (torch.tensor([1.5, 2.0]), {}, ValueError, "negative or fractional"),
    (torch.tensor([-1, 2]), {}, ValueError, "negative or fractional"),
    (torch.tensor([torch.inf, 2]), {}, ValueError, "`x` has 1 infinite"),
    (torch.tensor([torch.nan, torch.nan]), {}, ValueError, "nothing but NaN in column(s) 0"),
    (torch.tensor([torch.nan, 0.5]), {}, ValueError, "negative or fractional"),
    (torch.ones(2, 2, 2), {}, ValueError, "`x` must have shape (N,) or (N, D), not (2, 2, 2)"),
    (torch.tensor([1]), {"components": 1}, ValueError, "`x` has 1 row(s) in all"),
    (torch.tensor([1, 2]), {"components": 3}, ValueError, "`components=3` is more than the 2"),
    (torch.tensor([1, 2]), {"prior": {"shape": 0}}, ValueError, "prior['shape'] must be greater"),
    (torch.tensor([1, 2]), {"prior": {"rate": -1}}, ValueError, "prior['rate'] must be greater"),
    (torch.tensor([1, 2]), {"prior": {"df": 1}}, ValueError, "takes 'concentration', 'shape', 'r"),
]


@pytest.mark.parametrize(("data", "options", "error", "message"), GAUSSIAN_ERRORS)
def test_gaussian_errors(
    data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        gaussian_mixture(data, **{"components": 2, **options})


@pytest.mark.parametrize(("data", "options", "error", "message"), POISSON_ERRORS)
def test_poisson_errors(
    data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        poisson_mixture(data, **{"components": 2, **options})
