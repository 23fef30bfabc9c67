r"""The E-step of hidden Markov chains, in time and memory linear in their length.

The log evidence of a chain and its gradient, which are the posterior marginals of states and of
pairs of neighbouring states (Baum et al. 1970, Ann. Math. Statist. 41, 164-171), come from one
forward and one backward recursion. ``chain_log_evidence`` makes them one node of torch's graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ember.inference.expectation.chains.blocks import Potentials, by_group
from ember.inference.expectation.chains.log_space import (
    log_evidence,
    log_forward_backward,
    log_pairs,
    viterbi,
)
from ember.inference.expectation.chains.scaled import Smoothed, scaled_forward_backward
from ember.inference.numerics.log_space import IMPOSSIBLE

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


class _Evidence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None
    ) -> Tensor:
        chains = Potentials(initial, transition, emission, lengths)
        smoothed = scaled_forward_backward(chains)
        if smoothed is not None:
            evidence = smoothed.log_evidence
        else:
            evidence, filtered, future = log_forward_backward(chains)
            smoothed = Smoothed(
                evidence, filtered, future, filtered.new_empty(0), filtered.new_empty(0)
            )
        ctx.save_for_backward(initial, transition, emission)
        ctx.lengths, ctx.smoothed = lengths, smoothed
        return evidence

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        initial, transition, emission = ctx.saved_tensors
        chains, smoothed = Potentials(initial, transition, emission, ctx.lengths), ctx.smoothed
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself
            return *_gradient(chains, weights, ctx.needs_input_grad), None
        if smoothed.agreement.numel():
            marginals = smoothed.marginals
            pairs = _scaled_pairs(chains, smoothed, weights)
        else:
            joint = smoothed.filtered + smoothed.future
            marginals = joint.softmax(-1)
            pairs = log_pairs(chains, smoothed.filtered, smoothed.future, weights)
        marginals = marginals * weights.unsqueeze(-1)
        if chains.lengths is not None:
            time = torch.arange(len(marginals), device=marginals.device).unsqueeze(1)
            marginals = marginals.masked_fill((time >= chains.lengths).unsqueeze(-1), 0.0)
        return marginals[0], pairs, marginals, None


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


def _scaled_pairs(chains: Potentials, smoothed: Smoothed, weights: Tensor) -> Tensor:
    """Expected transitions, summed as the transition matrix broadcasts."""
    earlier = smoothed.filtered[:-1] * (weights.unsqueeze(-1) / smoothed.agreement[:-1])
    if chains.lengths is not None:
        time = torch.arange(1, len(smoothed.filtered), device=earlier.device).unsqueeze(1)
        earlier = earlier.masked_fill((time >= chains.lengths).unsqueeze(-1), 0.0)
    counts = _counted(earlier, smoothed.future[1:], chains.transition.shape)
    return counts * chains.transition.exp()


def _counted(earlier: Tensor, later: Tensor, shape: torch.Size) -> Tensor:
    """Products of neighbouring steps ``(T - 1, R, K)``, summed to the shape of the transition."""
    times, groups = shape[:2]
    summed = "gij" if times == 1 else "tgij"
    apart = by_group(earlier, groups), by_group(later, groups)
    return torch.einsum(f"tgri,tgrj->{summed}", *apart).reshape(shape)


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
            beyond = torch.arange(steps, device=marginals.device).unsqueeze(1) >= ctx.lengths
            inside = marginals.masked_fill(beyond.unsqueeze(-1), 0.0)
        if not ctx.needs_input_grad[1] or steps < 2:
            moves = None
        else:
            moves = _counted(one_hot[:-1], inside[1:], shape)
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
        beyond = torch.arange(len(emission), device=emission.device).unsqueeze(1) >= chains.lengths
        emission = emission.masked_fill(beyond.unsqueeze(-1), 0.0)
    _, filtered, _ = log_forward_backward(Potentials(chains.initial, moves, emission))
    if len(moves) > 1:  # the last one leads past the data
        moves = torch.cat([moves, moves[-1:]])
    apart = by_group(filtered, moves.shape[1]).unsqueeze(-1)
    ahead = torch.logsumexp(apart + moves.unsqueeze(2), -2).reshape(filtered.shape)
    found = torch.cat([chains.initial.unsqueeze(0), ahead]).softmax(-1)
    found[1:] *= _nan_if_impossible(torch.logsumexp(filtered, -1, keepdim=True))
    return found


def _nan_if_impossible(evidence: Tensor) -> Tensor:
    return torch.where(evidence <= 0.1 * IMPOSSIBLE, torch.nan, 1.0)
