"""State space models: the evidence of the steps against a Kalman filter, and errors."""

import re
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from ember.models import linear_gaussian_state_space, local_level, local_linear_trend
from tests.inference.dense_gaussian import dense
from tests.models.gaussian_examples import LEVELS, ROWS, SERIES, SLOPES
from tests.models.kalman import kalman, real

GAPPY = torch.where(torch.arange(12) % 4 == 2, torch.nan, SERIES)


@pytest.mark.parametrize("y", [SERIES, GAPPY], ids=["", "gaps"])
def test_local_level(y: Tensor) -> None:
    prior = {"initial_mean": 4.0, "initial_deviation": 3.0}
    params = real(variance=0.3, level_variance=0.2)
    found = dense(local_level, LEVELS, params, y, prior=prior).log_evidence
    one = np.eye(1)
    expected = kalman(
        y.numpy()[:, None], np.array([4.0]), 9.0 * one, one, 0.2 * one, one, 0.3 * one
    )
    assert float(found) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("y", [SERIES, GAPPY], ids=["", "gaps"])
def test_local_linear_trend(y: Tensor) -> None:
    prior = {
        "initial_mean": 4.0,
        "initial_deviation": 3.0,
        "initial_slope_mean": 0.5,
        "initial_slope_deviation": 2.0,
    }
    params = real(variance=0.3, level_variance=0.2, slope_variance=0.1)
    found = dense(local_linear_trend, LEVELS + SLOPES, params, y, prior=prior).log_evidence
    expected = kalman(
        y.numpy()[:, None],
        np.array([4.0, 0.5]),
        np.diag([9.0, 4.0]),
        np.array([[1.0, 1.0], [0.0, 1.0]]),
        np.diag([0.2, 0.1]),
        np.array([[1.0, 0.0]]),
        np.array([[0.3]]),
    )
    assert float(found) == pytest.approx(expected, rel=1e-11)


def test_a_state_space_of_factors() -> None:
    params = real(
        transition_matrix=[[0.8, 0.3], [-0.2, 0.5]],
        loadings=[[1.0, 0.2], [0.4, -0.6], [0.0, 1.2]],
        locs=[3.0, 4.0, 5.0],
        uniquenesses=[0.4, 0.5, 0.6],
    )
    found = dense(linear_gaussian_state_space, [], params, ROWS, 2).log_evidence
    A = params["transition_matrix"].numpy()
    expected = kalman(
        (ROWS - params["locs"]).numpy(),
        np.zeros(2),
        A @ A.T + np.eye(2),  # the standard state is before the first step
        A,
        np.eye(2),
        params["loadings"].numpy(),
        np.diag(params["uniquenesses"].numpy()),
    )
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_the_site_is_a_chain_that_can_be_opened() -> None:
    trace = poutine.trace(linear_gaussian_state_space).get_trace(ROWS, 2)
    assert isinstance(trace.nodes["y"]["fn"], dist.GaussianHMM)


def test_a_straight_line_has_a_proper_prior() -> None:
    line = torch.arange(8.0)
    sites: Any = poutine.trace(local_linear_trend).get_trace(line).nodes
    assert float(sites["level_variance"]["fn"].base_dist.rate) > 0


ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (SERIES.numpy(), {}, TypeError, "`y` must be a torch.Tensor, not ndarray"),
    (ROWS, {}, ValueError, "`y` must have shape (T,), not (20, 3): several series are"),
    (SERIES.long(), {}, TypeError, "`y` must have a floating dtype"),
    (SERIES / 0, {}, ValueError, "`y` has 12 infinite value(s)"),
    (SERIES * torch.nan, {}, ValueError, "`y` has nothing but NaN"),
    (SERIES[:1], {}, ValueError, "`y` has 1 row(s) in all"),
    (0 * SERIES, {}, ValueError, "`y` is constant in column(s) 0"),
    (SERIES, {"prior": {"rate": 1.0}}, ValueError, "'initial_mean', 'initial_deviation'"),
    (
        SERIES,
        {"prior": {"initial_deviation": 0.0}},
        ValueError,
        "prior['initial_deviation'] must be greater than 0",
    ),
]


@pytest.mark.parametrize("model", [local_level, local_linear_trend])
@pytest.mark.parametrize(("y", "options", "error", "message"), ERRORS)
def test_errors_of_series(
    model: Any, y: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        model(y, **options)


STATE_ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (SERIES, {}, ValueError, "`y` must have shape (T, D) or (N, T, D), not (12,): a single"),
    (ROWS / 0, {}, ValueError, "infinite value(s)"),
    (ROWS * torch.nan, {}, ValueError, "`y` has nothing but NaN"),
    (ROWS * torch.tensor([0.0, 1.0, 1.0]), {}, ValueError, "`y` is constant in column(s) 0"),
    (ROWS, {"states": 0}, ValueError, "`states` must be at least 1"),
    (ROWS, {"prior": {"rate": 1.0}}, ValueError, "'transition_mean', 'transition_deviation'"),
]


@pytest.mark.parametrize(("y", "options", "error", "message"), STATE_ERRORS)
def test_errors_of_state_spaces(
    y: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        linear_gaussian_state_space(y, **{"states": 1, **options})
