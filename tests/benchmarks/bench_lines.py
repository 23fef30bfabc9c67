"""Densities of lines in coefficients: one look at the rows, against automatic differentiation.

Mixtures of Poisson and of logistic regressions and of experts, each of the same rows, by turns with
and without the closed form of ``factors/predictors.py``; the optimum is the same. Run it with
``make bench``.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ember.inference import EM, Fit
from ember.inference.factors import predictors
from ember.models import mixture_of_experts, regression_mixture

SIZES, COLUMNS, ROUNDS = (2_000, 100_000), 6, 3


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{'model':10} {'rows':>8} {'automatic':>11} {'by lines':>11} {'ratio':>6}  difference")
    for rows in SIZES:
        for name, fit in models(rows).items():
            slow, quick = list[float](), list[float]()
            for _ in range(ROUNDS if rows < 10_000 else 1):
                with mock.patch.object(predictors, "MOST_GROUPS", 0):
                    before = timed(fit, slow)
                after = timed(fit, quick)
            apart = abs(after.log_posterior / before.log_posterior - 1.0)
            middle = statistics.median(slow), statistics.median(quick)
            print(
                f"{name:10} {rows:>8} {middle[0]:>9.2f} s {middle[1]:>9.2f} s "
                f"{middle[0] / middle[1]:>6.1f}  {apart:.0e}",
                flush=True,
            )


def timed(fit: Callable[[], Fit], times: list[float]) -> Fit:
    """A fit, and its seconds."""
    began = time.perf_counter()
    found = fit()
    times.append(time.perf_counter() - began)
    return found


def models(rows: int) -> dict[str, Callable[[], Fit]]:
    """Fits of rows that two lines have made."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(rows, COLUMNS, generator=generator, dtype=torch.float64)
    lines = torch.tensor(
        [[0.3, 0.5, -0.2, 0.1, 0.0, 0.4, 0.2], [1.5, -0.4, 0.3, 0.2, -0.3, 0.0, 0.1]],
        dtype=torch.float64,
    )
    line = (torch.cat([torch.ones(rows, 1), X], 1) * lines[torch.arange(rows) % 2]).sum(-1)
    noise = torch.randn(rows, generator=generator, dtype=torch.float64)

    def of(model: Callable[..., Any], y: Tensor, objective: str, **options: Any) -> Any:
        return lambda: EM(model, objective, seed=0).fit(y, X, components=2, **options)

    counts = torch.poisson(line.exp(), generator=generator)
    choices = torch.bernoulli(line.sigmoid(), generator=generator)
    return {
        "Poisson": of(regression_mixture, counts, "map", family="poisson"),
        "logistic": of(regression_mixture, choices, "map", family="logistic"),
        "experts": of(mixture_of_experts, line + noise, "mle"),
    }


if __name__ == "__main__":
    main()
