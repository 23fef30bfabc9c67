"""What a step of SVI changes: the parameters in Pyro's store, set, copied and put back."""

from collections.abc import Mapping

import pyro
import torch
from torch import Tensor

from ember.inference.parameters.parameter import Parameter

__all__ = ["declare", "learnt", "restore"]


def declare(parameters: Mapping[str, Parameter], start: Mapping[str, Tensor]) -> None:
    """Puts the start of the model's own ``pyro.param`` statements into the parameter store.

    Reading the model has left the values there that it declares.
    """
    for name, parameter in parameters.items():
        if not parameter.has_prior:
            if name in pyro.get_param_store():
                del pyro.get_param_store()[name]
            pyro.param(name, start[name].clone(), constraint=parameter.support)


def learnt() -> dict[str, Tensor]:
    """A copy of everything in the parameter store, unconstrained."""
    return {name: value.detach().clone() for name, value in pyro.get_param_store()._params.items()}


def restore(values: Mapping[str, Tensor]) -> None:
    """Sets the parameters in the store back to a copy made by ``learnt``."""
    with torch.no_grad():
        for name, parameter in pyro.get_param_store()._params.items():
            if name in values:
                parameter.copy_(values[name])
