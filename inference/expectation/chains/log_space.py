r"""Forward-backward and the Viterbi path in log space: nothing underflows, whatever the chain.

The recursions are those of ``expectation/chains/scaled.py`` in the semiring (logsumexp, +), or
(max, +) for the most probable path:

.. math:: p_{t+1}(j) = \bigoplus_i \, p_t(i) + e_t(i) + a_t(i, j).

Reference: Viterbi (1967), *Error bounds for convolutional codes*, IEEE Trans. Inf. Theory 13,
260-269.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation.chains.blocks import Blocks, Potentials, by_group, cut, past
from ember.inference.numerics.log_space import IMPOSSIBLE

__all__ = ["SmoothedInLogs", "log_evidence", "log_forward_backward", "viterbi"]


Reduce = Callable[[Tensor, int], Tensor]
PAIR_ENTRIES = 4_000_000  # of log pair probabilities held at once


@dataclass(frozen=True)
class SmoothedInLogs:
    """What both recursions leave behind, in logs.

    Attributes:
        log_evidence: ``(R,)``.
        filtered: Of each state and the data up to its step, ``(T, R, K)``.
        future: Of all later data given the state, ``(T, R, K)``; the sum of both is the joint log
            probability of the data and a state.
    """

    log_evidence: Tensor
    filtered: Tensor
    future: Tensor

    def expectations(self, chains: Potentials, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Marginals ``(T, R, K)`` and transitions, summed as the matrix broadcasts; weighed."""
        marginals = (self.filtered + self.future).softmax(-1) * weights.unsqueeze(-1)
        if chains.lengths is not None:
            marginals.masked_fill_(past(chains.lengths, len(marginals)).unsqueeze(-1), 0.0)
        return marginals, _pairs(chains, self.filtered, self.future, weights)


def log_forward_backward(chains: Potentials) -> SmoothedInLogs:
    """Both recursions."""
    steps, rows, _ = chains.emission.shape
    blocks = cut(chains)
    predicted, beyond = _link(blocks, chains.initial, torch.logsumexp)
    filtered = _forward(blocks, predicted, torch.logsumexp)
    future = torch.empty_like(filtered)
    now = beyond
    for i in range(len(filtered) - 1, -1, -1):
        back = _into(blocks.matrix(i), now, torch.logsumexp)
        future[i] = torch.where(blocks.inside[i], back, now) if blocks.ragged[i] else back
        now = future[i] + blocks.emission[i]
    evidence = torch.logsumexp(filtered[-1, -rows:], -1)
    return SmoothedInLogs(evidence, blocks.joined(filtered, steps), blocks.joined(future, steps))


def log_evidence(chains: Potentials) -> Tensor:
    """Log evidence ``(R,)`` by plain operations: it can be differentiated any number of times."""
    # Minus infinity has no gradient: what it stands for is as impossible as this.
    initial, transition, emission = (
        each.clamp_min(IMPOSSIBLE) for each in (chains.initial, chains.transition, chains.emission)
    )
    blocks = cut(Potentials(initial, transition, emission, chains.lengths))
    if blocks.count > 1:
        predicted, product = _predict(blocks, initial, torch.logsumexp)
        return torch.logsumexp(predicted[-1].unsqueeze(-1) + product[-1], (-2, -1))
    now = initial
    for i, own in enumerate(blocks.emission.unbind(0)):
        seen = now + own
        now = _out_of(seen, blocks.matrix(i), torch.logsumexp)
        now = torch.where(blocks.inside[i], now, seen) if blocks.ragged[i] else now
    return torch.logsumexp(now, -1)


