"""Reads a model once: the role of every site, its plates, and how to run it again.

*observed* sites have data, *latent* sites are integrated in the E-step, *parameter* sites are
maximised in the M-step. By default discrete unobserved sites are latent (as under Pyro's
``config_enumerate``); continuous unobserved sites and ``pyro.param`` statements are parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyro import poutine, validation_enabled
from pyro.infer import config_enumerate
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ember.inference.inputs.arguments import Arguments
from ember.inference.inputs.shelter import Promoted
from ember.inference.parameters.parameter import Parameter
from ember.inference.reading.checks.dims import check_room, check_scope
from ember.inference.reading.checks.enumeration import check_data, check_dims, check_presence
from ember.inference.reading.checks.repeatability import check_repeatable
from ember.inference.reading.checks.sites import (
    check_declared,
    check_given,
    check_local,
    check_observed,
    check_plates,
    check_weights,
)
from ember.inference.reading.composite_draws import hidden_draws
from ember.inference.reading.composites import Composite, find_composites, open_composites
from ember.inference.reading.held import held_sites
from ember.inference.reading.loops.finding import Family, Loop
from ember.inference.reading.loops.stacking import stack_loops
from ember.inference.reading.model_errors import (
    enumeration_errors,
    plain_errors,
    tidy_errors,
    unreadable,
)
from ember.inference.reading.partly_observed import Partly, find_given, find_partly_observed
from ember.inference.reading.roles import Model, param_parameter, role_of, sample_parameter
from ember.inference.reading.runs import At, is_continuous, statements

__all__ = ["Structure", "read_structure"]


@dataclass(frozen=True)
class Structure:
    """The roles of a model's sites for one shape of data, and a way to run the model again."""

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
    signature: tuple[Any, ...] = field(repr=False, default=())

    @property
    def factor_names(self) -> tuple[str, ...]:
        """Names of the latent and observed sites, in the model's order."""
        wanted = {*self.latent, *self.observed, *(c.initial for c in self.chains)}
        return tuple(name for name in self.plates if name in wanted)

    @property
    def chains(self) -> tuple[Composite | Loop, ...]:
        """The hidden Markov chains, however the model writes them."""
        return (*(c for c in self.composites if c.steps is not None), *self.loops)

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

    def family(self, name: str) -> Family | None:
        """The sites of a loop that a latent or observed site is made of, if it is."""
        families = (family for loop in self.loops for family in loop.families)
        return next((family for family in families if family.name == name), None)

    def is_channel(self, name: str) -> bool:
        """Whether an observed site only says what a latent is; see ``partly_observed.py``."""
        return any(own in self.partly.channels for own in self.own_names(name))

    def own_names(self, name: str) -> tuple[str, ...]:
        """A latent or observed site as the model calls it: a loop's has a name at each step."""
        family = self.family(name)
        return (name,) if family is None else family.names

    def single(self, params: Mapping[str, Tensor], first: int) -> tuple[Trace, dict[str, int]]:
        """Runs the model at ``params`` with one value for each latent site, as numbered."""
        at = At(params, fix_latents=True, first=first, partly=self.partly)
        with validation_enabled(False), at, Promoted():
            trace = poutine.trace(self.model).get_trace(
                *self.arguments.args, **self.arguments.kwargs
            )
        return trace, at.chosen

    def trace(
        self, params: Mapping[str, Tensor], given: Mapping[str, Tensor] | None = None
    ) -> Trace:
        """Runs the model at ``params`` with every latent site enumerated, dims named.

        Args:
            params: The parameters.
            given: Other values for some observed sites.
        """
        # The plain run has validated model and data; the others need not check them again.
        with (
            validation_enabled(False),
            plain_errors(self.model),
            poutine.enum(first_available_dim=-self.nesting - 1),
            At(params, given=given or {}, partly=self.partly),
            Promoted(),
        ):
            trace = poutine.trace(config_enumerate(self.model, default="parallel")).get_trace(
                *self.arguments.args, **self.arguments.kwargs
            )
        trace = prune_subsample_sites(trace)
        trace.symbolize_dims()
        self.partly.merge(trace)
        self.partly.check_leaves(trace)
        open_composites(trace, list(self.composites))
        if self.signature and _signature(trace) != self.signature:
            raise ValueError(_structure_changed(self.signature, _signature(trace)))
        stack_loops(trace, self.loops, self.nesting)
        return trace

    def run(self, params: Mapping[str, Tensor]) -> Trace:
        """Runs the model plainly at ``params``, every latent site at its first value."""
        with validation_enabled(False), At(params, fix_latents=True), Promoted():
            return poutine.trace(self.model).get_trace(
                *self.arguments.args, **self.arguments.kwargs
            )

    def simulate(self, params: Mapping[str, Tensor]) -> Trace:
        """Draws latent and observed sites from the model at ``params``."""
        with At(params, draw_data=True, held=self.held, partly=self.partly), Promoted():
            trace = poutine.trace(self.model).get_trace(
                *self.arguments.args, **self.arguments.kwargs
            )
        self.partly.restore(trace)
        for name, latents in hidden_draws(trace, self.composites).items():
            trace.nodes[name] = latents
        return trace


