r"""Forward-backward with scaled probabilities: fast, and it says when it cannot be trusted.

With ``E_t`` the emission probabilities of step ``t`` (relative to the likeliest state) and ``P``
the transition matrix,

.. math:: f_t \propto p_t \circ E_t, \quad p_{t+1} = f_t P, \qquad
          y_t \propto E_t \circ (P y_{t+1}),

each normalised at every step, so that nothing underflows as a whole. A single entry still may: a
state less probable than the likeliest by a factor of ``1e-290`` or more is about to be lost,
although later data may yet favour it. Wherever that is seen the result is None, and the caller
takes the recursion in log space.

Reference: Rabiner (1989), *A tutorial on hidden Markov models*, Proc. IEEE 77, 257-286, sect. V.A.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation.chain_blocks import Blocks, Potentials, cut

__all__ = ["Smoothed", "scaled_forward_backward"]

LOST = 1e-290


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
    highest = chains.initial.amax(-1, keepdim=True)
    first = (chains.initial - highest).exp()
    linked = _link(blocks, first) if blocks.count > 1 else (first, torch.ones_like(first))
    if linked is None:
        return None
    predicted, beyond = linked
    filtered, sums, smallest = _forward(blocks, predicted)
    future, least = _backward(blocks, beyond)
    # One comparison for all steps; it is False for NaN too.
    if not bool(torch.minimum(smallest, least) > LOST) or not bool((sums > LOST).all()):
        return None
    after = torch.cat([future[1:], torch.cat([future[0, rows:], beyond[-rows:]])[None]])
    backward = torch.where(blocks.inside, _times(after, blocks.transition.mT), after)
    joint = filtered * backward
    agreement = joint.sum(-1, keepdim=True)
    evidence = blocks.joined(sums.log() + top, steps).sum(0).squeeze(-1) + highest.squeeze(-1)
    if blocks.count > 1:
        evidence = evidence + _lost_factors(blocks, filtered, predicted, rows)
    return Smoothed(
        evidence,
        blocks.joined(filtered, steps),
        blocks.joined(future, steps),
        blocks.joined(joint / agreement, steps),
        blocks.joined(agreement, steps),
    )


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """Row vectors ``(..., B, K)`` times one matrix, or one for each row."""
    if matrix.dim() == 2:
        return rows @ matrix
    return (rows.unsqueeze(-2) @ matrix).squeeze(-2)


def _all_rows(rows: Tensor, matrix: Tensor) -> Tensor:
    """``(B, K, K)`` times one matrix, or one for each of the B."""
    if matrix.dim() == 2:
        return (rows.reshape(-1, rows.shape[-1]) @ matrix).reshape(rows.shape)
    return rows @ matrix


def _forward(blocks: Blocks, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``f_t``, its sums before it was normalised, and the smallest prediction seen."""
    emission = blocks.emission
    filtered, sums = torch.empty_like(emission), torch.empty_like(emission[..., :1])
    predictions = torch.empty_like(emission)
    now = predicted
    for i in range(len(emission)):
        own, total = filtered[i], sums[i]
        torch.mul(now, emission[i], out=own)
        torch.sum(own, -1, keepdim=True, out=total)
        own.div_(total)
        now = _times(own, blocks.matrix(i))
        if blocks.ragged[i]:
            now = torch.where(blocks.inside[i], now, own)
        predictions[i] = now
    return filtered, sums, _smallest(blocks, predictions)


def _backward(blocks: Blocks, beyond: Tensor) -> tuple[Tensor, Tensor]:
    """``y_t`` scaled to sum one, and the smallest likelihood seen before the emission."""
    emission = blocks.emission
    future, before = torch.empty_like(emission), torch.empty_like(emission)
    turned = blocks.transition.mT
    now = beyond
    for i in range(len(emission) - 1, -1, -1):
        back = _times(now, turned[i] if turned.dim() == 4 else turned)
        if blocks.ragged[i]:
            back = torch.where(blocks.inside[i], back, now)
        before[i] = back
        own = future[i]
        torch.mul(back, emission[i], out=own)
        own.div_(own.sum(-1, keepdim=True))
        now = own
    return future, _smallest(blocks, before.div_(before.amax(-1, keepdim=True)))


def _smallest(blocks: Blocks, entries: Tensor) -> Tensor:
    """The smallest entry within the chains: past their ends nothing is predicted."""
    ragged = [i for i, at_end in enumerate(blocks.ragged) if at_end]
    if ragged:
        ended = entries[ragged].masked_fill(~blocks.inside[ragged], 1.0)
        entries = entries.index_copy(0, torch.tensor(ragged), ended)
    return entries.amin()


def _link(blocks: Blocks, first: Tensor) -> tuple[Tensor, Tensor] | None:
    """The prediction at the start of every block and the future past its end, ``(B, K)``."""
    rows, states = first.shape
    transfer, scale = _transfer(blocks)
    if transfer is None:
        return None
    transfer = transfer.reshape(blocks.count, rows, states, states)
    scale = scale.reshape(blocks.count, rows, states)
    predicted, beyond = [first], [torch.ones_like(first)]
    for c in range(blocks.count - 1):
        log = predicted[-1].log() + scale[c]
        entry = (log - log.amax(-1, keepdim=True)).exp_()
        now = _times(entry, transfer[c])
        predicted.append(now / now.sum(-1, keepdim=True))
    for c in range(blocks.count - 1, 0, -1):
        log = (transfer[c] @ beyond[-1].unsqueeze(-1)).squeeze(-1).log() + scale[c]
        beyond.append((log - log.amax(-1, keepdim=True)).exp_())
    starts, ends = torch.cat(predicted), torch.cat(beyond[::-1])
    # The given initial probabilities may be zero; what was computed may not.
    sound = bool((starts[rows:] > LOST).all() & (ends > LOST).all())
    return (starts, ends) if sound else None


def _transfer(blocks: Blocks) -> tuple[Tensor | None, Tensor]:
    """Each block's product of ``diag(E_t) P``, rows scaled to sum one, and the log scales."""
    rows, states = blocks.emission.shape[1:]
    product = torch.eye(states, dtype=blocks.emission.dtype).expand(rows, -1, -1)
    totals = blocks.emission.new_empty(len(blocks.emission), rows, states, 1)
    lowest = []
    for i in range(len(blocks.emission)):
        weighed = product * blocks.emission[i].unsqueeze(-2)
        product = _all_rows(weighed, blocks.matrix(i))
        if blocks.ragged[i]:
            product = torch.where(blocks.inside[i].unsqueeze(-1), product, weighed)
        total = product.sum(-1, keepdim=True)
        product.div_(total)
        totals[i] = total
        seen = product
        if blocks.ragged[i]:
            seen = torch.where(blocks.inside[i].unsqueeze(-1), product, torch.ones(()))
        lowest.append(seen.amin())
    scale = totals.log().sum(0).squeeze(-1)
    return (product if bool(torch.stack(lowest).amin() > LOST) else None), scale


def _lost_factors(blocks: Blocks, filtered: Tensor, predicted: Tensor, rows: int) -> Tensor:
    """What normalising the links took from the evidence: log of each prediction's true sum."""
    last = _times(filtered[-1], blocks.matrix(len(filtered) - 1))
    last = torch.where(blocks.inside[-1], last, filtered[-1])
    true = last.sum(-1).reshape(-1, rows)[:-1]
    used = predicted.sum(-1).reshape(-1, rows)[1:]
    return (true.log() - used.log()).sum(0)
