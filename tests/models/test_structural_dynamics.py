"""Structural dynamics: the density, the poles of simulated structures, gaps, and errors."""

import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from torch import Tensor

from ember.inference import EM
from ember.models import linear_gaussian_state_space, structural_dynamics
from tests.models.kalman import kalman, real

STEP = 0.05


def chain_of_masses(masses: int, steps: int, seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """Springs and dampers in a row under white forces, exactly discretised (van Loan 1978).

    Positions with noise (T, masses), and the natural frequencies; all damping ratios are 0.02.
    """
    generator = torch.Generator().manual_seed(seed)
    one = torch.eye(masses, dtype=torch.float64)
    stiffness = 40.0 * (2.0 * one - one.roll(1, 0).tril(-1) - one.roll(-1, 0).triu(1))
    stiffness[-1, -1] = 40.0
    squares, shapes = torch.linalg.eigh(stiffness)
    damping = shapes @ torch.diag(0.04 * squares.sqrt()) @ shapes.mT
    none = torch.zeros_like(one)
    motion = torch.cat([torch.cat([none, one], 1), torch.cat([-stiffness, -damping], 1)])
    forces = torch.block_diag(none, one)
    whole = torch.cat([torch.cat([-motion, forces], 1), torch.cat([0 * motion, motion.mT], 1)])
    turned = torch.linalg.matrix_exp(STEP * whole)
    move = turned[2 * masses :, 2 * masses :].mT
    push = torch.linalg.cholesky(move @ turned[: 2 * masses, 2 * masses :])
    state, path = torch.zeros(2 * masses, dtype=torch.float64), []
    for white in torch.randn(steps + 500, 2 * masses, generator=generator, dtype=torch.float64):
        state = move @ state + push @ white
        path.append(state[:masses])
    y = torch.stack(path[500:])
    error = torch.randn(steps, masses, generator=generator, dtype=torch.float64)
    return y + noise * y.std() * error, squares.sqrt() / (2 * math.pi)


def test_the_density_is_that_of_turning_modes() -> None:
    y = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[3], y[7, 1] = torch.nan, torch.nan
    params = real(
        real_parts=[0.9, 0.5],
        imaginary_parts=[0.3, -0.8],
        loadings=[[1.0, 0.2, 0.3, 0.4], [0.4, -0.6, 0.1, 0.0], [0.0, 1.2, -0.5, 0.7]],
        locs=[0.3, 0.4, 0.5],
        uniquenesses=[0.4, 0.5, 0.6],
    )
    move = np.array([[0.9, 0.3, 0, 0], [-0.3, 0.9, 0, 0], [0, 0, 0.5, -0.8], [0, 0, 0.8, 0.5]])
    expected = kalman(
        (y - params["locs"]).numpy(), np.zeros(4), move @ move.T + np.eye(4), move, np.eye(4),
        params["loadings"].numpy(), np.diag(params["uniquenesses"].numpy()),
    )  # fmt: skip
    em = EM(structural_dynamics)
    assert em.e_step(params, y, modes=2).log_likelihood == pytest.approx(expected, rel=1e-10)
    with poutine.condition(data=params):
        site: Any = poutine.trace(structural_dynamics).get_trace(y, modes=2).nodes["y"]
    density = site["fn"].log_prob(site["value"])
    assert float(density) == pytest.approx(expected, rel=1e-8)


def test_gaps_of_series_side_by_side_have_pyros_density() -> None:
    y = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[0, 3], y[1, 7, 1] = torch.nan, torch.nan
    params = real(
        transition_matrix=[[0.8, 0.3], [-0.2, 0.5]],
        loadings=[[1.0, 0.2], [0.4, -0.6], [0.0, 1.2]],
        locs=[0.3, 0.4, 0.5],
        uniquenesses=[0.4, 0.5, 0.6],
    )
    with poutine.condition(data=params):
        site: Any = poutine.trace(linear_gaussian_state_space).get_trace(y, 2).nodes["y"]
    density = site["fn"].log_prob(site["value"])
    A = params["transition_matrix"].numpy()
    expected = [
        kalman(
            (each - params["locs"]).numpy(), np.zeros(2), A @ A.T + np.eye(2), A, np.eye(2),
            params["loadings"].numpy(), np.diag(params["uniquenesses"].numpy()),
        )
        for each in y
    ]  # fmt: skip
    np.testing.assert_allclose(density.numpy(), expected, rtol=1e-9)
    found = EM(linear_gaussian_state_space).e_step(params, y, states=2).log_likelihood
    assert found == pytest.approx(sum(expected), rel=1e-10)


def test_the_poles_of_a_structure() -> None:
    y, frequencies = chain_of_masses(2, 2000, seed=2, noise=0.3)
    fit = EM(structural_dynamics).fit(y, modes=2, step=STEP)
    assert fit.converged
    found = fit.deterministic
    torch.testing.assert_close(found["natural_frequencies"], frequencies, rtol=0.01, atol=0.0)
    expected = torch.full((2,), 0.02, dtype=torch.float64)
    torch.testing.assert_close(found["damping_ratios"], expected, rtol=0.0, atol=0.01)


def test_all_updates_are_closed() -> None:
    y, _ = chain_of_masses(2, 60, seed=0, noise=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = EM(structural_dynamics).explain(y, modes=2).set_index("site")
    parameters = table[table["role"] == "parameter"]
    assert set(parameters["M-step"]) == {"closed form"}
    assert table.loc["state", "role"] == "latent"


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"y": torch.zeros(5)}, "`y` must have shape (T, D) or (N, T, D), not (5,)"),
    ({"y": torch.zeros(5, 2)}, "`y` is constant in column(s) 0, 1"),
    ({"modes": 0}, "`modes` must be at least 1"),
    ({"step": 0.0}, "`step=0.0` must be greater than 0: the time between two samples."),
    ({"prior": {"rate": 1.0}}, "'real_mean', 'imaginary_mean', 'deviation_of_parts'"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS)
def test_errors(options: dict[str, Any], message: str) -> None:
    y = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=re.escape(message)):
        structural_dynamics(**{"y": y, "modes": 1, **options})
