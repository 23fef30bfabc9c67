"""Reads the observed sites of a fit as pictures see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.expectation.posterior import expectations
from ember.inference.factors.factor import Factor
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import append_dims, compact, prepend_dims
from ember.inference.plan.plan import Plan
from ember.inference.queries import prediction
from ember.inference.reading.sequences import base_name, members
from ember.inference.reading.site import Site
from ember.inference.reading.unwrapping import unwrap
from ember.inference.reports.drawing.emission import Emission

__all__ = ["read_emissions"]


LEVELS = (dist.Categorical, dist.Bernoulli)
PARTS = (dist.Multinomial, dist.OneHotCategorical)
WITH_PROBS = (dist.Categorical, dist.Bernoulli, dist.Multinomial, dist.OneHotCategorical)


def read_emissions(
    plan: Plan,
    params: Mapping[str, Tensor],
    columns: Mapping[str, Sequence[str]],
    labels: Mapping[str, Sequence[str]] | None = None,
) -> list[Emission]:
    """The observed sites that can be drawn, steps of a loop put together.

    A site may depend on two latents if the first is a chain or the data are vectors: the second
    is then summed out, as the components of a chain of mixtures are.
    """
    trace = plan.structure.trace(params)
    emissions: dict[str, Emission] = {}
    for name in plan.structure.observed:
        if f"{name.removesuffix('_observed')}_unobserved" in plan.structure.latent:
            continue  # labels that are known, and no data of their own
        if plan.sites[name].slots:
            continue  # it follows Gaussian latents, which have panels of their own
        emission = _read(plan, params, name, trace.nodes[name]["fn"], columns)
        if emission is not None:
            emissions[name] = replace(emission, labels=labels or {})
    return _joined_steps(plan, emissions)


def _read(
    plan: Plan,
    params: Mapping[str, Tensor],
    name: str,
    fn: Distribution,
    columns: Mapping[str, Sequence[str]],
) -> Emission | None:
    site, base = plan.sites[name], unwrap(fn).base
    if site.density is not None and not isinstance(base, PARTS):
        base = site.density.distribution(params)  # not repeated for every row
    kind, layout = _kind(base), _batch_dims(plan, site, base)
    if len(layout.state_dims) > 2 or not site.value.numel():
        return None
    values = _places(_shown(site), layout, site.event_dim)
    try:
        tensor = base.probs if isinstance(base, WITH_PROBS) else base.mean
        means, spread = _by_state(base, tensor, layout), None
    except (NotImplementedError, AttributeError, RuntimeError):
        return None
    if kind in ("real", "counts"):
        means, spread = _moments(base, means, site, layout)
    else:
        means = _probabilities(base, means, layout.inner)
    latent = layout.latents[0] if layout.state_dims else _only_latent(plan)
    if len(layout.state_dims) == 2:
        if kind not in ("real", "counts") or not (latent in plan.chains or base.event_shape):
            return None
        posterior, means, spread = _summed(plan, params, site, layout, (means, spread))
    elif latent is not None:
        places = [site.layout.outer[i] for i in layout.places]
        posterior = _aligned(plan, params, latent, places, values)
    else:
        posterior = torch.ones((*values.shape[:-1], 1))
    size, names = values.shape[-1], tuple(columns.get(name, ()))
    if len(names) != size:
        names = (name,) if size == 1 else tuple(f"{name}[{i}]" for i in range(size))
    scale = plan.scales[name]
    weighted = scale is not None and scale.tensor.numel() == values[..., 0].numel()
    weights = scale.tensor.reshape(-1) if scale is not None and weighted else None
    return Emission(
        name, names, kind, values, latent, posterior, means, spread, weights, base,
        layout.axes[len(layout.axes) - len(base.batch_shape) :], latent in plan.chains,
    )  # fmt: skip


@dataclass(frozen=True)
class _BatchDims:
    """Which batch dims of a site are states (chains first), places and columns.

    ``state_dims`` are those of its latents, ``sizes`` their sizes and ``latents`` their names.
    """

    rank: int
    inner: int
    state_dims: tuple[int, ...]
    sizes: tuple[int, ...]
    latents: tuple[str, ...]
    places: tuple[int, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """What each dim is, columns last."""
        kinds = dict.fromkeys(self.state_dims, "state") | dict.fromkeys(self.places, "place")
        return tuple(kinds.get(i, "") for i in range(self.rank)) + ("column",) * self.inner


def _batch_dims(plan: Plan, site: Site, base: Distribution) -> _BatchDims:
    outer, inner = site.layout.outer, len(site.inner_shape)
    names = {symbol: latent for latent, symbol in plan.latent_symbols.items()}
    batch = prepend_dims(torch.empty(base.batch_shape), len(outer) + inner).shape
    states = [i for i, symbol in enumerate(outer) if symbol in names and batch[i] > 1]
    states.sort(key=lambda i: names[outer[i]] not in plan.chains)
    times = {chain.time for chain in plan.chains.values()}
    return _BatchDims(
        len(outer),
        inner,
        tuple(states),
        tuple(batch[i] for i in states),
        tuple(names[outer[i]] for i in states),
        tuple(i for i, symbol in enumerate(outer) if symbol in site.plates | times),
    )


def _summed(
    plan: Plan,
    params: Mapping[str, Tensor],
    site: Site,
    layout: _BatchDims,
    moments: tuple[Tensor, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Posterior and moments of the first of two latents, the second summed out."""
    outer = site.layout.outer
    dims = tuple(outer[i] for i in (*layout.state_dims, *layout.places))
    probe = Factor(f"{site.name}, states", dims, site.plates, plan.scales[site.name])
    (joint,) = expectations(plan, params, [probe])
    states, parts = layout.sizes
    within = joint.flatten(2).sum(-1) if joint.dim() > 2 else joint
    within = within / within.sum(1, keepdim=True)
    means, spread = moments
    means = means.reshape(states, parts, *means.shape[1:])
    mean = torch.einsum("km,km...->k...", within, means)
    if spread is not None:
        gap = (means - mean.unsqueeze(1)).reshape(states, parts, -1)
        spread = spread.reshape(states, parts, *spread.shape[1:])
        spread = torch.einsum(
            "km,kmij->kij", within, spread + torch.einsum("kmi,kmj->kmij", gap, gap)
        )
    return joint.sum(1).movedim(0, -1), mean, spread


