"""Stopping where nothing is left to gain: fixed points, the direct maximum, and EM by hand."""

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from ember.inference.iteration.acceleration.lbfgs import (
    LbfgsState,
    ascent_direction,
    remembered,
)
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.parameters.parameter import Parameter
from ember.inference.plan.priors import Prior
from ember.inference.plan.statistics import Statistics
from ember.inference.queries.relabelling import in_canonical_order
from ember.models import hidden_markov_poisson
from tests.further import further
from tests.inference import brute_force
from tests.inference.brute_force import Free
from tests.inference.examples import EXAMPLES, mixture, mixture_full
from tests.inference.family_cases import CASES, COUNTS, REALS, assert_stationary
from tests.inference.numerical_models import NUMERICAL

ACCELERATIONS = [None, "auto", "squarem", "anderson", "lbfgs"]
OVERLAPPING = torch.cat([REALS - 0.8, REALS.flip(0) * 0.7 + 1.0])


def clouds() -> Tensor:
    generator = torch.Generator().manual_seed(8)
    cloud = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    return cloud + torch.tensor([[0.0, 0.0], [2.5, 1.0]], dtype=torch.float64).repeat(20, 1)


def test_normal_wishart_is_stationary_at_default_settings() -> None:
    fit = EM(mixture_full, seed=0).fit(clouds())
    assert fit.converged
    assert_stationary(mixture_full, fit.params, clouds(), tolerance=1e-6)


@pytest.mark.parametrize("accelerate", ACCELERATIONS)
def test_every_acceleration_ends_at_the_same_optimum(accelerate: str | None) -> None:
    start = EM(mixture, seed=0).initialise(OVERLAPPING)
    truth = EM(mixture, init=start, tol=1e-13, max_iter=20000, accelerate=None).fit(OVERLAPPING)
    fit = EM(mixture, init=start, accelerate=accelerate, max_iter=20000).fit(OVERLAPPING)
    assert truth.converged
    assert fit.converged
    assert fit.log_posterior == pytest.approx(truth.log_posterior, rel=1e-8)
    for name, value in truth.params.items():
        torch.testing.assert_close(fit.params[name], value, rtol=1e-3, atol=1e-4)
    assert bool((fit.history.diff() >= -1e-9 * (1.0 + fit.history[1:].abs())).all())
    assert fit.iterations == len(fit.history) - 1
    assert fit.evaluations >= fit.iterations


def drifting_chain() -> Tensor:
    """Counts for which maximum likelihood sends probabilities to zero, one of them slowly."""
    x = simulated_clusters()[:107, 0].abs()
    return torch.poisson(x, torch.Generator().manual_seed(2))


def simulated_clusters() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = 2.5 * torch.randn(5, 2, generator=generator, dtype=torch.float64)
    which = torch.randint(5, (1000,), generator=generator)
    return centres[which] + torch.randn(1000, 2, generator=generator, dtype=torch.float64)


def test_probabilities_that_have_come_to_zero_hold_up_no_others() -> None:
    x = drifting_chain()
    start = {
        "rates": torch.tensor([0.5, 1.5, 4.5], dtype=torch.float64),
        "initial": torch.full((3,), 1.0 / 3.0, dtype=torch.float64),
        "transition": (0.4 * torch.eye(3) + 0.2).double(),
    }
    fit = EM(hidden_markov_poisson, "mle", init=start, max_iter=300).fit(x, states=3)
    assert fit.converged
    # Thousands of plain steps come no higher.
    assert fit.log_likelihood == pytest.approx(-222.0468755, abs=1e-6)
    assert min(float(fit.params[name].min()) for name in ("initial", "transition")) < 1e-20


def test_coordinates_at_rest_are_those_beyond_what_matters() -> None:
    free = {
        "p": torch.tensor([1.0, 1e-30, 0.0], dtype=torch.float64),
        "rate": torch.tensor([1e-30, 0.0, 2.0], dtype=torch.float64),
        "chance": torch.tensor([0.5, 1.0, 1e-3], dtype=torch.float64),
        "loc": torch.tensor([1e4, 0.0, -1e4], dtype=torch.float64),
    }
    supports = {
        "p": constraints.simplex,
        "rate": constraints.independent(constraints.positive, 1),
        "chance": constraints.unit_interval,
        "loc": constraints.real,
    }
    coordinates = Coordinates(
        {n: Parameter(n, supports[n], v.shape, (), False, v) for n, v in free.items()}
    )
    vector = coordinates.flatten(free)
    rests = coordinates.at_rest(vector).reshape(4, 3).tolist()
    assert rests == [[False, True, True], [False, True, False], [False, True, False], 3 * [False]]
    both = coordinates.flatten({n: torch.stack([v, v.flip(0)]) for n, v in free.items()})
    assert torch.equal(both[0], vector)
    back = coordinates.unflatten(both)
    for name, value in free.items():
        torch.testing.assert_close(back[name], torch.stack([value, value.flip(0)]))


