r"""Quadrature on uniform grids: where the nodes stand, what they weigh, and what they leave out.

For a density that falls off on both sides, as the product of a normal prior and a likelihood does,
the trapezoidal rule converges faster than any power of the spacing. It beats Gauss-Hermite
quadrature with as many nodes as soon as the integrand is narrower than the prior, because that
places its nodes for the prior alone.

Reference: Trefethen & Weideman (2014), *The exponentially convergent trapezoidal rule*, SIAM Review
56, 385-458.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.numerics.whole_numbers import is_whole

__all__ = ["GAP", "HALF_WIDTH", "MOST_DIMS", "Quadrature", "check_nodes", "uniform_grid"]


HALF_WIDTH = 7.5  # of the grid, in standard deviations of the prior: 6e-14 of it lies outside
FEWEST = 5  # nodes: with fewer the sum is no integral
MOST_DIMS = 2  # of the latent: a product grid grows with the power of its dims
DEFAULT = {1: (61, 241), 2: (31, 61)}  # nodes in a dim at first, and at most
GAP = 1e-3  # of a row's log evidence between even and odd nodes, above which more are needed


def check_nodes(rule: str, nodes: int | None, most: int | None, usual: int) -> None:
    """Refuses numbers of nodes with which a rule is no integral; None stands for the usual ones.

    Raises:
        TypeError: If a number is not whole.
        ValueError: If there are too few, or ``most`` is less than ``nodes``.
    """
    for name, value in (("nodes", nodes), ("most", most)):
        if value is not None and not is_whole(value):
            raise TypeError(f"{rule}({name}={value!r}) must be a whole number.")
    if nodes is not None and nodes < FEWEST:
        raise ValueError(
            f"{rule}({nodes}) has too few nodes to integrate over; give it at least {FEWEST}, or "
            f"leave the number out ({usual})."
        )
    if most is not None and most < (nodes or FEWEST):
        raise ValueError(
            f"{rule}(most={most}) is less than the {nodes or FEWEST} nodes that it starts with; "
            "raise most, or leave it out."
        )


@dataclass(frozen=True)
class Quadrature:
    r"""Asks for a continuous latent site to be integrated on a uniform grid of nodes.

    .. math:: \int f(u)\, p(u)\, \mathrm d u \;\approx\; h \sum_{q=1}^{Q} p(u_q)\, f(u_q)

    The nodes reach 7.5 standard deviations of the prior to both sides of its mean, at the current
    estimates. The sums over the even and over the odd nodes are two estimates of the same integral;
    while they differ by more than 1e-3 in the log evidence of some row, a fit goes on with twice as
    many nodes.

    Args:
        nodes: How many nodes to start with in each dim of the site; 61 unless given, 31 for a site
            of two dims.
        most: How many there may become in each dim; 241 unless given, 61 for a site of two dims.

    Raises:
        TypeError: If a number of nodes is not whole.
        ValueError: If there are fewer than 5 nodes, or ``most`` is less than ``nodes``.

    Reference: Bock & Aitkin (1981), *Marginal maximum likelihood estimation of item parameters*,
    Psychometrika 46, 443-459 (EM on fixed nodes).

    Example:
        >>> from ember.inference import EM, Quadrature
        >>> from ember.models import item_response
        >>> em = EM(item_response, integrate={"ability": Quadrature(41)})
    """

    nodes: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        check_nodes(type(self).__name__, self.nodes, self.most, DEFAULT[1][0])

    def for_dims(self, dims: int) -> "Quadrature":
        """The same with its numbers filled in for a site of ``dims`` dims."""
        nodes, most = DEFAULT[dims]
        nodes = nodes if self.nodes is None else self.nodes
        return Quadrature(nodes, max(nodes, most) if self.most is None else self.most)

    def refined(self) -> "Quadrature | None":
        """With half the spacing, as far as there may be more nodes; None if there may not."""
        assert self.nodes is not None
        assert self.most is not None
        nodes = min(2 * self.nodes - 1, self.most)
        return Quadrature(nodes, self.most) if nodes > self.nodes else None


def uniform_grid(lower: Tensor, upper: Tensor, count: int) -> tuple[Tensor, float]:
    """A product grid between two corners ``(D,)``: its points ``(Q, D)``, the last dim fastest.

    Also the logarithm of the volume that each point stands for.
    """
    steps = torch.arange(count, dtype=lower.dtype, device=lower.device) / (count - 1)
    lines = [steps * (b - a) + a for a, b in zip(lower, upper, strict=True)]
    points = torch.cartesian_prod(*lines).reshape(-1, len(lines))
    cell = (upper - lower) / (count - 1)
    return points, math.fsum(cell.log().tolist())
