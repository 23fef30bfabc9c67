r"""Finds matrices that are known but for a positive factor: ``va * A``, ``tau * Q``, ``s * L``.

The first diagonal entry :math:`c = M_{11}` is a positive argument like any other, so its own map
to the parameters is found first (``arguments.py``). Then all entries of :math:`M / c` must be the
same in every run.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ember.inference.numerics.shapes import append_dims, unexpanded
from ember.inference.parameters.parameter import Parameter
from ember.inference.parameters.scaled_matrix import ScaledMatrix
from ember.inference.reading.matching.arguments import ArgumentValues, match_argument

__all__ = ["match_scaled_matrix"]


ROUNDING = 1e-12  # of an entry, relative to the largest of its matrix


def match_scaled_matrix(
    values: Sequence[Tensor],
    parameters: Mapping[str, Parameter],
    probes: Sequence[Mapping[str, Tensor]],
) -> ScaledMatrix | None:
    """The map of a matrix argument; None if it is no known matrix times a positive number.

    Args:
        values: The argument in each probe, ``(*batch, n, n)``.
        parameters: The parameters.
        probes: Their values in each probe.
    """
    values = [unexpanded(value.detach().double(), 2) for value in values]
    firsts = [value[..., 0, 0] for value in values]
    if any(first.shape != firsts[0].shape or not bool((first > 0).all()) for first in firsts):
        return None
    matrix = values[0] / append_dims(firsts[0], 2)
    slack = ROUNDING * matrix.abs().amax((-2, -1), keepdim=True)
    for value, first in zip(values[1:], firsts[1:], strict=True):
        if not bool(((value / append_dims(first, 2) - matrix).abs() <= slack).all()):
            return None
    scale = match_argument(ArgumentValues("positive", 0, firsts), parameters, probes)
    if scale is None or scale.is_constant:
        return None
    return ScaledMatrix(scale, _alike(matrix, slack))


def _alike(matrix: Tensor, slack: Tensor) -> Tensor:
    """Batch dims along which a matrix is the same but for rounding, shrunk to size 1."""
    for dim in range(matrix.dim() - 2):
        first = matrix.narrow(dim, 0, 1)
        if bool(((matrix - first).abs() <= slack.amax(dim, keepdim=True)).all()):
            matrix, slack = first, slack.narrow(dim, 0, 1)
    return matrix
