r"""Forward-backward with scaled probabilities: fast, and it says when it cannot be trusted.

With ``E_t`` the emission probabilities of step ``t`` (relative to the likeliest state) and ``P``
the transition matrix,

.. math:: f_t \propto p_t \circ E_t, \quad p_{t+1} = f_t P, \qquad
          y_t \propto E_t \circ (P y_{t+1}),

scaled often enough that nothing underflows as a whole. A single entry may still underflow, if
the transition matrix has entries at or next to zero: a state that no path leads to, or that the
data have all but ruled out, although later data may yet favour it. With such a matrix every entry
of ``f_t`` and ``P y_(t+1)`` is held at ``FLOOR`` or above, so that both are upper bounds. The
evidence that is thereby added at step ``t``, over the evidence itself, is at most the share that
the entries held up have in ``sum_i f_t(i) (P y_(t+1))(i)``. If these shares do not add up to next
to nothing, the result is None, and the caller takes the recursion in log space.

Reference: Rabiner (1989), *A tutorial on hidden Markov models*, Proc. IEEE 77, 257-286, sect. V.A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ember.inference.expectation.chains.blocks import Blocks, Potentials, counted, cut, past
from ember.inference.numerics.threads import one_thread

__all__ = ["SHARE", "Scaling", "Smoothed", "scaled_forward_backward"]


TRANSFER_WORK = 30_000  # products R K^3 a step, as matrix products, from which on blocks do not pay
ONE_THREAD = 200_000  # products a step up to which one thread does them
LOST = 1e-290
ROOM = 200.0  # powers of ten that numbers may shrink before they are scaled again
FLOOR = 1e-200
SHRUNK = 1e-100  # least sum to divide by: what underflowed before is then still below FLOOR
NONE = 1e-100  # a probability below it cannot be told from zero where entries are held up
SEAM = 1e-180  # floor where a block begins or ends: well above what FLOOR adds up to inside one
SHARE = 1e-13  # of the evidence that entries held up may have
SLACK = 1e-11  # relative rounding error between two ways to the same number


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

    def expectations(self, chains: Potentials, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Marginals ``(T, R, K)`` and transitions, summed as the matrix broadcasts; weighed."""
        marginals = self.marginals * weights.unsqueeze(-1)
        earlier = self.filtered[:-1] * (weights.unsqueeze(-1) / self.agreement[:-1])
        if chains.lengths is not None:
            beyond = past(chains.lengths, len(marginals)).unsqueeze(-1)
            marginals.masked_fill_(beyond, 0.0)
            earlier.masked_fill_(beyond[1:], 0.0)
        counts = counted(earlier, self.future[1:], chains.transition.shape)
        return marginals, counts * chains.transition.exp()


@dataclass(frozen=True)
class Scaling:
    """When numbers are scaled, and when a sum of them says that something was lost.

    In one step no sum shrinks below the smallest transition probability times what it was, since
    the likeliest state of each step has ``E = 1``. So scaling is due only every so many steps, and
    a matrix without entries near zero loses no state; otherwise every step is scaled, and entries
    are held up.
    """

    near_zero: bool
    every: int
    least: float

    @staticmethod
    def of(transition: Tensor) -> Scaling:
        """For transition probabilities ``(..., K, K)``."""
        smallest, states = float(transition.amin()), transition.shape[-1]
        shrinks = math.log10(states) - math.log10(smallest) if smallest > 0 else math.inf
        near_zero = shrinks > ROOM / 2
        every = 1 if near_zero else max(1, int(ROOM / max(shrinks, 1e-3)))
        return Scaling(near_zero, every, SHRUNK if near_zero else LOST)


