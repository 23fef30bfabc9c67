"""What Ember asks of any distribution, whatever its class and its wrappers."""

from collections.abc import Callable, Mapping
from typing import Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from ember.inference.numerics.precision_normal import PrecisionNormal

__all__ = ["Distribution", "remade", "remade_for_density"]


class Distribution(Protocol):
    """The methods that every distribution of Pyro has; ``isinstance`` tells the class where needed.

    Pyro's classes share no base class that a type checker sees all of these in.
    """

    @property
    def arg_constraints(self) -> Mapping[str, Constraint]: ...

    @property
    def support(self) -> Constraint: ...

    @property
    def batch_shape(self) -> torch.Size: ...

    @property
    def event_shape(self) -> torch.Size: ...

    @property
    def event_dim(self) -> int: ...

    @property
    def has_enumerate_support(self) -> bool: ...

    @property
    def has_rsample(self) -> bool: ...

    @property
    def mean(self) -> Tensor: ...

    @property
    def variance(self) -> Tensor: ...

    def shape(self) -> torch.Size: ...

    def log_prob(self, value: Tensor, /) -> Tensor: ...

    def sample(self, sample_shape: torch.Size = ..., /) -> Tensor: ...

    def enumerate_support(self, expand: bool = ...) -> Tensor: ...

    def expand(self, batch_shape: tuple[int, ...], /) -> "Distribution": ...

    def mask(self, mask: Tensor, /) -> "Distribution": ...

    def to_event(self, dims: int, /) -> "Distribution": ...


def remade(fn: Distribution, arguments: Mapping[str, Tensor]) -> Distribution:
    """A distribution of the same class with other arguments, which are not validated again."""
    kind: Callable[..., Distribution] = type(fn)
    return kind(**arguments, validate_args=False)


def remade_for_density(fn: Distribution, arguments: Mapping[str, Tensor]) -> Distribution:
    """``remade``, of the class whose density costs least."""
    if type(fn) is dist.MultivariateNormal and "precision_matrix" in arguments:
        return PrecisionNormal(**arguments, validate_args=False)
    return remade(fn, arguments)
