"""Several starts: the batch against one start at a time, what is carried on, what is recorded."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM, SVI
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.initialisation.starting_params import start_kinds, starting_params
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.convergence import LittleGain, StopReason
from ember.inference.iteration.restarts import restarts
from ember.inference.iteration.restarts.batched_run import BatchedRun, run_batched
from ember.inference.iteration.restarts.batched_statistics import joined
from ember.inference.iteration.restarts.batched_steps import BatchedSteps, can_batch_steps
from ember.inference.iteration.restarts.starting_points import starting_points
from ember.inference.iteration.run import Run
from ember.inference.iteration.trajectory import Trajectory
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.updates import updates
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.models import (
    gaussian_mixture,
    hidden_markov_gaussian,
    hidden_markov_poisson,
    poisson_mixture,
)
from tests.further import further, with_further
from tests.inference.catalogue import CASES, NUMERICAL, case_id, model_of
from tests.inference.examples import EXAMPLES

Load = Callable[[str], pd.DataFrame]


def hierarchical(x: Tensor) -> None:
    """A prior whose own parameter is estimated, a table of two sources, a constant among them."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
    centre = pyro.sample("centre", dist.Normal(0.0, 5.0))
    left = pyro.sample("left", dist.Normal(centre, 1.5))
    right = pyro.sample("right", dist.Normal(centre, 1.5))
    locs = torch.stack([left, right, torch.zeros(())])
    precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], precision.rsqrt()), obs=x)


def spread(rows: int = 30, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, generator=generator, dtype=torch.float64)
    return noise + torch.tensor([-4.0, 0.0, 3.0], dtype=torch.float64)[torch.arange(rows) % 3]


