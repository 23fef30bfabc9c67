"""Data of probability zero under the estimates: no answer is right, so none is given."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.plan.plan import Plan

__all__ = ["NO_STATE", "blank", "warn_if_impossible"]


NO_STATE = -1  # stands where whole numbers cannot say NaN


def blank(values: Tensor, gone: Tensor) -> Tensor:
    """Values without an answer where ``gone`` is True: NaN, or -1 among whole numbers."""
    nothing = torch.nan if values.is_floating_point() else NO_STATE
    return torch.where(gone, torch.full((), nothing, dtype=values.dtype), values)


def _unanswered(values: Tensor) -> Tensor:
    return values.isnan() if values.is_floating_point() else values == NO_STATE


def warn_if_impossible(
    plan: Plan, params: Mapping[str, Tensor], found: Tensor | Mapping[str, Tensor]
) -> None:
    """Says which rows have no answer, if there are any: NaN among what was found tells of them.

    Warns:
        RuntimeWarning: If data have probability zero at ``params``.
    """
    tensors = list(found.values()) if isinstance(found, Mapping) else [found]
    if not any(bool(_unanswered(t).any()) for t in tensors):
        return
    with torch.no_grad():
        gone = LogEvidence.of(plan).rows(params).isneginf()
    if not bool(gone.any()):
        return
    who = "the data are"
    if plan.row is not None:
        rows = gone.nonzero().reshape(-1).tolist()
        who = f"{len(rows)} of {len(gone)} rows (the first at index {rows[0]}) are"
    warnings.warn(
        f"{who} impossible under the estimates (probability zero), so nothing follows from them: "
        f"the answer is NaN there, and {NO_STATE} where it is a whole number.",
        RuntimeWarning,
        stacklevel=3,
    )