def _only_latent(plan: Plan) -> str | None:
    """The one latent of a model whose latents have a single value each."""
    latents = [n for n, s in plan.latent_symbols.items() if plan.sizes[s] == 1]
    return latents[0] if len(latents) == 1 == len(plan.latent_symbols) else None


def _kind(base: Distribution) -> str:
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


def _places(value: Tensor, layout: _BatchDims, event_dim: int) -> Tensor:
    """``(*places, D)`` of a tensor with other batch dims of size 1."""
    value = prepend_dims(value, layout.rank + event_dim)
    return value.reshape(*(value.shape[i] for i in layout.places), -1)


def _by_state(base: Distribution, tensor: Tensor, layout: _BatchDims) -> Tensor:
    """A tensor of the base distribution with the dims of the states as one, the first."""
    event = tensor.dim() - len(base.batch_shape)
    rank = layout.rank + layout.inner + event
    # Where all rows are alike, one of them says it all.
    tensor = compact(prepend_dims(tensor.to(torch.float64), rank), layout.inner + event)
    tensor = tensor.movedim(layout.state_dims, tuple(range(len(layout.state_dims)))).unsqueeze(0)
    rest = tensor.shape[1 + len(layout.state_dims) :]
    return tensor.expand(1, *layout.sizes, *rest).reshape(-1, *rest)


def _moments(
    base: Distribution, means: Tensor, site: Site, layout: _BatchDims
) -> tuple[Tensor, Tensor | None]:
    """Means ``(K, *places, D)``, and covariances ``(K, D, D)`` where all places are alike."""
    matrix = getattr(base, "covariance_matrix", None)
    event = len(base.event_shape)
    tail = site.inner_shape + tuple(base.event_shape)
    lead = means.dim() - len(tail)
    means = means.expand(*means.shape[:lead], *tail)
    kept = [i + 1 - sum(o < i for o in layout.state_dims) for i in layout.places]
    flat = means.reshape(means.shape[0], *(means.shape[i] for i in kept), -1)
    if matrix is None or not event:
        variances = _by_state(base, base.variance, layout)
        variances = variances.expand(*variances.shape[:lead], *tail)
        variances = variances.reshape(variances.shape[0], -1, flat.shape[-1])
        spread, count = torch.diag_embed(variances[:, 0]), variances.shape[1]
    else:
        matrices = _by_state(base, matrix, layout)
        matrices = matrices.reshape(matrices.shape[0], -1, *matrices.shape[-2:])
        spread, count = matrices[:, 0], matrices.shape[1]
    alike = count == 1 and flat.shape[1:-1].numel() == 1
    return flat, spread if alike else None


def _probabilities(base: Distribution, probs: Tensor, inner: int) -> Tensor:
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
    plates = plan.places(latent)
    shape = [plan.sizes[p] if p in plates else 1 for p in places]
    kept = [i for i, plate in enumerate(plates) if plate in places]
    if len(kept) < len(plates):  # a latent of each entry of what the data hold as one
        posterior = posterior.mean([i for i in range(len(plates)) if i not in kept])
    return posterior.reshape(*shape, -1).expand(*values.shape[:-1], -1)


def _joined_steps(plan: Plan, emissions: Mapping[str, Emission]) -> list[Emission]:
    """Steps of a ``pyro.markov`` loop as one emission, time being its last place."""
    out: list[Emission] = []
    done: set[str] = set()
    for name, emission in emissions.items():
        if name in done:
            continue
        base = base_name(name) if name in plan.structure.steps else None
        alike = [n for n, e in emissions.items() if e.kind == emission.kind]
        steps = members(base, alike) if base else []
        parts = [emissions[step] for step in steps]
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