def read_structure(
    model: Model,
    arguments: Arguments,
    integrate: Mapping[str, Any] | None = None,
    start: Mapping[str, Tensor] | None = None,
    given: tuple[str, ...] = (),
) -> tuple[Structure, Any]:
    """Runs the model plainly, then enumerated, and assigns a role to every site.

    A third run, at the same parameters, must say what the second one said.

    Args:
        model: A Pyro function.
        arguments: What it is called with.
        integrate: Wishes that override the ``infer`` dictionaries of sites.
        start: Values at which to read some or all parameters; others get a default.
        given: Steps of a loop that are latents though their values are given.

    Returns:
        The structure, and the enumerated run at ``start``.

    Raises:
        ValueError: If a latent site cannot be integrated, a plate subsamples, batch dimensions
            are undeclared, the model draws random numbers outside its sites, or it has nothing
            to fit. The message names the site.
    """
    plain, conditioned = _first_run(model, arguments, start or {})
    check_given(plain, start or {})
    unknown = sorted((integrate or {}).keys() - plain.nodes.keys())
    if unknown:
        raise ValueError(f"integrate names '{unknown[0]}', which is not a site of the model.")
    steps = frozenset(n for n, s in statements(plain) if "_markov_depth" in (s["infer"] or {}))
    partly = replace(find_partly_observed(plain, steps), given=given)
    partly.merge(plain)
    parameters: dict[str, Parameter] = {}
    latent: list[str] = []
    observed: list[str] = []
    plates: dict[str, tuple[str, ...]] = {}
    composites: list[Composite] = []
    nesting = 0
    for name, site in statements(plain):
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        if site["type"] == "param":
            parameters[name] = param_parameter(name, site, model)
            plates[name] = ()
            continue
        check_plates(site)
        check_weights(name, site)
        plates[name] = tuple(frame.name for frame in frames)
        nesting = max([nesting, *(-frame.dim for frame in frames)])
        role = role_of(name, site, integrate or {})
        if role == "observed" and not isinstance(site["value"], Tensor):
            raise TypeError(
                f"observed site '{name}' was given {type(site['value']).__name__} as data; pass a "
                "tensor."
            )
        if role == "parameter":
            parameters[name] = sample_parameter(name, site, plates[name])
        else:
            (latent if role == "latent" else observed).append(name)
            check_declared(name, site)
        if role == "observed":
            own = plates.pop(name)
            taken = {*plain.nodes, *latent, *(c.time for c in composites)}
            for part in find_composites(name, site, taken):
                composites.append(part)
                latent.append(part.latent)
                if part.steps is not None:
                    plates[part.initial] = own
                plates[part.latent] = own
                own = (*own, part.time) if part.time else own
            plates[name] = own
    steps = frozenset(n for n, s in statements(plain) if "_markov_depth" in (s["infer"] or {}))
    check_room(latent, steps, nesting)
    structure = Structure(
        model, arguments, parameters, tuple(latent), tuple(observed), nesting, plates, steps,
        tuple(composites), partly=partly,
    )  # fmt: skip
    at_start = {name: p.start for name, p in parameters.items()}
    candidates = [
        name
        for name in observed
        if name in conditioned - {c.site for c in composites}
        and is_continuous(plain.nodes[name]["fn"])
    ]
    if candidates:
        with tidy_errors(model, ""):
            held = held_sites(structure, candidates, at_start, plain)
        left = tuple(name for name in observed if name not in held)
        structure = replace(structure, observed=left, held=held)
    if not structure.observed:
        raise ValueError(
            "the model observes nothing: give at least one pyro.sample site its data with obs=..."
        )
    with enumeration_errors(model):
        trace, again = structure.trace(at_start), structure.trace(at_start)
    check_repeatable(trace, again)
    check_presence((*structure.plain_factors, *parameters), trace)
    check_local(plain, trace, parameters)
    if steps:
        check_scope(trace, structure.plain_factors, nesting)
    enumerated = structure.enumerated
    for name in structure.plain_factors:
        check_data(name, trace.nodes[name], nesting, enumerated)
        check_dims(name, trace.nodes[name], nesting, enumerated)
    for name in structure.observed:
        check_observed(name, trace.nodes[name])
    if not given and (some := find_given(trace, latent, structure.observed, steps)):
        return read_structure(model, arguments, integrate, start, some)
    return replace(structure, signature=_signature(trace)), trace


def _first_run(
    model: Model, arguments: Arguments, start: Mapping[str, Tensor]
) -> tuple[Trace, set[str]]:
    """The plain run, which validates model and data, and the sites that are conditioned."""
    for tensor in arguments.tensors:
        if not tensor.numel():
            raise ValueError(
                f"the data are empty (a tensor of shape {tuple(tensor.shape)}); pass at least two "
                "rows."
            )
    at = At(start, fix_latents=True)
    try:
        with at, Promoted():
            trace = poutine.trace(model).get_trace(*arguments.args, **arguments.kwargs)
    except Exception as error:
        with tidy_errors(model, ""), At(start), Promoted():
            poutine.trace(model).get_trace(*arguments.args, **arguments.kwargs)
        raise ValueError(unreadable(model, error)) from error
    return trace, at.conditioned


def _signature(trace: Trace) -> tuple[Any, ...]:
    """What must not change between runs of one model: sites, families, shapes, plates."""
    nodes: Any = trace.nodes.items()
    return tuple(
        (
            name,
            site["type"],
            type(site["fn"]).__name__,
            tuple(site["value"].shape),
            tuple((f.name, f.dim, f.size) for f in site["cond_indep_stack"] if f.vectorized),
        )
        for name, site in nodes
        if site["type"] in ("sample", "param")
    )


def _structure_changed(before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    old, new = {s[0]: s for s in before}, {s[0]: s for s in after}
    names = [n for n in {**old, **new} if old.get(n) != new.get(n)]
    return (
        f"the model's structure depends on parameter values (site '{names[0]}' changes with them); "
        "write the model so that every run has the same sites and shapes, for instance with "
        "torch.where instead of a Python if."
    )
