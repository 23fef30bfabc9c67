"""Small data for every model of ``ember.models``; a test checks that none is forgotten."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ember.models import (
    bernoulli_mixture,
    categorical_mixture,
    gaussian_mixture,
    hidden_markov_bernoulli,
    hidden_markov_categorical,
    hidden_markov_gaussian,
    hidden_markov_poisson,
    poisson_mixture,
)

Case = tuple[str, Tensor, dict[str, Any]]

MODELS: dict[str, Callable[..., Any]] = {
    model.__name__: model
    for model in (
        bernoulli_mixture,
        categorical_mixture,
        gaussian_mixture,
        hidden_markov_bernoulli,
        hidden_markov_categorical,
        hidden_markov_gaussian,
        hidden_markov_poisson,
        poisson_mixture,
    )
}


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


CASES: list[Case] = [
    ("gaussian_mixture", _points(0), {"components": 2, "covariance": "full"}),
    ("gaussian_mixture", _points(0), {"components": 2, "covariance": "tied"}),
    ("gaussian_mixture", _points(0), {"components": 2, "covariance": "diag"}),
    ("gaussian_mixture", _points(0), {"components": 2, "covariance": "spherical"}),
    ("poisson_mixture", _counts(1), {"components": 2}),
    ("bernoulli_mixture", _codes(2, (40, 5), 2).double(), {"components": 2}),
    ("categorical_mixture", _codes(4, (40, 4), 3), {"components": 2, "levels": 3}),
    ("hidden_markov_gaussian", _points(5, 10), {"states": 2}),
    ("hidden_markov_gaussian", _sequences(), {"states": 2, "lengths": torch.tensor([12, 7])}),
    ("hidden_markov_poisson", _counts(6, 12), {"states": 2}),
    ("hidden_markov_poisson", _counts(6, 12), {"states": 2, "stationary": True}),
    ("hidden_markov_categorical", _codes(7, (12,), 3), {"states": 2, "levels": 3}),
    ("hidden_markov_bernoulli", _codes(8, (14, 3), 2), {"states": 2}),
]


def model_of(case: Case) -> Callable[..., Any]:
    """The model function of a case."""
    return MODELS[case[0]]


def case_id(case: Case) -> str:
    """A readable name for pytest."""
    options = "-".join(str(v) for v in case[2].values() if isinstance(v, str))
    return "-".join(filter(None, [case[0], options, "x".join(map(str, case[1].shape))]))
