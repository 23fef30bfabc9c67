"""A site whose counts are superposed, compiled: see ``families/superposition.py``."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.inference.families.superposition import SuperposedForm, log_factorials
from ember.inference.numerics.large_counts import MANY, deviance
from ember.inference.numerics.shapes import broadcast_shapes
from ember.inference.parameters.superposed_rate import (
    Operator,
    SuperposedRate,
    superposed_rate,
    superposed_transpose,
)
from ember.inference.reading.site import Site, finish

__all__ = ["Sensitivity", "SuperposedFactor", "compile_superposed", "poisson_log_prob"]


class Sensitivity:
    """The sums of weights ``A' w``, kept for as long as the rays' own weights ``w`` stay."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._latest: tuple[Tensor, Tensor] | None = None

    def __call__(self, weights: Tensor) -> Tensor:
        """``A' weights``."""
        if self._latest is None or not torch.equal(self._latest[0], weights):
            self._latest = (weights.clone(), self._operator.transpose(weights))
        return self._latest[1]


@dataclass(frozen=True)
class SuperposedFactor:
    """Natural parameters of the cells to log probability, in two products of the map."""

    site: Site
    cells: Tensor
    counts: Tensor
    base: Tensor
    rate: SuperposedRate
    sensitivity: Sensitivity
    dims: tuple[str, ...]

    def log_prob(self, eta: Tensor) -> Tensor:
        """The log probability with dims ``self.dims``."""
        site = self.site
        out = poisson_log_prob(eta[self.cells], self.counts, self.rate, self.sensitivity)
        out = finish(out + self.base, site.mask, site.inner_shape, site.masked_log_prob)
        return site.layout.pack(out)[0]


def compile_superposed(site: Site, cells: Tensor) -> SuperposedFactor:
    """Lays out a site's counts once.

    Args:
        site: The site; its form is superposed.
        cells: The cell of every entry that feeds the rate.
    """
    assert isinstance(site.form, SuperposedForm)
    rate = site.form.map
    counts = site.value.to(torch.float64)
    if site.mask is not None:
        counts = torch.where(site.mask, counts, 0.0)
    shape = broadcast_shapes(counts.shape, rate.shape)
    _check_possible(site.name, counts, rate)
    outer = shape[: len(shape) - len(site.inner_shape)]
    dims = site.layout.pack(counts.new_empty(()).expand(outer))[1]
    return SuperposedFactor(
        site,
        cells.reshape(-1),
        counts,
        -log_factorials(counts),
        rate,
        Sensitivity(rate.operator),
        dims,
    )


def _check_possible(name: str, counts: Tensor, rate: SuperposedRate) -> None:
    """Refuses a count where none can be expected, whatever the parameters."""
    expected = rate.operator.rate(counts.new_ones(rate.entries)).reshape(rate.shape)
    impossible = (counts > 0) & (expected == 0)
    if bool(impossible.any()):
        place = tuple(int(i) for i in impossible.nonzero()[0])
        where = place[0] if len(place) == 1 else place
        raise ValueError(
            f"entry {where} of observed site '{name}' counts {float(counts[impossible][0]):g}, but "
            "no parameter feeds it and it has no background, so it is impossible; give it a "
            "background, or mask it with poutine.mask."
        )


def poisson_log_prob(
    eta: Tensor, counts: Tensor, rate: SuperposedRate, sensitivity: Sensitivity
) -> Tensor:
    """Log probability of every count, ``log_factorials`` aside; its gradient is the statistics.

    Args:
        eta: Natural parameters ``(log theta, -theta)`` of the entries, ``(P, 2)``.
        counts: Counts, of a shape that the rate's broadcasts to.
        rate: The rate's map.
        sensitivity: The sums of its weights.
    """
    found: Tensor = _LogProb.apply(eta, counts, rate, sensitivity)  # type: ignore[no-untyped-call]
    return found


class _LogProb(torch.autograd.Function):
    """The log probability as a function of natural parameters; two products in all.

    ``eta_2`` is ``-theta`` itself, so the rate is computed from it, without a logarithm's
    rounding and exactly zero where an entry is.
    """

    @staticmethod
    def forward(
        ctx: Any, eta: Tensor, counts: Tensor, rate: SuperposedRate, sensitivity: Sensitivity
    ) -> Tensor:
        expected = rate.operator.rate(-eta[:, 1]).reshape(rate.shape)
        ctx.save_for_backward(eta, counts, expected)
        ctx.rate, ctx.sensitivity = rate, sensitivity
        if bool((counts > MANY).any()):  # see ``log_factorials``
            return -deviance(counts, expected)
        return torch.xlogy(counts, expected).sub_(expected)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        eta, counts, expected = ctx.saved_tensors
        operator, shape = ctx.rate.operator, ctx.rate.shape
        values = -eta[:, 1]
        weights = gradient.sum_to_size(shape).reshape(-1)
        if torch.is_grad_enabled():  # someone wants curvatures
            expected = superposed_rate(values, operator).reshape(shape)
            sums = superposed_transpose(weights, operator)
        else:
            sums = ctx.sensitivity(weights)
        # No count where nothing is expected is certain; a count there is impossible.
        tiny = torch.finfo(expected.dtype).tiny
        ratio = torch.where(counts > 0, counts / expected.clamp_min(tiny), 0.0)
        back = superposed_transpose((gradient * ratio).sum_to_size(shape).reshape(-1), operator)
        return torch.stack([values * back, sums], -1), None, None, None
