"""Random chains of all shapes."""

import torch
from torch import Tensor

from ember.inference.expectation.chains.blocks import Potentials

T, R, K = 6, 3, 3


def random_chains(times: int, own: int, lengths: Tensor | None) -> Potentials:
    leaves = [torch.randn(R, K), torch.randn(times, own, K, K), 3.0 * torch.randn(T, R, K)]
    initial, transition, emission = (leaf.requires_grad_() for leaf in leaves)
    return Potentials(initial, transition, emission, lengths)
