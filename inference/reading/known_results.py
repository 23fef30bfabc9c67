"""What a model computes of its data alone is computed once for all runs that read it.

Ready models tell of it by an effect of Pyro's, of the type ``"of_data"``: default priors, and the
coordinates of a design, each of which is a pass over the rows or several. A run is answered with
what an earlier one has computed of the same numbers; within a run nothing is left out, so that the
first one asks for all that it needs, in its order.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

__all__ = ["KnownResults", "Result", "same_value"]


PLAIN = (bool, int, float, str, type(None))


class Result(NamedTuple):
    """What a function gave.

    Attributes:
        function: The function.
        given: Its arguments; those with a name last, each behind its name.
        value: Its value.
    """

    function: object
    given: tuple[object, ...]
    value: object


class KnownResults(Messenger):
    """Answers with results of earlier runs, and adds those of this one to them at its end.

    Args:
        results: The results.
    """

    def __init__(self, results: list[Result]) -> None:
        super().__init__()
        self._results, self._new = results, list[Result]()

    def __exit__(self, *error: Any) -> None:
        self._results.extend(self._new)
        self._new = []
        super().__exit__(*error)

    def _pyro_of_data(self, msg: Message[..., Any]) -> None:
        given = _given(msg)
        for function, known, value in self._results:
            if function is msg["fn"] and _all_same(known, given):
                msg["value"], msg["done"] = value, True
                return
        if not any(isinstance(x, Tensor) and x.requires_grad for x in given):
            msg["continuation"] = lambda done: self._new.append(
                Result(done["fn"], given, done["value"])
            )


def _given(msg: Message[..., Any]) -> tuple[object, ...]:
    named = sorted(msg["kwargs"].items())
    return (*msg["args"], *(part for each in named for part in each))


def _all_same(known: Sequence[object], given: Sequence[object]) -> bool:
    return len(known) == len(given) and all(map(_same, known, given))


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.device == other.device and same_value(one, other)
    return isinstance(one, PLAIN) and type(one) is type(other) and one == other


def same_value(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN in the same places."""
    if left.shape != right.shape:
        return False
    if left.data_ptr() == right.data_ptr() and left.stride() == right.stride():
        return True
    return torch.equal(left, right) or bool(
        ((left == right) | (left.isnan() & right.isnan())).all()
    )
