"""A linear map that only the model knows: its two products, by running it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.inference.parameters.affine_map import joined
from ember.inference.reading.distributions import arguments_of
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.unwrapping import unwrap

__all__ = ["TracedOperator", "rate_of"]


class TracedOperator:
    """The model itself: its rate forwards, the gradient of its rate backwards.

    The graph of one run is kept: the map being linear, it is the same wherever it was recorded. It
    does not pickle; a copy records its own when it first needs one.
    """

    def __init__(
        self,
        structure: Structure,
        site: str,
        sources: Sequence[str],
        rate: tuple[list[Tensor], Tensor],
    ) -> None:
        self._structure, self._site, self._sources = structure, site, tuple(sources)
        self._at = joined(self._sources, dict(zip(sources, rate[0], strict=True))).detach()
        self._graph: tuple[list[Tensor], Tensor] | None = rate

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
        params = self._structure.start
        sizes = [known[name].shape.numel() for name in self._sources]
        for name, piece in zip(self._sources, values.split(sizes), strict=True):
            params[name] = piece.reshape(known[name].shape)
        return params

    def transpose(self, weights: Tensor) -> Tensor:
        leaves, rate = self._recorded()
        weights = weights.reshape(rate.shape)
        gradients = torch.autograd.grad(rate, leaves, weights, retain_graph=True)
        return torch.cat([gradient.reshape(-1) for gradient in gradients])

    def _recorded(self) -> tuple[list[Tensor], Tensor]:
        """The parameters that feed the rate, and the rate with its graph."""
        if self._graph is None:
            with torch.enable_grad():
                params = self.params(self._at)
                leaves = [params[name].clone().requires_grad_() for name in self._sources]
                params.update(zip(self._sources, leaves, strict=True))
                self._graph = leaves, rate_of(self._structure.trace(params), self._site)
        return self._graph

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_graph": None}


def rate_of(trace: Trace, site: str) -> Tensor:
    """The rate of a Poisson site in a run of the model."""
    rate: Tensor = arguments_of(unwrap(trace.nodes[site]["fn"]).base)["rate"][0][2]
    return rate
