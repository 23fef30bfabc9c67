"""Reads a model once: runs it, assigns a role to every site, and checks what it has found."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Size, Tensor

from ember.inference.families.conjugate_latents import conjugate_family
from ember.inference.inputs.arguments import Arguments, Model
from ember.inference.inputs.shelter import Promoted
from ember.inference.numerics.shapes import broadcast_shapes
from ember.inference.parameters.parameter import Parameter
from ember.inference.reading.checks.dims import check_room, check_scope
from ember.inference.reading.checks.enumeration import check_data, check_dims, check_presence
from ember.inference.reading.checks.sites import (
    check_declared,
    check_given,
    check_local,
    check_observed,
    check_plates,
    check_prior_of_units,
    check_weights,
)
from ember.inference.reading.composites import Composite, bare, find_composites
from ember.inference.reading.gaussian.candidates import gaussian_candidates
from ember.inference.reading.gaussian.remembered import arguments_of_chain
from ember.inference.reading.held import held_sites
from ember.inference.reading.model_errors import enumeration_errors, tidy_errors, unreadable
from ember.inference.reading.modes import Watch
from ember.inference.reading.partly_observed import find_given, find_partly_observed
from ember.inference.reading.roles import (
    param_parameter,
    role_of,
    sample_parameter,
    wish_for,
)
from ember.inference.reading.runs import At, is_continuous, statements
from ember.inference.reading.structure import Structure, signature_of
from ember.inference.reading.trace import Trace, TraceNode, plates_of, record
from ember.inference.reading.units.finding import with_nodes
from ember.inference.reading.unwrapping import unwrap

__all__ = ["first_run", "read_structure"]


def read_structure(
    model: Model,
    arguments: Arguments,
    integrate: Mapping[str, object] | None = None,
    start: Mapping[str, Tensor] | None = None,
    given: tuple[str, ...] = (),
) -> tuple[Structure, Trace]:
    """Runs the model plainly, then enumerated, and assigns a role to every site.

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
    plain, conditioned, watch = first_run(model, arguments, start or {})
    check_given(plain, start or {})
    if start is None:  # wishes of a fit name sites that other data may lack, steps of a chain
        _check_integrate(plain, integrate or {})
    partly = replace(find_partly_observed(plain, _steps_of_loops(plain)), given=given)
    partly.merge(plain)
    roles = _assign(plain, model, integrate or {})
    steps = _steps_of_loops(plain)
    structure = Structure(
        model, arguments, roles.parameters, tuple(roles.latent), tuple(roles.observed),
        roles.nesting, roles.plates, steps, tuple(roles.composites), partly=partly,
        gaussian=roles.gaussian, conjugate=roles.conjugate, modes=watch.modes,
        remembered=watch.remembered,
    )  # fmt: skip
    structure = with_nodes(structure, plain, roles.on_nodes)
    check_room(structure.latent, steps, roles.nesting)
    structure = _with_held(structure, plain, conditioned)
    structure = _with_found(structure, plain, integrate or {})
    trace = _checked_run(structure, plain)
    steps_given = find_given(trace, structure.latent, structure.observed, steps)
    if steps_given and not given:
        return read_structure(model, arguments, integrate, start, steps_given)
    return replace(structure, signature=signature_of(trace)), trace


# -- runs ---------------------------------------------------------------------------------------


def first_run(
    model: Model, arguments: Arguments, start: Mapping[str, Tensor]
) -> tuple[Trace, set[str], Watch]:
    """The plain run, which validates model and data, the conditioned sites, and its modes."""
    for tensor in arguments.tensors:
        if not tensor.numel():
            raise ValueError(
                f"the data are empty (a tensor of shape {tuple(tensor.shape)}); pass at least two "
                "rows."
            )
    at, watch = At(start, fix_latents=True), Watch()
    try:
        with at, watch():
            trace = record(model, arguments)
    except Exception as error:
        with tidy_errors(model, ""), At(start), Promoted():
            record(model, arguments)
        raise ValueError(unreadable(model, error)) from error
    return trace, at.conditioned, watch


def _checked_run(structure: Structure, plain: Trace) -> Trace:
    """The enumerated run, once it is known that every site can be used as it is there."""
    if not structure.observed:
        raise ValueError(
            "the model observes nothing: give at least one pyro.sample site its data with obs=..."
        )
    at_start = structure.start
    with enumeration_errors(structure.model):
        trace = structure.trace(at_start)
    check_presence((*structure.plain_factors, *structure.parameters), trace)
    for name, latent in structure.units.items():
        check_prior_of_units(name, trace.nodes[name], latent.batch)
    check_local(plain, trace, structure.parameters)
    if structure.steps:
        check_scope(trace, structure.plain_factors, structure.nesting)
    enumerated = structure.enumerated
    for name in structure.plain_factors:
        check_data(name, trace.nodes[name], structure.nesting, enumerated)
        check_dims(name, trace.nodes[name], structure.nesting, enumerated)
    for name in structure.observed:
        check_observed(name, trace.nodes[name])
    return trace


def _steps_of_loops(trace: Trace) -> frozenset[str]:
    """The sites inside ``pyro.markov``."""
    return frozenset(n for n, s in statements(trace) if "_markov_depth" in (s["infer"] or {}))


# -- roles --------------------------------------------------------------------------------------


