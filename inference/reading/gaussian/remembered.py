"""What Pyro's Gaussian chains were made from: they keep their densities, not their arguments."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro.distributions as dist
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.reading.unwrapping import unwrap

__all__ = ["ChainArguments", "arguments_of_chain", "remembering"]


class ChainArguments(NamedTuple):
    """The arguments of ``GaussianHMM`` or ``LinearHMM``."""

    initial: Distribution
    transition_matrix: Tensor
    transition: Distribution
    observation_matrix: Tensor
    observation: Distribution


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Lets every ``GaussianHMM`` that is made in its body remember its arguments.

    A copy that ``expand`` makes shares the density of the steps, where the arguments are kept.
    """
    construct: Any = dist.GaussianHMM.__init__

    def made(
        self: Any,
        initial_dist: Any,
        transition_matrix: Any,
        transition_dist: Any,
        observation_matrix: Any,
        observation_dist: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        given = ChainArguments(
            initial_dist, transition_matrix, transition_dist, observation_matrix, observation_dist
        )
        construct(self, *given, *args, **kwargs)
        self._trans.arguments_of_chain = given

    dist.GaussianHMM.__init__ = made  # type: ignore[method-assign]
    try:
        yield
    finally:
        dist.GaussianHMM.__init__ = construct  # type: ignore[method-assign]


def arguments_of_chain(fn: Distribution) -> ChainArguments | None:
    """What a Gaussian chain was made from; None of other distributions, and other noises.

    A ``GaussianHMM`` from outside the model is not known from within.
    """
    if isinstance(fn, dist.GaussianHMM):
        return getattr(fn._trans, "arguments_of_chain", None)
    if not isinstance(fn, dist.LinearHMM) or fn.transforms:
        return None
    noises = fn.initial_dist, fn.transition_dist, fn.observation_dist
    if any(
        type(unwrap(each).base) not in (dist.Normal, dist.MultivariateNormal) for each in noises
    ):
        return None
    return ChainArguments(
        fn.initial_dist, fn.transition_matrix, fn.transition_dist, fn.observation_matrix,
        fn.observation_dist,
    )  # fmt: skip
