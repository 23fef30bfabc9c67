"""Distributions that hide a latent site, opened into the sites that they stand for.

``DiscreteHMM`` sums over the states of a chain, ``GaussianHMM`` and ``LinearHMM`` integrate over
them, ``MixtureSameFamily`` sums over the components of a mixture. Opened, their latents are
integrated like any other, and the parameters inside them get the closed-form updates of their
families:

    x ~ DiscreteHMM(initial, transition, emission)   becomes   state[0], state, x | state
    x ~ GaussianHMM(initial, A, noise, C, noise)     becomes   state[0], state, x | state
    x ~ MixtureSameFamily(weights, components)       becomes   component, x | component

A site names its latent by ``infer={"state": "regime"}`` or ``infer={"component": "kind"}``, which
Pyro ignores; otherwise it is called ``state`` (``component``), after the site where that is taken.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.reading.gaussian.opening import open_gaussian_chain
from ember.inference.reading.gaussian.remembered import arguments_of_chain
from ember.inference.reading.opened_parts import joined_masks, moved_symbols, part_of
from ember.inference.reading.trace import Trace, TraceNode, made_frame, symbols_of

__all__ = ["Composite", "bare", "emits_at_once", "find_composites", "open_composites"]


@dataclass(frozen=True)
class Composite:
    """An observed site that hides a latent, and what its parts are called.

    Attributes:
        site: The observed site.
        latent: The latent site it hides.
        steps: The number of time steps of a chain; None for a mixture.
        time: The name of the plate of time steps.
        at_once: Whether a chain's initial distribution is that of its first emitting step.
            Pyro's ``DiscreteHMM`` moves once before it emits; a subclass that does not says so
            by a class attribute ``emits_at_once = True``.
        gaussian: Whether the states of a chain are Gaussian: integrated, not summed over.
    """

    site: str
    latent: str
    steps: int | None = None
    time: str = ""
    at_once: bool = False
    gaussian: bool = False

    @property
    def initial(self) -> str:
        """The factor of a chain's first state."""
        return f"{self.latent}[0]"

    @property
    def symbol(self) -> str:
        """The dim of the latent's values."""
        return self.latent

    @property
    def previous(self) -> str:
        """The dim of a chain's state one step before."""
        return f"{self.latent}, one step before"


def find_composites(
    name: str, site: TraceNode, taken: Container[str], closed: Container[str] = ()
) -> list[Composite]:
    """The latents that an observed site hides, outermost first; none for an ordinary site.

    Args:
        name: The site.
        site: Its node in a plain run.
        taken: Names that latents may not have.
        closed: Gaussian latents that are to stay hidden.
    """
    composites: list[Composite] = []
    fn = bare(site["fn"])[0]
    given = arguments_of_chain(fn)
    if given is not None or isinstance(fn, dist.DiscreteHMM):
        latent = _name(site, name, "state", taken)
        time = "time" if "time" not in taken else f"{name}_time"
        steps = site["value"].shape[site["value"].dim() - fn.event_dim]
    if given is not None:
        hidden = Composite(name, latent, steps, time, gaussian=True)
        return [] if latent in closed else [hidden]
    if isinstance(fn, dist.DiscreteHMM):
        composites.append(Composite(name, latent, steps, time, emits_at_once(fn)))
        fn = bare(fn.observation_dist)[0]
    if isinstance(fn, dist.MixtureSameFamily):
        composites.append(Composite(name, _name(site, name, "component", taken)))
    return composites


def _name(
    site: TraceNode, name: str, kind: Literal["state", "component"], taken: Container[str]
) -> str:
    wished = site["infer"].get(kind)
    if wished is not None:
        if not isinstance(wished, str) or wished in taken:
            raise ValueError(
                f"site '{name}' names its latent by infer={{'{kind}': {wished!r}}}; use a string "
                "that no other site of the model is called."
            )
        return wished
    return kind if kind not in taken else f"{name}_{kind}"


def open_composites(trace: Trace, composites: list[Composite]) -> None:
    """Replaces every composite site of a symbolised trace by its parts."""
    for composite in composites:
        node = trace.nodes[composite.site]
        if composite.gaussian:
            parts = _gaussian_chain
        else:
            parts = _chain if composite.steps is not None else _mixture
        trace.nodes.update(parts(composite, node))
        if composite.time:
            trace.plate_to_symbol[composite.time] = composite.time


