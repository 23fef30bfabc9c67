"""The plan against the reference path, which asks the model for everything at every step."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.expectation.posterior import marginals
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.objective import score
from ember.inference.maximisation.updates import updates
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.reading.matching.arguments import probe_values
from ember.models import __all__ as every_model
from ember.models import gaussian_mixture
from tests.inference.catalogue import (
    CASES,
    INTEGRATED,
    NUMERICAL,
    OF_UNITS,
    Case,
    case_id,
    model_of,
)


def test_every_model_has_a_case() -> None:
    assert {name for name, _, _ in CASES + NUMERICAL + INTEGRATED + OF_UNITS} == set(every_model)


def _plans(case: Case) -> tuple[Plan, Plan]:
    arguments = prepare((case[1],), case[2])
    model = model_of(case)
    return build_plan(model, arguments), build_plan(model, arguments, probing=False)


def _perturbed_start(case: Case, plan: Plan) -> dict[str, Tensor]:
    """Parameters near a k-means start: plausible, but no optimum."""
    start = EM(model_of(case), seed=0).initialise(case[1], **case[2])
    coordinates = Coordinates(plan.structure.parameters)
    flat = coordinates.flatten(start)
    noise = 0.1 * torch.sin(torch.arange(len(flat), dtype=torch.float64))
    return coordinates.unflatten(flat + noise)


@pytest.mark.parametrize("case", CASES + NUMERICAL, ids=case_id)
def test_plan_equals_reference_path(case: Case) -> None:
    with sheltered(0):
        plan, reference = _plans(case)
        # Priors may be of a family without a form, and a first state computed from the moves.
        numerical = any(case is other for other in NUMERICAL) or case[2].get("stationary")
        assert numerical or set(plan.opaque_sites()) <= set(plan.priors)
        asked = {"state[0]"} if case[2].get("stationary") else set()
        opaque = set(plan.opaque_sites()) - asked
        assert all(plan.site(name).density is not None for name in opaque)
        assert set(reference.opaque_sites()) == {*reference.sites, *reference.priors}
        params = _perturbed_start(case, plan)
        ours, theirs = (
            LogEvidence.of(plan).statistics(params),
            LogEvidence.of(reference).statistics(params),
        )
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=1e-9)
        assert ours.log_prior == pytest.approx(theirs.log_prior, rel=1e-9)
        coordinates = Coordinates(plan.structure.parameters)
        torch.testing.assert_close(
            score(ours, coordinates), score(theirs, coordinates), rtol=1e-8, atol=1e-8
        )
        for latent in plan.structure.latent[:3]:
            torch.testing.assert_close(
                marginals(plan, params, [latent])[latent],
                marginals(reference, params, [latent])[latent],
                rtol=1e-9,
                atol=1e-12,
            )


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_model_is_closed_form_throughout(case: Case) -> None:
    with sheltered(0):
        plan, _ = _plans(case)
        numerical = {"transition"} if case[2].get("stationary") else set()
        how = {update.name: update.how for update in updates(plan)}
        assert how == {n: "numerical" if n in numerical else "closed form" for n in plan.priors}


@pytest.mark.parametrize("case", CASES + NUMERICAL, ids=case_id)
def test_fisher_gradient_is_the_gradient_of_the_objective(case: Case) -> None:
    with sheltered(0):
        plan, _ = _plans(case)
        params = _perturbed_start(case, plan)
        coordinates = Coordinates(plan.structure.parameters)
        free = coordinates.flatten(params).requires_grad_()
        at = coordinates.unflatten(free)
        (direct,) = torch.autograd.grad(LogEvidence.of(plan)(at) + plan.prior.log_prob(at), free)
        by_fisher = score(LogEvidence.of(plan).statistics(params), coordinates)
        torch.testing.assert_close(by_fisher, direct, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
def test_mixture_kernel_equals_general_contraction(weighted: bool) -> None:
    x = CASES[0][1]
    options = {"components": 3, "frequency": torch.arange(len(x)) % 4 if weighted else None}
    with sheltered(0):
        plan = build_plan(gaussian_mixture, prepare((x,), options))
        assert LogEvidence.of(plan).kernel is not None
        params = probe_values(plan.structure, 5)
        kernel = LogEvidence.of(plan).statistics(params)
        slow = LogEvidence(plan)
        slow.kernel = None
        general = slow.statistics(params)
        assert kernel.log_likelihood == pytest.approx(general.log_likelihood, rel=1e-12)
        for key, (_, sums) in general.sums.items():
            torch.testing.assert_close(kernel.sums[key][1], sums, rtol=1e-9, atol=1e-9)


def test_closed_form_finds_products_powers_and_offsets() -> None:
    x = torch.tensor([1.0, 2.0, 4.0, 3.0], dtype=torch.float64)
    exposure = torch.tensor([1.0, 0.5, 2.0, 1.5], dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("groups", 2):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", 4):
            pyro.sample("x", dist.Poisson(exposure * rate[torch.tensor([0, 1, 0, 1])]), obs=x)

    fit = EM(model).fit(x)
    expected = (torch.tensor([5.0, 5.0]) + 1.0) / (torch.tensor([3.0, 2.0]) + 1.0)
    torch.testing.assert_close(fit.params["rate"], expected.double(), rtol=1e-12, atol=0.0)


def test_a_map_that_only_holds_at_some_parameters_is_not_believed() -> None:
    x = torch.tensor([1.0, 2.0, 6.0, 7.0], dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("groups", 2):
            loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        ordered = loc.sort().values  # which entry comes first depends on their values
        with pyro.plate("rows", 4):
            pyro.sample("x", dist.Normal(ordered[torch.tensor([0, 0, 1, 1])], 1.0), obs=x)

    table = EM(model).explain(x)
    assert table.set_index("site").loc["loc", "M-step"] == "numerical"
    fit = EM(model).fit(x)
    shrunk = torch.tensor([3.0, 13.0], dtype=torch.float64) / (2.0 + 0.01)
    torch.testing.assert_close(fit.params["loc"].sort().values, shrunk, rtol=1e-6, atol=0.0)
