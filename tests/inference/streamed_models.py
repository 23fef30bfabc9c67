"""Models that worker processes import by name, and that go wrong there."""

import multiprocessing
import os
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def _model(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(2.0 * torch.ones(2)))
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x[:, 0])


def dying_model(x: Tensor, deadline: str) -> None:
    """Ends its process after some runs in workers; ``deadline`` is a file that counts them."""
    if multiprocessing.parent_process() is not None:
        with Path(deadline).open("a") as file:
            file.write(".")
        if Path(deadline).stat().st_size > 60:
            os._exit(9)
    _model(x)


def slow_model(x: Tensor, parent: int) -> None:
    """Hangs in every process but its parent."""
    if os.getpid() != parent:
        time.sleep(1000)
    _model(x)
