"""What mixtures share: everything but the emissions."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ember.models.parts.priors import Hyperparameters

__all__ = ["WHOLE_COUNT", "data_plate", "mixture_weights"]

# One whole row for each component: the mode leaves every component a share, so that none empties.
WHOLE_COUNT = 2.0


def mixture_weights(components: int, prior: Hyperparameters) -> Tensor:
    """Declare the site `weights` (K)."""
    concentration = prior.above("concentration", (components,), WHOLE_COUNT)
    weights: Tensor = pyro.sample("weights", dist.Dirichlet(concentration))
    return weights


@contextmanager
def data_plate(rows: int, frequency: Tensor | None, name: str = "data") -> Iterator[None]:
    """The plate of the data, in which row n counts frequency[n] times."""
    counted: AbstractContextManager[object] = nullcontext()
    if frequency is not None:
        # Pyro wants scales above 0; this one is lost in any sum, as a row of frequency 0 should be.
        counted = poutine.scale(scale=frequency.clamp_min(torch.finfo(frequency.dtype).tiny))
    with pyro.plate(name, rows), counted:
        yield
