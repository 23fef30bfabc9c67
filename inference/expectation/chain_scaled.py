r"""Forward-backward with scaled probabilities: fast, and it says when it cannot be trusted.

With ``E_t`` the emission probabilities of step ``t`` (relative to the likeliest state) and ``P``
the transition matrix,

.. math:: f_t \propto p_t \circ E_t, \quad p_{t+1} = f_t P, \qquad
          y_t \propto E_t \circ (P y_{t+1}),

scaled often enough that nothing underflows as a whole. A single entry may still underflow, if
the transition matrix has entries next to zero: a state less probable than the likeliest by a
factor of ``1e-290`` is about to be lost, although later data may yet favour it. Wherever that is
seen the result is None, and the caller takes the recursion in log space.

Reference: Rabiner (1989), *A tutorial on hidden Markov models*, Proc. IEEE 77, 257-286, sect. V.A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ember.inference.expectation.chain_blocks import Blocks, Potentials, cut

__all__ = ["Smoothed", "scaled_forward_backward"]

LOST = 1e-290
ROOM = 200.0  # powers of ten that numbers may shrink before they are scaled again


@dataclass(frozen=True)
class Smoothed:
    """What both recursions leave behind; every row is known up to a factor of its own.

    Attributes:
        log_evidence: ``(R,)``.
        filtered: ``f_t``, each state given the data up to its step, ``(T, R, K)``.
        future: ``y_t``, the likelihood of a step's data and all later ones, ``(T, R, K)``.
        marginals: Each state given all data, ``(T, R, K)``.
        agreement: ``sum_i f_t(i) b_t(i)`` with ``b_t = P y_(t+1)``: the factor of a pair's
            probability ``f_t(i) P(i, j) y_(t+1)(j)``, ``(T, R, 1)``.
    """

    log_evidence: Tensor
    filtered: Tensor
    future: Tensor
    marginals: Tensor
    agreement: Tensor


def scaled_forward_backward(chains: Potentials) -> Smoothed | None:
    """Both recursions, or None where a state underflows."""
    steps, rows, _ = chains.emission.shape
    blocks = cut(chains)
    top = blocks.emission.amax(-1, keepdim=True)
    emission = (blocks.emission - top).exp_()
    blocks = Blocks(blocks.count, emission, blocks.transition.exp(), blocks.inside, blocks.ragged)
    run = _Run(blocks)
    highest = chains.initial.amax(-1, keepdim=True)
    first = (chains.initial - highest).exp()
    predicted, beyond = run.link(first) if blocks.count > 1 else (first, torch.ones_like(first))
    filtered, scales = run.forward(predicted)
    future, backward = run.backward(beyond)
    if not run.is_sound():
        return None
    joint = backward.mul_(filtered)
    agreement = joint.sum(-1, keepdim=True)
    evidence = blocks.joined(top, steps).sum(0) + highest
    evidence = evidence + scales.reshape(blocks.count, rows, 1).sum(0)
    return Smoothed(
        evidence.squeeze(-1),
        blocks.joined(filtered, steps),
        blocks.joined(future, steps),
        blocks.joined(joint.div_(agreement), steps),
        blocks.joined(agreement, steps),
    )


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """Vectors ``(B, K)``, or as many matrices ``(B, K, K)``, times one matrix or each group's."""
    if matrix.dim() == 2 and rows.dim() == 2:
        return rows @ matrix  # by far the most frequent case
    groups = (len(matrix),) if matrix.dim() == 3 else ()
    return (rows.reshape(*groups, -1, rows.shape[-1]) @ matrix).reshape(rows.shape)