def gapped() -> Tensor:
    """Rows with missing entries, in several patterns."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64) + 3.0 * (
        torch.arange(40).reshape(-1, 1) % 2
    )
    return x.masked_fill(torch.rand(40, 3, generator=generator) < 0.2, torch.nan)


MODELS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    f"{case_id(case)}-{i}": (model_of(case), (case[1],), case[2])
    for i, case in enumerate(CASES + NUMERICAL)
}
MODELS |= {name: (e.model, e.args, e.kwargs) for name, e in EXAMPLES.items()}
MODELS |= {
    "hierarchical": (hierarchical, (spread(),), {}),
    "weighed": (
        poisson_mixture,
        (torch.tensor([0.0, 1.0, 2.0, 3.0, 7.0, 9.0]),),
        {"components": 2, "frequency": torch.tensor([3.0, 1.0, 0.5, 2.0, 4.0, 1.0])},
    ),
    "gaps": (gaussian_mixture, (gapped(),), {"components": 2}),
    "chain with gaps": (hidden_markov_gaussian, (gapped(),), {"states": 2}),
}
ONE_STEP = (  # of these the M-step of all starts is one
    *("mixture", "mixture_full", "tied_mixture", "shared_scale", "switch", "one_hot", "gaps"),
    *("hierarchical", "weighed", "chain with gaps"),
)


def ran(
    steps: BatchedSteps,
    starts: list[dict[str, Tensor]],
    limit: int,
    share: float,
    jump: bool = True,
) -> BatchedRun:
    return run_batched(steps, [Trajectory(s) for s in starts], limit, LittleGain(share), jump)


def plan_of(model: Any, args: Any, kwargs: Any, objective: str = "map") -> Plan:
    return build_plan(model, prepare(args, kwargs), objective)


@pytest.mark.parametrize("objective", ["map", *further("mle")])
@pytest.mark.parametrize("name", with_further(MODELS, [*MODELS][1::2]))
def test_the_batch_takes_the_steps_of_each_start_alone(name: str, objective: str) -> None:
    model, args, kwargs = MODELS[name]
    with sheltered(3, (args, kwargs)):
        plan = plan_of(model, args, kwargs, objective)
        if not can_batch_steps(plan):
            assert plan.superposed_parameters() or plan.on_nodes
            return
        stack = BatchedSteps(plan)
        assert stack.is_closed or name not in ONE_STEP
        starts = [starting_params(plan, "random") for _ in range(4)]
        batch = ran(stack, starts, 4, -1.0, jump=False)
        assert not batch.interrupted
        assert len(batch.degenerate) < len(starts)
        # A numerical update comes to within 1e-8 of its optimum, by a way that rounding can turn.
        close = 1e-7 if any(update.how == "numerical" for update in updates(plan)) else 1e-10
        for i, (params, way) in enumerate(zip(starts, batch.ways, strict=True)):
            if i in batch.degenerate:
                continue
            assert len(way.history) == 5 or i in batch.alone
            for value in way.history[:-1]:
                statistics = LogEvidence.of(plan).statistics(params)
                assert value == pytest.approx(statistics.objective, rel=close)
                params = MStep.of(plan)(statistics)
            assert way.history[-1] == pytest.approx(
                LogEvidence.of(plan).statistics(params).objective, rel=close
            )
            for site, own in params.items():
                torch.testing.assert_close(way.params[site], own, rtol=100 * close, atol=close)


@pytest.mark.parametrize("name", ["mixture", "chain", "gaps", "nested_plates"])
def test_hard_steps_go_together_too(name: str) -> None:
    model, args, kwargs = MODELS[name]
    with sheltered(3, (args, kwargs)):
        plan = plan_of(model, args, kwargs)
        starts = [starting_params(plan, kind) for kind in ("points", "random")]
        batch = ran(BatchedSteps(plan, classification=True), starts, 2, -1.0, jump=False)
        for params, way in zip(starts, batch.ways, strict=True):
            for value in way.history:
                statistics = LogEvidence.of(plan).statistics(params, maximum=True)
                assert value == pytest.approx(statistics.objective, rel=1e-10)
                params = MStep.of(plan)(statistics)


def test_starts_are_contracted_in_portions_where_they_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, args, kwargs = MODELS["chain"]
    with sheltered(3, (args, kwargs)):
        plan = plan_of(model, args, kwargs)
        params = joined([starting_params(plan, "random") for _ in range(5)])
        whole = BatchedSteps(plan).e_step(params)
        numbers = sum(math.prod(plan.sizes[d] for d in f.dims) for f in plan.factors)
        monkeypatch.setattr(
            "ember.inference.iteration.restarts.batched_steps.MOST_NUMBERS", 2 * numbers
        )
        parts = BatchedSteps(plan).e_step(params)
    torch.testing.assert_close(parts.objectives, whole.objectives, rtol=1e-13, atol=0.0)
    assert whole.sums
    for key, value in whole.sums.items():
        torch.testing.assert_close(parts.sums[key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["mixture", "weighed", "hierarchical", "chain", "gaps", "unnormalised"]
)
def test_jumps_never_lower_an_objective_and_end_at_fixed_points(name: str) -> None:
    model, args, kwargs = MODELS[name]
    with sheltered(3, (args, kwargs)):
        plan = plan_of(model, args, kwargs)
        starts = [starting_params(plan, "random") for _ in range(5)]
        for way in ran(BatchedSteps(plan), starts, 300, 1e-13).ways:
            history = torch.tensor(way.history)
            assert bool((history.diff() >= 0).all())
            statistics = LogEvidence.of(plan).statistics(way.params)
            assert history[-1] == pytest.approx(statistics.objective, rel=1e-10)
            after = LogEvidence.of(plan).statistics(MStep.of(plan)(statistics)).objective
            assert after - statistics.objective < 1e-6 * (1.0 + abs(after))


def collapsing(locs: list[float], precisions: list[float]) -> dict[str, Tensor]:
    return {
        "weights": torch.full((3,), 1.0 / 3.0, dtype=torch.float64),
        "locs": torch.tensor(locs, dtype=torch.float64),
        "precisions": torch.tensor(precisions, dtype=torch.float64),
    }


def test_a_start_that_degenerates_spoils_no_other() -> None:
    x = spread()
    model = EXAMPLES["mixture"].model
    good = [collapsing([-4.0, 0.5, 3.0], [1.0] * 3), collapsing([-3.0, -1.0, 2.0], [0.5] * 3)]
    # One collapses on a row, another has no density at its start.
    bad = [
        collapsing([float(x[0]), 0.0, 3.0], [1e9, 1.0, 1.0]),
        collapsing([0.0, 0.0, 0.0], [float("inf")] * 3),
    ]
    with sheltered(0, x):
        plan = plan_of(model, (x,), {}, "mle")
        stack = BatchedSteps(plan)
        batch = ran(stack, [good[0], bad[0], bad[1], good[1]], 40, 1e-9)
        alone = ran(stack, good, 40, 1e-9).ways
    assert batch.degenerate | batch.alone == {1, 2}
    both = batch.ways
    assert both[1].history
    assert all(bool(v.isfinite().all()) for v in both[1].params.values())
    assert not both[2].history
    for with_others, without in zip((both[0], both[3]), alone, strict=True):
        assert with_others.history == pytest.approx(without.history, rel=1e-12)


@pytest.fixture
def tables(reference_data: Load) -> dict[str, Tensor]:
    faithful, iris = reference_data("faithful"), reference_data("iris").select_dtypes("number")
    return {
        "faithful": torch.from_numpy(faithful.to_numpy(dtype=float)),
        "iris": torch.from_numpy(iris.to_numpy(dtype=float)),
        "overlapping": overlapping(),
    }


def overlapping() -> Tensor:
    """Five spherical clusters so close that starts end at several optima."""
    generator = torch.Generator().manual_seed(3)
    centres = 1.5 * torch.randn(5, 2, generator=generator, dtype=torch.float64)
    which = torch.randint(5, (200,), generator=generator)
    return centres[which] + torch.randn(200, 2, generator=generator, dtype=torch.float64)


HARD = [
    ("faithful", "map", {"components": 3}),
    ("iris", "mle", {"components": 3, "covariance": "diag"}),
    ("overlapping", "mle", {"components": 5, "covariance": "spherical"}),
]


@pytest.mark.parametrize(("data", "objective", "options"), HARD, ids=[case[0] for case in HARD])
def test_the_few_carried_on_find_what_all_would(
    data: str, objective: str, options: dict[str, Any], tables: dict[str, Tensor]
) -> None:
    x = tables[data]
    em = EM(gaussian_mixture, objective, restarts=5, seed=1)
    fit = em.fit(x, **options)
    assert fit.converged
    with warnings.catch_warnings(), sheltered(1, x):
        warnings.simplefilter("ignore")
        plan = em.plan(x, **options)
        starts = starting_points(plan, em.init, em.restarts, em.anneal)
        every = [em._run(plan, Trajectory(start.params)) for start in starts]
    best = max(float(one.history[-1]) for one in every if not one.is_degenerate)
    assert fit.log_posterior >= best - 1e-6 * (1.0 + abs(best))
    assert len(fit.starts) == 5
    assert 3 <= sum(fit.starts.carried) < 5
    assert fit.starts.reached >= 1
    assert fit.starts.best == pytest.approx(fit.log_posterior, rel=1e-12)
    ended = fit.starts.objectives[torch.tensor(fit.starts.carried)]
    near = (ended - fit.log_posterior).abs() <= 1e-6 * (1.0 + abs(fit.log_posterior))
    assert fit.starts.reached == int(near.sum())
    assert bool((fit.history.diff() >= 0).all())
    assert len(fit.times) == len(fit.history)
    assert bool((fit.times.diff() >= 0).all())
    line = next(line for line in str(fit).splitlines() if "starts" in line)
    assert f"{sum(fit.starts.carried)} of them run to the end" in line


@pytest.mark.parametrize("restarts", [1, 6])
def test_seconds_are_those_of_the_whole_fit(restarts: int) -> None:
    x = spread()
    for method in (
        EM(EXAMPLES["mixture"].model, seed=0, restarts=restarts),
        EM(EXAMPLES["mixture"].model, seed=0, restarts=restarts, assignment="hard"),
        SVI(EXAMPLES["mixture"].model, seed=0, steps=5),
    ):
        began = time.perf_counter()
        fit = method.fit(x)
        whole = time.perf_counter() - began
        assert float(fit.times[-1]) < fit.seconds <= whole
        assert fit.seconds > 0.9 * whole


def test_one_start_says_nothing_of_starts() -> None:
    fit = EM(EXAMPLES["mixture"].model, seed=0).fit(spread())
    assert (len(fit.starts), fit.starts.reached, fit.starts.kinds) == (1, 1, ("kmeans",))
    assert "starts" not in str(fit)


def test_starts_of_a_chain() -> None:
    x = torch.tensor([1.0, 0, 2, 9, 8, 10, 1, 0, 2, 11, 9, 12, 1, 1, 0])
    em = EM(hidden_markov_poisson, seed=0, restarts=5)
    fit = em.fit(x, states=2)
    single = EM(hidden_markov_poisson, seed=0).fit(x, states=2)
    assert fit.converged
    assert fit.log_posterior >= single.log_posterior - 1e-8
    assert fit.starts.kinds == ("kmeans", "windows", "sticky", "hierarchical", "points")
    assert fit.starts.reached >= 1


def test_a_start_of_the_user_is_run_to_its_end(tables: dict[str, Tensor]) -> None:
    x = tables["faithful"]
    covariance = torch.cov(x.T)
    stuck = {
        "weights": torch.tensor([0.5, 0.5]),
        "locs": torch.tensor([[4.533, 84.0], [4.767, 78.0]]),
        "precisions": torch.linalg.inv(covariance).expand(2, 2, 2),
    }
    fit = EM(gaussian_mixture, "mle", init=stuck, restarts=6, seed=0).fit(x, components=2)
    assert fit.starts.kinds[0] == "given"
    assert fit.starts.carried[0]
    assert float(fit.starts.objectives[0]) == pytest.approx(-1285.31, abs=0.01)
    assert fit.log_likelihood == pytest.approx(-1130.26396, abs=1e-4)


def test_where_those_carried_on_degenerate_the_next_best_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restarts, "FEWEST", 2)
    x = spread()
    em = EM(EXAMPLES["mixture"].model, seed=0, restarts=5)
    with sheltered(0, x):
        plan = em.plan(x)
        starts = starting_points(plan, em.init, em.restarts, em.anneal)
        runs: list[Run] = []

        def run(way: Trajectory, limit: int) -> Run:
            fit = em._run(plan, way, limit)
            runs.append(replace(fit, stop=StopReason.DEGENERATE) if len(runs) < 3 else fit)
            return runs[-1]

        fit = restarts.best_of(plan, starts, run, 1000, 1e-7)
    assert len(runs) == 4
    assert sum(fit.starts.carried) == 4
    assert sum(fit.starts.degenerate) == 3
    assert not fit.is_degenerate
    assert fit.log_posterior == runs[-1].log_posterior


@pytest.mark.parametrize("model", ["mixture", "chain"])
def test_an_interrupt_keeps_what_was_reached(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    example = EXAMPLES[model]

    m_step = BatchedSteps.m_step

    def interrupt(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise KeyboardInterrupt
        return m_step(*given)

    monkeypatch.setattr(BatchedSteps, "m_step", interrupt)
    fit = EM(example.model, seed=0, restarts=4).fit(*example.args, **example.kwargs)
    assert "interrupted" in fit.stop_reason
    assert fit.iterations >= 1
    assert sum(fit.starts.carried) == 1


@pytest.mark.filterwarnings("ignore:.*max_iter:RuntimeWarning")
@pytest.mark.parametrize("model", ["mixture", "chain"])
@pytest.mark.parametrize("count", [1, 4])
def test_max_iter_bounds_each_start(model: str, count: int) -> None:
    example = EXAMPLES[model]
    em = EM(example.model, init="random", seed=0, restarts=count, max_iter=2, tol=1e-12)
    fit = em.fit(*example.args, **example.kwargs)
    assert "max_iter" in fit.stop_reason
    assert fit.iterations == 2
    again = em.e_step(fit.params, *example.args, **example.kwargs)
    assert again.objective == pytest.approx(fit.log_posterior, rel=1e-10)


@pytest.mark.parametrize("init", ["kmeans", "points", "random", "hierarchical", "prior"])
def test_the_wish_comes_first_and_the_others_vary(init: str) -> None:
    kinds = start_kinds(init, 9)
    assert kinds[0] == init
    assert kinds.count("hierarchical") == 1
    assert {"kmeans", "points", "random"} <= set(kinds[1:]) | {init}
    assert start_kinds({}, 3)[1:] == ["points", "random"]


def test_a_seed_repeats_the_record() -> None:
    one, two = (
        EM(EXAMPLES["mixture"].model, seed=4, restarts=5).fit(spread()).starts for _ in range(2)
    )
    torch.testing.assert_close(one.objectives, two.objectives, rtol=1e-12, atol=0)
    assert str(one) == str(two)
