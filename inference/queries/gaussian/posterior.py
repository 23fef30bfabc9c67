"""What is known of a Gaussian latent given the data: ``fit.posterior("u")``."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.plan.plan import Plan
from ember.inference.queries.entry_table import entry_table
from ember.inference.queries.gaussian.moments import (
    ComponentPosterior,
    check_joint,
    component_of,
    entries_of,
    event_dim,
)
from ember.inference.reading.sequences import members

__all__ = [
    "GaussianPosterior",
    "gaussian_names",
    "gaussian_posterior",
    "lag_covariances",
    "pair_covariances",
]


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """The posterior of a Gaussian latent at the estimates, discrete latents averaged over.

    Attributes:
        name: The latent site, or the common name of its steps.
        mean: The posterior mean, in the shape of the latent, ``(*batch, *event)``; steps of a
            sequence lie along the last dim of the batch.
        covariance: That of each event, ``(*batch, D, D)``; ``(*batch, 1, 1)`` where the latent
            consists of numbers.
        axes: Names along the axes of ``mean``, where they are known.

    Example:
        >>> from ember.inference import EM
        >>> from ember.models import linear_mixed_model
        >>> y = torch.tensor([1.0, 1.2, 0.8, 3.1, 3.0, 2.9, 2.3, 2.2, 1.9])
        >>> group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
        >>> fit = EM(linear_mixed_model, objective="mle").fit(y, groups=group)
        >>> effects = fit.posterior("group_effects")
        >>> [round(value, 3) for value in effects.mean.tolist()]
        [-1.028, 0.941, 0.088]
        >>> effects.covariance.shape
        torch.Size([3, 1, 1])
    """

    name: str
    mean: Tensor
    covariance: Tensor
    _moments: ComponentPosterior = field(repr=False)
    _entries: Tensor = field(repr=False)
    _event_dim: int = field(repr=False)
    axes: Mapping[int, tuple[str, ...]] = field(default_factory=dict, repr=False)

    @property
    def variance(self) -> Tensor:
        """The variance of every entry, in the shape of the latent."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).reshape(self.mean.shape)

    @property
    def stddev(self) -> Tensor:
        """The standard deviation of every entry, in the shape of the latent."""
        return self.variance.clamp_min(0.0).sqrt()

    @property
    def distribution(self) -> Distribution:
        """The same as a Pyro distribution of each event, independent between events.

        A ``Normal``, or a ``MultivariateNormal`` of vectors; beside discrete latents a
        ``MixtureSameFamily`` of them, one for each of their joint values.
        """
        states = len(self._moments.weights)
        if states == 1:
            return _normal(self.mean, self.covariance, self._event_dim)
        one = self._flat[:, 0]
        weights = self._moments.weights[:, self._moments.row_of_entry[one]]
        batch = self.batch_shape
        mean = self._moments.means[:, self._entries].movedim(0, len(batch))
        pairs = self._moments.within(*self._pairs).reshape(states, *self.covariance.shape)
        mixture: Distribution = dist.MixtureSameFamily(
            dist.Categorical(probs=weights.T.reshape(*batch, states), validate_args=False),
            _normal(mean, pairs.movedim(0, len(batch)), self._event_dim),
            validate_args=False,
        )
        return mixture

    def summary(self) -> pd.DataFrame:
        """A row for each entry, with its mean and standard deviation, under the names known."""
        return entry_table(self.name, self.axes, self.mean, self.stddev)

    def joint(self) -> Tensor:
        """The covariance of all entries with all, ``(*shape, *shape)`` of the latent's shape.

        Raises:
            ValueError: If there are more than 5,000 entries; or if, beside discrete latents, there
                are several rows.
        """
        entries = self._entries.reshape(-1)
        check_joint(len(entries), f"'{self.name}'")
        found = _all_pairs(self._moments, entries, entries)
        return found.reshape((*self.mean.shape, *self.mean.shape))

    @functools.cached_property
    def _flat(self) -> Tensor:
        """The numbers of the entries of each event, ``(events, D)``."""
        size = self.covariance.shape[-1]
        return self._entries.reshape(-1, size)

    @property
    def _pairs(self) -> tuple[Tensor, Tensor]:
        return _event_pairs(self._flat)

    @property
    def batch_shape(self) -> torch.Size:
        """The sizes of the plates, and how many steps a sequence has."""
        return self.covariance.shape[:-2]


