"""An observed site as a picture sees it: its rows, and the fitted distribution of each state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.answers import prediction
from ember.inference.answers.sequences import base_name, members
from ember.inference.factors import Site
from ember.inference.plan import Plan
from ember.inference.reading.recognition import unwrap
from ember.inference.shapes import append_dims, compact, prepend_dims

__all__ = ["Emission", "read_emissions"]

LEVELS = (dist.Categorical, dist.Bernoulli)
PARTS = (dist.Multinomial, dist.OneHotCategorical)


@dataclass(frozen=True)
class Emission:
    """The data of an observed site beside what its states say of them.

    Attributes:
        site: Name of the site; of steps put together, without their numbers.
        columns: Name of each of its ``D`` columns.
        kind: "real", "counts", "levels" (categories and yes-or-no) or "parts" (of a total).
        values: The data ``(*places, D)``, NaN where missing.
        latent: The latent site that it depends on; None if there is none.
        posterior: Probability of each state, ``(*places, K)``.
        means: Mean of each column in each state, ``(K, *places, D)``; dims of places are 1 where
            all places are alike. Of levels and parts: probabilities ``(K, D, L)``.
        covariances: ``(K, D, D)``; None where places differ.
        weights: How much each row counts, ``(N,)``; None if all count alike.
        base: The distribution of single entries or vectors, its batch dims as in ``axes``.
        axes: For every batch dim of ``base``: "state", "column", "place" or "" (of size 1).
        is_chain: Whether the last place is time.
    """

    site: str
    columns: tuple[str, ...]
    kind: str
    values: Tensor
    latent: str | None
    posterior: Tensor
    means: Tensor
    covariances: Tensor | None
    weights: Tensor | None
    base: Any
    axes: tuple[str, ...]
    is_chain: bool

    @property
    def states(self) -> int:
        return self.posterior.shape[-1]

    @property
    def is_alike(self) -> bool:
        """Whether a state says the same of every row: a mixture, and no regression."""
        return self.covariances is not None or self.kind in ("levels", "parts")

    @property
    def rows(self) -> Tensor:
        """The data as ``(N, D)``."""
        return self.values.reshape(-1, self.values.shape[-1])

    @property
    def row_posterior(self) -> Tensor:
        """Probability of each state for every row, ``(N, K)``."""
        return self.posterior.reshape(-1, self.states)

    @property
    def shares(self) -> Tensor:
        """The share of each state among the rows, ``(K,)``."""
        rows = self.row_posterior
        weights = torch.ones(len(rows)) if self.weights is None else self.weights
        shares: Tensor = weights @ rows / weights.sum()
        return shares


def read_emissions(
    plan: Plan, params: Mapping[str, Tensor], columns: Mapping[str, Sequence[str]]
) -> list[Emission]:
    """The observed sites that depend on one latent site at most, steps of a loop put together."""
    trace = plan.structure.trace(params)
    found: dict[str, Emission] = {}
    for name in plan.structure.observed:
        emission = _read(plan, params, name, trace.nodes[name]["fn"], columns)
        if emission is not None:
            found[name] = emission
    return _joined_steps(plan, params, found)


def _read(
    plan: Plan, params: Mapping[str, Tensor], name: str, fn: Any, columns: Mapping[str, Any]
) -> Emission | None:
    site = plan.sites[name]
    base = unwrap(fn).base
    if site.density is not None and not isinstance(base, PARTS):
        base = site.density.distribution(params)  # not repeated for every row
    outer, inner = site.layout.outer, len(site.inner_shape)
    latents = {symbol: latent for latent, symbol in plan.latent_symbols.items()}
    batch = prepend_dims(torch.empty(base.batch_shape), len(outer) + inner).shape
    own = [i for i, symbol in enumerate(outer) if symbol in latents and batch[i] > 1]
    times = {chain.time for chain in plan.chains.values()}
    places = [i for i, symbol in enumerate(outer) if symbol in site.plates | times]
    if len(own) > 1 or not site.value.numel():
        return None
    latent = latents[outer[own[0]]] if own else _only_latent(plan)
    kind = _kind(base)
    values = _places(_shown(site), len(outer), places, site.event_dim)
    size = values.shape[-1]
    try:
        tensor = base.mean if kind in ("real", "counts") else base.probs
        means = _by_state(base, tensor, site, own)
    except (NotImplementedError, AttributeError, RuntimeError):
        return None
    spread = None
    if kind in ("real", "counts"):
        means, spread = _moments(base, means, site, own, places)
    else:
        means = _probabilities(base, means, inner)
    names = tuple(columns.get(name, ()))
    if len(names) != size:
        names = (name,) if size == 1 else tuple(f"{name}[{i}]" for i in range(size))
    posterior = torch.ones((*values.shape[:-1], 1))
    if latent is not None:
        posterior = _aligned(plan, params, latent, [outer[i] for i in places], values)
    axes = (
        tuple("state" if i in own else "place" if i in places else "" for i in range(len(outer)))
        + ("column",) * inner
    )
    scale = plan.scales[name]
    weights = None
    if scale is not None and scale.tensor.numel() == values[..., 0].numel():
        weights = scale.tensor.reshape(-1)
    return Emission(
        name, names, kind, values, latent, posterior, means, spread, weights, base,
        axes[len(axes) - len(base.batch_shape) :], latent in plan.chains,
    )  # fmt: skip


def _only_latent(plan: Plan) -> str | None:
    """The one latent of a model whose latents have a single value each."""
    latents = [n for n, s in plan.latent_symbols.items() if plan.sizes[s] == 1]
    return latents[0] if len(latents) == 1 == len(plan.latent_symbols) else None


def _kind(base: Any) -> str:
    if isinstance(base, LEVELS):
        return "levels"
    if isinstance(base, PARTS):
        return "parts"
    return "counts" if base.support.is_discrete else "real"


def _shown(site: Site) -> Tensor:
    """The data as float64, NaN where nothing was observed."""
    value = site.value.to(torch.float64)
    if site.mask is not None:
        mask = append_dims(site.mask, site.event_dim - len(site.inner_shape))
        value = torch.where(mask, value, torch.nan)
    if site.missing is not None:
        value = torch.where(site.missing, torch.nan, value)
    return value


def _places(value: Tensor, rank: int, places: Sequence[int], event_dim: int) -> Tensor:
    """``(*places, D)`` of a tensor with other batch dims of size 1."""
    value = prepend_dims(value, rank + event_dim)
    shape = [value.shape[i] for i in places]
    return value.reshape(*shape, -1)


def _by_state(base: Any, tensor: Tensor, site: Site, own: Sequence[int]) -> Tensor:
    """A tensor of the base distribution with the dim of the states first."""
    event = tensor.dim() - len(base.batch_shape)
    rank = len(site.layout.outer) + len(site.inner_shape) + event
    # Where all rows are alike, one of them says it all.
    tensor = compact(prepend_dims(tensor.to(torch.float64), rank), len(site.inner_shape) + event)
    return tensor.movedim(own[0], 0) if own else tensor.unsqueeze(0)


def _moments(
    base: Any, means: Tensor, site: Site, own: Sequence[int], places: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """Means ``(K, *places, D)``, and covariances ``(K, D, D)`` where all places are alike."""
    matrix = getattr(base, "covariance_matrix", None)
    event = len(base.event_shape)
    tail = site.inner_shape + tuple(base.event_shape)
    lead = means.dim() - len(tail)
    means = means.expand(*means.shape[:lead], *tail)
    kept = [i + 1 - sum(o < i for o in own) for i in places]
    shape = [means.shape[0], *(means.shape[i] for i in kept)]
    flat = means.reshape(*shape, -1)
    if matrix is None or not event:
        variances = _by_state(base, base.variance, site, own)
        variances = variances.expand(*variances.shape[:lead], *tail).reshape(
            variances.shape[0], -1, flat.shape[-1]
        )
        spread, count = torch.diag_embed(variances[:, 0]), variances.shape[1]
    else:
        matrices = _by_state(base, matrix, site, own)
        matrices = matrices.reshape(matrices.shape[0], -1, *matrices.shape[-2:])
        spread, count = matrices[:, 0], matrices.shape[1]
    alike = count == 1 and flat.shape[1:-1].numel() == 1
    return flat, spread.expand(len(flat), -1, -1) if alike else None


def _probabilities(base: Any, probs: Tensor, inner: int) -> Tensor:
    """Probabilities ``(K, D, L)`` of the levels of each column."""
    if isinstance(base, dist.Bernoulli):
        probs = torch.stack([1.0 - probs, probs], -1)
    columns = probs.shape[probs.dim() - 1 - inner : -1].numel() if inner else 1
    return probs.reshape(len(probs), -1, columns, probs.shape[-1])[:, 0]


def _aligned(
    plan: Plan, params: Mapping[str, Tensor], latent: str, places: Sequence[str], values: Tensor
) -> Tensor:
    """The posterior of a latent at every place of the data."""
    posterior = prediction.posterior(plan, params, latent)
    own = plan.places(latent)
    shape = [plan.sizes[p] if p in own else 1 for p in places]
    kept = [i for i, place in enumerate(own) if place in places]
    if len(kept) < len(own):  # a latent of each entry of what the data hold as one
        posterior = posterior.mean([i for i in range(len(own)) if i not in kept])
    return posterior.reshape(*shape, -1).expand(*values.shape[:-1], -1)


def _joined_steps(
    plan: Plan, params: Mapping[str, Tensor], found: Mapping[str, Emission]
) -> list[Emission]:
    """Steps of a ``pyro.markov`` loop as one emission, time being its last place."""
    out: list[Emission] = []
    done: set[str] = set()
    for name, emission in found.items():
        if name in done:
            continue
        base = base_name(name) if name in plan.structure.steps else None
        steps = [s for s in members(base, found) if found[s].kind == emission.kind] if base else []
        parts = [found[step] for step in steps]
        shapes = {(p.values.shape, p.posterior.shape, p.means.shape) for p in parts}
        if base is None or len(parts) < 2 or len(shapes) > 1:
            out.append(emission)
            continue
        done.update(steps)
        out.append(_one_chain(base, parts))
    return out


def _one_chain(base: str, parts: Sequence[Emission]) -> Emission:
    first = parts[0]
    means, spread = first.means, first.covariances
    if not all(torch.allclose(p.means, means) for p in parts):
        spread = None
        if first.kind in ("real", "counts"):
            means = torch.stack([p.means.expand(-1, *p.values.shape) for p in parts], -2)
    elif first.kind in ("real", "counts"):
        means = means.unsqueeze(-2)
    return replace(
        first,
        site=base,
        columns=(base,) if len(first.columns) == 1 else first.columns,
        values=torch.stack([p.values for p in parts], -2),
        latent=base_name(first.latent) if first.latent else None,
        posterior=torch.stack([p.posterior for p in parts], -2),
        means=means,
        covariances=spread,
        weights=None,
        is_chain=True,
    )
