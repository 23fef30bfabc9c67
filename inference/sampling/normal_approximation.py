r"""The normal distribution that touches a log density at its mode: Laplace's approximation.

.. math::

    q(u) = \mathcal N(\hat u, H^{-1}), \qquad
    \log p(x) \approx \log p(x, \hat u) + \tfrac{P}{2} \log 2\pi - \tfrac12 \log |H|,

with :math:`H` minus the Hessian of the log density, by differences of its gradient.

Reference: Tierney & Kadane (1986), *Accurate approximations for posterior moments and marginal
densities*, JASA 81, 82-86.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.numerics.log_space import LOG_2PI
from ember.inference.queries.uncertainty.differences import Several, smoothed, steps_around
from ember.inference.sampling.density import PosteriorDensity

__all__ = ["NormalApproximation", "normal_approximation"]


STEP = 1e-4  # of a difference, in units of the coordinate's own spread
SPREADS = 1e-6, 1e3  # of coordinates
LEAST = 1e-8  # of the largest eigenvalue: a direction of which the data say nothing


@dataclass(frozen=True)
class NormalApproximation:
    """Laplace's approximation.

    Attributes:
        mode: ``(P,)``.
        root: ``R`` with the covariance ``R R'``, ``(P, P)``.
        height: The log density at the mode.
        is_proper: Whether the density falls in all directions from there.
    """

    mode: Tensor
    root: Tensor
    height: float
    is_proper: bool

    @property
    def log_evidence(self) -> float:
        """The approximation of ``log p(data)``; NaN if it is not proper."""
        if not self.is_proper:
            return math.nan
        _, log_det = torch.linalg.slogdet(self.root)
        return self.height + 0.5 * len(self.mode) * LOG_2PI + float(log_det)

    def at(self, normals: Tensor) -> Tensor:
        """Standard normals ``(..., P)`` as draws of the approximation."""
        return self.mode + normals @ self.root.mT


def normal_approximation(density: PosteriorDensity, mode: Tensor) -> NormalApproximation:
    """The approximation at a mode, by four gradients for each coordinate.

    The first two tell how wide it is, and so how long a step of the other two may be.

    Where slopes jump, differences are taken over a whole standard deviation.

    Directions in which the density does not fall get the spread of the least certain of the
    others.
    """
    height, _ = density(mode)
    first = _hessian(density, mode, torch.full_like(mode, STEP))
    own = first.diagonal()
    spread = torch.where(own > 0.0, own.abs().rsqrt(), 1.0).clamp(*SPREADS)
    if density.has_edges(mode):
        every = torch.arange(len(mode))
        hessian, spread = smoothed(_gradients(density), mode, every, spread, SPREADS)
    else:
        hessian = _hessian(density, mode, STEP * spread)
    scaled = hessian * spread * spread.unsqueeze(-1)
    values, vectors = torch.linalg.eigh(0.5 * (scaled + scaled.mT))
    known = values > LEAST * values.abs().amax()
    least = values[known].amin() if bool(known.any()) else values.new_ones(())
    values = torch.where(known, values, least)
    root = spread.unsqueeze(-1) * vectors * values.rsqrt()
    return NormalApproximation(mode, root, height, bool(known.all()))


def _gradients(density: PosteriorDensity) -> Several:
    return lambda vectors: (density(vector)[1] for vector in vectors)


def _hessian(density: PosteriorDensity, mode: Tensor, steps: Tensor) -> Tensor:
    """Minus the derivative of the gradient, row by row."""
    every = torch.arange(len(mode))
    around = steps_around(_gradients(density), mode, every, steps)
    rows = [(down - up) / width for up, down, width in around]
    return torch.stack(rows) if rows else mode.new_zeros(0, 0)
