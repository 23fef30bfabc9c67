r"""Parameter expansion: statistics of latents that may be stretched.

EM is slow where the data say little of the single latents: their spread and their values then
change by small steps together. If each latent z_k may be multiplied by a number of its own, which
is chosen with the other parameters, spread and values move at once (Liu, Rubin & Wu 1998,
*Parameter expansion to accelerate EM: the PX-EM algorithm*, Biometrika 85, 755-770). As statistics
are quadratic in the latents, those of stretched latents are

.. math:: T(\alpha) = T_0 + \sum_k \alpha_k T_k + \sum_{k \le l} \alpha_k \alpha_l T_{kl},

so the E-step has to tell apart the pieces.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.tied import TieKey

__all__ = ["Expansion", "Stretches"]


@dataclass(frozen=True, eq=False)
class Stretches:
    """The directions in which latents of a component may be stretched.

    Attributes:
        names: For each direction the latent, and the place in its event.
        counts: How many entries each direction has, ``(K,)``.
        priors: What the latents' own priors are tied to.
    """

    names: tuple[tuple[str, int], ...]
    counts: Tensor
    priors: frozenset[TieKey]

    @property
    def pieces(self) -> int:
        """How many pieces statistics fall into: linear ones, then those of pairs."""
        size = len(self.names)
        return size + size * (size + 1) // 2

    def piece(self, one: Tensor, other: Tensor | None = None) -> Tensor:
        """The number of the piece of a direction, or of a pair of them; -1 without any."""
        size = len(self.names)
        if other is None:
            return one
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        number = size + low * size - low * (low - 1) // 2 + high - low
        return torch.where(low < 0, -1, number)


@dataclass(frozen=True, eq=False)
class Expansion:
    """The pieces of expected statistics that grow with stretched latents.

    Attributes:
        stretches: The directions.
        pieces: For what is tied, the sums of each piece ``(E, C, P)``; they are part of the sums of
            the statistics.
    """

    stretches: Stretches
    pieces: Mapping[TieKey, Tensor]

    def powers(self, alpha: Tensor) -> Tensor:
        """What each piece is multiplied by, ``(E,)``."""
        low, high = torch.triu_indices(len(alpha), len(alpha))
        return torch.cat([alpha, alpha[low] * alpha[high]])

    def best(self, natural: Mapping[TieKey, Tensor]) -> Tensor | None:
        """The stretches ``(K,)`` that maximise the data's share of the expected log joint.

        None if there is no maximum.
        """
        size = len(self.stretches.names)
        slopes = torch.zeros(self.stretches.pieces, dtype=torch.float64)
        for key, pieces in self.pieces.items():
            if key not in self.stretches.priors:
                slopes = slopes.to(pieces) + (pieces * natural[key]).sum((-1, -2))
        linear, quadratic = slopes[:size], slopes[size:]
        low, high = torch.triu_indices(size, size)
        matrix = quadratic.new_zeros(size, size).index_put((low, high), quadratic)
        factor, failed = torch.linalg.cholesky_ex(-(matrix + matrix.mT))
        if int(failed):
            return None
        return torch.cholesky_solve(linear.unsqueeze(-1), factor).squeeze(-1)
