r"""Missing entries of multivariate normal rows, integrated out exactly.

In natural parameters, ``log p(x) = a + h'x - x'Px/2``. Integrating the missing entries ``m`` out
leaves a function of the same shape in the observed ones ``o``, with

.. math::

    \tilde P = P_{oo} - P_{om} P_{mm}^{-1} P_{mo}, \quad
    \tilde h = h_o - P_{om} P_{mm}^{-1} h_m, \quad
    \tilde a = a + \tfrac12 \bigl(|m| \log 2\pi - \log|P_{mm}| + h_m' P_{mm}^{-1} h_m\bigr),

one small factorisation for each pattern of missing entries and each cell, however many rows there
are. By Fisher's identity the gradient of the marginal with respect to ``(a, h, P)`` of the whole
row is the conditional expectation of the whole row's statistics, so the E-step, which takes the
gradient of the log evidence, completes the data by itself and the M-step stays as it is.

Reference: Little & Rubin (2019), *Statistical analysis with missing data*, 3rd ed., Wiley,
section 11.2; Fisher's identity: Dempster, Laird & Rubin (1977), JRSS B 39, 1-38.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.factors.exponential import (
    EntrywiseFactor,
    ExponentialFactor,
    at_cells,
    compile_form,
    statistics_of,
)
from ember.inference.factors.factor import CompiledFactor
from ember.inference.factors.tied import SiteCells, TieKey
from ember.inference.families.multivariate_normal import MultivariateNormal
from ember.inference.numerics.design import Frame
from ember.inference.numerics.log_space import LOG_2PI, safe_log
from ember.inference.numerics.observed_density import row_patterns
from ember.inference.numerics.shapes import broadcast_shapes, prepend_dims
from ember.inference.reading.site import Site

__all__ = [
    "IncompleteFactor",
    "base_measure",
    "compile_site",
    "has_gaps",
    "marginal",
    "starting_eta",
]


def has_gaps(site: Site) -> bool:
    """Whether some rows of a multivariate site are observed in part."""
    if site.missing is None or not isinstance(_base(site), dist.MultivariateNormal):
        return False
    if site.form is not None and not isinstance(site.form.family, MultivariateNormal):
        return False  # its statistics are those of what is observed
    return bool((site.missing.any(-1) & ~site.missing.all(-1)).any())


def _base(site: Site) -> object:
    return None if site.density is None else site.density.base


def compile_site(
    site: Site, cells: Tensor, reference: Tensor | Frame | float
) -> "ExponentialFactor | EntrywiseFactor | IncompleteFactor":
    """A site in exponential-family form, compiled with or without missing entries."""
    if not has_gaps(site):
        return compile_form(site, cells, reference)
    return _compile(site, cells, reference)


@dataclass(frozen=True)
class Bucket:
    """Patterns with about as many rows each: statistics ``(G, P, W)``, short ones padded by 0."""

    patterns: Tensor
    statistics: Tensor


@dataclass(frozen=True)
class IncompleteFactor:
    """A multivariate normal site with missing entries: ``eta`` of the cells to log probability.

    Where the cells vary along latents only and the patterns along plates only, rows of one pattern
    take one matrix product, and patterns with about as many rows share one batched product.
    Otherwise every pair of cell and pattern that occurs is taken once, and its rows entry by entry.

    Attributes:
        cells: The cell of every row of ``eta`` that is made marginal, ``(R,)``.
        hidden: The patterns ``(G, D)``; in the entrywise case that of each pair, ``(R, D)``.
        buckets: The data by pattern; empty in the entrywise case.
        statistics: The statistics of every entry in the entrywise case, ``(*batch, P)``.
        places: Where each row stands in the concatenated buckets; in the entrywise case, the pair
            of every entry.
        base: What does not depend on parameters.
    """

    cells: Tensor
    hidden: Tensor
    buckets: tuple[Bucket, ...]
    statistics: Tensor | None
    places: Tensor
    base: Tensor | None
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    inner: int = 0

    def log_prob(self, eta: Tensor) -> Tensor:
        """That of the observed entries, with dims ``self.dims`` after leading dims of ``eta``."""
        gathered = at_cells(eta, self.cells)
        if self.statistics is not None:
            pairs = marginal(gathered, self.hidden)
            entries = (at_cells(pairs, self.places) * self.statistics).sum(-1)
            out = entries.flatten(-self.inner).sum(-1) if self.inner else entries
        else:
            patterns = marginal(gathered.unsqueeze(-3), self.hidden.unsqueeze(1))
            blocks = [patterns.index_select(-3, b.patterns) @ b.statistics for b in self.buckets]
            joined = torch.cat([b.transpose(-3, -2).flatten(-2) for b in blocks], -1)
            out = joined.index_select(-1, self.places)
        if self.base is not None:
            out = out + self.base
        return out.reshape((*eta.shape[:-2], *self.shape))


def marginal(eta: Tensor, hidden: Tensor) -> Tensor:
    """Natural parameters of the entries that are not hidden, zero at those that are.

    Args:
        eta: Natural parameters of whole rows, ``(..., P)``.
        hidden: Which entries are integrated out, ``(..., D)``, of boolean dtype.
    """
    dim = hidden.shape[-1]
    constant, linear, quadratic = MultivariateNormal.moments(eta, dim)
    precision = quadratic * -(1.0 + torch.eye(dim, dtype=eta.dtype, device=eta.device))
    out = hidden.to(eta.dtype)
    both = out.unsqueeze(-1) * out.unsqueeze(-2)
    # The identity stands in for the observed entries: it adds nothing to the determinant.
    padded = precision * both + torch.diag_embed(1.0 - out)
    factor, _ = torch.linalg.cholesky_ex(padded)
    inverse = torch.cholesky_inverse(factor) * both
    solved = (inverse @ linear.unsqueeze(-1)).squeeze(-1)
    log_det = 2.0 * safe_log(factor.diagonal(dim1=-2, dim2=-1)).sum(-1)
    count = out.sum(-1)
    constant = constant + 0.5 * (count * LOG_2PI - log_det + (linear * solved).sum(-1))
    linear = (1.0 - out) * (linear - (precision @ solved.unsqueeze(-1)).squeeze(-1))
    shown = (1.0 - out).unsqueeze(-1) * (1.0 - out).unsqueeze(-2)
    precision = shown * (precision - precision @ inverse @ precision)
    rows, columns = torch.triu_indices(dim, dim, device=eta.device)
    halves = torch.where(rows == columns, -0.5, -1.0).to(eta.dtype)
    packed = halves * precision[..., rows, columns]
    return torch.cat([constant.unsqueeze(-1), linear, packed], -1)


def _compile(site: Site, cells: Tensor, reference: Tensor | Frame | float) -> IncompleteFactor:
    """Groups the rows of a site by pattern, once."""
    assert site.missing is not None
    statistics, _ = statistics_of(site, site.value, reference)
    statistics = torch.where(statistics.isnan(), 0.0, statistics)
    rank, inner = statistics.dim() - 1, len(site.inner_shape)
    outer = rank - inner
    cells = prepend_dims(cells, rank)
    missing = prepend_dims(site.missing, rank + 1)
    base = base_measure(site, missing, reference)
    # A row without any observed entry is masked: its statistics are 0 under every pattern.
    missing = missing & ~missing.all(-1, keepdim=True)
    dim = missing.shape[-1]
    hidden, pattern = row_patterns(missing.reshape(-1, dim))
    pattern = pattern.reshape(missing.shape[:-1])
    data = broadcast_shapes(pattern.shape, statistics.shape[:-1])
    rows = [i for i in range(outer) if cells.size(i) > 1]
    columns = [i for i in range(outer) if max(data[i], base.size(i)) > 1]
    sizes = broadcast_shapes(cells.shape, data)
    symbol = site.layout.outer
    kept = None if not bool((base != 0).any()) else base
    if inner or set(rows) & set(columns):
        pairs, place = torch.unique(cells * len(hidden) + pattern, return_inverse=True)
        full = broadcast_shapes(sizes, (*(1,) * outer, *site.inner_shape))
        seen = [i for i in range(outer) if max(full[i], base.size(i)) > 1]
        return IncompleteFactor(
            pairs // len(hidden), hidden[pairs % len(hidden)], (), statistics, place.expand(full),
            kept,
            tuple(symbol[i] for i in seen), tuple(max(full[i], base.size(i)) for i in seen), inner,
        )  # fmt: skip
    column_sizes = [max(data[i], base.size(i)) for i in columns]
    spread = [max(data[i], base.size(i)) if i in columns else 1 for i in range(outer)]
    flat = statistics.expand(*spread, -1).reshape(-1, statistics.shape[-1])
    buckets, places = _buckets(flat, pattern.expand(spread).reshape(-1))
    return IncompleteFactor(
        cells.reshape(-1), hidden, buckets, None, places,
        None if kept is None else base.expand(spread).reshape(1, -1),
        tuple(symbol[i] for i in (*rows, *columns)),
        (*(cells.size(i) for i in rows), *column_sizes),
    )  # fmt: skip


def base_measure(site: Site, missing: Tensor, reference: Tensor | Frame | float) -> Tensor:
    """``h`` over the outer batch: a number that scales a precision counts for each entry shown."""
    assert site.form is not None
    rank, inner = missing.dim() - 1, len(site.inner_shape)
    _, whole = site.form.statistics(site.value, reference)
    if whole is None:
        return missing.new_zeros((1,) * (rank - inner), dtype=torch.float64)
    base = prepend_dims(whole, rank) * (~missing).to(whole.dtype).mean(-1)
    if site.mask is not None:
        base = torch.where(site.mask, base, 0.0)
    if inner:
        base = base.expand(*base.shape[: rank - inner], *site.inner_shape)
        base = base.flatten(rank - inner).sum(-1)
    return base


def _buckets(statistics: Tensor, pattern: Tensor) -> tuple[tuple[Bucket, ...], Tensor]:
    """Rows ``(N, P)`` by pattern, and where each row then stands.

    Patterns whose numbers of rows lie between the same powers of two are padded to one width, so
    that hundreds of patterns take a handful of products at no more than twice their size.
    """
    order = torch.argsort(pattern, stable=True)
    counts = torch.bincount(pattern)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(pattern)
    rank[order] = torch.arange(len(pattern), device=pattern.device) - starts[pattern[order]]
    level = torch.ceil(torch.log2(counts.to(torch.float64)))
    buckets, places, shift = [], torch.empty_like(pattern), 0
    for height in torch.unique(level[counts > 0]):
        members = ((level == height) & (counts > 0)).nonzero().reshape(-1)
        width = int(counts[members].max())
        position = torch.full_like(counts, -1)
        position[members] = torch.arange(len(members), device=members.device)
        mine = (position[pattern] >= 0).nonzero().reshape(-1)
        padded = statistics.new_zeros((len(members), width, statistics.shape[-1]))
        padded[position[pattern[mine]], rank[mine]] = statistics[mine]
        places[mine] = shift + position[pattern[mine]] * width + rank[mine]
        buckets.append(Bucket(members, padded.transpose(1, 2).contiguous()))
        shift += len(members) * width
    return tuple(buckets), places


def starting_eta(
    sites: Mapping[str, Site],
    compiled: Mapping[str, tuple[TieKey, CompiledFactor]],
    cells: Mapping[str, SiteCells],
) -> dict[TieKey, Tensor]:
    """For all tied factors with gaps, natural parameters at which a start may complete its rows.

    They are those of independent columns with the mean and variance of the observed entries: the
    mean is filled in, and the variance keeps every component's scatter off zero.
    """
    moments: dict[TieKey, list[Tensor]] = {}
    for name, (key, form) in compiled.items():
        if isinstance(form, IncompleteFactor):
            dim = form.hidden.shape[-1]
            statistics, _ = statistics_of(sites[name], sites[name].value, cells[name].reference)
            rows, columns = torch.triu_indices(dim, dim, device=statistics.device)
            squares = statistics[..., 1 + dim :][..., rows == columns]
            both = torch.stack([statistics[..., 1 : 1 + dim], squares])
            both = torch.where(statistics[..., :1] > 0, both, torch.nan)  # masked rows
            moments.setdefault(key, []).append(both.reshape(2, -1, dim))
    out = {}
    for key, pieces in moments.items():
        mean, square = torch.cat(pieces, 1).nanmean(1)
        variance = square - mean.square()
        variance = torch.where(variance > 0, variance, 1.0)
        family = MultivariateNormal()
        out[key] = family.natural_parameters(mean.nan_to_num(), torch.diag_embed(1.0 / variance))
    return out
