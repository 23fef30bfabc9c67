"""The one loop and what it is given: a stopping rule, a scheme of acceleration, a callback."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from ember.inference.initialisation.starting_params import starting_params
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.acceleration.em_map import EMMap
from ember.inference.iteration.acceleration.plain import Plain
from ember.inference.iteration.acceleration.schemes import SCHEMES
from ember.inference.iteration.convergence import Monitor, StopReason
from ember.inference.iteration.loop import Loop
from ember.inference.iteration.restarts.batched_run import run_batched
from ember.inference.iteration.restarts.batched_steps import BatchedSteps
from ember.inference.iteration.trajectory import Trajectory
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics
from tests.inference.examples import EXAMPLES, mixture

EVERY_SCHEME = pytest.mark.parametrize("accelerate", SCHEMES)
DATA = torch.cat([torch.linspace(-2.0, 1.0, 20), torch.linspace(0.5, 4.0, 25)]).double()

# Murray (1977): a saddle where the columns are uncorrelated; see ``test_saddles.py``.
CROSS = torch.tensor(
    [[1.0, 1], [1, -1], [-1, 1], [-1, -1]]
    + [[v, torch.nan] for v in (2, 2, -2, -2)]
    + [[torch.nan, v] for v in (2, 2, -2, -2)],
    dtype=torch.float64,
)


def one_normal(x: Tensor) -> None:
    matrix = pyro.param("cov", torch.eye(2), constraint=constraints.positive_definite)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=matrix), obs=x)


def line(x: Tensor) -> None:
    """Nothing is latent, and the M-step is numerical."""
    slope = pyro.sample("slope", dist.Normal(0.0, 3.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, scale), obs=x.sin())


@pytest.fixture
def plan() -> Iterator[Plan]:
    """The plan of a mixture whose components overlap, so that EM takes its time."""
    with sheltered(0):
        yield build_plan(mixture, prepare((DATA,), {}))


def way_of(plan: Plan) -> Trajectory:
    return Trajectory(starting_params(plan, "random"))


class Recorder:
    """A callback that keeps what it was shown."""

    def __init__(self) -> None:
        self.history: list[float] = []
        self.params: list[dict[str, Tensor]] = []

    def __call__(self, way: Trajectory) -> None:
        assert len(way.times) == len(way.history) == len(self.history) + 2
        self.history.append(way.history[-1])
        self.params.append(way.params)


@EVERY_SCHEME
def test_a_callback_sees_every_step_once_and_in_order(accelerate: str | None, plan: Plan) -> None:
    recorder = Recorder()
    loop = Loop(plan, EMMap.of(plan), Monitor(1e-8), SCHEMES[accelerate], recorder)
    run = loop(way_of(plan), 200)
    assert run.converged
    assert recorder.history == run.history[1:].tolist()
    assert all(torch.equal(recorder.params[-1][name], value) for name, value in run.params.items())
    with torch.no_grad():  # each set of parameters belongs to its objective
        for params, objective in zip(recorder.params, recorder.history, strict=True):
            statistics = EMMap.of(plan).e_step(params)
            assert statistics.objective == pytest.approx(objective, rel=1e-12)


@EVERY_SCHEME
def test_leaps_out_of_a_saddle_are_steps_too(accelerate: str | None) -> None:
    recorder = Recorder()
    with sheltered(0):
        plan = build_plan(one_normal, prepare((CROSS,), {}), "mle")
        loop = Loop(plan, EMMap.of(plan), Monitor(1e-8), SCHEMES[accelerate], recorder)
        run = loop(Trajectory({"cov": 2.5 * torch.eye(2)}), 1000)
    assert run.log_likelihood > float(run.history[0]) + 0.05
    assert recorder.history == run.history[1:].tolist()


def test_where_nothing_is_latent_the_callback_sees_the_one_step() -> None:
    recorder = Recorder()
    with sheltered(0):
        plan = build_plan(line, prepare((DATA,), {}))
        run = Loop(plan, EMMap.of(plan), Monitor(1e-8), on_step=recorder)(way_of(plan), 100)
    assert run.stop is StopReason.NO_LATENTS
    assert recorder.history == run.history[1:].tolist()


def test_an_interrupt_in_a_callback_keeps_what_was_reached(plan: Plan) -> None:
    def interrupt(way: Trajectory) -> None:
        if len(way.history) == 4:
            raise KeyboardInterrupt

    run = Loop(plan, EMMap.of(plan), Monitor(1e-8), on_step=interrupt)(way_of(plan), 100)
    assert run.stop is StopReason.INTERRUPTED
    assert run.iterations == 3
    assert run.log_posterior == float(run.history[-1])


@EVERY_SCHEME
def test_a_stopping_rule_of_ones_own_ends_the_loop(accelerate: str | None, plan: Plan) -> None:
    lengths = []

    def enough(way: Trajectory) -> StopReason | None:
        lengths.append((len(way.history), len(way.iterations)))
        return StopReason.STEPS if len(way.iterations) == 3 else None

    run = Loop(plan, EMMap.of(plan), enough, SCHEMES[accelerate])(way_of(plan), 100)
    assert run.stop is StopReason.STEPS
    assert (run.iterations, run.warning) == (3, "")
    assert lengths == [(2, 1), (3, 2), (4, 3)]


def test_a_rule_that_claims_convergence_is_judged(plan: Plan) -> None:
    """The judge sends the loop on while there is more to gain, and does not sign the claim."""
    asked = []

    def hasty(way: Trajectory) -> StopReason | None:
        asked.append(len(way.iterations))
        return StopReason.CONVERGED

    run = Loop(plan, EMMap.of(plan), hasty)(way_of(plan), 100)
    assert len(asked) > 1
    assert set(asked) == {1}  # a leap begins the record of the pace anew
    assert run.iterations > len(asked)
    best = Loop(plan, EMMap.of(plan), Monitor(1e-10))(Trajectory(run.params), 1000)
    assert run.converged == (best.log_posterior - run.log_posterior < 1e-4)


def test_without_a_rule_all_steps_are_taken(plan: Plan) -> None:
    run = Loop(plan, EMMap.of(plan), None)(way_of(plan), 7)
    assert run.stop is StopReason.STEPS
    assert run.iterations == 7


def test_a_batch_takes_a_rule_of_ones_own_too(plan: Plan) -> None:
    ways = [way_of(plan) for _ in range(3)]
    first = ways[0]

    def rule(way: Trajectory) -> StopReason | None:
        return StopReason.STEPS if way is first and len(way.history) == 3 else None

    run_batched(BatchedSteps(plan), ways, 6, rule)
    assert [len(way.history) for way in ways] == [3, 7, 7]


def test_a_loop_goes_on_where_a_trajectory_ends(plan: Plan) -> None:
    whole, parts = way_of(plan), way_of(plan)
    parts.params = whole.params
    loop = Loop(plan, EMMap.of(plan), None)
    long, first, second = loop(whole, 7), loop(parts, 3), loop(parts, 4)
    assert first.iterations == 3
    torch.testing.assert_close(second.history, long.history, rtol=0.0, atol=0.0)
    assert len(second.times) == 8
    assert bool((second.times.diff() >= 0.0).all())
    # The E-step at which the second part begins repeats the last of the first.
    assert (long.evaluations, first.evaluations, second.evaluations) == (8, 4, 9)


@EVERY_SCHEME
def test_a_scheme_keeps_nothing_outside_its_state(accelerate: str | None, plan: Plan) -> None:
    scheme, em = SCHEMES[accelerate], EMMap.of(plan)
    state = scheme.init(em.e_step(starting_params(plan, "random")))
    states = [state]
    for _ in range(8):
        states.append(scheme.step(em, states[-1])[0])
    for before, after in itertools.pairwise(states):
        again, _ = scheme.step(em, before)
        assert again.current.objective == after.current.objective
        assert again.length == after.length


def test_movements_are_those_of_plain_steps(plan: Plan) -> None:
    em, steps = EMMap.of(plan), []
    way = way_of(plan)
    state = Plain().init(em.e_step(way.params))
    way.take(way.params, state.current.objective)
    for _ in range(6):
        steps.append(state.current)
        state, movement = Plain().step(em, state)
        way.take(state.current.params, state.current.objective, movement)
    by_hand = Trajectory.through([*steps, state.current])
    assert by_hand.iterations == way.iterations
    assert by_hand.history == way.history


def test_plain_em_is_judged_alike_by_hand_and_in_the_loop() -> None:
    em = EM(mixture, seed=0, accelerate=None, tol=1e-5)
    fit = em.fit(DATA)
    assert fit.converged
    params = EM(mixture, seed=0).initialise(DATA)
    history: list[Statistics] = []
    while not em.converged(history):
        history.append(em.e_step(params, DATA))
        params = em.m_step(history[-1])
    assert fit.history[: len(history)].tolist() == pytest.approx(
        [statistics.objective for statistics in history], rel=1e-12
    )
    assert not EM(mixture, tol=0.0).converged(history)
    assert not em.converged([])


@pytest.mark.parametrize("name", ["mixture", "chain"])
def test_a_fit_cannot_be_changed(name: str) -> None:
    example = EXAMPLES[name]
    fit: Any = EM(example.model, seed=0).fit(*example.args, **example.kwargs)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fit.params = {}
    assert dataclasses.replace(fit, warning="w").warning == "w"
