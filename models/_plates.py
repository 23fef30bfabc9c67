"""What mixtures share, and what chains share: everything but the emissions."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import BoolTensor, Tensor

from ember.models._emissions import Emission, select
from ember.models._priors import HALF_COUNT, Hyperparameters

__all__ = ["chain", "data_plate", "mixture_weights"]

# One whole row for each component: the mode leaves every component a share, so that none empties.
WHOLE_COUNT = 2.0


def mixture_weights(components: int, prior: Hyperparameters) -> Tensor:
    """Declare the site `weights` (K)."""
    concentration = prior.above("concentration", (components,), WHOLE_COUNT)
    weights: Tensor = pyro.sample("weights", dist.Dirichlet(concentration))
    return weights


@contextmanager
def data_plate(rows: int, frequency: Tensor | None) -> Iterator[None]:
    """The plate "data", in which row n counts frequency[n] times."""
    counted: AbstractContextManager[object] = nullcontext()
    if frequency is not None:
        # Pyro wants scales above 0; this one is lost in any sum, as a row of frequency 0 should be.
        counted = poutine.scale(scale=frequency.clamp_min(torch.finfo(frequency.dtype).tiny))
    with pyro.plate("data", rows), counted:
        yield


def chain(
    x: Tensor,
    states: int,
    emission: Emission,
    prior: Hyperparameters,
    plate: pyro.plate,
    *,
    batched: bool,
    mask: Tensor | None,
) -> None:
    """Declare `initial` (K), `transition` (K, K), and each step's `state_t` and `x_t`.

    The steps of `x` are its first dimension, or the second where it is `batched`.
    """
    initial = pyro.sample("initial", dist.Dirichlet(prior.above("initial", (states,), HALF_COUNT)))
    concentration = prior.above("transition", (states, states), HALF_COUNT)
    with plate:
        transition = pyro.sample("transition", dist.Dirichlet(concentration))

    steps = x.unbind(1 if batched else 0)
    sequences = pyro.plate("sequences", x.shape[0]) if batched else nullcontext()
    with sequences:
        state = None
        for t in pyro.markov(range(len(steps))):
            probs = initial if state is None else select(transition, state, 1)
            with nullcontext() if mask is None else poutine.mask(mask=cast(BoolTensor, mask[:, t])):
                state = pyro.sample(f"state_{t}", dist.Categorical(probs))
                pyro.sample(f"x_{t}", emission(state), obs=steps[t])
