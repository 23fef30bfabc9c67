"""A chain cut into blocks of steps that are run in lockstep, so that a step is one batched product.

One long sequence offers nothing to vectorise over but its own length. Cut into ``C`` blocks of
``L`` steps, the product of transfer matrices of all blocks takes ``L`` batched steps; a short pass
over the blocks links them; then every block runs its own recursion from a known start, again in
lockstep. That is about ``2 sqrt(T)`` small steps instead of ``T``. Many sequences are batch
enough: they are left whole. So are chains of many states, whose transfer matrices take ``K^3``
operations a step where the recursion itself takes ``K^2``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Blocks", "Potentials", "by_group", "counted", "cut", "past"]


WHOLE_FROM = 48  # sequences in a batch from which on blocks cost more than they save
MORE = 3.0  # a link between blocks costs that much less than a step of all of them
TRANSFER_WORK = 8_000  # products R K^3 a step from which on transfer matrices cost more than steps
MIN_STEPS = 64  # in a chain from which on blocks save anything


@dataclass(frozen=True)
class Potentials:
    """Log potentials of ``R`` chains of ``T`` steps and ``K`` states.

    Attributes:
        initial: Of the first step's state, ``(R, K)``.
        transition: From one step to the next, ``(T - 1 or 1, G, K, K)``. Chains come in ``G``
            groups of equal size, one after another, each with a matrix of its own.
        emission: Of each step, time first, ``(T, R, K)``.
        lengths: Steps that each chain has, ``(R,)``; all of them if None.
    """

    initial: Tensor
    transition: Tensor
    emission: Tensor
    lengths: Tensor | None = None

    def detach(self) -> Potentials:
        """The same numbers outside any graph."""
        return Potentials(
            self.initial.detach(), self.transition.detach(), self.emission.detach(), self.lengths
        )


@dataclass(frozen=True)
class Blocks:
    """Potentials in block layout: ``L`` steps of ``B = C R`` rows, row ``c R + r`` first to last.

    Attributes:
        count: Number ``C`` of blocks in each chain.
        emission: ``(L, B, K)``, zero past the end of a chain.
        transition: Out of each step: one matrix ``(K, K)``, one for each group of rows next to
            each other ``(C G, K, K)``, or for each step and group ``(L, C G, K, K)``.
        inside: ``(L, B, 1)``: whether the step after this one belongs to the chain too.
        ragged: For each of the ``L`` steps, whether ``inside`` is False anywhere.
    """

    count: int
    emission: Tensor
    transition: Tensor
    inside: Tensor
    ragged: list[bool]

    def matrix(self, step: int) -> Tensor:
        """The transition out of a step."""
        return self.transition[step] if self.transition.dim() == 4 else self.transition

    @property
    def groups(self) -> int:
        """How many groups of rows have a matrix of their own."""
        return self.transition.shape[-3] if self.transition.dim() > 2 else 1

    def joined(self, tensor: Tensor, steps: int) -> Tensor:
        """From block layout ``(L, B, ...)`` back to ``(T, R, ...)``."""
        length, rows = tensor.shape[:2]
        apart = tensor.reshape(length, self.count, rows // self.count, *tensor.shape[2:])
        return apart.transpose(0, 1).flatten(0, 1)[:steps]


def by_group(rows: Tensor, groups: int) -> Tensor:
    """From ``(..., R, K)`` to ``(..., G, R / G, K)``."""
    *lead, count, states = rows.shape
    return rows.reshape(*lead, groups, count // groups, states)


def past(lengths: Tensor, steps: int) -> Tensor:
    """Which of the steps lie past the end of each chain, ``(T, R)``."""
    return torch.arange(steps, device=lengths.device).unsqueeze(1) >= lengths


def counted(earlier: Tensor, later: Tensor, shape: torch.Size) -> Tensor:
    """Products of neighbouring steps ``(T - 1, R, K)``, summed to the shape of the transition."""
    times, groups = shape[:2]
    summed = "gij" if times == 1 else "tgij"
    apart = by_group(earlier, groups), by_group(later, groups)
    return torch.einsum(f"tgri,tgrj->{summed}", *apart).reshape(shape)


def cut(chains: Potentials, count: int | None = None, work: int = TRANSFER_WORK) -> Blocks:
    """Cuts chains into ``count`` blocks, or into as many as make the run short.

    Args:
        chains: The potentials.
        count: How many blocks.
        work: Products a step that transfer matrices may take; there are more to the time of a step
            where a product is a multiplication than where it is a logarithm of a sum.
    """
    steps, rows, states = chains.emission.shape
    if count is None:
        short = rows >= WHOLE_FROM or steps < MIN_STEPS
        count = (
            1 if short or rows * states**3 > work else max(1, round(math.sqrt(MORE * steps / rows)))
        )
    length = -(-steps // count)
    count = -(-steps // length)
    time = torch.arange(count * length, device=chains.emission.device)
    ends = time.new_full((rows,), steps) if chains.lengths is None else chains.lengths
    beyond = time.unsqueeze(1) >= ends
    emission = chains.emission
    if count * length > steps:
        emission = torch.cat([emission, emission.new_zeros(count * length - steps, rows, states)])
    if chains.lengths is not None:
        emission = emission.masked_fill(beyond.unsqueeze(-1), 0.0)
    inside = _lockstep((time + 1).unsqueeze(1) < ends, count).unsqueeze(-1)
    ragged = (~inside).flatten(1).any(1).tolist()
    transition = chains.transition
    times, groups = transition.shape[:2]
    if times == 1 and groups == 1:
        transition = transition[0, 0]
    elif times == 1:
        transition = transition[0].repeat(count, 1, 1)
    else:
        padding = transition[-1:].expand(count * length - times, -1, -1, -1)
        transition = _lockstep(torch.cat([transition, padding]), count)
    return Blocks(count, _lockstep(emission, count), transition, inside, ragged)


def _lockstep(tensor: Tensor, count: int) -> Tensor:
    """From ``(C L, R, ...)`` to ``(L, C R, ...)``."""
    apart = tensor.reshape(count, -1, *tensor.shape[1:])
    return apart.transpose(0, 1).flatten(1, 2).contiguous()
