"""The oracle: what Pyro's ``TraceEnum_ELBO`` says of a model at given parameters.

With a guide that is empty the evidence lower bound is the log evidence. Missing entries, which
Pyro does not know, are masked here; of a normal vector the marginal of what is observed counts.
Nothing of Ember is used.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints, transform_to

from tests.fuzz.cases import Case

__all__ = ["Oracle"]

Params = Mapping[str, Tensor]


class Oracle:
    """Numbers of one model by Pyro's own enumeration; call it in double precision."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.weights = case.data.get("row_weights")
        self.plain = dict(case.data)
        if self.weights is not None:
            self.plain["row_weights"] = torch.ones(())
        trace = poutine.trace(self._at(case.truth, self.plain, True)).get_trace()
        nodes: dict[str, Any] = dict(trace.nodes)
        self.supports = {name: _support(nodes[name]) for name in case.truth}
        sites = {name: site for name, site in nodes.items() if site["type"] == "sample"}
        self.nesting = max(
            (-f.dim for s in sites.values() for f in s["cond_indep_stack"] if f.vectorized),
            default=0,
        )
        self.latent = {
            name: site["fn"]
            for name, site in sites.items()
            if not site["is_observed"] and site["fn"].has_enumerate_support
        }

    @property
    def repeated(self) -> dict[str, Tensor]:
        """The data with each row as many times as it weighs."""
        if self.weights is None:
            return self.plain
        times = self.weights.long()
        return {
            name: value.repeat_interleave(times, 0) if value.dim() else value
            for name, value in self.plain.items()
        }

    def log_evidence(self, params: Params, prior: bool = False) -> Tensor:
        """log p(data | params), or with the log density of the priors added."""
        model = self._at(params, self.repeated, prior)
        return self._evidence(model)

    def posterior(self, params: Params) -> dict[str, Tensor]:
        """Posterior of each latent site, by the derivative of the evidence to its log weights."""
        tilts = {
            name: torch.zeros(
                *fn.batch_shape, len(fn.enumerate_support(expand=False)), requires_grad=True
            )
            for name, fn in self.latent.items()
        }
        if not tilts:
            return {}
        evidence = self._evidence(self._at(params, self.plain, False, tilts))
        found = torch.autograd.grad(evidence, list(tilts.values()))
        return dict(zip(tilts, found, strict=True))

    def coordinates(self, params: Params) -> Tensor:
        """All parameters as one vector of free reals."""
        free = [transform_to(self.supports[name]).inv(params[name]) for name in self.supports]
        return torch.cat([torch.zeros(0), *(value.reshape(-1) for value in free)]).clamp(
            -1e30, 1e30
        )

    def params(self, coordinates: Tensor) -> dict[str, Tensor]:
        """The inverse of ``coordinates``."""
        params, used = {}, 0
        for name, support in self.supports.items():
            transform = transform_to(support)
            shape = transform.inverse_shape(self.case.truth[name].shape)
            size = math.prod(shape)
            params[name] = transform(coordinates[used : used + size].reshape(shape))
            used += size
        return params

    def objective(self, coordinates: Tensor) -> Tensor:
        """What the fit maximises, at free coordinates."""
        return self.log_evidence(self.params(coordinates), self.case.objective == "map")

    def _at(
        self, params: Params, data: Params, prior: bool, tilts: Params | None = None
    ) -> Callable[[], None]:
        def model() -> None:
            with _Held(params, prior, tilts or {}):
                self.case.model(**data)

        return model

    def _evidence(self, model: Callable[[], None]) -> Tensor:
        anchor = torch.zeros((), requires_grad=True)

        def anchored() -> None:
            model()
            pyro.factor("anchor", anchor)  # a loss without a gradient is refused

        elbo = TraceEnum_ELBO(max_plate_nesting=self.nesting, strict_enumeration_warning=False)
        with torch.enable_grad(), pyro.validation_enabled(False):
            loss: Tensor = elbo.differentiable_loss(config_enumerate(anchored), lambda: None)
        return -loss


def _support(site: Any) -> Any:
    if site["type"] == "param":
        return site["kwargs"]["constraint"]
    return site["fn"].support


class _Held(Messenger):
    """Parameters at given values, gaps in the data masked, latents tilted."""

    def __init__(self, params: Params, prior: bool, tilts: Params) -> None:
        super().__init__()
        self.params, self.prior, self.tilts = params, prior, tilts

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.params:
            msg["value"], msg["is_observed"] = self.params[name], True
            if not self.prior:
                msg["mask"] = False
        elif msg["is_observed"] and msg["value"].is_floating_point():
            gone = msg["value"].isnan()
            if bool(gone.any()):
                msg["fn"], msg["value"] = _without(msg["fn"], msg["value"], gone)
        elif name in self.tilts:
            msg["fn"] = _Tilted(msg["fn"], self.tilts[name])

    def _pyro_param(self, msg: Any) -> None:
        msg["value"], msg["done"] = self.params[msg["name"]], True


