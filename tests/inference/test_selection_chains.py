"""The sweep over hidden Markov chains: what counts as an observation, a row, a doubt."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ember.inference import EM, select
from ember.inference.selection import criteria
from ember.models import hidden_markov_gaussian, hidden_markov_poisson, hidden_markov_regression

NAN = torch.nan
LENGTHS = torch.tensor([10, 9, 8, 10, 10, 4])


def counts(*shape: int) -> Tensor:
    """Runs of ten small counts and ten large ones."""
    generator = torch.Generator().manual_seed(0)
    steps = math.prod(shape)
    rates = torch.tensor([2.0, 9.0], dtype=torch.float64)[torch.arange(steps) // 10 % 2]
    return torch.poisson(rates, generator=generator).reshape(shape)


def test_the_number_of_states_is_an_option_like_any_other() -> None:
    chosen = select(hidden_markov_poisson, counts(60), states=range(1, 5), em={"seed": 0})
    assert chosen.options == {"states": 2}
    assert chosen.table["parameters"].tolist() == [k * k - 1 + k for k in range(1, 5)]


@pytest.mark.parametrize("model", [hidden_markov_poisson, hidden_markov_gaussian])
def test_steps_count_where_something_was_seen(model: Any) -> None:
    x = counts(6, 10)
    x[0, 3] = x[5, 1] = NAN
    if model is hidden_markov_gaussian:
        x = torch.stack([x, counts(6, 10)], -1)
        x[0, 3, 1] = NAN  # of the step [5, 1] one entry is left
    seen = int(LENGTHS.sum()) - (2 if model is hidden_markov_poisson else 1)
    fit = EM(model, seed=0).fit(x, states=2, lengths=LENGTHS)
    measures = criteria(fit)
    deviance, free = -2.0 * fit.log_likelihood, measures["parameters"]
    assert measures["bic"] == pytest.approx(deviance + free * math.log(seen), rel=1e-12)
    t, pairs = fit.posterior("state").probs, fit.posterior_pairs("state")
    each, both = (-torch.special.xlogy(p, p).sum(-1) for p in (t, pairs.flatten(-2)))
    moves = torch.arange(9) < LENGTHS[:, None] - 1
    entropy = float(each[:, 0].sum() + (both - each[:, :-1])[moves].sum())
    assert measures["icl"] == pytest.approx(measures["bic"] + 2.0 * entropy, rel=1e-10)


def held_out(model: Any, data: list[Tensor], options: dict[str, Tensor], folds: int) -> float:
    """The score by hand: folds dealt out by the seed, whole sequences each."""
    rows = len(data[0])
    fold = torch.arange(rows) % folds
    fold = fold[torch.randperm(rows, generator=torch.Generator().manual_seed(0))]
    total = 0.0
    for i in range(folds):
        kept, left = ([v[m] for v in data] for m in (fold != i, fold == i))
        own, other = (
            {name: value[m] for name, value in options.items()} for m in (fold != i, fold == i)
        )
        fit = EM(model, seed=0).fit(*kept, states=2, **own)
        total += fit.log_prob(*left, **other).sum().item()
    return total / rows


def test_whole_sequences_are_left_out_with_their_lengths() -> None:
    x = counts(6, 10)
    x[1, 2] = NAN
    chosen = select(
        hidden_markov_poisson, x, states=[1, 2], lengths=LENGTHS, folds=3,
        criterion="held_out", em={"seed": 0},
    )  # fmt: skip
    assert (chosen.table["error"] == "").all()
    assert chosen.options == {"states": 2}
    truth = held_out(hidden_markov_poisson, [x], {"lengths": LENGTHS}, 3)
    assert chosen.table["held_out"][1] == pytest.approx(truth, rel=1e-12)


def test_covariates_given_by_name_are_left_out_with_their_sequences() -> None:
    y = counts(6, 10)
    X = torch.randn(6, 10, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chosen = select(hidden_markov_regression, y, X=X, states=[2], folds=2, em={"seed": 0})
    truth = held_out(hidden_markov_regression, [y], {"X": X}, 2)
    assert chosen.table["held_out"][0] == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize(
    ("x", "folds", "message"),
    [
        (counts(60), 3, "whole sequences out, but there is a single one"),
        (counts(3, 20), 4, "folds=4 is more than the 3 sequences"),
    ],
)
def test_held_out_scores_need_sequences(x: Tensor, folds: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(hidden_markov_poisson, x, states=[1, 2], folds=folds, em={"seed": 0})
