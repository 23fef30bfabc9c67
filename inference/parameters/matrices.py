"""Stored matrices as linear maps: dense or sparse, with their transpose."""

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

__all__ = ["Matrix", "MatrixOperator", "as_matrix"]


@dataclass(frozen=True)
class Matrix:
    """A dense or sparse matrix, its rows multiplied by numbers of their own."""

    matrix: Tensor | scipy.sparse.csr_matrix
    scale: Tensor | None = None

    @property
    def is_sparse(self) -> bool:
        return not isinstance(self.matrix, Tensor)

    @property
    def is_non_negative(self) -> bool:
        """Whether no coefficient is negative: an exact check."""
        weights = self.matrix if isinstance(self.matrix, Tensor) else self.matrix.data
        if self.scale is None or bool((self.scale >= 0).all()):
            return bool((weights >= 0).all())
        if isinstance(self.matrix, Tensor):
            return bool((self.scale[:, None] * self.matrix >= 0).all())
        scale = np.repeat(self.scale.cpu().numpy(), np.diff(self.matrix.indptr))
        return bool((scale * self.matrix.data >= 0).all())

    def times(self, values: Tensor) -> Tensor:
        """The product with a vector of columns."""
        if isinstance(self.matrix, Tensor):
            product = self.matrix @ values
        else:
            product = torch.from_numpy(self.matrix @ values.cpu().numpy()).to(values.device)
        return product if self.scale is None else self.scale * product

    def transposed_times(self, weights: Tensor) -> Tensor:
        """The product of the transpose with a vector of rows."""
        weights = weights if self.scale is None else self.scale * weights
        if isinstance(self.matrix, Tensor):
            return self.matrix.T @ weights
        return torch.from_numpy(self.matrix.T @ weights.cpu().numpy()).to(weights.device)


def as_matrix(tensor: Tensor) -> Matrix:
    """A tensor of any layout as a matrix whose two products are fast.

    PyTorch transposes a sparse tensor anew in each backward pass, which takes 50 to 100 times as
    long as the product; SciPy's compressed rows serve both directions as they are. They lie on the
    CPU, and so is the product done there, whatever the device of the vector.
    """
    tensor = tensor.detach()
    shape = (tensor.shape[0], tensor.shape[1])
    if tensor.layout is torch.strided:
        return Matrix(tensor)
    if tensor.layout is torch.sparse_csr:
        parts = (tensor.values(), tensor.col_indices(), tensor.crow_indices())
        data, columns, starts = (part.cpu().numpy() for part in parts)
        return Matrix(scipy.sparse.csr_matrix((data, columns, starts), shape))
    coordinates = tensor if tensor.layout is torch.sparse_coo else tensor.to_sparse_coo()
    coordinates = coordinates.coalesce()
    rows, columns = coordinates.indices().cpu().numpy()
    data = coordinates.values().cpu().numpy()
    return Matrix(scipy.sparse.csr_matrix((data, (rows, columns)), shape))


@dataclass(frozen=True)
class MatrixOperator:
    """``sum_s A_s theta_s + b`` with known matrices, one for each parameter."""

    matrices: tuple[Matrix, ...]
    sizes: tuple[int, ...]
    offset: Tensor = field(repr=False)

    @property
    def how(self) -> str:
        kinds = sorted({"sparse" if m.is_sparse else "dense" for m in self.matrices})
        return f"{' and '.join(kinds)} matrix"

    def rate(self, values: Tensor) -> Tensor:
        total = None
        for matrix, piece in zip(self.matrices, values.split(self.sizes), strict=True):
            product = matrix.times(piece)
            total = product if total is None else total.add_(product)
        assert total is not None
        return total.add_(self.offset)

    def transpose(self, weights: Tensor) -> Tensor:
        pieces = [matrix.transposed_times(weights) for matrix in self.matrices]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
