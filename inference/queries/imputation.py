r"""Missing entries filled in: conditional means given what is observed, or draws.

With the latents integrated out, the distribution of a row's missing entries is a mixture over the
latents' posterior,

.. math:: p(x_m \mid x_o) = \sum_z p(z \mid x_o)\, p(x_m \mid x_o, z),

where for a multivariate normal :math:`p(x_m \mid x_o, z)` is normal with mean
:math:`\mu_m - P_{mm}^{-1} P_{mo} (x_o - \mu_o)` and precision :math:`P_{mm}`, and for entries that
are independent given the latents it is their own distribution.

Reference: Little & Rubin (2019), *Statistical analysis with missing data*, 3rd ed., Wiley, ch. 11;
Rubin (1987), *Multiple imputation for nonresponse in surveys*, Wiley.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.expectation.posterior import expectations
from ember.inference.factors.factor import Factor, align
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.observed_density import row_patterns
from ember.inference.numerics.shapes import broadcast_shapes, prepend_dims
from ember.inference.plan.placing import placed
from ember.inference.plan.plan import Plan
from ember.inference.queries.conjugate.filling import (
    averaged,
    entry_posteriors,
    over_batch,
    with_latent,
)
from ember.inference.queries.gaussian.draws import component_draws, state_draws
from ember.inference.queries.gaussian.filling import drawn, filled
from ember.inference.queries.impossible import blank
from ember.inference.queries.latent_draws import States
from ember.inference.reading.sequences import stack
from ember.inference.reading.site import Site
from ember.inference.reading.trace import is_factor_statement
from ember.inference.reading.unwrapping import unwrap

__all__ = ["impute"]


def impute(
    plan: Plan, params: Mapping[str, Tensor], draws: int | None = None
) -> Tensor | dict[str, Tensor]:
    """The observed sites with their missing entries filled in.

    Args:
        plan: The plan of the model and its data.
        params: The parameters, which are taken as known.
        draws: How many joint draws to make; conditional means unless given.

    Returns:
        A tensor, with a leading dim of ``draws`` if given; a dict of them for several sites.

    Raises:
        ValueError: If a distribution has no mean.

    What is missing from a row that is impossible as far as it is observed stays missing.
    """
    with torch.no_grad():
        observed = [
            name
            for name in plan.structure.observed
            if plan.sites[name].value.numel()
            and not _is_statement(plan.sites[name])
            and not plan.structure.is_channel(name)
        ]
        read = [name for name in observed if plan.sites[name].slots]  # Gaussian latents
        fillings = {name: _Filling.of(plan, params, name) for name in observed if name not in read}
        gappy = [name for name, filling in fillings.items() if filling.missing.any()]
        weights = _weights(plan, params, [fillings[name] for name in gappy])
        if draws is None:
            values = {
                name: fillings[name].averaged(plan, params).mean(weights[name])
                if name in weights
                else filling.complete()
                for name, filling in fillings.items()
            }
            values.update({name: filled(plan, params, name) for name in read})
        else:
            states = state_draws(plan, params, draws) if gappy or read else {}
            factors = {
                name: entry_posteriors(plan, params, fillings[name].site).draw(states, draws)
                for name in gappy
                if fillings[name].site.conjugate is not None
            }
            values = {
                name: filling.draw(states, draws, factors.get(name))
                if name in gappy
                else filling.repeated(draws)
                for name, filling in fillings.items()
            }
            latents = component_draws(plan, params, states, draws) if read else {}
            for name in read:
                values[name] = drawn(plan, params, name, states, latents, draws)
        values.update({name: fillings[name].blank(values[name], weights[name]) for name in gappy})
        values = {name: values[name] for name in observed}
    lead = 0 if draws is None else 1
    leading = {name: lead + len(fillings[name].plate_sizes) for name in fillings}
    for name in read:
        leading[name] = values[name].dim() - plan.sites[name].event_dim
    by_site: dict[str, Tensor] = {}
    for name, value in values.items():
        family = plan.structure.family(name)
        apart = {name: value} if family is None else family.apart(value, leading[name] - 1)
        by_site.update(apart)
        leading.update(dict.fromkeys(apart.keys() - leading.keys(), leading[name] - 1))
    joined = stack(by_site, leading, plan.structure.steps)
    return next(iter(joined.values())) if len(joined) == 1 else joined


def _is_statement(site: Site) -> bool:
    """Whether a site is a ``pyro.factor``: it has no data."""
    return site.density is not None and is_factor_statement(site.density.base)


@dataclass(frozen=True)
class _Filling:
    """One observed site, its latent dims flattened to ``Z`` and its plates to ``R``.

    ``value`` and ``missing`` have shape ``(R, J, E)``: rows, independent events and their entries.
    """

    site: Site
    fn: Distribution
    latents: tuple[str, ...]
    latent_sizes: tuple[int, ...]
    plates: tuple[str, ...]
    plate_sizes: tuple[int, ...]
    value: Tensor
    missing: Tensor

    @staticmethod
    def of(plan: Plan, params: Mapping[str, Tensor], name: str) -> "_Filling":
        site, outer = plan.sites[name], plan.sites[name].layout.outer
        if site.density is not None:
            fn = site.density.distribution(params)
        else:
            structure = placed(plan, params).structure
            fn = unwrap(structure.trace(params).nodes[name]["fn"]).base
        factor = next((factor for factor in plan.factors if factor.name == name), None)
        known = set(plan.latent_symbols.values())
        latents = tuple(s for s in outer if s in known and (factor is None or s in factor.dims))
        plates = tuple(s for s in outer if s in site.plates)
        sizes = tuple(plan.sizes[s] for s in plates)
        event = site.value.shape[site.value.dim() - site.event_dim :]
        full = (*(plan.sizes[s] if s in plates else 1 for s in outer), *event)
        tail = (math.prod(sizes), *_event_sizes(event, fn))
        missing = torch.zeros((), dtype=torch.bool) if site.missing is None else site.missing
        return _Filling(
            site, fn, latents, tuple(plan.sizes[s] for s in latents), plates, sizes,
            site.value.expand(full).reshape(tail), missing.expand(full).reshape(tail),
        )  # fmt: skip

    def averaged(self, plan: Plan, params: Mapping[str, Tensor]) -> "_Filling":
        """The same with a distribution that has the right mean, the continuous latent unknown."""
        if self.site.conjugate is None:
            return self
        posterior = entry_posteriors(plan, params, self.site)
        return dataclasses.replace(self, fn=averaged(self.site, self.fn, posterior))

    def complete(self) -> Tensor:
        """The data as they are, for a site without missing entries."""
        return self._shaped(self.value)

    def repeated(self, draws: int) -> Tensor:
        """As many copies of data without missing entries."""
        value = self.complete()
        return value.expand(draws, *value.shape).clone()

    def blank(self, values: Tensor, weights: Tensor) -> Tensor:
        """Filled-in data with what is missing from impossible rows, of NaN weights, left out."""
        gone = self.missing & weights.isnan().any(0)[:, None, None]
        return blank(values, self._shaped(gone))

    def mean(self, weights: Tensor) -> Tensor:
        """Conditional means, given the latents' posterior ``(Z, R)``; of categories the mode."""
        if isinstance(self.fn, dist.MultivariateNormal):
            return self._shaped(self._normal(lambda rest, rows: rest.mean(weights[:, rows]))[0])
        if isinstance(self.fn, dist.Categorical):
            probs = self._by_state(self.fn.probs, 1)  # (Z, R or 1, J, L)
            best = (weights[:, :, None, None] * probs).sum(0).argmax(-1).unsqueeze(-1)
            return self._shaped(torch.where(self.missing, best.to(self.value.dtype), self.value))
        mean = self._by_state(self.fn.mean, len(self.fn.event_shape))
        mean = mean.reshape(*mean.shape[:2], -1, self.value.shape[2])
        filled = (weights[:, :, None, None] * mean).sum(0).expand(self.value.shape)
        there = self.missing & ~weights.isnan().any(0)[:, None, None]
        if not bool(torch.isfinite(filled[there]).all()):
            raise ValueError(
                f"observed site '{self.site.name}' ({type(self.fn).__name__}) has no finite mean; "
                "pass draws=... for draws."
            )
        return self._shaped(torch.where(self.missing, filled, self.value.to(filled.dtype)))

    def draw(self, states: States, draws: int, continuous: Tensor | None = None) -> Tensor:
        """Draws of the missing entries, given draws of the latents.

        Args:
            states: Draws of the discrete latents.
            draws: How many there are.
            continuous: Draws ``(draws, n, *event)`` of the latent with a conjugate prior, if any.
        """
        joint = torch.zeros((draws, *self.plate_sizes), dtype=torch.long)
        for symbol, size in zip(self.latents, self.latent_sizes, strict=True):
            dims, state = states[symbol]
            joint = joint * size + align(state, ("draws", *dims), ("draws", *self.plates))
        joint = joint.flatten(1) if self.plates else joint.unsqueeze(1)
        if continuous is not None:
            each = zip(joint, continuous, strict=True)
            return torch.cat([self._given(drawn)._drawn(row.unsqueeze(0)) for row, drawn in each])
        return self._drawn(joint)

    def _given(self, drawn: Tensor) -> "_Filling":
        """The same where the latent with a conjugate prior has a value."""
        slot = self.site.conjugate
        assert slot is not None
        width = drawn.shape[-1] if slot.family.is_vector else 1
        fn = with_latent(self.site, self.fn, over_batch(self.site, drawn, width))
        return dataclasses.replace(self, fn=fn)

    def _drawn(self, joint: Tensor) -> Tensor:
        """A draw for each of the joint states ``(draws, R)``."""
        if isinstance(self.fn, dist.MultivariateNormal):
            return self._shaped(
                self._normal(lambda rest, rows: rest.draw(joint[:, rows]), len(joint))
            )
        return self._shaped(torch.stack([self._draw_entries(row) for row in joint]))

    def _draw_entries(self, states: Tensor) -> Tensor:
        """One draw of entries that are independent, or of whole events, given states ``(R,)``."""
        outer = self.site.layout.outer
        rank = len(outer) + len(self.site.inner_shape)
        batch = (1,) * (rank - len(self.fn.batch_shape)) + tuple(self.fn.batch_shape)
        sizes = dict(zip(self.latents, self.latent_sizes, strict=True))
        sizes.update(zip(self.plates, self.plate_sizes, strict=True))
        wanted = (*(sizes.get(s, 1) for s in outer), *self.site.inner_shape)
        sample = self.fn.expand(broadcast_shapes(batch, wanted)).sample()
        by_state = self._by_state(sample, len(self.fn.event_shape)).reshape(-1, *self.value.shape)
        drawn = by_state[states, torch.arange(len(states))]
        kind = torch.promote_types(drawn.dtype, self.value.dtype)
        if isinstance(self.fn, dist.Categorical):
            kind = self.value.dtype
        return torch.where(self.missing, drawn.to(kind), self.value.to(kind))

    def _normal(self, fill: "Callable[[_Conditional, Tensor], Tensor]", copies: int = 1) -> Tensor:
        """Copies of the rows of a multivariate normal, filled pattern by pattern."""
        assert isinstance(self.fn, dist.MultivariateNormal)
        loc = self._by_state(self.fn.loc, 1)
        precision = self._by_state(self.fn.precision_matrix, 2)
        items = self.value.shape[1]
        out = self.value.expand(copies, *self.value.shape).clone()
        for item in range(items):
            i, j = min(item, loc.shape[2] - 1), min(item, precision.shape[2] - 1)
            patterns, index = row_patterns(self.missing[:, item])
            for number, hidden in enumerate(patterns):
                if not bool(hidden.any()):
                    continue
                rows = (index == number).nonzero().reshape(-1)
                conditional = _Conditional.of(
                    loc[:, :, i] if loc.shape[1] == 1 else loc[:, rows, i],
                    precision[:, :, j] if precision.shape[1] == 1 else precision[:, rows, j],
                    self.value[rows, item], hidden,
                )  # fmt: skip
                columns = hidden.nonzero().reshape(-1)
                out[:, rows[:, None], item, columns] = fill(conditional, rows)
        return out

    def _by_state(self, tensor: Tensor, event_dim: int) -> Tensor:
        """An argument or draw of the base distribution as ``(Z, R or 1, J or 1, *event)``."""
        outer, inner = self.site.layout.outer, len(self.site.inner_shape)
        tensor = prepend_dims(tensor, len(outer) + inner + event_dim)
        sizes = dict(zip(self.latents, self.latent_sizes, strict=True))
        varies = any(tensor.size(i) > 1 for i, s in enumerate(outer) if s in self.plates)
        if varies:
            sizes.update(zip(self.plates, self.plate_sizes, strict=True))
        tensor = tensor.expand(*(sizes.get(s, -1) for s in outer), *(-1,) * (inner + event_dim))
        if any(tensor.size(len(outer) + i) > 1 for i in range(inner)):
            event = tensor.shape[tensor.dim() - event_dim :]
            tensor = tensor.expand(*tensor.shape[: len(outer)], *self.site.inner_shape, *event)
        first = [outer.index(s) for s in self.latents]
        rest = [i for i in range(tensor.dim()) if i not in first]
        moved = tensor.permute(*first, *rest)
        states = math.prod(self.latent_sizes)
        rows = math.prod(self.plate_sizes) if varies else 1
        event = tensor.shape[tensor.dim() - event_dim :]
        return moved.reshape(states, rows, -1, *event)

    def _shaped(self, value: Tensor) -> Tensor:
        """Rows ``(..., R, J, E)`` as the data were given, without dims for states."""
        shape, lead, outer = self.site.value.shape, value.shape[:-3], self.site.layout.outer
        rank = len(shape) - self.site.event_dim
        batch, event = shape[:rank], shape[rank:]
        given = [n for n, s in zip(batch, outer[len(outer) - rank :], strict=True)
                 if s not in self.latents]  # fmt: skip
        whole = self.value.numel() == self.site.value.numel()
        return value.reshape((*lead, *(given if whole else self.plate_sizes), *event))


