"""SVI climbs the same density as EM, by Pyro's own loss, and leaves no traces."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal, init_to_value
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM, SVI, Fit
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.convergence import StopReason
from ember.inference.plan.building import build_plan
from ember.inference.variational.elbo import PlanELBO
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

each_case = pytest.mark.parametrize("case", CASES, ids=case_id)


def fitted(case: Case) -> Fit:
    _, x, options = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reaching max_iter is no harm here
        return EM(model_of(case), seed=0, tol=1e-13, max_iter=3000).fit(x, **options)


def mixture(x: Tensor, weight: Tensor | None = None) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.Gamma(3.0, 3.0))
    with pyro.plate("rows", len(x)), poutine.scale(scale=1.0 if weight is None else weight):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


X = torch.tensor([-2.1, -1.7, -2.6, -1.2, 1.4, 2.2, 2.9, 1.9, 2.4], dtype=torch.float64)


# -- the same density, the same optimum ----------------------------------------------------------


def test_no_model_is_forgotten() -> None:
    assert {case[0] for case in CASES + NUMERICAL + INTEGRATED + OF_UNITS} == set(every_model)


@each_case
def test_pyros_own_loss_is_stationary_at_the_optimum_of_em(case: Case) -> None:
    fit = fitted(case)
    arguments = fit.plan.structure.arguments
    with sheltered(0):
        exposed = poutine.block(model_of(case), expose=list(fit.params))
        guide = AutoDelta(exposed, init_loc_fn=init_to_value(values=fit.params))
        elbo = TraceEnum_ELBO(
            strict_enumeration_warning=False, max_plate_nesting=fit.plan.structure.nesting
        )
        model = config_enumerate(model_of(case))
        loss = elbo.differentiable_loss(model, guide, *arguments.args, **arguments.kwargs)
        assert -float(loss.detach()) == pytest.approx(fit.log_posterior, rel=1e-12, abs=1e-8)
        loss.backward()
        slopes = [p.grad.abs().max() for p in guide.parameters() if p.grad is not None]
        assert len(slopes) == len(fit.params)
        assert float(torch.stack(slopes).max()) < 1e-4


@each_case
def test_svi_reaches_the_optimum_of_em(case: Case) -> None:
    _, x, options = case
    best = fitted(case)
    away = {}
    generator = torch.Generator().manual_seed(1)
    for name, parameter in best.plan.structure.parameters.items():
        free = parameter.to_unconstrained(best.params[name])
        noise = torch.randn(free.shape, generator=generator, dtype=torch.float64)
        away[name] = parameter.to_constrained(free + 0.1 * noise)
    steps = 500 if "X" in options else 150  # columns of unequal size: a narrow valley
    fit = SVI(model_of(case), steps=steps, init=away, seed=0).fit(x, **options)
    start = float(fit.history[0])
    assert start < best.log_posterior - 1e-3
    assert fit.log_posterior <= best.log_posterior + 1e-6
    assert fit.log_posterior == pytest.approx(best.log_posterior, rel=1e-6, abs=1e-4)
    assert fit.log_posterior == pytest.approx(float(fit.history[-1]), rel=1e-12)


@pytest.mark.parametrize("units", [1e-4, 1e5])
def test_the_default_optimiser_does_not_care_for_units(units: float) -> None:
    x = CASES[0][1] * torch.tensor([units, 1.0 / units], dtype=torch.float64)
    best = EM(gaussian_mixture, seed=0).fit(x, components=2)
    fit = SVI(gaussian_mixture, steps=200, seed=0).fit(x, components=2)
    assert fit.log_posterior == pytest.approx(best.log_posterior, abs=1e-5)


def test_svi_starts_where_em_starts() -> None:
    em = EM(mixture, seed=3).fit(X)
    svi = SVI(mixture, steps=1, seed=3).fit(X)
    assert float(svi.history[0]) == pytest.approx(float(em.history[0]), rel=1e-12)


# -- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AutoDelta, AutoNormal, AutoLowRankMultivariateNormal])
def test_the_loss_is_that_of_trace_enum_elbo(kind: Any) -> None:
    with sheltered(0):
        arguments = prepare((X,), {})
        plan = build_plan(mixture, arguments)
        guide = kind(poutine.block(mixture, hide=["z"]))
        guide(X)
        losses, gradients = [], []
        theirs = TraceEnum_ELBO(strict_enumeration_warning=False, max_plate_nesting=1)
        for elbo in (PlanELBO(plan), theirs):
            torch.manual_seed(1)
            guide.zero_grad()
            losses.append(elbo.loss_and_grads(config_enumerate(mixture), guide, X))
            gradients.append(torch.cat([p.grad.reshape(-1) for p in guide.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


def test_a_model_without_latents_agrees_with_trace_elbo() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.5), obs=x)

    fit = SVI(model, steps=500, seed=0).fit(X)
    exact = float(X.sum() / 1.5**2 / (len(X) / 1.5**2 + 1.0 / 9.0))
    assert float(fit.params["loc"]) == pytest.approx(exact, abs=1e-6)
    with sheltered(0):
        guide = AutoDelta(model, init_loc_fn=init_to_value(values=fit.params))
        loss = Trace_ELBO().loss(model, guide, X)
    assert loss == pytest.approx(-fit.log_posterior, rel=1e-12)


def test_weights_of_rows_count_as_repeats() -> None:
    weight = torch.tensor([2.0, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    weighted = SVI(mixture, steps=300, seed=0).fit(X, weight)
    repeated = SVI(mixture, steps=300, seed=0).fit(X.repeat_interleave(weight.long()))
    assert weighted.log_posterior == pytest.approx(repeated.log_posterior, abs=1e-6)


def test_pyro_params_are_learnt_within_their_constraint() -> None:
    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("x", dist.Normal(locs[z.long()], 1.0), obs=x)

    best = EM(model, seed=0).fit(X)
    for guide in ("delta", "normal"):
        fit = SVI(model, guide, steps=500, seed=0).fit(X)
        assert fit.log_posterior == pytest.approx(best.log_posterior, abs=1e-6)
        torch.testing.assert_close(
            fit.params["locs"].sort().values, best.params["locs"].sort().values, rtol=0, atol=1e-3
        )


# -- guides --------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", ["normal", "multivariate_normal"])
def test_a_normal_guide_finds_a_normal_posterior(guide: str) -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(loc, torch.tensor([1.5, 1.5])[z]), obs=x)

    fit = SVI(model, guide, steps=400, particles=4, seed=0).fit(X)
    precision = len(X) / 1.5**2 + 1.0 / 9.0
    draws = fit.posterior_samples(2000, seed=0)["loc"]
    assert float(draws.mean()) == pytest.approx(float(X.sum()) / 1.5**2 / precision, abs=0.05)
    assert float(draws.std()) == pytest.approx(precision**-0.5, rel=0.08)
    # The guide can be exact here, so the bound is the log evidence of the data.
    total = torch.eye(len(X), dtype=torch.float64) * 1.5**2 + 9.0
    evidence = torch.distributions.MultivariateNormal(torch.zeros(len(X)).double(), total)
    assert float(fit.history[-1]) == pytest.approx(float(evidence.log_prob(X)), abs=0.02)


def own_guide(x: Tensor) -> None:
    spread = pyro.param("spread", torch.tensor(0.1), constraint=constraints.positive)
    pyro.sample("weights", dist.Dirichlet(pyro.param("a", torch.tensor([5.0, 5.0]).double())))
    with pyro.plate("components", 2):
        pyro.sample("locs", dist.Normal(pyro.param("m", torch.tensor([-2.0, 2.0])), spread))
    pyro.sample("scale", dist.LogNormal(pyro.param("s", torch.tensor(0.0)), 0.1))


def test_a_guide_of_ones_own_is_learnt_and_kept() -> None:
    fit = SVI(mixture, own_guide, steps=300, seed=0).fit(X)
    assert fit.method == "SVI (own_guide)"
    best = EM(mixture, seed=0).fit(X)
    assert fit.log_posterior == pytest.approx(best.log_posterior, abs=1.0)
    draws = fit.posterior_samples(50, seed=1)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "weights": (50, 2), "locs": (50, 2), "scale": (50,)
    }  # fmt: skip
    assert list(pyro.get_param_store()) == []
    # The guide runs in Pyro's own machinery without the store that it was learnt in.
    values = poutine.trace(fit.guide).get_trace(X).nodes["locs"]["fn"].loc
    torch.testing.assert_close(values, fit.params["locs"])


def test_an_autoguide_class_or_instance_will_do_and_an_instance_stays_as_it_is() -> None:
    exposed = poutine.block(mixture, hide=["z"])
    instance = AutoNormal(exposed)
    fit = SVI(mixture, instance, steps=20, seed=0).fit(X)
    assert list(instance.parameters()) == []
    assert instance.model is not None
    assert fit.method == SVI(mixture, AutoNormal).name == SVI(mixture, "normal").name
    low_rank = SVI(mixture, AutoLowRankMultivariateNormal, steps=20, seed=0).fit(X)
    assert low_rank.params["weights"].sum() == pytest.approx(1.0)


def without_scale(x: Tensor) -> None:
    pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        pyro.sample("locs", dist.Normal(0.0, 1.0))


def with_latent(x: Tensor) -> None:
    own_guide(x)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Categorical(torch.ones(2)))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (without_scale, "does not sample the parameter site 'scale'"),
        (with_latent, "samples the latent site 'z', which is integrated out"),
    ],
)
def test_a_guide_that_does_not_fit_is_refused(guide: Callable[..., None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SVI(mixture, guide, steps=5).fit(X)


def test_em_has_no_draws_to_give() -> None:
    with pytest.raises(ValueError, match="gives a point, not a posterior"):
        EM(mixture, seed=0).fit(X).posterior_samples(3)


# -- the loop ------------------------------------------------------------------------------------


def test_the_history_holds_the_start_and_every_step() -> None:
    fit = SVI(mixture, "normal", steps=7, particles=2, seed=0).fit(X)
    assert fit.history.shape == fit.times.shape == (8,)
    assert fit.history.dtype == torch.float64
    assert (fit.iterations, fit.evaluations) == (7, 16)
    assert (fit.stop, fit.converged) == (StopReason.STEPS, False)
    assert bool((fit.times.diff() > 0).all())


def test_a_seed_makes_it_repeatable_and_no_global_state_is_touched() -> None:
    pyro.param("mine", torch.tensor(1.0))
    state = torch.get_rng_state()
    fits = [SVI(mixture, "normal", steps=5, seed=4).fit(X.float()) for _ in range(2)]
    torch.testing.assert_close(fits[0].history, fits[1].history, rtol=1e-12, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store()) == ["mine"]
    assert torch.get_default_dtype() == torch.float32


def test_a_loss_that_is_not_finite_stops_with_the_last_good_parameters() -> None:
    wild = pyro.optim.PyroOptim(torch.optim.SGD, {"lr": 1e200})
    with pytest.warns(RuntimeWarning, match="the objective was not finite"):
        fit = SVI(mixture, optim=wild, steps=50, seed=0).fit(X)
    assert fit.stop is StopReason.NON_FINITE
    assert all(bool(torch.isfinite(value).all()) for value in fit.params.values())
    assert fit.log_posterior == pytest.approx(float(fit.history[-1]), rel=1e-12)


def test_an_optimiser_of_pyros_is_used_and_can_be_used_again() -> None:
    method = SVI(mixture, optim=pyro.optim.ClippedAdam({"lr": 0.05}), steps=100, seed=0)
    first, second = method.fit(X), method.fit(X)
    torch.testing.assert_close(first.history, second.history, rtol=1e-12, atol=0)
    assert float(first.history[-1]) > float(first.history[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"guide": "laplace"}, ValueError, "guide='laplace' is unknown; choose one of 'delta'"),
        ({"guide": 3}, TypeError, "guide must be a name"),
        ({"steps": 0}, ValueError, "steps=0 must be at least 1"),
        ({"steps": 2.5}, TypeError, "steps=2.5 must be a whole number"),
        ({"particles": 0}, ValueError, "particles=0 must be at least 1"),
        ({"init": "best"}, ValueError, "init='best' is unknown"),
        ({"optim": torch.optim.Adam}, TypeError, "optim must be an optimiser of pyro.optim"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate=-1.0 must be positive"),
        ({"learning_rate": "high"}, TypeError, "learning_rate='high' must be a number"),
        (
            {"learning_rate": 0.1, "optim": pyro.optim.ClippedAdam({"lr": 0.1})},
            ValueError,
            "learning_rate belongs to the default optimiser",
        ),
    ],
)
def test_options_that_mean_nothing_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SVI(mixture, **options)


def test_a_model_that_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="model must be a Pyro function"):
        SVI("gaussian_mixture")  # type: ignore[arg-type]
