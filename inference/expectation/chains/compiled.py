"""Forward-backward by compiled loops, where numba is installed and the chains are long enough.

The recursions, and when they are not to be trusted, are those of ``scaled.py`` without blocks. The
chains are taken in parts, on several threads, and nothing is moved in memory: emissions are read,
and marginals are written, with the strides that they have.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ember.inference.expectation.chains.blocks import Potentials
from ember.inference.expectation.chains.scaled import SHARE, Scaling
from ember.inference.numerics.compiled import use_compiled
from ember.inference.numerics.threads import in_threads

__all__ = ["CompiledChains", "compiled_forward_backward", "is_worth_compiling"]

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Forward: TypeAlias = Callable[
    [Floats, Integers, Floats, Floats, int, bool, float, int, int, Floats, Floats], bool
]
Backward: TypeAlias = Callable[
    [Floats, Integers, Floats, Floats, Floats, int, bool, float, int, int, Floats, Floats],
    tuple[bool, float],
]

# To load numba takes as long as hundreds of passes over chains of fewer emission probabilities.
WORTH = 50_000
PARTS = 16  # into which chains are cut, however many threads there are, so that sums are the same
FEW = 10  # states up to which chains go side by side; more of them fill an instruction themselves
LEAST_SHARING = 8  # chains that share a matrix, from which on they do
SIDE_BY_SIDE = 32  # chains that a part has at least where they do
PART_ENTRIES = 5_000  # emission probabilities of a part from which on a thread is worth waking


def is_worth_compiling(chains: Potentials) -> bool:
    """Whether compiled loops can take these chains, and take less time than tensors."""
    tensors = (chains.initial, chains.transition, chains.emission)
    return (
        use_compiled()
        and chains.emission.numel() >= WORTH
        and all(each.dtype == torch.float64 and each.device.type == "cpu" for each in tensors)
    )


def compiled_forward_backward(chains: Potentials) -> CompiledChains | None:
    """The forward recursion, and the backward one when asked; None where a state may be lost."""
    chains = chains.detach()
    steps, rows, states = chains.emission.shape
    padding = (0, -states % 4)
    transition = chains.transition.exp()
    scaling = Scaling.of(transition)
    highest = chains.initial.amax(-1, keepdim=True)
    first = (chains.initial - highest).exp()
    matrices = torch.nn.functional.pad(transition, (*padding, *padding)).contiguous()
    lengths = chains.lengths
    lengths = torch.full((rows,), steps) if lengths is None else lengths.to(torch.int64)
    filtered = first.new_empty(rows, steps, matrices.shape[-1])
    evidence = first.new_empty(rows)

    side_by_side = _go_side_by_side(chains, lengths)
    recursion = _loops(side_by_side)[0]

    def part(own: tuple[int, int]) -> bool:
        return recursion(
            chains.emission.numpy(),
            lengths.numpy(),
            first.numpy(),
            matrices.numpy(),
            scaling.every,
            scaling.near_zero,
            scaling.least,
            own[0],
            own[1],
            filtered.numpy(),
            evidence.numpy(),
        )

    if not all(in_threads(part, _parts(chains, side_by_side))):
        return None
    evidence += highest.squeeze(-1)
    run = CompiledChains(evidence, matrices, lengths, filtered, scaling, side_by_side)
    return run if not scaling.near_zero or run.is_sound(chains) else None


def _go_side_by_side(chains: Potentials, lengths: Tensor) -> bool:
    """Whether there are enough chains of few states, not too unequal in length."""
    steps, rows, states = chains.emission.shape
    sharing = rows // chains.transition.shape[1]
    if states > FEW or sharing < LEAST_SHARING:
        return False
    return chains.lengths is None or 2 * int(lengths.sum()) >= steps * rows


def _loops(side_by_side: bool) -> tuple[Forward, Backward]:
    """Both recursions, compiled; this loads numba."""
    if side_by_side:
        from ember.inference.expectation.chains import compiled_lanes

        return compiled_lanes.forward, compiled_lanes.backward
    from ember.inference.expectation.chains import compiled_steps

    return compiled_steps.forward, compiled_steps.backward


def _parts(chains: Potentials, side_by_side: bool) -> list[tuple[int, int]]:
    """Which chains each thread takes at a time."""
    rows = chains.emission.shape[1]
    count = min(PARTS, -(-rows // SIDE_BY_SIDE) if side_by_side else rows)
    count = min(count, max(1, chains.emission.numel() // PART_ENTRIES))
    if len(chains.transition) > 1:
        count = 1  # each part would need sums of pairs for every step
    return list(itertools.pairwise(rows * part // count for part in range(count + 1)))


@dataclass(eq=False)
class CompiledChains:
    """The forward recursion of some chains, and what the backward one makes of it.

    Attributes:
        log_evidence: ``(R,)``.
        matrices: Transition matrices, not their logarithms, states padded.
        lengths: Of all chains.
        filtered: ``f_t``, each state given the data up to its step, ``(R, T, Kp)``.
        scaling: When numbers were scaled.
        side_by_side: Whether several chains are taken at a time.
        unweighed: Expectations where each chain counts once, if they are known.
    """

    log_evidence: Tensor
    matrices: Tensor
    lengths: Tensor
    filtered: Tensor
    scaling: Scaling
    side_by_side: bool
    unweighed: tuple[Tensor, Tensor] | None = None

    def is_sound(self, chains: Potentials) -> bool:
        """Whether entries that were held up have next to no share in the evidence."""
        found = self._backward(chains, torch.ones_like(self.log_evidence))
        if found is not None:
            self.unweighed = found
        return found is not None

    def expectations(self, chains: Potentials, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Marginals ``(T, R, K)`` and transitions, summed as the matrix broadcasts; weighed."""
        if self.unweighed is not None and bool((weights == 1.0).all()):
            return self.unweighed
        found = self._backward(chains.detach(), weights)
        assert found is not None
        return found

    def _backward(self, chains: Potentials, weights: Tensor) -> tuple[Tensor, Tensor] | None:
        scaling, states = self.scaling, chains.emission.shape[-1]
        size = len(weights) // self.matrices.shape[1]
        marginals = torch.empty_like(chains.emission)
        turned = self.matrices.mT.contiguous()
        recursion = _loops(self.side_by_side)[1]

        def part(own: tuple[int, int]) -> tuple[bool, float, slice, Tensor]:
            theirs = slice(own[0] // size, (own[1] - 1) // size + 1)
            pairs = torch.zeros_like(self.matrices[:, theirs])
            is_sound, share = recursion(
                chains.emission.numpy(),
                self.lengths.numpy(),
                turned.numpy(),
                self.filtered.numpy(),
                weights.numpy(),
                scaling.every,
                scaling.near_zero,
                scaling.least,
                own[0],
                own[1],
                marginals.numpy(),
                pairs.numpy(),
            )
            return is_sound, share, theirs, pairs

        total = torch.zeros_like(self.matrices)
        shares, sound = 0.0, True
        for is_sound, share, theirs, pairs in in_threads(part, _parts(chains, self.side_by_side)):
            total[:, theirs] += pairs
            shares, sound = shares + share, sound and is_sound
        if scaling.near_zero and not (sound and shares < SHARE):
            return None
        total *= self.matrices
        return marginals, total[..., :states, :states]
