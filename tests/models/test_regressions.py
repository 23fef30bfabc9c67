"""Mixtures of regressions and of experts: sites, densities, and fits against other programs."""

import re
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from scipy import special, stats

from ember.inference import EM, SVI
from ember.models import mixture_of_experts, regression_mixture

N, K = 60, 2
FAMILIES = ["gaussian", "poisson", "logistic"]


def data(family: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two lines over two covariates, the second far from zero and of another size."""
    rng = np.random.default_rng(seed)
    X = np.stack([rng.normal(size=N), 2000 + 10 * rng.normal(size=N)], 1)
    centred = X - [0, 2000]
    line = np.where(rng.random(N) < 0.4, 1 + centred @ [0.8, 0.02], -1 - centred @ [0.5, 0.0])
    y = {
        "gaussian": line + 0.3 * rng.normal(size=N),
        "poisson": rng.poisson(np.exp(line)).astype(float),
        "logistic": (rng.random(N) < special.expit(line)).astype(float),
    }[family]
    return torch.from_numpy(y), torch.from_numpy(X)


@pytest.mark.parametrize("model", [regression_mixture, mixture_of_experts])
@pytest.mark.parametrize("scale", ["free", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sites(model: Any, scale: str, dtype: torch.dtype, check_sites: Any) -> None:
    y, X = (value.to(dtype) for value in data("gaussian"))
    own = {"weights": (K,)} if model is regression_mixture else {"gating": (K, 3)}
    shapes = {
        **own,
        "coefficients": (K, 3),
        "precisions": () if scale == "tied" else (K,),
        "assignment": (N,),
        "y": (N,),
    }
    check_sites(shapes, dtype, model, y, X, K, scale=scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_run_under_guides(family: str, check_guides: Any) -> None:
    y, X = (value.float() for value in data(family))
    for model in (regression_mixture, mixture_of_experts):
        check_guides(model, y, X[:, 0], K, family=family)
        check_guides(model, y, None, 1, family=family)


def _lines(params: dict[str, torch.Tensor], X: torch.Tensor, z: np.ndarray) -> np.ndarray:
    design = np.column_stack([np.ones(len(X)), X.numpy()])
    return np.asarray((design * params["coefficients"].numpy()[z]).sum(1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model", [regression_mixture, mixture_of_experts])
def test_log_joint_equals_scipy(model: Any, family: str, prior_draw: Any, log_joint: Any) -> None:
    y, X = data(family)
    z = np.arange(N) % K
    prior: dict[str, Any] = {"mean": [0.1, 0.1, 0.0], "deviation": [0.5, 0.2, 1e-3]}
    if model is mixture_of_experts:
        prior |= {"gating_deviation": [0.7, 0.3, 1e-3]}
    if family == "gaussian":
        prior |= {"df": 5.0, "scale": 2.0}
    offset = torch.linspace(-1, 1, N, dtype=torch.float64)
    options: dict[str, Any] = {"family": family, "prior": prior, "offset": offset}
    params = prior_draw(model, y, X, K, **options)
    values = {**params, "assignment": torch.from_numpy(z)}
    ours = float(log_joint(model, values, y, X, K, **options))
    line = _lines(params, X, z) + options["offset"].numpy()
    coefficients = params["coefficients"].numpy()
    theirs = stats.norm(prior["mean"], prior["deviation"]).logpdf(coefficients).sum()
    if model is mixture_of_experts:
        gating = params["gating"].numpy()
        logits = np.column_stack([np.ones(N), X.numpy()]) @ gating.T
        theirs += stats.norm(0.0, prior["gating_deviation"]).logpdf(gating).sum()
        theirs += special.log_softmax(logits, 1)[np.arange(N), z].sum()
    else:
        weights = params["weights"].numpy()
        theirs += stats.dirichlet.logpdf(weights, np.full(K, 2.0)) + np.log(weights[z]).sum()
    if family == "gaussian":
        precisions = params["precisions"].numpy()
        theirs += stats.gamma(2.5, scale=1.0).logpdf(precisions).sum()
        theirs += stats.norm(line, precisions[z] ** -0.5).logpdf(y.numpy()).sum()
    elif family == "poisson":
        theirs += stats.poisson(np.exp(line)).logpmf(y.numpy()).sum()
    else:
        theirs += stats.bernoulli(special.expit(line)).logpmf(y.numpy()).sum()
    assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_component_is_the_ordinary_regression(family: str) -> None:
    sm: Any = pytest.importorskip("statsmodels.api")
    y, X = data(family)
    offset = torch.linspace(-0.5, 0.5, N).double()
    frequency = torch.arange(N) % 3 + 1
    fit = EM(regression_mixture, "mle").fit(
        y, X, 1, family=family, offset=offset, frequency=frequency
    )
    design = sm.add_constant(X.numpy())
    glm = {"poisson": sm.families.Poisson(), "logistic": sm.families.Binomial()}
    if family == "gaussian":
        theirs: Any = sm.WLS((y - offset).numpy(), design, weights=frequency.numpy()).fit()
        residual = frequency.numpy() * theirs.resid**2
        assert float(fit.params["precisions"]) == pytest.approx(
            float(frequency.sum()) / residual.sum(), rel=1e-7
        )
    else:
        theirs = sm.GLM(
            y.numpy(), design, glm[family], offset=offset.numpy(), freq_weights=frequency.numpy()
        ).fit(tol=1e-14, maxiter=200)
        assert fit.log_likelihood == pytest.approx(theirs.llf, rel=1e-10)
    ours = fit.params["coefficients"][0].numpy()
    np.testing.assert_allclose(ours, theirs.params, rtol=1e-5)
    np.testing.assert_allclose(design @ ours, design @ theirs.params, rtol=1e-6, atol=1e-8)


def test_gaussian_updates_are_weighted_least_squares() -> None:
    y, X = data("gaussian")
    table = EM(regression_mixture).explain(y, X, 2).set_index("site")
    assert set(table["M-step"][["weights", "coefficients", "precisions"]]) == {"closed form"}
    table = EM(mixture_of_experts).explain(y, X, 2).set_index("site")
    assert set(table["M-step"][["coefficients", "precisions"]]) == {"closed form"}
    assert table["M-step"]["gating"] == "numerical"
    assert "evaluated by the model" not in " ".join(table["why"])


CASES = [(regression_mixture, f) for f in FAMILIES[:2]] + [(mixture_of_experts, "gaussian")]


@pytest.mark.parametrize(("model", "family"), CASES)
def test_two_components_reach_the_maximum_that_scipy_finds(model: Any, family: str) -> None:
    y, X = data(family)
    X = (X - X.mean(0)) / X.std(0)
    fit = EM(model, "mle", seed=1, restarts=3, tol=1e-11).fit(y, X, K, family=family)
    design, response = np.column_stack([np.ones(N), X.numpy()]), y.numpy()

    def negative(flat: np.ndarray) -> float:
        line = design @ flat[:6].reshape(2, 3).T
        if family == "poisson":
            density, flat = stats.poisson(np.exp(line)).logpmf(response[:, None]), flat[6:]
        else:
            noise = np.exp(flat[6:8])
            density, flat = stats.norm(line, noise).logpdf(response[:, None]), flat[8:]
        logits = design @ flat[:3] if model is mixture_of_experts else flat[0] + np.zeros(N)
        log_weights = special.log_softmax(np.stack([np.zeros(N), logits], 1), 1)
        return -float(special.logsumexp(density + log_weights, 1).sum())

    params = {name: value.numpy() for name, value in fit.params.items()}
    pieces = [params["coefficients"].ravel()]
    pieces += [-0.5 * np.log(params["precisions"])] if family == "gaussian" else []
    if model is mixture_of_experts:
        pieces += [params["gating"][1] - params["gating"][0]]
    else:
        pieces += [np.log(params["weights"][1:] / params["weights"][0])]
    start = np.concatenate(pieces)
    assert -negative(start) == pytest.approx(fit.log_likelihood, rel=1e-10)
    found = scipy.optimize.minimize(negative, start, method="BFGS", options={"gtol": 1e-8})
    assert fit.log_likelihood == pytest.approx(-found.fun, abs=1e-7)
    np.testing.assert_allclose(found.x, start, atol=1e-3)


def test_gating_of_the_map_sums_to_zero_and_numbers_mean_nothing() -> None:
    y, X = data("gaussian")
    fit = EM(mixture_of_experts, seed=0, tol=1e-11).fit(y, X[:, 0], 3)
    torch.testing.assert_close(
        fit.params["gating"].sum(0), torch.zeros(2).double(), atol=1e-6, rtol=0
    )
    moved = fit.relabel([2, 0, 1])
    for name in ("gating", "coefficients", "precisions"):
        assert torch.equal(moved.params[name], fit.params[name][[2, 0, 1]])
    assert moved.log_prob(y, X[:, 0]).sum() == pytest.approx(fit.log_likelihood, rel=1e-10)


@pytest.mark.parametrize("model", [regression_mixture, mixture_of_experts])
def test_frequency_is_repeated_rows(model: Any) -> None:
    y, X = data("gaussian")
    frequency = torch.arange(N) % 3
    em = EM(model, init={"coefficients": torch.tensor([[1.0, 0.8], [-1.0, -0.5]])}, seed=0)
    weighted = em.fit(y, X[:, 0], K, frequency=frequency)
    repeated = em.fit(y.repeat_interleave(frequency), X[:, 0].repeat_interleave(frequency), K)
    assert weighted.log_posterior == pytest.approx(repeated.log_posterior, rel=1e-9)
    for name, value in weighted.params.items():
        torch.testing.assert_close(value, repeated.params[name], rtol=1e-4, atol=1e-5)


def test_svi_agrees_and_new_rows_are_predicted() -> None:
    y, X = data("gaussian")
    em = EM(mixture_of_experts, seed=0, tol=1e-11).fit(y, X[:, 0], K)
    svi = SVI(mixture_of_experts, guide="delta", steps=700, seed=0).fit(y, X[:, 0], K)
    assert svi.log_posterior == pytest.approx(em.log_posterior, abs=1e-3)
    new = em.log_prob(y[:1], X[:1, 0])
    torch.testing.assert_close(new, em.log_prob()[:1])
    assert em.predict(y[:4], X[:4, 0]).shape == (4,)
    assert em.sample(5)["y"].shape == (5,)


Y, X2 = torch.tensor([0.5, 1.5, 0.0, 4.0]), torch.arange(8.0).reshape(4, 2)

ERRORS: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    (Y.numpy(), X2, {}, TypeError, "`y` must be a torch.Tensor, not ndarray"),
    (Y[:, None], X2, {}, ValueError, "`y` must have shape (N,), not (4, 1)"),
    (Y.long(), X2, {}, TypeError, "`y` must have a floating dtype"),
    (Y / 0, X2, {}, ValueError, "`y` has 4 NaN or infinite value(s)"),
    (Y * 0, X2, {}, ValueError, "`y` is constant in column(s) 0"),
    (Y, X2, {"family": "poisson"}, ValueError, "`y` must hold counts 0, 1, 2"),
    (Y, X2, {"family": "logistic"}, ValueError, "`y` must hold only 0 and 1"),
    (Y, X2, {"family": "probit"}, ValueError, "`family` must be one of 'gaussian', 'poisson'"),
    (Y, X2, {"scale": "full"}, ValueError, "`scale` must be one of 'free', 'tied'"),
    (Y, X2, {"family": "poisson", "scale": "tied"}, ValueError, "is about Gaussian noise"),
    (Y, X2[:3], {}, ValueError, "`X` has 3 row(s) but `y` has 4"),
    (Y, X2.tolist(), {}, TypeError, "`X` must be a torch.Tensor, not list"),
    (Y, X2 / 0, {}, ValueError, "`X` has 8 NaN or infinite value(s)"),
    (Y, X2, {"offset": [0.0, 1.0]}, ValueError, "`offset` must have shape (4,)"),
    (Y, X2, {"components": 5}, ValueError, "`components=5` is more than the 4 rows of `y`"),
    (Y, X2, {"components": 0}, ValueError, "`components` must be at least 1"),
    (Y, X2, {"prior": {"slope": 1.0}}, ValueError, "'mean', 'deviation', 'df', 'scale'"),
    (Y, X2, {"prior": {"deviation": 0.0}}, ValueError, "prior['deviation'] must be greater than"),
    (Y, X2, {"prior": {"mean": [0.0, 1.0]}}, ValueError, "broadcasts to shape (2, 3)"),
    (Y, X2, {"frequency": [1.0]}, ValueError, "`frequency` must have shape (4,)"),
]


@pytest.mark.parametrize("model", [regression_mixture, mixture_of_experts])
@pytest.mark.parametrize(("y", "X", "options", "error", "message"), ERRORS)
def test_errors(
    model: Any, y: Any, X: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        model(y, X, **{"components": 2, **options})


def test_gating_errors() -> None:
    with pytest.raises(ValueError, match="`gating` has 3 row"):
        mixture_of_experts(Y, X2, 2, gating=X2[:3])
