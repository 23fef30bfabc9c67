"""Cholesky factors that the runs of a model share: no matrix is factorised twice.

``MultivariateNormal`` factorises its matrix when it is made, and reading makes it some twenty
times: ``va * A`` at random ``va``. A multiple of a matrix whose factor is known has a multiple of
that factor. Only large matrices are looked at; for others the factorisation costs nothing.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ember.inference.numerics.draws import Draws
from ember.inference.reading.known_results import Result

__all__ = ["KnownFactors", "Remembered"]


LARGE = 300  # rows of a matrix whose factorisation costs more than to look for it
KEPT = 4  # matrices
ROUNDING = 1e-13  # of a product with random vectors, relative to the largest


class Remembered:
    """What runs of a model share; a pickle leaves it behind.

    Two matrices that give the same products with random vectors are the same but for rounding.

    Attributes:
        known: The factors of matrices, and what tells each of them.
        results: What was computed of the data alone, while a model is read; None before and after,
            as that may be as large as they are.
    """

    def __init__(self) -> None:
        self.known: list[tuple[Tensor, Tensor]] = []  # products and factor, the last used first
        self.results: list[Result] | None = None

    def __reduce__(self) -> tuple[Callable[..., object], tuple[()]]:
        return Remembered, ()

    def factor(self, matrix: Tensor) -> Tensor:
        """The Cholesky factor of a matrix, from memory if it is a multiple of one there."""
        vectors = Draws(0, matrix.device).uniform((len(matrix), 2))
        products = matrix @ vectors.to(matrix)
        for i, (known, factor) in enumerate(self.known):
            if known.shape != products.shape:
                continue
            ratio = float(products[0, 0] / known[0, 0])
            error = float((products - ratio * known).abs().max() / products.abs().max())
            if ratio > 0 and error <= ROUNDING:
                self.known.insert(0, self.known.pop(i))
                return factor if ratio == 1.0 else ratio**0.5 * factor
        found: Tensor = torch.linalg.cholesky(matrix)
        self.known = [(products, found), *self.known[: KEPT - 1]]
        return found


class KnownFactors(TorchFunctionMode):
    """Runs a model with Cholesky factors of large matrices from memory.

    Attributes:
        had_use: Whether there were such matrices.
    """

    def __init__(self, remembered: Remembered) -> None:
        super().__init__()
        self.remembered = remembered
        self.had_use = False

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func is torch.linalg.cholesky and len(args) == 1 and not kwargs:
            (matrix,) = args
            if isinstance(matrix, Tensor) and matrix.dim() == 2 and len(matrix) >= LARGE:
                self.had_use = True
                return _Factor.apply(matrix, self.remembered)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Factor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, remembered: Remembered) -> Tensor:
        ctx.save_for_backward(matrix)
        return remembered.factor(matrix.detach())

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        (matrix,) = ctx.saved_tensors
        again = torch.is_grad_enabled()  # the gradient is to be differentiated itself
        with torch.enable_grad():
            leaf = matrix if again else matrix.detach().requires_grad_()
            factor = torch.linalg.cholesky(leaf)
            (gradient,) = torch.autograd.grad(factor, leaf, weights, create_graph=again)
        return gradient, None
