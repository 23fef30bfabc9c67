r"""Finds Poisson rates that are weighted sums of non-negative parameters, by probing the model.

The sources of a rate are the parameters that its gradient reaches. That it is affine in them,

.. math:: r(\theta) = A \theta + b,

is checked at random points: additivity and homogeneity of :math:`r(\theta) - r(0)`, entry by
entry, and agreement with the gradient. ``A`` is never built column by column, unless there are
few. If the model multiplied by a matrix (whatever the notation: ``@``, ``torch.mv``, ``einsum``,
sparse or dense) and that matrix gives the very rates that the model gives, up to a factor for
each ray, its products are used from then on. If not, the model is run for the product and its
gradient is taken for the transpose.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.overrides import TorchFunctionMode

from ember.inference.numerics.draws import Draws
from ember.inference.numerics.shapes import varies_outside_plates
from ember.inference.parameters.affine_map import joined
from ember.inference.parameters.matrices import Matrix, MatrixOperator, as_matrix
from ember.inference.parameters.superposed_rate import Operator, SuperposedRate
from ember.inference.parameters.supports import limits
from ember.inference.reading.graphs import leaves_of
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.traced_operator import TracedOperator, rate_of
from ember.inference.reading.unwrapping import unwrap

__all__ = ["match_superposition"]


FEW_ENTRIES = 32  # of a parameter: its columns are taken one by one
ROUNDS = 24  # random sparse probes for negative coefficients of a map that only the model knows
TOLERANCE = 1e-9
Params = Mapping[str, Tensor]


def match_superposition(
    site: str, structure: Structure, params: Sequence[Params], traces: Sequence[Trace]
) -> SuperposedRate | str | None:
    """The map of a Poisson site's rate, the reason why it is no superposition, or None.

    None says that the rate is nothing of the kind: not affine, or not in non-negative parameters.

    Args:
        site: A Poisson site.
        structure: The roles of all sites.
        params: The probes' parameters.
        traces: The probes' runs.
    """
    with _Operands() as operands:
        sources, leaves, recorded = _recorded(site, structure, params[0])
    if not sources or not all(_is_half_line(structure.parameters[n].support) for n in sources):
        return None
    if _depends_on_latents(site, structure, recorded):
        return "its rate is a weighted sum of parameters that varies with a latent site"
    traced = TracedOperator(structure, site, sources, (leaves, recorded))
    points = [joined(sources, at) for at in params]
    rates = [rate_of(trace, site).detach().reshape(-1) for trace in traces]
    if any(rate.shape != rates[0].shape for rate in rates):
        return None
    offset = traced.rate(torch.zeros_like(points[0]))
    if not _is_affine(traced, offset, points, rates):
        return None
    if not bool((offset >= 0).all()):
        return "its rate is a weighted sum of parameters, less something: its offset is negative"
    sizes = tuple(structure.parameters[name].shape.numel() for name in sources)
    matrices = _matrices(traced, offset, sizes, operands.found)
    operator: Operator = traced
    if matrices is not None:
        known = MatrixOperator(tuple(matrices), sizes, offset)
        if all(_agree(known.rate(x), r) for x, r in zip(points, rates, strict=True)):
            operator = known
    if operator is traced and not _has_one_gradient(traced, offset, points, rates):
        return None
    negative = (
        not all(matrix.is_non_negative for matrix in operator.matrices)
        if isinstance(operator, MatrixOperator)
        else not _looks_non_negative(traced, len(rates[0]))
    )
    if negative:
        return "its rate is a weighted sum of parameters with negative weights: no superposition"
    return SuperposedRate(sources, sum(sizes), recorded.shape, operator)


class _Operands(TorchFunctionMode):
    """Notes the matrices that torch functions are called with, whoever calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        for value in args:
            for item in value if isinstance(value, (list, tuple)) else (value,):
                self._note(item)
        return func(*args, **(kwargs or {}))

    def _note(self, value: object) -> None:
        if isinstance(value, Tensor) and type(value) is Tensor:
            wanted = value.dim() == 2 and value.is_floating_point() and not value.requires_grad
            if wanted and not any(value is other for other in self.found):
                self.found.append(value)


def _recorded(
    site: str, structure: Structure, at: Params
) -> tuple[tuple[str, ...], list[Tensor], Tensor]:
    """The parameters that feed the rate, and the rate with its graph."""
    with torch.enable_grad():
        params = {name: value.clone().requires_grad_() for name, value in at.items()}
        rate = rate_of(structure.trace(params), site)
    leaves = leaves_of(rate)
    sources = tuple(name for name, value in params.items() if id(value) in leaves)
    return sources, [params[name] for name in sources], rate


