"""Moments of all data for default priors, where a run of the model sees one piece.

Models say which moments they take their defaults from by an effect of the type ``"moments"``, whose
values add.
"""

import functools
from collections.abc import Sequence
from typing import Protocol, Self, cast

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message

from ember.inference.inputs.arguments import Model

__all__ = ["Moments", "Noting", "Pooled", "merged"]


class Moments(Protocol):
    """What a model asks of its rows; those of two pieces add."""

    def __add__(self, other: Self) -> Self: ...


class Noting(Messenger):
    """Notes the moments that a model asks of its rows, and answers with known ones.

    Args:
        known: The answers, in the order in which the model asks; of further ones it is told those
            of the rows at hand.

    Attributes:
        own: Those of the rows at hand.
    """

    def __init__(self, known: Sequence[Moments] = ()) -> None:
        super().__init__()
        self.known, self.own = known, list[Moments]()

    def _pyro_post_moments(self, msg: Message[..., object]) -> None:
        self.own.append(cast(Moments, msg["value"]))
        if len(self.own) <= len(self.known):
            msg["value"] = self.known[len(self.own) - 1]


class _Answering(Messenger):
    """Answers with known moments, without looking at the rows."""

    def __init__(self, known: Sequence[Moments]) -> None:
        super().__init__()
        self.known = iter(known)

    def _pyro_moments(self, msg: Message[..., object]) -> None:
        known = next(self.known, None)
        if known is not None:
            msg["value"], msg["done"] = known, True

    def _pyro_of_data(self, msg: Message[..., object]) -> None:
        msg["stop"] = True  # what follows from these moments is not of the rows at hand alone


class Pooled:
    """A model that takes its defaults from known moments.

    Args:
        model: The model.
        moments: The moments, in the order in which it asks for them.
    """

    def __init__(self, model: Model, moments: Sequence[Moments]) -> None:
        functools.update_wrapper(self, model, updated=())
        self.model, self.moments = model, tuple(moments)

    def __call__(self, *args: object, **kwargs: object) -> object:
        with _Answering(self.moments):
            return self.model(*args, **kwargs)


def merged(one: Sequence[Moments], other: Sequence[Moments]) -> list[Moments]:
    """The moments of the rows of both.

    Raises:
        ValueError: If the model has asked for others there.
    """
    if one and len(one) != len(other):
        raise ValueError(
            "the model takes its defaults from other moments in some pieces than in the first, as "
            "it may where a piece has next to no rows; give larger pieces, or state the prior."
        )
    return [a + b for a, b in zip(one, other, strict=True)] if one else list(other)
