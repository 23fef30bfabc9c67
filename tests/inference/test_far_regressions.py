"""Regressions on covariates far from zero: years, seconds since 1970, columns of unlike units."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ember.inference import EM
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.plan.building import build_plan
from ember.models import hidden_markov_regression, mixture_of_experts, regression_mixture

Array = NDArray[Any]
DYADIC = 2.0**-10  # so that a covariate can be moved by a large number without being rounded


def draws(seed: int, rows: int = 120) -> tuple[Array, Array]:
    """Covariates and two lines with noise, rounded so that they can be moved exactly."""
    g = np.random.default_rng(seed)
    x = np.round(g.normal(size=rows) / DYADIC) * DYADIC
    y = np.where(np.arange(rows) % 3 > 0, 1.0 + 2.0 * x, -1.0 - x) + 0.4 * g.normal(size=rows)
    return x, np.round(y / DYADIC) * DYADIC


def least_squares(columns: Array, y: Array) -> float:
    """The log likelihood of ordinary least squares, by QR of columns centred in long double."""
    wide = columns.astype(np.longdouble)
    design = ((wide - wide.mean(0)) / wide.std(0)).astype(float)
    q = np.linalg.qr(np.column_stack([np.ones(len(y)), design]))[0]
    left = (y.astype(np.longdouble) - y.astype(np.longdouble).mean()).astype(float)
    for _ in range(2):
        left = left - q @ (q.T @ left)
    return float(-0.5 * len(y) * (np.log(2.0 * np.pi * (left @ left) / len(y)) + 1.0))


def columns_of(kind: str) -> tuple[Array, Array]:
    g = np.random.default_rng(0)
    noise, x = g.normal(size=200), g.normal(size=200)
    years = np.linspace(1900.0, 2020.0, 200)
    match kind:
        case "years and their squares":
            return np.column_stack([years, years**2]), 1e-3 * (years - 1950) ** 2 + noise
        case "unlike units":
            units = np.array([1e-8, 1e12, 1.0])
            columns = g.normal(size=(200, 3)) * units + [0.0, 1e12, 1e6]
            return columns, columns @ (1.0 / units) - 1e6 + noise
        case "little noise":
            return x[:, None], 3.0 * x + 1e-6 * noise
        case "pressure":
            return 30.0 * x[:, None], 101325.0 + 24.0 * x + 0.3 * noise
        case "nearly the same":
            return np.column_stack([x, x + 1e-6 * g.normal(size=200)]), x + noise
        case _:
            return x[:, None] + float(kind), 2.0 * x + noise


KINDS = [
    "1e5", "1e6", "1.7e9", "years and their squares", "unlike units", "little noise", "pressure",
    "nearly the same",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_is_least_squares_on_centred_columns(kind: str) -> None:
    columns, y = columns_of(kind)
    em = EM(regression_mixture, "mle", seed=0)
    fit = em.fit(torch.tensor(y), torch.tensor(columns), components=1)
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(least_squares(columns, y), rel=1e-9, abs=1e-7)


def test_the_cases_that_were_reported() -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=200) + 1e6
    y = 2 * (x - 1e6) + g.normal(size=200)
    fit = EM(regression_mixture, "mle", seed=0).fit(torch.tensor(y), torch.tensor(x), components=1)
    assert fit.log_likelihood == pytest.approx(-288.3597581707022, rel=1e-9)
    g = np.random.default_rng(0)
    t = g.uniform(0, 30, 300)
    p = 101325 + 0.8 * t + 0.3 * g.normal(size=300)
    fit = EM(regression_mixture, "mle", seed=0).fit(torch.tensor(p), torch.tensor(t), components=1)
    assert fit.log_likelihood == pytest.approx(-55.181, abs=1e-3)
    assert fit.log_likelihood == pytest.approx(least_squares(t[:, None], p), rel=1e-9)


def test_longley() -> None:
    datasets = pytest.importorskip("statsmodels.datasets")
    data = datasets.longley.load_pandas()
    y, x = (torch.tensor(part.to_numpy(dtype=float)) for part in (data.endog, data.exog))
    fit = EM(regression_mixture, "mle", seed=0).fit(y, x, components=1)
    assert fit.log_likelihood == pytest.approx(-109.6174348084, rel=1e-10)
    # The certified coefficients, NIST StRD.
    certified = [-3482258.634596, 15.061872271, -0.035819179293, -2.020229804, -1.033226867,
                 -0.0511041057, 1829.15146461]  # fmt: skip
    assert fit.params["coefficients"][0].tolist() == pytest.approx(certified, rel=1e-8)


MODELS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "lines": (regression_mixture, {"components": 2}),
    "one noise": (regression_mixture, {"components": 2, "scale": "tied"}),
    "experts": (mixture_of_experts, {"components": 2}),
    "chain": (hidden_markov_regression, {"states": 2}),
    "counts": (regression_mixture, {"components": 2, "family": "poisson"}),
    "answers": (regression_mixture, {"components": 1, "family": "logistic"}),
}


def response(name: str) -> tuple[Tensor, Array]:
    x, y = draws(1)
    if name == "counts":
        y = np.random.default_rng(2).poisson(np.exp(np.clip(y, -4, 3))).astype(float)
    elif name == "answers":
        y = (y + np.random.default_rng(2).normal(size=len(y)) > 0).astype(float)
    return torch.tensor(y), x


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("objective", ["mle", "map"])
@pytest.mark.parametrize("far", [-2000.0, 1.5e9])
def test_where_the_covariates_are_does_not_matter(name: str, objective: str, far: float) -> None:
    model, options = MODELS[name]
    y, x = response(name)
    em = EM(model, objective, seed=0, tol=1e-10, max_iter=5000)
    near, moved = (em.fit(y, torch.tensor(x + by), **options) for by in (0.0, far))
    assert moved.converged
    # A number of 1.5e9 times a slope leaves seven digits for the height of a line.
    assert moved.log_posterior == pytest.approx(near.log_posterior, rel=1e-7)
    slopes = moved.params["coefficients"][:, 1]
    torch.testing.assert_close(slopes, near.params["coefficients"][:, 1], rtol=1e-4, atol=1e-4)


def by_sites(x: Tensor, y: Tensor) -> None:
    """An intercept for each component, and one slope for all."""
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=dist.constraints.simplex)
    intercept = pyro.param("intercept", torch.tensor([-1.0, 1.0]))
    slope = pyro.param("slope", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(intercept[z] + slope * x, scale), obs=y)


@pytest.mark.parametrize("restarts", [1, 6])
def test_shared_slopes_far_from_zero(restarts: int) -> None:
    x, _ = draws(3)
    g = np.random.default_rng(4)
    y = torch.tensor(np.where(np.arange(120) % 2 > 0, 4.0, -4.0) + 2.0 * x + g.normal(size=120))
    em = EM(by_sites, "mle", seed=0, restarts=restarts, tol=1e-10)
    near, far = (em.fit(torch.tensor(x + by), y) for by in (0.0, 1e6))
    assert far.log_likelihood == pytest.approx(near.log_likelihood, rel=1e-9)
    assert float(far.params["slope"]) == pytest.approx(float(near.params["slope"]), rel=1e-6)


def test_pieces_of_data_with_frames_of_their_own_add_up() -> None:
    x, y = draws(5)
    pieces = [(torch.tensor(x[i] + 1e6), torch.tensor(y[i])) for i in (slice(50), slice(50, 120))]
    em = EM(by_sites, "mle", seed=0)
    whole = torch.tensor(x + 1e6), torch.tensor(y)
    params = em.fit(*whole).params
    first, second = (em.e_step(params, *piece) for piece in pieces)
    one, two = em.m_step(em.e_step(params, *whole)), em.m_step(first + second)
    torch.testing.assert_close(one["slope"], two["slope"], rtol=1e-6, atol=0)
    torch.testing.assert_close(one["scale"], two["scale"], rtol=1e-8, atol=0)


def test_known_scales_of_the_rows_are_weights() -> None:
    x, y = draws(6)
    sigma = torch.linspace(0.5, 3.0, 120).double()
    design = torch.stack([torch.ones(120).double(), torch.tensor(x) + 1e6], 1)

    def model(y: Tensor) -> None:
        beta = pyro.param("beta", torch.zeros(2))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(design @ beta, sigma), obs=y)

    with sheltered():
        plan = build_plan(model, prepare((torch.tensor(y),), {}), "mle")
    assert [len(group.cells) for group in plan.tied.values()] == [1]
    fit = EM(model, "mle").fit(torch.tensor(y))
    root = 1.0 / sigma.numpy()
    columns = np.column_stack([np.ones(120), x])
    beta = np.linalg.lstsq(columns * root[:, None], y * root, rcond=None)[0]
    left = (y - columns @ beta) * root
    truth = -0.5 * (left @ left) + np.log(root).sum() - 60.0 * np.log(2.0 * np.pi)
    assert fit.log_likelihood == pytest.approx(float(truth), rel=1e-10)


def test_a_line_hides_nothing_in_its_rounding() -> None:
    """Beside a slope times 1e9 an intercept is next to nothing, but it is there."""
    x, y = draws(7)

    def model(y: Tensor) -> None:
        a = pyro.param("a", torch.tensor(0.0))
        b = pyro.param("b", torch.tensor(0.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(a + b * (torch.tensor(x) + 1.5e9), 1.0), obs=y)

    table = EM(model, "mle").explain(torch.tensor(y)).set_index("site")
    assert list(table.loc[["a", "b"], "M-step"]) == ["closed form", "closed form"]


@pytest.mark.parametrize(("apart", "noise"), [(1e6, 1.0), (1.0, 1e-6)])
def test_lines_far_apart_in_units_of_their_noise(apart: float, noise: float) -> None:
    """Each line is then fitted by its own rows alone."""
    x, _ = draws(8)
    which = np.arange(120) % 2
    lines = np.where(which, apart * (1.0 + x), apart * (x - 9.0))
    y = lines + noise * np.random.default_rng(9).normal(size=120)
    em = EM(regression_mixture, "mle", seed=0)
    fit = em.fit(torch.tensor(y), torch.tensor(x), components=2)
    assert fit.converged
    each = [least_squares(x[which == k, None], y[which == k]) for k in (0, 1)]
    assert fit.log_likelihood == pytest.approx(sum(each) - 120 * np.log(2.0), rel=1e-9)


@pytest.mark.parametrize("far", [0.0, 1e6])
def test_a_line_without_noise_has_no_finite_scale(far: float) -> None:
    x = torch.tensor(draws(10)[0] + far)
    with pytest.raises(ValueError, match="component 0 of site 'precisions' has collapsed"):
        EM(regression_mixture, "mle", seed=0).fit(2.0 * x + 1.0, x, components=1)
    fit = EM(regression_mixture, seed=0).fit(2.0 * x + 1.0, x, components=1)
    assert fit.converged
    assert float(fit.params["coefficients"][0, 1]) == pytest.approx(2.0, rel=1e-3)
