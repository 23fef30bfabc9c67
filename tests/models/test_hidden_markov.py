"""Hidden Markov chains: sites, log evidence by brute force, lengths, priors, errors."""

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from scipy import stats
from torch import Tensor

from ember.models import (
    hidden_markov_bernoulli,
    hidden_markov_categorical,
    hidden_markov_gaussian,
    hidden_markov_poisson,
)
from ember.models.parts.chains import HiddenMarkov

S, T, D, K, L = 3, 4, 2, 2, 3

Model = Callable[..., None]
CASES: dict[str, tuple[Model, dict[str, Any]]] = {
    **{
        covariance: (hidden_markov_gaussian, {"covariance": covariance})
        for covariance in ("full", "diag", "spherical", "tied")
    },
    "poisson": (hidden_markov_poisson, {}),
    "categorical": (hidden_markov_categorical, {"levels": L}),
    "bernoulli": (hidden_markov_bernoulli, {}),
}
EMISSIONS: dict[str, dict[str, tuple[int, ...]]] = {
    "full": {"precisions": (K, D, D), "locs": (K, D)},
    "tied": {"precisions": (D, D), "locs": (K, D)},
    "diag": {"precisions": (K, D), "locs": (K, D)},
    "spherical": {"precisions": (K,), "locs": (K, D)},
    "poisson": {"rates": (K,)},
    "categorical": {"probs": (K, L)},
    "bernoulli": {"probs": (K, D)},
}


