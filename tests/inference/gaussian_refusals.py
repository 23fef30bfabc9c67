"""Models that cannot be integrated exactly: what is no Gaussian, and what ties too much."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from tests.inference.gaussian_groups import ANIMAL, GROUP, Y_KIN, A, Y, kinship_non_centred
from tests.inference.gaussian_rows import Y_CLASSES
from tests.inference.gaussian_sites import latent, positive, real


@dataclass(frozen=True)
class Refused:
    """A model that cannot be integrated exactly, and the sites that the refusal must name."""

    model: Callable[..., None]
    args: tuple[Any, ...]
    names: tuple[str, ...]


def poisson_child(y: Tensor, group: Tensor) -> None:
    su = positive("su", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)


def exponential(y: Tensor, group: Tensor) -> None:
    su, se = positive("su", 1.0), positive("se", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(u[group].exp(), se), obs=y)


def in_a_scale(y: Tensor, group: Tensor) -> None:
    su = positive("su", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(0.0, u[group].exp()), obs=y)


def product(y: Tensor, group: Tensor) -> None:
    su, se = positive("su", 1.0), positive("se", 1.0)
    with pyro.plate("groups", int(group.max()) + 1):
        u = latent("u", dist.Normal(0.0, su))
        w = latent("w", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(u[group] * w[group], se), obs=y)


def square(y: Tensor) -> None:
    se = positive("se", 1.0)
    with pyro.plate("rows", len(y)):
        z = latent("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z * z, se), obs=y)


def class_of_the_row(y: Tensor) -> None:
    """A class of each row beside an effect of its group: every row's class ties to every other."""
    weights = pyro.param("weights", torch.full((2,), 0.5), constraint=constraints.simplex)
    mu, su, se = real("mu", -1.0, 1.0), positive("su", 1.0), positive("se", 1.0)
    with pyro.plate("groups", y.shape[0], dim=-2):
        u = latent("u", dist.Normal(0.0, su))
        with pyro.plate("rows", y.shape[1], dim=-1):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("y", dist.Normal(mu[k] + u, se), obs=y)


COUNTS = (Y - Y.min()).round()

REFUSED: dict[str, Refused] = {
    "Poisson child": Refused(poisson_child, (COUNTS, GROUP), ("u", "y")),
    "exponential": Refused(exponential, (Y, GROUP), ("u", "y")),
    "in a scale": Refused(in_a_scale, (Y, GROUP), ("u", "y")),
    "product": Refused(product, (Y, GROUP), ("u", "w")),
    "square": Refused(square, (Y,), ("z", "y")),
    "class of the row": Refused(class_of_the_row, (Y_CLASSES,), ("u", "k")),
    # A root of a variance times known numbers: written centred, u ~ MVN(0, va * A), it is exact.
    "kinship, non-centred": Refused(
        kinship_non_centred, (Y_KIN, ANIMAL, torch.linalg.cholesky(A)), ("z", "y")
    ),
}
