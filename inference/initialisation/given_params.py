"""Parameters that a user gives, as tensors: names, shapes and supports checked."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference.parameters.supports import base_support, shown
from ember.inference.plan.plan import Plan

__all__ = ["check_params"]


def check_params(
    plan: Plan, params: Mapping[str, object], partial: bool = False
) -> dict[str, Tensor]:
    """Given parameters as float64 tensors, after checking names, shapes and supports."""
    known = plan.structure.parameters
    for name in params:
        if name not in known:
            raise ValueError(
                f"'{name}' is not a parameter of the model; its parameters are {sorted(known)}."
            )
    missing = sorted(known.keys() - params.keys())
    if missing and not partial:
        raise ValueError(f"values for the parameters {missing} are missing; give all of them.")
    checked = {}
    for name in [name for name in known if name in params]:
        value = _tensor(name, params[name])
        parameter = known[name]
        if value.shape != parameter.shape:
            raise ValueError(
                f"parameter '{name}' has shape {tuple(value.shape)} but the model declares "
                f"{tuple(parameter.shape)}; pass a tensor of that shape."
            )
        if not _within(parameter.support, value):
            raise ValueError(
                f"parameter '{name}' lies outside its support ({shown(parameter.support)}); pass "
                "values in the constrained space in which the model declares the site."
            )
        checked[name] = value
    return checked


def _within(support: constraints.Constraint, value: Tensor) -> bool:
    """Whether a value lies in a support or at its lower bound, which an M-step may reach."""
    support = base_support(support)
    if isinstance(support, constraints.greater_than):
        return bool((value >= support.lower_bound).all())
    return bool(torch.as_tensor(support.check(value)).all())


def _tensor(name: str, value: object) -> Tensor:
    try:
        return torch.as_tensor(value).detach().to(torch.float64).clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"parameter '{name}' was given as {type(value).__name__}; pass a tensor of numbers."
        ) from error