def make_data(case: str, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    if case == "poisson":
        return torch.poisson(torch.full(batch, 4.0, dtype=dtype))
    if case == "categorical":
        return torch.randint(0, L, batch).to(dtype)
    if case == "bernoulli":
        return torch.randint(0, 2, (*batch, D)).to(dtype)
    return torch.randn(*batch, D, dtype=dtype) + 3


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [(T,), (S, T)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sites(case: str, batch: tuple[int, ...], dtype: torch.dtype, check_sites: Any) -> None:
    model, options = CASES[case]
    x = make_data(case, *batch, dtype=dtype)
    shapes: dict[str, tuple[int, ...]] = {"initial": (K,), "transition": (K, K)}
    shapes |= EMISSIONS[case]
    shapes["x"] = tuple(x.shape)
    check_sites(shapes, dtype, model, x, K, **options)
    torch.set_default_dtype(torch.float64)
    check_sites(shapes, dtype, model, x, K, **options)
    if case in ("poisson", "categorical", "bernoulli"):
        check_sites(shapes, torch.float64, model, x.long(), K, **options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [(T,), (S, T)])
def test_runs_under_guides(case: str, batch: tuple[int, ...], check_guides: Any) -> None:
    model, options = CASES[case]
    x = make_data(case, *batch, dtype=torch.float32)
    check_guides(model, x, K, **options)
    if len(batch) == 2:
        check_guides(model, x, K, lengths=torch.tensor([2, 4, 1]), **options)


def emission_log_prob(case: str, params: dict[str, Tensor], x: Tensor) -> Any:
    """Log density of each step in each state (T, K), by scipy."""
    values = {name: value.numpy() for name, value in params.items()}
    rows = x.numpy()
    columns = []
    for k in range(K):
        if case == "poisson":
            columns.append(stats.poisson(values["rates"][k]).logpmf(rows))
        elif case == "categorical":
            columns.append(np.log(values["probs"][k])[rows.astype(int)])
        elif case == "bernoulli":
            columns.append(stats.bernoulli(values["probs"][k]).logpmf(rows).sum(-1))
        else:
            precision = values["precisions"] if case == "tied" else values["precisions"][k]
            if case in ("diag", "spherical"):
                precision = np.eye(D) * precision
            normal = stats.multivariate_normal(values["locs"][k], np.linalg.inv(precision))
            columns.append(normal.logpdf(rows))
    return np.stack(columns, -1)


@pytest.mark.parametrize("stationary", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_log_evidence_equals_brute_force(
    case: str, stationary: bool, prior_draw: Any, log_likelihood: Any
) -> None:
    model, options = CASES[case]
    options = {**options, "stationary": stationary}
    x = make_data(case, T)
    params = prior_draw(model, x, K, **options)
    steps, moves = emission_log_prob(case, params, x), params["transition"].numpy()
    if stationary:
        initial = np.linalg.matrix_power(moves, 10_000)[0]
        params.pop("initial", None)
    else:
        initial = params["initial"].numpy()
    total = 0.0
    for path in itertools.product(range(K), repeat=T):
        chain = initial[path[0]] * np.prod([moves[i, j] for i, j in itertools.pairwise(path)])
        total += chain * np.exp(sum(steps[t, z] for t, z in enumerate(path)))
    ours = log_likelihood(model, params, x, K, **options)
    assert ours.item() == pytest.approx(np.log(total), rel=1e-9)


def test_sampled_sequences_follow_the_chain() -> None:
    chain = HiddenMarkov(  # type: ignore[no-untyped-call]
        torch.tensor([0.7, 0.3]).log(),
        torch.tensor([[0.9, 0.1], [0.4, 0.6]]).log(),
        pyro.distributions.Normal(torch.tensor([0.0, 5.0]), 0.01),
        duration=3,
    )
    states = (chain.sample((20_000,)) > 2.5).double()
    assert float(states[:, 0].mean()) == pytest.approx(0.3, abs=0.015)
    assert float(states[:, 1].mean()) == pytest.approx(0.25, abs=0.015)
    assert float((states[:, 1] * states[:, 2]).mean()) == pytest.approx(0.15, abs=0.015)


@pytest.mark.parametrize("case", CASES)
def test_lengths_equal_cut_sequences(case: str, prior_draw: Any, log_likelihood: Any) -> None:
    model, options = CASES[case]
    lengths = [2, 4, 1]
    x = make_data(case, S, T)
    params = prior_draw(model, x, K, **options)
    for s, length in enumerate(lengths):
        x[s, length:] = torch.nan
    padded = log_likelihood(model, params, x, K, lengths=torch.tensor(lengths), **options)
    with pyro.validation_enabled(False):  # single sequences of one step
        cut = [
            log_likelihood(model, params, x[s, :length], K, **options)
            for s, length in enumerate(lengths)
        ]
    assert padded.item() == pytest.approx(torch.stack(cut).sum().item(), rel=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_prior_and_gradient_ignore_the_padding(case: str, prior_draw: Any) -> None:
    model, options = CASES[case]
    lengths = torch.tensor([2, 4, 1])
    inside = torch.arange(T) < lengths[:, None]
    x = make_data(case, S, T)
    params = prior_draw(model, x, K, **options)
    results = []
    for padding in (1.0, torch.nan, -7.0):
        x[~inside] = padding
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        loss = TraceEnum_ELBO(
            strict_enumeration_warning=False, max_plate_nesting=1
        ).differentiable_loss(
            config_enumerate(poutine.condition(model, leaves)),
            lambda *args, **kwargs: None,
            x,
            K,
            lengths=lengths,
            **options,
        )
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        results.append(torch.cat([loss.reshape(1), *(part.flatten() for part in gradients)]))
    assert results[0].isfinite().all()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_prior_is_overridden() -> None:
    nodes: Any
    sticky = 1 + torch.eye(K) * 9
    prior: dict[str, Any] = {"initial": [2.0, 3.0], "transition": sticky, "kappa": 0.5}
    nodes = (
        poutine.trace(hidden_markov_gaussian).get_trace(make_data("full", T), K, prior=prior).nodes
    )
    assert nodes["initial"]["fn"].concentration.tolist() == [2, 3]
    assert nodes["transition"]["fn"].concentration.tolist() == [[10, 1], [1, 10]]
    torch.testing.assert_close(
        nodes["locs"]["fn"].precision_matrix, 0.5 * nodes["precisions"]["value"]
    )
    codes = make_data("categorical", T)
    prior = {"probs": [1.0, 2.0, 3.0]}
    nodes = (
        poutine.trace(hidden_markov_categorical).get_trace(codes, K, levels=L, prior=prior).nodes
    )
    assert nodes["probs"]["fn"].concentration.tolist() == [[1, 2, 3]] * K
    counts = make_data("poisson", T)
    prior = {"shape": 3.0, "rate": [1.0, 2.0]}
    nodes = poutine.trace(hidden_markov_poisson).get_trace(counts, K, prior=prior).nodes
    assert nodes["rates"]["fn"].concentration.tolist() == [3, 3]
    assert nodes["rates"]["fn"].rate.tolist() == [1, 2]


@pytest.mark.parametrize("case", CASES)
def test_integer_frequency_is_repeated_sequences(case: str, prior_draw: Any) -> None:
    model, options = CASES[case]
    x, lengths = make_data(case, S, T), torch.tensor([2, 4, 3])
    times = torch.tensor([2, 1, 3])
    params = prior_draw(model, x, K, **options)
    joints = []
    for data in (
        (x, {"lengths": lengths, "frequency": times}),
        (x.repeat_interleave(times, 0), {"lengths": lengths.repeat_interleave(times)}),
    ):
        given = poutine.condition(model, params)
        trace = poutine.trace(given).get_trace(data[0], K, **data[1], **options)
        joints.append(float(trace.log_prob_sum()))
    assert joints[0] == pytest.approx(joints[1], rel=1e-10)  # default priors included


def test_frequency_needs_a_batch_of_sequences() -> None:
    with pytest.raises(ValueError, match="`frequency` weighs whole sequences"):
        hidden_markov_poisson(torch.tensor([1.0, 2.0, 3.0]), 2, frequency=[1.0])


ROWS = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
CODES = torch.tensor([[0, 1, 2, 1, 0], [2, 2, 1, 0, 1]])

ERRORS: list[tuple[Model, Any, dict[str, Any], type[Exception], str]] = [
    (hidden_markov_gaussian, ROWS.numpy(), {}, TypeError, "`x` must be a torch.Tensor"),
    (hidden_markov_gaussian, ROWS.long(), {}, TypeError, "`x` must have a floating dtype"),
    (hidden_markov_gaussian, ROWS[0, :, 0], {}, ValueError, "shape (T, D) or (S, T, D), not (5,)"),
    (hidden_markov_gaussian, ROWS[:0], {}, ValueError, "`x` is empty (shape (0, 5, 2))"),
    (hidden_markov_gaussian, ROWS / 0, {}, ValueError, "20 infinite value(s)"),
    (hidden_markov_gaussian, ROWS[0, :1], {"states": 1}, ValueError, "`x` has 1 row(s) in all"),
    (hidden_markov_gaussian, ROWS, {"states": 11}, ValueError, "`states=11` is more than the 10"),
    (hidden_markov_gaussian, ROWS, {"states": 0}, ValueError, "`states` must be at least 1"),
    (hidden_markov_gaussian, ROWS, {"states": "2"}, TypeError, "`states` must be an integer"),
    (hidden_markov_gaussian, ROWS, {"covariance": "x"}, ValueError, "`covariance` must be one of"),
    (hidden_markov_gaussian, ROWS, {"lengths": torch.ones(3)}, ValueError, "shape (2,), one len"),
    (hidden_markov_gaussian, ROWS, {"lengths": torch.ones(2)}, TypeError, "must hold integers"),
    (hidden_markov_gaussian, ROWS, {"lengths": [0, 5]}, ValueError, "between 1 and the 5 steps"),
    (hidden_markov_gaussian, ROWS, {"lengths": [6, 5]}, ValueError, "between 1 and the 5 steps"),
    (hidden_markov_gaussian, ROWS[0], {"lengths": [5]}, ValueError, "`lengths` needs a batch"),
    (hidden_markov_gaussian, ROWS, {"prior": {"weights": 1}}, ValueError, "takes 'initial', 'tr"),
    (hidden_markov_gaussian, ROWS, {"prior": {"initial": 0}}, ValueError, "prior['initial'] must"),
    (
        hidden_markov_gaussian,
        ROWS,
        {"prior": {"transition": torch.ones(3, 3)}},
        ValueError,
        "prior['transition'] must be a number or an array that broadcasts to shape (2, 2)",
    ),
    (hidden_markov_poisson, CODES - 1, {}, ValueError, "`x` must hold counts"),
    (hidden_markov_poisson, CODES[None], {}, ValueError, "(T,) or (S, T), not (1, 2, 5)"),
    (hidden_markov_poisson, CODES, {"prior": {"mean": 1}}, ValueError, "'shape', 'rate'"),
    (hidden_markov_categorical, CODES - 1, {}, ValueError, "`x` must hold level codes"),
    (hidden_markov_categorical, CODES, {"levels": 2}, ValueError, "`x` has the code 2"),
    (hidden_markov_categorical, CODES, {"levels": 1}, ValueError, "`levels` must be at least 2"),
    (hidden_markov_categorical, CODES, {"prior": {"probs": 0}}, ValueError, "greater than 0"),
]


@pytest.mark.parametrize(("model", "data", "options", "error", "message"), ERRORS)
def test_errors(
    model: Model, data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        model(data, **{"states": 2, **options})
