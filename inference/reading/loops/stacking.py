"""Sites of a loop as one site with a dim of steps: see ``reading/loops/finding.py``.

A stacked tensor has, from the left, a dim for each latent of a step (the loop's ``slots``), then
the plates, one place further left than in the model, and the steps in the last batch dim. What is
the same at every step is kept once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from ember.inference.numerics.shapes import append_dims, unexpanded
from ember.inference.reading.loops.finding import Family, Loop
from ember.inference.reading.unwrapping import unwrap

__all__ = ["lengths_of", "settled", "stack_loops"]


ROUNDING = 1e-12  # relative


def stack_loops(trace: Any, loops: Sequence[Loop], nesting: int) -> None:
    """Replaces the sites of each loop of a run, its dims named, by their stacked sites."""
    for loop in loops:
        nodes = _stacked_nodes(trace, loop, nesting)
        for family in loop.families:
            for name in family.names:
                trace.nodes.pop(name)
        trace.nodes.update(nodes)
        trace.plate_to_symbol[loop.time] = loop.time


def settled(trace: Any, loop: Loop, nesting: int) -> Loop | None:
    """The loop with what varies in time known, from a run at random parameters.

    None if its stacked sites do not have the densities of their members.
    """
    try:
        families = [replace(f, varies=_varying(trace, loop, f, nesting)) for f in loop.families]
        known = replace(loop, chain=families[0], others=tuple(families[1:]))
        agree = _agrees(trace, known, _stacked_nodes(trace, known, nesting), nesting)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
        return None  # a distribution that cannot be made from what it says of itself
    return known if agree else None


def lengths_of(trace: Any, loop: Loop) -> tuple[tuple[str, ...], Tensor] | None:
    """How many steps each chain has: what follows is masked, its states and its data alike."""
    node = trace.nodes[loop.latent]
    there = node["infer"]["_there"]
    if there is None:
        return None
    steps = torch.arange(1, loop.steps + 1)
    lengths = (there * steps).amax(-1).clamp_min(1)
    symbols = node["infer"]["_dim_to_symbol"]
    rank = lengths.dim()
    kept = [i for i in range(rank) if lengths.size(i) > 1]
    dims = tuple(symbols[i - rank - 1] for i in kept)
    return dims, lengths.reshape([lengths.size(i) for i in kept])


@dataclass(frozen=True)
class _Frame:
    """Where the dims of a loop's sites go: those of latents by their symbol at each step."""

    loop: Loop
    nesting: int
    slots: Mapping[str, int]
    owner: Mapping[str, tuple[Family, int]]

    @staticmethod
    def of(trace: Any, loop: Loop, nesting: int) -> "_Frame":
        owner = {
            trace.nodes[member]["infer"]["_enumerate_symbol"]: (family, step)
            for family in loop.families
            if family.latent
            for step, member in enumerate(family.members)
        }
        slots = {symbol: i for i, symbol in enumerate(loop.slots)}
        return _Frame(loop, nesting, slots, owner)

    @property
    def rank(self) -> int:
        """The number of batch dims, steps included."""
        return len(self.slots) + self.nesting + 1

    @property
    def symbols(self) -> dict[int, str]:
        """The names of the dims of latents, counted from the right."""
        return {i - self.rank: symbol for symbol, i in self.slots.items()}

    def targets(self, node: Any, step: int, batch: tuple[int, ...]) -> tuple[int, ...]:
        """For each of a site's batch dims, where it goes.

        Raises:
            ValueError: If a dim is that of a latent that the loop knows nothing of.
        """
        symbols = node["infer"].get("_dim_to_symbol", {})
        found = []
        for dim, size in zip(range(-len(batch), 0), batch, strict=True):
            if dim >= -self.nesting:
                found.append(self.rank - 1 + dim)
                continue
            place = self.slots.get(self._symbol(symbols.get(dim, ""), step), -1)
            if place < 0 and size > 1:
                raise ValueError(f"dim {dim} of site '{node['name']}' is none of its loop's.")
            found.append(place)
        return tuple(found)

    def _symbol(self, raw: str, step: int) -> str:
        if raw not in self.owner:
            return raw
        family, at = self.owner[raw]
        if at == step:
            return family.symbol
        return self.loop.previous if family is self.loop.chain and at == step - 1 else ""


def _stacked_nodes(trace: Any, loop: Loop, nesting: int) -> dict[str, Any]:
    frame = _Frame.of(trace, loop, nesting)
    nodes = {
        loop.initial: _node(trace, frame, _first(trace, frame)),
        loop.latent: _node(trace, frame, _moves(trace, frame)),
    }
    nodes.update({f.name: _node(trace, frame, _members(trace, frame, f)) for f in loop.others})
    nodes[loop.latent]["infer"]["_there"] = _there(trace, frame)
    return nodes


