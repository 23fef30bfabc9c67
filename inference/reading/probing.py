"""Reads the sites of a traced model into factors, by comparing a few runs at random parameters."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.families.discrete import COUNTED
from ember.inference.families.exponential_form import ExponentialForm
from ember.inference.families.recognition import recognise
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.observed_density import observed_log_prob
from ember.inference.numerics.shapes import broadcast_shapes, compact, compact_alike
from ember.inference.parameters.affine_map import AffineMap
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.map import ParameterMap
from ember.inference.parameters.scaled_matrix import ScaledMatrix
from ember.inference.reading.checks.enumeration import check_each_value
from ember.inference.reading.checks.repeatability import check_repeatable
from ember.inference.reading.computed import computed_form, is_below_nodes
from ember.inference.reading.distributions import Alternatives, arguments_of
from ember.inference.reading.gaussian.slices import few_rows
from ember.inference.reading.hidden_parameters import Gradients
from ember.inference.reading.known_results import same_value
from ember.inference.reading.masks import (
    full_mask,
    masked_log_prob,
    missing_entries,
    whole_events,
)
from ember.inference.reading.matching.affine import match_affine
from ember.inference.reading.matching.arguments import (
    PROBES,
    ArgumentValues,
    match_argument,
    probe_values,
)
from ember.inference.reading.matching.moves import Moves
from ember.inference.reading.matching.scaled_matrix import match_scaled_matrix
from ember.inference.reading.matching.sticks import match_sticks
from ember.inference.reading.matching.superposition import match_superposition
from ember.inference.reading.predictors import predictors_of
from ember.inference.reading.site import DistributionTemplate, NamedDims, Site, fill_masked
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace, TraceNode, plates_of, symbols_of
from ember.inference.reading.unwrapping import Unwrapped, unwrap

__all__ = ["Probes", "probe", "read_site", "with_rows_of"]


Map = TypeVar("Map", ArgumentMap, AffineMap, ScaledMatrix)


@dataclass(frozen=True)
class Probes:
    """Runs of the model at random valid parameters; empty if the model refused them."""

    params: list[dict[str, Tensor]]
    traces: list[Trace]
    refusal: str = ""
    moves: Moves | None = None
    gradients: Gradients | None = None


def probe(structure: Structure, start: Trace) -> Probes:
    """Runs the model at a few random valid parameter values.

    Args:
        structure: The model.
        start: A run at its default parameters.

    Raises:
        ValueError: If sites or shapes change with the parameters, or with nothing at all, or
            values of a latent are not where Pyro enumerates them.
    """
    params = [probe_values(structure, seed) for seed in range(PROBES)]
    traces: list[Trace] = []
    for values in params:
        try:
            traces.append(structure.trace(values))
        except (ValueError, RuntimeError, ArithmeticError, IndexError) as error:
            if "structure depends on parameter values" in str(error):
                free = dataclasses.replace(structure, signature=())
                check_repeatable(free.trace(values), free.trace(values))
                raise
            check_repeatable(start, structure.trace(structure.start))
            return Probes([], [], f"the model fails at random parameters ({error})")
    few, first = few_rows(structure), traces[0]
    if few is not structure:
        check_repeatable(start, structure.trace(structure.start))
        first = few.trace(params[0])
    gradients = Gradients(structure, few)
    _check_repeatable(few, params[0], first, gradients.trace)
    check_each_value(structure, params[0], traces[0])
    return Probes(params, traces, moves=Moves(structure, params, traces), gradients=gradients)


def _check_repeatable(
    structure: Structure, params: Mapping[str, Tensor], first: Trace, second: Trace | None
) -> None:
    """Refuses a model of which another run says something else.

    At random parameters, as at the start noise may be multiplied by zero.

    Args:
        structure: The model.
        params: Of the first run.
        first: The run.
        second: One that has recorded its graph, which may compute in another way; or None.
    """
    if second is not None:
        with contextlib.suppress(ValueError):
            check_repeatable(first, second)
            return
    check_repeatable(first, structure.trace(params))


def read_site(
    name: str, structure: Structure, probes: Probes, start: Trace, idle: Tensor | None = None
) -> Site:
    """One latent, observed or parameter site: its value, layout, mask and family.

    Args:
        name: The site.
        structure: The roles of all sites.
        probes: The runs to compare.
        start: The trace at the default parameters, for shapes.
        idle: Entries of a latent that make no difference.
    """
    shown = _shown(name, start.nodes[name], structure, idle)
    form, density, reason = _family(
        name, structure, probes, shown.inner, shown.mask, shown.masked_log_prob
    )
    nodes = structure.nodes.get(name)
    return Site(
        name, shown.value, shown.layout, shown.plates, shown.inner, shown.mask,
        shown.masked_log_prob, shown.event_dim, form, density, reason, shown.missing,
        log_weights=None if nodes is None else nodes.log_weights,
    )  # fmt: skip


def with_rows_of(site: Site, structure: Structure, trace: Trace) -> Site:
    """A site with the value, the mask and the gaps that it has in another run, of other rows.

    Its maps stay as they are: whoever calls this knows that no row has one of its own.

    Args:
        site: The site, in exponential-family form.
        structure: The roles of all sites, for the other rows.
        trace: The other run.
    """
    assert site.density is not None
    node = trace.nodes[site.name]
    shown = _shown(site.name, node, structure, None)
    density = dataclasses.replace(
        site.density,
        base=unwrap(node["fn"]).base,
        mask=shown.mask,
        masked_log_prob=shown.masked_log_prob,
    )
    return dataclasses.replace(
        site,
        value=shown.value,
        mask=shown.mask,
        masked_log_prob=shown.masked_log_prob,
        missing=shown.missing,
        density=density,
    )


class _Shown(NamedTuple):
    """What one run shows of a site; see ``Site``."""

    value: Tensor
    layout: NamedDims
    plates: frozenset[str]
    inner: tuple[int, ...]
    mask: Tensor | None
    masked_log_prob: float
    event_dim: int
    missing: Tensor | None


def _shown(name: str, site: TraceNode, structure: Structure, idle: Tensor | None) -> _Shown:
    fn, value = site["fn"], site["value"]
    value = value.double() if value.is_floating_point() else value
    unwrapped = unwrap(fn)
    batch = broadcast_shapes(
        fn.batch_shape,
        value.shape[: value.dim() - fn.event_dim],
        () if site["mask"] is None else torch.as_tensor(site["mask"]).shape,
    )
    symbols = symbols_of(site)
    outer = tuple(symbols.get(i - len(batch), "") for i in range(len(batch)))
    plates = frozenset(symbols[plate.dim] for plate in plates_of(site))
    inner = tuple(fn.event_shape[: unwrapped.reinterpreted]) if unwrapped.reinterpreted else ()
    mask, missing = _masks(name, site, value, structure, idle)
    constant = masked_log_prob(site, unwrapped.mask, mask)
    return _Shown(
        value, NamedDims(outer, len(inner)), plates, inner, mask, constant, fn.event_dim, missing
    )


def _masks(
    name: str, site: TraceNode, value: Tensor, structure: Structure, idle: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Which entries of a site count, and which entries of data are to be integrated out."""
    unwrapped = unwrap(site["fn"])
    if name in structure.latent and not any(c.latent == name for c in structure.composites):
        # poutine.mask takes no prior off an enumerated latent; see reading/idle_latents.py.
        return (unwrapped.mask if idle is None else ~idle), None
    inner = site["fn"].event_shape[: unwrapped.reinterpreted]
    mask = full_mask(unwrapped.mask, site["mask"], len(inner))
    if name not in structure.observed:
        return mask, None
    of_chain = any(c.site == name and c.steps is not None for c in structure.composites)
    missing = missing_entries(site, value, unwrapped, of_chain)
    if missing is not None:
        gone = whole_events(missing, len(unwrapped.base.event_shape))
        mask = ~gone if mask is None else mask & ~gone
    return (None if mask is None else compact(mask)), missing  # one mask for all states of a row