def _is_half_line(support: constraints.Constraint) -> bool:
    """Whether a support is all of the non-negative (or positive) numbers, entry by entry."""
    lower, upper = limits(support)
    return lower is not None and upper is None and bool((lower == 0).all())


def _depends_on_latents(site: str, structure: Structure, rate: Tensor) -> bool:
    """Whether the rate has dims left of all plates: those of enumerated latents."""
    if not structure.latent:
        return False
    at = structure.start
    fn = structure.trace(at).nodes[site]["fn"]
    inner = len(unwrap(fn).base.batch_shape) - len(fn.batch_shape)
    return varies_outside_plates(rate.shape, structure.nesting + inner)


def _is_affine(
    traced: TracedOperator, offset: Tensor, points: Sequence[Tensor], rates: Sequence[Tensor]
) -> bool:
    if not bool(torch.isfinite(offset).all()):
        return False
    linear = [rate - offset for rate in rates]
    if not _agree(traced.rate(points[1] + points[2]) - offset, linear[1] + linear[2]):
        return False
    return _agree(traced.rate(2.5 * points[3]) - offset, 2.5 * linear[3])


def _has_one_gradient(
    traced: TracedOperator, offset: Tensor, points: Sequence[Tensor], rates: Sequence[Tensor]
) -> bool:
    """Whether the gradient at one point gives the rates at all points, as that of a line does."""
    weights = Draws(0).uniform((len(offset),))
    back = traced.transpose(weights)
    return all(
        _agree(back @ point, weights @ (rate - offset))
        for point, rate in zip(points, rates, strict=True)
    )


def _agree(left: Tensor, right: Tensor) -> bool:
    """Equality to rounding, relative to the largest entry as sums of such entries are."""
    close = (left - right).abs() <= TOLERANCE * (right.abs() + 1e-3 * right.abs().max())
    return bool(close.all())


def _matrices(
    traced: TracedOperator, offset: Tensor, sizes: tuple[int, ...], operands: Sequence[Tensor]
) -> list[Matrix] | None:
    """For each source the matrix that multiplies it; None where one is not known."""
    found = []
    total, start = sum(sizes), 0
    for size in sizes:

        def image(values: Tensor, start: int = start) -> Tensor:
            full = torch.zeros(total)
            full[start : start + len(values)] = values
            return traced.rate(full) - offset

        if size <= FEW_ENTRIES:
            matrix: Matrix | None = _columns(image, size, offset)
        else:
            matrix = _operand(image, size, operands)
        if matrix is None:
            return None
        found.append(matrix)
        start += size
    return found


def _columns(image: Callable[[Tensor], Tensor], size: int, offset: Tensor) -> Matrix:
    columns = torch.stack([image(row) for row in torch.eye(size)], 1)
    # What is left of a difference of equal numbers is rounding, not a weight.
    least = 1e-13 * (offset.abs().unsqueeze(1) + columns.abs().amax(0))
    return Matrix(torch.where(columns.abs() > least, columns, 0.0))


def _operand(
    image: Callable[[Tensor], Tensor], size: int, operands: Sequence[Tensor]
) -> Matrix | None:
    """The matrix, of those the model used, that maps the source as the model does."""
    draws = Draws(1)
    one, two = (draws.uniform((size,)) + 0.1 for _ in range(2))
    first, second = image(one), image(two)
    shape = (len(first), size)
    for operand in operands:
        for tensor in (operand, operand.t()):
            if tuple(tensor.shape) != shape:
                continue
            matrix = as_matrix(tensor)
            product = matrix.times(one)
            scale = torch.where(product != 0, first / product, torch.zeros(()))
            if not bool(((scale - 1.0).abs() <= 1e-13)[product != 0].all()):
                matrix = Matrix(matrix.matrix, scale)
            if _agree(matrix.times(one), first) and _agree(matrix.times(two), second):
                return matrix
    return None


def _looks_non_negative(traced: TracedOperator, rays: int) -> bool:
    """Whether sums of few and of many rows of the map, chosen at random, have no negative entry.

    The weights of a single ray are one row of the map; those of all rays are its column sums.
    """
    draws = Draws(2)
    total = traced.transpose(torch.ones(rays))
    if bool((total < 0).any()):
        return False
    floor = -1e-12 * float(total.max())
    for i in range(ROUNDS):
        weights = torch.zeros(rays)
        count = 1 if i % 2 else max(1, int(rays ** (i / ROUNDS)))
        weights[draws.permutation(rays)[:count]] = 1.0
        if bool((traced.transpose(weights) < floor).any()):
            return False
    return True
