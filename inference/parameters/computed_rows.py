"""An argument that the model computes from parameters and nodes, as a table with a row a cell."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.inference.numerics.tape import Tape
from ember.inference.parameters.batching import Shapes

__all__ = ["ComputedRows", "node_input"]


def node_input(latent: str) -> str:
    """By what name a tape takes the nodes of a latent."""
    return f"{latent}@nodes"


@dataclass(frozen=True, eq=False)
class ComputedRows:
    """The rows of one argument of a site, played back from a tape.

    Attributes:
        site: The site.
        argument: The argument.
        sources: The parameters that it is computed from.
        tape: Takes them and the nodes, and gives the argument.
        shape: Of the cells: the argument broadcasts to it, its ``event_dim`` last dims aside.
        nodes: The nodes of each latent, by the name that the tape knows.
    """

    site: str
    argument: str
    sources: tuple[str, ...]
    tape: Tape
    shape: torch.Size
    event_dim: int
    nodes: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        # What a digest of it says: the same in every process that reads the same model.
        return f"ComputedRows({self.site}.{self.argument}, {self.sources}, {tuple(self.shape)})"

    @property
    def reason(self) -> str:
        """Why its parameters have no closed form."""
        return f"'{self.argument}' of site '{self.site}' is computed at each node"

    def rows(self, params: Mapping[str, Tensor]) -> Tensor:
        """The argument in every cell, ``(C, *event)``."""
        (value,) = self.tape({**params, **self.nodes}).values()
        event = value.shape[value.dim() - self.event_dim :]
        return value.expand(*self.shape, *event).reshape(-1, *event)

    def at(self, nodes: Mapping[str, Tensor]) -> "ComputedRows":
        """The same at other nodes."""
        return dataclasses.replace(self, nodes=nodes)

    def same_nodes(self, other: "ComputedRows") -> bool:
        """Whether two tables are of the same nodes, so that statistics of their cells add up."""
        return self.nodes.keys() == other.nodes.keys() and all(
            value.shape == other.nodes[name].shape and torch.equal(value, other.nodes[name])
            for name, value in self.nodes.items()
        )

    def batched(self, shapes: Shapes, count: int) -> "ComputedRows":
        """Not for several values of every parameter at once: starts are taken one by one."""
        raise NotImplementedError

    def batched_index(self, index: Tensor, shapes: Shapes, count: int) -> Tensor:
        """See ``batched``."""
        raise NotImplementedError
