"""The plan: a model for one shape of data, reduced to arithmetic on tensors.

    params --gather--> arguments --eta--> factors --contract--> log evidence
      ^                                                              |
      +-- maximise -- pooled statistics <-- scatter -- gradient <----+

Pyro is needed to make a plan (``planning.py``), not to use it: an E-step is a few matrix products,
one contraction and its gradient. Only sites whose arguments are computed in a way that no map
describes are asked of the model again.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ember.inference import jacobians
from ember.inference.expectation.chain import Potentials
from ember.inference.expectation.chain_step import Chain
from ember.inference.expectation.enumeration import Contraction, Factor, Scale, align
from ember.inference.expectation.mixture import MixtureKernel
from ember.inference.factors import FormFactor, Site, statistics_of
from ember.inference.families import IMPOSSIBLE
from ember.inference.grouping import cells_of
from ember.inference.missing import GapFactor
from ember.inference.reading.misreading import misread_sites
from ember.inference.reading.opaque import model_log_prob
from ember.inference.residual_factors import ResidualFactors
from ember.inference.shapes import append_dims, prepend_dims
from ember.inference.statistics import Group, Part, Statistics
from ember.inference.structure import Structure
from ember.inference.superposed_factor import SuperposedFactor

__all__ = ["Params", "Plan", "PriorSite"]

Params = Mapping[str, Tensor]


@dataclass(frozen=True)
class PriorSite:
    """The prior of one parameter: a site whose value is the parameter itself."""

    site: Site
    scale: Tensor
    group: Group | None


@dataclass(frozen=True)
class Plan:
    """The maps of one model and one shape of data; ``planning.build_plan`` makes it."""

    structure: Structure
    objective: str
    sites: dict[str, Site]
    factors: tuple[Factor, ...]
    forms: dict[str, tuple[tuple[Any, ...], FormFactor | GapFactor | SuperposedFactor]]
    groups: dict[tuple[Any, ...], Group]
    priors: dict[str, PriorSite]
    contraction: Contraction
    kernel: MixtureKernel | None
    row: str | None
    sizes: dict[str, int]
    latent_symbols: dict[str, str] = field(default_factory=dict)
    scales: dict[str, Scale | None] = field(default_factory=dict)
    chains: dict[str, Chain] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    # -- the E-step ---------------------------------------------------------------------------

    def e_step(self, params: Params, temper: float = 1.0) -> Statistics:
        r"""Log evidence at ``params``, and its gradient: the expected sufficient statistics.

        With ``temper`` :math:`\beta < 1` the latents' posterior is flattened to one proportional to
        :math:`p(z, x \mid \theta)^\beta`; the log likelihood is then that of the tempered model.
        """
        with torch.no_grad():
            natural = self.natural_parameters(params)
            if self.kernel is not None and temper == 1.0 and not self.residual_groups(params):
                total, gradient = self.kernel(natural)
                sums = {key: (group, gradient[key]) for key, group in self.groups.items()}
                if not self.residuals.lost(sums):
                    return self._statistics(params, total, sums, {})
        return self.general_e_step(params, natural, temper)

    def general_e_step(
        self,
        params: Params,
        natural: dict[tuple[Any, ...], Tensor],
        temper: float = 1.0,
        maximum: bool = False,
    ) -> Statistics:
        """The E-step for any model: contract, and take the gradient.

        With ``maximum`` the sum over latents becomes a maximum; see ``hard.py``.
        """
        with torch.no_grad():
            other = self.other_log_probs(params)
        near = self.residual_groups(params)
        while True:
            with torch.no_grad():
                exact = self.residuals.log_probs(near, self.groups, params)
            asked = {**other, **exact}
            total, found = self._gradients(
                {key: eta for key, eta in natural.items() if key not in near},
                asked,
                temper,
                maximum,
            )
            groups = {
                key: self.residuals.sums(group, params, found)
                if key in near
                else (group, found[key])
                for key, group in self.groups.items()
            }
            lost = self.residuals.lost(groups) - near
            if not lost:
                return self._statistics(params, total, groups, {n: found[n] for n in other})
            near = near | lost

    def _gradients(
        self,
        natural: Mapping[tuple[Any, ...], Tensor],
        other: Mapping[str, Tensor],
        temper: float,
        maximum: bool,
    ) -> tuple[float, dict[Any, Tensor]]:
        """The log evidence, and its gradient with respect to everything it depends on."""
        leaves: dict[Any, Tensor] = {**natural, **other}
        leaves = {key: value.detach().requires_grad_() for key, value in leaves.items()}
        with torch.enable_grad():
            tensors = self.tensors(leaves, leaves)
            if temper != 1.0:
                tensors = [temper * tensor for tensor in tensors]
            total = self.contraction.total(self.contraction(tensors, maximum)) / temper
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return float(total.detach()), {
            key: torch.zeros_like(leaf) if g is None else g
            for (key, leaf), g in zip(leaves.items(), gradients, strict=True)
        }

    @property
    def residuals(self) -> ResidualFactors:
        """Normal sites by their residuals, for where sufficient statistics lose digits."""
        found: ResidualFactors = self.notes["residuals"]
        return found

    def residual_groups(self, params: Params) -> frozenset[tuple[Any, ...]]:
        """Groups to be had by their residuals at ``params``."""
        with torch.no_grad():
            return self.residuals.needed(self.groups, params)

    def completed(
        self, params: Params, weights: Mapping[str, Tensor], naive: bool = False
    ) -> Statistics:
        """Statistics with the latents' posterior given instead of inferred: where a start begins.

        Args:
            params: Current parameters; closed forms that depend on others read them.
            weights: For every factor, the posterior weight of each entry of its tensor.
            naive: Whether to complete rows with missing entries by columns, not at ``params``.
        """
        with torch.no_grad():
            natural = self.natural_parameters(params)
            if naive:
                for key, eta in self.notes["starting_eta"].items():
                    natural[key] = eta.expand(natural[key].shape).clone()
            other = self.other_log_probs(params)
        leaves = [t.requires_grad_() for t in natural.values()]
        with torch.enable_grad():
            tensors = dict(
                zip((f.name for f in self.factors), self.tensors(natural, other), strict=True)
            )
            # What is impossible has no weight, whatever a start has drawn.
            weights = {
                name: torch.where(t.detach() <= 0.1 * IMPOSSIBLE, 0.0, weights[name])
                for name, t in tensors.items()
            }
            total = torch.stack([(weights[name] * t).sum() for name, t in tensors.items()]).sum()
            gradients = torch.autograd.grad(total, leaves) if leaves else ()
        groups = {key: (self.groups[key], g) for key, g in zip(natural, gradients, strict=True)}
        for key in self.residuals.lost(groups):
            groups[key] = self.residuals.sums(self.groups[key], params, weights)
        posteriors = {name: weights[name] for name in other}
        return self._statistics(params, float(total.detach()), groups, posteriors)

    def _statistics(
        self,
        params: Params,
        log_likelihood: float,
        groups: dict[tuple[Any, ...], tuple[Group, Tensor]],
        posteriors: dict[str, Tensor],
    ) -> Statistics:
        fixed = {name: value.detach() for name, value in params.items()}
        with torch.no_grad():
            log_prior = float(self.log_prior(fixed))
        return Statistics(
            log_likelihood, log_prior, fixed, groups, (Part(self, posteriors, log_prior),)
        )

    def natural_parameters(self, params: Params) -> dict[tuple[Any, ...], Tensor]:
        """``eta`` of every group's cells."""
        return {key: group.natural_parameters(params) for key, group in self.groups.items()}

    def tensors(
        self, natural: Mapping[tuple[Any, ...], Tensor], other: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """The log probability of every factor, in the contraction's order."""
        out = []
        for factor in self.factors:
            if factor.name in other:
                out.append(other[factor.name])
            else:
                key, form = self.forms[factor.name]
                out.append(form.log_prob(natural[key]))
        return out

    def other_log_probs(self, params: Params) -> dict[str, Tensor]:
        """Log probabilities of factors without sufficient statistics, dims of size 1 dropped."""
        names = [f.name for f in self.factors if f.name not in self.forms]
        asked = self.asked_log_probs(params, [n for n in names if self.sites[n].density is None])
        out: dict[str, Tensor] = {}
        for name in names:
            site = self.sites[name]
            if site.density is not None:
                log_prob = site.density.log_prob(params, site.value)
            else:
                log_prob = asked[name]
            out[name] = site.layout.pack(log_prob)[0]
        return out

    def asked_log_probs(self, params: Params, names: Sequence[str]) -> dict[str, Tensor]:
        """Log probabilities that only the model knows: from its tape, or from another run."""
        if not names:
            return {}
        tape = self.notes.get("tape")
        if tape is not None:
            # Where an operation fails, the model may know better.
            with contextlib.suppress(RuntimeError):
                found: dict[str, Tensor] = tape(params)
                return found
        trace = self.structure.trace(params)
        return {name: model_log_prob(self.site(name), trace) for name in names}

    def log_evidence(self, params: Params) -> Tensor:
        """``log p(data | params)``, differentiable with respect to the parameters."""
        return self.contraction.total(self.contraction(self.all_tensors(params)))

    def row_log_prob(self, params: Params) -> Tensor:
        """``log p(row | params)`` for every row, unweighted; a scalar if there are no rows.

        What lies outside the plate of rows, such as a ``pyro.factor`` on parameters, is no row's.
        """
        parts = self.contraction(self.all_tensors(params))
        rows = self.contraction.total(parts, weighted=False, along=self.row)
        rows = torch.where(rows <= 0.1 * IMPOSSIBLE, -torch.inf, rows)
        return rows.expand(self.sizes[self.row]) if self.row else rows

    def chain_potentials(self, params: Params, name: str) -> tuple[Potentials, tuple[str, ...]]:
        """The log potentials of the chain of a latent site, and the dims of its rows."""
        with torch.no_grad():
            tensors = self._whole_tensors(params)
            whole = Contraction(self.factors, self.latents(), self.sizes, self._whole_chains())
            return whole.potentials(tensors, self.latent_symbols[name])

    def all_tensors(self, params: Params) -> list[Tensor]:
        """The log probability of every factor at ``params``."""
        natural = self.natural_parameters(params)
        near = self.residuals.log_probs(self.residual_groups(params), self.groups, params)
        return self.tensors(natural, {**self.other_log_probs(params), **near})

    def posterior(
        self, params: Params, names: Sequence[str], maximum: bool = False
    ) -> dict[str, Tensor]:
        """Posterior marginals of latent sites, shape ``(*plates, K)``; or of the best joint value.

        With ``maximum`` the sum over latents becomes a maximum, and the result is one-hot at the
        most probable joint value (for a chain: the Viterbi path).
        """
        probes = [self.probe(name) for name in names]
        found = self.expectations(params, probes, maximum=maximum)
        return {
            p.name: posterior.movedim(0, -1) for p, posterior in zip(probes, found, strict=True)
        }

    def probe(self, name: str) -> Factor:
        """An extra factor that a latent alone depends on: its expectation is the posterior."""
        dims = (self.latent_symbols[name], *self.places(name))
        return Factor(name, dims, self.sites[name].plates, self.scales[name])

    def expectations(
        self,
        params: Params,
        probes: Sequence[Factor],
        tensors: Sequence[Tensor] | None = None,
        maximum: bool = False,
    ) -> list[Tensor]:
        """Posterior probability of the latent values that extra factors depend on, by plates.

        Args:
            params: The parameters.
            probes: Extra factors whose dims name their latents and each plate of the factor.
            tensors: Their log probabilities; zeros unless given.
            maximum: Whether to maximise over the latents instead of summing.

        Returns:
            A tensor of each probe's dims; over the latents' values it sums to one. It is NaN for
            data of probability zero, which no posterior explains.
        """
        shapes = [[self.sizes[d] for d in probe.dims] for probe in probes]
        kept = [
            Factor(p.name, tuple(d for d in p.dims if self.sizes[d] > 1), p.plates, p.scale)
            for p in probes
        ]
        given = [torch.zeros(s) for s in shapes] if tensors is None else tensors
        contraction = Contraction(
            (*self.factors, *kept), self.latents(), self.sizes, self._whole_chains()
        )
        with torch.no_grad():
            own = self._whole_tensors(params)
        with torch.enable_grad():
            leaves = [
                t.reshape([n for n in shape if n > 1]).clone().requires_grad_()
                for t, shape in zip(given, shapes, strict=True)
            ]
            parts = [p for p in contraction([*own, *leaves], maximum) if p.requires_grad]
            # NaN finds its way back to all that an impossible part depends on.
            ones = [torch.where(p <= 0.1 * IMPOSSIBLE, torch.nan, 1.0) for p in parts]
            found = torch.autograd.grad(parts, leaves, ones, allow_unused=True) if parts else ()
        out = []
        for probe, shape, leaf, g in zip(probes, shapes, leaves, found, strict=True):
            weights = (torch.ones_like(leaf) if g is None else g).reshape(shape)
            over = [i for i, d in enumerate(probe.dims) if d in self.latent_symbols.values()]
            total = weights.sum(over, keepdim=True) if over else torch.ones(())
            # Beyond the end of a chain nothing is known: every value is as likely as another.
            alike = 1.0 / torch.Size([shape[i] for i in over]).numel()
            out.append(torch.where(total == 0, alike, weights / total))
        return out

    def _whole_chains(self) -> list[Chain]:
        """The chains, steps of loops not left out: the model draws a state there all the same."""
        loops = {loop.latent for loop in self.structure.loops}
        return [
            dataclasses.replace(chain, lengths=None) if name in loops else chain
            for name, chain in self.chains.items()
        ]

    def _whole_tensors(self, params: Params) -> list[Tensor]:
        """The log probability of every factor, entries of latents that sum to one not left out."""
        tensors = self.all_tensors(params)
        for i, factor in enumerate(self.factors):
            if factor.name not in self.notes["idle"]:
                continue
            site = dataclasses.replace(self.sites[factor.name], mask=None)
            if site.density is None:
                log_prob = model_log_prob(site, self.structure.trace(params))
            else:
                density = dataclasses.replace(site.density, mask=None)
                log_prob = density.log_prob(params, site.value)
            whole = align(*site.layout.pack(log_prob), factor.dims)
            tensors[i] = whole.expand(tensors[i].shape)
        return tensors

    def places(self, name: str) -> tuple[str, ...]:
        """The dims in which a latent has a value each: its plates, and the steps of a chain."""
        site = self.sites[name]
        time = {self.chains[name].time} if name in self.chains else set()
        return tuple(s for s in site.layout.outer if s in site.plates | time)

    def latents(self) -> dict[str, tuple[str, Scale | None]]:
        """The site and the scale of every dim that is summed over."""
        found = {s: (name, self.scales[name]) for name, s in self.latent_symbols.items()}
        found.update({c.previous: found[c.state] for c in self.chains.values()})
        return found

    # -- the objective and what the M-step maximises --------------------------------------------

    def log_prior(self, params: Params) -> Tensor:
        """The log prior density of the parameter sites; zero for maximum likelihood.

        That of parameters held by ``pyro.condition`` is a constant of it.
        """
        total = torch.as_tensor(self.notes["held_density"], dtype=torch.float64)
        asked = self.asked_log_probs(
            params, [n for n, prior in self.priors.items() if prior.site.density is None]
        )
        for name, prior in self.priors.items():
            if prior.site.density is not None:
                log_prob = prior.site.density.log_prob(params, params[name])
            else:
                log_prob = asked[name]
            total = total + (log_prob * prior.scale).sum()
        if self.notes.get("unconstrained"):
            parameters = self.structure.parameters
            total = total + jacobians.total({n: parameters[n].support for n in self.priors}, params)
        return total

    def expected_log_joint(self, statistics: Statistics, params: Params) -> Tensor:
        """EM's ``Q(params)``: expected log joint given the statistics, log prior included."""
        total = self.log_prior(params)
        for group, sums in statistics.groups.values():
            total = total + (sums * group.natural_parameters(params)).sum()
        for part in statistics.parts:
            log_probs = part.plan.other_log_probs(params)
            for name, posterior in part.posteriors.items():
                total = total + (posterior * log_probs[name]).sum()
        return total

    def prior_statistics(self, name: str, params: Params) -> tuple[Group, Tensor]:
        """Statistics of a parameter seen as an observation of its own prior, and their group.

        Those of a normal prior are taken about its present location.
        """
        prior = self.priors[name]
        group, form = prior.group, prior.site.form
        assert group is not None
        assert form is not None
        rank = len(prior.site.layout.outer) + prior.site.layout.inner
        cells, reference = prepend_dims(cells_of(prior.site), rank), torch.zeros(())
        if form.centred is not None:
            locations = group.locations(params)
            group = dataclasses.replace(group, reference=locations)
            reference = locations[cells]
        statistics, _ = statistics_of(prior.site, params[name], reference)
        weights = append_dims(prior.scale, len(prior.site.inner_shape) + 1)
        statistics = statistics * weights
        cells = prepend_dims(cells, statistics.dim() - 1)
        shape = torch.broadcast_shapes(cells.shape, statistics.shape[:-1])
        rows = statistics.expand(*shape, -1).reshape(-1, statistics.shape[-1])
        total = statistics.new_zeros((len(group.cells), statistics.shape[-1]))
        return group, total.index_add_(0, cells.expand(shape).reshape(-1), rows)

    @property
    def has_gaps(self) -> bool:
        """Whether rows of a multivariate normal are observed in part: a latent in all but name."""
        return bool(self.notes["starting_eta"])

    def structure_row(self) -> tuple[str, int] | None:
        """Name and size of the plate of rows."""
        if self.row is None:
            return None
        return self.notes["plate_names"][self.row], self.sizes[self.row]

    def site(self, name: str) -> Site:
        """A latent, observed or parameter site."""
        return self.sites[name] if name in self.sites else self.priors[name].site

    def factor_and_prior_names(self) -> list[str]:
        """All sites that have a density in the objective."""
        return [*self.sites, *self.priors]

    @property
    def is_incomplete(self) -> bool:
        """Whether something is latent: sites, parts of rows, or counts seen only in sums."""
        return bool(self.structure.latent) or self.has_gaps or bool(self.superposed_parameters())

    def superposed_parameters(self) -> frozenset[str]:
        """Parameters that feed the rate of a superposition."""
        forms = [form for _, form in self.forms.values()]
        found = [form.rate.sources for form in forms if isinstance(form, SuperposedFactor)]
        return frozenset(name for sources in found for name in sources)

    def opaque_sites(self) -> list[str]:
        """Sites without sufficient statistics: their parameters have no closed form."""
        factors = [name for name in self.sites if name not in self.forms]
        return factors + [name for name, prior in self.priors.items() if prior.group is None]

    def misread_sites(self, params: Params) -> list[str]:
        """Sites whose maps do not hold at ``params``, where the model is asked once more."""
        priors = {name: prior.site for name, prior in self.priors.items()}
        return misread_sites(self.structure, {**self.sites, **priors}, params)

    def dependencies(self, name: str) -> frozenset[str]:
        """Parameters that an opaque site reads (a parameter's own prior aside)."""
        site = self.site(name)
        if site.density is not None:
            return frozenset(
                source for _, found in site.density.maps.values() for source in found.sources
            )
        return frozenset(self.notes["dependencies"][name])