def test_acceleration_saves_passes_on_a_slow_problem(reference_data: Any) -> None:
    table = reference_data("notices")

    days = torch.tensor(table["days"].to_numpy())
    x = torch.repeat_interleave(torch.tensor(table["deaths"].to_numpy()), days).double()

    def declared(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        rates = pyro.sample("rates", dist.Gamma(1.0, 1e-12).expand([2]).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rates[z]), obs=x)

    start = {"weights": torch.tensor([0.3, 0.7]), "rates": torch.tensor([1.0, 2.5])}
    fast = EM(declared, "mle", init=start).fit(x)
    assert fast.converged
    assert fast.log_likelihood == pytest.approx(-1989.945859883, abs=1e-5)
    assert fast.evaluations < 400  # plain EM needs over a thousand
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = EM(declared, "mle", init=start, accelerate=None, max_iter=400).fit(x)
    assert not plain.converged
    assert "max_iter" in plain.stop_reason


@pytest.mark.parametrize("name", ["mixture", "chain_of_two", "chain", "zero_inflated", "one_hot"])
def test_a_fixed_point_stays_fixed(name: str) -> None:
    example = EXAMPLES[name]
    fit = EM(example.model, seed=1, tol=1e-14, max_iter=5000).fit(*example.args)
    em = EM(example.model)
    again = em.m_step(em.e_step(fit.params, *example.args))
    for site, value in fit.params.items():
        torch.testing.assert_close(again[site], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["poisson", "normal, normal-gamma", "binomial"])
def test_em_reaches_the_maximum_found_directly(name: str) -> None:
    case = CASES[name]
    fit = EM(case.model, seed=0).fit(case.data)
    supports = brute_force.supports(case.model, fit.params, case.data)

    def log_posterior(at: dict[str, Tensor]) -> Tensor:
        evidence = brute_force.rows(case.model, at, case.data).log_evidence
        return evidence + brute_force.log_prior(case.model, at, case.data)

    start = EM(case.model, seed=0).initialise(case.data)
    direct = brute_force.maximise(log_posterior, Free(supports, start))
    best = float(log_posterior(direct))
    assert fit.log_posterior == pytest.approx(best, rel=1e-7)
    assert float(log_posterior(fit.params)) == pytest.approx(fit.log_posterior, rel=1e-10)


@pytest.mark.parametrize("name", ["mixture", "chain", "factorial", "labelled", "experts"])
def test_plain_em_is_the_loop_by_hand(name: str) -> None:
    example = EXAMPLES[name]
    options: dict[str, Any] = {"seed": 4, "accelerate": None, "max_iter": 6, "tol": 1e-15}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # six iterations are not enough to converge
        fit = EM(example.model, **options).fit(*example.args)
    em = EM(example.model, seed=4)
    params = em.initialise(*example.args)
    objectives = []
    for _ in range(fit.iterations):
        stats = em.e_step(params, *example.args)
        objectives.append(stats.objective)
        params = em.m_step(stats)
    objectives.append(em.e_step(params, *example.args).objective)
    assert fit.history.tolist() == pytest.approx(objectives, rel=1e-12)
    for site, value in in_canonical_order(fit.plan, params).items():
        torch.testing.assert_close(fit.params[site], value, rtol=1e-10, atol=1e-12)


def test_max_iter_is_said_and_warned_of() -> None:
    with pytest.warns(RuntimeWarning, match="max_iter"):
        fit = EM(mixture, seed=0, max_iter=2, accelerate=None, tol=1e-14).fit(OVERLAPPING)
    assert not fit.converged
    assert fit.iterations == 2
    assert "max_iter" in fit.stop_reason
    assert fit.log_posterior == pytest.approx(float(fit.history[-1]), rel=1e-12)


def test_the_result_belongs_to_its_parameters() -> None:
    fit = EM(mixture, seed=0).fit(OVERLAPPING)
    stats = EM(mixture).e_step(fit.params, OVERLAPPING)
    assert fit.log_likelihood == pytest.approx(stats.log_likelihood, rel=1e-12)
    assert fit.log_posterior == pytest.approx(stats.objective, rel=1e-12)
    assert float(fit.history[-1]) == pytest.approx(fit.log_posterior, rel=1e-12)