def _first(trace: Any, frame: _Frame) -> "_Members":
    """The first state of a chain, which has no state before it."""
    chain = frame.loop.chain
    return _Members(frame, chain, [trace.nodes[chain.names[0]]], (0,), (0,), True)


def _moves(trace: Any, frame: _Frame) -> "_Members":
    """Each state given the one before; the first entry, which no move leads to, is filled in."""
    chain = frame.loop.chain
    nodes = [trace.nodes[name] for name in chain.names[1:]]
    order = (0, *range(len(nodes)))
    return _Members(frame, chain, nodes, tuple(range(1, frame.loop.steps)), order, True)


def _members(trace: Any, frame: _Frame, family: Family) -> "_Members":
    """The sites of other families; steps without a member are filled in, and masked."""
    places = {step: i for i, step in enumerate(family.present)}
    order = tuple(places.get(step, 0) for step in range(frame.loop.steps))
    nodes = [trace.nodes[name] for name in family.names]
    return _Members(frame, family, nodes, tuple(family.present), order, False)


def _node(trace: Any, frame: _Frame, members: "_Members") -> dict[str, Any]:
    """A stacked site, in the form of a node of a trace."""
    first, family = members.nodes[0], members.family
    frames = [f._replace(dim=f.dim - 1) for f in first["cond_indep_stack"] if f.vectorized]
    symbols = {**frame.symbols, **{f.dim: trace.plate_to_symbol[f.name] for f in frames}}
    symbols[-1] = frame.loop.time
    infer: dict[str, Any] = {"_dim_to_symbol": symbols}
    event = tuple(first["fn"].event_shape)
    if family.latent:
        slot = frame.slots[family.symbol]
        infer.update(_enumerate_symbol=family.symbol, _enumerate_dim=slot - frame.rank)
        levels = first["value"].reshape(-1, *event)
        value = levels.reshape(len(levels), *(1,) * (frame.rank - slot - 1), *event)
    else:
        value = members.values(len(event))
    if not members.of_chain:
        frames.append(CondIndepStackFrame(frame.loop.time, -1, frame.loop.steps, 0))
    scale = torch.as_tensor(first["scale"])
    return {
        "type": "sample",
        "fn": members.distribution(),
        "value": value,
        "infer": infer,
        "mask": None if members.of_chain else members.mask(),
        "scale": append_dims(scale, 1) if scale.dim() else scale,
        "is_observed": not family.latent,
        "cond_indep_stack": tuple(frames),
    }


@dataclass(frozen=True)
class _Members:
    """Sites of a family, and how their tensors are joined over the steps.

    Attributes:
        nodes: Their nodes.
        at: The step of each.
        order: For each entry of the dim of steps, the position of a node.
        of_chain: Whether they are states of the chain.
    """

    frame: _Frame
    family: Family
    nodes: Sequence[Any]
    at: tuple[int, ...]
    order: tuple[int, ...]
    of_chain: bool

    def distribution(self) -> Any:
        """The members' distribution, its arguments joined; wrappers included."""
        unwrapped = [unwrap(node["fn"]) for node in self.nodes]
        bases, inner = [u.base for u in unwrapped], unwrapped[0].reinterpreted
        varies, arguments = self.family.varies, {}
        for name, event_dim in arguments_by_name(bases[0]):
            once = varies is not None and name not in varies
            values = [torch.as_tensor(getattr(b, name)) for b in (bases[:1] if once else bases)]
            arguments[name] = self.joined(values, inner + event_dim, once)
        fn = type(bases[0])(**arguments, validate_args=False)
        if unwrapped[0].mask is not None:
            fn = fn.mask(self.joined([torch.as_tensor(u.mask) for u in unwrapped], inner))
        return fn.to_event(inner) if inner else fn

    def values(self, event_dim: int) -> Tensor:
        """The data, with the dims of their plates and of the steps."""
        value = self.joined([node["value"] for node in self.nodes], event_dim)
        frames = [f for f in self.nodes[0]["cond_indep_stack"] if f.vectorized]
        own = max((-f.dim for f in frames), default=0) + 1 + event_dim
        return value.reshape(value.shape[value.dim() - own :])

    def mask(self) -> Tensor | None:
        """The masks of ``poutine.mask``, and False at steps without a member."""
        masks = [node["mask"] for node in self.nodes]
        whole = len(self.nodes) == self.frame.loop.steps
        if whole and all(mask is None or mask is True for mask in masks):
            return None
        joint = self.joined([torch.as_tensor(True if m is None else m) for m in masks], 0)
        present = torch.zeros(self.frame.loop.steps, dtype=torch.bool)
        present[list(self.at)] = True
        return joint & present

    def joined(self, tensors: Sequence[Tensor], tail: int, once: bool = False) -> Tensor:
        """A tensor of each member as one, ``tail`` dims on the right left as they are."""
        alike: dict[tuple[Any, ...], list[int]] = {}
        shown = [unexpanded(tensor, tail) for tensor in tensors]
        for i, tensor in enumerate(shown):
            batch = tuple(tensor.shape[: tensor.dim() - tail])
            targets = self.frame.targets(self.nodes[i], self.at[i], batch)
            alike.setdefault((tuple(tensor.shape), targets), []).append(i)
        pieces = [
            _placed([shown[i] for i in places], targets, self.frame.rank, tail)
            for (_, targets), places in alike.items()
        ]
        sizes = torch.broadcast_shapes(*(piece.shape[: self.frame.rank - 1] for piece in pieces))
        full = [piece.expand(*sizes, *piece.shape[self.frame.rank - 1 :]) for piece in pieces]
        found = full[0] if len(full) == 1 else torch.cat(full, self.frame.rank - 1)
        where = {i: at for at, i in enumerate(i for places in alike.values() for i in places)}
        order = [where[i] for i in (self.order[:1] if once else self.order)]
        if order == list(range(len(tensors))):
            return found
        return found.index_select(self.frame.rank - 1, torch.tensor(order))


