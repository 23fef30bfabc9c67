"""Data in pieces: what a pass costs beside the same data in memory, and how much memory it takes.

A file of one million rows is fitted for a few plain iterations from one start, once from memory
and once piece by piece, each in a process of its own; the table shows seconds for a pass, the time
until the first (reading the model, or surveying the pieces), and the peak of the memory that the
process held beyond what it had before. Then growth: seconds for a pass over ever more rows, whose
slope in logarithms is 1 where it grows as they do. Run it with ``make bench``.
"""

import math
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from ember.inference import EM, Fit, chunks
from ember.models import gaussian_mixture

ROWS, COLUMNS, COMPONENTS = 1_000_000, 8, 16
PIECES = (20_000, 100_000, 500_000)
ITERATIONS = 5
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)


def main() -> None:
    """Print the two tables."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        np.save(path, simulate(ROWS))
        print(f"{ROWS:,} x {COLUMNS}, {COMPONENTS} components: seconds, MB")
        print(f"{'':24} {'a pass':>8} {'before':>8} {'memory':>8}")
        for rows in (0, *PIECES):
            name = f"pieces of {rows:,}" if rows else "in memory"
            command = [sys.executable, __file__, str(path), str(rows)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            each, before, memory = map(float, run.stdout.split())
            print(f"{name:24} {each:>8.3f} {before:>8.2f} {memory:>8.0f}", flush=True)
    print("\nrows       a pass, ms     slope")
    last: tuple[int, float] | None = None
    for rows in SIZES:
        fit = plain(max(3, 2_000_000 // rows)).fit(simulate(rows), components=COMPONENTS)
        each = float(fit.times[-1] - fit.times[0]) / fit.iterations
        slope = "" if last is None else f"{math.log(each / last[1]) / math.log(rows / last[0]):.2f}"
        print(f"{rows:<10,} {1e3 * each:>10.2f} {slope:>9}", flush=True)
        last = rows, each


def simulate(rows: int) -> np.ndarray:
    """Overlapping clusters."""
    generator = np.random.default_rng(0)
    centres = 2.0 * generator.normal(size=(COMPONENTS, COLUMNS))
    x = centres[generator.integers(COMPONENTS, size=rows)]
    return x + generator.normal(size=(rows, COLUMNS))


def plain(iterations: int) -> EM:
    """Plain iterations from a start that has nothing to do with the data."""
    generator = np.random.default_rng(1)
    start = {
        "weights": torch.full((COMPONENTS,), 1.0 / COMPONENTS),
        "locs": torch.from_numpy(2.0 * generator.normal(size=(COMPONENTS, COLUMNS))),
        "precisions": torch.eye(COLUMNS).expand(COMPONENTS, -1, -1).clone(),
    }
    return EM(gaussian_mixture, init=start, accelerate=None, tol=1e-300, max_iter=iterations)


def one(path: str, rows: int) -> None:
    """One fit in this process; prints seconds for a pass, seconds before the first, and MB."""
    warm = simulate(3_000)
    plain(2).fit(warm, components=COMPONENTS)
    plain(2).fit_batches(chunks(warm, rows=1_500), components=COMPONENTS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    em, began = plain(ITERATIONS), time.perf_counter()
    fit: Fit
    if rows:
        fit = em.fit_batches(chunks(path, rows=rows), components=COMPONENTS)
    else:
        fit = em.fit(np.load(path), components=COMPONENTS)
    each = float(fit.times[-1] - fit.times[0]) / fit.iterations
    first = time.perf_counter() - began - each * (fit.iterations + 1)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(each, first, memory)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if len(sys.argv) > 1:
        one(sys.argv[1], int(sys.argv[2]))
    else:
        main()
