"""Data with gaps: NaN stands for an entry that is missing at random, and drops out exactly."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

__all__ = [
    "GappyMultivariateNormal",
    "is_finite",
    "normal_rows",
    "observe",
    "shown_entries",
    "shown_steps",
]


class GappyMultivariateNormal(dist.MultivariateNormal):
    """A multivariate normal whose values may hold NaN: the density is that of the other entries."""

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of the observed entries of `value` (*batch, D); 0 if there are none."""
        hidden = value.isnan()
        filled = torch.where(hidden, 0.0, value)
        if self._validate_args:
            self._validate_sample(filled)
        factor = self._factor(hidden)
        residual = torch.where(hidden, 0.0, filled - self.loc)
        shape = torch.broadcast_shapes(factor.shape[:-1], residual.shape)
        white = torch.linalg.solve_triangular(
            factor, residual.expand(shape).unsqueeze(-1), upper=False
        ).squeeze(-1)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * math.log(2 * math.pi) * (~hidden).sum(-1).to(white.dtype)
        return torch.as_tensor(-0.5 * white.square().sum(-1) - log_det - constant)

    def _factor(self, hidden: Tensor) -> Tensor:
        """Cholesky factors of the covariances of the entries of each row that are not hidden.

        Where all rows of a component share a covariance, there is one factor for each pattern of
        missing entries, and each row takes that of its pattern.
        """
        scale = self._unbroadcasted_scale_tril
        covariance = scale @ scale.mT
        features, rows = hidden.shape[-1], hidden.shape[:-1]
        rank = max(covariance.dim() - 2, len(rows))
        covariance = covariance.reshape(_padded(covariance.shape, rank + 2))
        both = zip(covariance.shape, _padded(rows, rank), strict=False)
        if any(matrices > 1 and values > 1 for matrices, values in both):
            return _padded_factor(covariance, hidden)
        patterns, index = _row_patterns(hidden.reshape(-1, features))
        matrix = torch.arange(covariance.shape[:rank].numel(), device=index.device)
        factors = _padded_factor(covariance.reshape(-1, 1, features, features), patterns)
        return factors[matrix.reshape(covariance.shape[:rank]), index.reshape(rows)]


def _padded(shape: torch.Size, rank: int) -> tuple[int, ...]:
    """A shape with ones on the left."""
    return (1,) * (rank - len(shape)) + tuple(shape)


def _row_patterns(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The patterns (G, D) among rows (N, D) of hidden entries, and that of each row (N,).

    Rows are told apart by numbers, 32 columns at a time: sorting them as rows takes far longer.
    """
    index = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    for block in hidden.split(32, -1):
        bits = (block.long() << torch.arange(block.shape[-1], device=hidden.device)).sum(-1)
        index = torch.unique((index << 32) + bits, return_inverse=True)[1]
    first = torch.zeros(int(index.max()) + 1, dtype=torch.long, device=hidden.device)
    first[index] = torch.arange(len(index), device=hidden.device)
    return hidden[first], index


def _padded_factor(covariance: Tensor, hidden: Tensor) -> Tensor:
    """The Cholesky factor of what is not hidden; hidden entries get the identity's."""
    shown = (~hidden).to(covariance.dtype)
    block = covariance * shown.unsqueeze(-1) * shown.unsqueeze(-2)
    return torch.as_tensor(torch.linalg.cholesky(block + torch.diag_embed(1 - shown)))


def normal_rows(rows: Tensor) -> type[dist.MultivariateNormal]:
    """The multivariate normal that the given rows need: one that takes NaN if they have any."""
    gappy = shown_entries(rows) is not None
    return GappyMultivariateNormal if gappy else dist.MultivariateNormal


def is_finite(x: Tensor) -> bool:
    """Whether no entry is NaN or infinite; their sum, which takes no memory, mostly says so."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def shown_entries(x: Tensor) -> Tensor | None:
    """Which entries of `x` are observed; None if all of them are."""
    hidden = None if not x.is_floating_point() or is_finite(x) else x.isnan()
    return None if hidden is None or not bool(hidden.any()) else ~hidden


def observe(name: str, fn: TorchDistribution, x: Tensor, shown: Tensor | None) -> None:
    """The statement of the data `x`, of which only the entries `shown` (like `x`) count.

    Entries that are independent given the parameters are masked one by one, their gaps filled with
    0; of a multivariate normal the density is that of the observed entries.
    """
    if shown is not None and not isinstance(fn, GappyMultivariateNormal):
        x = torch.where(shown, x, torch.zeros((), dtype=x.dtype, device=x.device))
        entries = fn.event_dim
        fn = fn.base_dist if entries else fn
        fn = fn.mask(shown).to_event(entries)
    pyro.sample(name, fn, obs=x)


def shown_steps(
    fn: TorchDistribution, x: Tensor, shown: Tensor | None, latents: int = 1
) -> tuple[TorchDistribution, Tensor]:
    """The emissions of a chain and its steps `x`, of which only the entries `shown` count.

    The chain moves on through a step without entries. The mask stands inside an `Independent`,
    even for single numbers, which tells it from that of steps past the end of a sequence. The last
    `latents` batch dims of `fn` are those of states and the like.
    """
    if shown is None or isinstance(fn, GappyMultivariateNormal):
        return fn, x
    entries = fn.event_dim
    base = fn.base_dist if entries else fn
    place = shown.dim() - entries
    masked = base.mask(shown[(slice(None),) * place + (None,) * latents])
    x = torch.where(shown, x, torch.zeros((), dtype=x.dtype, device=x.device))
    return dist.Independent(masked, entries), x
