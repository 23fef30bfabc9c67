"""Hidden Markov chains with missing entries and steps (NaN) under Pyro alone."""

import functools
import re
from typing import Any

import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_sample

from ember.models import hidden_markov_categorical, hidden_markov_gaussian, hidden_markov_poisson
from tests.models.chain_paths import CASES, NAN, K, Paths, T, gappy

each_case = pytest.mark.parametrize("case", CASES)
LENGTHS = [T, 3, 4]


@each_case
@pytest.mark.parametrize("stationary", [False, True])
def test_missing_entries_drop_out(
    case: str, stationary: bool, prior_draw: Any, log_likelihood: Any
) -> None:
    model, options = CASES[case]
    options = {**options, "stationary": stationary}
    x = gappy(case, T)
    params = prior_draw(model, x, K, **options)
    if stationary:
        params.pop("initial")
    found = log_likelihood(model, params, x, K, **options)
    assert found.item() == pytest.approx(Paths(case, params, x).log_likelihood, rel=1e-9)


@each_case
def test_missing_steps_are_not_padding(case: str, prior_draw: Any, log_likelihood: Any) -> None:
    """The default prior and the likelihood are those of the steps within `lengths`."""
    model, options = CASES[case]
    x = gappy(case, 3, T)
    inside = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    params = prior_draw(model, x, K, **options)
    truth = sum(
        Paths(case, params, row[:length]).log_likelihood
        for row, length in zip(x, LENGTHS, strict=True)
    )
    for padding in (7.0, NAN):
        x[~inside] = padding
        found = log_likelihood(model, params, x, K, lengths=LENGTHS, **options)
        assert found.item() == pytest.approx(truth, rel=1e-9)


@each_case
def test_default_priors_are_those_of_the_observed_steps(case: str, prior_draw: Any) -> None:
    model, options = CASES[case]
    x = gappy(case, T)
    params = prior_draw(model, x, K, **options)
    empty = x.isnan().reshape(T, -1).all(-1)
    priors = []
    for rows in (x, x[~empty]):
        trace = poutine.trace(poutine.condition(model, params)).get_trace(rows, K, **options)
        priors.append(trace.log_prob_sum(lambda name, _: name != "x"))
    torch.testing.assert_close(priors[0], priors[1], rtol=1e-12, atol=1e-12)


@each_case
@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO,
        functools.partial(TraceEnum_ELBO, strict_enumeration_warning=False),
    ],
)
def test_runs_under_svi(case: str, elbo: Any) -> None:
    model, options = CASES[case]
    x = gappy(case, 3, T)
    pyro.clear_param_store()
    guide = AutoDelta(model, init_loc_fn=init_to_sample)
    loss_of = elbo()
    optimiser: Any = pyro.optim.Adam({"lr": 0.001})  # type: ignore[attr-defined]
    svi = SVI(model, guide, optimiser, loss=loss_of)
    for _ in range(3):
        if case not in ("full", "tied"):  # torch has no bijection onto positive-definite matrices
            assert torch.tensor(svi.step(x, K, lengths=LENGTHS, **options)).isfinite()
    guide(x, K, lengths=LENGTHS, **options)
    loss = loss_of.differentiable_loss(model, guide, x, K, lengths=LENGTHS, **options)
    leaves = [value for value in guide.parameters() if value.requires_grad]
    for gradient in torch.autograd.grad(loss, leaves):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (hidden_markov_gaussian, torch.tensor([[1.0, NAN], [2.0, NAN]]), "NaN in column(s) 1"),
        (hidden_markov_poisson, torch.tensor([NAN, NAN]), "nothing but NaN"),
        (hidden_markov_categorical, torch.tensor([0.0, NAN, 0.5]), "fractional"),
    ],
)
def test_errors(model: Any, x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        model(x, 2)
