"""Factor models: marginal normals, and principal components at the maximum of the likelihood."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy.stats import multivariate_normal
from torch import Tensor

from ember.models import factor_analysis, mixture_of_factor_analysers, probabilistic_pca
from tests.inference.dense_gaussian import dense, free_objective
from tests.models.gaussian_examples import HOLES, ROWS


def drawn(model: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    trace = poutine.trace(model).get_trace(*args, **kwargs)
    return {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and type(site["fn"]).__name__ != "_Subsample"
        and name not in ("factors", "assignment")
    }


def observed_density(row: Tensor, mean: Tensor, covariance: Tensor) -> float:
    shown = ~row.isnan()
    block = covariance[shown][:, shown].numpy()
    return float(multivariate_normal(mean[shown].numpy(), block).logpdf(row[shown].numpy()))


@pytest.mark.parametrize("x", [ROWS, HOLES], ids=["", "gaps"])
@pytest.mark.parametrize("model", [factor_analysis, probabilistic_pca])
def test_rows_are_marginal_normals(model: Any, x: Tensor) -> None:
    params = drawn(model, x, 2)
    found = float(dense(model, ["factors"], params, x, 2).log_evidence)
    noise = params["uniquenesses"] if model is factor_analysis else params["variance"].expand(3)
    covariance = params["loadings"] @ params["loadings"].mT + torch.diag(noise)
    expected = sum(observed_density(row, params["locs"], covariance) for row in x)
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("uniquenesses", ["free", "tied"])
def test_rows_of_a_mixture_are_mixtures_of_marginal_normals(uniquenesses: str) -> None:
    x = HOLES[:5]
    call: dict[str, Any] = {"components": 2, "factors": 2, "uniquenesses": uniquenesses}
    params = drawn(mixture_of_factor_analysers, x, **call)
    assert params["uniquenesses"].shape == ((2, 3) if uniquenesses == "free" else (3,))
    found = dense(mixture_of_factor_analysers, ["factors"], params, x, **call)
    noise = params["uniquenesses"].expand(2, 3)
    covariances = params["loadings"] @ params["loadings"].mT + torch.diag_embed(noise)
    each = [
        [
            float(params["weights"][k].log())
            + observed_density(row, params["locs"][k], covariances[k])
            for k in range(2)
        ]
        for row in x
    ]
    expected = float(torch.tensor(each).logsumexp(-1).sum())
    assert float(found.log_evidence) == pytest.approx(expected, rel=1e-6)


def test_principal_components_maximise_the_likelihood() -> None:
    """Tipping and Bishop's closed form is a maximum of the model's evidence."""
    values, vectors = np.linalg.eigh(np.cov(ROWS.numpy().T, bias=True))
    rest = float(values[:2].mean())
    loadings = torch.tensor(vectors[:, 2:] * np.sqrt(values[2:] - rest))
    params = {"loadings": loadings, "locs": ROWS.mean(0), "variance": torch.tensor(rest).double()}
    free, value = free_objective(probabilistic_pca, ["factors"], params, ROWS, 1)
    vector = free.flatten(params).requires_grad_()
    (slope,) = torch.autograd.grad(value(vector), vector)
    assert float(slope.abs().max()) < 1e-6


@pytest.mark.parametrize("model", [factor_analysis, probabilistic_pca])
def test_frequencies_change_the_prior_as_repeated_rows_do(model: Any) -> None:
    frequency = 1.0 + (torch.arange(20) % 3).double()
    rows = torch.arange(20).repeat_interleave(frequency.long())
    weighed = poutine.trace(model).get_trace(HOLES, 1, frequency=frequency)
    written = poutine.trace(model).get_trace(HOLES[rows], 1)
    for site in ("loadings", "locs"):
        value = written.nodes[site]["value"]
        expected = written.nodes[site]["fn"].log_prob(value)
        torch.testing.assert_close(weighed.nodes[site]["fn"].log_prob(value), expected)
    torch.testing.assert_close(weighed.nodes["x"]["scale"], frequency)
    torch.testing.assert_close(weighed.nodes["factors"]["scale"], frequency)


ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (ROWS.numpy(), {}, TypeError, "`x` must be a torch.Tensor, not ndarray"),
    (ROWS[:, 0], {}, ValueError, "`x` must have shape (N, D)"),
    (ROWS.long(), {}, TypeError, "`x` must have a floating dtype"),
    (ROWS / 0, {}, ValueError, "`x` has 60 infinite value(s)"),
    (ROWS[:1], {}, ValueError, "`x` has 1 row(s) in all"),
    (ROWS * torch.tensor([1.0, 0.0, 1.0]), {}, ValueError, "`x` is constant in column(s) 1"),
    (ROWS, {"factors": 4}, ValueError, "`factors=4` is more than the 3 columns of `x`"),
    (ROWS, {"factors": 0}, ValueError, "`factors` must be at least 1"),
    (ROWS, {"factors": 1.0}, TypeError, "`factors` must be an integer, not float"),
    (ROWS, {"prior": {"kappa": 1.0}}, ValueError, "'loading', 'df', 'scale'"),
    (ROWS, {"prior": {"loading": -1.0}}, ValueError, "prior['loading'] must be greater than 0"),
    (ROWS, {"frequency": [1.0]}, ValueError, "`frequency` must have shape (20,)"),
]


@pytest.mark.parametrize("model", [factor_analysis, probabilistic_pca, mixture_of_factor_analysers])
@pytest.mark.parametrize(("x", "options", "error", "message"), ERRORS)
def test_errors(
    model: Any, x: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    more = {"components": 2} if model is mixture_of_factor_analysers else {}
    with pytest.raises(error, match=re.escape(message)):
        model(x, **{"factors": 1, **more, **options})


def test_errors_of_mixtures() -> None:
    with pytest.raises(ValueError, match="`components=30` is more than the 20 rows"):
        mixture_of_factor_analysers(ROWS, 30, 1)
    with pytest.raises(ValueError, match="`uniquenesses` must be one of 'free', 'tied'"):
        mixture_of_factor_analysers(ROWS, 2, 1, uniquenesses="full")
