"""Sites of large counts by their deviances: see ``numerics/large_counts.py``."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.factors.residuals.normal import Cells, Residuals, added, by_rows
from ember.inference.families.discrete import Bernoulli, Categorical
from ember.inference.families.rates import Rate
from ember.inference.numerics.large_counts import deviance, stirling_rest
from ember.inference.numerics.shapes import append_dims, broadcast_shapes
from ember.inference.reading.site import Site

__all__ = ["CountResiduals", "count_rest", "counts"]


COUNTS = (dist.Poisson, dist.Binomial, dist.Multinomial)


def counts(site: Site) -> bool:
    """Whether a site counts: what is observed, exposures aside, are its sufficient statistics."""
    if site.form is None or site.density is None:
        return False
    plain = type(site.form.family) in (Rate, Bernoulli, Categorical)  # not of superposed rates
    return plain and isinstance(site.density.base, COUNTS)


def count_rest(site: Site, statistics: Tensor) -> Tensor:
    """What does not depend on parameters, for each entry of ``statistics`` ``(*batch, P)``."""
    assert site.density is not None
    if isinstance(site.density.base, dist.Poisson):
        return -stirling_rest(statistics[..., 0])
    return stirling_rest(statistics.sum(-1)) - stirling_rest(statistics).sum(-1)


@dataclass(frozen=True)
class CountResiduals(Residuals):
    """Counts of events ``(*batch, P)``, or of events and exposures in ``data``."""

    has_exposure: bool

    def log_prob(self, at: Cells) -> Tensor:
        """That of the counts, by how far they are from what is expected."""
        value = at.scales[self.cells]
        if self.has_exposure:
            out = -deviance(self.data[..., 0], value * self.data[..., 1])
        else:
            total = self.data.sum(-1, keepdim=True)
            is_single = value.dim() < self.data.dim()
            shares = torch.stack([value, 1.0 - value], -1) if is_single else value
            out = -deviance(self.data, total * shares).sum(-1)
        return self._finished(out)

    def moments(self, at: Cells, posterior: Tensor, centre: Tensor, squares: bool) -> list[Tensor]:
        """The expected counts of every cell."""
        weight = append_dims(self._spread(posterior), len(self.inner)) * self.weights
        batch = (self.data.shape[:-1], weight.shape, self.cells.shape, self.inner)
        full = broadcast_shapes(*batch)
        kept = [i for i in range(len(full)) if self.cells.size(i) > 1]
        weight = by_rows(weight.expand(full), kept, len(full)).unsqueeze(-1)
        data = by_rows(self.data.expand(*full, -1), kept, len(full))
        return added([(weight * data).sum(1)], self.cells.reshape(-1), len(at.scales))