@dataclass
class _Roles:
    """What the sites of a plain run turn out to be, one after the other."""

    parameters: dict[str, Parameter] = field(default_factory=dict)
    latent: list[str] = field(default_factory=list)
    gaussian: dict[str, Size] = field(default_factory=dict)
    conjugate: dict[str, Tensor] = field(default_factory=dict)
    observed: list[str] = field(default_factory=list)
    plates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    composites: list[Composite] = field(default_factory=list)
    on_nodes: dict[str, object] = field(default_factory=dict)
    nesting: int = 0


def _check_integrate(plain: Trace, integrate: Mapping[str, object]) -> None:
    hidden = {
        composite.latent
        for name, site in statements(plain)
        if site["type"] == "sample" and isinstance(site["value"], Tensor)
        for composite in find_composites(name, site, {*plain.nodes})
    }
    unknown = sorted(integrate.keys() - plain.nodes.keys() - hidden)
    if unknown:
        raise ValueError(f"integrate names '{unknown[0]}', which is not a site of the model.")


def _assign(plain: Trace, model: Model, integrate: Mapping[str, object]) -> _Roles:
    roles = _Roles()
    for name, site in statements(plain):
        if site["type"] == "param":
            roles.parameters[name] = param_parameter(name, site, model)
            roles.plates[name] = ()
            continue
        check_plates(site)
        check_weights(name, site)
        plates = plates_of(site)
        roles.plates[name] = tuple(plate.name for plate in plates)
        roles.nesting = max([roles.nesting, *(-plate.dim for plate in plates)])
        role = role_of(name, site, integrate)
        if role == "parameter":
            roles.parameters[name] = sample_parameter(name, site, roles.plates[name])
        elif role == "gaussian":
            roles.gaussian[name] = site["value"].shape
            check_declared(name, site)
        elif role == "conjugate":
            family = conjugate_family(unwrap(site["fn"]).base)
            assert family is not None
            roles.conjugate[name] = family.origin(site["value"].shape)
            check_declared(name, site)
        elif role == "latent":
            roles.latent.append(name)
            check_declared(name, site)
        elif role == "nodes":
            roles.on_nodes[name] = wish_for(name, site, integrate)
            check_declared(name, site)
        else:
            _add_observed(roles, name, site, {*plain.nodes}, integrate)
    return roles


def _add_observed(
    roles: _Roles, name: str, site: TraceNode, names: set[str], integrate: Mapping[str, object]
) -> None:
    """Adds an observed site, and before it the latents that its distribution hides."""
    if not isinstance(site["value"], Tensor):
        raise TypeError(
            f"observed site '{name}' was given {type(site['value']).__name__} as data; pass a "
            "tensor."
        )
    roles.observed.append(name)
    check_declared(name, site)
    plates = roles.plates.pop(name)
    taken = {*names, *roles.latent, *(c.time for c in roles.composites)}
    closed = [latent for latent, how in integrate.items() if how is None]
    for composite in find_composites(name, site, taken, closed):
        roles.composites.append(composite)
        if composite.gaussian:
            roles.gaussian |= _shapes_of_states(composite, site)
        else:
            roles.latent.append(composite.latent)
        if composite.steps is not None:
            roles.plates[composite.initial] = plates
        later = (*plates, composite.time) if composite.time else plates
        roles.plates[composite.latent] = later if composite.gaussian else plates
        plates = later
    roles.plates[name] = plates


def _shapes_of_states(composite: Composite, site: TraceNode) -> dict[str, Size]:
    """The shapes of the first states of a Gaussian chain, and of all later ones."""
    given = arguments_of_chain(bare(site["fn"])[0])
    assert given is not None
    batch = broadcast_shapes(site["fn"].batch_shape, site["value"].shape[:-2])
    states = given.transition_matrix.shape[-1]
    return {
        composite.initial: Size((*batch, states)),
        composite.latent: Size((*batch, composite.steps or 0, states)),
    }


def _with_found(structure: Structure, plain: Trace, integrate: Mapping[str, object]) -> Structure:
    """The structure with those unmarked sites as Gaussian latents that are found to be some."""
    marked = {n for n, s in statements(plain) if "integrate" in (s["infer"] or {})} | {*integrate}
    if not any(p.has_prior and n not in marked for n, p in structure.parameters.items()):
        return structure
    found = gaussian_candidates(structure, plain, marked)
    if not found:
        return structure
    shapes = {**structure.gaussian, **{n: structure.parameters[n].shape for n in found}}
    return replace(
        structure,
        parameters={n: p for n, p in structure.parameters.items() if n not in found},
        gaussian={name: shapes[name] for name in structure.plates if name in shapes},
        found=found,
    )


def _with_held(structure: Structure, plain: Trace, conditioned: set[str]) -> Structure:
    """The structure with those conditioned sites told apart that are parameters held at a value."""
    opened = {composite.site for composite in structure.composites}
    candidates = [
        name
        for name in structure.observed
        if name in conditioned - opened and is_continuous(plain.nodes[name]["fn"])
    ]
    if not candidates:
        return structure
    at_start = structure.start
    with tidy_errors(structure.model, ""):
        held = held_sites(structure, candidates, at_start, plain)
    observed = tuple(name for name in structure.observed if name not in held)
    return replace(structure, observed=observed, held=held)
