"""How an argument of a distribution may show a linear predictor: by which name, in which space.

A rate may be the exponential of one, a probability its logistic function, the probabilities of a
Categorical its softmax. Where a distribution keeps logits these are read, and passed on, as they
are: a probability near one has lost the digits that tell how near.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import pyro.distributions as dist
from torch import Tensor

from ember.inference.families.discrete import COUNTED
from ember.inference.numerics.distribution import Distribution

__all__ = ["Predictor", "predictors_of"]


BINARY = (dist.Bernoulli, dist.Binomial, dist.Geometric)


@dataclass(frozen=True)
class Predictor:
    """One way to see an argument as linear in the parameters.

    Attributes:
        by: The name by which the distribution takes it.
        domain: Where its values lie: "real", "positive", "unit" or "simplex".
        space: The map from the predictor to it: "raw", "log" or "logit".
        read: Its value, from a distribution.
        event_dim: 1 for logits that only matter up to a common shift.
    """

    by: str
    domain: str
    space: str
    read: Callable[[Distribution], Tensor]
    event_dim: int = 0


def predictors_of(base: Distribution, argument: str, domain: str) -> list[Predictor]:
    """The ways in which an argument may show a linear predictor, best first."""
    if isinstance(base, COUNTED):
        return [Predictor("logits", "simplex", "raw", _centred_logits, 1)]
    if isinstance(base, BINARY) and argument == "probs" and "logits" in base.__dict__:
        return [Predictor("logits", "unit", "raw", attrgetter("logits"))]
    spaces = {"real": ("raw",), "positive": ("raw", "log"), "unit": ("logit",)}.get(domain, ())
    return [Predictor(argument, domain, space, attrgetter(argument)) for space in spaces]


def _centred_logits(fn: Distribution) -> Tensor:
    """Logits less their mean: what is left of a linear predictor by the normalisation, linear."""
    assert isinstance(fn, COUNTED)
    return fn.logits - fn.logits.mean(-1, keepdim=True)
