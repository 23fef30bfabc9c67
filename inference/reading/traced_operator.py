"""A linear map that only the model knows: its two products, by running it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.inference.reading.distributions import arguments_of
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.unwrapping import unwrap

__all__ = ["TracedOperator", "rate_of"]


class TracedOperator:
    """The model itself: its rate forwards, the gradient of its rate backwards.

    The graph of one run is kept: the map being linear, it is the same wherever it was recorded.
    """

    def __init__(
        self,
        structure: Structure,
        site: str,
        sources: Sequence[str],
        rate: tuple[list[Tensor], Tensor],
    ) -> None:
        self._structure, self._site, self._sources = structure, site, tuple(sources)
        self._leaves, self._recorded = rate

    @property
    def how(self) -> str:
        return "products of the model's own rate"

    def rate(self, values: Tensor) -> Tensor:
        params = self.params(values)
        with torch.no_grad():
            return rate_of(self._structure.trace(params), self._site).reshape(-1)

    def params(self, values: Tensor) -> dict[str, Tensor]:
        """All parameters, the sources among them at the given values."""
        known = self._structure.parameters
        params = {name: parameter.start for name, parameter in known.items()}
        sizes = [known[name].shape.numel() for name in self._sources]
        for name, piece in zip(self._sources, values.split(sizes), strict=True):
            params[name] = piece.reshape(known[name].shape)
        return params

    def transpose(self, weights: Tensor) -> Tensor:
        weights = weights.reshape(self._recorded.shape)
        gradients = torch.autograd.grad(self._recorded, self._leaves, weights, retain_graph=True)
        return torch.cat([gradient.reshape(-1) for gradient in gradients])


def rate_of(trace: Trace, site: str) -> Tensor:
    """The rate of a Poisson site in a run of the model."""
    rate: Tensor = arguments_of(unwrap(trace.nodes[site]["fn"]).base)["rate"][0][2]
    return rate
