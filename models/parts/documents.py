"""Counts of words in documents, each document of its own length."""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.models.parts.emissions import Emission, select
from ember.models.parts.priors import HALF_COUNT, Hyperparameters

__all__ = ["Multinomial", "word_emission"]


class Multinomial(dist.Multinomial):
    """Pyro's Multinomial with a length for each row, which its draws keep."""

    def __init__(self, lengths: Tensor, probs: Tensor, validate_args: bool | None = None) -> None:
        self.lengths = lengths
        super().__init__(int(lengths.max()), probs, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Multinomial":
        batch = torch.Size(batch_shape)
        return Multinomial(self.lengths.expand(batch), self.probs.expand(batch + self.event_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw as many words for each row as it is long, and count them."""
        with torch.no_grad():
            batch = torch.broadcast_shapes(self.batch_shape, self.lengths.shape)
            shape = torch.Size(sample_shape) + batch
            words = dist.Categorical(self.probs).expand(shape).sample((self.total_count,))
            words = words.movedim(0, -1)
            kept = torch.arange(self.total_count, device=words.device) < self.lengths.unsqueeze(-1)
            counts = self.probs.new_zeros((*shape, *self.event_shape))
            return counts.scatter_add_(-1, words, kept.to(counts.dtype).expand(words.shape))


def word_emission(
    x: Tensor,
    components: int,
    prior: Hyperparameters,
    plate: pyro.plate,
    default: float = HALF_COUNT,
) -> Emission:
    """Declare `probs` (K, V), the probability of each word, for documents (N, V)."""
    concentration = prior.above("probs", (components, x.shape[1]), default)
    with plate:
        probs = pyro.sample("probs", dist.Dirichlet(concentration))
    return lambda z: Multinomial(x.sum(-1), select(probs, z, 1))
