"""Sums over the shares of several processes: what goes wrong in one of them goes wrong in all.

In an E-step all that a process has to say is one vector, and one collective operation shares it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ember.inference.factors.second_order import SecondOrder
from ember.inference.factors.tied import TieKey
from ember.inference.iteration.loop import DataLost
from ember.inference.plan.plan import Params, Plan
from ember.inference.streaming.parts import Part, Sums
from ember.inference.streaming.ranks import Ranks

__all__ = ["gathered_answer", "gathered_parts"]

T = TypeVar("T")
Layout = Sequence[tuple[TieKey, torch.Size]]

FAILED, LOST = 1.0, 2.0  # what may have become of a share: no value there, or no data
HEAD = 3  # numbers before those of the parts: what has become of it, rows, observations


def gathered_parts(
    ranks: Ranks,
    templates: Sequence[Plan],
    own: Callable[[], Sequence[Part]],
    points: Sequence[Params],
) -> list[Part]:
    """The sums of the parts of all processes, in the cells of the template.

    Args:
        ranks: The processes.
        templates: The plan for some rows, for each part with its nodes where that has them.
        own: Finds the parts of this one.
        points: The parameters that each is for.

    Raises:
        DataLost: If the data of one of them cannot be read.
    """
    layout = [(key, _shape(templates[0], key)) for key in sorted(templates[0].tied)]
    flat = [
        SecondOrder.flat(template.opaque, template.structure.parameters, params)
        for template, params in zip(templates, points, strict=True)
    ]
    parts: Sequence[Part | None] = [None] * len(points)
    head, error = [0.0] * HEAD, None
    try:
        found = own()
        # Packed here, as shapes may be wrong.
        packed = [_packed(*own, layout) for own in zip(found, flat, templates, strict=True)]
        head, parts = [0.0, float(found[0].rows), found[0].observations], found
    except Exception as caught:  # of any kind: the others wait
        error = caught
        head[0] = LOST if isinstance(error, DataLost) else FAILED
        packed = [_packed(*own, layout) for own in zip(parts, flat, templates, strict=True)]
    every = ranks.stacked(torch.cat([torch.tensor(head).double(), *packed]))
    if float(every[:, 0].max()) > 0.0:
        raise _trouble(ranks, error)
    rows, observations = int(every[:, 1].sum()), float(every[:, 2].sum())
    each = every[:, HEAD:].reshape(len(every), len(points), -1).unbind(1)
    sums = [_unpacked(*packs, layout) for packs in zip(each, flat, templates, strict=True)]
    return [Part(rows, observations, *own) for own in sums]


def gathered_answer(ranks: Ranks, own: Callable[[], T], add: Callable[[T, T], T]) -> T:
    """The sum of the answers of all processes; see ``gathered_parts``."""
    answer: T | None = None
    error: Exception | None = None
    try:
        answer = own()
    except Exception as caught:  # of any kind: the others wait
        error = caught
    every = ranks.gathered((answer, error is not None))
    if any(failed for _, failed in every):
        raise _trouble(ranks, error)
    total: T | None = None
    for each, _ in every:
        assert each is not None
        total = each if total is None else add(total, each)
    assert total is not None
    return total


def _trouble(ranks: Ranks, error: Exception | None) -> Exception:
    """What to raise if a process cannot work on its share."""
    own = "" if error is None else " ".join(str(error).split())
    messages = ranks.gathered((own, isinstance(error, DataLost)))
    if error is not None:
        return error
    said = "; ".join(f"process {i}: {why}" for i, (why, _) in enumerate(messages) if why)
    kind = DataLost if any(lost for _, lost in messages) else RuntimeError
    return kind(f"another process could not work on its share ({said})")


def _packed(part: Part | None, flat: SecondOrder | None, template: Plan, layout: Layout) -> Tensor:
    """The log likelihood of a part, its statistics, the reaches of their cells, and the rest."""
    head = torch.zeros(1).double() if part is None else torch.tensor([part.log_likelihood])
    sums = [_sums(part, key, shape) for key, shape in layout]
    reaches = [_reach(part, key, template) for key, _ in layout]
    rest = flat if part is None or part.second_order is None else part.second_order
    ends = [] if rest is None else [rest.gradient, rest.hessian.reshape(-1)]
    return torch.cat([head.double(), *sums, *reaches, *ends])


def _unpacked(
    every: Tensor, flat: SecondOrder | None, template: Plan, layout: Layout
) -> tuple[float, Sums, SecondOrder | None]:
    """The sums of what was packed, a part a row."""
    total, most = every.sum(0), every.amax(0)
    sums, place = {}, 1
    reach_place = 1 + sum(shape.numel() for _, shape in layout)
    for key, shape in layout:
        tied, size = template.tied[key], shape.numel()
        if tied.reach is not None:
            span = tied.reach.numel()
            reach = most[reach_place : reach_place + span].reshape(tied.reach.shape)
            tied, reach_place = dataclasses.replace(tied, reach=reach), reach_place + span
        sums[key] = (tied, total[place : place + size].reshape(shape))
        place += size
    if flat is not None:
        gradient, hessian = total[reach_place:].split([len(flat.point), flat.hessian.numel()])
        hessian = hessian.reshape(flat.hessian.shape)
        flat = dataclasses.replace(flat, gradient=gradient, hessian=hessian)
    return float(total[0]), sums, flat


def _shape(template: Plan, key: TieKey) -> torch.Size:
    """The shape of the statistics of some tied factors: that of their natural parameters."""
    start = template.structure.start
    with torch.no_grad():
        return template.tied[key].natural_parameters(start).shape


def _sums(part: Part | None, key: TieKey, shape: torch.Size) -> Tensor:
    if part is None or key not in part.sums:
        return torch.zeros(shape.numel(), dtype=torch.float64)
    tied, sums = part.sums[key]
    if sums.shape != shape:
        raise ValueError(
            f"the pieces of one process read {len(tied.cells)} combinations of parameters and "
            f"those of another {shape[0]}; give every process rows of all groups."
        )
    return sums.reshape(-1)


def _reach(part: Part | None, key: TieKey, template: Plan) -> Tensor:
    known = template.tied[key].reach
    if known is None:
        return torch.zeros(0, dtype=torch.float64)
    own = part.sums[key][0].reach if part is not None and key in part.sums else None
    return known.reshape(-1) if own is None else own.reshape(-1)
