"""Gathering and scattering along the last dim, by torch's fastest functions for each."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["put", "subtract_at", "take"]


def take(values: Tensor, places: Tensor) -> Tensor:
    """``values[..., places]``."""
    found = values.index_select(-1, places.reshape(-1))
    return found if places.dim() == 1 else found.reshape(*values.shape[:-1], *places.shape)


def put(into: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """A vector with ``values`` at ``places``; in place where no graph is recorded."""
    places, values = places.reshape(-1), values.reshape(-1)
    if torch.is_grad_enabled():
        return into.scatter(0, places, values)
    return into.scatter_(0, places, values)


def subtract_at(values: Tensor, places: Tensor, amounts: Tensor) -> Tensor:
    """A vector less ``amounts`` at ``places``, some repeated; in place as ``put``."""
    places, amounts = places.reshape(-1), amounts.reshape(-1)
    if torch.is_grad_enabled():
        return values.index_add(0, places, amounts, alpha=-1)
    return values.index_add_(0, places, amounts, alpha=-1)
