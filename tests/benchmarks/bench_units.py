"""Latents of units: a logistic mixed model of 10,000 rows, and 200 growth curves.

Prints, for each, seconds of wall and of CPU time of the whole fit (reading the model included, the
best of three), passes over the data, and how far the total log likelihood is from that of many
more nodes; for draws how far from the optimum. ``OMP_NUM_THREADS=1`` for one thread.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from ember.inference import EM, Adaptive, Fit
from ember.models import generalised_linear_mixed_model, growth_curves

Call = tuple[Any, tuple[Any, ...], dict[str, Any], str]


def logistic() -> Call:
    torch.manual_seed(0)
    group = torch.arange(500).repeat_interleave(20)
    x = torch.randn(10_000, 2, dtype=torch.float64)
    u = torch.randn(500, dtype=torch.float64)
    line = -0.5 + x @ torch.tensor([1.0, -0.5], dtype=torch.float64) + u[group]
    y = torch.bernoulli(line.sigmoid())
    return generalised_linear_mixed_model, (y, x), {"groups": group}, "group_effects"


def growth() -> Call:
    torch.manual_seed(0)
    plant = torch.arange(200).repeat_interleave(10)
    day = torch.linspace(0.0, 9.0, 10, dtype=torch.float64).repeat(200)
    spread = torch.tensor([1.5, 0.8, 0.2], dtype=torch.float64)
    middle = torch.tensor([10.0, 4.0, 0.2], dtype=torch.float64)
    own = middle + spread * torch.randn(200, 3, dtype=torch.float64)
    a, m, s = own[plant].unbind(-1)
    noise = 0.5 * torch.randn(2000, dtype=torch.float64)
    y = a * torch.sigmoid((day - m) * torch.exp(-s)) + noise
    return growth_curves, (y, day), {"subjects": plant}, "curves"


def timed(run: Callable[[], Fit]) -> tuple[Fit, float, float]:
    """The fit, and the least wall and CPU seconds of three."""
    wall, cpu = [], []
    for _ in range(3):
        began, busy = time.perf_counter(), time.process_time()
        fit = run()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - busy)
    return fit, min(wall), min(cpu)


def report(call: Call, finest: int) -> None:
    model, args, options, latent = call
    fit, wall, cpu = timed(lambda: EM(model, "mle", seed=0).fit(*args, **options))
    many = {latent: Adaptive(finest, most=finest)}
    truth = EM(model, "mle", integrate=many).e_step(fit.params, *args, **options)
    error = abs(fit.log_likelihood - truth.log_likelihood)
    print(
        f"{model.__name__:32s} nodes  {wall:6.2f} s  {cpu:6.2f} s CPU  "
        f"{fit.evaluations:4d} passes  log likelihood off by {error:.1e}"
    )
    em = EM(model, "mle", seed=0, integrate={latent: "monte-carlo"})
    drawn, wall, cpu = timed(lambda: em.fit(*args, **options))
    assert drawn.monte_carlo is not None
    below = fit.log_likelihood - drawn.log_likelihood
    print(
        f"{'':32s} draws  {wall:6.2f} s  {cpu:6.2f} s CPU  Monte Carlo errors "
        f"{drawn.monte_carlo.share:.2f} SE  log likelihood below by {below:.1e}"
    )


if __name__ == "__main__":
    report(logistic(), 145)
    report(growth(), 15)
