"""Running a model with its parameters at given values, and what its sites are.

A run never draws a parameter; latent sites are enumerated or take one value; data may have
other values, or are drawn anew.
"""

from collections.abc import Collection, Iterator, Mapping

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import transform_to

from ember.inference.inputs.shelter import declare_from_outside
from ember.inference.numerics.distribution import Distribution
from ember.inference.reading.composite_draws import draw_composite
from ember.inference.reading.nodes import OnGrid
from ember.inference.reading.partly_observed import Partly, nothing
from ember.inference.reading.trace import (
    Trace,
    TraceNode,
    is_computed,
    is_factor_statement,
    is_subsample,
)
from ember.inference.reading.unwrapping import unwrap

__all__ = ["At", "default_value", "is_conditioned", "is_continuous", "statements"]


MANY = 2_000  # values of a latent


class At(Messenger):
    """Fixes parameter sites at given values, others at their default start; never draws them.

    Args:
        params: Values of parameters.
        fix_latents: Whether each latent site takes one value instead of being enumerated.
        draw_data: Whether observed sites are drawn anew.
        first: The number of the first latent's value; the others' follow, each by one.
        given: Other values for some observed sites.
        held: Observed sites that are never drawn: parameters held at a value.
        partly: Sites that are observed in part.
        integrated: Continuous latents, with the values that they have in a run unless ``params``
            says otherwise; where data are drawn, they are drawn as well.
        nodes: The nodes of continuous latents, which are enumerated; these are drawn with the data
            as well.
        drawn: Draws of latents and data that are not made again.

    Attributes:
        chosen: The number of the value of each latent that has been fixed.
        conditioned: The observed sites that ``pyro.condition`` gives a value.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        fix_latents: bool = False,
        draw_data: bool = False,
        first: int | None = None,
        given: Mapping[str, Tensor] | None = None,
        held: Collection[str] = (),
        partly: Partly | None = None,
        integrated: Mapping[str, Tensor] | None = None,
        nodes: Mapping[str, Tensor] | None = None,
        drawn: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.params, self.fix_latents, self.draw_data = params, fix_latents, draw_data
        self.first, self.given, self.held = first, given or {}, held
        self.chosen: dict[str, int] = {}
        self.conditioned: set[str] = set()
        self.partly, self.integrated = partly or Partly(), integrated or {}
        self.nodes, self.drawn = nodes or {}, drawn or {}
        self._whole: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: TraceNode) -> None:
        name = msg["name"]
        if name in self.drawn:
            msg["value"], msg["done"] = self.drawn[name], True
            return
        if msg["is_observed"]:
            self._look_at_data(msg)
        draws = self.draw_data and name not in self.held and not _is_statement(msg)
        if draws and msg["is_observed"]:
            data = _taken(msg)
            msg["is_observed"], msg["done"] = False, False
            draw_composite(msg, data)
        elif name in self._whole and not self.draw_data:
            msg["value"] = self._whole[name]  # all values, where it is known as well
        elif name in self.partly.given and not self.draw_data:
            msg["infer"]["_given"], msg["infer"]["enumerate"] = _taken(msg), "parallel"
            msg["is_observed"] = False
        elif msg["is_observed"] or msg["done"]:
            return
        elif name in self.partly.undrawn:
            if not self.draw_data:
                msg["value"] = nothing(msg)
        elif name in self.nodes:
            if not self.draw_data:
                msg["fn"] = OnGrid(msg["fn"], self.nodes[name])
                self._enumerate(msg)
        elif not is_continuous(msg["fn"]):
            self._enumerate(msg)
        elif name in self.integrated:
            if not self.draw_data:
                msg["value"] = self.params.get(name, self.integrated[name])
        else:
            # A site with a value is not drawn. It is not "done" either: Pyro's enumeration passes
            # over such sites, and would not know of a parameter inside pyro.markov when a later
            # site asks.
            msg["value"] = self.params[name] if name in self.params else default_value(msg["fn"])

    def _look_at_data(self, msg: TraceNode) -> None:
        name = msg["name"]
        if _is_boolean(msg):
            msg["value"] = msg["value"].long()
        if is_conditioned(name):
            self.conditioned.add(name)
        if name in self.given:
            msg["value"] = self.given[name]

    def _enumerate(self, msg: TraceNode) -> None:
        """Marks a latent as enumerated, or gives it one value."""
        msg["infer"]["enumerate"] = "parallel"  # whatever the model asks for
        if self.fix_latents and getattr(msg["fn"], "has_enumerate_support", False):
            # One value for all rows: a draw for each would gather a parameter for each. Where a
            # certain one is asked for, each of few rows has it, so that a sum over them shows.
            for_each = self.first is not None and msg["fn"].batch_shape.numel() <= MANY
            values = msg["fn"].enumerate_support(expand=for_each)
            number = 0 if self.first is None else (self.first + len(self.chosen)) % len(values)
            msg["value"], self.chosen[msg["name"]] = values[number], number
            msg["done"] = True

    def _pyro_post_sample(self, msg: TraceNode) -> None:
        if isinstance(msg["fn"], OnGrid):
            msg["fn"] = msg["fn"].fn
        if msg["name"] in self.partly.whole:
            self._whole[self.partly.whole[msg["name"]]] = msg["value"]

    def _pyro_param(self, msg: TraceNode) -> None:
        if len(msg["args"]) < 2 and not declare_from_outside(msg["name"]):
            raise ValueError(
                f"pyro.param('{msg['name']}') has no initial value, and Pyro's parameter store "
                f"knows none; write pyro.param('{msg['name']}', torch.tensor(...))."
            )
        if msg["name"] in self.params:
            msg["value"] = self.params[msg["name"]]
            msg["done"] = True


def _is_boolean(site: TraceNode) -> bool:
    """Whether a site has truth values where numbers 0 and 1 are meant; Pyro itself fails there."""
    value = site["value"]
    boolean = isinstance(value, Tensor) and value.dtype is torch.bool
    return boolean and not _is_statement(site) and not is_continuous(site["fn"])


def _is_statement(site: TraceNode) -> bool:
    """Whether a site is a ``pyro.deterministic`` or ``pyro.factor`` statement: nothing to draw."""
    return is_computed(site) or is_factor_statement(site["fn"])


def _taken(msg: TraceNode) -> Tensor:
    """The value of a site, which has none afterwards: Pyro then finds one."""
    value = msg["value"]
    msg["value"] = None  # type: ignore[typeddict-item]
    return value


def is_conditioned(name: str) -> bool:
    """Whether a ``pyro.condition`` around the running model gives a site its value."""
    return any(isinstance(m, ConditionMessenger) and name in m.data for m in _PYRO_STACK)


def default_value(fn: Distribution) -> Tensor:
    """A valid, unremarkable value of a continuous distribution: its mean where that exists."""
    shape = fn.shape()
    try:
        mean: Tensor = fn.mean.detach().expand(shape).clone()
        if bool(torch.isfinite(mean).all()) and bool(fn.support.check(mean).all()):
            return mean
    except (NotImplementedError, AttributeError, ValueError, RuntimeError):
        pass  # no mean: a point in the middle of the support will do
    transform = transform_to(fn.support)
    middle: Tensor = transform(torch.zeros(transform.inverse_shape(shape)))
    return middle.expand(shape).clone()


def statements(trace: Trace) -> Iterator[tuple[str, TraceNode]]:
    """The sites that carry a density or a parameter, in the model's order."""
    for name, site in trace.nodes.items():
        if site["type"] == "param" or (
            site["type"] == "sample" and not is_subsample(site) and not _is_deterministic(site)
        ):
            yield name, site


def _is_deterministic(site: TraceNode) -> bool:
    """Whether a site only shows a computed value: ``pyro.deterministic``, or what amounts to it."""
    if is_computed(site):
        return True
    fn = unwrap(site["fn"]).base
    if not site["is_observed"] or not isinstance(fn, dist.Delta):
        return False
    if bool((fn.log_density != 0).any()):
        return False
    v, value = torch.broadcast_tensors(fn.v, site["value"])
    return torch.equal(v, value)


def is_continuous(fn: Distribution) -> bool:
    """Whether a distribution is one that a parameter may have."""
    return (
        isinstance(fn, TorchDistributionMixin)
        and not isinstance(fn, (dist.Delta, dist.Unit, _Subsample))
        and not fn.support.is_discrete
    )
