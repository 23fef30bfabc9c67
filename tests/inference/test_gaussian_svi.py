"""SVI on models with Gaussian latents: what its guides cover, and what it says about them."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoGuideList, AutoMultivariateNormal, AutoNormal, init_to_value
from torch import Tensor

from ember.inference import EM, SVI, compare
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.plan.building import build_plan
from ember.inference.variational.elbo import PlanELBO
from ember.models import factor_analysis, linear_mixed_model, mixture_of_factor_analysers

RNG = torch.Generator().manual_seed(0)
GROUP = torch.arange(30) % 6
X = torch.randn(30, generator=RNG, dtype=torch.float64)
Y = 1.0 + X + 0.7 * GROUP + 0.4 * torch.randn(30, generator=RNG, dtype=torch.float64)
ROWS = torch.randn(20, 1, generator=RNG).double() @ torch.randn(1, 4, generator=RNG).double()
ROWS = ROWS + 0.4 * torch.randn(20, 4, generator=RNG).double()
MODELS: dict[str, Any] = {
    "effects": (linear_mixed_model, (Y, X), {"groups": GROUP}),
    "factors": (factor_analysis, (ROWS, 2), {}),
    "mixture": (mixture_of_factor_analysers, (ROWS,), {"components": 2, "factors": 1}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_pyro(name: str) -> None:
    model, args, kwargs = MODELS[name]
    with sheltered(0, (args, kwargs)):
        arguments = prepare(args, kwargs)
        plan = build_plan(model, arguments, "map")
        sites = [*plan.structure.parameters, *plan.structure.gaussian]
        fit = EM(model, seed=0, max_iter=2, tol=0.0).fit(*args, **kwargs)
        guide = AutoNormal(
            poutine.block(model, expose=sites), init_loc_fn=init_to_value(values=dict(fit.params))
        )
        guide(*arguments.args, **arguments.kwargs)
        elbo: Any = TraceEnum_ELBO(max_plate_nesting=1) if plan.latent_symbols else Trace_ELBO()
        for seed in (1, 2):
            torch.manual_seed(seed)
            wanted = elbo.loss(config_enumerate(model), guide, *arguments.args, **arguments.kwargs)
            torch.manual_seed(seed)
            found = PlanELBO(plan).loss(model, guide, *arguments.args, **arguments.kwargs)
            assert found == pytest.approx(wanted, rel=1e-9)


def test_guides_cover_the_latents_and_start_at_their_posterior() -> None:
    for choice in ("delta", "normal", "multivariate_normal"):
        fit = SVI(linear_mixed_model, choice, steps=1, seed=0).fit(Y, X, groups=GROUP)
        assert fit.guide.covered == ("group_effects",)
        draws = fit.posterior_samples(3, seed=0)
        assert draws["group_effects"].shape == (3, 6)
        assert "group_effects" not in fit.params
        exact = fit.posterior("group_effects")
        assert bool(exact.variance.gt(0.0).all())
    delta = SVI(linear_mixed_model, "delta", steps=1, seed=0).fit(Y, X, groups=GROUP)
    assert isinstance(delta.guide.guide, AutoGuideList)
    assert not delta.guide.is_delta
    assert not torch.equal(*delta.posterior_samples(2, seed=0)["group_effects"])
    assert torch.equal(*delta.posterior_samples(2, seed=0)["variance"])


@pytest.mark.thorough
def test_one_effect_for_each_group_is_found_exactly_by_normals() -> None:
    em = EM(linear_mixed_model, seed=0).fit(Y, X, groups=GROUP)
    svi = SVI(linear_mixed_model, "delta", init=em.params, steps=1500, learning_rate=0.02, seed=0)
    fit = svi.fit(Y, X, groups=GROUP)
    # Given the parameters the effects are independent: the bound touches the log posterior.
    assert fit.log_posterior == pytest.approx(em.log_posterior, abs=5e-2)
    effects = em.posterior("group_effects")
    draws = fit.posterior_samples(4000, seed=0)["group_effects"]
    assert bool(((draws.mean(0) - effects.mean).abs() < 0.2 * effects.stddev + 0.05).all())
    assert bool(((draws.std(0) / effects.stddev - 1.0).abs() < 0.25).all())
    bound = float(fit.history[-300:].mean())
    assert fit.log_posterior - 0.5 < bound < fit.log_posterior + 0.1


def test_latents_are_integrated_where_asked() -> None:
    svi = SVI(
        linear_mixed_model, "delta", integrate={"group_effects": "gaussian"}, steps=400, seed=0
    )
    em = EM(linear_mixed_model, seed=0).fit(Y, X, groups=GROUP)
    svi.init = em.params
    fit = svi.fit(Y, X, groups=GROUP)
    assert fit.guide.is_delta
    assert fit.guide.covered == ()
    assert fit.log_posterior == pytest.approx(em.log_posterior, abs=1e-4)
    assert float(fit.history[-1]) == pytest.approx(fit.log_posterior, rel=1e-12)

    names = list(em.params)
    guide = AutoNormal(poutine.block(linear_mixed_model, expose=names))
    assert SVI(linear_mixed_model, guide, steps=2).fit(Y, X, groups=GROUP).guide.covered == ()


def test_half_of_what_hangs_together_cannot_be_covered() -> None:
    groups = {"a": GROUP, "b": torch.arange(30) % 4}
    with pytest.raises(ValueError, match="'a_effects' but not for 'b_effects'"):
        SVI(linear_mixed_model, integrate={"a_effects": "gaussian"}, steps=1).fit(Y, groups=groups)
    sites = ["coefficients", "variance", "a_variance", "b_variance", "a_effects"]
    guide = AutoNormal(poutine.block(linear_mixed_model, expose=sites))
    with pytest.raises(ValueError, match="'a_effects' but not 'b_effects'"):
        SVI(linear_mixed_model, guide, steps=1).fit(Y, groups=groups)


@pytest.mark.thorough
def test_rows_that_count_twice_are_as_good_as_two_rows() -> None:
    twice, weight = torch.cat([ROWS, ROWS]), torch.full((20,), 2.0)
    prior = {"mean": torch.zeros(4), "deviation": torch.ones(4), "loading": 1.0, "scale": 1.0}
    init = EM(factor_analysis, seed=0).fit(ROWS, 1, prior=prior).params
    bounds = []
    for args, kwargs in (((twice, 1), {}), ((ROWS, 1), {"frequency": weight})):
        svi = SVI(factor_analysis, "delta", init=init, steps=1, particles=400, seed=0)
        bounds.append(float(svi.fit(*args, prior=prior, **kwargs).history[0]))
    assert bounds[0] == pytest.approx(bounds[1], abs=1.0)


def test_weights_that_a_guide_cannot_count_are_refused() -> None:
    svi = SVI(factor_analysis, "multivariate_normal", steps=1)
    with pytest.raises(ValueError, match="cannot count row by row"):
        svi.fit(ROWS, 1, frequency=torch.full((20,), 2.0))


def test_guides_must_fit_the_latents() -> None:
    def guide(*args: object, **kwargs: object) -> None:
        pyro.sample("coefficients", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("variance", dist.LogNormal(0.0, 1.0))
        pyro.sample("group_variance", dist.LogNormal(0.0, 1.0))
        pyro.sample("group_effects", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"'group_effects' with shape \(3,\) but .* \(6,\)"):
        SVI(linear_mixed_model, guide, steps=1).fit(Y, X, groups=GROUP)


def test_a_comparison_says_what_its_likelihoods_are() -> None:
    methods: list[Any] = [
        EM(linear_mixed_model, seed=0),
        EM(linear_mixed_model, "mle", integrate={"group_effects": "gaussian"}, seed=0),
        SVI(linear_mixed_model, "normal", steps=3, seed=0),
    ]
    comparison = compare(methods, Y, X, groups=GROUP)
    assert not comparison.errors
    table = comparison.table
    for name, fit in comparison.fits.items():
        assert table.loc[name, "log likelihood"] == pytest.approx(float(_exact(fit.params)))
    text = " ".join(str(comparison).split())
    assert "The guide of SVI (AutoNormal) covers 'group_effects'" in text
    alone = compare(methods[:2], Y, X, groups=GROUP)
    assert "guide" not in str(alone)
    comparison.plot()


def _exact(params: dict[str, Tensor]) -> Tensor:
    """The marginal density of the responses, as one multivariate normal."""
    design = torch.stack([torch.ones_like(X), X], -1)
    same = (GROUP[:, None] == GROUP).double()
    covariance = params["group_variance"] * same + params["variance"] * torch.eye(30).double()
    line = design @ params["coefficients"]
    found: Tensor = dist.MultivariateNormal(line, covariance).log_prob(Y)
    return found


def test_a_joint_guide_is_drawn_from_whole() -> None:
    fit = SVI(linear_mixed_model, AutoMultivariateNormal, steps=2, seed=0).fit(Y, X, groups=GROUP)
    assert fit.posterior_samples(2, seed=0)["group_effects"].shape == (2, 6)
