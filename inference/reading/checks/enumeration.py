"""Whether a model keeps the values of its enumerated latents where Pyro puts them.

Each latent takes all of its values side by side, in a dim of its own left of all plates. A model
that reshapes them, or takes a sum or maximum over them, is still a function of tensors, but no
longer the model of any one value. Two things give it away: batch dims that belong to nothing, and
a run with one value for each latent that says something else than the enumerated run does there.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from pyro.util import check_site_shape
from torch import Tensor

from ember.inference.reading.checks.sites import batch_shape, has_unknown_dims
from ember.inference.reading.unwrapping import given_arguments, unwrap

__all__ = ["ROW_BY_ROW", "check_data", "check_dims", "check_each_value", "check_presence"]


ROW_BY_ROW = (
    "combine them by broadcasting (z, table[z] or torch.where), never by unsqueeze, reshape, sum "
    "or max; where rows of one plate meet, make each a site of its own (for i in pyro.plate(...))"
)


ROUNDING = 1e-6  # relative to the largest entry of an argument


def check_presence(names: Iterable[str], trace: Trace) -> None:
    """Refuses sites that come and go with the values of latents."""
    nodes = _nodes(trace)
    for name in names:
        if name not in nodes:
            raise ValueError(_come_and_go(name))


def _come_and_go(name: str) -> str:
    """What is said of a site that only some values of latents lead to."""
    return (
        f"site '{name}' is there at some values of the latent sites only; give every run the same "
        "sites, with torch.where or poutine.mask instead of a Python if."
    )


def check_data(name: str, site: Any, nesting: int, latents: list[str]) -> None:
    """Refuses data that vary with a latent."""
    shape = site["value"].shape
    batch = shape[: len(shape) - site["fn"].event_dim]
    if not site["is_observed"] or not site["value"].numel():  # a pyro.factor has no data
        return
    if batch[: max(0, len(batch) - nesting)].numel() > 1:
        raise ValueError(
            f"the data of site '{name}' are computed from a latent site ({_listed(latents)}), but "
            "data must be the same whatever the latents are; let the distribution depend on the "
            "latent instead, for instance dist.Normal(locs[z], scale) with obs=x."
        )


def check_dims(name: str, site: Any, nesting: int, latents: list[str]) -> None:
    """Refuses batch dims that are neither a plate's nor a latent's.

    Args:
        name: The site.
        site: Its node in the enumerated run.
        nesting: The number of dims that plates use.
        latents: The enumerated sites, for the message.
    """
    shapes = [batch_shape(name, site)]
    shapes += [site[key].shape for key in ("mask", "scale") if isinstance(site[key], Tensor)]
    try:
        shape = torch.broadcast_shapes(*shapes)
        # Pyro's own shape rules; they look at the shape of the log probability only.
        message: Any = {**site, "log_prob": torch.empty(()).expand(shape)}
        check_site_shape(message, nesting)
    except (RuntimeError, ValueError) as error:
        raise ValueError(_misplaced(name, site, latents, shapes[0])) from error
    if has_unknown_dims(site, shape, nesting):
        raise ValueError(_misplaced(name, site, latents, shape))


def check_each_value(structure: Any, params: Mapping[str, Tensor], trace: Trace) -> None:
    """Refuses models that move the values of a latent out of the dim that is theirs.

    Args:
        structure: Runs the model with one value for each latent.
        params: Where to run it.
        trace: The enumerated run there.
    """
    if not structure.enumerated or structure.partly.latents or structure.partly.given:
        return  # what is known of a latent is not one value for all rows
    names: set[str] | None = None
    for first in (1, 2):
        try:
            single, chosen = structure.single(params, first)
        except (RuntimeError, ValueError, IndexError, ArithmeticError):
            return  # it needs a latent's values side by side
        if names is not None and (changing := names ^ set(single.nodes)):
            raise ValueError(_come_and_go(min(changing)))
        names = set(single.nodes)
        _check_values(structure.plain_factors, trace, single, chosen, structure.nesting)


def _check_values(
    names: list[str], enumerated: Trace, single: Trace, chosen: Mapping[str, int], nesting: int
) -> None:
    """Refuses sites whose distribution at one value of the latents is not what enumeration says.

    Args:
        names: The sites to look at.
        enumerated: The run in which each latent takes all of its values.
        single: A run at the same parameters, in which each takes one.
        chosen: The number of that value, by latent site.
        nesting: The number of dims that plates use.
    """
    single_nodes, nodes = _nodes(single), _nodes(enumerated)
    places = {
        node["infer"]["_enumerate_symbol"]: chosen[name]
        for name, node in nodes.items()
        if name in chosen
    }
    for name in names:
        one, all_of_them = single_nodes.get(name), nodes[name]
        if one is None:
            continue
        symbols = all_of_them["infer"].get("_dim_to_symbol", {})
        index = {dim: places[s] for dim, s in symbols.items() if s in places}
        for seen, told in _pairs(one, all_of_them):
            if not _agree(seen, told, index, nesting):
                raise ValueError(_misplaced(name, all_of_them, list(chosen), None))


def _nodes(trace: Trace) -> dict[str, Any]:
    return dict(trace.nodes)


Seen = tuple[Tensor, int]  # a tensor, and how many dims on its right are no batch dims


def _pairs(one: Any, other: Any) -> Iterator[tuple[Seen, Seen]]:
    """What two runs of one site are made of: arguments, masks, scales."""
    left, right = unwrap(one["fn"]), unwrap(other["fn"])
    if type(left.base) is not type(right.base) or left.reinterpreted != right.reinterpreted:
        return
    inner = left.reinterpreted
    ours, theirs = given_arguments(left.base), given_arguments(right.base)
    for name in ours.keys() & theirs.keys():
        (event_dim, a), (_, b) = ours[name], theirs[name]
        yield (a, inner + event_dim), (b, inner + event_dim)
    if left.mask is not None and right.mask is not None:
        yield (left.mask, inner), (right.mask, inner)
    for key in ("mask", "scale"):
        if isinstance(one[key], Tensor) and isinstance(other[key], Tensor):
            yield (one[key], 0), (other[key], 0)


def _agree(one: Seen, every: Seen, index: Mapping[int, int], nesting: int) -> bool:
    """Whether a tensor is what another says at one value of each latent."""
    seen, (told, right) = one[0].detach(), (every[0].detach(), every[1])
    for dim in range(-told.dim() + right, -nesting):
        if told.size(dim - right) > 1:
            told = told.narrow(dim - right, index.get(dim, 0), 1)
    try:
        seen, told = torch.broadcast_tensors(seen, told)
    except RuntimeError:
        return False
    if not seen.is_floating_point() or not told.is_floating_point():
        return bool((seen == told).all())
    size = seen[seen.isfinite()].abs()
    close = (seen - told).abs() <= ROUNDING * (float(size.max()) if size.numel() else 0.0)
    return bool((close | (seen == told) | (seen.isnan() & told.isnan())).all())


def _misplaced(name: str, site: Any, latents: list[str], shape: torch.Size | None) -> str:
    what = "" if shape is None else f" (its batch shape becomes {tuple(shape)})"
    return (
        f"site '{name}' uses the values of a latent site ({_listed(latents)}) in a wrong dim{what}"
        f": Pyro puts all values of a latent in one dim left of all plates, so {ROW_BY_ROW}."
    )


def _listed(latents: list[str]) -> str:
    return ", ".join(f"'{latent}'" for latent in latents[:3])
