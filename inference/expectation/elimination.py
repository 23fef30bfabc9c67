r"""Sums discrete latents out of a product of factors, exactly.

The log evidence of a plated factor graph is computed by variable elimination from the innermost
plate outwards (Obermeyer et al. 2019, *Tensor variable elimination for plated factor graphs*,
ICML). Factors are log-probability tensors with named dims: one symbol for each latent and one
for each plate. The order of elimination is found once; each call then only adds, reduces and
sums tensors, so the gradient with respect to a factor, its posterior expectation, is autograd's.

``poutine.scale`` weighs a latent together with everything below it, like repeated rows: inside,
factors carry the ratio of their scale to their latent's; outside, the result carries the
latent's scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.expectation.chains.blocks import Potentials
from ember.inference.expectation.chains.step import ChainStep
from ember.inference.factors.chain import Chain
from ember.inference.factors.factor import (
    Factor,
    Scale,
    View,
    align,
    same_scale,
    scale_ratio,
    through_view,
    view_between,
)

__all__ = ["Contraction"]


@dataclass(frozen=True)
class _Item:
    slot: int
    dims: frozenset[str]
    plates: frozenset[str]
    scale: Scale | None


@dataclass(frozen=True)
class _Step:
    """``out = reduce(sum of aligned inputs)``; a view is a permutation and a shape."""

    inputs: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]
    reduce: str
    over: tuple[int, ...]
    times: float
    weight: Tensor | None


class Contraction:
    """A compiled elimination order for one set of factors.

    Args:
        factors: The factors, in the order in which their tensors will be given.
        latents: For each latent symbol, the name of its site (for messages) and its scale.
        sizes: The size of every symbol.
        chains: Hidden Markov chains among the latents, whose steps lie along one dim.

    Raises:
        ValueError: If latents that share a factor lie in plates that are not nested, or have
            scales that cannot be reconciled.
    """

    def __init__(
        self,
        factors: Sequence[Factor],
        latents: dict[str, tuple[str, Scale | None]],
        sizes: dict[str, int],
        chains: Sequence[Chain] = (),
    ) -> None:
        self._latents = latents
        self._sizes = sizes
        self._chains = tuple(chains)
        self._steps: list[_Step | _ChainRun] = []
        self._layouts: list[tuple[str, ...]] = [factor.dims for factor in factors]
        live = [_Item(i, frozenset(f.dims), f.plates, f.scale) for i, f in enumerate(factors)]
        self.results: list[_Item] = self._compile(live)

    def __call__(self, tensors: Sequence[Tensor], maximum: bool = False) -> list[Tensor]:
        """The unweighted log evidence of each independent part, plates left standing."""
        slots = list(tensors)
        for step in self._steps:
            slots.append(_run(step, slots, maximum))
        return [slots[item.slot] for item in self.results]

    def potentials(
        self, tensors: Sequence[Tensor], state: str
    ) -> tuple[Potentials, tuple[str, ...]]:
        """A chain's potentials, all other latents of its steps summed out; and dims of its rows."""
        slots = list(tensors)
        for step in self._steps:
            if isinstance(step, _ChainRun) and step.step.chain.state == state:
                return step.step.potentials(step.seen(slots)), step.step.rest
            slots.append(_run(step, slots, False))
        return self._certain(next(chain for chain in self._chains if chain.state == state))

    def _certain(self, chain: Chain) -> tuple[Potentials, tuple[str, ...]]:
        """A chain of a single state: no factor has its dim, and nothing was summed."""
        rest, lengths = chain.lengths or ((), None)
        sizes = tuple(self._sizes[symbol] for symbol in rest)
        lengths = None if lengths is None else lengths.expand(sizes).reshape(-1)
        nowhere: tuple[int, View] = (0, ((), ()))
        step = ChainStep(chain, rest, sizes, 1, nowhere, (nowhere,), (), lengths)
        zero = torch.zeros((), dtype=torch.float64)
        return step.potentials((zero, zero)), rest

    def total(
        self, parts: Sequence[Tensor], weighted: bool = True, along: str | None = None
    ) -> Tensor:
        """Sums parts over their plates, each row as often as its scale says.

        Args:
            parts: What the contraction returned.
            weighted: Whether the scales count.
            along: A plate that is left standing; parts outside it are left out.
        """
        total = torch.zeros((), dtype=torch.float64)
        for item, part in zip(self.results, parts, strict=True):
            if along is not None and along not in item.plates:
                continue
            layout = self._layouts[item.slot]
            if weighted and item.scale is not None:
                part, layout = self._weigh(part, layout, item.scale)
            gone = tuple(i for i, symbol in enumerate(layout) if symbol != along)
            part = part.sum(gone) if gone else part
            total = total + part * self._missing(item.plates - {along}, layout)
        return total

    def _weigh(
        self, part: Tensor, layout: tuple[str, ...], scale: Scale
    ) -> tuple[Tensor, tuple[str, ...]]:
        union = (*layout, *(d for d in scale.dims if d not in layout))
        left = part.reshape((*part.shape, *(1,) * (len(union) - len(layout))))
        return left * align(scale.tensor, scale.dims, union), union

    def _missing(self, plates: frozenset[str | None], layout: Sequence[str]) -> float:
        """A part that does not vary over a plate counts once for each of its rows."""
        factor = 1.0
        for plate in plates:
            if plate is not None and plate not in layout:
                factor *= self._sizes[plate]
        return factor

    def _compile(self, live: list[_Item]) -> list[_Item]:
        home: dict[str, frozenset[str]] = {}
        for item in live:
            for symbol in item.dims & self._latents.keys():
                home[symbol] = home.get(symbol, item.plates) & item.plates
        results: list[_Item] = []
        while live:
            leaf = max((item.plates for item in live), key=len)
            here = [item for item in live if item.plates == leaf]
            live = [item for item in live if item.plates != leaf]
            ready = {symbol for symbol, plates in home.items() if plates == leaf}
            for group, symbols in _connected(here, ready):
                item = self._eliminate(group, symbols)
                remaining = item.dims & self._latents.keys()
                if not remaining:
                    results.append(item)
                    continue
                parent = frozenset[str]().union(*(home[symbol] for symbol in remaining))
                if not parent < leaf:
                    names = sorted(self._latents[s][0] for s in remaining)
                    raise ValueError(
                        f"latent sites {names} meet in a factor but lie in plates that are not "
                        "nested; exact summation needs nested plates: put one plate inside the "
                        "other, or sum one of the latents by hand."
                    )
                live.append(self._reduce_plates(item, parent, remaining))
        return results

    def _eliminate(self, group: list[_Item], symbols: set[str]) -> _Item:
        if not symbols:
            assert len(group) == 1
            return group[0]
        scale = self._common_scale(symbols)
        items = [self._rescale(item, scale, symbols) for item in group]
        pending = set(symbols)
        for chain in self._chains:
            if pending & chain.symbols:
                pending -= chain.symbols
                members = [item for item in items if item.dims & chain.symbols]
                items = [item for item in items if not item.dims & chain.symbols]
                items.append(self._sum_chain(chain, members))
        while pending:
            symbol = min(sorted(pending), key=lambda s: self._cost(s, items))
            pending.remove(symbol)
            touched = [item for item in items if symbol in item.dims]
            items = [item for item in items if symbol not in item.dims]
            items.append(self._combine(touched, symbol))
        return items[0] if len(items) == 1 else self._combine(items, None)

    def _cost(self, symbol: str, items: list[_Item]) -> int:
        dims = frozenset[str]().union(*(item.dims for item in items if symbol in item.dims))
        cost = 1
        for dim in dims:
            cost *= self._sizes[dim]
        return cost

    def _combine(self, items: list[_Item], symbol: str | None) -> _Item:
        dims = frozenset[str]().union(*(item.dims for item in items))
        rest = self._order(dims - {symbol} if symbol else dims)
        union = (symbol, *rest) if symbol else rest
        inputs = tuple(
            (item.slot, *view_between(self._layouts[item.slot], union)) for item in items
        )
        slot = self._push(inputs, "sum" if symbol is None else "latent", (0,), rest)
        return _Item(slot, frozenset(rest), items[0].plates, items[0].scale)

    def _sum_chain(self, chain: Chain, items: list[_Item]) -> _Item:
        dims = frozenset[str]().union(*(item.dims for item in items))
        rest = self._order(dims - chain.symbols - {chain.time})
        first = next(item for item in items if item.slot == chain.initial)
        moves = [i for i in items if i.slot == chain.move or chain.previous in i.dims]
        emissions = [i for i in items if i is not first and not any(i is move for move in moves)]

        def seen(item: _Item, union: tuple[str, ...]) -> tuple[int, View]:
            return item.slot, view_between(self._layouts[item.slot], union)

        states = self._sizes[chain.state]
        sizes = tuple(self._sizes[symbol] for symbol in rest)
        lengths = None
        if chain.lengths is not None:
            own, tensor = chain.lengths
            lengths = align(tensor, own, rest).expand(sizes).reshape(-1)
        step = ChainStep(
            chain,
            rest,
            sizes,
            states,
            seen(first, (*rest, chain.state)),
            tuple(seen(i, (chain.time, *rest, chain.previous, chain.state)) for i in moves),
            tuple(seen(i, (chain.time, *rest, chain.state)) for i in emissions),
            lengths,
        )
        self._steps.append(_ChainRun(step))
        self._layouts.append(rest)
        return _Item(len(self._layouts) - 1, frozenset(rest), first.plates, first.scale)

    def _rescale(
        self, item: _Item, scale: Scale | None, symbols: set[str] | frozenset[str]
    ) -> _Item:
        if same_scale(item.scale, scale):
            return item
        if scale is not None and item.scale is None:
            name = min(self._latents[symbol][0] for symbol in symbols)
            raise ValueError(
                f"latent site '{name}' has a poutine.scale weight but a site below it has none; "
                "put both inside the same poutine.scale, or scale the observed site alone."
            )
        layout = self._layouts[item.slot]
        top, bottom = item.scale, scale
        dims = {*layout, *(top.dims if top else ()), *(bottom.dims if bottom else ())}
        union = self._order(frozenset(dims))
        ratio = scale_ratio(top, bottom, union)
        view = view_between(layout, union)
        slot = self._push(((item.slot, *view),), "sum", (), union, weight=ratio)
        return _Item(slot, frozenset(union), item.plates, scale)

    def _reduce_plates(self, item: _Item, parent: frozenset[str], symbols: frozenset[str]) -> _Item:
        item = self._rescale(item, self._common_scale(symbols), symbols)
        layout = self._layouts[item.slot]
        # The steps of a chain are not independent: they wait for the chain to be summed.
        waiting = {c.time for c in self._chains if symbols & c.symbols}
        gone = item.plates - parent - waiting
        over = tuple(i for i, symbol in enumerate(layout) if symbol in gone)
        rest = tuple(symbol for symbol in layout if symbol not in gone)
        inputs = ((item.slot, *view_between(layout, layout)),)
        slot = self._push(inputs, "plate", over, rest, times=self._missing(gone, layout))
        return _Item(slot, frozenset(rest), parent, item.scale)

    def _common_scale(self, symbols: set[str] | frozenset[str]) -> Scale | None:
        first, *others = sorted(symbols)
        name, scale = self._latents[first]
        for symbol in others:
            other, its = self._latents[symbol]
            if not same_scale(scale, its):
                raise ValueError(
                    f"latent sites '{name}' and '{other}' depend on each other but have different "
                    "poutine.scale weights; give them the same scale."
                )
        return scale

    def _push(
        self,
        inputs: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...],
        reduce: str,
        over: tuple[int, ...],
        layout: tuple[str, ...],
        times: float = 1.0,
        weight: Tensor | None = None,
    ) -> int:
        self._steps.append(_Step(inputs, reduce, over, times, weight))
        self._layouts.append(layout)
        return len(self._layouts) - 1

    def _order(self, dims: frozenset[str]) -> tuple[str, ...]:
        """Latent dims first and plates last: reductions then run over whole rows."""
        return tuple(sorted(dims, key=lambda symbol: (symbol not in self._latents, symbol)))


