"""What is asked of the posterior of a parameter; see ``posteriors.py`` for those there are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import constraints, kl_divergence

from ember.inference.families.kinds import Kind
from ember.inference.families.links import IDENTITY, Link
from ember.inference.numerics.distribution import Distribution
from ember.inference.parameters.argument_map import rows_of
from ember.inference.parameters.parameter import Parameter

__all__ = ["Coefficients", "Params", "Posterior", "PosteriorOf"]

Params = Mapping[str, Tensor]
Coefficients = list[Tensor]


@dataclass(frozen=True, eq=False)
class Posterior(ABC):
    """The posterior of one parameter.

    Attributes:
        parameter: The parameter of the model.
        kind: Its kind.
        link: How it becomes the parameter of a family.
    """

    parameter: Parameter
    kind: Kind
    link: Link = IDENTITY
    size: ClassVar[str]
    """What the entry beside the mean is called."""
    family: ClassVar[str]
    """How tables call it."""

    @property
    def description(self) -> str:
        """What takes the place of a point."""
        return f"{self.family} posterior"

    @property
    def name(self) -> str:
        """The site."""
        return self.parameter.name

    @property
    def key(self) -> str:
        """Under which name the entry beside the mean is held."""
        return f"{self.name}|{self.size}"

    @property
    def batch(self) -> Size:
        """The shape of the rows."""
        shape = self.parameter.shape
        return shape[: len(shape) - self.kind.event_dim]

    @property
    def beside(self) -> Parameter:
        """The entry beside the mean, as a parameter."""
        start = self.parameter.start.new_ones(self._size_shape)
        return Parameter(self.key, self._size_support, self._size_shape, (), False, start)

    @property
    def _size_shape(self) -> Size:
        return self.batch

    @property
    def _size_support(self) -> constraints.Constraint:
        return constraints.positive

    def mean_rows(self, params: Params) -> Tensor:
        """The expected value of the family's parameter, a row each."""
        return self.link.forward(rows_of(params[self.name], self.kind.event_dim))

    def _held(self, mean: Tensor, size: Tensor) -> dict[str, Tensor]:
        """The rows of both entries, as they are held."""
        value = self.link.inverse(mean).reshape(self.parameter.shape)
        return {self.name: value, self.key: size.reshape(self._size_shape)}

    @abstractmethod
    def of(self, coefficients: Coefficients) -> dict[str, Tensor]:
        """Both entries from the coefficients of every row."""

    @abstractmethod
    def corrections(self, params: Params) -> Tensor:
        """What expected natural parameters differ by from those at the mean, ``(R, M)``.

        What the columns are is known to ``expected_factors.py``.
        """

    @abstractmethod
    def divergence(self, params: Params, prior: Coefficients) -> Tensor:
        """The Kullback-Leibler divergence from the prior with these coefficients, summed."""

    @abstractmethod
    def distribution(self, params: Params) -> Distribution:
        """The posterior of the family's parameter, in the shape of the model's."""

    def of_site(self, params: Params) -> Distribution:
        """The posterior of the model's parameter."""
        return self.distribution(params)


@dataclass(frozen=True, eq=False)
class PosteriorOf(Posterior):
    """A posterior that is independent of those of the other parameters."""

    @abstractmethod
    def at(self, coefficients: Coefficients) -> Distribution:
        """The density with coefficients of shape ``(*batch, ...)``."""

    @abstractmethod
    def coefficients(self, params: Params) -> Coefficients:
        """Those of the posterior, ``(*batch, ...)``."""

    def distribution(self, params: Params) -> Distribution:
        return self.at(self.coefficients(params))

    def divergence(self, params: Params, prior: Coefficients) -> Tensor:
        own, other = self.distribution(params), self.at(prior)
        assert isinstance(own, torch.distributions.Distribution)
        assert isinstance(other, torch.distributions.Distribution)
        between: Tensor = kl_divergence(own, other)
        return between.expand(self._divergences).sum()

    @property
    def _divergences(self) -> Size:
        return self.batch
