"""The chains of ``ember.models`` with missing entries: EM, posteriors, filling in, forecasts."""

from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from ember.inference import EM
from tests.models.chain_paths import CASES, K, Paths, T, gappy

LENGTHS = [T, T, 4]


def sequences(case: str) -> Tensor:
    """Three sequences with gaps; the last one ends before its last, missing, step."""
    return gappy(case, 3, T, seed=3)


@pytest.fixture(scope="module", params=CASES)
def fitted(request: Any) -> tuple[str, Any, Tensor]:
    case: str = request.param
    model, options = CASES[case]
    x = sequences(case)
    fit = EM(model, init="random", seed=0, tol=1e-12).fit(x, states=K, lengths=LENGTHS, **options)
    assert fit.converged
    assert bool((fit.history.diff() >= -1e-9 * fit.history[1:].abs()).all())
    return case, fit, x


def test_the_likelihood_is_a_sum_over_paths(fitted: Any) -> None:
    case, fit, x = fitted
    pieces = [Paths(case, fit.params, row[:n]) for row, n in zip(x, LENGTHS, strict=True)]
    truth = sum(piece.log_likelihood for piece in pieces)
    assert fit.log_likelihood == pytest.approx(truth, rel=1e-9)
    # The states of missing steps are known by their neighbours; those of the last ones by the
    # step before.
    states, filled, path = fit.posterior("state").probs, fit.impute(), fit.predict()
    for i, (piece, n) in enumerate(zip(pieces, LENGTHS, strict=True)):
        np.testing.assert_allclose(states[i, :n], piece.marginals(), atol=1e-8)
        np.testing.assert_allclose(filled[i, :n], piece.filled(), rtol=1e-8, atol=1e-8)
        own = (piece.paths == path[i, :n].numpy()).all(-1)
        assert piece.weights[own].item() == pytest.approx(piece.weights.max(), rel=1e-9)
    transition = fit.params["transition"]
    torch.testing.assert_close(states[:2, -1], states[:2, -2] @ transition)


def test_the_gradient_of_pyro_s_log_joint_is_zero(fitted: Any) -> None:
    """What ``AutoDelta`` ascends: the log joint, in unconstrained coordinates."""
    case, fit, x = fitted
    model, options = CASES[case]
    trace: Any = poutine.trace(model).get_trace(x, K, lengths=LENGTHS, **options)
    supports = {name: biject_to(trace.nodes[name]["fn"].support) for name in fit.params}
    free = {n: supports[n].inv(v.detach()).requires_grad_() for n, v in fit.params.items()}
    values = {name: supports[name](value) for name, value in free.items()}
    given = poutine.condition(model, values)
    trace = poutine.trace(given).get_trace(x, K, lengths=LENGTHS, **options)
    total: Any = trace.log_prob_sum()
    assert float(total.detach()) == pytest.approx(fit.log_posterior, rel=1e-9)
    for gradient in torch.autograd.grad(total, list(free.values())):
        assert float(gradient.abs().max()) < 1e-4


def test_a_forecast_goes_on_from_the_last_observation(fitted: Any) -> None:
    case, fit, x = fitted
    ahead = fit.forecast("state").probs
    transition = fit.params["transition"]
    piece = Paths(case, fit.params, x[0, : T - 1])
    expected = torch.from_numpy(piece.marginals()[-1]) @ transition
    torch.testing.assert_close(ahead[0, T - 1], expected)
    torch.testing.assert_close(ahead[0, T], expected @ transition)


@pytest.mark.parametrize("case", ["full", "diag", "poisson", "categorical", "bernoulli"])
def test_draws_keep_what_is_observed(case: str) -> None:
    model, options = CASES[case]
    x = gappy(case, T)
    fit = EM(model, seed=0).fit(x, states=K, **options)
    draws = fit.impute(draws=3, seed=0)
    assert draws.shape == (3, *x.shape)
    assert bool(draws.isfinite().all())
    shown = ~x.isnan()
    assert torch.equal(draws[:, shown].double(), x[shown].expand(3, -1))
    table = str(EM(model).explain(x, states=K, **options))
    assert f"{int((~shown).sum())} of {x.numel()} entries missing" in table
