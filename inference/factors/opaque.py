"""Sites without sufficient statistics: rebuilt from their arguments, or asked of the model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ember.inference.factors.conjugate.potentials import density_potentials
from ember.inference.factors.predictors import NearSite, Predictors
from ember.inference.factors.units.component import UnitComponent
from ember.inference.numerics.tape import Tape, record
from ember.inference.parameters.computed_rows import node_input
from ember.inference.reading.opaque import model_log_prob
from ember.inference.reading.site import Site
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.unwrapping import unwrap

__all__ = ["OpaqueFactors", "OpaquePosterior"]

Params = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class OpaqueFactors:
    """The sites of a model that are no exponential family, priors included.

    Attributes:
        structure: A way to run the model.
        sites: All of them.
        factors: The names of those that are factors, in their order.
        members: Those that are read through their potentials, by the latent with a conjugate prior
            that they belong to.
        dependencies: The parameters that each site reads which only the model can evaluate.
        misread: Sites that are asked of the model although maps seemed to describe them.
        tape: What the model computes for those it is asked, recorded; None if it cannot be.
        nodes: The nodes of latents, by the names that a tape takes them by.
        units: Latents of units at their nodes, which some sites are evaluated at.
    """

    structure: Structure
    sites: Mapping[str, Site]
    factors: tuple[str, ...]
    dependencies: Mapping[str, frozenset[str]]
    misread: frozenset[str]
    tape: Tape | None = None
    members: tuple[str, ...] = ()
    nodes: Mapping[str, Tensor] = field(default_factory=dict)
    units: tuple[UnitComponent, ...] = ()

    def __getstate__(self) -> dict[str, object]:
        """All but what can be made again."""
        return {name: value for name, value in self.__dict__.items() if name != "predictors"}

    def at(
        self, structure: Structure, sites: Mapping[str, Site], nodes: Mapping[str, Tensor]
    ) -> OpaqueFactors:
        """The same with latents at other nodes.

        Args:
            structure: Runs the model at those.
            sites: All sites, as they are there.
            nodes: The nodes, by the names that a tape takes them by.
        """
        moved = {name: sites.get(name, site) for name, site in self.sites.items()}
        return dataclasses.replace(self, structure=structure, sites=moved, nodes=nodes)

    def recorded(self, probes: Sequence[Params]) -> Tape | None:
        """A tape of all that the model is asked, if the probes agree with it."""
        asked = [name for name, site in self.sites.items() if site.density is None]
        if not asked or not probes:
            return None
        nodes = {node_input(name): each.values for name, each in self.structure.nodes.items()}
        first, *others = ({**params, **nodes} for params in probes)
        return record(lambda inputs: self._asked(inputs, asked), first, others[-2:])

    def _asked(self, inputs: Params, names: Sequence[str]) -> dict[str, Tensor]:
        """The log probabilities of some sites, from a run of the model at parameters and nodes."""
        structure = self.structure
        at = structure.at_nodes({n: inputs[node_input(n)] for n in structure.nodes})
        trace = at.trace({n: inputs[n] for n in structure.parameters})
        return {name: self._of_site(name, trace) for name in names}

    @functools.cached_property
    def predictors(self) -> dict[str, Predictors]:
        """Those factors whose arguments are links of lines, by name."""
        start = self.structure.start
        found = {name: Predictors.of(self.sites[name], start) for name in self.factors}
        return {name: each for name, each in found.items() if each is not None}

    def factor_log_probs(
        self, params: Params, among: Container[str] | None = None
    ) -> dict[str, Tensor]:
        """The log probability of each factor, dims of size 1 dropped; the potentials of members.

        And the log densities of sites at the nodes of units, ``(Q, G)``.

        Args:
            params: The parameters.
            among: The factors that are asked for; all unless given.
        """
        factors = [name for name in self.factors if among is None or name in among]
        names = (*factors, *self.members)
        asked = self.log_probs(params, [n for n in names if self.sites[n].density is None])
        out: dict[str, Tensor] = {}
        for name in self.members:
            density = self.sites[name].density
            if density is not None:
                fn = density.distribution(params)
                out[name] = density_potentials(self.sites[name], fn)
            else:
                out[name] = asked[name]
        for name in factors:
            out[name] = _packed(self.sites[name], params, asked.get(name))
        for component in self.units:
            if component.at is not None:
                out |= component.playback.at(params, component.at.values)
        return out

    def log_probs(self, params: Params, names: Sequence[str]) -> dict[str, Tensor]:
        """What only the model knows, log probabilities or potentials: from its tape, or a run."""
        if not names:
            return {}
        if self.tape is not None:
            # Where an operation fails, the model may know better.
            with contextlib.suppress(RuntimeError):
                return self.tape({**params, **self.nodes})
        trace = self.structure.trace(params)
        return {name: self._of_site(name, trace) for name in names}

    def _of_site(self, name: str, trace: Trace) -> Tensor:
        if name not in self.members:
            return model_log_prob(self.sites[name], trace)
        return density_potentials(self.sites[name], unwrap(trace.nodes[name]["fn"]).base)

    def read_by(self, names: Iterable[str]) -> frozenset[str]:
        """The parameters that some of the sites read."""
        found = set[str]()
        for name in names:
            density = self.sites[name].density if name in self.sites else None
            found |= self.dependencies[name] if density is None else density.sources
        return frozenset(found)

    @property
    def asks_the_model(self) -> bool:
        """Whether a factor is evaluated by running the model, or by playing back its tape."""
        names = (*self.factors, *self.members)
        return any(self.sites[name].density is None for name in names) or any(
            component.playback.tape is None for component in self.units
        )


@dataclass(frozen=True, eq=False)
class OpaquePosterior:
    """For one piece of data, the posterior weights of factors without sufficient statistics."""

    factors: OpaqueFactors
    weights: Mapping[str, Tensor]

    def near(self, params: Params) -> tuple[list[NearSite], OpaquePosterior | None]:
        """Those factors that can be had to second order around some parameters, and the others."""
        known = self.factors.predictors
        if not known:
            return [], self
        found = [
            known[name].near(params, functools.partial(_expected, weight))
            for name, weight in self.weights.items()
            if name in known
        ]
        rest = {name: weight for name, weight in self.weights.items() if name not in known}
        return found, OpaquePosterior(self.factors, rest) if rest else None

    def expected_log_prob(self, params: Params) -> Tensor | float:
        """The log probability of all these factors, expected under the weights."""
        log_probs = self.factors.factor_log_probs(params, self.weights)
        total: Tensor | float = 0.0
        for name, weight in self.weights.items():
            total = total + (weight * log_probs[name]).sum()
        return total


def _expected(weight: Tensor, site: Site) -> Tensor:
    """The log probability of a site whose arguments are known, expected under weights."""
    total: Tensor = (weight * _packed(site, {})).sum()
    return total


def _packed(site: Site, params: Params, log_prob: Tensor | None = None) -> Tensor:
    """The log probability of a factor, which may be known, dims of size 1 dropped."""
    if site.density is not None:
        log_prob = site.density.log_prob(params, site.value)
    assert log_prob is not None
    return site.layout.pack(site.weigh(log_prob))[0]
