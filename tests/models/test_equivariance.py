"""Default priors know neither the units of the data, nor their origin, nor the order of rows.

With ``y = a x + b`` the estimates follow, and the log posterior changes by the Jacobians alone: by
``-log a`` for every number observed, and by what the density of each parameter changes.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ember.inference import EM
from tests.further import further
from tests.inference.catalogue import (
    CASES,
    INTEGRATED,
    MODELS,
    NUMERICAL,
    OF_UNITS,
    Case,
    case_id,
    model_of,
)

EXACT = 2.0**20  # a shift by which sums of the data are rounded by 1e-10 at most
MOVES = [(1.0, EXACT), (1.0, -5e4), (2.0**-27, 0.0), (2.0**40, 3.0)]
COUNTS = "counts and categories have a zero and a unit"
POSITIVE = {
    name: COUNTS
    for name in (
        "poisson_mixture", "bernoulli_mixture", "categorical_mixture", "multinomial_mixture",
        "naive_bayes", "topic_model", "count_mixture", "emission_tomography",
        "hidden_markov_poisson", "hidden_markov_categorical", "hidden_markov_bernoulli",
        "item_response",
    )
}  # fmt: skip
CONTINUOUS = (
    "gaussian_mixture", "multivariate_normal", "hidden_markov_gaussian",
    "hidden_markov_gaussian_mixture",
    "latent_profile", "regression_mixture", "mixture_of_experts", "hidden_markov_regression",
    "student_t_mixture",
)  # fmt: skip
# Elsewhere: test_gaussian_latents.py, test_student_t.py, and the tests of models with units
ELSEWHERE = {case[0] for case in INTEGRATED + OF_UNITS} | {"student_t_regression"}


def test_no_model_is_forgotten() -> None:
    assert {*POSITIVE, *CONTINUOUS, *ELSEWHERE} == {*MODELS}


def is_gaussian(case: Case) -> bool:
    return case[0] in CONTINUOUS and case[2].get("family", "gaussian") == "gaussian"


GAUSSIAN = [case for case in [*CASES, *NUMERICAL] if is_gaussian(case)]
WITH_LINES = [c for c in [*CASES, *NUMERICAL] if "X" in c[2] and c[0] not in ELSEWHERE]


def fitted(case: Case, data: Any, **changed: Any) -> Any:
    em = EM(model_of(case), seed=0, tol=1e-10, max_iter=3000)
    return em.fit(data, **{**case[2], **changed})


KNOWN: dict[int, Any] = {}


def fitted_once(case: Case) -> Any:
    """The fit of the data as they are, which several tests ask for."""
    if id(case) not in KNOWN:
        KNOWN[id(case)] = fitted(case, case[1])
    return KNOWN[id(case)]


def moved(data: Any, factor: float, shift: float) -> Any:
    if isinstance(data, Tensor):
        return factor * data + shift
    return {k: factor * v + shift if k == "continuous" else v for k, v in data.items()}


def jacobian(case: Case, data: Any, params: dict[str, Tensor], factor: float) -> float:
    """How much the log posterior falls where the data are multiplied."""
    x = data if isinstance(data, Tensor) else data["continuous"]
    entries = float((~x.isnan()).sum())
    if "lengths" in case[2]:
        entries = float(case[2]["lengths"].sum()) * x.shape[-1]
    for name in ("locs", "coefficients"):
        entries += params[name].numel() if name in params else 0.0
    precisions = params["precisions"]
    free = float(precisions.numel())
    usual = "full" if x.dim() > 1 and case[0] != "latent_profile" else "diag"
    if case[2].get("covariance", usual) in ("full", "tied"):
        dim = x.shape[-1]
        free *= (dim + 1) / (2 * dim) if precisions.shape[-2:] == (dim, dim) else 1.0
    return (entries - 2.0 * free) * math.log(factor)


@pytest.mark.parametrize(
    "move", [*MOVES[1:3], *further(MOVES[0], MOVES[3])], ids=lambda m: f"{m[0]:.0e}x{m[1]:+.0e}"
)
@pytest.mark.parametrize("case", GAUSSIAN, ids=case_id)
def test_units_and_origin_of_the_data_do_not_matter(case: Case, move: tuple[float, float]) -> None:
    factor, shift = move
    if case[2].get("intercept") is False:
        shift = 0.0  # lines through the origin know where it is
    one, two = fitted_once(case), fitted(case, moved(case[1], factor, shift))
    expected = one.log_posterior - jacobian(case, case[1], one.params, factor)
    assert two.log_posterior == pytest.approx(expected, rel=1e-7, abs=1e-7)
    if "locs" in one.params:
        torch.testing.assert_close(
            (two.params["locs"] - shift) / factor, one.params["locs"], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("case", WITH_LINES, ids=case_id)
def test_units_and_origin_of_covariates_do_not_matter(case: Case) -> None:
    units = torch.tensor([2.0**-20, 2.0**30], dtype=torch.float64)
    far = torch.tensor([0.0, 2.0**40], dtype=torch.float64)
    if case[2].get("intercept") is False:
        far = torch.zeros(2, dtype=torch.float64)
    one, two = fitted_once(case), fitted(case, case[1], X=case[2]["X"] * units + far)
    coefficients = two.params["coefficients"]
    entries = coefficients.shape[0] * (1 + ("gating" in two.params)) * float(units.log().sum())
    assert two.log_posterior - entries == pytest.approx(one.log_posterior, rel=1e-7)
    slopes, truth = coefficients[:, -2:] * units, one.params["coefficients"][:, -2:]
    torch.testing.assert_close(slopes, truth, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", WITH_LINES, ids=case_id)
def test_columns_that_move_together_are_any_two_columns(case: Case) -> None:
    mixed = case[2]["X"] @ torch.tensor([[1.0, 1.0], [0.0, 2.0**-10]], dtype=torch.float64)
    one, two = fitted_once(case), fitted(case, case[1], X=mixed)
    blocks = one.params["coefficients"].shape[0] * (1 + ("gating" in one.params))
    expected = one.log_posterior + blocks * math.log(2.0**-10)
    assert two.log_posterior == pytest.approx(expected, rel=1e-7)
    assert two.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-5)


@pytest.mark.parametrize("case", WITH_LINES, ids=case_id)
def test_columns_that_determine_each_other_have_a_proper_prior(case: Case) -> None:
    x = case[2]["X"]
    double = torch.cat([x, 2.0 * x[:, :1] + 1.0], 1)
    if case[2].get("intercept") is False:
        double = torch.cat([x, 2.0 * x[:, :1]], 1)
    one, two = fitted_once(case), fitted(case, case[1], X=double)
    assert two.converged
    # The third column's coefficient is at its prior's mode, nought, and changes no line.
    assert two.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-2)
    third = two.params["coefficients"][:, -1]
    torch.testing.assert_close(third, torch.zeros_like(third), rtol=0, atol=0.2)


@pytest.mark.parametrize(
    "case", [c for c in GAUSSIAN if "hidden" not in c[0] and isinstance(c[1], Tensor)], ids=case_id
)
def test_the_order_of_rows_does_not_matter(case: Case) -> None:
    order = torch.randperm(len(case[1]), generator=torch.Generator().manual_seed(0))
    changed: dict[str, Any] = {"X": case[2]["X"][order]} if "X" in case[2] else {}
    one, two = fitted_once(case), fitted(case, case[1][order], **changed)
    again = EM(model_of(case), init=one.params).e_step(
        one.params, case[1][order], **{**case[2], **changed}
    )
    assert again.objective == pytest.approx(one.log_posterior, rel=1e-10)
    assert two.log_posterior == pytest.approx(one.log_posterior, rel=1e-6)


def exposures(shift: float) -> Callable[[], Any]:
    y = torch.poisson(torch.full((60,), 4.0), generator=torch.Generator().manual_seed(0)).double()
    x = torch.linspace(-1.0, 1.0, 60, dtype=torch.float64)
    case = next(c for c in WITH_LINES if c[2].get("family") == "poisson")
    return lambda: fitted(case, y, X=x, components=1, offset=torch.full_like(y, shift))


def test_the_units_of_an_exposure_do_not_matter() -> None:
    days, years = exposures(math.log(365.25))(), exposures(0.0)()
    assert days.log_posterior == pytest.approx(years.log_posterior, rel=1e-9)
    height = days.params["coefficients"][0, 0] + math.log(365.25)
    assert float(height) == pytest.approx(float(years.params["coefficients"][0, 0]), rel=1e-6)
