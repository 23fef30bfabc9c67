"""The plan for other data than those of a fit: what every query of new rows needs."""

import inspect
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from pyro import validation_enabled
from torch import Tensor

from ember.inference.inputs.arguments import Arguments, Model, prepare
from ember.inference.inputs.devices import device_of
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.plan.rebinding import rebound
from ember.inference.plan.without_data import (
    NO_DATA,
    LeftOut,
    PlanWithoutData,
    holds_left_out,
)

__all__ = ["argument_names", "in_their_places", "plan_beside", "plan_for"]


def plan_for(
    plan: Plan,
    params: Mapping[str, Tensor],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> Plan:
    """The plan for other data, the remaining arguments as in the fit.

    Args:
        plan: The plan of the fit.
        params: The estimates, at which the model is read.
        args: New data, as the model takes it.
        kwargs: Keyword arguments of the model to change.

    Raises:
        ValueError: If the fit was saved without one of the remaining arguments.
    """
    if not args and not kwargs:
        return plan
    model, old = plan.structure.model, plan.structure.arguments
    names = argument_names(model)[: len(args)]
    rows = plan.sizes[plan.row] if plan.row else -1
    kept = old.args[len(args) :]
    others = {name: value for name, value in old.kwargs.items() if name not in names}
    if args and all(_length(value) != rows for value in kept):
        others = _without_rows(model, others, rows)
    arguments = prepare((*args, *kept), {**others, **kwargs}, device_of(old))
    _check_complete(model, arguments)
    return _read_again(plan, params, arguments)


def in_their_places(
    names: Sequence[str],
    old: Arguments,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> tuple[tuple[object, ...], dict[str, object]]:
    """New arguments with those by place that were given by place in the fit, as far as needed."""
    by_name = dict(kwargs)
    places = names[: len(old.args)]
    last = max((i for i, name in enumerate(places) if name in by_name), default=-1) + 1
    filled = [
        args[i] if i < len(args) else by_name.pop(places[i], old.args[i])
        for i in range(max(last, len(args)))
        if i < len(args) or i < len(places)
    ]
    return tuple(filled), by_name


def _check_complete(model: Model, arguments: Arguments) -> None:
    named = {**dict(zip(argument_names(model), arguments.args, strict=False)), **arguments.kwargs}
    for name, value in named.items():
        if holds_left_out(value):
            raise ValueError(
                f"the fit was saved without its data, argument '{name}' of the model among them; "
                "give it too."
            )


def plan_beside(
    plan: Plan,
    params: Mapping[str, Tensor],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> tuple[Plan, int]:
    """The plan for the data of a fit with new rows set beside them.

    Arguments that have the rows of the data (or hold such) are continued by the new ones; others
    are replaced. The data themselves, the model's first argument, are missing in the new rows
    unless given.

    Returns:
        The plan, and how many new rows there are.

    Raises:
        ValueError: If no argument has rows, or not all of them have as many.
    """
    model, old = plan.structure.model, plan.structure.arguments
    names = argument_names(model)
    if holds_left_out(old):
        raise ValueError(NO_DATA)
    if len(names) < len(old.args) or len(names) < len(args):
        raise ValueError(
            "rows can be set beside those of the fit only if the model names its arguments; write "
            "them out instead of *args."
        )
    before = {**dict(zip(names, old.args, strict=False)), **old.kwargs}
    data = next(iter(before))
    rows = _rows_of(before[data])
    prepared = prepare(args, kwargs, device_of(old))
    given = {**dict(zip(names, prepared.args, strict=False)), **prepared.kwargs}
    counts = {n for name, new in given.items() for n in _new_rows(before.get(name), new, rows)}
    if len(counts) != 1:
        raise ValueError(
            f"rows are set beside the {rows} of the fit, but the arguments given have "
            f"{sorted(counts) or 'no'} new rows; pass as many in each argument that has rows."
        )
    (count,) = counts
    if data not in given:
        given[data] = _missing_rows(before[data], count, data)
    joined = {
        **before,
        **{name: _joined(before.get(name), new, rows) for name, new in given.items()},
    }
    positional = names[: len(old.args)]
    arguments = Arguments(
        tuple(joined.pop(name) for name in positional),
        joined,
    )
    return _read_again(plan, params, arguments), count


def _read_again(plan: Plan, params: Mapping[str, Tensor], arguments: Arguments) -> Plan:
    """The plan for other arguments, for queries at known parameters: its prior is of no use."""
    model = plan.structure.model
    with validation_enabled(False):  # a single new row is enough where parameters are known
        if not isinstance(plan, PlanWithoutData):
            found = rebound(plan, arguments, keep_prior=True, validated=False)
            if found is not None:
                return found
        return build_plan(
            model, arguments, "mle", plan.structure.wishes, params, misread=plan.opaque.misread
        )


def argument_names(model: Model) -> list[str]:
    """The names of a model's arguments in their order, as far as they can be known."""
    return list(_signature(model))


def _signature(model: Model) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(model).parameters
    except (TypeError, ValueError):
        return {}


def _without_rows(model: Model, kwargs: Mapping[str, object], rows: int) -> dict[str, object]:
    """Keyword arguments that can go with new data: weights of the old rows cannot.

    Unless something that the model requires stays too and has these rows, as a design does.
    """
    parameters = _signature(model).items()
    optional = {name for name, p in parameters if p.default is not inspect.Parameter.empty}
    if any(_length(value) == rows for name, value in kwargs.items() if name not in optional):
        return dict(kwargs)
    return {
        name: value
        for name, value in kwargs.items()
        if not (name in optional and _length(value) == rows)
    }


def _length(value: object) -> int:
    if isinstance(value, LeftOut):
        return value.rows
    if isinstance(value, Tensor):
        return len(value) if value.dim() else -1
    return len(value) if isinstance(value, (list, tuple)) else -1


def _rows_of(data: object) -> int:
    """The rows of data, or of the first column of several."""
    if isinstance(data, Mapping):
        return next((_rows_of(value) for value in data.values()), -1)
    return _length(data)


def _new_rows(old: object, new: object, rows: int) -> set[int]:
    """How many rows an argument adds; nothing if it has none."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {n for key, value in new.items() for n in _new_rows(old.get(key), value, rows)}
    return {len(new)} if isinstance(new, Tensor) and _continues(old, new, rows) else set()


def _continues(old: object, new: Tensor, rows: int) -> bool:
    return isinstance(old, Tensor) and _length(old) == rows and old.shape[1:] == new.shape[1:]


def _joined(old: object, new: object, rows: int) -> object:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: _joined(old.get(key), value, rows) for key, value in new.items()}}
    if isinstance(new, Tensor) and _continues(old, new, rows):
        return torch.cat([cast(Tensor, old), new])
    return new


def _missing_rows(old: object, count: int, name: str) -> object:
    """Data of which nothing is known."""
    if isinstance(old, Mapping):
        return {key: _missing_rows(value, count, name) for key, value in old.items()}
    if not isinstance(old, Tensor) or not old.is_floating_point():
        raise ValueError(f"argument '{name}' cannot be missing in new rows; pass its values there.")
    return old.new_full((count, *old.shape[1:]), torch.nan)
