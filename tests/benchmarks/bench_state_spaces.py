"""The E-step of a state space beside statsmodels' smoother, and beside Pyro's density and gradient.

Each line is a number of steps: the median times of an E-step (evidence and all expected
statistics), of statsmodels' Kalman filter and smoother (states, covariances and those of
neighbours), and of Pyro's ``GaussianHMM.log_prob`` with its gradient; the ratios (above 1: the
E-step is faster), and how far apart the log likelihoods are. All run in turn in one process, on
one thread unless ``OMP_NUM_THREADS`` says otherwise. Run it with ``make bench``; without
statsmodels its column is empty.
"""

import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.shelter import sheltered

ROUNDS = 5
STATES = SENSORS = 4
MOVE = torch.block_diag(
    torch.tensor([[0.9, 0.3], [-0.3, 0.9]]), torch.tensor([[0.8, 0.1], [-0.1, 0.8]])
).double()
LOOK = torch.eye(STATES).double() + 0.3


def main() -> None:
    """Print one line for each number of steps."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.set_default_dtype(torch.float64)
    print(f"{torch.get_num_threads()} threads, float64, {STATES} states, {SENSORS} sensors")
    print(f"{'steps':>8} {'reading':>9} {'E-step':>9} {'statsmodels':>13} {'Pyro':>13}  difference")
    for steps in (1_000, 10_000, 100_000):
        compare(steps)


def model(y: Tensor) -> None:
    """Both matrices are free, the noise of the sensors too."""
    standard = dist.Normal(torch.zeros(STATES), 1.0).to_event(1)
    noise = pyro.param("noise", torch.ones(SENSORS), constraint=dist.constraints.positive)
    chain = dist.GaussianHMM(
        standard,
        pyro.param("move", 0.5 * torch.eye(STATES)),
        standard,
        pyro.param("look", torch.eye(STATES, SENSORS)),
        dist.Normal(torch.zeros(SENSORS), noise).to_event(1),
        duration=len(y),
    )
    pyro.sample("y", chain, obs=y)


def simulated(steps: int) -> Tensor:
    """Data of the model at ``MOVE`` and ``LOOK``."""
    torch.manual_seed(0)
    state, path = torch.zeros(STATES), []
    for push in torch.randn(steps, STATES):
        state = state @ MOVE + push
        path.append(state)
    return torch.stack(path) @ LOOK + 0.5 * torch.randn(steps, SENSORS)


def compare(steps: int) -> None:
    """Times at the parameters that the data were drawn at."""
    y, noise = simulated(steps), torch.full((SENSORS,), 0.5)
    params = {"move": MOVE, "look": LOOK, "noise": noise}
    began = time.perf_counter()
    plan = EM(model, "mle").plan(y)
    read = time.perf_counter() - began
    with sheltered(0):
        evidence = LogEvidence(plan)
        calls: list[Callable[[], float]] = [
            lambda: evidence.statistics(params).log_likelihood,
            *([smoother(y, noise)] if statsmodels() else []),
            lambda: pyros(y, noise),
        ]
        times: list[list[float]] = [[] for _ in calls]
        values = [math.nan for _ in calls]
        for _ in range(ROUNDS):
            for i, call in enumerate(calls):
                began = time.perf_counter()
                values[i] = call()
                times[i].append(time.perf_counter() - began)
    own, *others = (1e3 * statistics.median(each) for each in times)
    shown = [f"{other:>5.0f} ({other / own:>4.1f}x)" for other in others]
    if len(shown) == 1:
        shown.insert(0, "-")
    apart = max(abs(value / values[0] - 1.0) for value in values)
    print(
        f"{steps:>8,} {1e3 * read:>6.0f} ms {own:>6.1f} ms {shown[0]:>13} {shown[1]:>13}  "
        f"{apart:.0e}",
        flush=True,
    )


def statsmodels() -> bool:
    """Whether it is there."""
    try:
        import statsmodels.api  # noqa: F401
    except ImportError:
        return False
    return True


def smoother(y: Tensor, noise: Tensor) -> Callable[[], float]:
    """Statsmodels' filter and smoother of the same model."""
    import statsmodels.api as sm

    system: Any = sm.tsa.statespace.MLEModel(y.numpy(), k_states=STATES, k_posdef=STATES).ssm
    eye, move = torch.eye(STATES).numpy(), MOVE.mT.numpy()
    system["transition"], system["selection"], system["state_cov"] = move, eye, eye
    system["design"], system["obs_cov"] = LOOK.mT.numpy(), noise.square().diag().numpy()
    system.initialize_known(torch.zeros(STATES).numpy(), move @ move.T + eye)
    system.loglikelihood_burn = 0
    return lambda: float(system.smooth().llf_obs.sum())


def pyros(y: Tensor, noise: Tensor) -> float:
    """Pyro's density, and its gradient by all parameters."""
    move, look, scale = (each.clone().requires_grad_() for each in (MOVE, LOOK, noise))
    standard = dist.Normal(torch.zeros(STATES), 1.0).to_event(1)
    seen = dist.Normal(torch.zeros(SENSORS), scale).to_event(1)
    with torch.enable_grad():
        chain = dist.GaussianHMM(standard, move, standard, look, seen, duration=len(y))
        total = chain.log_prob(y)
        torch.autograd.grad(total, [move, look, scale])
    return float(total.detach())


if __name__ == "__main__":
    main()
