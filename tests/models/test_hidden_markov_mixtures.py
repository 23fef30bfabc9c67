"""Hidden Markov chains with mixtures as emissions: sites, densities, hmmlearn, missing entries."""

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from ember.inference import EM
from ember.models import hidden_markov_gaussian, hidden_markov_gaussian_mixture
from tests.inference.gaps import row_log_prob

S, T, D, K, M = 3, 5, 2, 2, 3
NAN = torch.nan
COVARIANCES = ("full", "diag", "spherical", "tied")
PRECISIONS: dict[str, tuple[int, ...]] = {
    "full": (K, M, D, D),
    "tied": (D, D),
    "diag": (K, M, D),
    "spherical": (K, M),
}
each_covariance = pytest.mark.parametrize("covariance", COVARIANCES)


def data(*batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 6.0]], dtype=torch.float64)
    which = torch.randint(4, batch, generator=generator)
    return (centres[which] + torch.randn(*batch, D, generator=generator).double()).to(dtype)


@each_covariance
@pytest.mark.parametrize("batch", [(9,), (S, T)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sites(
    covariance: str, batch: tuple[int, ...], dtype: torch.dtype, check_sites: Any, check_guides: Any
) -> None:
    x = data(*batch, dtype=dtype)
    shapes = {
        "initial": (K,),
        "transition": (K, K),
        "weights": (K, M),
        "precisions": PRECISIONS[covariance],
        "locs": (K, M, D),
        "x": (*batch, D),
    }
    model = hidden_markov_gaussian_mixture
    check_sites(shapes, dtype, model, x, K, M, covariance=covariance)
    if dtype == torch.float32:
        lengths = [5, 2, 3] if len(batch) == 2 else None
        check_guides(model, x, K, M, covariance=covariance, lengths=lengths)
        x[..., 1, 0] = x[..., -1, :] = NAN
        check_guides(model, x, K, M, covariance=covariance, lengths=lengths)


def precision(covariance: str, params: dict[str, Any], k: int, m: int) -> Any:
    own = params["precisions"]
    own = own if covariance == "tied" else own[k, m]
    return own if covariance in ("full", "tied") else np.eye(D) * own


@each_covariance
@pytest.mark.parametrize("gaps", [False, True])
def test_log_likelihood_equals_brute_force(
    covariance: str, gaps: bool, prior_draw: Any, log_likelihood: Any
) -> None:
    x = data(S, T)
    if gaps:
        x[0, 1] = x[0, -1] = x[1, 2, 0] = x[2, 0, 1] = NAN
    lengths = [T, T, 3]
    options = {"covariance": covariance, "lengths": lengths}
    draw = prior_draw(hidden_markov_gaussian_mixture, x, K, M, **options)
    params = {name: value.numpy() for name, value in draw.items()}
    total = 0.0
    for row, length in zip(x.numpy(), lengths, strict=True):
        steps = np.array([
            [
                logsumexp([
                    np.log(params["weights"][k, m])
                    + row_log_prob(
                        step, params["locs"][k, m],
                        np.linalg.inv(precision(covariance, params, k, m)),
                    )
                    for m in range(M)
                ])
                for k in range(K)
            ]
            for step in row[:length]
        ])  # fmt: skip
        total += logsumexp([
            np.log(params["initial"][path[0]])
            + sum(np.log(params["transition"][i, j]) for i, j in itertools.pairwise(path))
            + sum(steps[t, z] for t, z in enumerate(path))
            for path in itertools.product(range(K), repeat=length)
        ])  # fmt: skip
    for padding in (5.0, NAN):
        x[2, 3:] = padding
        found = log_likelihood(hidden_markov_gaussian_mixture, draw, x, K, M, **options)
        assert found.item() == pytest.approx(total, rel=1e-9)


@each_covariance
def test_hmmlearn_has_the_same_likelihood_at_the_same_parameters(covariance: str) -> None:
    hmm = pytest.importorskip("hmmlearn.hmm")
    x = data(80)
    fit = EM(hidden_markov_gaussian_mixture, seed=0).fit(
        x, states=K, components=2, covariance=covariance
    )
    assert bool((fit.history.diff() >= -1e-9 * fit.history[1:].abs()).all())
    params = {name: value.numpy() for name, value in fit.params.items()}
    theirs = hmm.GMMHMM(K, 2, covariance_type=covariance)
    theirs.startprob_, theirs.transmat_ = params["initial"], params["transition"]
    theirs.weights_, theirs.means_, theirs.n_features = params["weights"], params["locs"], D
    own = params["precisions"]
    covariances = np.linalg.inv(own) if covariance in ("full", "tied") else 1 / own
    # Theirs are tied within a state, ours everywhere.
    theirs.covars_ = np.stack([covariances] * K) if covariance == "tied" else covariances
    assert fit.log_likelihood == pytest.approx(theirs.score(x.numpy()), rel=1e-9)
    marginals = theirs.predict_proba(x.numpy())
    np.testing.assert_allclose(fit.posterior("state").probs, marginals, atol=1e-8)
    explained = str(EM(hidden_markov_gaussian_mixture).explain(x, states=K, components=2))
    assert "numerical" not in explained


@each_covariance
def test_one_component_is_the_chain_of_gaussians(covariance: str) -> None:
    x = data(40)
    em: dict[str, Any] = {"seed": 0, "init": "kmeans", "tol": 1e-12}
    plain = EM(hidden_markov_gaussian, **em).fit(x, states=K, covariance=covariance)
    given = {
        name: value.unsqueeze(1) if name == "locs" or name == "precisions" != covariance else value
        for name, value in plain.params.items()
    }
    if covariance == "tied":
        given["precisions"] = plain.params["precisions"]
    given["weights"] = torch.ones(K, 1, dtype=torch.float64)
    both = EM(hidden_markov_gaussian_mixture, **{**em, "init": given}).fit(
        x, states=K, components=1, covariance=covariance
    )
    assert both.log_likelihood == pytest.approx(plain.log_likelihood, rel=1e-9)


X = data(6)
ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (X.numpy(), {}, TypeError, "`x` must be a torch.Tensor"),
    (X, {"components": 0}, ValueError, "`components` must be at least 1"),
    (X, {"components": 4}, ValueError, "`states * components=8` is more than the 6 rows"),
    (X, {"covariance": "x"}, ValueError, "`covariance` must be one of"),
    (X, {"prior": {"weights": 1}}, ValueError, "'transition', 'concentration', 'kappa'"),
    (X, {"prior": {"concentration": 0}}, ValueError, "prior['concentration'] must"),
]


@pytest.mark.parametrize(("x", "options", "error", "message"), ERRORS)
def test_errors(x: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        hidden_markov_gaussian_mixture(x, **{"states": K, "components": 2, **options})
