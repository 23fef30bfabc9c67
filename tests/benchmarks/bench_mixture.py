"""One EM iteration of a Gaussian mixture, Ember against scikit-learn.

All start at the same parameters and take the same iterations, in turn, in one process:
scikit-learn, Ember in torch alone, and Ember with compiled loops, which it loads where there is
work enough for them. The table shows the least time of an iteration and in brackets the median, how
many times as long scikit-learn takes (of the least times), how far apart the log likelihoods are at
the end, and what memory Ember's iterations take at most besides the data, a copy of them that is
the fit's own, and one that has columns first. Run it with ``make bench``; on a busy machine
``OMP_WAIT_POLICY=passive`` keeps idle threads out of the way.
"""

import ctypes
import gc
import os
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.numerics.compiled import use_compiled
from ember.models import gaussian_mixture

SIZES = [
    ("full", 272, 2, 2),
    ("full", 10_000, 8, 8),
    ("full", 100_000, 2, 5),
    ("full", 100_000, 16, 16),
    ("full", 1_000_000, 8, 16),
    ("full", 200_000, 32, 16),
    ("full", 50_000, 64, 32),
    ("diag", 10_000, 8, 8),
    ("diag", 100_000, 16, 16),
    ("diag", 1_000_000, 8, 16),
]
STATUS = Path("/proc/self/status")
MOST = 2_000_000  # rows that all iterations of a run read together, but for two iterations
SECONDS = 8.0  # for one line of the table, unless two rounds take longer
Run = tuple[list[float], float]  # seconds of each iteration, and the mean log likelihood of a row


class Line(NamedTuple):
    """What was measured of one size.

    Attributes:
        size: The kind of covariance, rows, columns and components.
        runs: The runs of each competitor, scikit-learn's first.
        peak: Bytes; see ``memory``.
    """

    size: tuple[str, int, int, int]
    runs: dict[str, list[Run]]
    peak: float

    @property
    def ratios(self) -> dict[str, float]:
        """How many times as long scikit-learn takes."""
        least = {name: min(each(found)) for name, found in self.runs.items()}
        rival = least.pop("scikit-learn")
        return {name: rival / own for name, own in least.items()}

    def __str__(self) -> str:
        covariance, rows, columns, components = self.size
        line = f"{covariance} {rows:>9} {columns:>3} {components:>3}"
        bound, gap, ratios = self.runs["scikit-learn"][0][1], 0.0, self.ratios
        for name, found in self.runs.items():
            least, middle = min(each(found)), statistics.median(each(found))
            line += f" {1e3 * least:>8.2f} ({1e3 * middle:>7.2f})"
            if name in ratios:
                line += f" {ratios[name]:>8.1f}x"
                gap = max(gap, abs(found[0][1] - bound) / abs(bound))
        return f"{line}    {gap:.0e}  {self.peak / 1e6:6.1f} MB"


def main() -> None:
    """Print one line for each size."""
    print(f"{torch.get_num_threads()} threads, float64, milliseconds")
    print(
        f"{'':4} {'N':>9} {'D':>3} {'K':>3} {'scikit-learn':>18}"
        + "".join(f"{name:>20} {'ratio':>7}" for name in competitors())
        + "  difference  memory"
    )
    for line in lines():
        print(line, flush=True)


def competitors() -> list[str]:
    """The ways in which Ember is measured here."""
    return ["torch", "compiled"] if use_compiled() else ["torch"]


def lines() -> Iterator[Line]:
    """One size after the other."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", RuntimeWarning)  # neither converges
    for size in SIZES:
        covariance, rows, columns, components = size
        x = simulate(rows, columns, components)
        options = {"components": components, "covariance": covariance}
        start = EM(gaussian_mixture, "mle", seed=0).initialise(x, **options)
        time_ember(x, start, options, "compiled", 1)  # compiles, if that is still to be done
        count = max(2, min(50, MOST // rows))
        runs: dict[str, list[Run]] = {name: [] for name in ("scikit-learn", *competitors())}
        began = time.perf_counter()
        while len(runs["scikit-learn"]) < 2 or time.perf_counter() - began < SECONDS:
            runs["scikit-learn"].append(time_rival(x, start, covariance, count))
            for name in competitors():
                runs[name].append(time_ember(x, start, options, name, count))
        yield Line(size, runs, memory(x, start, options))


def each(runs: list[Run]) -> list[float]:
    """The seconds of all iterations of all runs."""
    return [seconds for times, _ in runs for seconds in times]


def simulate(rows: int, columns: int, components: int) -> np.ndarray:
    """Overlapping clusters, so that neither side converges within the run."""
    generator = np.random.default_rng(0)
    centres = 2.0 * generator.normal(size=(components, columns))
    return centres[generator.integers(components, size=rows)] + generator.normal(
        size=(rows, columns)
    )


class TimedMixture(GaussianMixture):  # type: ignore[misc]
    """scikit-learn's, which notes when each E-step begins."""

    def _e_step(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.setdefault("began", []).append(time.perf_counter())
        return super()._e_step(*args, **kwargs)


def time_rival(x: np.ndarray, start: dict[str, torch.Tensor], covariance: str, count: int) -> Run:
    """Iterations of scikit-learn from the given start."""
    model = TimedMixture(
        len(start["weights"]),
        covariance_type=covariance,
        max_iter=count,
        tol=0.0,
        reg_covar=0.0,
        weights_init=start["weights"].numpy() / start["weights"].sum().item(),
        means_init=start["locs"].numpy(),
        precisions_init=start["precisions"].numpy(),
    )
    model.fit(x)
    return np.diff(model.began).tolist(), float(model.lower_bound_)


def time_ember(
    x: np.ndarray,
    start: dict[str, torch.Tensor],
    options: dict[str, Any],
    name: str,
    count: int,
) -> Run:
    """The same for Ember's plain iterations."""
    with mock.patch.dict(os.environ, EMBER_COMPILED=str(int(name == "compiled"))):
        fit = EM(
            gaussian_mixture,
            objective="mle",
            init=start,
            accelerate=None,
            tol=1e-300,
            max_iter=count,
        ).fit(x, **options)
    before = float(
        fit.history[-2]
    )  # scikit-learn tells that of the parameters before the last step
    return fit.times.diff().tolist(), before / len(x)


def memory(x: np.ndarray, start: dict[str, torch.Tensor], options: dict[str, Any]) -> float:
    """Bytes that the process takes at most during iterations, besides two copies of the data.

    It is the highest mark of the resident set (Linux alone has it), set back at the first E-step.
    """
    if not STATUS.is_file():
        return float("nan")
    usual, marks = LogEvidence.statistics, list[int]()

    def marked(*args: Any, **kwargs: Any) -> Any:
        found = usual(*args, **kwargs)
        if not marks:
            _hand_back()
            Path("/proc/self/clear_refs").write_text("5")
        marks.append(_kilobytes("VmHWM"))
        return found

    _hand_back()
    before = _kilobytes("VmRSS")
    with mock.patch.object(LogEvidence, "statistics", marked):
        time_ember(x, start, options, "compiled", 3)
    return 1e3 * (max(marks[1:]) - before) - 2 * x.nbytes


def _hand_back() -> None:
    """Returns memory that has been freed to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(field: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