def _event_sizes(event: torch.Size, fn: Distribution) -> tuple[int, int]:
    """Numbers of independent events and of entries in each."""
    lead = len(event) - len(fn.event_shape)
    return math.prod(event[:lead]), math.prod(event[lead:])


@dataclass(frozen=True)
class _Conditional:
    """The normal distribution of the missing entries of some rows, in each state of the latents.

    ``mu`` has shape ``(Z, N, M)``; ``factor``, of the precision, ``(Z, N or 1, M, M)``.
    """

    mu: Tensor
    factor: Tensor

    @staticmethod
    def of(loc: Tensor, precision: Tensor, value: Tensor, hidden: Tensor) -> "_Conditional":
        inside = precision[..., hidden, :][..., hidden]
        across = precision[..., hidden, :][..., ~hidden]
        factor = torch.linalg.cholesky(inside)
        residual = (value[:, ~hidden] - loc[..., ~hidden]).unsqueeze(-1)
        shift = torch.cholesky_solve(across @ residual, factor).squeeze(-1)
        return _Conditional(loc[..., hidden] - shift, factor)

    def mean(self, weights: Tensor) -> Tensor:
        """The mean over the states, whose weights are ``(Z, N)``."""
        return (weights.unsqueeze(-1) * self.mu).sum(0)

    def draw(self, states: Tensor) -> Tensor:
        """A draw for each of ``states``, of shape ``(draws, N)``."""
        rows = torch.arange(states.shape[1])
        factor = self.factor[states, rows if self.factor.shape[1] > 1 else 0]
        noise = torch.randn((*factor.shape[:-1], 1), dtype=factor.dtype)
        spread = torch.linalg.solve_triangular(factor.mT, noise, upper=True).squeeze(-1)
        return torch.as_tensor(self.mu[states, rows] + spread)


def _weights(
    plan: Plan, params: Mapping[str, Tensor], fillings: list[_Filling]
) -> dict[str, Tensor]:
    """For every site the posterior of the latents it depends on, ``(Z, R)``."""
    probes = [
        Factor(f.site.name, (*f.latents, *f.plates), f.site.plates, plan.scales[f.site.name])
        for f in fillings
    ]
    posteriors = expectations(plan, params, probes)
    return {
        f.site.name: w.reshape(math.prod(f.latent_sizes), math.prod(f.plate_sizes))
        for f, w in zip(fillings, posteriors, strict=True)
    }
