"""A bijection onto positive-definite matrices, so that a Wishart site runs under every guide.

Torch registers no ``biject_to`` for ``constraints.positive_definite``; without one Pyro's
``AutoNormal`` and ``NUTS`` refuse a ``Wishart`` site. Importing this module registers the
log-Cholesky map below. It is all that happens here.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

__all__ = ["LogCholeskyTransform"]


class LogCholeskyTransform(Transform):
    r"""Maps a vector of ``D(D+1)/2`` reals one-to-one onto positive-definite ``(D, D)`` matrices.

    The vector fills the lower triangle of ``C`` row by row; with ``L`` equal to ``C`` but for
    ``L_dd = exp(C_dd)``, the matrix is ``L L'``. The Jacobian is

    .. math:: \log|J| = D\log 2 + \sum_{d=1}^{D} (D - d + 2)\,\log L_{dd}.

    Shapes: ``(..., D(D+1)/2)`` to ``(..., D, D)``.

    Reference: Pinheiro & Bates (1996), *Unconstrained parametrizations for variance-covariance
    matrices*, Statistics and Computing 6, 289-296.

    Example:
        >>> import torch
        >>> LogCholeskyTransform()(torch.zeros(3))
        tensor([[1., 0.],
                [0., 1.]])
    """

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogCholeskyTransform)

    def _call(self, x: Tensor) -> Tensor:
        tril = self._fill(x)
        diagonal = tril.diagonal(dim1=-2, dim2=-1)
        lower = tril.tril(-1) + torch.diag_embed(diagonal.exp())
        return lower @ lower.mT

    def _inverse(self, y: Tensor) -> Tensor:
        lower: Tensor = torch.linalg.cholesky(y)
        diagonal = lower.diagonal(dim1=-2, dim2=-1)
        tril = lower.tril(-1) + torch.diag_embed(diagonal.log())
        rows, columns = torch.tril_indices(y.shape[-1], y.shape[-1])
        return tril[..., rows, columns]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        dim = y.shape[-1]
        log_diagonal = self._fill(x).diagonal(dim1=-2, dim2=-1)
        powers = torch.arange(dim + 1, 1, -1, dtype=x.dtype, device=x.device)
        return dim * math.log(2.0) + (powers * log_diagonal).sum(-1)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        dim = self._matrix_size(shape[-1])
        return torch.Size((*shape[:-1], dim, dim))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))

    def _fill(self, x: Tensor) -> Tensor:
        dim = self._matrix_size(x.shape[-1])
        rows, columns = torch.tril_indices(dim, dim)
        tril = x.new_zeros((*x.shape[:-1], dim, dim))
        tril[..., rows, columns] = x
        return tril

    @staticmethod
    def _matrix_size(length: int) -> int:
        return (math.isqrt(8 * length + 1) - 1) // 2


def _biject_to_positive_definite(constraint: constraints.Constraint) -> Transform:
    return LogCholeskyTransform()


biject_to.register(constraints.positive_definite, _biject_to_positive_definite)
