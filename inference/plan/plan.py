"""The plan: a model for one shape of data, reduced to arithmetic on tensors.

    params --gather--> arguments --eta--> factors --contract--> log evidence
      ^                                                              |
      +-- maximise -- pooled statistics <-- scatter -- gradient <----+

A plan is data: what ``building.py`` has read off the model, and nothing that depends on parameter
values. The E-step (``expectation/``) and the M-step (``maximisation/``) are compiled from it. Pyro
is needed to make a plan, not to use it; only sites whose arguments are computed in a way that no
map describes are asked of the model again.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ember.inference.factors.chain import Chain
from ember.inference.factors.conjugate.component import ConjugateComponent
from ember.inference.factors.factor import CompiledFactor, Factor, Scale
from ember.inference.factors.gaussian.component import GaussianComponent
from ember.inference.factors.opaque import OpaqueFactors
from ember.inference.factors.residuals.choice import ResidualFactors
from ember.inference.factors.superposed import SuperposedFactor
from ember.inference.factors.tied import SiteCells, TiedFactors, TieKey
from ember.inference.factors.units.component import UnitComponent
from ember.inference.numerics.memo import Memo
from ember.inference.plan.priors import Prior, PriorSite
from ember.inference.reading.checks.misreading import misread_sites
from ember.inference.reading.site import Site
from ember.inference.reading.structure import Structure

__all__ = ["Near", "Params", "Plan"]

Params = Mapping[str, Tensor]


@dataclass(frozen=True)
class Near:
    """Parameters near the data, of which any will do: what was found at the first is kept."""

    params: Params = field(compare=False)


@dataclass(frozen=True, eq=False)
class Plan(Memo):
    """The maps of one model and one shape of data; ``build_plan`` makes it.

    Attributes:
        structure: The roles of the model's sites, and a way to run the model again.
        objective: "map" or "mle".
        sites: The latent and observed sites.
        factors: The log potential of each, dims named, in one order.
        compiled: For a site in exponential-family form its tied factors, and the compiled factor.
        tied: The sites that read the same entries of parameters, pooled.
        prior: The prior of the parameters.
        opaque: The sites without sufficient statistics.
        components: Gaussian latents with the sites that read them, measured from their origins.
        origins: What each entry of a Gaussian latent is measured from, where that is not zero.
        conjugate: Latents with conjugate priors, each with the sites that read it.
        units: Latents that are integrated unit by unit, with the sites that read them.
        ties: What each site in exponential-family form is tied to.
        residuals: Normal sites by their residuals, for where sufficient statistics lose digits.
        sizes: The size of every dim.
        latent_symbols: The dim of each latent site.
        scales: The weights of each site by ``poutine.scale``.
        chains: The hidden Markov chains by their latent site.
        row: The dim of the rows; None if the data have none.
        plate_names: The name of the plate of each dim.
        starting_eta: For each of the tied factors with gaps, natural parameters by which a start
            completes its rows.
        idle: Latents of which some entries are left out, because nothing depends on them.
        node_cells: For each latent on nodes in exponential-family form, the cells of its entries.
        reached: The parameters that each site's arguments depend on by the gradient; None if the
            model has none at random parameters.
        starts: How many values of every parameter it is for, along a leading dim if several.
    """

    structure: Structure
    objective: str
    sites: dict[str, Site]
    factors: tuple[Factor, ...]
    compiled: dict[str, tuple[TieKey, CompiledFactor]]
    tied: dict[TieKey, TiedFactors]
    prior: Prior
    opaque: OpaqueFactors
    components: tuple[GaussianComponent, ...]
    origins: dict[str, Tensor]
    conjugate: tuple[ConjugateComponent, ...]
    units: tuple[UnitComponent, ...]
    ties: dict[str, TieKey]
    residuals: ResidualFactors
    sizes: dict[str, int]
    latent_symbols: dict[str, str]
    scales: dict[str, Scale | None]
    chains: dict[str, Chain]
    row: str | None
    plate_names: dict[str, str]
    starting_eta: dict[TieKey, Tensor]
    idle: frozenset[str]
    node_cells: dict[str, SiteCells] = field(default_factory=dict)
    reached: Mapping[str, frozenset[str]] | None = None
    starts: int = 1

    def batched(self, count: int) -> "Plan":
        """For ``count`` values of every parameter, along a leading dim: maps and priors only."""
        parameters = self.structure.parameters
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        several = {name: parameter.batched(count) for name, parameter in parameters.items()}
        return dataclasses.replace(
            self,
            structure=dataclasses.replace(self.structure, parameters=several),
            tied={key: tied.batched(shapes, count) for key, tied in self.tied.items()},
            prior=self.prior.batched(shapes, count),
            starts=count,
        )

    @property
    def priors(self) -> dict[str, PriorSite]:
        """The prior of each parameter that counts in the objective."""
        return self.prior.sites

    @property
    def unconstrained(self) -> bool:
        """Whether the mode is taken in Pyro's unconstrained coordinates."""
        return self.prior.unconstrained

    @property
    def has_gaps(self) -> bool:
        """Whether rows of a multivariate normal are observed in part: a latent in all but name."""
        return bool(self.starting_eta)

    @property
    def is_incomplete(self) -> bool:
        """Whether something is latent: sites, parts of rows, or counts seen only in sums."""
        latent = bool(self.structure.latent or self.components or self.conjugate or self.units)
        return latent or self.has_gaps or bool(self.superposed_parameters())

    @property
    def on_nodes(self) -> frozenset[str]:
        """The continuous latents, which are integrated on nodes."""
        return frozenset(self.structure.nodes)

    @property
    def of_units(self) -> frozenset[str]:
        """The continuous latents that are integrated unit by unit."""
        return frozenset(self.structure.units)

    @property
    def discrete_latents(self) -> tuple[str, ...]:
        """The latents that are summed over."""
        return tuple(name for name in self.structure.latent if name not in self.structure.nodes)

    def superposed_parameters(self) -> frozenset[str]:
        """Parameters that feed the rate of a superposition."""
        factors = [factor for _, factor in self.compiled.values()]
        found = [f.rate.sources for f in factors if isinstance(f, SuperposedFactor)]
        return frozenset(name for sources in found for name in sources)

    def is_computed(self, name: str) -> bool:
        """Whether a site's arguments are computed at each node of a latent."""
        form = self.sites[name].form if name in self.sites else None
        return form is not None and form.is_computed

    def site(self, name: str) -> Site:
        """A latent, observed or parameter site."""
        return self.sites[name] if name in self.sites else self.priors[name].site

    def factor_and_prior_names(self) -> list[str]:
        """All sites that have a density in the objective."""
        return [*self.sites, *self.priors]

    def opaque_sites(self) -> list[str]:
        """Sites without sufficient statistics: their parameters have no closed form."""
        factors = [
            name
            for name, site in self.sites.items()
            if name not in self.compiled and (site.is_plain or site.form is None)
        ]
        return factors + [name for name, prior in self.priors.items() if prior.tied is None]

    def dependencies(self, name: str) -> frozenset[str]:
        """Parameters that a site reads (a parameter's own prior aside)."""
        template, form = self.site(name).density, self.site(name).form
        if template is None and form is not None:
            return frozenset(source for p in form.parameters for source in p.sources)
        return self.opaque.dependencies[name] if template is None else template.sources

    def misread_sites(self, params: Params) -> list[str]:
        """Sites whose maps do not hold at ``params``, where the model is asked once more."""
        priors = {name: prior.site for name, prior in self.priors.items()}
        played = [name for component in self.units for name in component.misplayed(params)]
        return misread_sites(self.structure, {**self.sites, **priors}, params) + played

    def row_plate(self) -> tuple[str, int] | None:
        """Name and size of the plate of rows."""
        return None if self.row is None else (self.plate_names[self.row], self.sizes[self.row])

    def places(self, name: str) -> tuple[str, ...]:
        """The dims in which a latent has a value each: its plates, and the steps of a chain."""
        site = self.sites[name]
        time = {self.chains[name].time} if name in self.chains else set()
        return tuple(s for s in site.layout.outer if s in site.plates | time)

    def latents(self) -> dict[str, tuple[str, Scale | None]]:
        """The site and the scale of every dim that is summed over."""
        found = {s: (name, self.scales[name]) for name, s in self.latent_symbols.items()}
        found.update({c.previous: found[c.state] for c in self.chains.values()})
        return found