@dataclass(frozen=True)
class _ChainRun:
    step: ChainStep

    def seen(self, slots: Sequence[Tensor]) -> list[Tensor]:
        step = self.step
        inputs = (step.initial, *step.moves, *step.emissions)
        return [through_view(slots[slot], view) for slot, view in inputs]


def _run(step: _Step | _ChainRun, slots: list[Tensor], maximum: bool) -> Tensor:
    if isinstance(step, _ChainRun):
        return step.step(step.seen(slots), maximum)
    total: Tensor | None = None
    for slot, permutation, shape in step.inputs:
        tensor = through_view(slots[slot], (permutation, shape))
        total = tensor if total is None else total + tensor
    assert total is not None
    if step.reduce == "latent":
        return total.max(0).values if maximum else torch.logsumexp(total, 0)
    if step.weight is not None:
        total = total * step.weight
    if step.reduce == "plate":
        total = total.sum(step.over) if step.over else total
        total = total * step.times if step.times != 1.0 else total
    return total


def _connected(items: list[_Item], symbols: set[str]) -> list[tuple[list[_Item], set[str]]]:
    """Groups of items that share symbols, each with the symbols it holds."""
    groups: list[tuple[list[_Item], set[str]]] = []
    for item in items:
        members, held = [item], set(item.dims & symbols)
        apart = []
        for others, their in groups:
            if held & their:
                members, held = others + members, held | their
            else:
                apart.append((others, their))
        groups = [*apart, (members, held)]
    return groups
