r"""A component of which the precision is a sum of two known matrices: diagonal, once for all.

Breeding values with a relationship matrix, a Gaussian process with a known kernel: whatever the
variances are, the precision is :math:`a A + b B` with numbers :math:`a, b` and known matrices, such
as :math:`A^{-1}` of the prior and :math:`Z^\top Z` of the records. With the solution of

.. math:: A V = B V \Lambda, \qquad V^\top B V = I,

and :math:`z = V x` it is :math:`b I + a \Lambda`, and every iteration takes ``n`` numbers instead
of a factorisation.

Reference: Patterson & Thompson (1971), *Recovery of inter-block information when block sizes are
unequal*, Biometrika 58, 545-554; Kang et al. (2008), *Efficient control of population structure in
model organism association mapping*, Genetics 178, 1709-1723.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ember.inference.factors.gaussian.component import GaussianComponent, Natural, Potentials
from ember.inference.factors.gaussian.linked_component import LinkedComponent
from ember.inference.factors.tied import TieKey
from ember.inference.numerics.gaussian.block_diagonal import BlockDiagonalSystem
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.system import LARGEST_DENSE, dense
from ember.inference.numerics.gaussian.systems import GaussianSystem

__all__ = ["PencilComponent", "as_pencil"]


SECONDS = 4e-10  # of the cube of the entries, for the decomposition
OVERHEAD = 1e-3  # of a pass without it
PASSES = 30  # of a fit, among which it is shared out
LARGEST_NATURAL = 500  # natural parameters of which the quadratic form is taken apart
PROPORTIONAL = 1e-10


@dataclass(frozen=True, eq=False)
class PencilComponent(GaussianComponent):
    """A linked component in coordinates in which its precision is diagonal.

    Its natural parameters, those of ``keys`` laid end to end, are ``eta``.

    Attributes:
        whole: The component as it is.
        keys: The tied factors that it reads.
        constant: The constant of the quadratic form, by natural parameters ``(K,)``.
        linear: Its linear term in the new coordinates, by natural parameters, ``(K, n)``.
        places: Which of the natural parameters have a share in it, ``(K,)``.
        offset: Constant ``()`` and linear term ``(n,)`` at natural parameters of zero.
        weights: The places of ``a`` and ``b`` in ``eta``, with their signs.
        values: The diagonal of ``Lambda``, ``(n,)``.
        log_det: ``log |det V|``.
    """

    whole: LinkedComponent
    keys: tuple[TieKey, ...]
    constant: Tensor
    linear: Tensor
    places: Tensor
    offset: tuple[Tensor, Tensor]
    weights: tuple[tuple[int, float], tuple[int, float]]
    values: Tensor
    log_det: float

    @property
    def pattern(self) -> Pattern:
        return self.whole.pattern

    @property
    def system(self) -> GaussianSystem:
        return self.whole.system

    @property
    def row_of_entry(self) -> Tensor:
        return self.whole.row_of_entry

    @property
    def description(self) -> str:
        return f"{self.count:,} entries, diagonalised once"

    def potentials(self, natural: Natural, pieces: Natural | None = None) -> Potentials:
        return self.whole.potentials(natural)

    def log_prob(self, natural: Natural, pieces: Natural | None = None) -> Tensor:
        eta = torch.cat([natural[key].flatten(-2) for key in self.keys], -1)
        first, second = (sign * eta[..., i : i + 1] for i, sign in self.weights)
        precision = first * self.values + second
        precision = torch.where(precision > 0, precision, torch.nan)
        constant, vector = self.offset
        linear = eta[..., self.places] @ self.linear + vector
        parts = linear.square() / precision - precision.log() + math.log(2.0 * math.pi)
        total = eta @ self.constant + constant + 0.5 * parts.sum(-1) + self.log_det
        return self.in_dims(total.unsqueeze(-1).unsqueeze(-1))


def as_pencil(whole: LinkedComponent, natural: Sequence[Natural]) -> PencilComponent | None:
    """The component by its pencil; None if it has none, or gains nothing by it.

    Args:
        whole: The component.
        natural: The natural parameters of all tied factors at a few random parameters.
    """
    count = whole.count
    if whole.states or whole.rows or count > LARGEST_DENSE:
        return None
    keys = tuple(dict.fromkeys(member.key for member in whole.members))
    seen = torch.stack([torch.cat([each[key].flatten() for key in keys]) for each in natural])
    blocks = isinstance(whole.system, BlockDiagonalSystem)  # nothing is quicker
    each = whole.system.seconds + (0.0 if blocks else OVERHEAD)
    once = SECONDS * count**3 + OVERHEAD * seen.shape[1]
    if once > PASSES * each or seen.shape[1] > LARGEST_NATURAL:
        return None
    form = _Affine.of(whole, keys, natural[0])
    groups = _groups(form.precisions, seen)
    if len(groups) != 2:
        return None
    order = [(0, 1), (1, 0)]
    for one, other in order:
        (a, first), (b, second) = groups[other], groups[one]
        try:
            values, vectors = scipy.linalg.eigh(
                dense(whole.pattern, first).cpu().numpy(),
                dense(whole.pattern, second).cpu().numpy(),
            )
        except np.linalg.LinAlgError:
            continue  # the second one is not positive definite
        turn, log_det = torch.from_numpy(vectors).to(first), float(np.linalg.slogdet(vectors)[1])
        roots = torch.from_numpy(values).to(first)
        places = (form.linear != 0).any(-1).nonzero().squeeze(-1)
        return PencilComponent(
            whole.factor, whole.latents, whole.states, whole.rows, whole.sites, whole, keys,
            form.constant, form.linear[places] @ turn, places,
            (form.offset[0], form.offset[1] @ turn), (a, b), roots, log_det,
        )  # fmt: skip
    return None


@dataclass(frozen=True, eq=False)
class _Affine:
    """A quadratic form taken apart by natural parameters.

    Attributes:
        constant: ``(K,)``.
        linear: ``(K, n)``.
        precisions: The precision on the pattern, of those that have a share in it.
        offset: Constant and linear term at natural parameters of zero.
    """

    constant: Tensor
    linear: Tensor
    precisions: dict[int, Tensor]
    offset: tuple[Tensor, Tensor]

    @staticmethod
    def of(whole: LinkedComponent, keys: Sequence[TieKey], like: Natural) -> "_Affine":
        zero = {key: torch.zeros_like(like[key]) for key in keys}
        at_zero = whole.potentials(zero)
        constants, linears = list[Tensor](), list[Tensor]()
        precisions = dict[int, Tensor]()
        for key in keys:
            for i in range(zero[key].numel()):
                moved = zero[key].clone()
                moved.view(-1)[i] = 1.0
                found = whole.potentials({**zero, key: moved})
                values = (found.precision - at_zero.precision).reshape(-1)
                if bool((values != 0).any()):
                    precisions[len(constants)] = values
                constants.append((found.constant - at_zero.constant).sum())
                linears.append((found.linear - at_zero.linear).reshape(-1))
        offset = at_zero.constant.sum(), at_zero.linear.reshape(-1)
        if bool((at_zero.precision != 0).any()):
            precisions[-1] = at_zero.precision.reshape(-1)  # no pencil: a matrix of its own
        return _Affine(torch.stack(constants), torch.stack(linears), precisions, offset)


Weighed = tuple[tuple[int, float], Tensor]


def _groups(precisions: dict[int, Tensor], seen: Tensor) -> list[Weighed]:
    """The matrices with weights that are multiples of each other, as one each.

    Returns:
        For each the place and the sign of its weight in ``eta``, and the matrix on the pattern;
        the traces are positive.
    """
    if -1 in precisions:
        return []
    groups: list[tuple[int, Tensor]] = []
    for place, values in precisions.items():
        weight = seen[:, place]
        for i, (lead, total) in enumerate(groups):
            ratio = weight / seen[:, lead]
            if bool(((ratio - ratio[0]).abs() <= PROPORTIONAL * ratio[0].abs()).all()):
                groups[i] = lead, total + ratio[0] * values
                break
        else:
            groups.append((place, values))
    out = []
    for place, values in groups:
        # What is negative definite has negative weights, as the rate of a family has.
        sign = 1.0 if bool((seen[:, place] > 0).all()) else -1.0
        out.append(((place, sign), sign * values))
    return out
