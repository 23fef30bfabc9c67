"""One EM iteration of a full-covariance Gaussian mixture, Ember against scikit-learn.

Both start at the same parameters and run the same number of iterations, in turn, in one process;
the table shows the median time of an iteration and the ratio (above 1: Ember is faster). Run it
with ``make bench``; on a busy machine ``OMP_WAIT_POLICY=passive`` keeps idle threads out of the
way.
"""

import statistics
import time
import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from ember.inference import EM
from ember.models import gaussian_mixture

SIZES = [(272, 2, 2), (10_000, 8, 8), (100_000, 2, 5), (1_000_000, 8, 16)]
ROUNDS = 3


def main() -> None:
    """Print one line for each size."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", RuntimeWarning)  # both sides stop before they converge
    print(f"{torch.get_num_threads()} threads, float64")
    print(f"{'N':>9} {'D':>3} {'K':>3} {'scikit-learn':>14} {'Ember':>12} {'ratio':>7}  difference")
    for rows, columns, components in SIZES:
        x = simulate(rows, columns, components)
        start = EM(gaussian_mixture, "mle", seed=0).initialise(x, components=components)
        count = max(3, min(100, 2_000_000 // rows))
        rival, ours = [], []
        for _ in range(ROUNDS):
            rival.append(time_rival(x, start, count))
            ours.append(time_ember(x, start, count))
        theirs, mine = (statistics.median(t for t, _ in runs) for runs in (rival, ours))
        gap = abs(rival[0][1] - ours[0][1]) / abs(rival[0][1])
        print(
            f"{rows:>9} {columns:>3} {components:>3} "
            f"{1e3 * theirs:>11.2f} ms {1e3 * mine:>9.2f} ms {theirs / mine:>6.1f}x  {gap:.0e}",
            flush=True,
        )


def simulate(rows: int, columns: int, components: int) -> np.ndarray:
    """Overlapping clusters, so that neither side converges within the run."""
    generator = np.random.default_rng(0)
    centres = 2.0 * generator.normal(size=(components, columns))
    return centres[generator.integers(components, size=rows)] + generator.normal(
        size=(rows, columns)
    )


def time_rival(x: np.ndarray, start: dict[str, torch.Tensor], count: int) -> tuple[float, float]:
    """Seconds for an iteration and the mean log likelihood of a row at the end."""

    def run(iterations: int) -> tuple[float, float]:
        model = GaussianMixture(
            len(start["weights"]),
            max_iter=iterations,
            tol=0.0,
            reg_covar=0.0,
            weights_init=start["weights"].numpy() / start["weights"].sum().item(),
            means_init=start["locs"].numpy(),
            precisions_init=start["precisions"].numpy(),
        )
        began = time.perf_counter()
        model.fit(x)
        return time.perf_counter() - began, float(model.lower_bound_)

    short, _ = run(1)
    long, bound = run(count + 1)
    return (long - short) / count, bound


def time_ember(x: np.ndarray, start: dict[str, torch.Tensor], count: int) -> tuple[float, float]:
    """The same for Ember's plain iteration; reading the model cancels in the difference."""

    def run(iterations: int) -> tuple[float, float]:
        em = EM(
            gaussian_mixture,
            objective="mle",
            init=start,
            accelerate=None,
            tol=1e-300,
            max_iter=iterations,
        )
        fit = em.fit(x, components=len(start["weights"]))
        return float(fit.times[-1] - fit.times[0]), fit.log_likelihood / len(x)

    short, _ = run(1)
    long, bound = run(count + 1)
    return (long - short) / count, bound


if __name__ == "__main__":
    main()
