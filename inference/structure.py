"""Reads a model once: the role of every site, its plates, and how to run it again.

*observed* sites have data, *latent* sites are integrated in the E-step, *parameter* sites are
maximised in the M-step. By default discrete unobserved sites are latent (as under Pyro's
``config_enumerate``); continuous unobserved sites and ``pyro.param`` statements are parameters.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro import poutine, validation_enabled
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import constraints, transform_to

from ember.inference.arguments import Arguments, Promoted, declare_from_outside
from ember.inference.reading.composite_draws import draw_composite, hidden_draws
from ember.inference.reading.composites import Composite, find_composites, open_composites
from ember.inference.reading.dim_checks import check_room, check_scope
from ember.inference.reading.enumeration_checks import check_data, check_dims, check_presence
from ember.inference.reading.held import held_sites, is_conditioned
from ember.inference.reading.loops import Family, Loop
from ember.inference.reading.model_errors import (
    enumeration_errors,
    plain_errors,
    tidy_errors,
    unreadable,
)
from ember.inference.reading.partly_observed import (
    LABEL,
    Partly,
    find_given,
    find_partly_observed,
    nothing,
)
from ember.inference.reading.repeatability import check_repeatable
from ember.inference.reading.site_checks import (
    check_declared,
    check_given,
    check_local,
    check_observed,
    check_plates,
    check_weights,
)
from ember.inference.reading.stacking import stack_loops
from ember.inference.reading.unwrapping import unwrap
from ember.inference.supports import shown

__all__ = ["Parameter", "Structure", "default_value", "read_structure"]

Model = Callable[..., Any]


@dataclass(frozen=True)
class Parameter:
    """A site that the M-step maximises."""

    name: str
    support: constraints.Constraint
    shape: torch.Size
    plates: tuple[str, ...]
    has_prior: bool
    start: Tensor
    is_module_parameter: bool = False

    def to_constrained(self, unconstrained: Tensor) -> Tensor:
        """Maps free reals to the parameter's support."""
        value: Tensor = transform_to(self.support)(unconstrained)
        return value

    def to_unconstrained(self, value: Tensor) -> Tensor:
        """The inverse of ``to_constrained``, up to what the map leaves free."""
        free: Tensor = transform_to(self.support).inv(value)
        return free


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
        at = _At(params, fix_latents=True, first=first, partly=self.partly)
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
            _At(params, given=given or {}, partly=self.partly),
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
        with validation_enabled(False), _At(params, fix_latents=True), Promoted():
            return poutine.trace(self.model).get_trace(
                *self.arguments.args, **self.arguments.kwargs
            )

    def simulate(self, params: Mapping[str, Tensor]) -> Trace:
        """Draws latent and observed sites from the model at ``params``."""
        with _At(params, draw_data=True, held=self.held, partly=self.partly), Promoted():
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
    steps = frozenset(n for n, s in _statements(plain) if "_markov_depth" in (s["infer"] or {}))
    partly = replace(find_partly_observed(plain, steps), given=given)
    partly.merge(plain)
    parameters: dict[str, Parameter] = {}
    latent: list[str] = []
    observed: list[str] = []
    plates: dict[str, tuple[str, ...]] = {}
    composites: list[Composite] = []
    nesting = 0
    for name, site in _statements(plain):
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        if site["type"] == "param":
            parameters[name] = _param_parameter(name, site, model)
            plates[name] = ()
            continue
        check_plates(site)
        check_weights(name, site)
        plates[name] = tuple(frame.name for frame in frames)
        nesting = max([nesting, *(-frame.dim for frame in frames)])
        role = _role(name, site, integrate or {})
        if role == "observed" and not isinstance(site["value"], Tensor):
            raise TypeError(
                f"observed site '{name}' was given {type(site['value']).__name__} as data; pass a "
                "tensor."
            )
        if role == "parameter":
            parameters[name] = _sample_parameter(name, site, plates[name])
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
    steps = frozenset(n for n, s in _statements(plain) if "_markov_depth" in (s["infer"] or {}))
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
        and _is_continuous(plain.nodes[name]["fn"])
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
    at = _At(start, fix_latents=True)
    try:
        with at, Promoted():
            trace = poutine.trace(model).get_trace(*arguments.args, **arguments.kwargs)
    except Exception as error:
        with tidy_errors(model, ""), _At(start), Promoted():
            poutine.trace(model).get_trace(*arguments.args, **arguments.kwargs)
        raise ValueError(unreadable(model, error)) from error
    return trace, at.conditioned