def _without(fn: Any, value: Tensor, gone: Tensor) -> tuple[Any, Tensor]:
    """The marginal distribution of what is observed, and a value that it accepts."""
    filled = torch.where(gone, _valid(fn, value, gone), value)
    if isinstance(fn, dist.MaskedDistribution):
        inner, filled = _without(fn.base_dist, value, gone)
        return inner.mask(fn._mask), filled
    if isinstance(fn, dist.Independent):
        inner, filled = _without(fn.base_dist, value, gone)
        return inner.to_event(fn.reinterpreted_batch_ndims), filled
    if isinstance(fn, dist.DiscreteHMM):
        every, filled = _of_states(fn.observation_dist, value, gone)
        return dist.DiscreteHMM(fn.initial_logits, fn.transition_logits, every), filled
    if isinstance(fn, dist.MixtureSameFamily):
        every, filled = _of_states(fn.component_distribution, value, gone)
        return dist.MixtureSameFamily(fn.mixture_distribution, every), filled
    if isinstance(fn, dist.MultivariateNormal):
        return _NormalWithGaps(fn, gone), filled
    if fn.event_dim:
        gone = gone.any(-1)
    return fn.mask(~gone), filled


def _of_states(every: Any, value: Tensor, gone: Tensor) -> tuple[Any, Tensor]:
    """The same of distributions whose last batch dim runs over states."""
    dim = -1 - every.event_dim
    every, filled = _without(every, value.unsqueeze(dim), gone.unsqueeze(dim))
    return every, filled.squeeze(dim)


def _valid(fn: Any, value: Tensor, gone: Tensor) -> Tensor:
    """A value in the support: one that was observed, if there is one."""
    categories = type(fn).__name__ in ("Multinomial", "OneHotCategorical")
    rows = value.reshape(-1, *value.shape[value.dim() - 1 :]) if categories else value.reshape(-1)
    seen = rows[~(rows.isnan().any(-1) if categories else rows.isnan())]
    if len(seen):
        return seen[0]
    if categories:
        total: float = getattr(fn, "total_count", 1.0)
        return torch.eye(value.shape[-1])[0] * total
    event = value.shape[value.dim() - fn.event_dim :]
    values = torch.tensor([0.0, 0.5, 1.0]).unbind()
    return [v for v in values if bool(fn.support.check(v.expand(event)).all())][0]  # noqa: RUF015


class _NormalWithGaps(TorchDistribution):
    """A multivariate normal of which each row shows some entries only."""

    def __init__(self, full: Any, gone: Tensor) -> None:
        self.full, self.gone = full, gone
        super().__init__(full.batch_shape, full.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.real_vector

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_NormalWithGaps":
        return _NormalWithGaps(self.full.expand(batch_shape), self.gone)

    def log_prob(self, value: Tensor) -> Tensor:
        total = torch.zeros(())
        for pattern in torch.unique(self.gone.reshape(-1, self.gone.shape[-1]), dim=0):
            here = (self.gone == pattern).all(-1)
            seen = (~pattern).nonzero().squeeze(-1)
            if not len(seen):
                continue
            covariance = self.full.covariance_matrix[..., seen, :][..., seen]
            part = dist.MultivariateNormal(self.full.loc[..., seen], covariance)
            total = total + torch.where(here, part.log_prob(value[..., seen]), 0.0)
        return total


class _Tilted(TorchDistribution):
    """A discrete distribution whose states carry additional log weights, each row its own."""

    def __init__(self, base: Any, tilt: Tensor) -> None:
        self.base, self.tilt = base, tilt
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    has_enumerate_support = True

    @property
    def support(self) -> Any:
        return self.base.support

    def sample(self, sample_shape: Any = ()) -> Tensor:
        drawn: Tensor = self.base.sample(sample_shape)
        return drawn

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Tilted":
        return _Tilted(self.base.expand(batch_shape), self.tilt)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values: Tensor = self.base.enumerate_support(expand)
        return values

    def log_prob(self, value: Tensor) -> Tensor:
        states = self.tilt.shape[-1]
        index = value.argmax(-1) if self.base.event_dim else value.long()
        hit = torch.nn.functional.one_hot(index, states).to(self.tilt.dtype)
        result: Tensor = self.base.log_prob(value) + (hit * self.tilt).sum(-1)
        return result
