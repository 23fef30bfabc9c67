"""The plan for other data than those of a fit: what every query of new rows needs."""

import inspect
from collections.abc import Mapping

from pyro import validation_enabled
from torch import Tensor

from ember.inference.inputs.arguments import Model, prepare
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan

__all__ = ["argument_names", "plan_for", "roles_of"]


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
    new = prepare((*args, *kept), {**others, **kwargs})
    with validation_enabled(False):  # a single new row is enough where parameters are known
        return build_plan(
            model, new, "mle", roles_of(plan), start=params, misread=plan.opaque.misread
        )


def roles_of(plan: Plan) -> dict[str, str | None]:
    """The wishes by which a model's continuous sites get the roles again that a plan gives them."""
    structure = plan.structure
    sampled = [name for name, parameter in structure.parameters.items() if parameter.has_prior]
    return {
        **dict.fromkeys(structure.gaussian, "gaussian"),
        **dict.fromkeys(structure.conjugate, "conjugate"),
        **dict.fromkeys(sampled),
    }


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
    if isinstance(value, Tensor):
        return len(value) if value.dim() else -1
    return len(value) if isinstance(value, (list, tuple)) else -1
