"""Sites that are observed in part: by ``obs_mask``, or at some steps of a loop only.

Pyro makes two sites of one with an ``obs_mask``, ``z_observed`` and ``z_unobserved``, each masked
where the other counts. That hides what the site is, so the two are made one again:

* a latent with finite support becomes one latent ``z``, known where it was observed: an observed
  site ``z_observed`` below it shows its value through a channel without noise;
* data become one observed site with missing entries.

Steps of a loop with ``obs=None`` where others have a value are of the same two kinds: those without
data have missing data; and where the states of some steps are given, these are latent and known.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import broadcast_shapes
from ember.inference.reading.checks.sites import check_observed
from ember.inference.reading.trace import (
    Infer,
    Trace,
    TraceNode,
    is_computed,
    plates_of,
    symbols_of,
)
from ember.inference.reading.unwrapping import unwrap

__all__ = ["Partly", "dims_of_latents", "find_given", "find_partly_observed", "nothing"]


_NUMBER = re.compile(r"\d+(?=\D*$)")


@dataclass(frozen=True)
class Partly:
    """Sites of a model that are observed in part.

    Attributes:
        latents: Latents that are known at some entries.
        data: Data made of two sites, of which the second is missing.
        missing: Data that are missing as a whole.
        given: Latents, steps of a loop, that are known as a whole.
    """

    latents: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    whole: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "whole", {_hidden(name): name for name in self.latents})

    @property
    def undrawn(self) -> frozenset[str]:
        """Sites of missing data."""
        return frozenset({*self.missing, *map(_hidden, self.data)})

    @property
    def channels(self) -> frozenset[str]:
        """Observed sites that say what a latent is."""
        return frozenset(map(_shown, (*self.latents, *self.given)))

    def merge(self, trace: Trace) -> None:
        """Makes one site of each two in a run, in place."""
        if not (self.latents or self.data or self.missing or self.given):
            return
        nodes = dict(trace.nodes)
        trace.nodes.clear()
        parts = {_shown(n) for n in (*self.latents, *self.data)} | {*self.latents, *self.data}
        for name, node in nodes.items():
            if name in self.whole:
                whole = self.whole[name]
                trace.nodes[whole] = _latent(whole, nodes[_shown(whole)], node)
                trace.nodes[_shown(whole)] = _channel(nodes[_shown(whole)], node)
            elif name in self.undrawn and name not in self.missing:
                whole = name.removesuffix("_unobserved")
                trace.nodes[whole] = _gappy(whole, nodes[_shown(whole)], node)
            elif name in self.missing:
                trace.nodes[name] = {**node, "value": nothing(node), "is_observed": True}
            elif name in self.given:
                label = node["infer"].get("_given", node["value"])
                trace.nodes[name] = {**node, "is_observed": False}
                trace.nodes[_shown(name)] = _channel({**node, "value": label}, node)
            elif name not in parts:
                trace.nodes[name] = node

    def check_leaves(self, trace: Trace) -> None:
        """Refuses missing data that other sites depend on.

        Raises:
            ValueError: Naming the two.
        """
        if not self.undrawn:
            return
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or is_computed(node):
                continue
            arguments = vars(unwrap(node["fn"]).base).values()
            if any(isinstance(a, Tensor) and bool(a.isnan().any()) for a in arguments):
                raise ValueError(
                    f"site '{name}' depends on data that are missing (of {sorted(self.undrawn)}, "
                    "which have no value at some entries), and this version integrates discrete "
                    "latents only; give those data a value, or leave the dependence out."
                )

    def restore(self, trace: Trace) -> None:
        """In a run that has drawn all sites: each under its own name."""
        nodes = trace.nodes
        for name in self.given:
            nodes[_shown(name)] = nodes[name]
        for name in self.latents:
            nodes[name] = {**nodes[_hidden(name)], "value": nodes[name]["value"]}
        for name in self.data:
            nodes[name] = nodes[_shown(name)]


def find_partly_observed(plain: Trace, steps: Collection[str]) -> Partly:
    """The sites of a plain run that are observed in part.

    Args:
        plain: The run.
        steps: Sites inside ``pyro.markov``.

    Raises:
        ValueError: If a latent's known value lies outside its support.
    """
    nodes = plain.nodes
    latents, data, missing = [], [], []
    families = {_NUMBER.sub("#", name) for name in steps if nodes[name]["is_observed"]}
    for name, node in nodes.items():
        if node["type"] != "sample":
            continue
        shown, hidden = nodes.get(_shown(name)), nodes.get(_hidden(name))
        if is_computed(node) and shown is not None and hidden is not None:
            if not shown["is_observed"] or hidden["is_observed"]:
                continue
            if _is_summed(hidden["fn"]):
                check_observed(name, shown)
                latents.append(name)
            else:
                data.append(name)
        elif (
            name in steps
            and not node["is_observed"]
            and not is_computed(node)
            and not _is_summed(node["fn"])
            and _NUMBER.sub("#", name) in families
        ):
            missing.append(name)
    return Partly(tuple(latents), tuple(data), tuple(missing))


def find_given(
    trace: Trace, latent: Collection[str], observed: Collection[str], steps: Collection[str]
) -> tuple[str, ...]:
    """Observed steps of a loop whose other steps are latents that sites depend on.

    Args:
        trace: An enumerated run, its dims named.
        latent: The latent sites.
        observed: The observed ones.
        steps: Sites inside ``pyro.markov``.
    """
    nodes = trace.nodes
    symbols = {nodes[n]["infer"]["_enumerate_symbol"]: n for n in latent if n in steps}
    needed = {
        symbols[s]
        for name in (*latent, *observed)
        for s in dims_of_latents(nodes[name])
        if symbols.get(s, name) != name
    }
    families = {_NUMBER.sub("#", name) for name in needed}
    return tuple(
        name
        for name in observed
        if name in steps and _NUMBER.sub("#", name) in families and _is_summed(nodes[name]["fn"])
    )


def dims_of_latents(node: TraceNode) -> list[str]:
    """The named dims along which a site's distribution or value has entries."""
    fn, value = node["fn"], node["value"]
    shape = broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - fn.event_dim])
    symbols = symbols_of(node)
    named = ((i - len(shape), size) for i, size in enumerate(shape))
    return [symbols[dim] for dim, size in named if size > 1 and dim in symbols]


