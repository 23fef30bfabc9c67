"""Latent class models: sites, densities against scipy, priors, frequency, errors."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats

from ember.models import bernoulli_mixture, categorical_mixture

N, J, K = 12, 3, 2


@pytest.fixture
def answers() -> torch.Tensor:
    return (torch.rand(N, J, dtype=torch.float64) < 0.4).double()


@pytest.fixture
def codes() -> torch.Tensor:
    """Items with 3, 2 and 4 levels, each level seen."""
    codes = torch.randint(0, 2, (N, J))
    codes[0] = torch.tensor([2, 1, 3])
    return codes


@pytest.fixture
def z() -> torch.Tensor:
    return torch.arange(N) % K


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.float64])
def test_bernoulli_sites(answers: torch.Tensor, dtype: torch.dtype, check_sites: Any) -> None:
    shapes = {"weights": (K,), "probs": (K, J), "assignment": (N,), "x": (N, J)}
    expected = dtype if dtype.is_floating_point else torch.float32
    check_sites(shapes, expected, bernoulli_mixture, answers.to(dtype), K)
    torch.set_default_dtype(torch.float64)
    expected = dtype if dtype.is_floating_point else torch.float64
    check_sites(shapes, expected, bernoulli_mixture, answers.to(dtype), K)


@pytest.mark.parametrize("levels", [4, [4, 4, 4], 5])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_categorical_sites(
    codes: torch.Tensor, levels: Any, dtype: torch.dtype, check_sites: Any
) -> None:
    size = 5 if levels == 5 else 4
    shapes = {"weights": (K,), "probs": (K, J, size), "assignment": (N,), "x": (N, J)}
    expected = dtype if dtype.is_floating_point else torch.float32
    check_sites(shapes, expected, categorical_mixture, codes.to(dtype), K, levels=levels)


@pytest.mark.parametrize("levels", [None, [3, 2, 4], [3, 3, 5]])
def test_categorical_sites_of_items_that_differ(
    codes: torch.Tensor, levels: list[int] | None, check_sites: Any
) -> None:
    shapes: dict[str, tuple[int, ...]] = {"weights": (K,), "assignment": (N,)}
    for j, size in enumerate(levels or [3, 2, 4]):
        shapes |= {f"probs_{j}": (K, size), f"x_{j}": (N,)}
    check_sites(shapes, torch.float32, categorical_mixture, codes, K, levels=levels)


def test_latent_classes_run_under_guides(
    answers: torch.Tensor, codes: torch.Tensor, check_guides: Any
) -> None:
    check_guides(bernoulli_mixture, answers.float(), K)
    check_guides(bernoulli_mixture, answers.float()[:, :1], 1)
    check_guides(categorical_mixture, codes, K, levels=4)
    check_guides(categorical_mixture, codes, K)


def test_bernoulli_log_joint_equals_scipy(
    answers: torch.Tensor, z: torch.Tensor, prior_draw: Any, log_joint: Any
) -> None:
    params = prior_draw(bernoulli_mixture, answers, K)
    ours = log_joint(bernoulli_mixture, {**params, "assignment": z}, answers, K)
    weights, probs = params["weights"].numpy(), params["probs"].numpy()
    theirs = (
        stats.dirichlet.logpdf(weights, np.full(K, 2.0))
        + stats.beta(1.5, 1.5).logpdf(probs).sum()
        + np.log(weights)[z].sum()
        + stats.bernoulli(probs[z.numpy()]).logpmf(answers.numpy()).sum()
    )
    assert float(ours) == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("levels", [4, None])
def test_categorical_log_joint_equals_scipy(
    codes: torch.Tensor, z: torch.Tensor, levels: int | None, prior_draw: Any, log_joint: Any
) -> None:
    codes = codes.double()
    params = prior_draw(categorical_mixture, codes, K, levels=levels)
    ours = log_joint(categorical_mixture, {**params, "assignment": z}, codes, K, levels=levels)
    weights = params["weights"].numpy()
    theirs = stats.dirichlet.logpdf(weights, np.full(K, 2.0)) + np.log(weights)[z].sum()
    for j in range(J):
        probs = (params["probs"][:, j] if levels else params[f"probs_{j}"]).numpy()
        theirs += sum(stats.dirichlet.logpdf(row, np.full(len(row), 1.5)) for row in probs)
        theirs += np.log(probs[z.numpy(), codes[:, j].long().numpy()]).sum()
    assert float(ours) == pytest.approx(theirs, rel=1e-10)


@pytest.mark.parametrize("model", ["bernoulli", "categorical", "differing"])
def test_integer_frequency_equals_repeated_rows(
    answers: torch.Tensor,
    codes: torch.Tensor,
    z: torch.Tensor,
    model: str,
    prior_draw: Any,
    log_joint: Any,
) -> None:
    frequency = torch.tensor([3, 1, 0, 2] * (N // 4))
    function: Any = bernoulli_mixture if model == "bernoulli" else categorical_mixture
    x = answers if model == "bernoulli" else codes.double()
    options = {"levels": 4} if model == "categorical" else {}
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
    assert float(weighted) == pytest.approx(float(repeated), rel=1e-10)


def test_prior_is_overridden(answers: torch.Tensor, codes: torch.Tensor) -> None:
    nodes: Any
    prior: dict[str, Any] = {
        "concentration": 3,
        "concentration1": 2.0,
        "concentration0": np.arange(1.0, J + 1),
    }
    nodes = poutine.trace(bernoulli_mixture).get_trace(answers, K, prior=prior).nodes
    beta = nodes["probs"]["fn"].base_dist
    assert nodes["weights"]["fn"].concentration.tolist() == [3, 3]
    assert beta.concentration1.tolist() == [[2.0] * J] * K
    assert beta.concentration0.tolist() == [[1.0, 2.0, 3.0]] * K
    prior = {"probs": [1.0, 2.0, 3.0, 4.0]}
    nodes = poutine.trace(categorical_mixture).get_trace(codes, K, levels=4, prior=prior).nodes
    assert nodes["probs"]["fn"].base_dist.concentration.tolist() == [[[1, 2, 3, 4]] * J] * K
    nodes = poutine.trace(categorical_mixture).get_trace(codes, K, prior={"probs": 7}).nodes
    assert nodes["probs_1"]["fn"].concentration.tolist() == [[7, 7]] * K


YES = torch.tensor([[1, 0], [0, 1], [1, 1]])

BERNOULLI_ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (YES.numpy(), {}, TypeError, "`x` must be a torch.Tensor, not ndarray"),
    (YES * 2, {}, ValueError, "`x` must hold only 0 and 1"),
    (YES * 0.5, {}, ValueError, "`x` must hold only 0 and 1"),
    (YES / 0, {}, ValueError, "infinite value(s)"),
    (YES.where(YES == 2, torch.nan), {}, ValueError, "nothing but NaN in column(s) 0, 1"),
    (YES[0], {}, ValueError, "`x` must have shape (N, J), not (2,)"),
    (YES[:, :0], {}, ValueError, "`x` is empty (shape (3, 0))"),
    (YES[:1], {"components": 1}, ValueError, "`x` has 1 row(s) in all"),
    (YES, {"components": 4}, ValueError, "`components=4` is more than the 3 rows"),
    (YES, {"components": True}, TypeError, "`components` must be an integer, not bool"),
    (YES, {"components": -1}, ValueError, "`components` must be at least 1, not -1"),
    (YES, {"prior": {"probs": 1}}, ValueError, "'concentration', 'concentration1', 'concentra"),
    (YES, {"prior": {"concentration1": 0}}, ValueError, "prior['concentration1'] must be greater"),
    (YES, {"prior": {"concentration0": -1}}, ValueError, "prior['concentration0'] must be gre"),
    (YES, {"frequency": torch.ones(2)}, ValueError, "`frequency` must have shape (3,)"),
]

CATEGORICAL_ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (YES.tolist(), {}, TypeError, "`x` must be a torch.Tensor, not list"),
    (YES - 1, {}, ValueError, "`x` must hold level codes 0, 1, ..., L - 1"),
    (YES * 0.5, {}, ValueError, "`x` must hold level codes 0, 1, ..., L - 1"),
    (YES / 0, {}, ValueError, "infinite value(s)"),
    (YES.where(YES == 2, torch.nan), {}, ValueError, "nothing but NaN in column(s) 0, 1"),
    (YES[0], {}, ValueError, "`x` must have shape (N, J), not (2,)"),
    (YES * 3, {"levels": 3}, ValueError, "`x` has the code 3 in item 0, but `levels` allows 0 to"),
    (YES, {"levels": [2, 2, 2]}, ValueError, "`levels` must be one number or 2"),
    (YES, {"levels": [2, 1]}, ValueError, "`levels` must be at least 2, not 1"),
    (YES, {"levels": 2.5}, TypeError, "`levels` must be an integer or a sequence of them"),
    (YES, {"levels": [2, 2.5]}, TypeError, "`levels` must be an integer or a sequence of them"),
    (YES[:1], {"components": 1}, ValueError, "`x` has 1 row(s) in all"),
    (YES, {"components": 4}, ValueError, "`components=4` is more than the 3 rows"),
    (YES, {"prior": {"alpha": 1}}, ValueError, "this model takes 'concentration', 'probs'"),
    (YES, {"prior": {"probs": 0}}, ValueError, "prior['probs'] must be greater than 0"),
    (YES, {"prior": {"probs": [1, 1, 1]}}, ValueError, "broadcasts to shape (2, 2, 2)"),
]


@pytest.mark.parametrize(("data", "options", "error", "message"), BERNOULLI_ERRORS)
def test_bernoulli_errors(
    data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        bernoulli_mixture(data, **{"components": 2, **options})


@pytest.mark.parametrize(("data", "options", "error", "message"), CATEGORICAL_ERRORS)
def test_categorical_errors(
    data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        categorical_mixture(data, **{"components": 2, **options})