def _pairs(chains: Potentials, filtered: Tensor, future: Tensor, weights: Tensor) -> Tensor:
    """Posterior of neighbouring states, each chain weighed, summed as the transition broadcasts.

    Args:
        chains: The potentials.
        filtered: As ``log_forward_backward`` gives it.
        future: Likewise.
        weights: Of each chain, ``(R,)``.

    Returns:
        The shape of ``chains.transition``.
    """
    steps, rows, states = chains.emission.shape
    times, groups = chains.transition.shape[:2]
    total = chains.transition.new_zeros(chains.transition.shape)
    width = max(1, PAIR_ENTRIES // (rows * states * states))
    for start in range(0, steps - 1, width):
        stop = min(start + width, steps - 1)
        matrix = chains.transition if times == 1 else chains.transition[start:stop]
        later = future[start + 1 : stop + 1] + chains.emission[start + 1 : stop + 1]
        before, after = by_group(filtered[start:stop], groups), by_group(later, groups)
        pairs = before.unsqueeze(-1) + matrix.unsqueeze(2) + after.unsqueeze(-2)
        pairs = pairs.sub_(torch.logsumexp(pairs, (-2, -1), keepdim=True)).exp_()
        counted = weights.expand(stop - start, rows)
        if chains.lengths is not None:
            there = (
                torch.arange(start + 1, stop + 1, device=weights.device).unsqueeze(1)
                < chains.lengths
            )
            counted = counted * there
        pairs = (pairs * counted.reshape(*pairs.shape[:3], 1, 1)).sum(2)
        if times == 1:
            total += pairs.sum(0, keepdim=True)
        else:
            total[start:stop] = pairs
    return total


def viterbi(chains: Potentials) -> tuple[Tensor, Tensor]:
    """The most probable path ``(T, R)`` and its joint log probability ``(R,)``.

    Past the end of a chain the path stays in its last state.
    """
    steps, rows, states = chains.emission.shape
    blocks = cut(chains)
    starts = _best_starts(blocks, chains.initial)
    filtered = _forward(blocks, starts, torch.amax)
    last = len(filtered) - 1
    # A block ends where the next one begins; the last one where it likes.
    after = torch.zeros_like(starts)
    if blocks.count > 1:
        after[:-rows] = starts[rows:]
        into = _into(blocks.matrix(last), after, torch.amax)
        after[:-rows] = torch.where(blocks.inside[last], into, after)[:-rows]
    state = (filtered[-1] + after).argmax(-1)
    path = state.new_empty(len(filtered), state.shape[0])
    path[-1] = state
    group = torch.arange(len(state), device=state.device) // (len(state) // blocks.groups)
    for i in range(last - 1, -1, -1):
        into = blocks.matrix(i).reshape(-1, states, states)[group, :, state]
        before = (filtered[i] + into).argmax(-1)
        state = torch.where(blocks.inside[i].squeeze(-1), before, state)
        path[i] = state
    best = blocks.joined(path, steps)
    return best, _log_joint(chains, best)


def _best_starts(blocks: Blocks, first: Tensor) -> Tensor:
    """What each block may begin with: the first one as given, others in the best path's state."""
    if blocks.count == 1:
        return first
    rows, states = first.shape
    predicted, product = _predict(blocks, first, torch.amax)
    starts = [first] * blocks.count
    ahead = product[-1].amax(-1)
    for c in range(blocks.count - 1, 0, -1):
        state = (predicted[c] + ahead).argmax(-1)
        starts[c] = torch.full_like(first, -torch.inf).scatter_(1, state.unsqueeze(1), 0.0)
        column = state[:, None, None].expand(rows, states, 1)
        ahead = product[c - 1].gather(2, column).squeeze(2)
    starts[0] = first
    return torch.cat(starts)


def _log_joint(chains: Potentials, path: Tensor) -> Tensor:
    """The log probability of given paths ``(T, R)`` and the data."""
    steps, rows = path.shape
    ends = path.new_full((rows,), steps) if chains.lengths is None else chains.lengths
    time = torch.arange(steps, device=path.device).unsqueeze(1)
    own = chains.emission.gather(2, path.unsqueeze(-1)).squeeze(-1)
    total = torch.where(time < ends, own, 0.0).sum(0)
    total = total + chains.initial.gather(1, path[:1].T).squeeze(1)
    transition = chains.transition
    times = torch.arange(steps - 1, device=path.device).unsqueeze(1) if len(transition) > 1 else 0
    group = torch.arange(rows, device=path.device) // (rows // transition.shape[1])
    moves = transition[times, group, path[:-1], path[1:]]
    return total + torch.where(time[1:] < ends, moves, 0.0).sum(0)


def _forward(blocks: Blocks, predicted: Tensor, reduce: Reduce) -> Tensor:
    filtered = torch.empty_like(blocks.emission)
    now = predicted
    for i in range(len(filtered)):
        torch.add(now, blocks.emission[i], out=filtered[i])
        now = _out_of(filtered[i], blocks.matrix(i), reduce)
        if blocks.ragged[i]:
            now = torch.where(blocks.inside[i], now, filtered[i])
    return filtered


def _link(blocks: Blocks, first: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """The prediction at the start of each block and the future past its end, ``(B, K)``."""
    if blocks.count == 1:
        return first, torch.zeros_like(first)
    predicted, product = _predict(blocks, first, reduce)
    beyond = [torch.zeros_like(first)]
    for c in range(blocks.count - 1, 0, -1):
        beyond.append(reduce(product[c] + beyond[-1].unsqueeze(-2), -1))
    return torch.cat(predicted), torch.cat(beyond[::-1])


def _predict(blocks: Blocks, first: Tensor, reduce: Reduce) -> tuple[list[Tensor], Tensor]:
    """The prediction at the start of each block, and the blocks' transfers ``(C, R, K, K)``."""
    rows, states = first.shape
    off = ~torch.eye(states, dtype=torch.bool, device=first.device)
    product = torch.diag_embed(torch.zeros_like(blocks.emission[0])).masked_fill(off, -torch.inf)
    for i in range(len(blocks.emission)):
        weighed = product + blocks.emission[i].unsqueeze(-2)
        if i == 0:  # the product is a diagonal: spare the reduction
            apart = by_group(blocks.emission[i], blocks.groups).unsqueeze(-1)
            matrix = blocks.matrix(i).reshape(-1, 1, states, states)
            moved = (apart + matrix).reshape(product.shape)
        else:
            moved = _out_of(weighed, blocks.matrix(i), reduce)
        there = blocks.inside[i].unsqueeze(-1)
        product = torch.where(there, moved, weighed) if blocks.ragged[i] else moved
    product = product.reshape(blocks.count, rows, states, states)
    predicted = [first]
    for c in range(blocks.count - 1):
        predicted.append(reduce(predicted[-1].unsqueeze(-1) + product[c], -2))
    return predicted, product


def _out_of(rows: Tensor, matrix: Tensor, reduce: Reduce) -> Tensor:
    """Vectors ``(B, K)``, or as many matrices, times one matrix or each group's, in a semiring."""
    groups = len(matrix) if matrix.dim() == 3 else 1
    apart = rows.reshape(groups, -1, rows.shape[-1], 1)
    return reduce(apart + matrix.unsqueeze(-3), -2).reshape(rows.shape)


def _into(matrix: Tensor, rows: Tensor, reduce: Reduce) -> Tensor:
    """One matrix, or each group's, times its vectors ``(B, K)``."""
    return _out_of(rows, matrix.mT, reduce)
