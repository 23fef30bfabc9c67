"""The E-step against every joint value of the latents, one run of the model for each."""

import dataclasses
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation import posterior as posteriors
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from tests.further import with_further
from tests.inference import brute_force
from tests.inference.examples import EXAMPLES, Example

TOLERANCE = 1e-10
SEEDS = (1, 2)
each_example = pytest.mark.parametrize("name", EXAMPLES)
each_seed = pytest.mark.parametrize("seed", with_further(SEEDS, SEEDS[1:]))


def plan_of(example: Example) -> Plan:
    with sheltered():
        return build_plan(example.model, prepare(example.args, example.kwargs))


def fit_at(example: Example, params: dict[str, Tensor]) -> Any:
    """A fit whose estimates are moved to given parameters."""
    with pytest.warns(RuntimeWarning, match="max_iter"):
        fit = EM(example.model, init=params, max_iter=1, accelerate=None).fit(
            *example.args, **example.kwargs
        )
    return dataclasses.replace(fit, params=params)


def close(left: Tensor, right: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, check_dtype=False)


@each_seed
@each_example
def test_log_likelihood_and_log_prior(name: str, seed: int) -> None:
    example = EXAMPLES[name]
    params = example.params(seed)
    truth = brute_force.enumerate_latents(example.model, params, *example.args).log_evidence
    prior = brute_force.log_prior(example.model, params, *example.args)
    stats = EM(example.model).e_step(params, *example.args)
    assert stats.log_likelihood == pytest.approx(float(truth), rel=TOLERANCE, abs=TOLERANCE)
    assert stats.log_prior == pytest.approx(float(prior), rel=TOLERANCE, abs=TOLERANCE)
    mle = EM(example.model, "mle").e_step(params, *example.args)
    assert mle.objective == pytest.approx(float(truth), rel=TOLERANCE, abs=TOLERANCE)


