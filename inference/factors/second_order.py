r"""What sites without sufficient statistics are expected to say, to second order.

Their expected log probability takes all rows at each evaluation. Near the parameters of an E-step,

.. math:: \mathbb E[\log p(y \mid z, \theta)] \approx
          c + g' (u - u_0) + \tfrac12 (u - u_0)' H (u - u_0)

in free reals :math:`u`, with a gradient and a Hessian that are sums over rows. So those of pieces
of data add up, and an M-step can be taken without the rows (the gradient algorithm of Lange 1995,
whose rate is that of EM).

Reference: Lange (1995), *A gradient algorithm locally equivalent to the EM algorithm*, JRSS B 57,
425-437.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors.opaque import OpaqueFactors, OpaquePosterior
from ember.inference.factors.predictors import NearSite
from ember.inference.numerics import newton
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.parameters.parameter import Parameter

__all__ = ["SecondOrder"]


ASKED = 20  # coordinates of a parameter
AWAY = 0.1  # of a standard deviation
APART = 0.5  # difference of curvatures, relative, that no smooth density has


@dataclass(frozen=True, eq=False)
class SecondOrder:
    """A quadratic function of those parameters that sites without sufficient statistics read.

    Attributes:
        coordinates: Their free reals.
        point: Where it was taken, ``(P,)``.
        gradient: The gradient there, ``(P,)``; 0 at a boundary.
        hessian: The Hessian, ``(P, P)``.
    """

    coordinates: Coordinates
    point: Tensor
    gradient: Tensor
    hessian: Tensor

    @classmethod
    def flat(
        cls,
        factors: OpaqueFactors,
        parameters: Mapping[str, Parameter],
        params: Mapping[str, Tensor],
    ) -> SecondOrder | None:
        """The one of no rows, at some parameters; None where every site has statistics."""
        names = (*factors.members, *factors.factors)
        if not names:
            return None
        read = factors.read_by(names)
        coordinates = Coordinates({name: p for name, p in parameters.items() if name in read})
        point = coordinates.flatten(params).detach()
        return cls(coordinates, point, torch.zeros_like(point), point.new_zeros(2 * (len(point),)))

    def of(
        self, posterior: OpaquePosterior, params: Mapping[str, Tensor], curved: bool
    ) -> SecondOrder:
        """That of the rows of a posterior, at the same parameters.

        Args:
            posterior: The weights of the rows.
            params: All parameters.
            curved: Whether to take the Hessian, which takes as many backward passes as there are
                coordinates; it is 0 otherwise.
        """
        rests = self.coordinates.at_rest(self.point)
        near = torch.where(rests, self.coordinates.inside(self.point), self.point)

        sites: list[NearSite | OpaquePosterior] = [posterior]
        if curved:
            known, rest = posterior.near({**params, **self.coordinates.unflatten(near)})
            sites = [*known, *([] if rest is None else [rest])]

        expected = functools.partial(self._expected, sites, params)
        if curved:
            gradient, hessian = newton.derivatives(expected, near)
        else:
            gradient, hessian = newton.slope(expected, near)[1], self.hessian
        return dataclasses.replace(
            self,
            gradient=torch.where(rests, 0.0, gradient),
            hessian=torch.where(rests | rests.unsqueeze(-1), 0.0, hessian),
        )

    def expected_log_prob(self, params: Mapping[str, Tensor]) -> Tensor:
        """The function, which is 0 where it was taken."""
        far = self._beyond(self.coordinates.flatten(params))
        return self.gradient @ far + 0.5 * far @ self.hessian @ far

    def __add__(self, other: SecondOrder) -> SecondOrder:
        """The sum, about the point of this one."""
        slope = other.hessian @ other._beyond(self.point)
        return dataclasses.replace(
            self,
            gradient=self.gradient + other.gradient + slope,
            hessian=self.hessian + other.hessian,
        )

    def __rmul__(self, by: float) -> SecondOrder:
        return dataclasses.replace(self, gradient=by * self.gradient, hessian=by * self.hessian)

    def has_edges(self, posterior: OpaquePosterior, params: Mapping[str, Tensor]) -> bool:
        """Whether slopes change otherwise than the curvature says, as they do at edges.

        Args:
            posterior: What it is of.
            params: All parameters.
        """
        curvature = self.hessian.diagonal()
        units = self.coordinates.units(self.point.nan_to_num(), self.gradient)
        expected = functools.partial(self._expected, [posterior], params)
        for _, own in self.coordinates:
            for i in own[:ASKED].tolist():
                # Between two kinks all is level, as at a median of an even number.
                is_level = bool((curvature[i] == 0.0) & (self.gradient[i] == 0.0))
                size = units[i] if is_level else curvature[i].abs().rsqrt().clamp_max(1.0)
                for length in (1.0, 10.0, 100.0) if is_level else (1.0,):
                    step = torch.zeros_like(self.point)
                    step[i] = length * AWAY * size
                    up, down = (
                        newton.slope(expected, self.point + way * step)[1][i] for way in (1.0, -1.0)
                    )
                    found, said = float((up - down) / (2.0 * step[i])), float(curvature[i])
                    apart = abs(found - said) > APART * max(abs(found), abs(said))
                    if apart or (said == 0.0 and not is_level):
                        return True
        return False

    def _expected(
        self,
        sites: Sequence[NearSite | OpaquePosterior],
        params: Mapping[str, Tensor],
        free: Tensor,
    ) -> Tensor:
        """The log probability of some sites at free reals, expected."""
        moved = {**params, **self.coordinates.unflatten(free)}
        value = torch.stack([torch.as_tensor(s.expected_log_prob(moved)) for s in sites]).sum()
        return value + 0.0 * free.sum()

    def concave(self) -> SecondOrder:
        """The same with every curvature downwards, so that it has a maximum.

        Raises:
            ArithmeticError: If it is not finite.
        """
        if not bool(self.hessian.isfinite().all() and self.gradient.isfinite().all()):
            raise ArithmeticError("the curvature of a site without sufficient statistics is lost")
        sizes = self.hessian.diagonal().abs().sqrt()
        sizes = torch.where(sizes > 0.0, sizes, 1.0)
        values, vectors = torch.linalg.eigh(self.hessian / sizes / sizes.unsqueeze(-1))
        turned = vectors * sizes.unsqueeze(-1)
        return dataclasses.replace(self, hessian=-(turned * values.abs()) @ turned.mT)

    def _beyond(self, point: Tensor) -> Tensor:
        """How far a point is from where the function was taken; a boundary is no way off."""
        far = point - self.point
        return torch.where(self.point.isfinite() & point.isfinite(), far, 0.0)