def _family(
    name: str,
    structure: Structure,
    probes: Probes,
    inner: tuple[int, ...],
    mask: Tensor | None,
    constant: float,
) -> tuple[ExponentialForm | None, DistributionTemplate | None, str]:
    """The site's form and density as far as the probes reveal them, and why no further."""
    if probes.refusal:
        return None, None, probes.refusal
    sites = [trace.nodes[name] for trace in probes.traces]
    unwrapped = [unwrap(site["fn"]) for site in sites]
    base = unwrapped[0].base
    if len({type(u.base) for u in unwrapped}) > 1:
        return None, None, "its family changes with the parameters"
    if name not in structure.parameters and not all(
        same_value(site["value"], sites[0]["value"]) for site in sites[1:]
    ):
        return None, None, "its value depends on parameters"
    if is_below_nodes(name, structure, probes.traces[0].nodes):
        found = computed_form(name, structure, probes.traces[0].nodes, probes.params)
        return (None, None, found) if isinstance(found, str) else (found, None, "")
    maps = _maps(name, [u.base for u in unwrapped], structure, probes)
    if isinstance(maps, str):
        return None, None, maps
    rebuildable = bool(maps) or not base.arg_constraints
    if not rebuildable or (not maps and not _is_fixed(unwrapped, sites, mask)):
        return None, None, f"{type(base).__name__} cannot be rebuilt from its arguments"
    density = DistributionTemplate(base, maps, inner, mask, constant)
    form = recognise(base, maps)
    relied_on = isinstance(form, str) or name in structure.parameters
    if relied_on and not _rebuilds(density, probes.params[-1], sites[-1], unwrapped[-1]):
        return None, None, f"{type(base).__name__} cannot be rebuilt from its arguments"
    if isinstance(form, str):
        return None, density, form
    return form, density, ""


