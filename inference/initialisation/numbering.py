"""The numbering of a start's states, where the model tells them apart.

Clusters come in any order. Where locations must rise (an ordered vector, ``m + d`` with a positive
``d``), labels in another order pull them together: the best that such an M-step can do is to give
all states one value, and EM never leaves it. So where states are no mere names, a start is made
for several numberings, and the one that explains the data best is kept: every order of a few
states, else those by the mean of the data that each state has, upwards and downwards.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.initialisation.features import features
from ember.inference.plan.plan import Plan
from ember.inference.queries.component_axes import numberings
from ember.inference.queries.relabelling import exchangeable

__all__ = ["best_numbering"]


FEW = 3  # states, all orders of which are tried
LEAD = 1e-9  # of a numbering over the one before, relative to the objective
COLUMNS = 3  # of the data, by whose means the states are put in order
Params = dict[str, Tensor]


def best_numbering(
    plan: Plan,
    responsibilities: Mapping[str, Tensor],
    start: Callable[[Mapping[str, Tensor]], Params],
) -> Params:
    """The start from responsibilities ``(*plates, K)``, their states renumbered where it helps.

    Args:
        plan: The plan to start.
        responsibilities: Of every latent.
        start: The parameters for given responsibilities.
    """
    best, params, rows = dict(responsibilities), start(responsibilities), features(plan)
    for names in numberings(plan).values():
        data = {name: rows[name] for name in names if name in rows}
        if not data or best[names[0]].shape[-1] < 2 or exchangeable(plan, names[0], params):
            continue
        reached = _objective(plan, params)
        usual = best
        for order in _orders(usual, data):
            turned = {**usual, **{name: usual[name][..., order] for name in names}}
            try:
                moved = start(turned)
            except (RuntimeError, ValueError, ArithmeticError):
                continue
            value = _objective(plan, moved)
            if value > reached + LEAD * (1.0 + abs(reached)):
                best, params, reached = turned, moved, value
    return params


def _objective(plan: Plan, params: Params) -> float:
    """The objective, minus infinity where it cannot be evaluated."""
    try:
        with torch.no_grad():
            value = float(LogEvidence.of(plan)(params) + plan.prior.log_prob(params))
    except (RuntimeError, ValueError, ArithmeticError):
        return -math.inf
    return value if math.isfinite(value) else -math.inf


def _orders(
    responsibilities: Mapping[str, Tensor], rows: Mapping[str, Tensor]
) -> Iterator[list[int]]:
    """Numberings to try besides the one that there is, none of them twice."""
    posterior = torch.cat([responsibilities[n].reshape(len(r), -1) for n, r in rows.items()])
    states = posterior.shape[1]
    if states <= FEW:
        yield from (list(order) for order in itertools.permutations(range(states)))
        return
    data = torch.cat(list(rows.values())).nan_to_num()[:, :COLUMNS]
    means = (posterior.mT @ data) / posterior.sum(0).clamp_min(1e-300).unsqueeze(1)
    for column in means.unbind(1):
        upwards = torch.argsort(column).tolist()
        yield from (upwards, upwards[::-1])
