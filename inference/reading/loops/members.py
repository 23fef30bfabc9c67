"""The sites of one family of a loop, their tensors joined along a dim of steps.

A joined tensor has, from the left, a dim for each latent of a step (the loop's ``latent_dims``),
then the plates, one place further left than in the model, and the steps in the last batch dim.
What is the same at every step is kept once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution, remade
from ember.inference.numerics.shapes import broadcast_shapes, unexpanded
from ember.inference.reading.loops.loop import Family, Loop
from ember.inference.reading.trace import Trace, TraceNode, plates_of, symbols_of
from ember.inference.reading.unwrapping import MATRICES, unwrap

__all__ = ["Members", "StackedDims", "family_members", "first_state", "moves", "varying"]


@dataclass(frozen=True)
class StackedDims:
    """Where the dims of a loop's sites go: those of latents by their symbol at each step.

    Attributes:
        loop: The loop.
        nesting: The number of dims that plates use in the model.
        position: Symbol of a latent's dim to its position from the left.
        latent_of: Symbol in the model to the family of the latent, and its step.
    """

    loop: Loop
    nesting: int
    position: Mapping[str, int]
    latent_of: Mapping[str, tuple[Family, int]]

    @staticmethod
    def of(trace: Trace, loop: Loop, nesting: int) -> "StackedDims":
        latent_of = {
            trace.nodes[member]["infer"]["_enumerate_symbol"]: (family, step)
            for family in loop.families
            if family.latent
            for step, member in zip(family.present, family.names, strict=True)
        }
        position = {symbol: i for i, symbol in enumerate(loop.latent_dims)}
        return StackedDims(loop, nesting, position, latent_of)

    @property
    def rank(self) -> int:
        """The number of batch dims, steps included."""
        return len(self.position) + self.nesting + 1

    @property
    def symbols(self) -> dict[int, str]:
        """The names of the dims of latents, counted from the right."""
        return {i - self.rank: symbol for symbol, i in self.position.items()}

    def targets(self, node: TraceNode, step: int, batch: tuple[int, ...]) -> tuple[int, ...]:
        """For each of a site's batch dims, where it goes.

        Raises:
            ValueError: If a dim is that of a latent that the loop knows nothing of.
        """
        symbols = symbols_of(node)
        targets = []
        for dim, size in zip(range(-len(batch), 0), batch, strict=True):
            if dim >= -self.nesting:
                targets.append(self.rank - 1 + dim)
                continue
            target = self.position.get(self._symbol(symbols.get(dim, ""), step), -1)
            if target < 0 and size > 1:
                raise ValueError(f"dim {dim} of site '{node['name']}' is none of its loop's.")
            targets.append(target)
        return tuple(targets)

    def _symbol(self, raw: str, step: int) -> str:
        if raw not in self.latent_of:
            return raw
        family, at = self.latent_of[raw]
        if at == step:
            return family.symbol
        return self.loop.previous if family is self.loop.chain and at == step - 1 else ""


@dataclass(frozen=True)
class Members:
    """Sites of a family, and how their tensors are joined over the steps.

    Attributes:
        dims: Where their dims go.
        family: The family.
        nodes: Their nodes.
        steps: The step of each.
        order: For each entry of the dim of steps, the position of a node.
        of_chain: Whether they are states of the chain.
    """

    dims: StackedDims
    family: Family
    nodes: Sequence[TraceNode]
    steps: tuple[int, ...]
    order: tuple[int, ...]
    of_chain: bool

    def distribution(self) -> Distribution:
        """The members' distribution, its arguments joined; wrappers included."""
        unwrapped = [unwrap(node["fn"]) for node in self.nodes]
        bases, inner = [u.base for u in unwrapped], unwrapped[0].reinterpreted
        varies, arguments = self.family.varies, {}
        for name, event_dim in _arguments_by_name(bases[0]):
            once = varies is not None and name not in varies
            values = [torch.as_tensor(getattr(b, name)) for b in (bases[:1] if once else bases)]
            arguments[name] = self.joined(values, inner + event_dim, once)
        fn = remade(bases[0], arguments)
        if unwrapped[0].mask is not None:
            fn = fn.mask(self.joined([torch.as_tensor(u.mask) for u in unwrapped], inner))
        return fn.to_event(inner) if inner else fn

    def values(self, event_dim: int) -> Tensor:
        """The data, with the dims of their plates and of the steps."""
        value = self.joined([node["value"] for node in self.nodes], event_dim)
        outermost = max((-plate.dim for plate in plates_of(self.nodes[0])), default=0)
        rank = outermost + 1 + event_dim
        return value.reshape(value.shape[value.dim() - rank :])

    def mask(self) -> Tensor | None:
        """The masks of ``poutine.mask``, and False at steps without a member."""
        masks = [node["mask"] for node in self.nodes]
        whole = len(self.nodes) == self.dims.loop.steps
        if whole and all(mask is None or mask is True for mask in masks):
            return None
        joint = self.joined([torch.as_tensor(True if m is None else m) for m in masks], 0)
        present = torch.zeros(self.dims.loop.steps, dtype=torch.bool)
        present[list(self.steps)] = True
        return joint & present

    def joined(self, tensors: Sequence[Tensor], event_dim: int, once: bool = False) -> Tensor:
        """A tensor of each member as one, ``event_dim`` dims on the right left as they are."""
        rank = self.dims.rank
        alike: dict[tuple[torch.Size, tuple[int, ...]], list[int]] = {}
        small = [unexpanded(tensor, event_dim) for tensor in tensors]
        for i, tensor in enumerate(small):
            batch = tuple(tensor.shape[: tensor.dim() - event_dim])
            targets = self.dims.targets(self.nodes[i], self.steps[i], batch)
            alike.setdefault((tensor.shape, targets), []).append(i)
        pieces = [
            _stacked([small[i] for i in which], targets, rank, event_dim)
            for (_, targets), which in alike.items()
        ]
        sizes = broadcast_shapes(*(piece.shape[: rank - 1] for piece in pieces))
        full = [piece.expand(*sizes, *piece.shape[rank - 1 :]) for piece in pieces]
        joint = full[0] if len(full) == 1 else torch.cat(full, rank - 1)
        position = {i: at for at, i in enumerate(i for which in alike.values() for i in which)}
        order = [position[i] for i in (self.order[:1] if once else self.order)]
        if order == list(range(len(tensors))):
            return joint
        return joint.index_select(rank - 1, torch.tensor(order))