class _Run:
    """The recursions over one set of blocks, and what they saw on the way.

    In one step no sum shrinks below the smallest transition probability times what it was, since
    the likeliest state of each step has ``E = 1``. So scaling is due only every so many steps, and
    a matrix without entries near zero loses no state; otherwise every step is scaled and watched.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        smallest = float(blocks.transition.amin())
        shrinks = -math.log10(smallest / blocks.emission.shape[-1]) if smallest > 0 else math.inf
        self.watch = shrinks > ROOM / 2
        self.every = 1 if self.watch else max(1, int(ROOM / max(shrinks, 1e-3)))
        self.seen: list[Tensor] = []

    def is_sound(self) -> bool:
        """Whether nothing was lost; NaN counts as lost."""
        return not self.seen or bool((torch.stack(self.seen) > LOST).all())

    def due(self, step: int) -> bool:
        """Whether to scale after a step."""
        return (step + 1) % self.every == 0 or step + 1 == len(self.blocks.emission)

    def note(self, entries: Tensor, step: int) -> None:
        """Looks at what a transition led to; past the end of a chain nothing is predicted."""
        if self.watch:
            if self.blocks.ragged[step]:
                inside = self.blocks.inside[step]
                inside = inside.unsqueeze(-1) if entries.dim() == 3 else inside
                entries = torch.where(inside, entries, torch.ones(()))
            self.seen.append(entries.amin())

    def forward(self, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """``f_t``, and the log of all that was divided by, ``(B, 1)``."""
        blocks = self.blocks
        filtered, sums = torch.empty_like(blocks.emission), []
        now = predicted
        for i, (own, emission) in enumerate(zip(filtered.unbind(0), blocks.emission, strict=True)):
            torch.mul(now, emission, out=own)
            if self.due(i) or i == 0:  # the first state may be all but ruled out by its data
                sums.append(own.sum(-1, keepdim=True))
                own.div_(sums[-1])
            now = _times(own, blocks.matrix(i))
            self.note(now, i)
            if blocks.ragged[i]:
                now = torch.where(blocks.inside[i], now, own)
        divided = torch.stack(sums)
        self.seen.append(divided.amin())
        scales = divided.log().sum(0)
        if blocks.count > 1:  # each block began with a prediction that sums to one
            rows = len(predicted) // blocks.count
            scales[:-rows] += now[:-rows].sum(-1, keepdim=True).log()
        return filtered, scales

    def backward(self, beyond: Tensor) -> tuple[Tensor, Tensor]:
        """``y_t`` and ``b_t``."""
        blocks = self.blocks
        future = torch.empty_like(blocks.emission)
        turned, now = blocks.transition.mT, beyond
        slices = list(zip(future.unbind(0), blocks.emission.unbind(0), strict=True))
        backward = [now] * len(slices)
        for i in range(len(slices) - 1, -1, -1):
            own, emission = slices[i]
            back = _times(now, turned[i] if turned.dim() == 4 else turned)
            if self.watch:
                self.note(back / back.amax(-1, keepdim=True), i)
            if blocks.ragged[i]:
                back = torch.where(blocks.inside[i], back, now)
            backward[i] = back
            torch.mul(back, emission, out=own)
            if self.due(i):
                own.div_(own.sum(-1, keepdim=True))
            now = own
        if blocks.count > 1:  # what follows a block is known now as the next block's own future
            rows = len(beyond) // blocks.count
            after = torch.cat([future[0, rows:], beyond[-rows:]])
            back = _times(after, turned[-1] if turned.dim() == 4 else turned)
            backward[-1] = torch.where(blocks.inside[-1], back, after)
        return future, torch.stack(backward)

    def link(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """The prediction at the start of every block and the future past its end, ``(B, K)``."""
        rows, states = first.shape
        # numpy takes a microsecond for an operation on so few numbers, torch several.
        transfer = self.transfer().reshape(self.blocks.count, rows, states, states).numpy()
        now = first.numpy()[:, None, :]
        predicted = [now / now.sum(-1, keepdims=True)]
        for block in transfer[:-1]:
            now = predicted[-1] @ block
            predicted.append(now / now.sum(-1, keepdims=True))
        beyond = [np.ones((rows, states, 1))]
        for block in transfer[:0:-1]:
            after = block @ beyond[-1]
            beyond.append(after / after.max(-2, keepdims=True))
        starts = torch.from_numpy(np.concatenate(predicted)[:, 0])
        ends = torch.from_numpy(np.concatenate(beyond[::-1])[:, :, 0])
        starts[:rows] = first
        # The given initial probabilities may be zero; what was computed may not.
        self.seen += [starts[rows:].amin(), ends.amin()]
        return starts, ends

    def transfer(self) -> Tensor:
        """Each block's product of ``diag(E_t) P``, up to a factor of its own, ``(B, K, K)``."""
        blocks = self.blocks
        rows, states = blocks.emission.shape[1:]
        product = torch.eye(states, dtype=blocks.emission.dtype).expand(rows, -1, -1)
        sums = []
        for i, emission in enumerate(blocks.emission.unsqueeze(-2)):
            weighed = product * emission
            product = _times(weighed, blocks.matrix(i))
            if blocks.ragged[i]:
                product = torch.where(blocks.inside[i].unsqueeze(-1), product, weighed)
            if self.due(i):
                sums.append(product.sum(-1, keepdim=True))
                product.div_(sums[-1])
            self.note(product, i)
        divided = torch.stack(sums)
        self.seen.append(divided.amin())
        scale = divided.log().sum(0)
        return product * (scale - scale.amax(-2, keepdim=True)).exp()
