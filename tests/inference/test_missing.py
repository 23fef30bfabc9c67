"""Missing entries (NaN) drop out of the likelihood exactly, whatever their pattern."""

from typing import Any

import numpy as np
import pyro
import pytest
import scipy.optimize
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, init_to_value
from scipy.special import logsumexp
from torch import Tensor

from ember.inference import EM, SVI
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.families.multivariate_normal import MultivariateNormal
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.plan.building import build_plan
from ember.inference.variational.elbo import PlanELBO
from ember.models import (
    categorical_mixture,
    gaussian_mixture,
)
from tests.inference import brute_force
from tests.inference.gaps import clusters, conditional, joint, posterior, with_gaps
from tests.inference.missing_models import MODELS, STRUCTURES, as_numpy, plain

each_structure = pytest.mark.parametrize("covariance", STRUCTURES)


@pytest.mark.parametrize("argument", ["precision_matrix", "covariance_matrix", "scale_tril"])
def test_statistics_are_conditional_moments_of_every_row(argument: str) -> None:
    x = with_gaps(clusters(40), 0.35)
    x[5] = torch.nan
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    params = {
        "weights": torch.tensor([0.3, 0.7], dtype=torch.float64),
        "locs": torch.randn(2, 3, generator=generator, dtype=torch.float64) + 2.0,
        "matrices": root @ root.mT + torch.eye(3),
    }
    full = torch.linalg.inv(params["matrices"])
    if argument != "precision_matrix":
        full = params["matrices"]
    stats = EM(plain(argument), "mle").e_step(params, x)
    weights, locs, covariances = params["weights"].numpy(), params["locs"].numpy(), full.numpy()
    r, truth = posterior(x.numpy(), weights, locs, covariances)
    assert stats.log_likelihood == pytest.approx(truth, rel=1e-12)
    groups = [g for g in stats.sums.values() if isinstance(g[0].family, MultivariateNormal)]
    ((group, sums),) = groups
    assert isinstance(group.reference, torch.Tensor)
    assert isinstance(group.family, MultivariateNormal)
    n, s, q = group.family.moments(group.family.shift(sums, group.reference), 3)
    for k in range(2):
        count, total, square = 0.0, np.zeros(3), np.zeros((3, 3))
        for i, row in enumerate(x.numpy()):
            if not np.isnan(row).all():  # a row without any entry adds nothing
                mean, spread = conditional(row, locs[k], covariances[k])
                count += r[i, k]
                total += r[i, k] * mean
                square += r[i, k] * (spread + np.outer(mean, mean))
        np.testing.assert_allclose(n[k], count, rtol=1e-10)
        np.testing.assert_allclose(s[k], total, rtol=1e-10)
        np.testing.assert_allclose(q[k], square, rtol=1e-10)


@each_structure
def test_log_prob_posterior_and_prediction_are_of_the_observed_entries(covariance: str) -> None:
    x = with_gaps(clusters(50))
    fit = EM(gaussian_mixture, seed=0).fit(x, components=2, covariance=covariance)
    new = with_gaps(clusters(9, seed=5), 0.4, seed=5)
    new[0], new[1] = torch.nan, clusters(1)[0]
    for data, arguments in ((x, ()), (new, (new,))):
        logits = joint(data.numpy(), *as_numpy(fit.params, 3))
        rows = logsumexp(logits, axis=1)
        np.testing.assert_allclose(fit.log_prob(*arguments), rows, rtol=1e-10, atol=1e-10)
        r = np.exp(logits - rows[:, None])
        found = fit.posterior("assignment", *arguments).probs
        np.testing.assert_allclose(found, r, rtol=1e-8, atol=1e-12)
        np.testing.assert_array_equal(fit.predict(*arguments), r.argmax(1))
    assert fit.log_likelihood == pytest.approx(float(fit.log_prob().sum()), rel=1e-12)
    draws = fit.sample(20, seed=0)
    assert draws["x"].shape == (20, 3)
    assert not bool(draws["x"].isnan().any())


@each_structure
def test_pieces_add_up_to_the_whole(covariance: str) -> None:
    x = with_gaps(clusters(60))
    x[30:] = clusters(60)[30:] + 1e3  # a piece without gaps, and with another reference point
    em = EM(gaussian_mixture, "mle", seed=0)
    options: dict[str, Any] = {"components": 2, "covariance": covariance}
    params = em.initialise(x, **options)
    whole = em.e_step(params, x, **options)
    pieces = sum(em.e_step(params, part, **options) for part in (x[:17], x[17:30], x[30:]))
    assert not isinstance(pieces, int)
    assert pieces.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)
    left, right = em.m_step(whole), em.m_step(pieces)
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-8, atol=1e-10)


