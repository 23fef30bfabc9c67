"""Whole fits of models with Gaussian latents, beside each field's library where it is installed.

A line for each model: seconds to read it, milliseconds of an E-step, then a whole fit with its
passes over the data; the rival's seconds for a fit, how many times as long that is, and by how much
Ember's log likelihood is larger. Rivals: scikit-learn's ``FactorAnalysis`` (to 1e-8 a row), and
statsmodels' ``MixedLM``. Crossed effects of this size have none. Run it with ``make bench``, or
name the models: ``bench_gaussian_models.py factors slopes crossed``.
"""

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ember.inference import EM
from ember.models import factor_analysis, linear_mixed_model

ROUNDS = 5
Rival = Callable[[], float]  # a fit; its log likelihood


def main(names: list[str]) -> None:
    """Print a line for each model named, or for all."""
    torch.set_default_dtype(torch.float64)
    print(f"{torch.get_num_threads()} threads, float64")
    print(
        f"{'read':>9} {'E-step':>10} {'fit':>9} {'passes':>7} {'rival':>9} {'ratio':>7} "
        f"{'log likelihood':>15}  model",
        flush=True,
    )
    for name in names or list(CASES):
        CASES[name]()


def measure(
    title: str, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rival: Rival | None
) -> None:
    """Print the line of one model."""
    em = EM(model, "mle", seed=0)
    began = time.perf_counter()
    fit = em.fit(*args, **kwargs)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    plan = em.plan(*args, **kwargs)
    reading = time.perf_counter() - began
    steps = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        em.e_step(fit.params, plan)
        steps.append(time.perf_counter() - began)
    line = f"{reading:>7.2f} s {1e3 * min(steps):>7.1f} ms {seconds:>7.2f} s {fit.evaluations:>7d} "
    if rival is None:
        print(f"{line}{'':>34}  {title}", flush=True)
        return
    began = time.perf_counter()
    theirs = rival()
    other = time.perf_counter() - began
    print(
        f"{line}{other:>7.1f} s {other / seconds:>6.1f}x {fit.log_likelihood - theirs:>+15.2g}  "
        f"{title}",
        flush=True,
    )


def factors() -> None:
    """Factor analysis of 200,000 rows of 50 columns, five factors."""
    rows, columns, count = 200_000, 50, 5
    torch.manual_seed(0)
    loadings = torch.randn(columns, count)
    x = torch.randn(rows, count) @ loadings.T
    x += (0.5 + torch.rand(columns)) * torch.randn(rows, columns)

    def rival() -> float:
        found = importlib.import_module("sklearn.decomposition").FactorAnalysis(
            count, tol=1e-8 * rows, max_iter=1000
        )
        return float(found.fit(x.numpy()).loglike_[-1])

    other = rival if importlib.util.find_spec("sklearn") else None
    measure("factor analysis, 200,000 x 50, 5 factors", factor_analysis, (x, count), {}, other)


def slopes() -> None:
    """Random intercepts and slopes in 5,000 groups of 20 rows."""
    groups, size = 5_000, 20
    torch.manual_seed(0)
    group = torch.arange(groups).repeat_interleave(size)
    time_ = torch.rand(groups * size)
    design = torch.stack([torch.ones_like(time_), time_], -1)
    root = torch.tensor([[0.8, 0.0], [0.3, 0.5]])
    effects = (torch.randn(groups, 2) @ root.T)[group]
    y = 1.0 + 2.0 * time_ + (design * effects).sum(-1) + 0.7 * torch.randn(groups * size)

    def rival() -> float:
        found = importlib.import_module("statsmodels.api").MixedLM(
            y.numpy(), design.numpy(), groups=group.numpy(), exog_re=design.numpy()
        )
        return float(found.fit(reml=False).llf)

    kwargs: dict[str, Any] = {"groups": group, "design": design}
    other = rival if importlib.util.find_spec("statsmodels") else None
    title = "intercepts and slopes, 100,000 rows in 5,000 groups"
    measure(title, linear_mixed_model, (y, time_), kwargs, other)


def crossed() -> None:
    """Two crossed grouping factors, of 5,000 and 200 levels."""
    rows = 100_000
    torch.manual_seed(0)
    person, item = torch.arange(rows) % 5_000, torch.randint(200, (rows,))
    y: Tensor = torch.randn(5_000)[person] + 0.5 * torch.randn(200)[item] + torch.randn(rows)
    kwargs: dict[str, Any] = {"groups": {"person": person, "item": item}}
    measure("crossed, 100,000 rows, 5,000 x 200", linear_mixed_model, (y,), kwargs, None)


CASES = {"factors": factors, "slopes": slopes, "crossed": crossed}

if __name__ == "__main__":
    main(sys.argv[1:])
