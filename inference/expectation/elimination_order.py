"""In which order latents are summed out of a product of factors; see ``elimination.py``."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ember.inference.expectation.chains.step import ChainStep
from ember.inference.expectation.elimination_steps import (
    ChainRun,
    LatentSum,
    PlateSum,
    Product,
    Step,
)
from ember.inference.factors.chain import Chain
from ember.inference.factors.factor import (
    Factor,
    Scale,
    View,
    align,
    same_scale,
    scale_ratio,
    view_between,
)

__all__ = ["Item", "Order", "elimination_order", "repetitions"]


@dataclass(frozen=True)
class Item:
    """One tensor on the way: where it stands, its dims, plates and weight."""

    slot: int
    dims: frozenset[str]
    plates: frozenset[str]
    scale: Scale | None


@dataclass(frozen=True)
class Order:
    """The steps of an elimination, and what is left at its end.

    Attributes:
        steps: In their order; each gives one more tensor, after those of the factors.
        layouts: The dims of every tensor.
        parts: The log evidence of each independent part.
    """

    steps: Sequence[Step]
    layouts: Sequence[tuple[str, ...]]
    parts: Sequence[Item]


def elimination_order(
    factors: Sequence[Factor],
    latents: Mapping[str, tuple[str, Scale | None]],
    sizes: Mapping[str, int],
    chains: Sequence[Chain],
) -> Order:
    """The order for one set of factors; the arguments and errors are those of ``Contraction``."""
    live = [Item(i, frozenset(f.dims), f.plates, f.scale) for i, f in enumerate(factors)]
    search = _Search(factors, latents, sizes, chains)
    parts = search.parts(live)
    return Order(search.steps, search.layouts, parts)


def repetitions(
    plates: Collection[str | None], layout: Collection[str], sizes: Mapping[str, int]
) -> float:
    """A part that does not vary over a plate counts once for each of its rows."""
    times = 1.0
    for plate in plates:
        if plate is not None and plate not in layout:
            times *= sizes[plate]
    return times


class _Search:
    """Finds the order, greedily: of the latents at hand the one that gives the smallest tensor."""

    def __init__(
        self,
        factors: Sequence[Factor],
        latents: Mapping[str, tuple[str, Scale | None]],
        sizes: Mapping[str, int],
        chains: Sequence[Chain],
    ) -> None:
        self._latents, self._sizes, self._chains = latents, sizes, chains
        self.steps: list[Step] = []
        self.layouts: list[tuple[str, ...]] = [factor.dims for factor in factors]

    def parts(self, live: list[Item]) -> list[Item]:
        """Eliminates leaf plates first; what is left when no latent is."""
        home: dict[str, frozenset[str]] = {}
        for item in live:
            for symbol in item.dims & self._latents.keys():
                home[symbol] = home.get(symbol, item.plates) & item.plates
        results: list[Item] = []
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

    def _eliminate(self, group: list[Item], symbols: set[str]) -> Item:
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

    def _cost(self, symbol: str, items: list[Item]) -> int:
        dims = frozenset[str]().union(*(item.dims for item in items if symbol in item.dims))
        cost = 1
        for dim in dims:
            cost *= self._sizes[dim]
        return cost

    def _combine(self, items: list[Item], symbol: str | None) -> Item:
        dims = frozenset[str]().union(*(item.dims for item in items))
        rest = self._order(dims - {symbol} if symbol else dims)
        union = (symbol, *rest) if symbol else rest
        product = Product(
            tuple((item.slot, view_between(self.layouts[item.slot], union)) for item in items)
        )
        slot = self._push(product if symbol is None else LatentSum(product), rest)
        return Item(slot, frozenset(rest), items[0].plates, items[0].scale)

    def _sum_chain(self, chain: Chain, items: list[Item]) -> Item:
        dims = frozenset[str]().union(*(item.dims for item in items))
        rest = self._order(dims - chain.symbols - {chain.time})
        first = next(item for item in items if item.slot == chain.initial)
        moves = [i for i in items if i.slot == chain.move or chain.previous in i.dims]
        emissions = [i for i in items if i is not first and not any(i is move for move in moves)]

        def seen(item: Item, union: tuple[str, ...]) -> tuple[int, View]:
            return item.slot, view_between(self.layouts[item.slot], union)

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
        slot = self._push(ChainRun(step), rest)
        return Item(slot, frozenset(rest), first.plates, first.scale)

    def _rescale(self, item: Item, scale: Scale | None, symbols: set[str] | frozenset[str]) -> Item:
        if same_scale(item.scale, scale):
            return item
        if scale is not None and item.scale is None:
            name = min(self._latents[symbol][0] for symbol in symbols)
            raise ValueError(
                f"latent site '{name}' has a poutine.scale weight but a site below it has none; "
                "put both inside the same poutine.scale, or scale the observed site alone."
            )
        layout = self.layouts[item.slot]
        top, bottom = item.scale, scale
        dims = {*layout, *(top.dims if top else ()), *(bottom.dims if bottom else ())}
        union = self._order(frozenset(dims))
        ratio = scale_ratio(top, bottom, union)
        view = view_between(layout, union)
        slot = self._push(Product(((item.slot, view),), ratio), union)
        return Item(slot, frozenset(union), item.plates, scale)

    def _reduce_plates(self, item: Item, parent: frozenset[str], symbols: frozenset[str]) -> Item:
        item = self._rescale(item, self._common_scale(symbols), symbols)
        layout = self.layouts[item.slot]
        # The steps of a chain are not independent: they wait for the chain to be summed.
        waiting = {c.time for c in self._chains if symbols & c.symbols}
        gone = item.plates - parent - waiting
        over = tuple(i for i, symbol in enumerate(layout) if symbol in gone)
        rest = tuple(symbol for symbol in layout if symbol not in gone)
        product = Product(((item.slot, view_between(layout, layout)),))
        slot = self._push(PlateSum(product, over, repetitions(gone, layout, self._sizes)), rest)
        return Item(slot, frozenset(rest), parent, item.scale)

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

    def _push(self, step: Step, layout: tuple[str, ...]) -> int:
        self.steps.append(step)
        self.layouts.append(layout)
        return len(self.layouts) - 1

    def _order(self, dims: frozenset[str]) -> tuple[str, ...]:
        """Latent dims first and plates last: reductions then run over whole rows."""
        return tuple(sorted(dims, key=lambda symbol: (symbol not in self._latents, symbol)))


def _connected(items: list[Item], symbols: set[str]) -> list[tuple[list[Item], set[str]]]:
    """Groups of items that share symbols, each with the symbols it holds."""
    groups: list[tuple[list[Item], set[str]]] = []
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
