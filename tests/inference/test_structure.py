"""Roles of sites, and models written in every way that Pyro allows."""

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from tests.inference import brute_force
from tests.inference.examples import EXAMPLES, Example
from tests.inference.family_cases import REALS

CENTRES = torch.tensor([-1.0, 1.0])  # float32, made where the default dtype is not Ember's
ONES = torch.ones(2)
START = {"weights": torch.tensor([0.3, 0.7]), "locs": torch.tensor([-1.0, 1.0])}


def plain(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def test_roles() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        pyro.deterministic("gap", locs[1] - locs[0])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(locs[z.long()], scale), obs=x)

    plan: Any = EM(model).explain(REALS)
    roles = dict(zip(plan["site"], plan["role"], strict=True))
    assert roles["locs"] == "parameter"
    assert roles["scale"].startswith("parameter")
    assert roles["z"] == "latent"
    assert roles["x"] == "observed"
    assert "gap" not in roles
    assert "rows" not in roles
    by_site = plan.set_index("site")
    assert by_site.loc["z", "plates"] == "rows"
    assert "2 states" in by_site.loc["z", "E-step"]
    assert "locs" in str(plan)


def test_explain_names_every_site_of_every_structure() -> None:
    for example in EXAMPLES.values():
        plan = EM(example.model).explain(*example.args)
        params = set(example.params(1))
        listed = set(plan.loc[plan["role"].str.startswith("parameter"), "site"])
        assert listed == params
        assert set(plan["M-step"]) <= {"closed form", "numerical", "fixed", "-"}


def same_fit(model: Callable[..., None], tolerance: float = 1e-9, **options: Any) -> None:
    truth = EM(plain, init=START, tol=1e-12).fit(REALS)
    found = EM(model, init=START, tol=1e-12, **options).fit(REALS)
    assert found.log_posterior == pytest.approx(truth.log_posterior, rel=tolerance)
    torch.testing.assert_close(found.params["locs"], truth.params["locs"], rtol=1e-4, atol=1e-5)


def test_sequential_plates() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        steps: Any = pyro.plate("rows", len(x))
        for i in steps:
            z = pyro.sample(f"z_{i}", dist.Categorical(weights))
            pyro.sample(f"x_{i}", dist.Normal(locs[z], 1.0), obs=x[i])

    same_fit(model)


def test_plates_made_beforehand_and_indexed() -> None:
    def model(x: Tensor) -> None:
        rows = pyro.plate("rows", len(x), dim=-1)
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with rows:
            z = pyro.sample("z", dist.Categorical(weights))
        with rows as i:
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x[i])

    same_fit(model)


def test_a_plate_to_the_left() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("rows", len(x), dim=-3):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x[:, None, None])

    same_fit(model)


def test_gathering_instead_of_indexing() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(torch.where(z == 0, locs[0], locs[1]), 1.0), obs=x)

    same_fit(model)


@pytest.mark.parametrize(
    "model",
    [
        functools.partial(plain),
        config_enumerate(plain),
        config_enumerate(plain, default="sequential"),
        lambda x: plain(x),
        poutine.block(plain, hide=[]),
    ],
    ids=["partial", "config_enumerate", "sequential", "lambda", "block"],
)
def test_wrapped_models(model: Any) -> None:
    same_fit(model)


def test_float32_constants_of_the_model() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(2.0 * ONES))
        locs = pyro.sample("locs", dist.Normal(0.0 * ONES, 3.0 * ONES).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], ONES[0]), obs=x)

    same_fit(model)


def test_a_table_of_float32_constants() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(CENTRES[z], 1.0), obs=x)

    params = {"weights": torch.tensor([0.3, 0.7])}
    truth = brute_force.rows(model, {"weights": params["weights"].double()}, REALS).log_evidence
    stats = EM(model).e_step(params, REALS)
    assert stats.log_likelihood == pytest.approx(float(truth), rel=1e-6)
    fit = EM(model, seed=0).fit(REALS)
    assert fit.converged
    assert fit.params["weights"].dtype == torch.float64