def _placed(tensors: list[Tensor], targets: tuple[int, ...], rank: int, tail: int) -> Tensor:
    """Tensors of one shape stacked along the dim of steps, every other dim in its place."""
    first = tensors[0]
    batch = first.shape[: first.dim() - tail]
    kept = sorted((target, i) for i, target in enumerate(targets) if batch[i] > 1)
    sizes = [1] * (rank - 1)
    for target, i in kept:
        sizes[target] = batch[i]
    stacked = torch.stack(tensors)
    stacked = stacked.permute(
        *(1 + i for _, i in kept), *(1 + i for i in range(len(batch)) if batch[i] == 1), 0,
        *range(1 + len(batch), stacked.dim()),
    )  # fmt: skip
    return stacked.reshape(*sizes, len(tensors), *first.shape[first.dim() - tail :])


def arguments_by_name(base: Any) -> list[tuple[str, int]]:
    """The arguments that a distribution was made of, each with its number of event dims."""
    given = []
    for name, constraint in base.arg_constraints.items():
        either = name in ("probs", "logits", "precision_matrix", "covariance_matrix", "scale_tril")
        if not either or name in base.__dict__:
            given.append((name, constraint.event_dim))
    return given


def _there(trace: Any, frame: _Frame) -> Tensor | None:
    """Which steps of each chain are not masked as a whole, over its plates and the steps."""
    loop = frame.loop
    states = _Members(
        frame, loop.chain, [trace.nodes[name] for name in loop.chain.names],
        tuple(range(loop.steps)), tuple(range(loop.steps)), False,
    )  # fmt: skip
    frames = [f for f in states.nodes[0]["cond_indep_stack"] if f.vectorized]
    own = {frame.rank - 1 + f.dim for f in frames} | {frame.rank - 1}
    there = torch.zeros((), dtype=torch.bool)
    for members in (states, *(_members(trace, frame, family) for family in loop.others)):
        mask = members.mask()
        if mask is None:
            return None
        over = [i for i in range(frame.rank) if i not in own]
        there = there | mask.amax(over, keepdim=True)
    return there.reshape(there.shape[len(frame.slots) :])


def _varying(trace: Any, loop: Loop, family: Family, nesting: int) -> frozenset[str]:
    """Arguments that differ between the steps."""
    frame = _Frame.of(trace, loop, nesting)
    of_chain = family is loop.chain
    members = _moves(trace, frame) if of_chain else _members(trace, frame, family)
    found = set()
    bases = [unwrap(node["fn"]).base for node in members.nodes]
    inner = unwrap(members.nodes[0]["fn"]).reinterpreted
    for name, event_dim in arguments_by_name(bases[0]):
        values = [torch.as_tensor(getattr(base, name)) for base in bases]
        joint = members.joined(values, inner + event_dim)
        if not bool((joint == joint.narrow(frame.rank - 1, 0, 1)).all()):
            found.add(name)
    return frozenset(found)


def _agrees(trace: Any, loop: Loop, nodes: Mapping[str, Any], nesting: int) -> bool:
    """Whether the stacked sites have the densities that their members have."""
    frame = _Frame.of(trace, loop, nesting)
    stacked = [(loop.initial, _first(trace, frame)), (loop.latent, _moves(trace, frame))]
    stacked += [(family.name, _members(trace, frame, family)) for family in loop.others]
    for name, members in stacked:
        own = members.joined([_log_prob(node) for node in members.nodes], 0)
        found, truth = torch.broadcast_tensors(_log_prob(nodes[name]), own)
        if not torch.allclose(found, truth, rtol=ROUNDING, atol=ROUNDING, equal_nan=True):
            return False
    return True


def _log_prob(node: Any) -> Tensor:
    value = node["value"]
    if value.is_floating_point():
        value = value.nan_to_num(nan=0.5)  # some number, the same in both
    log_prob: Tensor = node["fn"].log_prob(value)
    return log_prob
