"""A distribution without its wrappers, and what it was made from."""

from dataclasses import dataclass

import torch
from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution
from torch import Tensor
from torch.distributions.constraints import Constraint

from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import append_dims

__all__ = ["MATRICES", "Unwrapped", "given_arguments", "unwrap"]


MATRICES = ("precision_matrix", "covariance_matrix", "scale_tril")


@dataclass(frozen=True)
class Unwrapped:
    """A distribution without its wrappers: base, number of event dims made of batch dims, mask."""

    base: Distribution
    reinterpreted: int
    mask: Tensor | None


def unwrap(fn: Distribution) -> Unwrapped:
    """Strips ``to_event``, ``mask`` and ``expand`` from a distribution."""
    reinterpreted = 0
    masks: list[tuple[Tensor, int]] = []
    while isinstance(fn, (Independent, MaskedDistribution, ExpandedDistribution)):
        if isinstance(fn, Independent):
            reinterpreted += fn.reinterpreted_batch_ndims
        elif isinstance(fn, MaskedDistribution) and fn._mask is not True:
            masks.append((torch.as_tensor(fn._mask), reinterpreted))
        fn = fn.base_dist
    mask = None
    for part, outside in masks:
        part = append_dims(part, reinterpreted - outside)
        mask = part if mask is None else mask & part
    return Unwrapped(fn, reinterpreted, mask)


def given_arguments(base: Distribution) -> dict[str, tuple[int, Tensor]]:
    """The tensors that a distribution was made from: name to (event dims, value)."""
    given = {}
    holder = getattr(base, "_categorical", base)  # of a OneHotCategorical or a Multinomial
    for name, constraint in base.arg_constraints.items():
        alternatives = {"probs", "logits", *MATRICES}
        if name in alternatives and name not in holder.__dict__:
            continue
        value = getattr(base, name, None)
        both = {"probs", "logits"} <= base.__dict__.keys()  # one was computed from the other
        if both and name in ("probs", "logits") and value is not getattr(base, "_param", value):
            continue
        if isinstance(value, Tensor):
            given[name] = (_event_dim(constraint, base), value)
    return given


def _event_dim(constraint: Constraint, base: Distribution) -> int:
    """How many dims of an argument are no batch dims; a Delta's are those of its own events."""
    try:
        return int(constraint.event_dim)
    except NotImplementedError:
        return len(base.event_shape)
