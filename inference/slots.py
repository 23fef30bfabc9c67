"""Slots and forms: where an exponential family reads its values; a site written in that form."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.inference.families import Family, safe_log
from ember.inference.reading.affine import CoefficientTable
from ember.inference.reading.parameter_maps import Table

__all__ = ["Form", "Slot"]


@dataclass(frozen=True)
class Slot:
    """Where one slot of a family gets its values: rows of a table, then known constants."""

    kind: str
    table: Table | CoefficientTable | None
    link: str
    exponent: float
    constants: Tensor

    @property
    def sources(self) -> tuple[str, ...]:
        return () if self.table is None else self.table.sources

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for slots that read the same values."""
        shape, numbers = tuple(self.constants.shape), tuple(self.constants.flatten().tolist())
        return (self.kind, self.table, self.link, self.exponent, shape, numbers)

    def values(self, params: Mapping[str, Tensor]) -> Tensor:
        """Every value the slot can take at ``params``, shape ``(R, *event)``."""
        if self.table is None:
            return self._known
        rows = self._linked(self.table.rows(params))
        return torch.cat([rows, self.constants]) if len(self.constants) else rows

    @functools.cached_property
    def _known(self) -> Tensor:
        return self._linked(self.constants)

    def _linked(self, rows: Tensor) -> Tensor:
        match self.link:
            case "exp":
                return torch.exp(self.exponent * rows)
            case "sigmoid":
                return torch.sigmoid(rows)
            case "inverse":
                return torch.cholesky_inverse(torch.linalg.cholesky_ex(rows)[0])
            case "outer":
                return torch.cholesky_inverse(rows)
            case _:
                return rows

    def roots(self, params: Mapping[str, Tensor]) -> Tensor:
        """Of a matrix slot: the Cholesky factors of what the model declares, ``(R, D, D)``.

        They are those of precisions where ``link`` is "identity", else of covariances.
        """
        return self._known_roots if self.table is None else self._rooted(self.table.rows(params))

    @functools.cached_property
    def _known_roots(self) -> Tensor:
        return self._rooted(self.constants)

    def _rooted(self, rows: Tensor) -> Tensor:
        factor: Tensor = rows if self.link == "outer" else torch.linalg.cholesky_ex(rows)[0]
        return factor

    def parameter(self, value: Tensor) -> Tensor:
        """Parameter rows from slot values: the inverse of ``values`` without the constants.

        Matrices are not among them: see ``contribution_to_maximiser``.
        """
        match self.link:
            case "exp" if self.table is not None and self.table.on == "log":
                return torch.pow(value, 1.0 / self.exponent)
            case "exp":
                return safe_log(value) / self.exponent
            case "sigmoid":
                return torch.logit(value, eps=torch.finfo(value.dtype).tiny)
            case _:
                on_softmax = self.table is not None and self.table.on == "softmax"
                return safe_log(value) if on_softmax else value


@dataclass(frozen=True)
class Form:
    """A site in exponential-family form.

    ``indices`` holds, for each slot, the row of its table (batch-shaped); ``statistics(value)``
    gives ``T`` of shape ``(*batch, P)`` and the base measure ``h``, or None where it is zero. The
    second argument is what the data are measured from: the mean of what ``centred`` gives, or in a
    regression the frame of the features, responses and weights that ``design`` gives.
    """

    family: Family
    slots: tuple[Slot, ...]
    indices: tuple[Tensor, ...]
    statistics: Callable[[Tensor, Any], tuple[Tensor, Tensor | None]]
    event_dim: int = 0
    centred: Callable[[Tensor], Tensor] | None = None
    design: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