def _maps(
    name: str, bases: Sequence[Distribution], structure: Structure, probes: Probes
) -> dict[str, tuple[str, ParameterMap]] | str:
    """The map of each argument, with the name to pass it by; or why an argument has none."""
    arguments = [arguments_of(base) for base in bases]
    maps = {}
    for argument in arguments[0]:
        found = _map(name, argument, arguments, bases[0], structure, probes)
        if isinstance(found, str):
            return found
        maps[argument] = found
    return maps


def _map(
    name: str,
    argument: str,
    arguments: Sequence[Alternatives],
    base: Distribution,
    structure: Structure,
    probes: Probes,
) -> tuple[str, ParameterMap] | str:
    """The map of one argument: of the kinds that there are, the first that describes it."""
    gathered = _match(argument, arguments, structure, probes.params)
    gathered = _unless_hidden(name, argument, probes, gathered)
    if gathered is None and type(base) is dist.Poisson:
        superposed = match_superposition(name, structure, probes.params, probes.traces)
        if superposed is not None:
            return superposed if isinstance(superposed, str) else (argument, superposed)
    if gathered is None and argument == "probs" and isinstance(base, COUNTED):
        sticks = match_sticks(name, structure, probes.params, probes.traces)
        if sticks is not None:
            return argument, sticks
    if gathered is None and argument == "matrix":
        scaled = _unless_hidden(name, argument, probes, _match_scaled(arguments, structure, probes))
        if scaled is not None:
            return scaled
    if probes.moves is not None and (gathered is None or _multiplies(gathered[1])):
        # A number that multiplies one parameter may hide others in its rounding.
        domain = arguments[0][argument][0][0]
        affine = match_affine(name, predictors_of(base, argument, domain), probes.moves)
        affine = _unless_hidden(name, argument, probes, affine)
        if affine is not None:
            return affine
    if gathered is None:
        return f"argument '{argument}' of {type(base).__name__} is computed from parameters"
    return gathered


def _unless_hidden(
    site: str, argument: str, probes: Probes, found: tuple[str, Map] | None
) -> tuple[str, Map] | None:
    """A map, unless the argument depends on more than its values show."""
    if found is None or probes.gradients is None:
        return found
    return None if probes.gradients.hides(site, argument, *found) else found


def _multiplies(found: ArgumentMap) -> bool:
    """Whether a real argument is a parameter's entry times a number."""
    coefficients = found.coefficient[found.coefficient != 0]
    return found.domain == "real" and found.space == "raw" and bool((coefficients != 1.0).any())


def _match(
    name: str,
    arguments: Sequence[Alternatives],
    structure: Structure,
    params: Sequence[Mapping[str, Tensor]],
) -> tuple[str, ArgumentMap] | None:
    """The first alternative of an argument that a map describes, with the name to pass it by."""
    for i, (domain, event_dim, _) in enumerate(arguments[0][name]):
        values = [each[name][i][2] for each in arguments]
        if structure.gaussian:  # beside latents at zero all rows of the data may be alike
            values = compact_alike(values, event_dim)
        is_matrix = name == "matrix"
        probed = ArgumentValues("matrix" if is_matrix else domain, event_dim, _doubled(values))
        found = match_argument(probed, structure.parameters, params)
        if found is not None:
            return (domain if is_matrix else name), found
    return None


def _match_scaled(
    arguments: Sequence[Alternatives], structure: Structure, probes: Probes
) -> tuple[str, ScaledMatrix] | None:
    """The matrix of a normal as the model gives it, if it is known but for a factor."""
    by, _, _ = arguments[0]["matrix"][0]
    values = [each["matrix"][0][2] for each in arguments]
    found = match_scaled_matrix(values, structure.parameters, probes.params)
    return None if found is None else (by, found)


def _doubled(values: list[Tensor]) -> list[Tensor]:
    return [value.double() for value in values]


def _rebuilds(
    density: DistributionTemplate, params: Mapping[str, Tensor], site: TraceNode, fn: Unwrapped
) -> bool:
    """Whether the rebuilt distribution gives the site's value the density that the model gives."""
    try:
        value = fill_masked(site["value"], density.mask, len(fn.base.event_shape))
        again = observed_log_prob(density.distribution(params), value)
    except (TypeError, ValueError, RuntimeError):
        return False
    truth = observed_log_prob(fn.base, value)
    return bool(torch.isclose(again, truth, equal_nan=True).all())


def _is_fixed(
    unwrapped: Sequence[Unwrapped], sites: Sequence[TraceNode], mask: Tensor | None
) -> bool:
    """Whether a distribution of unknown make gives one density to one value in all runs."""
    value = fill_masked(sites[0]["value"], mask, len(unwrapped[0].base.event_shape))
    densities = [observed_log_prob(u.base, value) for u in unwrapped]
    return all(torch.equal(density, densities[0]) for density in densities[1:])
