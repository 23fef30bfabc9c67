"""Counts with zeros of their own: sites, densities, draws, fits against statsmodels and scipy."""

import re
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.optimize
import torch
from scipy import special, stats

from ember.inference import EM
from ember.models import count_mixture
from ember.models.parts.counts import (
    GammaPoisson,
    GatedGammaPoisson,
    PositiveGammaPoisson,
    PositivePoisson,
)

N, K = 30, 2
FAMILIES = ["poisson", "negative_binomial"]
ZEROS = [None, "inflated", "hurdle"]


@pytest.fixture
def x() -> torch.Tensor:
    rng = np.random.default_rng(3)
    counts = rng.poisson(np.where(np.arange(N) % 2, 2.0, 8.0))
    return torch.from_numpy(np.where(rng.random(N) < 0.3, 0, counts)).double()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_sites(
    x: torch.Tensor, family: str, zeros: str | None, dtype: torch.dtype, check_sites: Any
) -> None:
    shapes: dict[str, tuple[int, ...]] = {"weights": (K,), "rates": (K,), "assignment": (N,)}
    shapes |= {"x": (N,)}
    shapes |= {"concentrations": (K,)} if family == "negative_binomial" else {}
    shapes |= {"inflation": (), "structural": (N,)} if zeros == "inflated" else {}
    shapes |= {"occurrence": (), "positive": (N,)} if zeros == "hurdle" else {}
    expected = dtype if dtype.is_floating_point else torch.float32
    x = 0 * x if zeros == "inflated" else x  # a draw of `structural` could contradict other counts
    check_sites(shapes, expected, count_mixture, x.to(dtype), K, family=family, zeros=zeros)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("zeros", ZEROS)
def test_models_run_under_guides(
    x: torch.Tensor, family: str, zeros: str | None, check_guides: Any
) -> None:
    check_guides(count_mixture, x.float(), K, family=family, zeros=zeros)
    check_guides(count_mixture, x.float(), family=family, zeros=zeros)


def _pmf(value: Any, rates: Any, concentrations: Any = None) -> np.ndarray[Any, Any]:
    if concentrations is None:
        return np.asarray(stats.poisson(rates).pmf(value))
    success = concentrations / (concentrations + rates)
    return np.asarray(stats.nbinom(concentrations, success).pmf(value))