def gaussian_posterior(
    plan: Plan, params: Mapping[str, Tensor], name: str
) -> GaussianPosterior | None:
    """The posterior of a Gaussian latent; None if there is none of this name."""
    names = gaussian_names(plan, name)
    if not names:
        return None
    component = component_of(plan, names[0])
    assert component is not None
    moments = ComponentPosterior.of(plan, params, component)
    entries, events = entries_of(plan, component, names), event_dim(plan, names)
    batch = entries.shape[: entries.dim() - events]
    flat = entries.reshape(batch.numel(), -1)
    covariance = moments.covariances(*_event_pairs(flat))
    size = flat.shape[-1]
    return GaussianPosterior(
        name, moments.mean[entries], covariance.reshape(*batch, size, size),
        moments, entries, events,
    )  # fmt: skip


def gaussian_names(plan: Plan, name: str) -> list[str]:
    """The Gaussian latent of this name, or the steps of which it is the common name."""
    latents = plan.structure.gaussian
    if name in latents:
        return [name]
    steps = members(name, latents)
    together = {component_of(plan, step) for step in steps}
    alike = {latents[step] for step in steps}
    return steps if len(together) == 1 == len(alike) else []


def lag_covariances(plan: Plan, params: Mapping[str, Tensor], name: str) -> Tensor | None:
    """Covariances of each two neighbouring steps, ``(*batch, T - 1, D, D)``: of ``z_t, z_(t+1)``.

    None if ``name`` is no sequence of Gaussian latents.
    """
    names = gaussian_names(plan, name)
    of_chain = any(chain.latent == name for chain in plan.structure.gaussian_chains)
    if len(names) < 2 and not of_chain:
        return None
    component = component_of(plan, names[0])
    assert component is not None
    moments = ComponentPosterior.of(plan, params, component)
    entries, events = entries_of(plan, component, names), event_dim(plan, names)
    time = entries.dim() - events - 1
    steps = entries.shape[time] - 1
    early, late = entries.narrow(time, 0, steps), entries.narrow(time, 1, steps)
    batch = early.shape[: time + 1]
    one, two = (each.reshape(batch.numel(), -1) for each in (early, late))
    size = one.shape[-1]
    pairs = torch.broadcast_tensors(one.unsqueeze(-1), two.unsqueeze(-2))
    found = moments.covariances(*(each.reshape(-1) for each in pairs))
    return found.reshape(*batch, size, size)


def pair_covariances(plan: Plan, params: Mapping[str, Tensor], names: tuple[str, str]) -> Tensor:
    """Covariances of all entries of two Gaussian latents, ``(*shape of one, *shape of other)``.

    Raises:
        ValueError: If one is no Gaussian latent, or there are more than 5,000 entries.
    """
    components = []
    for name in names:
        component = component_of(plan, name)
        if component is None:
            raise ValueError(
                f"'{name}' is no Gaussian latent of the model; they are "
                f"{list(plan.structure.gaussian)}."
            )
        components.append(component)
    one, other = (
        entries_of(plan, component, [name])
        for component, name in zip(components, names, strict=True)
    )
    check_joint(max(one.numel(), other.numel()), f"'{names[0]}' and '{names[1]}'")
    if components[0] is not components[1]:
        if len(plan.latent_symbols):
            raise ValueError(
                f"Gaussian latents '{names[0]}' and '{names[1]}' meet in no site, and discrete "
                "latents may tie them; their covariances are not known: ask for each by itself."
            )
        return torch.zeros((*one.shape, *other.shape))
    moments = ComponentPosterior.of(plan, params, components[0])
    found = _all_pairs(moments, one.reshape(-1), other.reshape(-1))
    return found.reshape((*one.shape, *other.shape))


def _all_pairs(moments: ComponentPosterior, one: Tensor, other: Tensor) -> Tensor:
    pairs = torch.broadcast_tensors(one.unsqueeze(-1), other)
    return moments.covariances(*(each.reshape(-1) for each in pairs))


def _event_pairs(flat: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of entries within each event, for entries ``(events, D)``."""
    one, other = torch.broadcast_tensors(flat.unsqueeze(-1), flat.unsqueeze(-2))
    return one.reshape(-1), other.reshape(-1)


def _normal(mean: Tensor, covariance: Tensor, event: int) -> Distribution:
    """Normal distributions, of vectors if they have an event dim."""
    if not event:
        scale = covariance.clamp_min(0.0).sqrt().reshape(mean.shape)
        return dist.Normal(mean, scale, validate_args=False)
    flat = mean.reshape(*covariance.shape[:-1])
    return dist.MultivariateNormal(flat, covariance, validate_args=False)