def scaled_forward_backward(chains: Potentials) -> Smoothed | None:
    """Both recursions, or None where a state may have been lost."""
    steps, rows, _ = chains.emission.shape
    blocks = cut(chains, work=TRANSFER_WORK)
    top = blocks.emission.amax(-1, keepdim=True)
    emission = (blocks.emission - top).exp_()
    blocks = Blocks(blocks.count, emission, blocks.transition.exp(), blocks.inside, blocks.ragged)
    run = _Run(blocks)
    highest = chains.initial.amax(-1, keepdim=True)
    first = (chains.initial - highest).exp()
    with one_thread(wanted=_is_small(blocks)):
        predicted, beyond = run.link(first) if blocks.count > 1 else (first, torch.ones_like(first))
        filtered, ahead, scales = run.forward(predicted)
        future, backward = run.backward(beyond)
    if not run.is_sound():
        return None
    held = (filtered <= FLOOR) | (backward <= FLOOR) if run.near_zero else None
    joint = backward.mul_(filtered)
    agreement = joint.sum(-1, keepdim=True)
    marginals = joint.div_(agreement)
    if held is not None:
        share = float(torch.where(held, marginals, 0.0).sum())
        if not share < SHARE or not _meet(predicted, ahead, future[0], beyond):
            return None
        gone = marginals < NONE
        for known in (filtered, future, marginals):
            known.masked_fill_(gone, 0.0)
    evidence = blocks.joined(top, steps).sum(0) + highest
    evidence = evidence + scales.reshape(blocks.count, rows, 1).sum(0)
    return Smoothed(
        evidence.squeeze(-1),
        blocks.joined(filtered, steps),
        blocks.joined(future, steps),
        blocks.joined(marginals, steps),
        blocks.joined(agreement, steps),
    )


def _is_small(blocks: Blocks) -> bool:
    """Whether a step is done before another thread wakes."""
    _, rows, states = blocks.emission.shape
    return rows * states ** (3 if blocks.count > 1 else 2) < ONE_THREAD


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """Vectors ``(B, K)``, or as many matrices ``(B, K, K)``, times one matrix or each group's."""
    if matrix.dim() == 2 and rows.dim() == 2:
        return rows @ matrix  # by far the most frequent case
    groups = (len(matrix),) if matrix.dim() == 3 else ()
    return (rows.reshape(*groups, -1, rows.shape[-1]) @ matrix).reshape(rows.shape)


def _meet(predicted: Tensor, ahead: Tensor, future: Tensor, beyond: Tensor) -> bool:
    """Whether blocks began where the ones before them ended, and the reverse; all ``(B, K)``.

    The start of a block is an upper bound on what the recursion has led to, or bounds were lost;
    and what exceeds it must not matter.
    """

    def exceeds(bound: Tensor, value: Tensor, weight: Tensor) -> bool:
        bound, value = (each / each.sum(-1, keepdim=True) for each in (bound, value))
        excess = ((bound - value).clamp_min(0.0) * weight).sum(-1)
        little = excess <= SLACK * (bound * weight).sum(-1)
        return bool((value <= (1.0 + SLACK) * bound).all() & little.all())

    rows = len(predicted) - len(ahead)
    starts, firsts, ends = predicted[rows:], future[rows:], beyond[: len(ahead)]
    return exceeds(starts, ahead, firsts) and exceeds(ends, firsts, ahead)


