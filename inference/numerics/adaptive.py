r"""Quadrature at the mode and the curvature of what is integrated.

.. math:: \int g(v)\, \mathrm d v \;\approx\; |L| \sum_q \omega_q\, g(\hat v + L z_q),

with :math:`\hat v` the mode of :math:`g` and :math:`L L^\top` the inverse of minus the Hessian of
its logarithm there. Up to three dims the :math:`z_q` are a product of Gauss-Hermite nodes: exact
for a normal density times a polynomial. For more they are Sobol points, made normal with a standard
deviation of 1.2: with tails no lighter than those of the integrand no weight runs away.

References: Liu & Pierce (1994), *A note on Gauss-Hermite quadrature*, Biometrika 81, 624-629;
Pinheiro & Bates (1995), *Approximations to the log-likelihood function in the nonlinear
mixed-effects model*, Journal of Computational and Graphical Statistics 4, 12-35.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ember.inference.numerics.quadrature import check_nodes

__all__ = ["MOST_ADAPTIVE_DIMS", "Adaptive"]


GAUSS_HERMITE = {1: (15, 63), 2: (11, 31), 3: (7, 15)}  # nodes in a dim at first, and at most
SOBOL = 256, 16384  # points at first, and at most
SETTLED = {1: 1e-6, 2: 1e-5, 3: 1e-3}  # change of a unit's log evidence that more nodes may make
SETTLED_SOBOL = 0.05
WIDER = 1.2  # than the normal at mode and curvature
MOST_ADAPTIVE_DIMS = 10


@dataclass(frozen=True)
class Adaptive:
    r"""Asks for continuous latents of units to be integrated at mode and curvature.

    .. math:: \int p(u)\, p(y \mid u)\, \mathrm d u

    of each unit is a sum over nodes around the mode of its integrand, as far apart as its curvature
    says: Gauss-Hermite nodes for latents of up to three dims, Sobol points for up to ten. All
    latents that a row reads count together: an intercept and a slope of its group are two dims. The
    nodes are placed anew at each E-step. Where a fit ends, the log evidence of each unit is
    computed once more with half as many nodes again in each dim (four times as many Sobol points);
    while it changes by more than 1e-6 (1e-5 in two dims, 1e-3 in three, 0.05 with Sobol points),
    the fit goes on with these.

    ``"quadrature"`` means the same for latents that are read by index, ``u[group]``.

    Args:
        nodes: How many nodes to start with, in each dim: 15 unless given; 11 and 7 for latents of
            two and three dims; 256 Sobol points altogether for more.
        most: How many there may become: 63, 31, 15 and 16384 unless given.

    Raises:
        TypeError: If a number of nodes is not whole.
        ValueError: If there are fewer than 5 nodes, or ``most`` is less than ``nodes``.

    Reference: Pinheiro & Bates (1995), *Approximations to the log-likelihood function in the
    nonlinear mixed-effects model*, Journal of Computational and Graphical Statistics 4, 12-35.

    Example:
        >>> from ember.inference import EM, Adaptive
        >>> from ember.models import generalised_linear_mixed_model
        >>> em = EM(generalised_linear_mixed_model, integrate={"group_effects": Adaptive(25)})
    """

    nodes: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        check_nodes(type(self).__name__, self.nodes, self.most, GAUSS_HERMITE[1][0])

    def for_dims(self, dims: int) -> "Adaptive":
        """The same with its numbers filled in for latents of ``dims`` dims together."""
        nodes, most = GAUSS_HERMITE.get(dims, SOBOL)
        nodes = nodes if self.nodes is None else self.nodes
        return Adaptive(nodes, max(nodes, most) if self.most is None else self.most)

    def refined(self, dims: int) -> "Adaptive | None":
        """With half as many nodes again, as far as there may be more; None if there may not."""
        rule = self.for_dims(dims)
        assert rule.nodes is not None
        assert rule.most is not None
        more = rule.nodes + rule.nodes // 2 if dims in GAUSS_HERMITE else 4 * rule.nodes
        nodes = min(more, rule.most)
        return Adaptive(nodes, rule.most) if nodes > rule.nodes else None

    def settled(self, dims: int) -> float:
        """By how much more nodes may change the log evidence of a unit."""
        return SETTLED.get(dims, SETTLED_SOBOL)

    def shown(self, dims: int) -> str:
        """How many there are, in words: 15, or 11 x 11, or 256 Sobol."""
        nodes = self.for_dims(dims).nodes
        return " x ".join([str(nodes)] * dims) if dims in GAUSS_HERMITE else f"{nodes} Sobol"

    def points(self, dims: int) -> tuple[Tensor, Tensor]:
        """The nodes ``z (Q, dims)``, and the logarithms of their weights ``(Q,)``, on the CPU."""
        nodes = self.for_dims(dims).nodes
        assert nodes is not None
        with torch.device("cpu"):  # they are kept, whatever device a later fit is on
            return _gauss_hermite(nodes, dims) if dims in GAUSS_HERMITE else _sobol(nodes, dims)


@functools.lru_cache(maxsize=16)
def _gauss_hermite(nodes: int, dims: int) -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.hermite.hermgauss(nodes)
    points = math.sqrt(2.0) * torch.from_numpy(x)
    # For a large number of nodes the weights of the outermost round to zero.
    logs = torch.from_numpy(w).clamp_min(1e-300).log() + torch.from_numpy(x * x)
    logs = logs + 0.5 * math.log(2.0)
    grid = torch.cartesian_prod(*[points] * dims).reshape(-1, dims)
    return grid, torch.cartesian_prod(*[logs] * dims).reshape(-1, dims).sum(1)


@functools.lru_cache(maxsize=16)
def _sobol(count: int, dims: int) -> tuple[Tensor, Tensor]:
    engine = torch.quasirandom.SobolEngine(dims, scramble=True, seed=0)
    uniform = engine.draw(count, dtype=torch.float64).clamp(1e-12, 1.0 - 1e-12)
    points = WIDER * torch.special.ndtri(uniform)
    density = -0.5 * (points / WIDER).square().sum(1)
    density = density - dims * (math.log(WIDER) + 0.5 * math.log(2.0 * math.pi))
    return points, -density - math.log(count)