SLOW = ["poisson", "binomial", "normal, normal-gamma", "normal, scale", "categorical, probs"]


@pytest.mark.parametrize("accelerate", ["auto", *further(None)])
@pytest.mark.parametrize("name", SLOW)
def test_a_few_more_iterations_change_nothing_that_is_printed(
    name: str, accelerate: str | None
) -> None:
    case = CASES[name]
    options: dict[str, Any] = {"accelerate": accelerate, "seed": 0, "max_iter": 50_000}
    fit = EM(case.model, **options).fit(case.data)
    assert fit.converged
    plain = EM(case.model, init=fit.params, accelerate=None, tol=0.0, max_iter=2000)
    after = plain.fit(case.data)
    assert after.iterations == 2000
    gained = after.log_posterior - fit.log_posterior
    assert gained <= 1e-6 * (1.0 + abs(fit.log_posterior))


def test_parameters_that_start_at_zero_do_not_end_the_fit_early() -> None:
    # A relative change from exactly 0 is infinite; the rate of convergence is not known from it.
    def model(x: Tensor) -> None:
        centre = pyro.sample("centre", dist.Normal(0.0, 5.0))
        locs = pyro.sample("locs", dist.Normal(centre, 0.3).expand([2]).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(locs[z.long()], 1.0), obs=x)

    x = OVERLAPPING + 3.0
    for accelerate in (None, "auto"):
        fit = EM(model, seed=0, accelerate=accelerate).fit(x)
        truth = EM(model, init=fit.params, tol=1e-14, max_iter=20_000).fit(x)
        assert fit.log_posterior == pytest.approx(truth.log_posterior, rel=1e-7)


def test_numerical_updates_converge_at_default_settings() -> None:
    for model, data, _ in NUMERICAL.values():
        fit = EM(model, seed=1).fit(*data)
        assert fit.converged, fit.stop_reason
        truth = EM(model, init=fit.params, tol=1e-13, max_iter=3000).fit(*data)
        assert truth.log_posterior - fit.log_posterior <= 1e-5 * (1.0 + abs(fit.log_posterior))


def test_unidentified_parameters_still_stop() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        levels = pyro.sample("levels", dist.Dirichlet(torch.ones(4)).expand([3]).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Categorical(levels[z]), obs=x)

    x = COUNTS.clamp_max(3.0).long()
    fit = EM(model, "mle", init="random", seed=2).fit(x)
    assert fit.converged
    shares = torch.bincount(x, minlength=4).double() / len(x)
    best = float((shares[x].log()).sum())
    assert fit.log_likelihood == pytest.approx(best, rel=1e-8)


def test_a_curvature_too_small_for_its_square_ends_nothing() -> None:
    def chain(x: Tensor) -> None:
        start = pyro.param("start", torch.zeros(2, dtype=torch.float64))
        moves = pyro.param("moves", torch.zeros(2, 2, dtype=torch.float64))
        words = pyro.param("words", torch.zeros(2, 3, dtype=torch.float64))
        hmm = dist.DiscreteHMM(
            start.log_softmax(-1), moves.log_softmax(-1), dist.Categorical(logits=words)
        )
        pyro.sample("x", hmm, obs=x)

    x = torch.randint(0, 3, (30,), generator=torch.Generator().manual_seed(1))
    with pytest.warns(RuntimeWarning, match="'words'.* at infinity"):  # words that no state says
        best = EM(chain, "mle", seed=1, restarts=4, accelerate="squarem").fit(x).log_likelihood
    with pytest.warns(RuntimeWarning, match="'words'.* at infinity"):
        fit = EM(chain, "mle", seed=1, restarts=4).fit(x)
    assert fit.log_likelihood >= best - 1e-6


def test_quasi_newton_keeps_no_pair_whose_curvature_vanishes() -> None:
    coordinates = Coordinates(
        {"x": Parameter("x", constraints.real, torch.Size([2]), (), False, torch.zeros(2))}
    )
    zero, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    tiny = torch.tensor([1e-170, 0.0], dtype=torch.float64)
    nowhere = Statistics(0.0, 0.0, {"x": zero}, {}, (), Prior({}, {}))
    state = remembered(LbfgsState(nowhere), coordinates, zero, zero)
    state = remembered(state, coordinates, one, -tiny)
    assert not state.pairs
    state = remembered(state, coordinates, 2.0 * one, -tiny - 1.0)
    assert len(state.pairs) == 1
    assert bool(ascent_direction(state.pairs, tiny).isfinite().all())
