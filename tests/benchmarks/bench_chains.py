"""One EM iteration of a Gaussian hidden Markov model, Ember against hmmlearn.

Both start at the same parameters and run the same number of iterations, in turn, in one process;
the table shows the median time of an iteration and the ratio (above 1: Ember is faster), and how
far apart the two log likelihoods are at the end. hmmlearn has two implementations; the faster
one, with scaled probabilities, is taken where it works. Run it with ``make bench``.
"""

import statistics
import time
import warnings

import numpy as np
import torch
from hmmlearn.hmm import GaussianHMM

from ember.inference import EM
from ember.models import hidden_markov_gaussian

SIZES = [(1, 10_000, 5), (1000, 100, 5), (1, 100_000, 10), (200, 500, 30)]
FEATURES = 2
ROUNDS = 3
COUNT = 3


def main() -> None:
    """Print one line for each size."""
    warnings.simplefilter("ignore", RuntimeWarning)  # both sides stop before they converge
    print(f"{torch.get_num_threads()} threads, float64")
    print(
        f"{'S':>5} {'T':>7} {'K':>3} {'hmmlearn log':>13} {'scaling':>12} {'Ember':>12} "
        f"{'ratios':>13}  difference"
    )
    for sequences, steps, states in SIZES:
        x = simulate(sequences, steps, states)
        start = starting_point(x, states)
        runs: dict[str, list[tuple[float, float]]] = {"log": [], "scaling": [], "ember": []}
        for _ in range(ROUNDS):
            for implementation in ("log", "scaling"):
                runs[implementation].append(time_rival(x, start, implementation))
            runs["ember"].append(time_ember(x, start))
        log, scaling, mine = (statistics.median(t for t, _ in each) for each in runs.values())
        gap = abs(runs["log"][0][1] - runs["ember"][0][1]) / abs(runs["log"][0][1])
        print(
            f"{sequences:>5} {steps:>7} {states:>3} {1e3 * log:>10.1f} ms {1e3 * scaling:>9.1f} ms "
            f"{1e3 * mine:>9.1f} ms {log / mine:>5.1f}x {scaling / mine:>5.1f}x  {gap:.0e}",
            flush=True,
        )


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


def starting_point(x: np.ndarray, states: int) -> dict[str, torch.Tensor]:
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


def time_rival(
    x: np.ndarray, start: dict[str, torch.Tensor], implementation: str
) -> tuple[float, float]:
    """Seconds for an iteration and the log likelihood at the end."""
    rows, lengths = x.reshape(-1, FEATURES), [x.shape[1]] * len(x)

    def run(iterations: int) -> tuple[float, float]:
        model = GaussianHMM(
            len(start["initial"]),
            covariance_type="full",
            min_covar=0.0,
            covars_prior=0.0,
            covars_weight=0.0,
            n_iter=iterations,
            tol=-np.inf,
            init_params="",
            implementation=implementation,
        )
        model.startprob_ = start["initial"].numpy()
        model.transmat_ = start["transition"].numpy()
        model.means_ = start["locs"].numpy()
        model.covars_ = np.linalg.inv(start["precisions"].numpy())
        began = time.perf_counter()
        model.fit(rows, lengths)
        return time.perf_counter() - began, float(model.monitor_.history[-1])

    short, _ = run(1)
    long, _ = run(COUNT + 1)
    _, evidence = run(COUNT + 2)  # its history holds the value before each M-step
    return (long - short) / COUNT, evidence


def time_ember(x: np.ndarray, start: dict[str, torch.Tensor]) -> tuple[float, float]:
    """The same for Ember's plain iteration; reading the model cancels in the difference."""

    def run(iterations: int) -> tuple[float, float]:
        em = EM(
            hidden_markov_gaussian,
            objective="mle",
            init=start,
            accelerate=None,
            tol=1e-300,
            max_iter=iterations,
        )
        fit = em.fit(x, states=len(start["initial"]))
        return float(fit.times[-1] - fit.times[0]), fit.log_likelihood

    short, _ = run(1)
    long, evidence = run(COUNT + 1)
    return (long - short) / COUNT, evidence


if __name__ == "__main__":
    main()
