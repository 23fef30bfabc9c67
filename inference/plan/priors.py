"""The priors of the parameters: their log density, and each as an observation of its own."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from ember.inference.factors.exponential import statistics_of
from ember.inference.factors.opaque import OpaqueFactors
from ember.inference.factors.tied import TiedFactors
from ember.inference.numerics.shapes import append_dims, broadcast_shapes, prepend_dims
from ember.inference.parameters import jacobians
from ember.inference.parameters.batching import Shapes
from ember.inference.parameters.portable import packed, unpacked
from ember.inference.plan.tying import cells_of, tie_of_site
from ember.inference.reading.site import NamedDims, Site

__all__ = ["Prior", "PriorSite"]

Params = Mapping[str, Tensor]


@dataclass(frozen=True)
class PriorSite:
    """The prior of one parameter: a site whose value is the parameter itself."""

    site: Site
    scale: Tensor
    tied: TiedFactors | None

    def batched(self, shapes: Shapes, count: int) -> "PriorSite":
        """The prior of several values, along a leading dim; its distribution is plain."""
        site, layout = self.site, self.site.layout
        rank = len(layout.outer) + layout.inner
        assert site.density is not None
        site = dataclasses.replace(
            site,
            layout=NamedDims(("", *layout.outer), layout.inner),
            form=None if site.form is None else site.form.batched(shapes, rank, count),
            density=site.density.batched(shapes, rank, count),
        )
        return PriorSite(site, self.scale, None if self.tied is None else tie_of_site(site))

    def weighed(self, log_prob: Tensor) -> Tensor:
        """A log density over the batch dims, times how often each entry counts."""
        return log_prob if self._counts_once else log_prob * self.scale

    @functools.cached_property
    def has_own_cells(self) -> bool:
        """Whether the entries are the cells, in their order, and each counts once."""
        site, tied, form = self.site, self.tied, self.site.form
        if tied is None or form is None or site.mask is not None or not self._counts_once:
            return False
        rows = site.value.shape[: site.value.dim() - form.event_dim]
        every = torch.arange(len(tied.cells), device=self.cells.device)
        return self.cells.shape == rows and torch.equal(self.cells.reshape(-1), every)

    @functools.cached_property
    def _counts_once(self) -> bool:
        return not self.scale.dim() and float(self.scale) == 1.0

    @functools.cached_property
    def cells(self) -> Tensor:
        """The cell of every entry, over all batch dims."""
        layout = self.site.layout
        return prepend_dims(cells_of(self.site), len(layout.outer) + layout.inner)


@dataclass(frozen=True, eq=False)
class Prior:
    """The log prior density that counts in the objective; empty for maximum likelihood.

    Attributes:
        sites: The prior of each parameter.
        supports: The support of each of them.
        held: The log density of parameters held by ``pyro.condition``, a constant.
        unconstrained: Whether it is that of Pyro's unconstrained coordinates, Jacobian included.
        opaque: Asks the model for priors that no map describes; None if there are none.
        starts: For how many parameter values at once, along a leading dim; None for one, without.
    """

    sites: dict[str, PriorSite]
    supports: dict[str, Constraint]
    held: float = 0.0
    unconstrained: bool = False
    opaque: OpaqueFactors | None = None
    starts: int | None = None

    def log_prob(self, params: Params) -> Tensor:
        """The log prior density of the parameter sites; zero for maximum likelihood."""
        total: Tensor | float = self.held
        asked = {} if self.opaque is None else self.opaque.log_probs(params, self._asked)
        for name, prior in self.sites.items():
            if prior.site.density is not None:
                log_prob = prior.site.density.log_prob(params, params[name], has_gaps=False)
            else:
                log_prob = asked[name]
            total = total + self._summed(prior.weighed(log_prob))
        if self.unconstrained:
            for name, support in self.supports.items():
                total = total + self._summed(jacobians.log_jacobian(support, params[name]))
        if not isinstance(total, Tensor):
            total = torch.tensor(total, dtype=torch.float64)
        return total if self.starts is None else total.expand(self.starts)

    def _summed(self, value: Tensor) -> Tensor:
        """A log density summed over all dims but that of the starts."""
        if not value.dim():
            return value
        if self.starts is None:
            return value.sum()
        return value.reshape(self.starts, -1).sum(1)

    @property
    def _asked(self) -> list[str]:
        return [name for name, prior in self.sites.items() if prior.site.density is None]

    def batched(self, shapes: Shapes, count: int) -> "Prior":
        """The prior of several values of every parameter."""
        sites = {name: site.batched(shapes, count) for name, site in self.sites.items()}
        return dataclasses.replace(self, sites=sites, starts=count)

    def statistics(self, name: str, params: Params) -> tuple[TiedFactors, Tensor]:
        """Statistics of a parameter seen as an observation of its own prior.

        Those of a normal prior are taken about its present location.
        """
        prior = self.sites[name]
        tied, form = prior.tied, prior.site.form
        assert tied is not None
        assert form is not None
        cells, reference = prior.cells, params[name].new_zeros(())
        if form.centred is not None:
            locations = tied.locations(params)
            tied = tied.centred(locations)
            if prior.has_own_cells:
                reference = locations.reshape((*cells.shape, *locations.shape[1:]))
            else:
                reference = locations[cells]
        if prior.has_own_cells:
            statistics, _ = form.statistics(params[name], reference)
            return tied, statistics.reshape(len(tied.cells), -1)
        statistics, _ = statistics_of(prior.site, params[name], reference)
        statistics = statistics * append_dims(prior.scale, len(prior.site.inner_shape) + 1)
        cells = prepend_dims(cells, statistics.dim() - 1)
        shape = broadcast_shapes(cells.shape, statistics.shape[:-1])
        rows = statistics.expand(*shape, -1).reshape(-1, statistics.shape[-1])
        total = statistics.new_zeros((len(tied.cells), statistics.shape[-1]))
        return tied, total.index_add_(0, cells.expand(shape).reshape(-1), rows)

    def __getstate__(self) -> dict[str, Any]:
        supports = {name: packed(support) for name, support in self.supports.items()}
        return {**self.__dict__, "supports": supports}

    def __setstate__(self, state: dict[str, Any]) -> None:
        supports = {name: unpacked(support) for name, support in state["supports"].items()}
        self.__dict__.update(state, supports=supports)
