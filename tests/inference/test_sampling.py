"""NUTS and Laplace: densities against Pyro's own, draws against posteriors in closed form."""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from ember.inference import EM, NUTS, SVI, VBEM, Laplace, compare
from ember.inference.comparison import Method
from ember.inference.fit import Fit
from ember.inference.inputs.shelter import sheltered
from ember.inference.parameters.free_vector import FreeVector
from ember.inference.queries.relabelling import permute
from ember.inference.sampling import chains, diagnostics
from ember.inference.sampling.density import PosteriorDensity
from ember.inference.sampling.labels import relabelled
from tests.inference.catalogue import CASES, INTEGRATED, NUMERICAL, Case, case_id, model_of

HEADS = torch.tensor([5.0, 9.0, 8.0, 4.0, 7.0])
_models = importlib.import_module("ember.models")


def coin(heads: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("rows", len(heads)):
        pyro.sample("heads", dist.Binomial(10, p), obs=heads)


def coins(heads: Tensor) -> None:
    shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([2.0, 3.0])))
    with pyro.plate("coins", 2):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("rows", len(heads)):
        which = pyro.sample("which", dist.Categorical(shares))
        pyro.sample("heads", dist.Binomial(10, p[which]), obs=heads)


def spreads(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("groups", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    low = pyro.sample("low", dist.Uniform(-1.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
        pyro.sample("x", dist.Normal(locs[z.long()] + low, scale), obs=x)


@pytest.mark.parametrize(
    ("model", "data"), [(coin, HEADS), (coins, HEADS), (spreads, torch.linspace(-2.0, 3.0, 7))]
)
def test_the_density_is_that_of_pyro(model: Callable[..., Any], data: Tensor) -> None:
    """Of Pyro's NUTS, latents enumerated, at random places; and its gradient."""
    torch.set_default_dtype(torch.float64)
    data = data.double()
    plan = EM(model, mode="unconstrained").plan(data)
    density, rng = PosteriorDensity(plan), torch.Generator().manual_seed(0)
    start, potential, *_ = initialize_model(
        config_enumerate(model), (data,), max_plate_nesting=1, jit_compile=False
    )
    for _ in range(3):
        vector = torch.randn(len(density.coordinates), generator=rng, requires_grad=True)
        sizes, place, there = {n: v.numel() for n, v in start.items()}, 0, {}
        for name in plan.structure.parameters:
            there[name] = vector[place : place + sizes[name]].reshape(start[name].shape)
            place += sizes[name]
        energy = potential(there)
        (slopes,) = torch.autograd.grad(energy, vector)
        value, gradient = density(vector.detach())
        assert value == pytest.approx(-float(energy.detach()), rel=1e-9)
        torch.testing.assert_close(gradient, -slopes, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", CASES + NUMERICAL + INTEGRATED, ids=case_id)
def test_the_gradient_is_that_of_the_density(case: Case) -> None:
    _, data, options = case
    em = EM(model_of(case), mode="unconstrained", seed=0)
    plan = em.plan(data, **options)
    with sheltered(0, (data,)):
        density = PosteriorDensity(plan)
        place = density.coordinates.flatten(em.initialise(plan))
        place = place + 0.05 * torch.randn(len(place), dtype=place.dtype)
        _, gradient = density(place)
        way = torch.randn(len(place), dtype=place.dtype)
        way = way / way.norm()
        ahead, behind = density(place + 1e-5 * way)[0], density(place - 1e-5 * way)[0]
    slope = (ahead - behind) / 2e-5
    assert math.isfinite(slope)
    assert float(gradient @ way) == pytest.approx(slope, rel=1e-5, abs=1e-5 * (1 + abs(ahead)))


def test_free_vectors_are_one_to_one() -> None:
    plan = EM(_models.hidden_markov_gaussian).plan(torch.randn(12, 2).double(), states=3)
    coordinates = FreeVector(plan.structure.parameters)
    assert len(coordinates) == 2 + 3 * 2 + 3 * 2 + 3 * 3
    vectors = torch.randn(4, len(coordinates), dtype=torch.float64)
    params = coordinates.unflatten(vectors)
    assert params["transition"].shape == (4, 3, 3)
    one = {name: value[2] for name, value in params.items()}
    torch.testing.assert_close(coordinates.flatten(one), vectors[2])


# -- Laplace ------------------------------------------------------------------------------------


def test_laplace_is_the_mode_and_curvature_in_log_odds() -> None:
    """Beta(a, b) has its mode in log odds at a / (a + b), where the curvature is a b / (a + b)."""
    a, b = 2.0 + 33.0, 2.0 + 17.0
    fit = Laplace(coin, draws=40_000, seed=0).fit(HEADS)
    odds = torch.logit(fit.draws["p"][0])
    assert float(odds.mean()) == pytest.approx(math.log(a / b), abs=0.01)
    assert float(odds.std()) == pytest.approx(math.sqrt((a + b) / (a * b)), rel=0.02)
    height = a * math.log(a / (a + b)) + b * math.log(b / (a + b))
    ours = height + 0.5 * math.log(2 * math.pi) + 0.5 * math.log((a + b) / (a * b))
    ours += math.log(6.0) + sum(math.log(math.comb(10, int(h))) for h in HEADS)
    assert fit.log_evidence == pytest.approx(ours, rel=1e-7)


def test_laplace_refuses_a_density_that_does_not_fall() -> None:
    def two(x: Tensor) -> None:
        a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        b = pyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    with pytest.raises(ValueError, match="does not fall in every direction"):
        Laplace(two).fit(HEADS)


# -- NUTS ---------------------------------------------------------------------------------------


def test_chains_draw_from_a_posterior_in_closed_form() -> None:
    fit = NUTS(coin, draws=600, warmup=100, chains=2, seed=0).fit(HEADS)
    exact = scipy.stats.beta(35.0, 19.0)
    mean, sd, r_hat, ess = fit.summary()[["estimate", "std. error", "r_hat", "ess"]].to_numpy()[0]
    assert r_hat < 1.03
    assert ess > 200
    assert mean == pytest.approx(exact.mean(), abs=4 * exact.std() / math.sqrt(ess))
    assert sd == pytest.approx(exact.std(), rel=0.12)
    draws = np.sort(fit.posterior_samples()["p"].numpy())
    assert scipy.stats.kstest(draws[::3], exact.cdf).pvalue > 0.001
    assert fit.divergences == 0
    assert "r-hat at most" in str(fit)


@pytest.mark.thorough
def test_chains_with_latents_agree_with_an_integral() -> None:
    """A mixture whose one parameter is integrated on a fine grid."""

    def shares(x: Tensor) -> None:
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(share))
            pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)

    x = torch.tensor([-0.5, 0.2, 1.0, 1.5, 2.5, 2.8, 3.0])
    s = np.linspace(1e-4, 1 - 1e-4, 4001)
    normal = scipy.stats.norm.pdf
    density = scipy.stats.beta.pdf(s, 2, 2)
    for value in x.tolist():
        density = density * (s * normal(value, 2.0) + (1 - s) * normal(value, 0.0))
    total = scipy.integrate.simpson(density, x=s)
    mean = scipy.integrate.simpson(s * density, x=s) / total
    sd = math.sqrt(scipy.integrate.simpson((s - mean) ** 2 * density, x=s) / total)
    fit = NUTS(shares, draws=600, warmup=100, chains=2, seed=1).fit(x)
    error = sd / math.sqrt(float(diagnostics.effective_size(fit.draws["share"])))
    assert float(fit.params["share"]) == pytest.approx(mean, abs=4 * error)
    assert float(fit.standard_errors()["share"]) == pytest.approx(sd, rel=0.12)


def test_a_seed_makes_draws_repeatable_and_leaves_the_global_state() -> None:
    before = torch.get_rng_state()
    one, other = (NUTS(coin, draws=5, warmup=5, chains=1, seed=3).fit(HEADS) for _ in range(2))
    assert torch.equal(one.draws["p"], other.draws["p"])
    assert torch.equal(before, torch.get_rng_state())
    picked = [one.posterior_samples(4, seed=0)["p"] for _ in range(4)]
    assert all(torch.equal(picked[0], other) for other in picked)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.thorough
def test_a_short_warm_up_finds_a_step_size() -> None:
    """It leaves widths at those of the approximation; to learn them too is too much."""
    x = torch.randn(80, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[40:] += 4.0
    method = NUTS(_models.hidden_markov_gaussian, draws=30, warmup=20, chains=2, seed=0)
    fit = method.fit(x, states=2)
    assert fit.divergences <= 3
    assert float(fit.summary()["r_hat"].max()) < 1.3


def test_a_single_draw_has_no_spread() -> None:
    fit = NUTS(coin, draws=1, warmup=2, chains=2, seed=0).fit(HEADS)
    assert "too few draws to compare chains" in str(fit)
    single = NUTS(coin, draws=1, warmup=2, chains=1, seed=0)
    assert math.isnan(float(single.fit(HEADS).standard_errors()["p"]))
    assert math.isnan(float(single.fit(HEADS).vcov().to_numpy()[0, 0]))
    table: dict[Any, Any] = compare([single], HEADS).marginals().table.to_dict()
    assert math.isnan(table["NUTS", "sd"]["p"])


def test_an_interrupt_keeps_finished_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(*args: Any) -> chains.Chain:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return chains.run_chain(*args)

    monkeypatch.setattr("ember.inference.sampling_methods.run_chain", interrupted)
    fit = NUTS(coin, draws=6, warmup=5, chains=3, seed=0).fit(HEADS)
    assert fit.draws["p"].shape == (1, 6)
    assert fit.stop.name == "INTERRUPTED"


def test_draws_are_numbered_as_the_reference() -> None:
    plan = EM(_models.gaussian_mixture).plan(torch.randn(20, 1).double(), components=3)
    shapes = {name: p.shape for name, p in plan.structure.parameters.items()}
    reference = {
        "weights": torch.tensor([0.5, 0.3, 0.2]).double(),
        "locs": torch.tensor([[0.0], [5.0], [9.0]]).double(),
        "precisions": torch.ones(shapes["precisions"]).double(),
    }
    rng = torch.Generator().manual_seed(0)
    orders = [torch.randperm(3, generator=rng) for _ in range(40)]
    noise = 0.1 * torch.randn(40, 3, 1, generator=rng, dtype=torch.float64)
    draws = {
        name: torch.stack([value[order] for order in orders]) for name, value in reference.items()
    }
    draws["locs"] = draws["locs"] + noise
    found = relabelled(plan, draws, reference)
    assert float((found["locs"] - reference["locs"]).abs().max()) < 1.0
    torch.testing.assert_close(found["weights"], reference["weights"].expand(40, 3))


def test_the_centre_of_draws_lies_in_the_support() -> None:
    """The mean of Cholesky factors of correlations is none."""

    def correlated(x: Tensor) -> None:
        factor = pyro.sample("factor", dist.LKJCholesky(2, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor), obs=x)

    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    fit = Laplace(correlated, draws=50, seed=0).fit(x)
    assert bool(dist.constraints.corr_cholesky.check(fit.params["factor"]))
    assert math.isfinite(fit.log_posterior)


def test_states_of_unequal_spread_keep_their_numbers() -> None:
    """As many of its own deviations from zero is the one state as is the other."""
    plan = EM(_models.gaussian_mixture).plan(torch.randn(20, 1).double(), components=2)
    reference = {
        "weights": torch.tensor([0.5, 0.5]).double(),
        "locs": torch.tensor([[5.0], [100.0]]).double(),
        "precisions": torch.ones(2, 1, 1).double(),
    }
    draws = {name: value.expand(200, *value.shape).clone() for name, value in reference.items()}
    rng = torch.Generator().manual_seed(0)
    draws["locs"] *= 1.0 + 0.02 * torch.randn(200, 2, 1, generator=rng, dtype=torch.float64)
    assert torch.equal(relabelled(plan, draws, reference)["locs"], draws["locs"])
    moved = {name: value.flip(1) for name, value in draws.items()}
    assert torch.equal(relabelled(plan, moved, reference)["locs"], draws["locs"])


def test_a_renumbered_fit_takes_its_draws_along() -> None:
    counts = torch.arange(24.0).remainder(5.0) + 9.0 * (torch.arange(24) > 9)
    fit = NUTS(_models.hidden_markov_poisson, draws=4, warmup=3, chains=2, seed=0).fit(
        counts, states=2
    )
    moved = fit.relabel([1, 0])
    for name, value in moved.posterior_samples(8).items():
        for i, params in enumerate(value):
            one = {n: v[i] for n, v in fit.posterior_samples(8).items()}
            assert torch.equal(params, permute(fit.plan, one, "state", [1, 0])[name])
    errors = fit.standard_errors()["rates"].flip(0)
    torch.testing.assert_close(moved.standard_errors()["rates"], errors)


@pytest.mark.thorough
def test_a_renumbered_guide_draws_in_the_new_order(tmp_path: Path) -> None:
    x = torch.randn(80, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[10:] = 6.0 + 2.0 * x[10:]
    fit = SVI(_models.gaussian_mixture, guide="normal", steps=100, seed=0).fit(x, components=2)
    moved = fit.relabel([1, 0])
    errors = fit.standard_errors()
    for name, value in moved.standard_errors().items():
        torch.testing.assert_close(value, errors[name].flip(0))
    moved.save(tmp_path / "moved.ember")
    again = Fit.load(tmp_path / "moved.ember", _models.gaussian_mixture)
    torch.testing.assert_close(again.standard_errors(), moved.standard_errors())


def test_what_cannot_be_drawn_is_refused() -> None:
    def without_prior(x: Tensor) -> None:
        m = pyro.param("m", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    with pytest.raises(ValueError, match="statement, which has no prior"):
        NUTS(without_prior).fit(HEADS)
    with pytest.raises(ValueError, match="draws=0 must be at least 1"):
        NUTS(coin, draws=0)
    with pytest.raises(ValueError, match=r"acceptance=1\.5 must lie between 0 and 1"):
        NUTS(coin, acceptance=1.5)
    with pytest.raises(ValueError, match=r"acceptance='high' must lie between 0 and 1"):
        NUTS(coin, acceptance="high")  # type: ignore[arg-type]


# -- side by side ---------------------------------------------------------------------------------


def test_marginals_of_all_methods_in_one_table_and_one_picture() -> None:
    """With one parameter of known posterior every method is held against it."""
    exact = scipy.stats.beta(35.0, 19.0)
    methods: list[Method] = [
        EM(coin), VBEM(coin), SVI(coin, guide="normal", steps=600, seed=0),
        SVI(coin, guide="delta", steps=20, seed=0), Laplace(coin, seed=0),
        NUTS(coin, draws=150, warmup=50, chains=2, seed=0),
    ]  # fmt: skip
    compared = compare(methods, HEADS)
    marginals = compared.marginals()
    table: dict[Any, Any] = marginals.table.to_dict()
    posteriors: dict[Any, Any] = compared.table["log posterior"].to_dict()
    for name in compared.fits:
        assert table[name, "estimate"]["log posterior"] == pytest.approx(posteriors[name])
        assert table[name, "sd"]["p"] == pytest.approx(exact.std(), rel=0.2)
    assert table["VB-EM", "sd"]["p"] == pytest.approx(exact.std(), rel=0.05)
    assert table["NUTS", "r_hat"]["p"] < 1.1
    figure = marginals.plot(["p"])
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 1
    assert len(figure.axes[0].lines) == len(methods)
    with pytest.raises(ValueError, match="'q' is no parameter"):
        marginals.plot(["q"])


def test_log_posteriors_are_of_the_same_density_for_all_methods() -> None:
    compared = compare([EM(coin), EM(coin, mode="unconstrained")], HEADS)
    fit = compared.fits["EM (MAP, unconstrained)"]
    p = float(fit.params["p"])
    expected = fit.log_likelihood + scipy.stats.beta(2, 2).logpdf(p)
    found: dict[Any, Any] = compared.table["log posterior"].to_dict()
    assert found["EM (MAP, unconstrained)"] == pytest.approx(expected, rel=1e-10)


def test_states_are_numbered_alike_in_marginals() -> None:
    x = torch.cat([torch.randn(30, 1), 6.0 + torch.randn(50, 1)]).double()
    model = _models.gaussian_mixture
    start = EM(model, seed=0).fit(x, components=2).params
    swapped = {name: value.flip(0) for name, value in start.items()}
    methods: list[Method] = [
        EM(model, init=start),
        VBEM(model, init=swapped),
        Laplace(model, init=swapped),
    ]
    draws = compare(methods, x, components=2).marginals().draws
    for drawn in draws.values():
        torch.testing.assert_close(drawn["locs"].mean(0), start["locs"], atol=0.2, rtol=0.0)
