"""Small data for every model of ``ember.models``; a test checks that none is forgotten."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Case = tuple[str, Any, dict[str, Any]]

# By import string: the namespace package `ember` itself has no types.
_models = importlib.import_module("ember.models")
MODELS: dict[str, Callable[..., Any]] = {name: getattr(_models, name) for name in _models.__all__}


def _points(seed: int, rows: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[0.0, 0.0], [4.0, 3.0]], dtype=torch.float64)
    which = torch.arange(rows) % 2
    return centres[which] + torch.randn(rows, 2, generator=generator, dtype=torch.float64)


def _counts(seed: int, rows: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rates = torch.tensor([2.0, 9.0], dtype=torch.float64)[torch.arange(rows) % 2]
    return torch.poisson(rates, generator=generator)


def _codes(seed: int, shape: tuple[int, ...], levels: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels, shape, generator=generator)


def _sequences() -> Tensor:
    return _points(3, 24).reshape(2, 12, 2)


def _system(seed: int, rays: int, pixels: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(rays, pixels, generator=generator, dtype=torch.float64)
    return torch.where(weights < 0.4, weights, 0.0)


def _covariates(rows: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    scale = torch.tensor([1.0, 5.0], dtype=torch.float64)
    return 1.0 + scale * torch.randn(rows, 2, generator=generator, dtype=torch.float64)


def _response(family: str) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    x = _covariates()
    lines = torch.stack([1.0 + 0.8 * x[:, 0], -1.0 - 0.1 * x[:, 1]])
    line = lines[torch.arange(len(x)) % 2, torch.arange(len(x))]
    if family == "poisson":
        return torch.poisson(line.clamp_max(3.0).exp(), generator=generator)
    noise = torch.randn(len(x), generator=generator, dtype=torch.float64)
    return line + 0.4 * noise if family == "gaussian" else (line + noise > 0).double()


CASES: list[Case] = [
    ("gaussian_mixture", _points(0), {"components": 2, "covariance": "full"}),
    ("gaussian_mixture", _points(0), {"components": 2, "covariance": "tied"}),
    ("gaussian_mixture", _points(0), {"components": 2, "covariance": "diag"}),
    ("gaussian_mixture", _points(0), {"components": 2, "covariance": "spherical"}),
    ("multivariate_normal", _points(0).masked_fill(_points(10).abs() > 4.5, torch.nan), {}),
    ("poisson_mixture", _counts(1), {"components": 2}),
    ("bernoulli_mixture", _codes(2, (40, 5), 2).double(), {"components": 2}),
    ("categorical_mixture", _codes(4, (40, 4), 3), {"components": 2, "levels": 3}),
    ("hidden_markov_gaussian", _points(5, 10), {"states": 2}),
    ("hidden_markov_gaussian", _sequences(), {"states": 2, "lengths": torch.tensor([12, 7])}),
    ("hidden_markov_poisson", _counts(6, 12), {"states": 2}),
    ("hidden_markov_poisson", _counts(6, 12), {"states": 2, "stationary": True}),
    ("hidden_markov_categorical", _codes(7, (12,), 3), {"states": 2, "levels": 3}),
    ("hidden_markov_bernoulli", _codes(8, (14, 3), 2), {"states": 2}),
    ("emission_tomography", _counts(8), {"system": _system(8, 60, 8), "background": 0.5}),
    ("emission_tomography", _counts(9), {"system": _system(9, 60, 40).to_sparse()}),
]


def _mixed() -> dict[str, Tensor]:
    data = {
        "continuous": _points(0),
        "counts": _counts(1).unsqueeze(-1),
        "binary": _codes(2, (60, 2), 2).double(),
        "nominal": _codes(4, (60, 1), 3).double(),
    }
    for i, values in enumerate(data.values()):
        values[7 * i : 7 * i + 5, -1] = torch.nan
    return data


def _words() -> Tensor:
    return _counts(1, 60).reshape(10, 6)


HALVES = torch.arange(40) % 2
LABELS = torch.tensor([0, 1] + 8 * [-1])
X = {"X": _covariates(), "components": 2}
CASES += [
    ("multinomial_mixture", _words(), {"components": 2}),
    ("naive_bayes", _words(), {"classes": 2}),
    ("latent_profile", _mixed(), {"components": 2}),
    ("regression_mixture", _response("gaussian"), X),
    ("regression_mixture", _response("gaussian"), {**X, "scale": "tied", "intercept": False}),
    ("hidden_markov_regression", _response("gaussian"), {"X": _covariates(), "states": 2}),
]

# Cases with latent sites, whose states have names that can be exchanged.
WITH_STATES = [case for case in CASES if {"components", "states", "classes"} & case[2].keys()]

# Models with an update that has no closed form, with two latents, or known labels.
NUMERICAL: list[Case] = [
    ("hidden_markov_gaussian_mixture", _points(5, 30), {"states": 2, "components": 3}),
    ("topic_model", _words(), {"topics": 2}),
    ("naive_bayes", _words(), {"classes": 2, "labels": LABELS}),
    ("count_mixture", _counts(1), {"components": 2, "zeros": "inflated"}),
    ("count_mixture", _counts(1), {"components": 2, "zeros": "hurdle"}),
    *(
        ("count_mixture", _counts(1), {"components": 2, "family": "negative_binomial", "zeros": z})
        for z in (None, "inflated", "hurdle")
    ),
    ("regression_mixture", _response("poisson"), {**X, "family": "poisson"}),
    ("regression_mixture", _response("logistic"), {**X, "family": "logistic"}),
    ("mixture_of_experts", _response("gaussian"), X),
    ("student_t_regression", _response("gaussian"), {"X": _covariates()}),
    ("student_t_mixture", _points(0), {"components": 2}),
    ("student_t_mixture", _points(0), {"components": 2, "covariance": "diag"}),
    ("mixture_of_experts", _response("gaussian"), {**X, "components": 3, "scale": "tied"}),
    ("item_response", _codes(2, (40, 5), 2).double(), {}),
    ("item_response", _codes(2, (40, 5), 2).double(), {"model": "1pl", "groups": HALVES}),
    ("item_response", _codes(4, (40, 4), 3), {"model": "graded"}),
]

GROUPS = {"groups": torch.arange(60) % 7}
SLOPES = {**GROUPS, "X": _covariates(), "design": _covariates()}
RELATED = torch.full((60, 60), 0.1, dtype=torch.float64) + 0.9 * torch.eye(60, dtype=torch.float64)

# Models with Gaussian latents, which are integrated, but not by a sum over their values.
INTEGRATED: list[Case] = [
    ("linear_mixed_model", _response("gaussian"), {**GROUPS, "X": _covariates()}),
    ("linear_mixed_model", _response("gaussian"), SLOPES),
    ("linear_mixed_model", _response("gaussian"), {**SLOPES, "correlated": False}),
    ("animal_model", _response("gaussian"), {"relationship": RELATED, "X": _covariates()}),
    ("factor_analysis", torch.cat([_points(0), _covariates()], 1), {"factors": 1}),
    ("probabilistic_pca", torch.cat([_points(0), _covariates()], 1), {"factors": 2}),
    (
        "mixture_of_factor_analysers",
        torch.cat([_points(0), _covariates()], 1),
        {"components": 2, "factors": 1},
    ),
    ("local_level", _points(5, 20)[:, 0].cumsum(0), {}),
    ("local_linear_trend", _points(5, 20)[:, 0].cumsum(0), {}),
    ("linear_gaussian_state_space", _points(5, 20).cumsum(0), {"states": 1}),
    ("structural_dynamics", _points(5, 20), {"modes": 1}),
]


# Models with latents of units, which are integrated on nodes at mode and curvature.
OF_UNITS: list[Case] = [
    ("generalised_linear_mixed_model", _response("logistic"), {**GROUPS, "X": _covariates()}),
    (
        "generalised_linear_mixed_model",
        _response("poisson"),
        {**GROUPS, "X": _covariates(), "family": "poisson", "offset": torch.arange(60) / 60},
    ),
    (
        "generalised_linear_mixed_model",
        _response("poisson").clamp_max(9.0),
        {**GROUPS, "family": "binomial", "trials": torch.full((60,), 9)},
    ),
    (
        "generalised_linear_mixed_model",
        _response("logistic"),
        {**GROUPS, "design": torch.stack([torch.ones(60), _covariates()[:, 0]], -1)},
    ),
    (
        "growth_curves",
        5.0 * torch.sigmoid(torch.arange(60.0) % 6 - 2.5) + 0.3 * _points(0)[:, 0],
        {"times": torch.arange(60.0) % 6, "subjects": torch.arange(60) // 6},
    ),
    ("ordinal_probit", _codes(4, (60,), 3), {**GROUPS, "X": _covariates()}),
]


def model_of(case: Case) -> Callable[..., Any]:
    """The model function of a case."""
    return MODELS[case[0]]


def case_id(case: Case) -> str:
    """A readable name for pytest."""
    data = case[1] if isinstance(case[1], Tensor) else next(iter(case[1].values()))
    options = "-".join(str(v) for v in case[2].values() if isinstance(v, str))
    return "-".join(filter(None, [case[0], options, "x".join(map(str, data.shape))]))
