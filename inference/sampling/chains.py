"""Markov chains by Pyro's own NUTS, in coordinates in which the posterior is nearly round.

Laplace's approximation says how wide the posterior is and in which directions, so that a chain
need not learn it: it moves in ``u = mode + R z``, where that of ``z`` is near a standard normal.

Reference: Hoffman & Gelman (2014), *The No-U-Turn sampler*, JMLR 15, 1593-1623.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import MCMC
from pyro.infer import NUTS as PyroNUTS
from torch import Tensor

from ember.inference.sampling.density import PosteriorDensity
from ember.inference.sampling.normal_approximation import NormalApproximation

__all__ = ["Chain", "run_chain"]


APART = 1.5  # spread of the starts, in that of the approximation
LEARNS = 150  # draws of warm-up from which on a chain can learn widths and its step size as well
Tick = Callable[[float], None]


class Chain(NamedTuple):
    """What one chain has drawn.

    Attributes:
        draws: Free vectors ``(n, P)``.
        heights: The log density at each, ``(n,)``.
        divergences: How many trajectories went astray.
    """

    draws: Tensor
    heights: Tensor
    divergences: int


def run_chain(
    density: PosteriorDensity,
    around: NormalApproximation,
    draws: int,
    warmup: int,
    acceptance: float,
    seed: int,
    tick: Tick,
) -> Chain:
    """One chain from a start near the mode.

    Args:
        density: The log posterior density.
        around: Its approximation.
        draws: How many draws are kept.
        warmup: How many come before, while the step size is found.
        acceptance: The acceptance probability that the step size aims at.
        seed: Of this chain.
        tick: Called with the log density after each draw, those of the warm-up included.
    """
    pyro.set_rng_seed(seed)
    potential, heights, astray = _Potential(density, around), list[float](), 0

    def hook(kernel: PyroNUTS, found: dict[str, Tensor], stage: str, i: int) -> None:
        nonlocal astray
        height = potential.height(found["z"])
        if not stage.startswith("Warmup"):
            heights.append(height)
            astray = len(kernel.diagnostics()["divergences"])
        tick(height)

    kernel = PyroNUTS(
        potential_fn=potential, target_accept_prob=acceptance, adapt_mass_matrix=warmup >= LEARNS
    )
    start = APART * torch.randn_like(around.mode)
    chain = MCMC(
        kernel, draws, warmup, initial_params={"z": start}, hook_fn=hook, disable_progbar=True
    )
    chain.run()
    found = chain.get_samples()["z"]
    return Chain(around.at(found), torch.tensor(heights, dtype=found.dtype), astray)


class _Potential:
    """Minus the log density by a standardised vector, as Pyro's kernels take it."""

    def __init__(self, density: PosteriorDensity, around: NormalApproximation) -> None:
        self._density, self._around = density, around
        self._heights = dict[bytes, float]()

    def __call__(self, found: dict[str, Tensor]) -> Tensor:
        energy: Tensor = _Energy.apply(found["z"], self)  # type: ignore[no-untyped-call]
        return energy

    def evaluate(self, z: Tensor) -> tuple[float, Tensor]:
        """The log density and its gradient by ``z``."""
        value, gradient = self._density(self._around.at(z))
        self._heights[_key(z)] = value
        return value, gradient @ self._around.root

    def height(self, z: Tensor) -> float:
        """The log density at a place that was evaluated since the last call."""
        height = self._heights.get(_key(z))
        if height is None:
            height = self.evaluate(z)[0]
        self._heights = {_key(z): height}
        return height


def _key(z: Tensor) -> bytes:
    return z.detach().cpu().numpy().tobytes()


class _Energy(torch.autograd.Function):
    """The potential, whose gradient is known with its value."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, potential: _Potential) -> Tensor:
        value, gradient = potential.evaluate(z.detach())
        ctx.save_for_backward(gradient)
        return z.new_tensor(-value)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return -slopes[0] * gradient, None