def _is_summed(fn: Distribution) -> bool:
    return bool(fn.support.is_discrete and fn.has_enumerate_support)


def _shown(name: str) -> str:
    return f"{name}_observed"


def _hidden(name: str) -> str:
    return f"{name}_unobserved"


def nothing(msg: TraceNode) -> Tensor:
    """A value that is missing throughout: an entry for each row of the site's plates."""
    sizes = {plate.dim: plate.size for plate in plates_of(msg)}
    batch = [sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0)]
    return torch.full((*batch, *msg["fn"].event_shape), torch.nan, dtype=torch.float64)


def _latent(name: str, shown: TraceNode, hidden: TraceNode) -> TraceNode:
    """The latent: its mask is what both are masked by, besides by each other."""
    outer = torch.as_tensor(shown["mask"]) | torch.as_tensor(hidden["mask"])
    return {**hidden, "name": name, "mask": None if bool(outer.all()) else outer}


def _channel(shown: TraceNode, hidden: TraceNode) -> TraceNode:
    """An observed site that gives the latent away where it was observed."""
    fn = hidden["fn"]
    event = tuple(fn.event_shape)
    values = fn.enumerate_support(expand=False)
    levels = len(values)
    support = values.reshape(levels, *event)
    hit = shown["value"].unsqueeze(-1 - len(event)) == support
    hit = hit.flatten(hit.dim() - len(event)).all(-1) if event else hit
    codes = hit.to(torch.int8).argmax(-1)
    dim = hidden["infer"].get("_enumerate_dim", 0)
    exact = torch.eye(levels, dtype=torch.float64)
    exact = exact.reshape(levels, *(1,) * (-dim - 1), levels) if dim else exact[0]
    infer: Infer = {}
    if "_dim_to_symbol" in hidden["infer"]:
        infer["_dim_to_symbol"] = hidden["infer"]["_dim_to_symbol"]
    if "_markov_depth" in hidden["infer"]:
        infer["_markov_depth"] = hidden["infer"]["_markov_depth"]
    return {
        **shown, "fn": dist.Categorical(probs=exact, validate_args=False), "value": codes,
        "infer": infer, "is_observed": True,
    }  # fmt: skip


def _gappy(name: str, shown: TraceNode, hidden: TraceNode) -> TraceNode:
    """Data with missing entries."""
    inside = torch.as_tensor(shown["mask"])
    outer = inside | torch.as_tensor(hidden["mask"])
    fn = shown["fn"]
    value = shown["value"].to(torch.float64)
    batch = value.shape[: value.dim() - fn.event_dim]
    full = broadcast_shapes(inside.shape, batch)
    # Entries that another mask takes out are not there at all: their value does not matter.
    gone = (outer & ~inside).expand(full).reshape((*full, *(1,) * fn.event_dim))
    return {
        **shown, "name": name, "value": torch.where(gone, torch.nan, value),
        "mask": None if bool(outer.all()) else outer,
    }  # fmt: skip
