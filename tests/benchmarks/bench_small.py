"""Little data: Old Faithful, 272 eruptions, against scikit-learn; and reading four models.

Where there is next to nothing to compute, the time of a fit is what surrounds the arithmetic:
reading the model, the operations of a step, and asking at the end whether the place is a maximum.
Both sides take turns in one process on one thread; the table shows the least and the median time.
Run it with ``make bench``; on a busy machine ``OMP_WAIT_POLICY=passive`` keeps idle threads out of
the way.
"""

import functools
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ember.inference import EM, select
from ember.inference.inputs.arguments import Model
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.acceleration.em_map import EMMap
from ember.inference.iteration.acceleration.schemes import scheme_for
from ember.inference.iteration.convergence import TOLERANCE, Monitor
from ember.inference.iteration.loop import Loop
from ember.inference.iteration.trajectory import Trajectory
from ember.inference.plan.plan import Plan
from ember.models import (
    gaussian_mixture,
    hidden_markov_gaussian,
    poisson_mixture,
    regression_mixture,
)

FAITHFUL = Path(__file__).parents[1] / "reference" / "data" / "faithful.csv"
ROUNDS, ITERATIONS, RESTARTS = 7, 100, 10
COMPONENTS = range(1, 10)
COVARIANCES = ["full", "tied", "diag", "spherical"]  # both sides call them so
Task = Callable[[], object]


def main() -> None:
    """Print the three tables."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", RuntimeWarning)  # neither side converges in a few iterations
    torch.set_num_threads(1)
    x = pd.read_csv(FAITHFUL).to_numpy(dtype=float)
    print(f"{'Old Faithful, K = 2':28} {'scikit-learn':>20} {'Ember':>20}")
    em = EM(gaussian_mixture, seed=0)
    plan = em.plan(x, components=2)
    start = em.initialise(plan)
    duel(
        "an iteration", lambda: iterations_of_rival(x), lambda: iterations(plan, start), ITERATIONS
    )
    duel("a fit, model read before", lambda: rival().fit(x), lambda: fit_of(em, plan))
    duel("a fit, reading included", lambda: rival().fit(x), lambda: fit(x))
    duel(
        f"{RESTARTS} starts",
        lambda: rival(n_init=RESTARTS).fit(x),
        lambda: fit(x, restarts=RESTARTS),
        rounds=3,
    )
    print(f"\n{'reading':28} {'':>20} {'Ember':>20}")
    for name, task in readings(x).items():
        print(f"{name:28} {'':>20} {shown(timed([task], ROUNDS)[0])}", flush=True)
    print()
    duel("9 numbers x 4 covariances", lambda: grid_of_rival(x), lambda: sweep(x), rounds=1)


def duel(name: str, theirs: Task, ours: Task, per: int = 1, rounds: int = ROUNDS) -> None:
    """Print one line: the least and the median time of each side."""
    each = [[t / per for t in times] for times in timed([theirs, ours], rounds)]
    print(f"{name:28} {shown(each[0])} {shown(each[1])}", flush=True)


def timed(tasks: list[Task], rounds: int) -> list[list[float]]:
    """The seconds of several tasks, in turn; the first round of several does not count."""
    times: list[list[float]] = [[] for _ in tasks]
    for i in range(rounds if rounds == 1 else rounds + 1):
        for task, own in zip(tasks, times, strict=True):
            began = time.perf_counter()
            task()
            if i or rounds == 1:
                own.append(time.perf_counter() - began)
    return times


def shown(times: list[float]) -> str:
    """The least and the median, in milliseconds."""
    return f"{1e3 * min(times):>9.2f} {1e3 * statistics.median(times):>7.2f} ms"


def rival(components: int = 2, **options: object) -> GaussianMixture:
    """Scikit-learn's mixture, which stops at a gain of as little as Ember does."""
    return GaussianMixture(components, tol=1e-8, max_iter=1000, random_state=0, **options)


def iterations_of_rival(x: np.ndarray) -> None:
    """Some iterations from a start that costs nothing."""
    options = {"init_params": "random", "random_state": 0}
    GaussianMixture(2, tol=0.0, max_iter=ITERATIONS, **options).fit(x)


def iterations(plan: Plan, start: dict[str, Tensor]) -> None:
    """As many of Ember's plain ones."""
    with sheltered(0):
        Loop(plan, EMMap.of(plan), None)(Trajectory(start), ITERATIONS)


def fit_of(em: EM, plan: Plan) -> None:
    """A start, the loop from there, and the verdict on where it ends."""
    start = em.initialise(plan)
    with sheltered(0):
        Loop(plan, EMMap.of(plan), Monitor(TOLERANCE), scheme_for("auto", plan))(
            Trajectory(start), 1000
        )


def fit(x: np.ndarray, restarts: int = 1) -> None:
    """All that a user waits for."""
    EM(gaussian_mixture, seed=0, restarts=restarts).fit(x, components=2)


def readings(x: np.ndarray) -> dict[str, Task]:
    """The reading of four models."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 2))
    response = features @ [1.0, -2.0] + rng.normal(size=300)
    counts = rng.poisson(rng.choice([2.0, 9.0], size=300)).astype(float)
    models: dict[str, tuple[Model, tuple[np.ndarray, ...], dict[str, int]]] = {
        "gaussian_mixture": (gaussian_mixture, (x,), {"components": 2}),
        "poisson_mixture": (poisson_mixture, (counts,), {"components": 2}),
        "hidden_markov_gaussian": (hidden_markov_gaussian, (x,), {"states": 2}),
        "regression_mixture": (regression_mixture, (response, features), {"components": 2}),
    }
    return {name: functools.partial(read, *each) for name, each in models.items()}


def read(model: Model, data: tuple[np.ndarray, ...], options: dict[str, int]) -> Plan:
    """The plan of one of them."""
    return EM(model, seed=0).plan(*data, **options)


def grid_of_rival(x: np.ndarray) -> None:
    """Each number of components with each kind of covariance."""
    for components in COMPONENTS:
        for covariance in COVARIANCES:
            rival(components, covariance_type=covariance).fit(x)


def sweep(x: np.ndarray) -> None:
    """The same, with the criteria of each."""
    select(gaussian_mixture, x, components=COMPONENTS, covariance=COVARIANCES, em={"seed": 0})


if __name__ == "__main__":
    main()