def _apart(plan: Plan, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The posterior of each site by the name that the model gives it, steps of a loop apart."""
    own = {name: plan.structure.own_names(name) for name in found}
    return {
        step: found[name] if names == (name,) else found[name].select(-2, t)
        for name, names in own.items()
        for t, step in enumerate(names)
    }


@each_seed
@pytest.mark.parametrize("name", [n for n in EXAMPLES if n != "labelled"])
def test_posterior_marginals(name: str, seed: int) -> None:
    example = EXAMPLES[name]
    params = example.params(seed)
    truth = brute_force.enumerate_latents(example.model, params, *example.args)
    plan = plan_of(example)
    with sheltered():
        found = _apart(plan, posteriors.marginals(plan, params, list(plan.structure.latent)))
    assert set(found) == set(truth.values)
    for site, marginal in found.items():
        close(marginal, truth.marginal(site).reshape(marginal.shape))


@each_seed
def test_a_latent_observed_in_part_is_one_site(seed: int) -> None:
    example = EXAMPLES["labelled"]
    _, labels, known = example.args
    params = example.params(seed)
    truth = brute_force.enumerate_latents(example.model, params, *example.args)
    with sheltered():
        found = posteriors.marginals(plan_of(example), params, ["z"])["z"]
    close(found[known], torch.nn.functional.one_hot(labels, 3)[known].double())
    close(found[~known], truth.marginal("z_unobserved")[~known])


@each_seed
@pytest.mark.parametrize("name", [n for n in EXAMPLES if n != "labelled"])
def test_most_probable_joint_value(name: str, seed: int) -> None:
    example = EXAMPLES[name]
    params = example.params(seed)
    truth = brute_force.enumerate_latents(example.model, params, *example.args)
    plan = plan_of(example)
    with sheltered():
        best = _apart(
            plan, posteriors.marginals(plan, params, list(plan.structure.latent), maximum=True)
        )
    latents = {}
    for site, one_hot in best.items():
        assert bool((one_hot.max(-1).values == 1.0).all())
        latents[site] = truth.supports[site][one_hot.argmax(-1)].reshape(
            truth.values[site].shape[1:]
        )
    trace = brute_force.run(example.model, params, latents, *example.args)
    joint = sum(
        brute_force.log_prob_of(site, n in latents)
        for n, site in trace.nodes.items()
        if site["type"] == "sample" and n not in params and n != "_Subsample"
        and type(site["fn"]).__name__ != "_Subsample" and not site["infer"].get("_deterministic")
    )  # fmt: skip
    assert float(joint) == pytest.approx(float(truth.log_joint.max()), rel=1e-12)


@each_seed
@each_example
def test_expected_log_joint_at_other_parameters(name: str, seed: int) -> None:
    # All expected sufficient statistics at once: Q(new) is linear in them.
    example = EXAMPLES[name]
    params, others = example.params(seed), example.params(seed + 100)
    weights = brute_force.enumerate_latents(example.model, params, *example.args).weights
    plan = plan_of(example)
    with sheltered():
        statistics = LogEvidence.of(plan).statistics(params)
        found = [expected_log_joint(statistics, p) for p in (params, others)]
    # What does not depend on parameters (a base measure) may be left out of both.
    truth = [
        brute_force.expected_log_joint(example.model, weights, at, *example.args)
        for at in (params, others)
    ]
    assert float(found[1] - found[0]) == pytest.approx(
        float(truth[1] - truth[0]), rel=TOLERANCE, abs=TOLERANCE
    )


@each_example
def test_gradient_of_the_log_evidence(name: str) -> None:
    example = EXAMPLES[name]
    params = example.params(3)
    plan = plan_of(example)
    supports = brute_force.supports(example.model, params, *example.args)
    with sheltered():
        found = brute_force.free_gradient(LogEvidence.of(plan), params, supports)

    def log_evidence(at: dict[str, Tensor]) -> Tensor:
        return brute_force.enumerate_latents(example.model, at, *example.args).log_evidence

    close(found, brute_force.free_gradient(log_evidence, params, supports), 1e-9)


WITHOUT_MASKS = [n for n in EXAMPLES if n not in ("chains", "labelled")]


@pytest.mark.parametrize("name", WITHOUT_MASKS)
def test_against_compute_marginals(name: str) -> None:
    example = EXAMPLES[name]
    params = example.params(4)
    elbo = TraceEnum_ELBO(strict_enumeration_warning=False, max_plate_nesting=2)
    fixed = poutine.condition(brute_force.Fixed(params)(example.model), data=params)
    with brute_force.float64():
        marginals = elbo.compute_marginals(
            config_enumerate(fixed, default="parallel"), lambda *args: None, *example.args
        )
    plan = plan_of(example)
    with sheltered():
        found = _apart(plan, posteriors.marginals(plan, params, list(plan.structure.latent)))
    assert set(found) <= set(marginals)
    for site, posterior in found.items():
        fn = marginals[site]
        support = fn.enumerate_support(expand=False)
        truth = fn.log_prob(support).exp().movedim(0, -1)
        close(posterior, truth.reshape(posterior.shape))


def test_public_posterior_predict_and_log_prob() -> None:
    example = EXAMPLES["mixture"]
    params = example.params(5)
    truth = brute_force.enumerate_latents(example.model, params, *example.args)
    fit = fit_at(example, params)
    close(fit.posterior("z").probs, truth.marginal("z"))
    assert torch.equal(fit.predict(), truth.mode()["z"])
    rows = fit.log_prob()
    assert rows.shape == (4,)
    for row, value in zip(example.args[0], rows, strict=True):
        alone = brute_force.enumerate_latents(example.model, params, row.reshape(1))
        close(value, alone.log_evidence)


def test_most_probable_path_and_smoothed_marginals_of_a_chain() -> None:
    example = EXAMPLES["chain"]
    params = example.params(6)
    truth = brute_force.enumerate_latents(example.model, params, *example.args)
    fit = fit_at(example, params)
    steps = [f"z_{t}" for t in range(5)]
    path = torch.stack([truth.mode()[step] for step in steps])
    assert torch.equal(fit.predict(), path)
    smoothed = torch.stack([truth.marginal(step) for step in steps])
    close(fit.posterior("z").probs, smoothed)
    close(fit.posterior("z_3").probs, smoothed[3])


def test_masked_steps_of_short_sequences_do_not_count() -> None:
    # The evidence of sequences of different lengths is that of each one alone, cut to its length.
    example = EXAMPLES["chains"]
    params = example.params(7)
    x, lengths = example.args
    total = 0.0
    for row, length in zip(x, lengths.tolist(), strict=True):
        alone = (row[None, :length], torch.tensor([length]))
        total += float(brute_force.enumerate_latents(example.model, params, *alone).log_evidence)
    stats = EM(example.model).e_step(params, x, lengths)
    assert stats.log_likelihood == pytest.approx(total, rel=TOLERANCE)


def test_known_labels_equal_the_complete_data() -> None:
    # With all labels known there is nothing to infer: the evidence is the complete-data one.
    example = EXAMPLES["labelled"]
    params = example.params(8)
    x, labels, _ = example.args
    stats = EM(example.model).e_step(params, x, labels, torch.ones(4, dtype=torch.bool))
    joint = params["weights"][labels].log() + dist.Normal(params["locs"][labels], 1.0).log_prob(x)
    assert stats.log_likelihood == pytest.approx(float(joint.sum()), rel=TOLERANCE)


def test_frequencies_weigh_rows() -> None:
    def model(x: Tensor, frequency: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        locs = pyro.sample("locs", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        with pyro.plate("rows", len(x)), poutine.scale(scale=frequency):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    frequency = torch.tensor([2.0, 0.3, 0.7], dtype=torch.float64)
    params = Example("weighed", model, (x, frequency)).params(9)
    rows = [
        float(w) * float(
            brute_force.enumerate_latents(model, params, v.reshape(1), torch.ones(1)).log_evidence
        )
        for v, w in zip(x, frequency, strict=True)
    ]  # fmt: skip
    stats = EM(model).e_step(params, x, frequency)
    assert stats.log_likelihood == pytest.approx(sum(rows), rel=TOLERANCE)
    # An unweighted posterior: a row's weight says how often it counts, not how sure it is.
    fit = EM(model, init=params, seed=0).fit(x, frequency)
    alone = brute_force.enumerate_latents(model, fit.params, x, torch.ones(3))
    close(fit.posterior("z").probs, alone.marginal("z"))
    close(
        fit.log_prob().sum(),
        alone.log_evidence,
    )


def test_rows_that_no_component_explains_keep_a_finite_posterior() -> None:
    # Far outliers underflow any density that is not kept as a logarithm.
    example = EXAMPLES["mixture"]
    params = example.params(1)
    x = torch.tensor([1e4, -1e4, 0.0, 1.0], dtype=torch.float64)
    truth = brute_force.enumerate_latents(example.model, params, x)
    stats = EM(example.model).e_step(params, x)
    assert stats.log_likelihood == pytest.approx(float(truth.log_evidence), rel=1e-12)
