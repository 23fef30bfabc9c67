"""Generalised linear mixed models: sites, densities against sums over a grid, errors."""

from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from torch import Tensor

from ember.inference import EM
from ember.models import generalised_linear_mixed_model

Array = np.ndarray[Any, Any]
LINE = np.linspace(-9.0, 9.0, 1201)
GROUP = torch.arange(96) % 12
X = torch.linspace(-1.0, 1.0, 96, dtype=torch.float64).roll(17)
TRIALS = torch.arange(96) % 4 + 2


def shapes(*args: Any, **kwargs: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of all sites but plates."""
    trace: Any = poutine.trace(generalised_linear_mixed_model).get_trace(*args, **kwargs)
    return {
        name: tuple(site["value"].shape)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
    }


def response(family: str) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    u = torch.randn(12, generator=generator, dtype=torch.float64)
    line = 0.4 + 0.8 * X + 0.9 * u[GROUP]
    torch.manual_seed(6)
    if family == "poisson":
        return torch.poisson(line.exp())
    count = TRIALS if family == "binomial" else torch.ones(96)
    drawn: Tensor = dist.Binomial(count, logits=line).sample()
    return drawn.double()


def log_likelihood(family: str, y: Array, b: Array, sd: float, weights: Array) -> float:
    """Of a random intercept, by a sum over 1201 points."""
    line = (b[0] + b[1] * X.numpy())[:, None] + sd * LINE
    if family == "poisson":
        rows = scipy.stats.poisson.logpmf(y[:, None], np.exp(line))
    else:
        count = TRIALS.numpy() if family == "binomial" else np.ones(96)
        rows = scipy.stats.binom.logpmf(y[:, None], count[:, None], scipy.special.expit(line))
    joint = np.zeros((12, len(LINE)))
    np.add.at(joint, GROUP.numpy(), weights[:, None] * rows)
    joint += scipy.stats.norm.logpdf(LINE) + np.log(LINE[1] - LINE[0])
    return float(scipy.special.logsumexp(joint, axis=1).sum())


def options(family: str) -> dict[str, Any]:
    trials = {"trials": TRIALS} if family == "binomial" else {}
    return {"X": X, "groups": GROUP, "family": family, **trials}


@pytest.mark.parametrize("family", ["logistic", "binomial", "poisson"])
def test_maximum_likelihood_is_that_of_direct_maximisation(family: str) -> None:
    y, ones = response(family), np.ones(96)
    fit = EM(generalised_linear_mixed_model, "mle", seed=0).fit(y, **options(family))
    b, v = fit.params["coefficients"].numpy(), float(fit.params["group_variance"])
    truth = log_likelihood(family, y.numpy(), b, v**0.5, ones)
    assert fit.log_likelihood == pytest.approx(truth, abs=1e-5)

    def objective(at: Array) -> float:
        return -log_likelihood(family, y.numpy(), at[:2], float(np.exp(at[2])), ones)

    direct = scipy.optimize.minimize(objective, np.zeros(3), method="BFGS")
    assert fit.log_likelihood >= -direct.fun - 1e-5
    assert b == pytest.approx(direct.x[:2], abs=2e-3)
    assert v**0.5 == pytest.approx(float(np.exp(direct.x[2])), abs=2e-3)


def test_frequencies_are_repeated_rows() -> None:
    y, times = response("poisson"), torch.arange(96) % 3
    params = {
        "coefficients": torch.tensor([0.3, 0.7]).double(),
        "group_variance": torch.tensor(0.6).double(),
    }
    found = EM(generalised_linear_mixed_model, "mle").e_step(
        params, y, **options("poisson"), frequency=times
    )
    b = params["coefficients"].numpy()
    truth = log_likelihood("poisson", y.numpy(), b, 0.6**0.5, times.numpy())
    assert found.log_likelihood == pytest.approx(truth, abs=1e-5)


def test_gaps_are_rows_left_out() -> None:
    y = response("logistic")
    hidden = torch.arange(96) % 5 == 2
    gappy = torch.where(hidden, torch.nan, y)
    fits = [
        EM(generalised_linear_mixed_model, seed=0).fit(data[rows], X[rows], groups=GROUP[rows])
        for data, rows in ((gappy, slice(None)), (y, ~hidden))
    ]
    assert fits[0].log_posterior == pytest.approx(fits[1].log_posterior, abs=1e-6)
    assert torch.allclose(fits[0].params["coefficients"], fits[1].params["coefficients"], atol=1e-4)


def test_units_of_covariates_make_no_odds() -> None:
    y, design = response("poisson"), torch.stack([torch.ones(96).double(), X], -1)
    moved = 3.0 + 1000.0 * X
    one = EM(generalised_linear_mixed_model, seed=0).fit(
        y, X, groups=GROUP, family="poisson", design=design
    )
    other = EM(generalised_linear_mixed_model, seed=0).fit(
        y, moved, groups=GROUP, family="poisson",
        design=torch.stack([torch.ones(96).double(), moved], -1),
    )  # fmt: skip
    assert other.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-3)
    slope = float(other.params["coefficients"][1]) * 1000.0
    assert slope == pytest.approx(float(one.params["coefficients"][1]), abs=1e-3)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, {"group_variance": (), "group_effects": (12,)}),
        ({"groups": {"ward": GROUP}}, {"ward_variance": (), "ward_effects": (12,)}),
        ({"design": X}, {"group_precision": (1, 1), "group_effects": (12, 1)}),
        (
            {"design": torch.stack([X, X.square()], -1), "correlated": False},
            {"group_variances": (2,), "group_effects": (12, 2)},
        ),
        ({"family": "poisson", "offset": X}, {"group_variance": (), "group_effects": (12,)}),
    ],
)
def test_sites(kwargs: dict[str, Any], expected: dict[str, Any]) -> None:
    y = response("logistic")
    found = shapes(y, X, **{"groups": GROUP, **kwargs})
    assert found == {"coefficients": (2,), "y": (96,), **expected}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "gamma"}, "`family` must be one of 'logistic', 'binomial', 'poisson'"),
        ({"y": response("poisson")}, "`y` must hold only 0 and 1"),
        ({"family": "binomial"}, "family='binomial' needs `trials`"),
        ({"trials": TRIALS}, "`trials` is about family='binomial'"),
        ({"family": "binomial", "trials": TRIALS[:5]}, r"`trials` must have shape \(96,\)"),
        ({"family": "binomial", "trials": 0 * TRIALS}, "more successes than `trials`"),
        ({"groups": {"a": GROUP, "b": GROUP}}, "2 grouping factors.*pass a single one"),
        ({"groups": GROUP[:4]}, r"`groups` has 4 row\(s\)"),
        ({"prior": {"df": 1.0}}, "unknown key 'df'"),
        ({"X": X[:3]}, r"`X` has 3 row\(s\)"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    given = {"y": response("logistic"), "X": X, "groups": GROUP, **change}
    with pytest.raises(ValueError, match=message):
        generalised_linear_mixed_model(**given)
