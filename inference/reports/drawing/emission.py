"""An observed site as a picture sees it: its rows, and what each state says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution

__all__ = ["Emission"]


@dataclass(frozen=True)
class Emission:
    """The data of an observed site beside what its states say of them.

    Attributes:
        site: Name of the site; of steps put together, without their numbers.
        columns: Name of each of its ``D`` columns.
        kind: "real", "counts", "levels" (categories and yes-or-no) or "parts" (of a total).
        values: The data ``(*places, D)``, NaN where missing.
        latent: The latent site that it depends on; None if there is none.
        posterior: Probability of each state, ``(*places, K)``.
        means: Mean of each column in each state, ``(K, *places, D)``; dims of places are 1 where
            all places are alike. Of levels and parts: probabilities ``(K, D, L)``.
        covariances: ``(K, D, D)``; None where places differ.
        weights: How much each row counts, ``(N,)``; None if all count alike.
        base: The distribution of single entries or vectors, its batch dims as in ``axes``.
        axes: For every batch dim of ``base``: "state", "column", "place" or "" (of size 1).
        is_chain: Whether the last place is time.
        labels: What the levels of columns are called, where that is known.
    """

    site: str
    columns: tuple[str, ...]
    kind: str
    values: Tensor
    latent: str | None
    posterior: Tensor
    means: Tensor
    covariances: Tensor | None
    weights: Tensor | None
    base: Distribution
    axes: tuple[str, ...]
    is_chain: bool
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def states(self) -> int:
        return self.posterior.shape[-1]

    @property
    def is_alike(self) -> bool:
        """Whether a state says the same of every row: a mixture, and no regression."""
        return self.covariances is not None or self.kind in ("levels", "parts")

    @property
    def rows(self) -> Tensor:
        """The data as ``(N, D)``."""
        return self.values.reshape(-1, self.values.shape[-1])

    @property
    def row_posterior(self) -> Tensor:
        """Probability of each state for every row, ``(N, K)``."""
        return self.posterior.reshape(-1, self.states)

    @property
    def shares(self) -> Tensor:
        """The share of each state among the rows, ``(K,)``."""
        rows = self.row_posterior
        weights = torch.ones(len(rows)) if self.weights is None else self.weights
        return weights @ rows / weights.sum()
