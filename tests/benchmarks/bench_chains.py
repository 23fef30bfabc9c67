"""One EM iteration of a Gaussian hidden Markov model, Ember against hmmlearn.

Both start at the same parameters and run the same number of iterations, in turn, in one process:
hmmlearn by its faster implementation, with scaled probabilities; Ember in tensors, and with
compiled recursions where numba is installed. The table shows the least and the median time of an
iteration, ratios of the least times (above 1: Ember is faster), and how far apart the log
likelihoods are at the end. Sizes grow in steps and in states, one at a time, then come many
sequences. Run it with ``make bench``.
"""

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from hmmlearn.base import ConvergenceMonitor
from hmmlearn.hmm import GaussianHMM
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ember.inference import EM
from ember.inference.numerics.compiled import use_compiled
from ember.models import hidden_markov_gaussian

SIZES = [
    *((1, 10_000, 5), (1, 30_000, 5), (1, 100_000, 5)),
    *((1, 10_000, 10), (1, 10_000, 30), (1, 100_000, 10)),
    *((100, 100, 5), (1_000, 100, 5), (200, 500, 30)),
]
FEATURES = 2
SECONDS = 6.0  # for each size, from which on no further round begins
ROUNDS = 2  # at least
STEPS = 600_000  # of sequences, that all iterations of a run read together
FEWEST, MOST = 4, 40  # iterations of a run

Start = dict[str, torch.Tensor]
Run = Callable[[np.ndarray, Start], tuple[list[float], float]]


@dataclass
class Times:
    """Seconds of each iteration, and the log likelihood at the end."""

    seconds: list[float] = field(default_factory=list)
    evidence: float = 0.0

    @property
    def least(self) -> float:
        """The shortest."""
        return min(self.seconds)

    def __str__(self) -> str:
        return f"{1e3 * self.least:8.2f} {1e3 * statistics.median(self.seconds):8.2f}"


def main() -> None:
    """Print one line for each size."""
    names = list(competitors())
    print(f"{torch.get_num_threads()} threads, float64; milliseconds, least and median")
    print(
        f"{'S':>5} {'T':>7} {'K':>3}  "
        + "".join(f"{name:<19}" for name in names)
        + f"{'ratios':>{7 * (len(names) - 1)}}  difference"
    )
    for (sequences, steps, states), found in lines():
        shown = "".join(f"{ratio:>6.1f}x" for ratio in ratios(found).values())
        theirs, *ours = found.values()
        gap = max(abs(each.evidence / theirs.evidence - 1.0) for each in ours)
        columns = " ".join(f"{each!s:<18}" for each in found.values())
        print(f"{sequences:>5} {steps:>7} {states:>3} {columns} {shown}  {gap:.0e}", flush=True)


def competitors() -> dict[str, Run]:
    """Those that are measured here, hmmlearn first."""
    runs: dict[str, Run] = {"hmmlearn": rival, "tensors": in_tensors}
    return runs | ({"compiled": ember} if use_compiled() else {})


def lines() -> Iterator[tuple[tuple[int, int, int], dict[str, Times]]]:
    """The times of one size after the other."""
    warnings.simplefilter("ignore", RuntimeWarning)  # both sides stop before they converge
    for sequences, steps, states in SIZES:
        x = simulate(sequences, steps, states)
        found = compare(competitors(), x, starting_point(x, states))
        yield (sequences, steps, states), found


def ratios(found: dict[str, Times]) -> dict[str, float]:
    """How many times as long hmmlearn takes."""
    (_, theirs), *ours = found.items()
    return {name: theirs.least / own.least for name, own in ours}


def compare(runs: dict[str, Run], x: np.ndarray, start: Start) -> dict[str, Times]:
    """The times of all, in turn; not those of the last one's first run, which may compile."""
    found = {name: Times() for name in runs}
    list(runs.values())[-1](x, start)
    began, rounds = time.perf_counter(), 0
    while rounds < ROUNDS or time.perf_counter() - began < SECONDS:
        for name, run in runs.items():
            seconds, found[name].evidence = run(x, start)
            found[name].seconds += seconds
        rounds += 1
    return found


def simulate(sequences: int, steps: int, states: int) -> np.ndarray:
    """Sequences (S, T, D) that stay in a state for ten steps on average."""
    generator = np.random.default_rng(0)
    centres = 3.0 * generator.normal(size=(states, FEATURES))
    state = generator.integers(states, size=sequences)
    path = np.empty((sequences, steps), dtype=int)
    for t in range(steps):
        moved = generator.random(sequences) < 0.1
        state = np.where(moved, generator.integers(states, size=sequences), state)
        path[:, t] = state
    return centres[path] + generator.normal(size=(sequences, steps, FEATURES))


def starting_point(x: np.ndarray, states: int) -> Start:
    """Parameters that lie near the truth, the same for both."""
    generator = np.random.default_rng(1)
    rows = x.reshape(-1, FEATURES)
    transition = np.full((states, states), 0.2 / (states - 1))
    np.fill_diagonal(transition, 0.8)
    values = {
        "initial": np.full(states, 1 / states),
        "transition": transition,
        "locs": rows[generator.choice(len(rows), states, replace=False)],
        "precisions": np.broadcast_to(np.linalg.inv(np.cov(rows.T)), (states, FEATURES, FEATURES)),
    }
    return {name: torch.tensor(value) for name, value in values.items()}


def iterations(x: np.ndarray) -> int:
    """How many iterations a run takes."""
    return min(MOST, max(FEWEST, STEPS // int(np.prod(x.shape[:2]))))


def rival(x: np.ndarray, start: Start) -> tuple[list[float], float]:
    """Seconds of hmmlearn's iterations but the first, and the log likelihood after the last."""
    model = GaussianHMM(
        len(start["initial"]),
        covariance_type="full",
        min_covar=0.0,
        covars_prior=0.0,
        covars_weight=0.0,
        n_iter=iterations(x) + 1,  # its history holds the value before each M-step
        tol=-np.inf,
        init_params="",
        implementation="scaling",
    )
    model.startprob_ = start["initial"].numpy()
    model.transmat_ = start["transition"].numpy()
    model.means_ = start["locs"].numpy()
    model.covars_ = np.linalg.inv(start["precisions"].numpy())
    model.monitor_ = Clock(-np.inf, iterations(x) + 1, False)
    with threadpool_limits(1):  # its products are small: more threads only wait for each other
        model.fit(x.reshape(-1, FEATURES), [x.shape[1]] * len(x))
    return list(np.diff(model.monitor_.times)), float(model.monitor_.history[-1])


class Clock(ConvergenceMonitor):  # type: ignore[misc]
    """Notes when each E-step is done."""

    def _reset(self) -> None:
        super()._reset()
        self.times: list[float] = []

    def report(self, log_prob: float) -> None:
        self.times.append(time.perf_counter())
        super().report(log_prob)


def ember(x: np.ndarray, start: Start) -> tuple[list[float], float]:
    """The same for Ember's plain iteration."""
    em = EM(
        hidden_markov_gaussian,
        objective="mle",
        init=start,
        accelerate=None,
        tol=1e-300,
        max_iter=iterations(x),
    )
    fit = em.fit(x, states=len(start["initial"]))
    return fit.times.diff()[1:].tolist(), fit.log_likelihood


def in_tensors(x: np.ndarray, start: Start) -> tuple[list[float], float]:
    """The same without compiled recursions."""
    os.environ["EMBER_COMPILED"] = "0"
    try:
        return ember(x, start)
    finally:
        del os.environ["EMBER_COMPILED"]


if __name__ == "__main__":
    main()
