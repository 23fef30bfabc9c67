r"""What a site says of the latent with a conjugate prior that it reads.

The log density of every event is :math:`A + \langle \lambda, t(u) \rangle` with the statistics
:math:`t` of the latent's family (``families/conjugate_latents.py``). With sufficient statistics
:math:`T` of its own, :math:`A` and :math:`\lambda` are linear in its natural parameters; other
sites are asked for them at each evaluation.
"""

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.factors.tied import SiteCells
from ember.inference.families.normal import Location
from ember.inference.families.rates import Rate
from ember.inference.families.regression import Regression
from ember.inference.families.weighted import WeightedMultivariateNormal, WeightedNormal
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.log_space import LOG_2PI, safe_log
from ember.inference.numerics.observed_density import observed_parts
from ember.inference.numerics.shapes import append_dims, broadcast_shapes, prepend_dims
from ember.inference.reading.site import Site, fill_masked

__all__ = ["conjugate_statistics", "density_potentials"]


def conjugate_statistics(site: Site, cells: SiteCells) -> Tensor:
    """``A`` and the coefficients as functions of natural parameters, ``(*batch, P + 1, M)``.

    The base measure comes last. Those of a latent's own prior are its potentials.
    """
    form, slot = site.form, site.conjugate
    assert form is not None
    assert slot is not None
    value = _shown(site)
    statistics, base = form.statistics(value, cells.reference)
    rank = len(site.layout.outer) + site.layout.inner
    statistics = prepend_dims(statistics, rank + 1)
    base = prepend_dims(statistics.new_zeros(()) if base is None else base, rank)
    shape = broadcast_shapes(statistics.shape[:-1], base.shape)
    statistics, base = statistics.expand(*shape, -1), base.expand(shape)
    if slot.is_own:
        return _of_prior(statistics, base)
    if not slot.exponent:
        return _of_probability(site, statistics, base)
    return _masked(site, _of_rate(site, statistics, base))


def _of_prior(statistics: Tensor, base: Tensor) -> Tensor:
    """``Gamma(a, c r)`` with ``T = (a, c)`` at one: its normaliser, ``a``, ``a - c r``, ``c r``."""
    a, c = statistics.unbind(-1)
    zero = torch.zeros_like(a)
    by_log_rate = torch.stack([a, zero, zero, zero], -1)
    by_minus_rate = torch.stack([c, zero, c, -c], -1)
    constant = torch.stack([base, a, a, zero], -1)
    return torch.stack([by_log_rate, by_minus_rate, constant], -2)


def _of_probability(site: Site, statistics: Tensor, base: Tensor) -> Tensor:
    """Counts: no natural parameter is left, for the latent is the probability."""
    assert site.conjugate is not None
    counts = statistics
    if not site.conjugate.family.is_vector:
        counts = torch.where(site.conjugate.swapped.unsqueeze(-1), counts.flip(-1), counts)
    row = torch.cat([base.unsqueeze(-1).expand(*counts.shape[:-1], 1), counts], -1).unsqueeze(-2)
    none = torch.zeros_like(row).expand(*row.shape[:-2], statistics.shape[-1], row.shape[-1])
    return _masked(site, torch.cat([none, row], -2))


def _of_rate(site: Site, statistics: Tensor, base: Tensor) -> Tensor:
    """A latent that multiplies a rate: the exponent of the rate, and what the rate multiplies."""
    assert site.form is not None
    family = site.form.family
    stays = torch.zeros(statistics.shape[-1], dtype=torch.bool)
    square = torch.zeros_like(base)
    if isinstance(family, Location):  # of a known precision J: h^2 / J belongs to the exponent
        degree = torch.full_like(base, 0.5)
        h, precision = statistics.unbind(-1)
        square = 0.5 * h.square() / torch.where(precision == 0.0, 1.0, precision)
    else:
        stays[0] = True
        halves = 1.0
        if isinstance(family, Regression | WeightedNormal):
            halves = 0.5
        elif isinstance(family, WeightedMultivariateNormal):
            halves = 0.5 * site.value.shape[-1]
        else:
            assert isinstance(family, Rate)
        degree = halves * statistics[..., 0]
    constant = torch.where(stays, statistics, 0.0)
    zero = torch.zeros_like(statistics)
    rows = torch.stack([constant, zero, constant - statistics], -1)
    last = torch.stack([base + square, degree, square], -1).unsqueeze(-2)
    return torch.cat([rows, last], -2)


def density_potentials(site: Site, fn: Distribution) -> Tensor:
    """``A`` and the coefficients by a site's distribution, ``(*batch, 1 + M)`` at full rank.

    Args:
        site: A site without sufficient statistics, or a latent by its own prior.
        fn: Its distribution without wrappers where the latents change nothing.
    """
    slot = site.conjugate
    assert slot is not None
    rank = len(site.layout.outer) + site.layout.inner
    if slot.is_own:
        found = slot.family.potentials(fn)
    else:
        value = fill_masked(site.value, site.mask, len(fn.event_shape))
        found = torch.stack(torch.broadcast_tensors(*_rate_terms(fn, value)), -1)
        found = _masked(site, found.unsqueeze(-2)).squeeze(-2)
    return prepend_dims(found, rank + 1)


def _rate_terms(fn: Distribution, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``A``, the exponent of the rate, and what the rate multiplies, negated."""
    if isinstance(fn, dist.Poisson):
        return torch.xlogy(x, fn.rate) - torch.lgamma(x + 1.0), x, fn.rate
    if isinstance(fn, dist.Exponential):
        return safe_log(fn.rate), torch.ones_like(x), fn.rate * x
    if isinstance(fn, dist.Gamma):
        a = fn.concentration
        base = a * safe_log(fn.rate) + (a - 1.0) * safe_log(x) - torch.lgamma(a)
        return base, a + torch.zeros_like(x), fn.rate * x
    if isinstance(fn, dist.MultivariateNormal):
        base, entries, square = observed_parts(fn.loc, fn.covariance_matrix, x)
        return base, 0.5 * entries, square
    if isinstance(fn, dist.LogNormal):
        z = (safe_log(x) - fn.loc) / fn.scale
        base = -safe_log(fn.scale) - safe_log(x) - 0.5 * LOG_2PI
    else:
        assert isinstance(fn, dist.Normal)
        z = (x - fn.loc) / fn.scale
        base = -safe_log(fn.scale) - 0.5 * LOG_2PI
    return base, torch.full_like(z, 0.5), 0.5 * z.square()


def _shown(site: Site) -> Tensor:
    """The value, with zeros where entries are masked and may be NaN."""
    if site.mask is None:
        return site.value
    assert site.form is not None
    return torch.where(append_dims(site.mask, site.form.event_dim), site.value, 0.0)


def _masked(site: Site, found: Tensor) -> Tensor:
    """Coefficients ``(*batch, rows, M)`` of which masked events have none, but their constant."""
    if site.mask is None:
        return found
    mask = append_dims(site.mask, 2)
    found = torch.where(mask, found, 0.0)
    if site.masked_log_prob:
        constant = torch.zeros_like(found[..., :1, :1]) + site.masked_log_prob
        last = found[..., -1:, :1] + torch.where(mask, 0.0, constant)
        found = torch.cat([found[..., :-1, :], torch.cat([last, found[..., -1:, 1:]], -1)], -2)
    return found
