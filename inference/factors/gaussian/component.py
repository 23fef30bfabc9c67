r"""Connected Gaussian latents with all sites that read them, as one factor.

Given natural parameters, the log density of every pooled event is quadratic in the latents. All of
them together are

.. math:: c + h^\top z - \tfrac12 z^\top P z,

whose integral is the factor; its gradient by natural parameters are the expected statistics.
Discrete latents may choose among natural parameters as long as each has one value for each row of
plates that the component keeps outside: then there is such a form for every value and row
(Lauritzen 1992, *Propagation of probabilities, means and variances in mixed graphical association
models*, JASA 87, 1098-1108: continuous variables are integrated before discrete ones).
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ember.inference.factors.factor import Factor, Scale
from ember.inference.factors.gaussian.expansion import Stretches
from ember.inference.factors.tied import TieKey
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.systems import GaussianSystem

__all__ = ["GaussianComponent", "Moments", "Natural", "Potentials", "factor_of"]


Natural = Mapping[TieKey, Tensor]


@dataclass(frozen=True)
class Potentials:
    """``c + h'z - z'Pz / 2``: constants ``(..., S, R)``, ``h (..., S, n)``, ``P (..., S, nnz)``.

    ``S`` runs over joint values of the discrete latents that the component reads.
    """

    constant: Tensor
    linear: Tensor
    precision: Tensor


@dataclass(frozen=True)
class Moments:
    """The mean ``(n,)`` of all entries, and their covariances on the pattern, ``(nnz,)``."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True, eq=False)
class GaussianComponent(ABC):
    """Gaussian latents that meet in sites, and those sites.

    Attributes:
        factor: Its dims: discrete latents that it reads, and the plates that it keeps outside.
        latents: The latents with the number of entries of each.
        states: The dims of discrete latents, with their sizes.
        rows: The plates kept outside, with their sizes.
        sites: The sites that read the latents, their priors among them, with the dims of the
            discrete latents on which each depends.
    """

    factor: Factor
    latents: Mapping[str, int]
    states: tuple[tuple[str, int], ...]
    rows: tuple[tuple[str, int], ...]
    sites: Mapping[str, tuple[str, ...]]

    @property
    @abstractmethod
    def pattern(self) -> Pattern:
        """Which entries meet."""

    @property
    @abstractmethod
    def system(self) -> GaussianSystem:
        """How they are integrated out."""

    @property
    @abstractmethod
    def row_of_entry(self) -> Tensor:
        """The row of the plates kept outside in which each entry lies, ``(n,)``."""

    @property
    @abstractmethod
    def description(self) -> str:
        """How the latents are integrated, in words."""

    @abstractmethod
    def potentials(self, natural: Natural, pieces: Natural | None = None) -> Potentials:
        """The quadratic form of the latents at every value of the discrete ones.

        Args:
            natural: Natural parameters of all that is tied.
            pieces: Those of the component once more for each piece of its expansion.
        """

    @property
    def count(self) -> int:
        """The number of entries of all latents."""
        return sum(self.latents.values())

    def first(self, latent: str) -> int:
        """The number of the first entry of a latent."""
        names = list(self.latents)
        return sum(self.latents[name] for name in names[: names.index(latent)])

    @property
    def stretches(self) -> Stretches | None:
        """The directions in which its latents may be stretched, if there are any."""
        return None

    def log_prob(self, natural: Natural, pieces: Natural | None = None) -> Tensor:
        """The log evidence of the component's sites, in the dims of its factor."""
        potentials = self.potentials(natural, pieces)
        parts = self.system.log_integral(potentials.linear, potentials.precision)
        return self.in_dims(potentials.constant.index_add(-1, self._row_of_part, parts))

    def expected_log_prob(self, natural: Natural, moments: Moments) -> Tensor:
        """The log density of the component's sites, expected under given moments of the latents."""
        potentials, pattern = self.potentials(natural), self.pattern
        second = moments.covariance + moments.mean[pattern.rows] * moments.mean[pattern.columns]
        row = self.row_of_entry
        total = potentials.constant.index_add(-1, row, potentials.linear * moments.mean)
        squares = -pattern.halves * potentials.precision * second
        return self.in_dims(total.index_add(-1, row[pattern.rows], squares))

    @property
    def is_whole(self) -> bool:
        """Whether it has rows that are alike, of which every column reads each once."""
        return False

    @property
    def is_pooled(self) -> bool:
        """Whether the sum of the log evidence over all rows can be had without them."""
        return False

    def pooled(self, natural: Natural) -> Tensor:
        """The sum of the log evidence over all rows."""
        raise NotImplementedError

    def in_dims(self, total: Tensor) -> Tensor:
        """A tensor ``(..., S, R)`` in the dims of the factor."""
        sizes = [size for _, size in (*self.states, *self.rows) if size > 1]
        return total.reshape([*total.shape[:-2], *sizes])

    @functools.cached_property
    def _row_of_part(self) -> Tensor:
        """The row of every independent part of the system."""
        parts = self.system.components
        rows = self.row_of_entry.new_zeros(int(parts.max()) + 1)
        rows[parts] = self.row_of_entry
        return rows


def factor_of(
    name: str,
    states: Sequence[tuple[str, int]],
    rows: Sequence[tuple[str, int]],
    scale: Scale | None,
) -> Factor:
    """The factor of a component.

    Args:
        name: Of the factor.
        states: The dims of the discrete latents that it reads, with their sizes.
        rows: The plates that it keeps outside, with their sizes.
        scale: The weight of the latents.
    """
    kept = tuple(symbol for symbol, size in (*states, *rows) if size > 1)
    return Factor(name, kept, frozenset(symbol for symbol, _ in rows), scale)