@each_structure
def test_a_weight_is_a_repeated_row(covariance: str) -> None:
    x = with_gaps(clusters(24))
    frequency = torch.arange(24) % 3 + 1
    start = EM(gaussian_mixture, seed=0).initialise(x, components=2, covariance=covariance)
    em = EM(gaussian_mixture, init=start, tol=1e-12)
    weighed = em.fit(x, components=2, covariance=covariance, frequency=frequency)
    repeated = em.fit(x.repeat_interleave(frequency, 0), components=2, covariance=covariance)
    assert weighed.log_posterior == pytest.approx(repeated.log_posterior, rel=1e-10)
    for name, value in weighed.params.items():
        torch.testing.assert_close(repeated.params[name], value, rtol=1e-6, atol=1e-8)


# -- the optimum -----------------------------------------------------------------------------------


def negative_log_likelihood(free: Any, patterns: Any, covariance: str) -> float:
    """Minus the log likelihood of two components, in free numbers, rows grouped by pattern."""
    dim = 2
    logits = np.array([0.0, free[0]])
    locs, rest = free[1:5].reshape(2, dim), free[5:]
    if covariance == "full":
        factors = [np.array([[np.exp(a), 0.0], [b, np.exp(c)]]) for a, b, c in rest.reshape(2, 3)]
    elif covariance == "tied":
        factors = [np.array([[np.exp(rest[0]), 0.0], [rest[1], np.exp(rest[2])]])] * 2
    elif covariance == "diag":
        factors = [np.diag(np.exp(row)) for row in rest.reshape(2, dim)]
    else:
        factors = [np.eye(dim) * np.exp(row) for row in rest]
    total = 0.0
    log_weights = logits - logsumexp(logits)
    for shown, rows in patterns:
        parts = []
        for log_weight, loc, factor in zip(log_weights, locs, factors, strict=True):
            block = (factor @ factor.T)[np.ix_(shown, shown)]
            residual = rows - loc[shown]
            distance = np.einsum("ni,ij,nj->n", residual, np.linalg.inv(block), residual)
            constant = np.log(np.linalg.det(2.0 * np.pi * block))
            parts.append(log_weight - 0.5 * (distance + constant))
        total += logsumexp(np.array(parts), axis=0).sum()
    return -float(total)


@each_structure
def test_against_direct_maximisation_of_the_observed_data_likelihood(covariance: str) -> None:
    x = with_gaps(clusters(80, seed=3, features=2), 0.3, seed=3)
    fit = EM(gaussian_mixture, "mle", seed=0).fit(x, components=2, covariance=covariance)
    assert fit.converged
    data = x.numpy()
    patterns = [
        (np.array(shown), data[(~np.isnan(data) == shown).all(1)][:, np.array(shown)])
        for shown in ([True, True], [True, False], [False, True])
    ]
    assert all(len(rows) > 5 for _, rows in patterns)
    size = {"full": 6, "tied": 3, "diag": 4, "spherical": 2}[covariance]
    start = np.concatenate([[0.0], [0.5, -0.5, 3.0, -3.0], np.zeros(size)])
    found = scipy.optimize.minimize(
        negative_log_likelihood, start, (patterns, covariance), method="BFGS",
        options={"gtol": 1e-4},
    )  # fmt: skip
    assert fit.log_likelihood == pytest.approx(-found.fun, abs=1e-5)
    order = fit.params["locs"][:, 0].argsort()
    weight = 1.0 / (1.0 + np.exp(-found.x[0]))
    assert float(fit.params["weights"][order[1]]) == pytest.approx(weight, abs=1e-3)
    np.testing.assert_allclose(
        fit.params["locs"][order], found.x[1:5].reshape(2, 2), rtol=0, atol=2e-3
    )


@each_structure
@pytest.mark.parametrize("accelerate", [None, "auto"])
def test_the_objective_never_falls_and_its_gradient_vanishes(
    covariance: str, accelerate: str | None
) -> None:
    x = with_gaps(clusters(60, features=5), 0.4)  # half as many patterns as rows
    em = EM(gaussian_mixture, seed=0, accelerate=accelerate, tol=1e-11, max_iter=3000)
    fit = em.fit(x, components=2, covariance=covariance)
    assert fit.converged
    assert bool((fit.history.diff() >= -1e-9 * (1.0 + fit.history[1:].abs())).all())
    with sheltered():
        arguments = prepare((x,), {"components": 2, "covariance": covariance})
        plan = build_plan(gaussian_mixture, arguments)
        supports = {n: p.support for n, p in plan.structure.parameters.items()}
        gradient = brute_force.free_gradient(
            lambda at: LogEvidence.of(plan)(at) + plan.prior.log_prob(at), fit.params, supports
        )
    assert float(gradient.abs().max()) < 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_pyro_s_own_bound_has_the_same_value_gradient_and_optimum(name: str) -> None:
    model, x, options = MODELS[name]
    options = {"components": 2, **options}
    fit = EM(model, seed=0, tol=1e-12).fit(x, **options)
    elsewhere = EM(model, seed=0, init="random").initialise(x, **options)
    with sheltered():
        plan = build_plan(model, prepare((x,), options))
        exposed = pyro.poutine.block(model, hide=["assignment"])
        for params in (fit.params, elsewhere):
            pyro.clear_param_store()
            guide = AutoDelta(exposed, init_loc_fn=init_to_value(values=params))
            losses, gradients = [], []
            for elbo in (PlanELBO(plan), TraceEnum_ELBO(max_plate_nesting=1)):
                losses.append(elbo.loss_and_grads(config_enumerate(model), guide, x, **options))
                gradients.append([torch.as_tensor(p.grad).clone() for p in guide.parameters()])
                guide.zero_grad()
            assert losses[0] == pytest.approx(losses[1], rel=1e-10)
            for left, right in zip(*gradients, strict=True):
                torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-7)
            if params is fit.params:
                assert losses[0] == pytest.approx(-fit.log_posterior, rel=1e-10)
                assert max(float(g.abs().max()) for g in gradients[1]) < 1e-3


