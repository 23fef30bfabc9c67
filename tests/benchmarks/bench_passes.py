"""What a fit costs beside plain EM, Pyro's own gradient and SVI, on the same models.

First the passes over the data until the objective is within 1e-8 of the optimum, relative: plain
EM against the default, which makes one pass or more an iteration. Then one evaluation of the
objective with its gradient: Pyro's ``TraceEnum_ELBO``, backward pass included, against an E-step
with Fisher's identity. Then the seconds until within 1e-6: the default against SVI with
``AutoDelta`` from the same start, for 3,000 steps at most. Run it with ``make bench``.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta
from pyro.poutine import block
from torch import Tensor

from ember.inference import EM, SVI, Fit
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.acceleration.em_map import EMMap
from ember.inference.maximisation.objective import score
from ember.models import gaussian_mixture, poisson_mixture

NOTICES = Path(__file__).parents[1] / "reference" / "data" / "notices.csv"
MOST = 20_000  # iterations of plain EM
NEAR, NEARER = 1e-6, 1e-8
Case = tuple[str, Callable[..., Any], Tensor, dict[str, Any]]


def main() -> None:
    """Print the three tables."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = cases()
    print(f"{'passes to 1e-8 of the optimum':32} {'plain EM':>10} {'default':>10} {'ratio':>7}")
    for name, model, x, options in found:
        plain, quick = (
            passes(EM(model, accelerate=how, max_iter=MOST, tol=1e-12, seed=0).fit(x, **options))
            for how in (None, "auto")
        )
        print(f"{name:32} {plain:>10} {quick:>10} {plain / quick:>6.1f}x", flush=True)
    print(f"\n{'value and gradient, ms':32} {'Pyro':>10} {'Ember':>10} {'ratio':>7}")
    large = ("overlapping, 100,000 x 8, eight", gaussian_mixture, overlapping(100_000, 8, 8),
             {"components": 8})  # fmt: skip
    for name, model, x, options in [*found, large]:
        theirs, ours = gradients(model, x, options)
        print(f"{name:32} {theirs:>10.2f} {ours:>10.2f} {theirs / ours:>6.1f}x", flush=True)
    print(f"\n{'seconds to 1e-6 of the optimum':32} {'SVI':>10} {'EM':>10} {'ratio':>7}")
    for name, model, x, options in found:
        theirs, ours, reached = race(model, x, options)
        print(
            f"{name:32} {theirs:>10.2f} {ours:>10.3f} {theirs / ours:>6.1f}x"
            + ("" if reached else "  (SVI did not get there)"),
            flush=True,
        )


def cases() -> list[Case]:
    """Two slow mixtures, and one of middling size."""
    table = pd.read_csv(NOTICES)
    deaths = torch.tensor(table["deaths"].to_numpy(), dtype=torch.float64)
    deaths = deaths.repeat_interleave(torch.tensor(table["days"].to_numpy()))
    return [
        ("death notices, two Poissons", poisson_mixture, deaths, {"components": 2}),
        ("overlapping, 2,000 x 2, three", gaussian_mixture, overlapping(2_000, 2, 3),
         {"components": 3}),
        ("overlapping, 20,000 x 4, four", gaussian_mixture, overlapping(20_000, 4, 4),
         {"components": 4}),
    ]  # fmt: skip


def overlapping(rows: int, columns: int, components: int) -> Tensor:
    """Clusters one standard deviation apart."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(components, columns))
    x = centres[generator.integers(components, size=rows)]
    return torch.from_numpy(x + generator.normal(size=(rows, columns)))


def passes(fit: Fit) -> int:
    """Passes until the objective is near its end; an iteration costs what they cost on average."""
    gap = fit.history[-1] - fit.history
    first = int((gap > NEARER * abs(float(fit.history[-1]))).sum())
    return max(1, round(first * fit.evaluations / max(fit.iterations, 1)))


def gradients(model: Callable[..., Any], x: Tensor, options: dict[str, Any]) -> tuple[float, float]:
    """Milliseconds of one evaluation with its gradient, in turn: medians."""
    em = EM(model, seed=0)
    plan = em.plan(x, **options)
    params = em.initialise(plan)
    quick = EMMap.of(plan).replayed()  # as after the first iterations of a fit
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)
    latents = list(plan.structure.latent)
    guide = AutoDelta(block(model, hide=latents))
    enumerated = config_enumerate(model)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)

    def theirs() -> None:
        elbo.differentiable_loss(enumerated, guide, x, **options).backward()

    def ours() -> None:
        with torch.no_grad():
            statistics_ = quick.e_step(params)
        score(statistics_, quick.coordinates)

    with sheltered(0, x):
        both = [(timed(theirs), timed(ours)) for _ in range(15)][3:]
    torch.set_default_dtype(torch.float32)
    medians = [statistics.median(times) for times in zip(*both, strict=True)]
    return 1e3 * medians[0], 1e3 * medians[1]


def race(
    model: Callable[..., Any], x: Tensor, options: dict[str, Any]
) -> tuple[float, float, bool]:
    """Seconds of SVI and of EM, reading the model aside, until near the optimum."""
    em = EM(model, seed=0)
    plan = em.plan(x, **options)
    start = em.initialise(plan)
    best = EM(model, init=start, tol=1e-12, seed=0).fit(x, **options).log_posterior
    enough = best - NEAR * abs(best)
    fit = EM(model, init=start, seed=0).fit(x, **options)
    ours = reached(fit, enough)
    svi = SVI(model, guide="delta", init=start, steps=3_000, seed=0).fit(x, **options)
    theirs = reached(svi, enough)
    return (
        float(svi.times[-1] - svi.times[0]) if theirs is None else theirs,
        float("nan") if ours is None else ours,
        theirs is not None,
    )


def reached(fit: Fit, enough: float) -> float | None:
    """Seconds from the start of the loop until the objective is high enough."""
    above = (fit.history >= enough).nonzero()
    if not len(above):
        return None
    return max(1e-4, float(fit.times[int(above[0])] - fit.times[0]))


def timed(task: Callable[[], None]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
