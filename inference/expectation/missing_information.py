r"""The information that the latents of a plain mixture hide, in closed form.

With what each component begins with and what features count for in it, :math:`A(u)`, as a function
of the free reals of the parameters, the log evidence is one of :math:`A` alone, and

.. math:: -\nabla^2 \log p(x \mid u) = -\nabla^2 Q(u) - J^\top C J, \qquad
          J = \frac{\partial A}{\partial u},

with EM's :math:`Q` at its own parameters, and the covariance :math:`C` of the rows' statistics
given the rows (Louis 1982): one pass over the data, whatever the number of parameters. Where these
are many, :math:`C` is that of a sample of the rows, as often as all: a rough sketch of it.

Reference: Louis (1982), *Finding the observed information matrix when using the EM algorithm*, JRSS
B 44, 226-233.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ember.inference.expectation.kernels.mixture import MixtureKernel
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.numerics.batched_derivatives import rows_of_derivative
from ember.inference.numerics.threads import one_thread
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Plan
from ember.inference.plan.potentials import natural_parameters, values_of

__all__ = ["MissingInformation"]


WIDEST = 150  # numbers of all components, and free reals: their squares are to be cheap
PRODUCTS = 4e8  # of the numbers of all components with each other, in all rows
FEWEST = 20_000  # rows that stand for all where these are many
DEAR = 1e10  # products: as long as they are fewer more rows do
ENTRY = 1e7  # products that the derivatives by a free real are worth
PASSES = 400  # over the data that a sketch may cost at most


class MissingInformation:
    """Compiled for a plan; see ``of`` and ``sketched``.

    Args:
        plan: The plan.
        kernel: Of the plan's rows.
        sample: How many of them stand for all, drawn when they are first asked; all unless given.
    """

    def __init__(self, plan: Plan, kernel: MixtureKernel, sample: int | None = None) -> None:
        self._plan, self._whole, self._sample = plan, kernel, sample

    @functools.cached_property
    def _kernel(self) -> MixtureKernel:
        return self._whole if self._sample is None else self._whole.sampled(self._sample)

    @staticmethod
    def of(plan: Plan) -> MissingInformation | None:
        """That of a plan; None where it has no closed form, or would cost more than it is worth."""
        evidence = LogEvidence.of(plan)
        kernel = evidence.kernel
        if not isinstance(kernel, MixtureKernel) or max(_entries(plan), kernel.width) > WIDEST:
            return None
        if len(kernel.rows) * kernel.width**2 > PRODUCTS:
            return None
        return MissingInformation(evidence.plan, kernel)

    @staticmethod
    def sketched(plan: Plan) -> MissingInformation | None:
        """That of a sample of many rows, where it is worth the passes that it costs."""
        evidence = LogEvidence.of(plan)
        kernel = evidence.kernel
        if not isinstance(kernel, MixtureKernel) or len(kernel.rows) <= FEWEST:
            return None
        rows = min(len(kernel.rows), max(FEWEST, int(DEAR / kernel.width**2)))
        cost = rows * kernel.width**2 + ENTRY * _entries(plan)
        if cost > PASSES * kernel.work or plan.once(MissingInformation.of) is not None:
            return None
        return MissingInformation(evidence.plan, kernel, rows)

    def __call__(self, coordinates: Coordinates, point: Tensor) -> Tensor | None:
        """The missing information at some free reals, ``(P, P)``; None where digits are lost.

        Args:
            coordinates: The free reals of the parameters.
            point: Where, ``(P,)``.
        """
        plan = self._plan
        with one_thread(), torch.enable_grad():
            free = point.detach().clone().requires_grad_()
            values = values_of(plan, coordinates.unflatten(free))
            if plan.residuals.needed(plan.tied, values):
                return None
            affine = self._kernel.affine(natural_parameters(plan, values))
            jacobian = rows_of_derivative(affine.flatten(), free)
        with torch.no_grad():
            return jacobian.mT @ self._kernel.spread(affine.detach()) @ jacobian


def _entries(plan: Plan) -> int:
    return sum(parameter.shape.numel() for parameter in plan.structure.parameters.values())
