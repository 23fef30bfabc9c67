"""States can be renumbered in any model, and two fits be put in one order."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch import Tensor

from ember.inference import EM, Fit
from ember.inference.alignment import align
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.expectation.posterior import marginals
from ember.inference.initialisation.starting_params import starting_params
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.queries.component_axes import component_axes, numberings
from ember.inference.queries.relabelling import canonical_order, permute
from ember.models import gaussian_mixture, poisson_mixture
from tests.inference.catalogue import CASES, NUMERICAL, WITH_STATES, Case, case_id, model_of

AXES = {
    "weights": (0,), "locs": (0,), "precisions": (0,), "rates": (0,), "probs": (0,),
    "initial": (0,), "transition": (0, 1), "coefficients": (0,), "gating": (0,),
    "concentrations": (0,), "probs_0": (0,), "df": (0,),
}  # fmt: skip

NUMBERED = WITH_STATES + [
    case
    for case in NUMERICAL
    if case[2].get("components") == 2 and case[2].get("zeros") != "inflated"
]
each_case = pytest.mark.parametrize("case", NUMBERED, ids=case_id)


def started(case: Case) -> tuple[Plan, dict[str, Tensor]]:
    with sheltered(0):
        plan = build_plan(model_of(case), prepare((case[1],), case[2]))
        return plan, starting_params(plan, "random")


@each_case
def test_the_axes_are_those_that_the_models_document(case: Case) -> None:
    plan, params = started(case)
    expected = {name: AXES[name] for name in params if name != "occurrence"}
    if "tied" in (case[2].get("covariance"), case[2].get("scale")):
        del expected["precisions"]
    (latent,) = numberings(plan)
    assert latent == ("assignment" if "assignment" in plan.structure.latent else "state")
    assert component_axes(plan, latent) == expected
    assert component_axes(plan, plan.structure.latent[-1]) == expected


@each_case
def test_renumbering_leaves_every_density_as_it_was(case: Case) -> None:
    plan, params = started(case)
    (latent,) = numberings(plan)
    moved = permute(plan, params, latent, [1, 0])
    assert any(not torch.equal(moved[name], params[name]) for name in params)
    with torch.no_grad():
        for density in (LogEvidence.of(plan), plan.prior.log_prob):
            assert float(density(moved)) == pytest.approx(float(density(params)), rel=1e-12)
    back = permute(plan, moved, latent, [1, 0])
    assert all(torch.equal(back[name], params[name]) for name in params)


@settings(max_examples=25)
@given(order=st.permutations(range(4)), seed=st.integers(0, 5))
def test_any_permutation_of_states_is_undone_by_aligning(order: list[int], seed: int) -> None:
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with sheltered(seed):
        plan = build_plan(gaussian_mixture, prepare((x,), {"components": 4}))
        params = starting_params(plan, "random")
    moved = permute(plan, params, "assignment", order)
    with torch.no_grad():
        change = float(LogEvidence.of(plan)(moved) - LogEvidence.of(plan)(params))
    assert abs(change) < 1e-12 * 100
    back = align(as_fit(plan, params), as_fit(plan, moved))
    assert all(torch.equal(back[name], params[name]) for name in params)


def as_fit(plan: Plan, params: dict[str, Tensor]) -> Fit:
    from ember.inference.iteration.convergence import StopReason

    nothing = torch.zeros(1)
    return Fit("given", "map", params, 0.0, 0.0, nothing, nothing, 0, StopReason.STEPS, plan)


def test_a_chain_is_renumbered_as_a_whole() -> None:
    case = next(case for case in CASES if case[0] == "hidden_markov_poisson")
    fit = EM(model_of(case), seed=0).fit(case[1], **case[2])
    moved = permute(fit.plan, fit.params, "state", [1, 0])
    torch.testing.assert_close(moved["transition"], fit.params["transition"].flip(0, 1))
    other = as_fit(fit.plan, moved)
    # Sums over the states run the other way round, so the last digits may differ.
    torch.testing.assert_close(
        other.posterior("state").probs.flip(-1),
        fit.posterior("state").probs,
        rtol=1e-12,
        atol=1e-12,
    )
    assert torch.equal(align(fit, other)["transition"], fit.params["transition"])


def test_fits_of_different_data_are_matched_by_their_parameters() -> None:
    x = CASES[0][1]
    one = EM(gaussian_mixture, seed=0).fit(x[:40], components=2)
    two = EM(gaussian_mixture, seed=0).fit(x[10:], components=2)
    turned = as_fit(two.plan, permute(two.plan, two.params, "assignment", [1, 0]))
    for fit in (two, turned):
        near = (align(one, fit)["locs"] - one.params["locs"]).abs().max()
        assert float(near) < 1.0


def test_the_numbering_by_weight_decreases() -> None:
    plan, params = started(CASES[0])
    ordered = permute(plan, params, "assignment", canonical_order(plan, params, "assignment"))
    mass = marginals(plan, ordered, ["assignment"])["assignment"].sum(0)
    assert bool((mass.diff() <= 0).all())


def test_states_that_the_model_tells_apart_keep_their_numbers() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(torch.tensor([0.0, 5.0])[z], scale), obs=x)

    x = torch.tensor([0.1, -0.4, 0.3, 5.2, 4.6], dtype=torch.float64)
    fit = EM(model, seed=0).fit(x)
    # Weights alone could be turned, which would be another point of the density.
    turned = as_fit(fit.plan, {**fit.params, "weights": fit.params["weights"].flip(0)})
    assert torch.equal(align(fit, turned)["weights"], turned.params["weights"])


def test_a_prior_that_tells_states_apart_keeps_their_numbers() -> None:
    x = CASES[0][1]
    prior = {"concentration": torch.tensor([2.0, 9.0], dtype=torch.float64)}
    fit = EM(gaussian_mixture, seed=0).fit(x, components=2, prior=prior)
    turned = as_fit(fit.plan, permute(fit.plan, fit.params, "assignment", [1, 0]))
    assert torch.equal(align(fit, turned)["weights"], turned.params["weights"])


def test_parameters_of_a_prior_follow_the_states() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("components", 3):
            spread = pyro.sample("spread", dist.Gamma(2.0, 2.0))
            locs = pyro.sample("locs", dist.Normal(0.0, spread))
        with pyro.plate("rows", len(x)), poutine.scale(scale=1.0):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    with sheltered(0):
        plan = build_plan(model, prepare((torch.randn(20).double(),), {}))
    assert component_axes(plan, "z") == {"weights": (0,), "spread": (0,), "locs": (0,)}


def test_coefficients_of_a_mixture_of_regressions_follow_the_states() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        with pyro.plate("components", 2):
            beta = pyro.sample("beta", dist.Normal(0.0, 5.0).expand([3]).to_event(1))
            scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("y", dist.Normal((x * beta[z]).sum(-1), scale[z]), obs=y)

    x, y = torch.randn(20, 3).double(), torch.randn(20).double()
    with sheltered(0):
        plan = build_plan(model, prepare((x, y), {}))
        params = starting_params(plan, "random")
    if plan.sites["y"].density is None:
        pytest.skip("this model is read by running it, which does not show the axes")
    assert component_axes(plan, "z") == {"weights": (0,), "beta": (0,), "scale": (0,)}
    moved = permute(plan, params, "z", [1, 0])
    with torch.no_grad():
        change = float(LogEvidence.of(plan)(moved) - LogEvidence.of(plan)(params))
    assert abs(change) < 1e-10


def test_what_is_no_latent_and_what_is_no_permutation_is_refused() -> None:
    plan, params = started(CASES[0])
    with pytest.raises(ValueError, match="'colour' is not a latent site"):
        component_axes(plan, "colour")
    with pytest.raises(ValueError, match="no permutation of the 2 states"):
        permute(plan, params, "assignment", [0, 0])


def test_relabel_sorts_by_share_by_site_and_as_told() -> None:
    x = torch.cat([torch.full((30,), 9.0), torch.full((10,), 1.0), torch.full((20,), 4.0)])
    x = x + torch.arange(60) % 2
    fit = EM(poisson_mixture, seed=0).fit(x, components=3)
    by_share = fit.relabel()
    assert bool((by_share.params["weights"].diff() <= 0).all())
    by_rate = fit.relabel("rates")
    assert bool((by_rate.params["rates"].diff() > 0).all())
    told = by_rate.relabel([2, 0, 1])
    torch.testing.assert_close(told.params["rates"], by_rate.params["rates"][[2, 0, 1]])
    torch.testing.assert_close(
        told.posterior("assignment").probs, by_rate.posterior("assignment").probs[:, [2, 0, 1]]
    )
    assert float(told.log_prob().sum()) == pytest.approx(fit.log_likelihood, rel=1e-12)
    torch.testing.assert_close(align(by_rate, told)["rates"], by_rate.params["rates"])


def test_relabel_refuses_what_it_cannot_do() -> None:
    x = torch.arange(8.0)
    fit = EM(poisson_mixture, seed=0).fit(x, components=2)
    with pytest.raises(ValueError, match="no permutation"):
        fit.relabel([0, 0])
    with pytest.raises(ValueError, match="'sizes' is not indexed"):
        fit.relabel("sizes")
    with pytest.raises(ValueError, match="'who' is not a latent site"):
        fit.relabel(latent="who")
    asymmetric = {"shape": torch.tensor([2.0, 9.0])}
    fit = EM(poisson_mixture, seed=0).fit(x, components=2, prior=asymmetric)
    with pytest.raises(ValueError, match="tell them apart"):
        fit.relabel([1, 0])
