r"""The E-step of hidden Markov chains, in time and memory linear in their length.

The log evidence of a chain and its gradient, which are the posterior marginals of states and of
pairs of neighbouring states (Baum et al. 1970, Ann. Math. Statist. 41, 164-171), come from one
forward and one backward recursion. ``chain_log_evidence`` makes them one node of torch's graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ember.inference.expectation.chains.blocks import Potentials, by_group, counted, past
from ember.inference.expectation.chains.compiled import (
    compiled_forward_backward,
    is_worth_compiling,
)
from ember.inference.expectation.chains.log_space import (
    log_evidence,
    log_forward_backward,
    viterbi,
)
from ember.inference.expectation.chains.scaled import scaled_forward_backward
from ember.inference.numerics.log_space import IMPOSSIBLE
from ember.inference.numerics.replay.recording import as_one_step

__all__ = ["chain_log_evidence", "pair_marginals", "predictions"]


def chain_log_evidence(chains: Potentials, maximum: bool = False) -> Tensor:
    """Log evidence of each chain ``(R,)``; of its most probable path alone with ``maximum``.

    The gradient with respect to the potentials is the posterior expectation: marginals for
    ``emission``, expected transitions for ``transition``; one-hot along the path for ``maximum``.
    It can be differentiated again.
    """
    node = _Path if maximum else _Evidence
    inputs = (chains.initial, chains.transition, chains.emission, chains.lengths)
    result: Tensor = node.apply(*inputs)  # type: ignore[no-untyped-call]
    return result


class Smoother(Protocol):
    """Both recursions at given potentials, whichever way they were run."""

    @property
    def log_evidence(self) -> Tensor:
        """``(R,)``."""

    def expectations(self, chains: Potentials, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Marginals ``(T, R, K)`` and transitions, summed as the matrix broadcasts; weighed."""


def smoother(chains: Potentials) -> Smoother:
    """The fastest way that loses nothing."""
    if is_worth_compiling(chains):
        scaled: Smoother | None = compiled_forward_backward(chains)
    else:
        scaled = scaled_forward_backward(chains)
    return scaled or log_forward_backward(chains)


class _Evidence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None
    ) -> Tensor:
        ctx.both = _Both(lengths)
        evidence: Tensor = as_one_step(ctx.both.forward, initial, transition, emission)
        ctx.save_for_backward(initial, transition, emission, evidence)
        return evidence

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        initial, transition, emission, evidence = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself
            chains = Potentials(initial, transition, emission, ctx.both.lengths)
            return *_gradient(chains, weights, ctx.needs_input_grad), None
        marginals, pairs = as_one_step(
            ctx.both.backward, evidence, initial, transition, emission, weights
        )
        return marginals[0], pairs, marginals, None


class _Both:
    """The two recursions as two operations, of which the second goes on from the first."""

    def __init__(self, lengths: Tensor | None) -> None:
        self.lengths = lengths
        self._smoother: Smoother | None = None

    def forward(self, initial: Tensor, transition: Tensor, emission: Tensor) -> Tensor:
        """Log evidence of each chain."""
        self._smoother = smoother(Potentials(initial, transition, emission, self.lengths))
        return self._smoother.log_evidence

    def backward(
        self,
        evidence: Tensor,
        initial: Tensor,
        transition: Tensor,
        emission: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Marginals and expected transitions; the evidence says that ``forward`` comes first."""
        chains = Potentials(initial, transition, emission, self.lengths)
        found = self._smoother or smoother(chains)
        self._smoother = None  # its messages are as large as all marginals
        return found.expectations(chains, weights)


def _gradient(
    chains: Potentials, weights: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradient as a differentiable function of potentials and weights, by autograd."""
    given = (chains.initial, chains.transition, chains.emission)
    # Views, so that one of them is not reached through another from which it was computed.
    seen = [each.view_as(each) for each in given]
    sought = [each for each, want in zip(seen, wanted, strict=False) if want]
    evidence = log_evidence(Potentials(seen[0], seen[1], seen[2], chains.lengths))
    found = iter(
        torch.autograd.grad(
            evidence, sought, weights, create_graph=True, allow_unused=True, materialize_grads=True
        )
    )
    return tuple(next(found) if want else None for want in wanted[: len(given)])


class _Path(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None
    ) -> Tensor:
        path, best = viterbi(Potentials(initial, transition, emission, lengths))
        ctx.path, ctx.lengths = path, lengths
        ctx.shapes = (transition.shape, emission.shape)
        return best

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        """The path as one-hot marginals, and its moves as one-hot pairs within each length."""
        shape, (steps, _, states) = ctx.shapes
        one_hot = torch.nn.functional.one_hot(ctx.path, states).to(weights.dtype)
        marginals = one_hot * weights.unsqueeze(-1)
        inside = marginals
        if ctx.lengths is not None:
            inside = marginals.masked_fill(past(ctx.lengths, steps).unsqueeze(-1), 0.0)
        if not ctx.needs_input_grad[1] or steps < 2:
            moves = None
        else:
            moves = counted(one_hot[:-1], inside[1:], shape)
        return inside[0], moves, marginals, None


def pair_marginals(chains: Potentials) -> Tensor:
    """Posterior of each two neighbouring states, ``(T - 1, R, K, K)``; zero past a chain's end.

    It is NaN for a chain that is impossible.
    """
    steps, rows, states = chains.emission.shape
    own = chains.transition.repeat_interleave(rows // chains.transition.shape[1], 1)
    full = own.expand(max(steps - 1, 1), rows, states, states)
    each = Potentials(chains.initial, full, chains.emission, chains.lengths)
    with torch.enable_grad():
        transition = full.clone().requires_grad_()
        evidence = chain_log_evidence(
            Potentials(each.initial, transition, each.emission, each.lengths)
        )
        (pairs,) = torch.autograd.grad(evidence, transition, _nan_if_impossible(evidence))
    found: Tensor = pairs[: steps - 1]
    return found


def predictions(chains: Potentials) -> Tensor:
    """Each step's state given all earlier data, one step beyond the last: ``(T + 1, R, K)``.

    Past the end of a chain its state keeps moving unobserved. After a step that is impossible given
    those before it, it is NaN.
    """
    emission, moves = chains.emission, chains.transition
    if chains.lengths is not None:
        beyond = past(chains.lengths, len(emission)).unsqueeze(-1)
        emission = emission.masked_fill(beyond, 0.0)
    filtered = log_forward_backward(Potentials(chains.initial, moves, emission)).filtered
    if len(moves) > 1:  # the last one leads past the data
        moves = torch.cat([moves, moves[-1:]])
    apart = by_group(filtered, moves.shape[1]).unsqueeze(-1)
    ahead = torch.logsumexp(apart + moves.unsqueeze(2), -2).reshape(filtered.shape)
    found = torch.cat([chains.initial.unsqueeze(0), ahead]).softmax(-1)
    found[1:] *= _nan_if_impossible(torch.logsumexp(filtered, -1, keepdim=True))
    return found


def _nan_if_impossible(evidence: Tensor) -> Tensor:
    return torch.where(evidence <= 0.1 * IMPOSSIBLE, torch.nan, 1.0)