def test_conditioned_models_have_fewer_parameters() -> None:
    fixed = poutine.condition(plain, data={"locs": torch.tensor([-1.0, 1.0], dtype=torch.float64)})
    fit = EM(fixed, seed=0).fit(REALS)
    assert set(fit.params) == {"weights"}


def test_pyro_modules() -> None:
    class Mixture(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.weights: Any = PyroSample(dist.Dirichlet(torch.full((2,), 2.0)))
            self.locs: Any = PyroParam(torch.tensor([-1.0, 1.0]))

        def forward(self, x: Tensor) -> None:
            weights, locs = self.weights, self.locs
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Categorical(weights))
                pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    module = Mixture()
    fit = EM(module, seed=0).fit(REALS)
    assert fit.converged
    assert set(fit.params) == {"weights", "locs"}
    assert module.locs.tolist() == [-1.0, 1.0]  # the module itself is not written to


def test_numbered_latents_keep_their_names() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2, 2]).to_event(2))
        with pyro.plate("rows", len(x)):
            z1 = pyro.sample("z1", dist.Categorical(weights))
            z2 = pyro.sample("z2", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z1, z2], 1.0), obs=x)

    fit = EM(model, seed=0).fit(REALS)
    assert {"z1", "z2", "x"} <= set(fit.sample(5))
    predicted = fit.predict()
    assert set(predicted) == {"z1", "z2"}
    assert predicted["z1"].shape == REALS.shape


def test_masked_entries_may_be_nan() -> None:
    def model(x: Tensor, filled: bool) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2, 2]).to_event(2))
        shown = torch.isfinite(x)
        data = x.nan_to_num(nan=7.0) if filled else x
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0).mask(shown).to_event(1), obs=data)

    x = torch.stack([REALS, REALS.flip(0)], -1)
    x[::3, 0] = torch.nan
    start = {"weights": torch.tensor([0.3, 0.7]), "locs": torch.tensor([[-1.0, 0.0], [1.0, 0.5]])}
    left = EM(model, init=start).fit(x, True)
    right = EM(model, init=start).fit(x, False)
    assert left.log_posterior == pytest.approx(right.log_posterior, rel=1e-12)
    truth = brute_force.rows(lambda y: model(y, True), left.params, x).log_evidence
    assert left.log_likelihood == pytest.approx(float(truth), rel=1e-10)


def test_a_tempered_likelihood_is_taken_literally() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            with poutine.scale(scale=0.5):
                pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    x = REALS[:4]
    params = Example("tempered", model, (x,)).params(1)
    truth = brute_force.enumerate_latents(model, params, x).log_evidence
    stats = EM(model).e_step(params, x)
    assert stats.log_likelihood == pytest.approx(float(truth), rel=1e-10)


def test_long_independent_latents_do_not_blow_up() -> None:
    # 40 latents in sequence: 2^40 joint values, but a chain costs 40 steps.
    example = EXAMPLES["chain"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, generator=generator, dtype=torch.float64)
    fit = EM(example.model, seed=0).fit(x)
    assert fit.converged
    assert fit.predict().shape == (40,)
    assert fit.posterior("z").probs.shape == (40, 2)


def test_shapes_of_draws_and_predictions() -> None:
    fit = EM(plain, seed=0).fit(REALS)
    drawn = fit.sample(7, seed=1)
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {"z": (7,), "x": (7,)}
    many = fit.sample(4000, seed=1)
    share = (many["z"] == 0).double().mean()
    assert float(share) == pytest.approx(float(fit.params["weights"][0]), abs=0.04)
    assert fit.predict(REALS[:3]).shape == (3,)
    assert fit.log_prob(REALS[:3]).shape == (3,)
    torch.testing.assert_close(fit.log_prob(REALS[:3]), fit.log_prob()[:3])
    torch.testing.assert_close(fit.posterior("z", REALS[:3]).probs, fit.posterior("z").probs[:3])
    assert float(fit.log_prob().sum()) == pytest.approx(fit.log_likelihood, rel=1e-10)
