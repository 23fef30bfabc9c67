"""What a site must fulfil before any work begins; each failure is one sentence with its remedy."""

from collections.abc import Iterable, Mapping

import torch
from pyro.distributions import (
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    MultivariateNormal,
)
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import broadcast_shapes
from ember.inference.parameters.supports import shown
from ember.inference.reading.trace import Trace, TraceNode, plates_of, symbols_of
from ember.inference.reading.unwrapping import unwrap

__all__ = [
    "batch_shape",
    "check_declared",
    "check_given",
    "check_local",
    "check_observed",
    "check_on_nodes",
    "check_plates",
    "check_prior_of_units",
    "check_weights",
    "has_unknown_dims",
]


def check_given(plain: Trace, given: Mapping[str, Tensor]) -> None:
    """Refuses estimates of another shape than the parameter has for the data at hand."""
    nodes = plain.nodes
    for name in given.keys() & nodes.keys():
        site, old = nodes[name], tuple(given[name].shape)
        declared = site["fn"].shape() if site["type"] == "sample" else _initial_shape(site)
        if declared is not None and tuple(declared) != old:
            raise ValueError(
                f"parameter '{name}' was estimated with shape {old}, but for these data the model "
                f"declares {tuple(declared)}: it belongs to the rows of the fit. Estimate it for "
                "the new ones with the other parameters held, as data of "
                "pyro.condition(model, data={...})."
            )


def _initial_shape(site: TraceNode) -> tuple[int, ...] | None:
    """The shape of a ``pyro.param`` statement's initial value, if it is given as a tensor."""
    given = [value for value in site["args"][1:2] if isinstance(value, Tensor)]
    return tuple(given[0].shape) if given else None


def check_plates(site: TraceNode) -> None:
    """Refuses plates that do not say how many rows they have, or show only some of them."""
    for frame in site["cond_indep_stack"]:
        if frame.size is None or frame.size < 0:
            raise ValueError(
                f"plate '{frame.name}' has no size; give it the number of rows, for instance "
                f"pyro.plate('{frame.name}', len(x))."
            )
        full = frame.full_size
        if full is not None and frame.size < full:
            raise ValueError(
                f"plate '{frame.name}' subsamples {frame.size} of {full} rows; EM uses all of the "
                "data: remove subsample_size (and subsample) from the plate."
            )


def check_weights(name: str, site: TraceNode) -> None:
    """Refuses masks and weights with dims that are no plates of their site."""
    sizes = {plate.dim: plate.size for plate in plates_of(site)}
    for key, weight in (("scale", site["scale"]), ("mask", site["mask"])):
        shape = weight.shape if isinstance(weight, Tensor) else torch.Size()
        if any(shape[d] > 1 and shape[d] != sizes.get(d) for d in range(-len(shape), 0)):
            raise ValueError(
                f"site '{name}' is inside a poutine.{key} of shape {tuple(shape)}, which fits no "
                f"plate of the site; put poutine.{key} around the sites of that plate alone."
            )


def check_local(plain: Trace, enumerated: Trace, names: Iterable[str]) -> None:
    """Refuses continuous sites whose distribution varies with a latent that is summed over."""
    for name in names:
        site, before = enumerated.nodes[name], plain.nodes[name]
        if site["type"] == "param":
            continue
        if site["fn"].batch_shape != before["fn"].batch_shape:
            raise ValueError(
                f"continuous site '{name}' depends on another latent, so it is itself a latent, "
                "but it cannot be integrated as a Gaussian: it is none, or a site reads it other "
                "than linearly in a normal location. Integrate it on a grid of nodes (EM(model, "
                f"integrate={{'{name}': 'quadrature'}})), replace it by the marginal distribution "
                "of the sites below it, or move it out of the latent's reach."
            )


def check_declared(name: str, site: TraceNode) -> None:
    """Refuses batch dims outside all plates: an enumerated dim could silently take their place."""
    declared = {plate.dim for plate in plates_of(site)}
    shape = batch_shape(name, site)
    for dim in range(-len(shape), 0):
        if shape[dim] > 1 and dim not in declared:
            raise ValueError(
                f"site '{name}' has batch shape {tuple(shape)}, but its dim {dim} belongs to no "
                "plate; put the site inside pyro.plate(...), or use .to_event(...)."
            )


def check_on_nodes(name: str, site: TraceNode) -> None:
    """Refuses a latent on nodes in a loop, whose steps would be integrated one after the other."""
    if "_markov_depth" in (site["infer"] or {}):
        raise ValueError(
            f"site '{name}' asks to be integrated by quadrature inside pyro.markov, where each "
            "step would need the nodes of the one before; estimate it as a parameter "
            f"(EM(model, integrate={{'{name}': None}})), or give it a discrete grid of values."
        )


def check_prior_of_units(name: str, site: TraceNode, units: torch.Size) -> None:
    """Refuses a latent of units whose prior varies with a discrete latent."""
    if site["fn"].batch_shape.numel() > units.numel():
        raise ValueError(
            f"latent '{name}' is integrated unit by unit, around the one mode of each, and its "
            "prior depends on a discrete latent; put the rows into a plate inside that of the "
            f"units, so that they read '{name}' without an index, where a grid serves "
            f"(integrate={{'{name}': Quadrature()}}), or estimate '{name}' as a parameter "
            f"(EM(model, integrate={{'{name}': None}}))."
        )