def emits_at_once(fn: Distribution) -> bool:
    """Whether the first state of a chain emits; see ``Composite.at_once``."""
    return bool(getattr(type(fn), "emits_at_once", False))


def bare(fn: Distribution) -> tuple[Distribution, Tensor | None]:
    """A distribution without masks around it, and their product."""
    mask = None
    while isinstance(fn, MaskedDistribution):
        outer = torch.as_tensor(fn._mask)
        mask = outer if mask is None else mask & outer
        fn = fn.base_dist
    return fn, mask


def _chain(composite: Composite, node: TraceNode) -> Mapping[str, TraceNode]:
    fn, mask = bare(node["fn"])
    assert isinstance(fn, dist.DiscreteHMM)
    assert composite.steps is not None
    symbols, values = symbols_of(node), torch.arange(fn.initial_logits.shape[-1])
    first = dist.Categorical(logits=fn.initial_logits, validate_args=False)
    move = dist.Categorical(logits=fn.transition_logits, validate_args=False)
    emission = fn.observation_dist
    inner = {-1: composite.previous, -2: composite.time, **moved_symbols(symbols, 2)}
    outer = {-1: composite.symbol, -2: composite.time, **moved_symbols(symbols, 2)}
    data = part_of(node, emission, node["value"].unsqueeze(-1 - emission.event_dim), outer, 2)
    data["mask"] = joined_masks((node["mask"], mask), 2)
    time = made_frame(composite.time, -2, composite.steps)
    data["cond_indep_stack"] = (*data["cond_indep_stack"], time)
    # A chain without data has no steps: its states need no mask.
    return {
        composite.initial: _latent(composite, node, first, values, symbols, 0),
        composite.latent: _latent(composite, node, move, values, inner, 2),
        composite.site: data,
    }


def _gaussian_chain(composite: Composite, node: TraceNode) -> Mapping[str, TraceNode]:
    fn, mask = bare(node["fn"])
    given = arguments_of_chain(fn)
    assert given is not None
    assert composite.steps is not None
    parts = open_gaussian_chain(node, given, fn.batch_shape, mask, composite.time, composite.steps)
    names = composite.initial, composite.latent, composite.site
    return dict(zip(names, parts, strict=True))


def _mixture(composite: Composite, node: TraceNode) -> Mapping[str, TraceNode]:
    fn, mask = bare(node["fn"])
    assert isinstance(fn, dist.MixtureSameFamily)
    symbols = symbols_of(node)
    weights = _exact(fn.mixture_distribution)
    values = torch.arange(weights._num_events)
    choice = _latent(composite, node, weights, values, symbols, 0)
    choice["mask"] = joined_masks((node["mask"], mask), 0)
    parts = fn.component_distribution
    inner = {-1: composite.symbol, **moved_symbols(symbols, 1)}
    data = part_of(node, parts, node["value"].unsqueeze(-1 - parts.event_dim), inner, 1)
    data["mask"] = joined_masks((node["mask"], mask), 1)
    return {composite.latent: choice, composite.site: data}


def _exact(weights: dist.Categorical) -> dist.Categorical:
    """Weights as they were given: made into logits, a probability of zero is not quite zero."""
    if "probs" in vars(weights):
        return dist.Categorical(probs=weights.probs, validate_args=False)
    return dist.Categorical(logits=weights.logits, validate_args=False)


def _latent(
    composite: Composite,
    node: TraceNode,
    fn: dist.Categorical,
    values: Tensor,
    symbols: Mapping[int, str],
    shift: int,
) -> TraceNode:
    """A latent part, its values in a dim left of all others."""
    left = 1 + max(len(fn.batch_shape), *(-dim for dim in symbols), 0)
    named = {**symbols, -left: composite.symbol}
    part = part_of(node, fn, values.reshape(-1, *(1,) * (left - 1)), named, shift)
    part["infer"]["_enumerate_symbol"] = composite.symbol
    part["infer"]["_enumerate_dim"] = -left
    part["is_observed"] = False
    return part