def _marginal(params: dict[str, Any], x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The probability of each count by the formulas in the docstring."""
    params = {name: value.numpy() for name, value in params.items()}
    arguments = (params["rates"], params.get("concentrations"))
    kinds, none = _pmf(x[:, None], *arguments), _pmf(0, *arguments)
    zero = (x == 0).astype(float)
    if "inflation" in params:
        share = params["inflation"]
        return np.asarray(share * zero + (1 - share) * (kinds @ params["weights"]))
    if "occurrence" in params:
        share = params["occurrence"]
        above = (kinds / (1 - none)) @ params["weights"]
        return np.asarray(np.where(x == 0, 1 - share, share * above))
    return np.asarray(kinds @ params["weights"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("zeros", ZEROS)
def test_log_likelihood_is_that_of_the_formulas(
    x: torch.Tensor, family: str, zeros: str | None, prior_draw: Any, log_likelihood: Any
) -> None:
    params = prior_draw(count_mixture, x, K, family=family, zeros=zeros)
    joint = log_likelihood(count_mixture, params, x, K, family=family, zeros=zeros)
    ours = float(joint.detach())
    assert ours == pytest.approx(np.log(_marginal(params, x.numpy())).sum(), rel=1e-9)


def test_priors(x: torch.Tensor, prior_draw: Any, log_joint: Any) -> None:
    options: dict[str, Any] = {"family": "negative_binomial", "zeros": "hurdle"}
    options["prior"] = {"ones": 2.0, "zeros": 3.0, "dispersion_rate": 0.5, "shape": 4.0}
    params = prior_draw(count_mixture, x, 1, **options)
    joint = float(
        log_joint(count_mixture, {**params, "assignment": torch.zeros(N).long()}, x, 1, **options)
    )
    values = {name: value.numpy() for name, value in params.items()}
    prior = (
        stats.beta(2, 3).logpdf(values["occurrence"])
        + stats.gamma(1.5, scale=2.0).logpdf(values["concentrations"]).sum()
        + stats.gamma(4, scale=float(x.mean()) / 4).logpdf(values["rates"]).sum()
    )
    likelihood = np.log(_marginal(params, x.numpy())).sum()
    assert joint == pytest.approx(likelihood + prior, rel=1e-9)


# -- fits ------------------------------------------------------------------------------------------


def _visits() -> tuple[torch.Tensor, torch.Tensor, np.ndarray[Any, Any]]:
    """Outpatient visits in the RAND health insurance experiment: 20190 rows as a table."""
    sm: Any = pytest.importorskip("statsmodels.api")
    visits = sm.datasets.randhie.load_pandas().data["mdvis"].to_numpy()
    values, frequency = np.unique(visits, return_counts=True)
    return torch.from_numpy(values), torch.from_numpy(frequency).double(), visits


@pytest.mark.parametrize(
    ("family", "zeros"),
    [("poisson", "inflated"), ("poisson", "hurdle"), ("negative_binomial", None)],
)
def test_one_component_is_the_model_of_statsmodels(family: str, zeros: str | None) -> None:
    values, frequency, visits = _visits()
    fit = EM(count_mixture, "mle", tol=1e-12).fit(
        values, family=family, zeros=zeros, frequency=frequency
    )
    one = np.ones((len(visits), 1))
    if zeros == "inflated":
        from statsmodels.discrete.count_model import ZeroInflatedPoisson

        theirs = ZeroInflatedPoisson(visits, one, exog_infl=one).fit(disp=0, maxiter=200, gtol=1e-9)
        share = special.expit(theirs.params[0])
        assert float(fit.params["inflation"]) == pytest.approx(share, rel=1e-3)
        rate = np.exp(theirs.params[1])
    elif zeros == "hurdle":
        from statsmodels.discrete.truncated_model import HurdleCountModel

        theirs = HurdleCountModel(visits, one).fit(disp=0)
        assert float(fit.params["occurrence"]) == pytest.approx(np.mean(visits > 0), rel=1e-10)
        rate = np.exp(theirs.params[1])
    else:
        from statsmodels.discrete.discrete_model import NegativeBinomial

        theirs = NegativeBinomial(visits, one).fit(disp=0, gtol=1e-8)
        rate = np.exp(theirs.params[0])
        concentration = float(fit.params["concentrations"][0])
        assert concentration == pytest.approx(1 / theirs.params[1], rel=1e-4)
    assert float(fit.params["rates"][0]) == pytest.approx(rate, rel=1e-4)
    assert theirs.llf - 1e-7 <= fit.log_likelihood == pytest.approx(theirs.llf, abs=1e-3)


@pytest.mark.parametrize("zeros", ["inflated", "hurdle"])
def test_two_components_are_at_the_maximum_of_the_formulas(zeros: str) -> None:
    values, frequency, _ = _visits()
    fit = EM(count_mixture, "mle", seed=0, tol=1e-12).fit(
        values, K, zeros=zeros, frequency=frequency
    )
    share = "inflation" if zeros == "inflated" else "occurrence"

    def negative(flat: np.ndarray[Any, Any]) -> float:
        params = {
            share: torch.as_tensor(special.expit(flat[0])),
            "weights": torch.as_tensor(special.softmax([0.0, flat[1]])),
            "rates": torch.as_tensor(np.exp(flat[2:])),
        }
        return -float(np.log(_marginal(params, values.numpy())) @ frequency.numpy())

    weights = fit.params["weights"].numpy()
    odds = [special.logit(float(fit.params[share])), np.log(weights[1] / weights[0])]
    start = np.concatenate([odds, fit.params["rates"].log().numpy()])
    assert -negative(start) == pytest.approx(fit.log_likelihood, rel=1e-10)
    found = scipy.optimize.minimize(negative, start, method="Nelder-Mead", options={"xatol": 1e-9})
    np.testing.assert_allclose(found.x, start, atol=2e-3)
    assert fit.log_likelihood >= -found.fun - 1e-6


def test_hurdle_and_inflation_are_two_ways_to_say_the_same() -> None:
    values, frequency, _ = _visits()
    fits = [
        EM(count_mixture, "mle", seed=0, tol=1e-12).fit(values, K, zeros=z, frequency=frequency)
        for z in ("inflated", "hurdle")
    ]
    assert fits[0].log_likelihood == pytest.approx(fits[1].log_likelihood, rel=1e-10)
    rates = [fit.params["rates"].sort().values for fit in fits]
    torch.testing.assert_close(rates[0], rates[1], rtol=1e-5, atol=0)


def test_poisson_with_structural_zeros_is_closed_form_and_nothing_asks_the_model(
    x: torch.Tensor,
) -> None:
    table = EM(count_mixture).explain(x, K, zeros="inflated").set_index("site")
    assert set(table["M-step"][["weights", "inflation", "rates"]]) == {"closed form"}
    for zeros in ZEROS:
        why = EM(count_mixture).explain(x, K, family="negative_binomial", zeros=zeros)["why"]
        assert not any("evaluated by the model" in str(reason) for reason in why)


@pytest.mark.parametrize("zeros", ZEROS)
def test_frequency_is_repeated_rows(x: torch.Tensor, zeros: str | None) -> None:
    frequency = torch.arange(N) % 3
    em = EM(count_mixture, init={"rates": torch.tensor([8.0, 2.0])}, seed=0)
    weighted = em.fit(x, K, zeros=zeros, frequency=frequency)
    repeated = em.fit(x.repeat_interleave(frequency), K, zeros=zeros)
    assert weighted.log_posterior == pytest.approx(repeated.log_posterior, rel=1e-9)


@pytest.mark.parametrize(
    "fn",
    [
        PositivePoisson(torch.tensor(1.3), torch.tensor(1.0)),
        PositiveGammaPoisson(torch.tensor(0.7), torch.tensor(0.5), torch.tensor(1.0)),
        GatedGammaPoisson(torch.tensor(0.7), torch.tensor(0.5), torch.tensor(1.0)),
    ],
    ids=lambda fn: type(fn).__name__,
)
def test_draws_follow_the_density(fn: Any) -> None:
    n, top = 20_000, 7
    grid = torch.arange(400.0)
    mass = fn.log_prob(grid).exp()
    assert float(mass.sum()) == pytest.approx(1.0, rel=1e-5)
    cells = torch.cat([mass[:top], mass[top:].sum(0, keepdim=True)]).double().numpy()
    draws = fn.sample((n,)).clamp_max(top).long()
    observed = torch.bincount(draws, minlength=top + 1).numpy()
    kept = cells > 0
    assert observed[~kept].sum() == 0
    expected = n * cells[kept] / cells[kept].sum()
    assert stats.chisquare(observed[kept], expected).pvalue > 1e-3
    shut = fn.expand((3,))
    shut.occurs = torch.zeros(3)
    assert shut.sample((2,)).tolist() == [[0.0] * 3] * 2
    assert shut.log_prob(torch.tensor([0.0, 1.0, 2.0])).tolist() == [0.0, -np.inf, -np.inf]


def test_draws_of_a_fit_have_zeros_where_they_should() -> None:
    values, frequency, _ = _visits()
    for zeros in ("inflated", "hurdle"):
        fit = EM(count_mixture, seed=0).fit(values, zeros=zeros, frequency=frequency)
        draws = fit.sample(4000, seed=1)
        share = float((draws["x"] == 0).double().mean())
        assert share == pytest.approx(_marginal(fit.params, np.zeros(1))[0], abs=0.03)
        if zeros == "hurdle":
            assert torch.equal(draws["x"] > 0, draws["positive"] > 0)


X = torch.tensor([0, 2, 0, 5])

ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (X.numpy(), {}, TypeError, "`x` must be a torch.Tensor, not ndarray"),
    (X[:, None], {}, ValueError, "`x` must have shape (N,), not (4, 1)"),
    (-X, {}, ValueError, "`x` must hold counts 0, 1, 2"),
    (X * 0, {"zeros": "hurdle"}, ValueError, "`x` has only zeros, so nothing is above the hurdle"),
    (X, {"zeros": "many"}, ValueError, "`zeros` must be one of None, 'inflated', 'hurdle'"),
    (X, {"family": "normal"}, ValueError, "`family` must be one of 'poisson', 'negative_binomial'"),
    (X, {"components": 5}, ValueError, "`components=5` is more than the 4 rows"),
    (X, {"prior": {"ones": 1.0}}, ValueError, "this model takes 'concentration', 'shape', 'rate'."),
    (X, {"zeros": "hurdle", "prior": {"ones": 0}}, ValueError, "prior['ones'] must be greater"),
    (X, {"frequency": [1, -1, 1, 1]}, ValueError, "`frequency` must be finite and non-negative"),
]


@pytest.mark.parametrize(("x", "options", "error", "message"), ERRORS)
def test_errors(x: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        count_mixture(x, **options)


@pytest.mark.parametrize("concentration", [0.3, 9_999.0, 10_001.0, 1e9, 1e12])
def test_density_stays_exact_as_the_concentration_grows(concentration: float) -> None:
    for rate in (0.01, 1.0, concentration / 4.0):
        for count in (0, 1, 7, 5000):
            with mpmath.workdps(50):
                r, q = mpmath.mpf(concentration), mpmath.mpf(rate)
                truth = mpmath.loggamma(r + count) - mpmath.loggamma(r)
                truth += r * mpmath.log(q / (1 + q)) - count * mpmath.log(1 + q)
                truth -= mpmath.loggamma(count + 1)
            both = torch.tensor([concentration, rate], dtype=torch.float64)
            found = GammaPoisson(*both).log_prob(torch.tensor(float(count), dtype=torch.float64))
            assert float(found) == pytest.approx(float(truth), rel=2e-11, abs=2e-11)


@pytest.mark.parametrize("zeros", [None, "inflated", "hurdle"])
def test_counts_without_overdispersion_end_at_the_poisson(zeros: str | None) -> None:
    """The likelihood rises towards its limit at an infinite concentration, and not above it."""
    x = torch.tensor([3.0, 4, 5, 4, 3, 5, 4, 6, 2, 4, 5, 3])
    x = x if zeros is None else torch.cat([x, torch.zeros(6)])
    em = EM(count_mixture, "mle", seed=0)
    one = em.fit(x, components=1, family="poisson", zeros=zeros)
    with pytest.warns(RuntimeWarning, match="'concentration.*' is at infinity"):
        two = em.fit(x, components=1, family="negative_binomial", zeros=zeros)
    assert "infinity" in two.stop_reason
    assert two.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-6)
    assert two.log_likelihood <= one.log_likelihood + 1e-9 * abs(one.log_likelihood)


@pytest.mark.filterwarnings("ignore:.*is at infinity:RuntimeWarning")  # Poisson counts
@pytest.mark.thorough
def test_zero_inflation_is_no_worse_than_none_from_any_start() -> None:
    """A drawn share of structural zeros must not outweigh what the positive counts say."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.full((60,), 3.0), torch.full((60,), 25.0)
    x = torch.cat([torch.zeros(40), torch.poisson(torch.cat([low, high]), generator)])
    for family in ("poisson", "negative_binomial"):
        plain = EM(count_mixture, "mle", seed=0, restarts=4).fit(x, 2, family=family)
        for init in ("kmeans", "points", "hierarchical"):
            em = EM(count_mixture, "mle", seed=0, init=init)
            fit = em.fit(x, 2, family=family, zeros="inflated")
            assert fit.log_likelihood > plain.log_likelihood + 1.0
