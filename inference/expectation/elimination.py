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

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.expectation.chains.blocks import Potentials
from ember.inference.expectation.chains.step import ChainStep
from ember.inference.expectation.elimination_order import elimination_order, repetitions
from ember.inference.expectation.elimination_steps import ChainRun
from ember.inference.factors.chain import Chain
from ember.inference.factors.factor import Factor, Scale, View, align

__all__ = ["Contraction"]


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
        latents: Mapping[str, tuple[str, Scale | None]],
        sizes: Mapping[str, int],
        chains: Sequence[Chain] = (),
    ) -> None:
        self._sizes, self._chains = sizes, chains
        order = elimination_order(factors, latents, sizes, chains)
        self._steps, self._layouts, self._parts = order.steps, order.layouts, order.parts

    def __call__(self, tensors: Sequence[Tensor], maximum: bool = False) -> list[Tensor]:
        """The unweighted log evidence of each independent part, plates left standing."""
        made = list(tensors)
        for step in self._steps:
            made.append(step(made, maximum))
        return [made[item.slot] for item in self._parts]

    def potentials(
        self, tensors: Sequence[Tensor], state: str
    ) -> tuple[Potentials, tuple[str, ...]]:
        """A chain's potentials, all other latents of its steps summed out; and dims of its rows."""
        made = list(tensors)
        for step in self._steps:
            if isinstance(step, ChainRun) and step.step.chain.state == state:
                return step.step.potentials(step.inputs(made)), step.step.rest
            made.append(step(made, False))
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
        total = parts[0].new_zeros(()) if parts else torch.zeros((), dtype=torch.float64)
        for item, part in zip(self._parts, parts, strict=True):
            if along is not None and along not in item.plates:
                continue
            layout = self._layouts[item.slot]
            if weighted and item.scale is not None:
                part, layout = self._weigh(part, layout, item.scale)
            gone = tuple(i for i, symbol in enumerate(layout) if symbol != along)
            part = part.sum(gone) if gone else part
            total = total + part * repetitions(item.plates - {along}, layout, self._sizes)
        return total

    def _weigh(
        self, part: Tensor, layout: tuple[str, ...], scale: Scale
    ) -> tuple[Tensor, tuple[str, ...]]:
        union = (*layout, *(d for d in scale.dims if d not in layout))
        left = part.reshape((*part.shape, *(1,) * (len(union) - len(layout))))
        return left * align(scale.tensor, scale.dims, union), union
