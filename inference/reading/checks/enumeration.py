"""Whether a model keeps the values of its enumerated latents where Pyro puts them.

Each latent takes all of its values side by side, in a dim of its own left of all plates. A model
that reshapes them, or takes a sum or maximum over them, is still a function of tensors, but no
longer the model of any one value. Two things give it away: batch dims that belong to nothing, and
a run with one value for each latent that says something else than the enumerated run does there.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import torch
from pyro.poutine.runtime import Message
from pyro.util import check_site_shape
from torch import Tensor

from ember.inference.numerics.shapes import broadcast_shapes, varies_outside_plates
from ember.inference.reading.checks.sites import batch_shape, has_unknown_dims
from ember.inference.reading.model_errors import ROW_BY_ROW
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace, TraceNode, symbols_of
from ember.inference.reading.unwrapping import given_arguments, unwrap

__all__ = ["check_data", "check_dims", "check_each_value", "check_presence"]


ROUNDING = 1e-6  # relative to the largest entry of an argument


def check_presence(names: Iterable[str], trace: Trace) -> None:
    """Refuses sites that come and go with the values of latents."""
    for name in names:
        if name not in trace.nodes:
            raise ValueError(_come_and_go(name))


def _come_and_go(name: str) -> str:
    """What is said of a site that only some values of latents lead to."""
    return (
        f"site '{name}' is there at some values of the latent sites only; give every run the same "
        "sites, with torch.where or poutine.mask instead of a Python if."
    )


def check_data(name: str, site: TraceNode, nesting: int, latents: list[str]) -> None:
    """Refuses data that vary with a latent."""
    if not site["is_observed"] or not site["value"].numel():  # a pyro.factor has no data
        return
    shape = site["value"].shape
    if varies_outside_plates(shape[: len(shape) - site["fn"].event_dim], nesting):
        raise ValueError(
            f"the data of site '{name}' are computed from a latent site ({_listed(latents)}), but "
            "data must be the same whatever the latents are; let the distribution depend on the "
            "latent instead, for instance dist.Normal(locs[z], scale) with obs=x."
        )


def check_dims(name: str, site: TraceNode, nesting: int, latents: list[str]) -> None:
    """Refuses batch dims that are neither a plate's nor a latent's.

    Args:
        name: The site.
        site: Its node in the enumerated run.
        nesting: The number of dims that plates use.
        latents: The enumerated sites, for the message.
    """
    shapes = [batch_shape(name, site)]
    weights = (site["mask"], site["scale"])
    shapes += [weight.shape for weight in weights if isinstance(weight, Tensor)]
    try:
        shape = broadcast_shapes(*shapes)
        # Pyro's own shape rules; they look at the shape of the log probability only.
        message = cast("Message[..., Tensor]", {**site, "log_prob": torch.empty(()).expand(shape)})
        check_site_shape(message, nesting)
    except (RuntimeError, ValueError) as error:
        raise ValueError(_misplaced(name, latents, shapes[0])) from error
    if has_unknown_dims(site, shape, nesting):
        raise ValueError(_misplaced(name, latents, shape))


def check_each_value(structure: Structure, params: Mapping[str, Tensor], trace: Trace) -> None:
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
    numbers = {
        node["infer"]["_enumerate_symbol"]: chosen[name]
        for name, node in enumerated.nodes.items()
        if name in chosen
    }
    for name in names:
        one, every = single.nodes.get(name), enumerated.nodes[name]
        if one is None:
            continue
        index = {dim: numbers[s] for dim, s in symbols_of(every).items() if s in numbers}
        if not all(_agree(*pair, index, nesting) for pair in _pairs(one, every)):
            raise ValueError(_misplaced(name, list(chosen), None))


Batched = tuple[Tensor, int]  # a tensor, and how many dims on its right are no batch dims


def _pairs(one: TraceNode, other: TraceNode) -> Iterator[tuple[Batched, Batched]]:
    """What two runs of one site are made of: arguments, masks, scales."""
    left, right = unwrap(one["fn"]), unwrap(other["fn"])
    if type(left.base) is not type(right.base) or left.reinterpreted != right.reinterpreted:
        return
    inner = left.reinterpreted
    here, there = given_arguments(left.base), given_arguments(right.base)
    for name in here.keys() & there.keys():
        (event_dim, a), (_, b) = here[name], there[name]
        yield (a, inner + event_dim), (b, inner + event_dim)
    if left.mask is not None and right.mask is not None:
        yield (left.mask, inner), (right.mask, inner)
    for first, second in ((one["mask"], other["mask"]), (one["scale"], other["scale"])):
        if isinstance(first, Tensor) and isinstance(second, Tensor):
            yield (first, 0), (second, 0)


def _agree(one: Batched, every: Batched, index: Mapping[int, int], nesting: int) -> bool:
    """Whether a tensor is what another says at one value of each latent."""
    single, enumerated, event_dim = one[0].detach(), every[0].detach(), every[1]
    for dim in range(-enumerated.dim() + event_dim, -nesting):
        if enumerated.size(dim - event_dim) > 1:
            enumerated = enumerated.narrow(dim - event_dim, index.get(dim, 0), 1)
    try:
        single, enumerated = torch.broadcast_tensors(single, enumerated)
    except RuntimeError:
        return False
    same = single == enumerated
    if not single.is_floating_point() or not enumerated.is_floating_point():
        return bool(same.all())
    size = single[single.isfinite()].abs()
    largest = float(size.max()) if size.numel() else 0.0
    close = (single - enumerated).abs() <= ROUNDING * largest
    return bool((close | same | (single.isnan() & enumerated.isnan())).all())


def _misplaced(name: str, latents: list[str], shape: torch.Size | None) -> str:
    what = "" if shape is None else f" (its batch shape becomes {tuple(shape)})"
    return (
        f"site '{name}' uses the values of a latent site ({_listed(latents)}) in a wrong dim{what}"
        f": Pyro puts all values of a latent in one dim left of all plates, so {ROW_BY_ROW}."
    )


def _listed(latents: list[str]) -> str:
    return ", ".join(f"'{latent}'" for latent in latents[:3])