def test_svi_climbs_towards_the_same_optimum() -> None:
    x = with_gaps(clusters(40))
    fit = EM(gaussian_mixture, seed=0).fit(x, components=2)
    svi = SVI(gaussian_mixture, guide="delta", steps=60, seed=0).fit(x, components=2)
    assert svi.log_posterior <= fit.log_posterior + 1e-9
    assert svi.log_posterior == pytest.approx(fit.log_posterior, rel=0.02)


def test_the_plain_normal_and_the_model_s_own_are_the_same() -> None:
    x = with_gaps(clusters(50))
    prior = {"concentration": 1.0}
    ours = EM(gaussian_mixture, "mle", seed=0).fit(x, components=2, prior=prior)
    start = {"weights": ours.params["weights"], "locs": ours.params["locs"] + 0.1,
             "matrices": ours.params["precisions"]}  # fmt: skip
    theirs = EM(plain("precision_matrix"), "mle", init=start).fit(x)
    assert theirs.log_likelihood == pytest.approx(ours.log_likelihood, abs=1e-6)


def test_rows_without_any_entry_change_nothing_but_the_number_of_rows() -> None:
    x = with_gaps(clusters(50), 0.2)
    padded = torch.cat([x, torch.full((7, 3), torch.nan)])
    left = EM(plain("precision_matrix"), "mle", seed=0).fit(x)
    right = EM(plain("precision_matrix"), "mle", seed=0, init=left.params).fit(padded)
    assert right.log_likelihood == pytest.approx(left.log_likelihood, abs=1e-7)


def test_mean_filling_shrinks_a_covariance_that_em_recovers() -> None:
    # The second column goes missing where the first is large: at random, given what is seen.
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([[1.0, 1.6], [1.6, 4.0]], dtype=torch.float64)
    noise = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    x = noise @ torch.linalg.cholesky(truth).T + torch.tensor([1.0, -2.0])
    x[:, 1] = torch.where(x[:, 0] > 1.0, torch.nan, x[:, 1])
    filled = torch.where(x.isnan(), x.nanmean(0), x)

    def fitted(data: Tensor) -> tuple[Tensor, Tensor]:
        fit = EM(gaussian_mixture, "mle").fit(data, components=1)
        return fit.params["locs"][0], torch.linalg.inv(fit.params["precisions"][0])

    loc, covariance = fitted(x)
    np.testing.assert_allclose(loc, [1.0, -2.0], atol=0.15)
    np.testing.assert_allclose(covariance, truth, rtol=0.1)
    naive_loc, naive = fitted(filled)
    assert float(naive[1, 1]) < 0.5 * float(truth[1, 1])
    assert float(naive[0, 1]) < 0.5 * float(truth[0, 1])
    assert float(naive_loc[1]) < -3.0


# -- latent classes --------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False], ids=["one table", "a site for each item"])
def test_latent_classes_with_missing_answers_against_brute_force(same: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    levels = [3, 3, 3, 3] if same else [3, 2, 4, 2]
    codes = [torch.randint(n, (30,), generator=generator).double() for n in levels]
    x = with_gaps(torch.stack(codes, 1), 0.25)
    x[3] = torch.nan
    em = EM(categorical_mixture, "mle", init="random", seed=0)
    params = em.initialise(x, components=2, levels=levels)
    tables = list(params["probs"].unbind(1)) if same else [params[f"probs_{j}"] for j in range(4)]
    stats = em.e_step(params, x, components=2, levels=levels)
    logits = params["weights"].log().repeat(30, 1)
    for n, row in enumerate(x):
        for j, answer in enumerate(row.tolist()):
            if answer == answer:
                logits[n] += tables[j][:, int(answer)].log()
    truth = float(torch.logsumexp(logits, 1).sum())
    assert stats.log_likelihood == pytest.approx(truth, rel=1e-12)
    after = em.m_step(stats)
    r = logits.softmax(1)
    np.testing.assert_allclose(after["weights"], r.mean(0), rtol=1e-10)
    new = list(after["probs"].unbind(1)) if same else [after[f"probs_{j}"] for j in range(4)]
    for j, size in enumerate(levels):
        for level in range(size):
            share = r[x[:, j] == level].sum(0) / r[~x[:, j].isnan()].sum(0)
            np.testing.assert_allclose(new[j][:, level], share, rtol=1e-10)
