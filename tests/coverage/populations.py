"""Five populations whose parameters are known, and data sets drawn from them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.models import (
    gaussian_mixture,
    hidden_markov_poisson,
    item_response,
    linear_mixed_model,
    student_t_regression,
)

__all__ = ["POPULATIONS", "Population"]

Data = tuple[Tensor, dict[str, Any]]


@dataclass(frozen=True)
class Population:
    """A model with the parameters that its data come from.

    Attributes:
        model: The model.
        truth: Its parameters.
        draw: Data by a seed, as the model takes them.
    """

    model: Callable[..., None]
    truth: dict[str, Tensor]
    draw: Callable[[torch.Generator], Data]


def _tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


WEIGHTS, LOCS, PRECISIONS = _tensor(0.6, 0.4), _tensor([0.0, 0.0], [2.5, 1.5]), _tensor(1.0, 2.0)


def _mixture(generator: torch.Generator) -> Data:
    z = torch.multinomial(WEIGHTS, 200, replacement=True, generator=generator)
    noise = _normal(generator, 200, 2) * PRECISIONS[z].rsqrt().unsqueeze(-1)
    return LOCS[z] + noise, {"components": 2, "covariance": "spherical"}


RATES, INITIAL = _tensor(2.0, 7.0), _tensor(0.5, 0.5)
MOVES = _tensor([0.9, 0.1], [0.2, 0.8])


def _chain(generator: torch.Generator) -> Data:
    states = [int(torch.multinomial(INITIAL, 1, generator=generator))]
    for _ in range(299):
        states.append(int(torch.multinomial(MOVES[states[-1]], 1, generator=generator)))
    return torch.poisson(RATES[states], generator=generator), {"states": 2}


def _groups(generator: torch.Generator) -> Data:
    group, x = torch.arange(200) % 40, _normal(generator, 200)
    y = 1.0 + 0.5 * x + _normal(generator, 40)[group] + 0.7 * _normal(generator, 200)
    return y, {"X": x, "groups": group}


SLOPES, INTERCEPTS = _tensor(0.7, 1.0, 1.5, 1.2, 0.9), _tensor(-1.0, -0.5, 0.0, 0.5, 1.0)


def _answers(generator: torch.Generator) -> Data:
    logits = SLOPES * _normal(generator, 500, 1) + INTERCEPTS
    chance = torch.rand(500, 5, generator=generator, dtype=torch.float64)
    return (chance < logits.sigmoid()).double(), {}


def _heavy_tails(generator: torch.Generator) -> Data:
    x = _normal(generator, 200)
    chi2 = _normal(generator, 200, 4).square().sum(-1)
    noise = 0.5 * _normal(generator, 200) / (chi2 / 4.0).sqrt()
    return 1.0 - 2.0 * x + noise, {"X": x}


POPULATIONS = {
    "Gaussian mixture": Population(
        gaussian_mixture, {"weights": WEIGHTS, "precisions": PRECISIONS, "locs": LOCS}, _mixture
    ),
    "hidden Markov": Population(
        hidden_markov_poisson, {"rates": RATES, "initial": INITIAL, "transition": MOVES}, _chain
    ),
    "mixed model": Population(
        linear_mixed_model,
        {
            "coefficients": _tensor(1.0, 0.5),
            "variance": torch.tensor(0.49).double(),
            "group_variance": torch.tensor(1.0).double(),
        },
        _groups,
    ),
    "item response": Population(
        item_response, {"discriminations": SLOPES, "intercepts": INTERCEPTS}, _answers
    ),
    "Student's t": Population(
        student_t_regression,
        {
            "coefficients": _tensor(1.0, -2.0),
            "precision": torch.tensor(4.0).double(),
            "df": torch.tensor(4.0).double(),
        },
        _heavy_tails,
    ),
}