def _stacked(tensors: list[Tensor], targets: tuple[int, ...], rank: int, event_dim: int) -> Tensor:
    """Tensors of one shape stacked along the dim of steps, every other dim where it belongs."""
    first = tensors[0]
    batch = first.shape[: first.dim() - event_dim]
    kept = sorted((target, i) for i, target in enumerate(targets) if batch[i] > 1)
    sizes = [1] * (rank - 1)
    for target, i in kept:
        sizes[target] = batch[i]
    stacked = torch.stack(tensors)
    stacked = stacked.permute(
        *(1 + i for _, i in kept), *(1 + i for i in range(len(batch)) if batch[i] == 1), 0,
        *range(1 + len(batch), stacked.dim()),
    )  # fmt: skip
    return stacked.reshape(*sizes, len(tensors), *first.shape[first.dim() - event_dim :])


def _arguments_by_name(base: Distribution) -> list[tuple[str, int]]:
    """The arguments that a distribution was made of, each with its number of event dims."""
    alternatives = ("probs", "logits", *MATRICES)
    return [
        (name, constraint.event_dim)
        for name, constraint in base.arg_constraints.items()
        if name not in alternatives or name in base.__dict__
    ]


def first_state(trace: Trace, dims: StackedDims) -> Members:
    """The first state of a chain, which has no state before it."""
    chain = dims.loop.chain
    return Members(dims, chain, [trace.nodes[chain.names[0]]], (0,), (0,), True)


def moves(trace: Trace, dims: StackedDims) -> Members:
    """Each state given the one before; the first entry, which no move leads to, is filled in."""
    chain = dims.loop.chain
    nodes = [trace.nodes[name] for name in chain.names[1:]]
    order = (0, *range(len(nodes)))
    return Members(dims, chain, nodes, tuple(range(1, dims.loop.steps)), order, True)


def family_members(trace: Trace, dims: StackedDims, family: Family) -> Members:
    """The sites of other families; steps without a member are filled in, and masked."""
    position = {step: i for i, step in enumerate(family.present)}
    order = tuple(position.get(step, 0) for step in range(dims.loop.steps))
    nodes = [trace.nodes[name] for name in family.names]
    return Members(dims, family, nodes, tuple(family.present), order, False)


def varying(trace: Trace, dims: StackedDims, family: Family) -> frozenset[str]:
    """Arguments of a family's distribution that differ between the steps."""
    of_chain = family is dims.loop.chain
    members = moves(trace, dims) if of_chain else family_members(trace, dims, family)
    bases = [unwrap(node["fn"]).base for node in members.nodes]
    inner = unwrap(members.nodes[0]["fn"]).reinterpreted
    names = set()
    for name, event_dim in _arguments_by_name(bases[0]):
        values = [torch.as_tensor(getattr(base, name)) for base in bases]
        joint = members.joined(values, inner + event_dim)
        if not bool((joint == joint.narrow(dims.rank - 1, 0, 1)).all()):
            names.add(name)
    return frozenset(names)
