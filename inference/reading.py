"""Reads the sites of a traced model into factors, by comparing a few runs at random parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.inference.affine import AffineMap
from ember.inference.affine_matching import Moves, match_affine
from ember.inference.factors import Density, Layout, Site
from ember.inference.parameter_maps import (
    PROBES,
    ArgumentMap,
    ArgumentValues,
    match_argument,
    probe_values,
)
from ember.inference.predictors import predictors_of
from ember.inference.recognition import arguments_of, recognise, unwrap
from ember.inference.shapes import append_dims
from ember.inference.structure import Structure

__all__ = ["Probes", "probe", "read_site"]


@dataclass(frozen=True)
class Probes:
    """Runs of the model at random valid parameters; empty if the model refused them."""

    params: list[dict[str, Tensor]]
    traces: list[Any]
    refusal: str = ""
    moves: Moves | None = None


def probe(structure: Structure) -> Probes:
    """Runs the model at a few random valid parameter values.

    Raises:
        ValueError: If sites or shapes change with the parameters.
    """
    params = [probe_values(structure, seed) for seed in range(PROBES)]
    traces: list[Any] = []
    for values in params:
        try:
            traces.append(structure.trace(values))
        except ValueError as error:
            if "structure depends on parameter values" in str(error):
                raise
            return Probes([], [], f"the model fails at random parameters ({error})")
        except (RuntimeError, ArithmeticError, IndexError) as error:
            return Probes([], [], f"the model fails at random parameters ({error})")
    return Probes(params, traces, moves=Moves(structure, params, traces))


def read_site(name: str, structure: Structure, probes: Probes, start: Any) -> Site:
    """One latent, observed or parameter site: its value, layout, mask and family.

    Args:
        name: The site.
        structure: The roles of all sites.
        probes: The runs to compare.
        start: The trace at the default parameters, for shapes.
    """
    site = start.nodes[name]
    fn, value = site["fn"], site["value"]
    value = value.double() if value.is_floating_point() else value
    unwrapped = unwrap(fn)
    batch = torch.broadcast_shapes(
        fn.batch_shape,
        value.shape[: value.dim() - fn.event_dim],
        () if site["mask"] is None else torch.as_tensor(site["mask"]).shape,
    )
    symbols = site["infer"].get("_dim_to_symbol", {})
    outer = tuple(symbols.get(i - len(batch), "") for i in range(len(batch)))
    plates = frozenset(symbols[f.dim] for f in site["cond_indep_stack"] if f.vectorized)
    inner = tuple(fn.event_shape[: unwrapped.reinterpreted]) if unwrapped.reinterpreted else ()
    mask = _full_mask(unwrapped.mask, site["mask"], len(inner))
    dummy = _dummy(site, mask)
    form, density, reason = _family(name, structure, probes, inner, mask, dummy)
    return Site(
        name, value, Layout(outer, len(inner)), plates, inner, mask, dummy,
        fn.event_dim, form, density, reason,
    )  # fmt: skip


def _full_mask(inside: Tensor | None, outside: Any, inner: int) -> Tensor | None:
    """Masks of the distribution and of ``poutine.mask`` as one, over outer and event dims."""
    if outside is None or outside is True:
        return inside
    full = append_dims(torch.as_tensor(outside), inner)
    return full if inside is None else full & inside


def _dummy(site: Any, mask: Tensor | None) -> float:
    """The log probability of a masked entry: a masked latent must still sum to one."""
    dim = site["infer"].get("_enumerate_dim")
    if mask is None or dim is None:
        return 0.0
    levels = site["value"].size(dim - site["fn"].event_dim)
    return -float(torch.tensor(float(levels), dtype=torch.float64).log())


def _family(
    name: str,
    structure: Structure,
    probes: Probes,
    inner: tuple[int, ...],
    mask: Tensor | None,
    dummy: float,
) -> tuple[Any, Density | None, str]:
    """The site's form and density as far as the probes reveal them, and why no further."""
    if probes.refusal:
        return None, None, probes.refusal
    sites = [trace.nodes[name] for trace in probes.traces]
    unwrapped = [unwrap(site["fn"]) for site in sites]
    base = unwrapped[0].base
    if len({type(u.base) for u in unwrapped}) > 1:
        return None, None, "its family changes with the parameters"
    if name not in structure.parameters and not all(
        _same_value(site["value"], sites[0]["value"]) for site in sites[1:]
    ):
        return None, None, "its value depends on parameters"
    arguments = [arguments_of(u.base) for u in unwrapped]
    maps: dict[str, tuple[str, ArgumentMap | AffineMap]] = {}
    for argument in arguments[0]:
        found = _match(argument, arguments, structure, probes.params)
        if found is None and probes.moves is not None:
            domain = arguments[0][argument][0][0]
            affine = match_affine(name, predictors_of(base, argument, domain), probes.moves)
            if affine is not None:
                maps[argument] = affine
                continue
        if found is None:
            kind = type(base).__name__
            return None, None, f"argument '{argument}' of {kind} is computed from parameters"
        maps[argument] = found
    rebuildable = bool(maps) or not base.arg_constraints
    if not rebuildable or (not maps and not _is_fixed(unwrapped, sites)):
        return None, None, f"{type(base).__name__} cannot be rebuilt from its arguments"
    density = Density(base, maps, inner, mask, dummy)
    form = recognise(base, maps)
    relied_on = isinstance(form, str) or name in structure.parameters
    if relied_on and not _rebuilds(density, probes.params[-1], sites[-1], unwrapped[-1]):
        return None, None, f"{type(base).__name__} cannot be rebuilt from its arguments"
    if isinstance(form, str):
        return None, density, form
    return form, density, ""


def _match(
    name: str,
    arguments: Sequence[Mapping[str, list[tuple[str, int, Tensor]]]],
    structure: Structure,
    params: Sequence[Mapping[str, Tensor]],
) -> tuple[str, ArgumentMap] | None:
    """The first alternative of an argument that a map describes, with the name to pass it by."""
    for i, (domain, event_dim, _) in enumerate(arguments[0][name]):
        values = [each[name][i][2] for each in arguments]
        is_matrix = name == "matrix"
        seen = ArgumentValues("matrix" if is_matrix else domain, event_dim, _doubled(values))
        found = match_argument(seen, structure.parameters, params)
        if found is not None:
            return (domain if is_matrix else name), found
    return None


def _doubled(values: list[Tensor]) -> list[Tensor]:
    return [value.double() for value in values]


def _same_value(left: Tensor, right: Tensor) -> bool:
    if left is right or (left.shape == right.shape and left.data_ptr() == right.data_ptr()):
        return True
    return left.shape == right.shape and bool(
        ((left == right) | (left.isnan() & right.isnan())).all()
    )


def _rebuilds(density: Density, params: Mapping[str, Tensor], site: Any, seen: Any) -> bool:
    """Whether the rebuilt distribution gives the site's value the density that the model gives."""
    try:
        again = density.distribution(params).log_prob(site["value"])
    except (TypeError, ValueError, RuntimeError):
        return False
    return bool(torch.isclose(again, seen.base.log_prob(site["value"]), equal_nan=True).all())


def _is_fixed(unwrapped: Sequence[Any], sites: Sequence[Any]) -> bool:
    """Whether a distribution of unknown make gives one density to one value in all runs."""
    value = sites[0]["value"]
    densities = [u.base.log_prob(value) for u in unwrapped]
    return all(torch.equal(density, densities[0]) for density in densities[1:])