class _At(Messenger):
    """Fixes parameter sites at given values, others at their default start; never draws them."""

    def __init__(
        self,
        params: Mapping[str, Tensor],
        fix_latents: bool = False,
        draw_data: bool = False,
        first: int | None = None,
        given: Mapping[str, Tensor] | None = None,
        held: Collection[str] = (),
        partly: Partly | None = None,
    ) -> None:
        super().__init__()
        self.params, self.fix_latents, self.draw_data = params, fix_latents, draw_data
        self.first = first  # number of the first latent's value; the others' follow, each by one
        self.chosen: dict[str, int] = {}
        self.given, self.held = given or {}, held
        self.conditioned: set[str] = set()
        self.partly = partly or Partly()
        self._whole: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if msg["is_observed"] and _is_boolean(msg):
            msg["value"] = msg["value"].long()
        if msg["is_observed"] and is_conditioned(name):
            self.conditioned.add(name)
        if name in self.given and msg["is_observed"]:
            msg["value"] = self.given[name]
        draws = self.draw_data and name not in self.held and not _is_computed(msg)
        if draws and msg["is_observed"]:
            data, msg["value"] = msg["value"], None
            msg["is_observed"], msg["done"] = False, False
            draw_composite(msg, data)
            return
        if msg["name"] in self._whole and not self.draw_data:
            msg["value"] = self._whole[msg["name"]]  # all values, where it is known as well
            return
        if msg["name"] in self.partly.given and not self.draw_data:
            msg["infer"].update({LABEL: msg["value"], "enumerate": "parallel"})
            msg["value"], msg["is_observed"] = None, False
            return
        if msg["is_observed"] or msg["done"]:
            return
        if msg["name"] in self.partly.undrawn:
            if not self.draw_data:
                msg["value"] = nothing(msg)
            return
        if not _is_continuous(msg["fn"]):
            msg["infer"]["enumerate"] = "parallel"  # whatever the model asks for
            if self.fix_latents and getattr(msg["fn"], "has_enumerate_support", False):
                # One value for all rows: a draw for each would gather a parameter for each.
                values = msg["fn"].enumerate_support(expand=False)
                number = 0 if self.first is None else (self.first + len(self.chosen)) % len(values)
                msg["value"], self.chosen[msg["name"]] = values[number], number
                msg["done"] = True
            return
        # A site with a value is not drawn. It is not "done" either: Pyro's enumeration passes over
        # such sites, and would not know of a parameter inside pyro.markov when a later site asks.
        if msg["name"] in self.params:
            msg["value"] = self.params[msg["name"]]
        else:
            msg["value"] = default_value(msg["fn"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.partly.whole:
            self._whole[self.partly.whole[msg["name"]]] = msg["value"]

    def _pyro_param(self, msg: Any) -> None:
        if len(msg["args"]) < 2 and not declare_from_outside(msg["name"]):
            raise ValueError(
                f"pyro.param('{msg['name']}') has no initial value, and Pyro's parameter store "
                f"knows none; write pyro.param('{msg['name']}', torch.tensor(...))."
            )
        if msg["name"] in self.params:
            msg["value"] = self.params[msg["name"]]
            msg["done"] = True


def _is_boolean(site: Any) -> bool:
    """Whether a site has truth values where numbers 0 and 1 are meant; Pyro itself fails there."""
    value = site["value"]
    boolean = isinstance(value, Tensor) and value.dtype is torch.bool
    return boolean and not _is_computed(site) and not _is_continuous(site["fn"])


def _is_computed(site: Any) -> bool:
    """Whether a site is a ``pyro.deterministic`` or ``pyro.factor`` statement: nothing to draw."""
    return bool(site["infer"].get("_deterministic")) or type(site["fn"]).__name__ == "Unit"


def default_value(fn: TorchDistributionMixin) -> Tensor:
    """A valid, unremarkable value of a continuous distribution: its mean where that exists."""
    shape = fn.shape()
    try:
        mean: Tensor = fn.mean.detach().expand(shape).clone()
        if bool(torch.isfinite(mean).all()) and bool(fn.support.check(mean).all()):
            return mean
    except (NotImplementedError, AttributeError, ValueError, RuntimeError):
        pass  # no mean: a point in the middle of the support will do
    transform = transform_to(fn.support)
    middle: Tensor = transform(torch.zeros(transform.inverse_shape(shape)))
    return middle.expand(shape).clone()


def _statements(trace: Trace) -> Iterator[tuple[str, Any]]:
    """The sites that carry a density or a parameter, in the model's order."""
    site: Any
    for name, site in trace.nodes.items():
        if site["type"] == "param":
            yield name, site
        elif site["type"] == "sample":
            subsample = type(site["fn"]).__name__ == "_Subsample"
            if not subsample and not _is_deterministic(site):
                yield name, site


def _is_deterministic(site: Any) -> bool:
    """Whether a site only shows a computed value: ``pyro.deterministic``, or what amounts to it."""
    if site["infer"].get("_deterministic"):
        return True
    fn = unwrap(site["fn"]).base
    if not site["is_observed"] or type(fn).__name__ != "Delta" or bool((fn.log_density != 0).any()):
        return False
    v, value = torch.broadcast_tensors(fn.v, site["value"])
    return torch.equal(v, value)


def _is_continuous(fn: Any) -> bool:
    return (
        isinstance(fn, TorchDistributionMixin)
        and type(fn).__name__ not in ("Delta", "Unit", "_Subsample")
        and not fn.support.is_discrete
    )


def _role(name: str, site: Any, integrate: Mapping[str, Any]) -> str:
    if site["is_observed"]:
        return "observed"
    fn = site["fn"]
    how = integrate.get(name, site["infer"].get("integrate"))
    if _is_continuous(fn):
        if how is not None:
            raise ValueError(
                f"site '{name}' asks to be integrated by {how!r}, but this version integrates "
                "discrete latents only; drop the request to estimate the site as a parameter "
                f"(EM(model, integrate={{'{name}': None}})), or give it a discrete grid of values."
            )
        return "parameter"
    if how not in (None, "enumeration"):
        raise ValueError(
            f"site '{name}' is discrete and asks to be integrated by {how!r}; discrete latents are "
            "summed over exactly: drop the request."
        )
    if type(fn).__name__ == "Delta":
        raise ValueError(
            f"site '{name}' samples from a Delta; use pyro.deterministic for a computed value, or "
            "pyro.param for one to be estimated."
        )
    if not fn.has_enumerate_support:
        raise ValueError(
            f"latent site '{name}' ({type(fn).__name__}) has no finite support to sum over; use a "
            "Categorical over a truncated range, or observe it."
        )
    return "latent"


def _param_parameter(name: str, site: Any, model: Model) -> Parameter:
    # A PyroModule states its constraints to the parameter store, not at the site.
    given = site["kwargs"].get("constraint", constraints.real)
    support = pyro.get_param_store()._constraints.get(name, given)
    if "$$$" in name:
        module = name.split("$$$")[0]
        raise ValueError(
            f"the model registers the torch module '{module}' with pyro.module, whose weights "
            "cannot be set from outside; make it a pyro.nn.PyroModule (for instance "
            "PyroModule[torch.nn.Linear](...)), called inside the model."
        )
    value = site["value"].detach().clone()
    value = value.double() if value.is_floating_point() else value
    # A PyroParam is registered as "..._unconstrained", an ordinary parameter by its own name.
    own = isinstance(model, torch.nn.Module) and name in dict(model.named_parameters())
    return Parameter(name, support, value.shape, (), False, value, is_module_parameter=own)


def _sample_parameter(name: str, site: Any, plates: tuple[str, ...]) -> Parameter:
    fn, value = site["fn"], site["value"]
    try:
        transform_to(fn.support)
    except NotImplementedError as error:
        raise ValueError(
            f"parameter site '{name}' has support {shown(fn.support)}, onto which no transform "
            "is known; "
            "reparameterise the site, or register one with torch's transform_to."
        ) from error
    return Parameter(name, fn.support, value.shape, plates, has_prior=True, start=value)


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
