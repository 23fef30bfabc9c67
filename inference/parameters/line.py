r"""Arguments of distributions as links of lines in coefficients, entry by entry.

.. math:: \text{argument}_n = g^{-1}(\eta_n), \qquad \eta_n = x_n^\top \theta_{r(n)} + b_n

with few rows :math:`r` of coefficients. A density of :math:`\eta` is then one of the coefficients,
and its second derivatives by these are products of the features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.numerics.shapes import append_dims, broadcast_shapes, compact
from ember.inference.parameters.affine_map import FROM_SPACE, AffineMap
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.map import ParameterMap

__all__ = ["Line", "Lines"]


@dataclass(frozen=True, eq=False)
class Line:
    """One line, over the batch of a site.

    Attributes:
        index: The row of coefficients of each entry, dims of size 1 where that does not depend.
        features: What they are multiplied by, ``(..., F)``, broadcast dims of size 1; 0 where a
            row has none, as one that is masked.
        offset: What is added.
    """

    index: Tensor
    features: Tensor
    offset: Tensor

    @property
    def shape(self) -> torch.Size:
        """The shape of its values."""
        return broadcast_shapes(self.index.shape, self.features.shape[:-1], self.offset.shape)


@dataclass(frozen=True, eq=False)
class Lines:
    """All lines of one argument: one, or one for each entry of a vector of logits.

    Attributes:
        coefficients: The rows of coefficients ``(R, F)`` at some parameters.
        each: The lines.
        space: In which they are lines: "raw", "log" or "logit" of the argument.
        is_vector: Whether they are the entries of a vector.
    """

    coefficients: Callable[[Mapping[str, Tensor]], Tensor]
    each: tuple[Line, ...]
    space: str
    is_vector: bool = False

    @classmethod
    def of(cls, found: ParameterMap) -> "Lines | None":
        """The lines of an argument; None where it is not made of any."""
        if isinstance(found, AffineMap) and found.event_dim <= 1:
            features = found.about_centre
            if bool(features.isnan().any()):
                features = features.nan_to_num(nan=0.0)
            index = compact(found.index)
            each = [Line(index, features, found.offset)]
            if found.event_dim:
                size = each[0].shape[-1]
                each = [
                    Line(_entry(index, i), _entry(features, i, 1), _entry(found.offset, i))
                    for i in range(size)
                ]
            return cls(found.coefficients, tuple(each), found.space, bool(found.event_dim))
        if isinstance(found, ArgumentMap) and found.table is not None:
            if found.table.event_dim or found.space not in FROM_SPACE:
                return None
            features = append_dims(found.coefficient, 1)
            line = Line(compact(found.index), features, found.offset)
            return cls(found.column, (line,), found.space)
        return None

    def argument(self, values: list[Tensor]) -> Tensor:
        """The argument with given values of its lines."""
        inverse = FROM_SPACE[self.space]
        if not self.is_vector:
            return inverse(values[0])
        return inverse(torch.stack(torch.broadcast_tensors(*values), -1))


def _entry(values: Tensor, i: int, keep: int = 0) -> Tensor:
    """One entry of the last dim but ``keep``, over which a value may be the same."""
    dim = values.dim() - 1 - keep
    return values if dim < 0 else values.select(dim, i if values.shape[dim] > 1 else 0)