class _Run:
    """The recursions over one set of blocks, and what they saw on the way."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        scaling = Scaling.of(blocks.transition)
        self.near_zero, self.every, self.least = scaling.near_zero, scaling.every, scaling.least
        self.seen: list[Tensor] = []

    def is_sound(self) -> bool:
        """Whether nothing was lost; NaN counts as lost."""
        return bool((torch.stack(self.seen) > self.least).all())

    def due(self, step: int) -> bool:
        """Whether to scale after a step."""
        return (step + 1) % self.every == 0 or step + 1 == len(self.blocks.emission)

    def forward(self, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``f_t``; what all blocks but the last lead to; the log of all divided by, ``(B, 1)``."""
        blocks = self.blocks
        filtered, sums = torch.empty_like(blocks.emission), []
        now = predicted
        for i, (own, emission) in enumerate(zip(filtered.unbind(0), blocks.emission, strict=True)):
            torch.mul(now, emission, out=own)
            if self.due(i) or i == 0:  # the first state may be all but ruled out by its data
                sums.append(own.sum(-1, keepdim=True))
                own.div_(sums[-1])
            if self.near_zero:
                own.clamp_min_(FLOOR)
            now = _times(own, blocks.matrix(i))
            if blocks.ragged[i]:
                now = torch.where(blocks.inside[i], now, own)
        divided = torch.stack(sums)
        self.seen.append(divided.amin())
        scales = divided.log().sum(0)
        ahead = now[: len(now) - len(now) // blocks.count]
        # Each block but the first began with a prediction that sums to one.
        scales[: len(ahead)] += ahead.sum(-1, keepdim=True).log()
        return filtered, ahead, scales

    def backward(self, beyond: Tensor) -> tuple[Tensor, Tensor]:
        """``y_t`` and ``b_t``."""
        blocks = self.blocks
        future, backward = torch.empty_like(blocks.emission), torch.empty_like(blocks.emission)
        turned, now = blocks.transition.mT, beyond
        slices = list(zip(future.unbind(0), blocks.emission.unbind(0), strict=True))
        sums = []
        for i in range(len(slices) - 1, -1, -1):
            own, emission = slices[i]
            back = _times(now, turned[i] if turned.dim() == 4 else turned)
            if blocks.ragged[i]:
                back = torch.where(blocks.inside[i], back, now)
            if self.near_zero:
                back.clamp_min_(FLOOR)
            backward[i] = back
            torch.mul(back, emission, out=own)
            if self.due(i):
                sums.append(own.sum(-1, keepdim=True))
                own.div_(sums[-1])
            now = own
        if self.near_zero:
            self.seen.append(torch.stack(sums).amin())
        if blocks.count > 1:  # what follows a block is known now as the next block's own future
            rows = len(beyond) // blocks.count
            after = torch.cat([future[0, rows:], beyond[-rows:]])
            back = _times(after, turned[-1] if turned.dim() == 4 else turned)
            backward[-1] = torch.where(blocks.inside[-1], back, after)
            if self.near_zero:
                backward[-1].clamp_min_(FLOOR)
        return future, backward

    def link(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """The prediction at the start of every block and the future past its end, ``(B, K)``."""
        rows, states = first.shape
        # numpy takes a microsecond for an operation on so few numbers, torch several.
        transfer = self.transfer().reshape(self.blocks.count, rows, states, states).cpu().numpy()
        with np.errstate(invalid="ignore"):  # impossible data give NaN, which counts as lost
            now = first.cpu().numpy()[:, None, :]
            predicted = [now / now.sum(-1, keepdims=True)]
            for block in transfer[:-1]:
                now = predicted[-1] @ block
                now = now / now.sum(-1, keepdims=True)
                predicted.append(np.maximum(now, SEAM) if self.near_zero else now)
            beyond = [np.ones((rows, states, 1))]
            for block in transfer[:0:-1]:
                after = block @ beyond[-1]
                after = after / after.max(-2, keepdims=True)
                beyond.append(np.maximum(after, SEAM) if self.near_zero else after)
        starts = torch.from_numpy(np.concatenate(predicted)[:, 0]).to(first)
        ends = torch.from_numpy(np.concatenate(beyond[::-1])[:, :, 0]).to(first)
        # The given initial probabilities may be zero; what was computed may not.
        if not self.near_zero:
            self.seen += [starts[rows:].amin(), ends.amin()]
        starts[:rows] = first
        return starts, ends

    def transfer(self) -> Tensor:
        """Each block's product of ``diag(E_t) P``, up to a factor of its own, ``(B, K, K)``."""
        blocks = self.blocks
        rows, states = blocks.emission.shape[1:]
        product = torch.eye(
            states, dtype=blocks.emission.dtype, device=blocks.emission.device
        ).expand(rows, -1, -1)
        sums = []
        for i, emission in enumerate(blocks.emission.unsqueeze(-2)):
            weighed = product * emission
            product = _times(weighed, blocks.matrix(i))
            if blocks.ragged[i]:
                product = torch.where(blocks.inside[i].unsqueeze(-1), product, weighed)
            if self.due(i):
                # A row may be all zeros: the state that it starts from is ruled out.
                sums.append(product.sum(-1, keepdim=True).clamp_min_(LOST))
                product.div_(sums[-1])
            if self.near_zero:
                product.clamp_min_(FLOOR)
        scale = torch.stack(sums).log().sum(0)
        product = product * (scale - scale.amax(-2, keepdim=True)).exp()
        return product.clamp_min_(FLOOR) if self.near_zero else product
