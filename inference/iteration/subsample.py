"""Starts on a sample of the rows, where these are many.

EM on a sample costs a fraction of a pass, and ends as near to the optimum of all rows as a sample
of this size can say; from there the passes over all rows go on. Which start leads to the best
optimum shows on a sample as well.
"""

import torch

from ember.inference.plan.plan import Plan
from ember.inference.plan.rebinding import can_be_rebound, with_some_rows

__all__ = ["SAMPLE", "sample_of"]


MANY = 60_000  # rows
SAMPLE = 20_000  # of them


def sample_of(plan: Plan) -> Plan | None:
    """The plan for some rows, drawn at random, with the prior of all; None where rows are few.

    Or where rows have maps of their own, or stand for more than themselves.
    """
    if plan.row is None or plan.sizes[plan.row] < MANY or not can_be_rebound(plan):
        return None
    index = torch.randperm(plan.sizes[plan.row])[:SAMPLE]
    return with_some_rows(plan, index)