def batch_shape(name: str, site: TraceNode) -> torch.Size:
    """The broadcast batch shape of a site's distribution and value."""
    fn, value = site["fn"], site["value"]
    try:
        batch = value.shape[: value.dim() - fn.event_dim]
        return broadcast_shapes(fn.batch_shape, batch)
    except RuntimeError as error:
        raise ValueError(
            f"site '{name}' has a value of shape {tuple(value.shape)}, which does not fit its "
            f"distribution (batch shape {tuple(fn.batch_shape)}, event shape "
            f"{tuple(fn.event_shape)}); reshape the data, put the site inside pyro.plate, or use "
            ".to_event(...)."
        ) from error


def has_unknown_dims(site: TraceNode, shape: tuple[int, ...], nesting: int) -> bool:
    """Whether there are batch dims left of all plates that belong to no latent that a site knows.

    Args:
        site: Its node in an enumerated run, dims named.
        shape: Its batch shape.
        nesting: The number of dims that plates use.
    """
    known = symbols_of(site)
    return any(shape[dim] > 1 and dim not in known for dim in range(-len(shape), -nesting))


def check_observed(name: str, site: TraceNode) -> None:
    """Refuses data outside the support of their distribution, rows that are masked excepted.

    NaN stands for a missing entry, wherever what is left of its event has a density of its own.
    """
    fn, value = site["fn"], site["value"]
    if not value.is_floating_point() and not fn.support.is_discrete:
        raise TypeError(
            f"observed site '{name}' has dtype {value.dtype} but its distribution "
            f"({type(fn).__name__}) is continuous; convert the data to floating "
            "point with x.double() (a tensor) or x.astype(float) (an array or data frame)."
        )
    mask = _observed_mask(site)
    if value.is_floating_point():
        batch = value.shape[: value.dim() - fn.event_dim]
        rows = value.reshape((*batch, -1))
        if not bool((~rows.isinf().any(-1) | ~mask).all()):
            raise ValueError(
                f"observed site '{name}' has infinite values; remove those rows, or mask them with "
                "poutine.mask (NaN stands for a missing value)."
            )
        if not bool((~_partly_missing(fn, value) | ~mask).all()):
            raise ValueError(
                f"observed site '{name}' has missing (NaN) values in part of an event, which "
                f"{type(unwrap(fn).base).__name__} cannot integrate out; remove those rows, or "
                "mask them with poutine.mask."
            )
    try:
        valid = _is_valid(fn, value)
    except (NotImplementedError, AttributeError, RuntimeError):
        return  # a support that cannot be checked; the density will tell
    valid = valid | ~mask
    if not bool(valid.all()):
        raise ValueError(
            f"observed site '{name}' has values outside the support of its distribution "
            f"({type(unwrap(fn).base).__name__}: {shown(fn.support)}){_remedy(fn, valid)}."
        )


def _remedy(fn: Distribution, valid: Tensor) -> str:
    extended = {"Binomial": "ExtendedBinomial", "BetaBinomial": "ExtendedBetaBinomial"}
    kind = extended.get(type(unwrap(fn).base).__name__)
    if kind is not None and bool(valid.any()):
        return (
            f", counts above total_count: correct the data, or, if that depends on a latent, "
            f"write {kind}, which gives them probability zero"
        )
    return "; correct the data or choose another family"


def _partly_missing(fn: Distribution, value: Tensor) -> Tensor:
    """Rows with an event of which some entries are NaN, others not, and that has no marginal."""
    base = unwrap(fn).base
    batch = value.shape[: value.dim() - fn.event_dim]
    missing = value.isnan()
    if not base.event_dim or isinstance(base, MultivariateNormal):
        return torch.zeros(batch, dtype=torch.bool)
    events = missing.flatten(missing.dim() - base.event_dim)
    return (events.any(-1) & ~events.all(-1)).reshape((*batch, -1)).any(-1)


def _is_valid(fn: Distribution, value: Tensor) -> Tensor:
    """Whether each row lies in its support, as far as it is observed."""
    base = unwrap(fn).base
    if not value.is_floating_point():
        return torch.as_tensor(fn.support.check(value))
    missing = value.isnan()
    if base.event_dim:
        missing = missing.flatten(missing.dim() - base.event_dim).all(-1)
    if isinstance(base, MultivariateNormal):
        value = value.nan_to_num(nan=0.0)
    valid = torch.as_tensor(base.support.check(value)) | missing
    inner = fn.event_dim - base.event_dim
    return valid.flatten(valid.dim() - inner).all(-1) if inner else valid


def _observed_mask(site: TraceNode) -> Tensor:
    """The mask of a site, from ``poutine.mask`` and from ``fn.mask`` at its outermost level."""
    masks = [torch.as_tensor(True if site["mask"] is None else site["mask"])]
    fn = site["fn"]
    if isinstance(fn, MaskedDistribution):
        masks.append(torch.as_tensor(fn._mask))
    while isinstance(fn, (MaskedDistribution, ExpandedDistribution, Independent)):
        reinterpreted = fn.reinterpreted_batch_ndims if isinstance(fn, Independent) else 0
        fn = fn.base_dist
        if reinterpreted and isinstance(fn, MaskedDistribution):
            # The plan drops entries that are masked inside an event; here they excuse the row.
            inside = torch.as_tensor(fn._mask).expand(fn.batch_shape)
            masks.append(inside.flatten(inside.dim() - reinterpreted).all(-1))
    mask = masks[0]
    for other in masks[1:]:
        mask = mask & other
    return mask
