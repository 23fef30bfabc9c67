"""What tests of the chain kernels share: blocks of a given number, one path, 50-digit sums."""

import functools

import mpmath
import pytest
import torch
from torch import Tensor

from ember.inference.expectation.chains import blocks as chain_blocks
from ember.inference.expectation.chains import evidence as chain
from ember.inference.expectation.chains import log_space as chain_log
from ember.inference.expectation.chains import scaled as chain_scaled
from ember.inference.expectation.chains.blocks import Potentials


def in_blocks(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Cuts every chain into that many blocks, and so takes it in tensors."""
    monkeypatch.setattr(chain, "is_worth_compiling", lambda chains: False)
    cut = functools.partial(chain_blocks.cut, count=count)
    monkeypatch.setattr(chain_scaled, "cut", cut)
    monkeypatch.setattr(chain_log, "cut", cut)


def only_log_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the scaled recursions say that they cannot be trusted."""
    monkeypatch.setattr(chain, "compiled_forward_backward", lambda chains: None)
    monkeypatch.setattr(chain, "scaled_forward_backward", lambda chains: None)


def fifty_digits(chains: Potentials) -> tuple[float, Tensor]:
    """Log evidence and marginals ``(T, K)`` of one chain with one matrix, in 50 digits."""
    mp = mpmath.mp.clone()
    mp.dps = 50
    chains = chains.detach()
    states = chains.emission.shape[-1]
    moves = [[mp.exp(mp.mpf(float(v))) for v in row] for row in chains.transition[0, 0]]
    weights = [[mp.exp(mp.mpf(float(v))) for v in row[0]] for row in chains.emission]
    first = [mp.exp(mp.mpf(float(v))) for v in chains.initial[0]]
    forward = [[p * w for p, w in zip(first, weights[0], strict=True)]]
    for w in weights[1:]:
        last = forward[-1]
        sums = [mp.fsum(last[i] * moves[i][j] for i in range(states)) for j in range(states)]
        forward.append([s * v for s, v in zip(sums, w, strict=True)])
    backward = [[mp.mpf(1)] * states]
    for w in reversed(weights[1:]):
        after = [b * v for b, v in zip(backward[0], w, strict=True)]
        sums = [mp.fsum(moves[i][j] * after[j] for j in range(states)) for i in range(states)]
        backward.insert(0, sums)
    total = mp.fsum(forward[-1])
    marginals = [
        [float(f * b / total) for f, b in zip(fs, bs, strict=True)]
        for fs, bs in zip(forward, backward, strict=True)
    ]
    return float(mp.log(total)), torch.tensor(marginals)
