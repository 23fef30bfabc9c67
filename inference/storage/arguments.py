"""The arguments of a model in a file: stored by name, left out where they are data, given again."""

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from ember.inference.inputs.arguments import Arguments
from ember.inference.plan.without_data import LeftOut
from ember.inference.storage.encoding import Encoder, NotStorable

__all__ = ["encoded", "given_again", "without_data"]


def encoded(encoder: Encoder, arguments: Arguments, names: Sequence[str]) -> Any:
    """The JSON of arguments, whose tensors are named after them.

    Raises:
        ValueError: If an argument cannot be stored, naming it.
    """
    where = [names[i] if i < len(names) else str(i + 1) for i in range(len(arguments.args))]
    args = [
        _encode(encoder, value, name) for name, value in zip(where, arguments.args, strict=True)
    ]
    kwargs = [[name, _encode(encoder, value, name)] for name, value in arguments.kwargs.items()]
    return {"tuple": [{"tuple": args}, {"dict": kwargs}]}


def _encode(encoder: Encoder, value: object, name: str) -> Any:
    try:
        return encoder.encode(value, f"arguments.{name}")
    except NotStorable as error:
        raise ValueError(
            f"argument '{name}' of the model cannot be saved: it holds {error}; "
            "fit.save(path, data=False) leaves it out, and Fit.load takes it again."
        ) from error


def without_data(arguments: Arguments, rows: int, classes: Collection[type]) -> Arguments:
    """Arguments without data: tensors given by place, and tensors with as many rows.

    An argument that holds one is left out as a whole; so is one that cannot be stored.
    """

    def bare(value: object, positional: bool) -> object:
        lengths = [len(t) if t.dim() else -1 for t in Arguments((value,), {}).tensors]
        is_data = lengths and (positional or rows in lengths)
        return LeftOut(_length(value)) if is_data or not _storable(value, classes) else value

    return Arguments(
        tuple(bare(value, True) for value in arguments.args),
        {name: bare(value, False) for name, value in arguments.kwargs.items()},
    )


def _length(value: object) -> int:
    if isinstance(value, Tensor):
        return len(value) if value.dim() else -1
    return len(value) if isinstance(value, (list, tuple)) else -1


def _storable(value: object, classes: Collection[type]) -> bool:
    try:
        Encoder(classes).encode(value, "")
    except NotStorable:
        return False
    return True


def given_again(saved: Arguments, given: Arguments, names: Sequence[str]) -> Arguments:
    """Arguments with some of them given anew, by place or by name."""
    args, kwargs = list(saved.args), dict(saved.kwargs)
    by_name = dict(given.kwargs)
    for place, value in enumerate(given.args):
        if place < len(args):
            args[place] = value
        else:  # saved by name
            by_name[names[place] if place < len(names) else str(place)] = value
    for name, value in by_name.items():
        place = names.index(name) if name in names else len(args)
        if place < len(args):
            args[place] = value
        else:
            kwargs[name] = value
    return Arguments(tuple(args), kwargs)
