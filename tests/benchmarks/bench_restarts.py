"""Ten starts of a model: short runs as one batch, against every start run to its end.

Both ways begin at the same ten starts, in turn, in one process. The first ratio is that of one EM
step of all ten (plain steps, stacked against one after another), the second that of the whole fit;
above 1 the batch is faster. ``missed`` is how much lower its best objective is: 0 where both ways
found the same optimum, below 0 where the batch found a better one. Run it with
``python tests/benchmarks/bench_restarts.py``, and a word to take only the models that contain it.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.convergence import LittleGain
from ember.inference.iteration.restarts.batched_run import run_batched
from ember.inference.iteration.restarts.batched_steps import BatchedSteps
from ember.inference.iteration.restarts.restarts import best_of
from ember.inference.iteration.restarts.starting_points import Start, starting_points
from ember.inference.iteration.run import Run
from ember.inference.iteration.trajectory import Trajectory
from ember.inference.maximisation.m_step import MStep
from ember.inference.plan.plan import Plan
from ember.models import (
    count_mixture,
    gaussian_mixture,
    hidden_markov_gaussian,
    hidden_markov_poisson,
    mixture_of_experts,
    regression_mixture,
)

STARTS, COMPONENTS, COLUMNS = 10, 5, 2
ROUNDS = 3
CHAIN, MIXED = {"states": 3}, {"components": 3}


def cases() -> dict[str, tuple[Any, tuple[Tensor, ...], dict[str, Any]]]:
    """Plain mixtures of four sizes, then what is more than a plain mixture."""
    found: dict[str, tuple[Any, tuple[Tensor, ...], dict[str, Any]]] = {
        f"mixture, {rows} rows": (gaussian_mixture, (simulate(rows),), {"components": COMPONENTS})
        for rows in (272, 1_000, 10_000, 100_000)
    }
    x = simulate(1_000)
    holes = x.masked_fill(
        torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.1, torch.nan
    )
    counts, lines = torch.poisson(x[:, 0].abs(), torch.Generator().manual_seed(2)), {"X": x[:, 1:]}
    return found | {
        "mixture with gaps, 1000 rows": (gaussian_mixture, (holes,), {"components": COMPONENTS}),
        "Poisson chain, 107 steps": (hidden_markov_poisson, (counts[:107],), CHAIN),
        "Gaussian chain, 1000 steps": (hidden_markov_gaussian, (x,), CHAIN),
        "Gaussian chains, 20 x 50": (hidden_markov_gaussian, (x.reshape(20, 50, 2),), CHAIN),
        "regressions, 1000 rows": (regression_mixture, (x[:, 0],), {**lines, **MIXED}),
        "experts, 200 rows": (mixture_of_experts, (x[:200, 0],), {"X": x[:200, 1:], **MIXED}),
        "zero-inflated, 200 rows": (
            count_mixture,
            (counts[:200],),
            {"components": 2, "zeros": "inflated"},
        ),
    }


def main() -> None:
    """Print one line for each model and objective."""
    warnings.simplefilter("ignore", RuntimeWarning)  # some starts degenerate: that is the point
    print(f"{torch.get_num_threads()} threads, float64, {STARTS} starts")
    print(f"{'':>29} {'objective':>9} {'steps':>7} {'fits':>7} {'batch':>9} {'in turn':>9}  missed")
    for name, (model, args, kwargs) in cases().items():
        for objective in ("map", "mle") if all(word in name for word in sys.argv[1:]) else ():
            em = EM(model, objective, restarts=STARTS, seed=0)
            with sheltered(0, (args, kwargs)):
                plan = em.plan(*args, **kwargs)
                starts = starting_points(plan, em.init, em.restarts, em.anneal)
                print(f"{name:>29} {objective:>9} {line(em, plan, starts, len(args[0]))}")


def simulate(rows: int) -> Tensor:
    """Overlapping clusters, on which the starts do not all agree."""
    generator = torch.Generator().manual_seed(0)
    centres = 2.5 * torch.randn(COMPONENTS, COLUMNS, generator=generator, dtype=torch.float64)
    which = torch.randint(COMPONENTS, (rows,), generator=generator)
    return centres[which] + torch.randn(rows, COLUMNS, generator=generator, dtype=torch.float64)


def line(em: EM, plan: Plan, starts: list[Start], rows: int) -> str:
    """The two ratios, the times of the fits and the difference of what they found."""
    count = 5 if rows > 10_000 else 50

    def run(way: Trajectory, limit: int = 1000) -> Run:
        return em._run(plan, way, limit)

    def stacked() -> None:
        ways = [Trajectory(start.params) for start in starts]
        run_batched(BatchedSteps(plan), ways, count, LittleGain(-1.0), accelerate=False)

    def one_by_one() -> None:
        for start in starts:
            params = start.params
            for _ in range(count):
                params = MStep.of(plan)(LogEvidence.of(plan).statistics(params))

    def batch() -> float:
        return float(best_of(plan, starts, run, 1000, 1e-7).history[-1])

    def in_turn() -> float:
        fits = [run(Trajectory(start.params)) for start in starts]
        return max(float(fit.history[-1]) for fit in fits if not fit.is_degenerate)

    steps = [(clocked(stacked)[0], clocked(one_by_one)[0]) for _ in range(ROUNDS)]
    fits = [(clocked(batch), clocked(in_turn)) for _ in range(ROUNDS)]
    step_ratio = statistics.median(slow / fast for fast, slow in steps)
    fit_ratio = statistics.median(slow[0] / fast[0] for fast, slow in fits)
    fast, slow = (statistics.median(each[i][0] for each in fits) for i in (0, 1))
    missed = fits[0][1][1] - fits[0][0][1]
    return f"{step_ratio:>6.1f}x {fit_ratio:>6.1f}x {fast:>8.2f}s {slow:>8.2f}s  {missed:.2g}"


def clocked(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    began = time.perf_counter()
    found = function()
    return time.perf_counter() - began, found


if __name__ == "__main__":
    main()
