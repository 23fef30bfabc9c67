"""Documents and topics: sites, densities, closed forms, and the formulas of textbooks."""

import re
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import special, stats

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.factors.lookup import LookupFactor
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.objective import score
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.building import build_plan
from ember.inference.reading.matching.arguments import probe_values
from ember.models import multinomial_mixture, naive_bayes, topic_model
from ember.models.parts.documents import Multinomial

N, V, K = 30, 8, 3


def corpus(rows: int = N, words: int = V, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Counts (N, V) of documents of three kinds and of different lengths."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(words, 0.3), size=K)
    lengths = rng.integers(1, length, rows)
    rows_of = [rng.multinomial(n, probs[i % K]) for i, n in enumerate(lengths)]
    return torch.from_numpy(np.stack(rows_of)).double()


LABELS = torch.arange(N) % K
SOME = torch.where(torch.arange(N) < 9, LABELS, -1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_sites(dtype: torch.dtype, check_sites: Any) -> None:
    x = corpus().to(dtype)
    expected = dtype if dtype.is_floating_point else torch.float32
    shapes = {"weights": (K,), "probs": (K, V), "assignment": (N,), "x": (N, V)}
    check_sites(shapes, expected, multinomial_mixture, x, K)
    check_sites(shapes, expected, naive_bayes, x, K)
    check_sites(shapes, expected, naive_bayes, (x > 0).to(dtype), K, family="bernoulli")
    cells = int((x > 0).sum())
    shapes = {"weights": (N, K), "probs": (K, V), "assignment": (cells,), "x": (cells,)}
    check_sites(shapes, expected, topic_model, x, K)
    check_sites(shapes, expected, topic_model, x.to_sparse(), K)


def test_models_run_under_guides(check_guides: Any) -> None:
    x = corpus().float()
    check_guides(multinomial_mixture, x, K)
    check_guides(multinomial_mixture, x, 1)
    check_guides(naive_bayes, x, K, labels=SOME)
    check_guides(naive_bayes, (x > 0).float(), K, family="bernoulli")


def test_log_likelihoods_are_those_of_the_formulas(prior_draw: Any, log_likelihood: Any) -> None:
    x = corpus()
    counts = x.numpy()
    params = prior_draw(multinomial_mixture, x, K)
    weights, probs = params["weights"].numpy(), params["probs"].numpy()
    each = stats.multinomial.logpmf(counts[:, None], counts.sum(1)[:, None], probs)
    expected = special.logsumexp(each + np.log(weights), 1)
    for model in (multinomial_mixture, naive_bayes):
        ours = float(log_likelihood(model, params, x, K).detach())
        assert ours == pytest.approx(expected.sum(), rel=1e-9)
    half = EM(naive_bayes).e_step(params, x, K, labels=SOME)
    known = SOME.numpy() >= 0
    shown = (each + np.log(weights))[np.arange(N), LABELS]
    semi = np.where(known, shown, expected).sum()
    assert half.log_likelihood == pytest.approx(semi, rel=1e-10)
    params = prior_draw(topic_model, x, K)
    ours = EM(topic_model).e_step(params, x, K).log_likelihood  # Pyro's loss takes no row weights
    mixed = (params["weights"] @ params["probs"]).numpy()
    assert ours == pytest.approx(special.xlogy(counts, mixed).sum(), rel=1e-9)


@pytest.mark.parametrize("family", ["multinomial", "bernoulli"])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_all_labels_give_the_classifier_of_scikit_learn_in_one_step(
    family: str, alpha: float
) -> None:
    from sklearn.naive_bayes import BernoulliNB, MultinomialNB

    x = corpus()
    x = x if family == "multinomial" else (x > 0).double()
    prior = {"concentration": 1.0}
    names = ["probs"] if family == "multinomial" else ["concentration1", "concentration0"]
    prior |= dict.fromkeys(names, 1.0 + alpha)
    fit = EM(naive_bayes).fit(x, K, labels=LABELS, family=family, prior=prior)
    assert fit.converged
    assert fit.iterations == 1
    kind = MultinomialNB if family == "multinomial" else BernoulliNB
    theirs = kind(alpha=alpha).fit(x.numpy(), LABELS.numpy())
    np.testing.assert_allclose(
        fit.params["probs"].log().numpy(), theirs.feature_log_prob_, rtol=1e-10
    )
    np.testing.assert_allclose(
        fit.params["weights"].log().numpy(), theirs.class_log_prior_, rtol=1e-10
    )
    new = corpus(seed=5)
    new = new if family == "multinomial" else (new > 0).double()
    np.testing.assert_allclose(
        fit.posterior("assignment", new).probs.numpy(), theirs.predict_proba(new.numpy()), atol=1e-9
    )
    assert fit.predict(new).tolist() == theirs.predict(new.numpy()).tolist()


def _nigam(x: np.ndarray[Any, Any], steps: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Semi-supervised naive Bayes as in the paper, equations (5), (6): one more of everything."""
    known = np.eye(K)[LABELS.numpy()[:9]]
    memberships = np.concatenate([known, np.zeros((N - 9, K))])
    for step in range(steps + 1):
        used = memberships if step else memberships * (np.arange(N) < 9)[:, None]
        words = 1 + used.T @ x
        probs = words / words.sum(1, keepdims=True)
        weights = (1 + used.sum(0)) / (K + used.sum())
        joint = x @ np.log(probs).T + np.log(weights)
        memberships = np.concatenate([known, special.softmax(joint[9:], 1)])
    return weights, probs, memberships


def test_some_labels_give_the_iterates_of_nigam() -> None:
    x = corpus()
    weights, probs, _ = _nigam(x.numpy(), 0)
    init = {"weights": torch.from_numpy(weights), "probs": torch.from_numpy(probs)}
    for steps in (1, 4):
        em = EM(naive_bayes, init=init, accelerate=None, max_iter=steps, tol=1e-300)
        with pytest.warns(RuntimeWarning, match="max_iter"):
            fit = em.fit(x, K, labels=SOME)
        weights, probs, memberships = _nigam(x.numpy(), steps)
        np.testing.assert_allclose(fit.params["probs"].numpy(), probs, rtol=1e-10)
        np.testing.assert_allclose(fit.params["weights"].numpy(), weights, rtol=1e-10)
        np.testing.assert_allclose(
            fit.posterior("assignment").probs.numpy(), memberships, atol=1e-10
        )


def test_unknown_labels_may_be_written_in_any_way() -> None:
    x = corpus()
    some = torch.where(SOME < 0, torch.nan, SOME.double())
    ways = [SOME, SOME.tolist(), some]
    objectives = [EM(naive_bayes, seed=0).fit(x, K, labels=way).log_posterior for way in ways]
    assert objectives[0] == objectives[1] == objectives[2]
    none = [EM(naive_bayes, seed=0).fit(x, K, labels=way) for way in (None, SOME * 0 - 1)]
    assert none[0].log_posterior == none[1].log_posterior


# -- topics ----------------------------------------------------------------------------------------


def _plsa(
    x: np.ndarray[Any, Any], weights: Any, probs: Any, extra: float, steps: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Hofmann's updates, with pseudo-counts."""
    for _ in range(steps):
        ratio = np.where(x > 0, x, 0.0) / np.maximum(weights @ probs, 1e-300)
        documents = weights * (ratio @ probs.T) + extra
        words = probs * (weights.T @ ratio) + extra
        weights = documents / documents.sum(1, keepdims=True)
        probs = words / words.sum(1, keepdims=True)
    return weights, probs


@pytest.mark.parametrize("words", [V, 90])  # with more levels than 64 they are looked up
@pytest.mark.parametrize("objective", ["mle", "map"])
def test_topics_take_the_steps_of_plsa(words: int, objective: Any, prior_draw: Any) -> None:
    x = corpus(words=words, length=60)
    start = prior_draw(topic_model, x, K)
    em = EM(topic_model, objective, init=start, accelerate=None, max_iter=7, tol=1e-300)
    with pytest.warns(RuntimeWarning, match="max_iter"):
        fit = em.fit(x.to_sparse() if words == V else x, K)
    ours = fit.params
    pair = (start["weights"].numpy(), start["probs"].numpy())
    weights, probs = _plsa(x.numpy(), *pair, 0.1 if objective == "map" else 0.0, 7)
    np.testing.assert_allclose(ours["weights"].numpy(), weights, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(ours["probs"].numpy(), probs, rtol=1e-9, atol=1e-14)
    assert bool((fit.history.diff() >= 0).all())
    z = fit.posterior("assignment").probs
    documents, codes = x.nonzero(as_tuple=True)
    joint = ours["weights"][documents] * ours["probs"].T[codes]
    torch.testing.assert_close(z, joint / joint.sum(1, keepdim=True))


def test_new_documents_are_folded_in_by_conditioning() -> None:
    x = corpus(length=60)
    fit = EM(topic_model, seed=0).fit(x[:25], K)
    refusal = r"'weights' was estimated with shape \(25, 3\)"
    with pytest.raises(ValueError, match=refusal):
        fit.predict(x[25:])
    with pytest.raises(ValueError, match=refusal):
        fit.posterior("assignment", x[25:])
    probs = fit.params["probs"]
    folded = EM(pyro.condition(topic_model, data={"probs": probs}), tol=1e-12).fit(x[25:], K)
    assert folded.params.keys() == {"weights"}
    weights, words = np.full((5, K), 1.0 / K), x[25:].numpy()
    for _ in range(3000):
        weights, _ = _plsa(words, weights, probs.numpy(), 0.1, 1)
    np.testing.assert_allclose(folded.params["weights"].numpy(), weights, atol=1e-6)


def test_looking_up_equals_the_reference_path() -> None:
    x = corpus(words=90, length=60)
    with sheltered(0):
        arguments = prepare((x, K), {})
        plan = build_plan(topic_model, arguments)
        reference = build_plan(topic_model, arguments, probing=False)
        assert isinstance(plan.compiled["x"][1], LookupFactor)
        params = probe_values(plan.structure, 3)
        ours, theirs = (
            LogEvidence.of(plan).statistics(params),
            LogEvidence.of(reference).statistics(params),
        )
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=1e-12)
        coordinates = Coordinates(plan.structure.parameters)
        torch.testing.assert_close(
            score(ours, coordinates), score(theirs, coordinates), rtol=1e-8, atol=1e-10
        )
    table = EM(topic_model).explain(x, K).set_index("site")
    assert set(table["M-step"][["weights", "probs"]]) == {"closed form"}


def test_draws_keep_the_lengths_of_documents() -> None:
    probs = torch.tensor([0.1, 0.2, 0.7]).double()
    lengths = torch.tensor([3.0, 0.0, 50.0]).double()
    draws = Multinomial(lengths, probs).sample((4000,))
    assert torch.equal(draws.sum(-1), lengths.expand(4000, 3))
    torch.testing.assert_close(draws.mean(0), lengths[:, None] * probs, atol=0.2, rtol=0)
    x = corpus()
    drawn = EM(multinomial_mixture, seed=0).fit(x, K).sample(N, seed=0)
    assert torch.equal(drawn["x"].sum(1), x.sum(1))


def test_priors_and_frequency(log_joint: Any) -> None:
    x, z = corpus(), LABELS
    nodes: Any = poutine.trace(naive_bayes).get_trace(x, K, prior={"probs": 3.0}).nodes
    assert nodes["probs"]["fn"].concentration.tolist() == [[3.0] * V] * K
    assert nodes["weights"]["fn"].concentration.tolist() == [2.0] * K
    nodes = poutine.trace(topic_model).get_trace(x, K, prior={"weights": [1.0, 2, 3]}).nodes
    assert nodes["weights"]["fn"].concentration.tolist() == [[1.0, 2.0, 3.0]] * N
    frequency = torch.arange(N) % 3
    params = EM(multinomial_mixture, seed=0).initialise(x, K)
    for model in (multinomial_mixture, naive_bayes):
        left = log_joint(model, {**params, "assignment": z}, x, K, frequency=frequency)
        again = {**params, "assignment": z.repeat_interleave(frequency)}
        right = log_joint(model, again, x.repeat_interleave(frequency, 0), K)
        assert float(left) == pytest.approx(float(right), rel=1e-10)


X = torch.tensor([[2, 0, 1], [0, 3, 1]])

ERRORS: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    (multinomial_mixture, X[0], {}, ValueError, "`x` must have shape (N, V), not (3,)"),
    (multinomial_mixture, -X, {}, ValueError, "`x` must hold counts"),
    (multinomial_mixture, X, {"prior": {"rates": 1}}, ValueError, "takes 'concentration', 'probs'"),
    (naive_bayes, X, {"family": "gaussian"}, ValueError, "`family` must be one of 'multinomial'"),
    (naive_bayes, X, {"family": "bernoulli"}, ValueError, "`x` must hold only 0 and 1"),
    (naive_bayes, X, {"labels": [0]}, ValueError, "`labels` must have shape (2,)"),
    (naive_bayes, X, {"labels": [0, 2]}, ValueError, "`labels` must hold classes 0 to 1"),
    (naive_bayes, X, {"labels": [0, 0.5]}, ValueError, "`labels` must hold classes 0 to 1"),
    (naive_bayes, X[:1], {"labels": [0]}, ValueError, "`x` has 1 row(s) in all"),
    (topic_model, X * 0, {}, ValueError, "`x` has no word in any document"),
    (topic_model, X / 2, {}, ValueError, "`x` must hold counts"),
    (topic_model, X.tolist(), {}, TypeError, "`x` must be a torch.Tensor, not list"),
    (topic_model, X, {"prior": {"probs": 0}}, ValueError, "prior['probs'] must be greater than 0"),
]


@pytest.mark.parametrize(("model", "x", "options", "error", "message"), ERRORS)
def test_errors(
    model: Any, x: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        model(x, 2, **options)
    with pytest.raises(ValueError, match="must be at least 1"):
        model(X, 0)
