"""A site whose counts are superposed, compiled: see ``superposition.py``."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.factors import Site, finish
from ember.inference.superposition import (
    Sensitivity,
    SuperposedForm,
    SuperposedRate,
    log_factorials,
    poisson_log_prob,
)

__all__ = ["SuperposedFactor", "compile_superposed"]


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
        out = finish(out + self.base, site.mask, site.inner_shape, site.dummy)
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
        counts = torch.where(site.mask, counts, torch.zeros(()))
    shape = torch.broadcast_shapes(counts.shape, rate.shape)
    _check_possible(site.name, counts, rate)
    outer = shape[: len(shape) - len(site.inner_shape)]
    dims = site.layout.pack(torch.empty(()).expand(outer))[1]
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
    expected = rate.operator.rate(torch.ones(rate.entries)).reshape(rate.shape)
    impossible = (counts > 0) & (expected == 0)
    if bool(impossible.any()):
        place = tuple(int(i) for i in impossible.nonzero()[0])
        where = place[0] if len(place) == 1 else place
        raise ValueError(
            f"entry {where} of observed site '{name}' counts {float(counts[impossible][0]):g}, but "
            "no parameter feeds it and it has no background, so it is impossible; give it a "
            "background, or mask it with poutine.mask."
        )
