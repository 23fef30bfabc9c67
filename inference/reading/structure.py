"""What a model has turned out to be: the role of every site, its plates; and how to run it again.

*observed* sites have data, *latent* sites are integrated in the E-step, *parameter* sites are
maximised in the M-step. By default discrete unobserved sites are latent (as under Pyro's
``config_enumerate``); continuous unobserved sites and ``pyro.param`` statements are parameters,
unless they are integrated: exactly, as Gaussian latents or by conjugate priors, or on nodes.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pyro
import torch
from pyro import poutine, validation_enabled
from torch import Size, Tensor

from ember.inference.inputs.arguments import Arguments, Model
from ember.inference.parameters.parameter import Parameter
from ember.inference.reading.composite_draws import hidden_draws
from ember.inference.reading.composites import Composite, open_composites
from ember.inference.reading.known_factors import Remembered
from ember.inference.reading.loops.loop import Family, Loop
from ember.inference.reading.loops.stacking import stack_loops
from ember.inference.reading.model_errors import plain_errors
from ember.inference.reading.modes import Modes
from ember.inference.reading.nodes import Nodes
from ember.inference.reading.partly_observed import Partly
from ember.inference.reading.runs import At
from ember.inference.reading.trace import Trace, plates_of, record, record_enumerated
from ember.inference.reading.units.latents import UnitLatent

__all__ = ["SiteSignature", "Structure", "signature_of"]


class SiteSignature(NamedTuple):
    """What must not change of a site between runs of one model."""

    name: str
    type: str
    family: str
    shape: tuple[int, ...]
    plates: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Structure:
    """The roles of a model's sites for one shape of data, and a way to run the model again.

    ``gaussian`` holds the Gaussian latents with the shapes of their values, ``conjugate`` those
    with conjugate priors, with values that change nothing; ``found`` those of them that no mark
    asks for, with the reason why they are latent. ``nodes`` holds the latents on nodes, which are
    among those of ``latent``; ``units`` those that are integrated unit by unit. ``of_rows`` are
    computed values that belong to the rows at hand, where these stand for others.
    """

    model: Model
    arguments: Arguments
    parameters: dict[str, Parameter]
    latent: tuple[str, ...]
    observed: tuple[str, ...]
    nesting: int
    plates: dict[str, tuple[str, ...]]
    steps: frozenset[str] = frozenset()
    composites: tuple[Composite, ...] = ()
    held: tuple[str, ...] = ()
    loops: tuple[Loop, ...] = ()
    partly: Partly = field(default_factory=Partly)
    gaussian: Mapping[str, Size] = field(default_factory=dict)
    conjugate: Mapping[str, Tensor] = field(default_factory=dict)
    found: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, Nodes] = field(default_factory=dict)
    units: Mapping[str, UnitLatent] = field(default_factory=dict)
    signature: tuple[SiteSignature, ...] = field(repr=False, default=())
    remembered: Remembered = field(repr=False, compare=False, default_factory=Remembered)
    modes: Modes = field(default_factory=Modes)
    of_rows: frozenset[str] = frozenset()

    @property
    def factor_names(self) -> tuple[str, ...]:
        """Names of the latent and observed sites, in the model's order."""
        integrated = {*self.latent, *self.gaussian, *self.conjugate, *self.units}
        wanted = {*integrated, *self.observed, *(c.initial for c in self.chains)}
        return tuple(name for name in self.plates if name in wanted)

    @property
    def start(self) -> dict[str, Tensor]:
        """Where the parameters start: values at which the model can be run."""
        return {name: parameter.start for name, parameter in self.parameters.items()}

    @property
    def origins(self) -> dict[str, Tensor]:
        """The continuous latents, with the values at which the model is read."""
        zeros = {name: torch.zeros(shape) for name, shape in self.gaussian.items()}
        units = {name: latent.origin for name, latent in self.units.items()}
        return {**zeros, **self.conjugate, **units}

    @property
    def chains(self) -> tuple[Composite | Loop, ...]:
        """The hidden Markov chains of discrete states, however the model writes them."""
        summed = (c for c in self.composites if c.steps is not None and not c.gaussian)
        return (*summed, *self.loops)

    @property
    def gaussian_chains(self) -> tuple[Composite, ...]:
        """The chains of Gaussian states that a distribution hides."""
        return tuple(c for c in self.composites if c.gaussian)

    @property
    def shown_gaussian(self) -> list[str]:
        """The Gaussian latents that the model names, first states of hidden chains aside."""
        starts = {c.initial for c in self.gaussian_chains}
        return [name for name in self.gaussian if name not in starts]

    @property
    def plain_factors(self) -> list[str]:
        """Names of the factors that are sites of the model as it is written."""
        parts = {name for c in self.composites for name in (c.site, c.latent, c.initial)}
        for loop in self.loops:
            parts |= {loop.initial, *(family.name for family in loop.families)}
        return [name for name in self.factor_names if name not in parts]

    @property
    def enumerated(self) -> list[str]:
        """Names of the latent sites that Pyro enumerates."""
        return [name for name in self.plain_factors if name in self.latent]

    @property
    def wishes(self) -> dict[str, object]:
        """The wishes by which continuous sites get their roles again when the model is read anew.

        They hold whatever is found of the sites in other data.
        """
        parameters = (name for name, p in self.parameters.items() if p.has_prior)
        return {
            **dict.fromkeys(self.shown_gaussian, "gaussian"),
            **dict.fromkeys(self.conjugate, "conjugate"),
            **{name: nodes.rule for name, nodes in self.nodes.items()},
            **{name: latent.rule for name, latent in self.units.items()},
            **dict.fromkeys(parameters),
        }

    def family(self, name: str) -> Family | None:
        """The sites of a loop that a latent or observed site is made of, if it is."""
        families = (family for loop in self.loops for family in loop.families)
        return next((family for family in families if family.name == name), None)

    def is_channel(self, name: str) -> bool:
        """Whether an observed site only says what a latent is; see ``partly_observed.py``."""
        return any(site in self.partly.channels for site in self.own_names(name))

    def own_names(self, name: str) -> tuple[str, ...]:
        """A latent or observed site as the model calls it: a loop's has a name at each step."""
        family = self.family(name)
        return (name,) if family is None else family.names

    @property
    def _values(self) -> dict[str, Tensor]:
        """The values of each latent on nodes."""
        return {name: nodes.values for name, nodes in self.nodes.items()}

    def at_nodes(self, values: Mapping[str, Tensor]) -> "Structure":
        """The same with latents at other nodes."""
        moved = {n: dataclasses.replace(self.nodes[n], values=v) for n, v in values.items()}
        return dataclasses.replace(self, nodes={**self.nodes, **moved})

    def with_arguments(self, arguments: Arguments) -> "Structure":
        """The same roles for other arguments, of which nothing is known yet."""
        return dataclasses.replace(self, arguments=arguments, signature=(), remembered=Remembered())

    def single(self, params: Mapping[str, Tensor], first: int) -> tuple[Trace, dict[str, int]]:
        """Runs the model at ``params`` with one value for each latent site, as numbered."""
        at = At(
            params,
            fix_latents=True,
            first=first,
            partly=self.partly,
            integrated=self.origins,
            nodes=self._values,
        )
        with validation_enabled(False), at, self.modes(self.remembered):
            return record(self.model, self.arguments), at.chosen

    def trace(
        self,
        params: Mapping[str, Tensor],
        given: Mapping[str, Tensor] | None = None,
        validated: bool = False,
    ) -> Trace:
        """Runs the model at ``params`` with every latent site enumerated, dims named.

        Args:
            params: The parameters.
            given: Other values for some observed sites.
            validated: Whether the model checks its arguments, and Pyro those of distributions. The
                first, plain run has done so; others of the same data need not.
        """
        with (
            validation_enabled(validated),
            plain_errors(self.model),
            poutine.enum(first_available_dim=-self.nesting - 1),
            At(
                params,
                given=given or {},
                partly=self.partly,
                integrated=self.origins,
                nodes=self._values,
            ),
            self.modes(self.remembered),
        ):
            trace = record_enumerated(self.model, self.arguments)
        self.partly.merge(trace)
        self.partly.check_leaves(trace)
        open_composites(trace, list(self.composites))
        if self.signature and signature_of(trace) != self.signature:
            raise ValueError(_structure_changed(self.signature, signature_of(trace)))
        stack_loops(trace, self.loops, self.nesting)
        return trace

    def run(self, params: Mapping[str, Tensor]) -> Trace:
        """Runs the model plainly at ``params``, every latent site at its first value."""
        at = At(params, fix_latents=True, integrated=self.origins)
        with validation_enabled(False), at, self.modes(self.remembered):
            return record(self.model, self.arguments)

    @property
    def can_be_copied(self) -> bool:
        """Whether many data sets can be drawn in one run, side by side.

        Values of discrete latents may have dims left of all plates: so they are enumerated.
        """
        continuous = self.gaussian or self.conjugate or self.nodes or self.units
        parts = self.partly.whole or self.partly.data or self.partly.missing or self.partly.given
        return bool(self.latent) and not (continuous or parts or self.composites)

    def simulate(
        self,
        params: Mapping[str, Tensor],
        copies: int = 0,
        drawn: Mapping[str, Tensor] | None = None,
    ) -> Trace:
        """Draws latent and observed sites from the model at ``params``.

        Args:
            params: The parameters.
            copies: How many data sets to draw side by side, in a dim left of all plates; 0 for one
                without such a dim.
            drawn: Values of sites that are not drawn again.
        """
        side_by_side = (
            contextlib.nullcontext()
            if not copies
            else pyro.plate("copies of the data", copies, dim=-self.nesting - 1)
        )
        at = At(
            params,
            draw_data=True,
            held=self.held,
            partly=self.partly,
            integrated=self.origins,
            nodes=self._values,
            drawn=drawn,
        )
        with at, self.modes(self.remembered), side_by_side:
            trace = record(self.model, self.arguments)
        self.partly.restore(trace)
        for name, latents in hidden_draws(trace, self.composites).items():
            trace.nodes[name] = latents
        return trace


def signature_of(trace: Trace) -> tuple[SiteSignature, ...]:
    """What must not change between runs of one model: sites, families, shapes, plates."""
    return tuple(
        SiteSignature(
            name,
            site["type"],
            type(site["fn"]).__name__,
            tuple(site["value"].shape),
            tuple((plate.name, plate.dim, plate.size) for plate in plates_of(site)),
        )
        for name, site in trace.nodes.items()
        if site["type"] in ("sample", "param")
    )


def _structure_changed(before: tuple[SiteSignature, ...], after: tuple[SiteSignature, ...]) -> str:
    old, new = {s.name: s for s in before}, {s.name: s for s in after}
    names = [n for n in {**old, **new} if old.get(n) != new.get(n)]
    return (
        f"the model's structure depends on parameter values (site '{names[0]}' changes with them); "
        "write the model so that every run has the same sites and shapes, for instance with "
        "torch.where instead of a Python if."
    )
