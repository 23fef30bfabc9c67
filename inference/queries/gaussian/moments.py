r"""The posterior of a Gaussian component at given parameters.

At each joint value :math:`s` of the discrete latents that the component reads, its latents are
Gaussian with mean :math:`m_s` and covariance :math:`C_s`; with :math:`w_s` the posterior
probability of that value,

.. math:: E[z] = \sum_s w_s m_s, \qquad
          \mathrm{Cov}(z) = \sum_s w_s \bigl(C_s + (m_s - E[z]) (m_s - E[z])^\top\bigr).
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation.posterior import expectations
from ember.inference.factors.factor import Factor
from ember.inference.factors.gaussian.component import GaussianComponent, Potentials
from ember.inference.numerics.gaussian.system import LARGEST_DENSE
from ember.inference.plan.plan import Plan
from ember.inference.plan.potentials import natural_parameters, values_of

__all__ = ["ComponentPosterior", "check_joint", "component_of", "entries_of"]


@dataclass(frozen=True)
class ComponentPosterior:
    """A component's posterior.

    Attributes:
        component: The component; its latents' entries are laid end to end.
        potentials: Its quadratic form at each of the ``S`` joint values of discrete latents.
        weights: The posterior probability of each of them in every row of the component's plates,
            ``(S, R)``.
        origin: What the quadratic form measures each entry from, ``(n,)``.
    """

    component: GaussianComponent
    potentials: Potentials
    weights: Tensor
    origin: Tensor

    @staticmethod
    def of(
        plan: Plan, params: Mapping[str, Tensor], component: GaussianComponent
    ) -> "ComponentPosterior":
        """The posterior at ``params``."""
        with torch.no_grad():
            potentials = component.potentials(natural_parameters(plan, values_of(plan, params)))
        states = torch.Size([size for _, size in component.states]).numel()
        rows = torch.Size([size for _, size in component.rows]).numel()
        zeros = {name: torch.zeros(count) for name, count in component.latents.items()}
        origin = torch.cat([plan.origins.get(name, zero) for name, zero in zeros.items()])
        if states == 1:
            return ComponentPosterior(component, potentials, torch.ones((1, rows)), origin)
        dims = tuple(symbol for symbol, _ in (*component.states, *component.rows))
        plates = frozenset(symbol for symbol, _ in component.rows)
        probe = Factor(component.factor.name, dims, plates, component.factor.scale)
        (weights,) = expectations(plan, params, [probe])
        return ComponentPosterior(component, potentials, weights.reshape(states, rows), origin)

    @functools.cached_property
    def means(self) -> Tensor:
        """``E[z | s]`` of every entry at each joint value, ``(S, n)``."""
        return self._moments[0] + self.origin

    @property
    def row_of_entry(self) -> Tensor:
        """The row of the component's plates in which each entry lies, ``(n,)``."""
        return self.component.row_of_entry

    @functools.cached_property
    def mean(self) -> Tensor:
        """``E[z]`` of every entry, ``(n,)``."""
        return (self.weights[:, self.row_of_entry] * self.means).sum(0)

    def within(self, one: Tensor, other: Tensor) -> Tensor:
        """Covariances of pairs of entries at each joint value, ``(S, pairs)``.

        Args:
            one: Numbers of entries, flat.
            other: As many.

        Raises:
            ValueError: If they take a dense inverse of more than 5,000 entries.
        """
        system = self.component.system
        places = system.pattern.find(one, other)
        if bool((places >= 0).all()):
            return self._moments[1].expand(len(self.means), -1)[:, places]
        out = self.means.new_zeros(len(self.means), len(one))
        meet = (system.components[one] == system.components[other]).nonzero().squeeze(-1)
        if len(meet):
            linear, precision = self.potentials.linear, self.potentials.precision
            out[:, meet] = system.pairs(linear, precision, one[meet], other[meet])
        return out

    def covariances(self, one: Tensor, other: Tensor) -> Tensor:
        """Covariances of pairs of entries, ``(pairs,)``; discrete latents are averaged over.

        Raises:
            ValueError: If there are discrete latents and a pair lies in two rows.
        """
        rows = self.row_of_entry[one]
        if len(self.weights) > 1 and bool((rows != self.row_of_entry[other]).any()):
            raise ValueError(
                f"covariances of Gaussian latent {self.component.factor.name} between rows are not "
                "known beside discrete latents; ask for those within a row."
            )
        apart = self.means - self.mean
        pairs = self.within(one, other) + apart[:, one] * apart[:, other]
        return (self.weights[:, rows] * pairs).sum(0)

    def draw(self, states: Tensor) -> Tensor:
        """A draw of all entries for each draw of the joint values, ``(draws, R)`` of them."""
        chosen = states[:, self.row_of_entry]  # (draws, n)
        drawn = torch.empty(chosen.shape, dtype=self.means.dtype)
        system, linear, precision = (
            self.component.system, self.potentials.linear, self.potentials.precision,
        )  # fmt: skip
        for s in range(len(self.weights)):
            draws = (chosen == s).any(-1).nonzero().squeeze(-1)
            if len(draws):
                noise = torch.randn(len(draws), chosen.shape[-1], dtype=self.means.dtype)
                found = system.sample(linear[s], precision[s], noise)
                drawn[draws] = torch.where(chosen[draws] == s, found, drawn[draws])
        return drawn + self.origin

    @functools.cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        return self.component.system.moments(self.potentials.linear, self.potentials.precision)


def component_of(plan: Plan, name: str) -> GaussianComponent | None:
    """The component of a Gaussian latent; None if ``name`` is none."""
    return next((each for each in plan.components if name in each.latents), None)


def entries_of(plan: Plan, component: GaussianComponent, names: Sequence[str]) -> Tensor:
    """The numbers of the entries of a latent, in its shape ``(*batch, *event)``.

    Those of several steps of a sequence lie along a dim between the two, ``(*batch, T, *event)``.
    """
    each = []
    for name in names:
        first, count = component.first(name), component.latents[name]
        shape = plan.sites[name].value.shape
        each.append(torch.arange(first, first + count).reshape(shape))
    return each[0] if len(each) == 1 else torch.stack(each, each[0].dim() - event_dim(plan, names))


def event_dim(plan: Plan, names: Sequence[str]) -> int:
    """How many dims the event of a Gaussian latent has."""
    return plan.sites[names[0]].event_dim


def check_joint(entries: int, what: str) -> None:
    """Refuses the covariances of all entries with all where there are too many of them.

    Raises:
        ValueError: Beyond 5,000 entries.
    """
    if entries > LARGEST_DENSE:
        raise ValueError(
            f"the joint covariance of {what} has {entries:,} rows, and no more than "
            f"{LARGEST_DENSE:,} are made; ask for .covariance, which is that of each event."
        )
