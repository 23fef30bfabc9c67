"""A run of a model as Pyro records it, with types: a trace, and the node of each of its sites.

Pyro's own types leave almost everything open. These say what is there once a run is over.
"""

from collections.abc import Mapping
from typing import Protocol, Self, TypedDict, cast

import pyro.distributions as dist
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.trace_struct import Trace as PyroTrace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ember.inference.inputs.arguments import Arguments, Model
from ember.inference.numerics.distribution import Distribution
from ember.inference.reading.gaussian.remembered import remembering

__all__ = [
    "Frame",
    "Infer",
    "Mask",
    "Trace",
    "TraceNode",
    "is_computed",
    "is_factor_statement",
    "is_subsample",
    "made_frame",
    "plates_of",
    "record",
    "record_enumerated",
    "symbols_of",
    "typed",
]


Mask = Tensor | bool | None  # None and True: nothing is masked


class Frame(Protocol):
    """A plate around a site: its name, its dim from the right, and how many rows it has."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def full_size(self) -> int | None: ...

    @property
    def vectorized(self) -> bool:
        """Whether the rows have a dim; a plate that is iterated over has none."""
        ...

    def _replace(self, *, dim: int) -> Self: ...


class Infer(TypedDict, total=False):
    """What is said of a site beside its distribution: by the model, by Pyro, and by Ember."""

    enumerate: str
    integrate: object
    state: object
    component: object
    _deterministic: bool
    _dim_to_symbol: dict[int, str]
    _enumerate_symbol: str
    _enumerate_dim: int
    _markov_depth: int
    _given: Tensor  # what a latent is known to be
    _hidden_draws: list[Tensor]  # of the latents in a distribution that hides some
    _present_steps: Tensor | None  # of a loop: those that are not masked
    _matrix: Tensor  # of a Gaussian chain: what multiplies states here, (old, new)


class TraceNode(TypedDict, total=False):
    """A site of a run; ``fn`` of a ``pyro.param`` statement is no distribution but a function."""

    type: str
    name: str
    fn: Distribution
    value: Tensor
    mask: Mask
    scale: Tensor | float
    infer: Infer
    is_observed: bool
    cond_indep_stack: tuple[Frame, ...]
    args: tuple[object, ...]
    kwargs: dict[str, object]
    done: bool


class Trace(Protocol):
    """A run: its sites in the model's order, and the name of each plate's dim."""

    nodes: dict[str, TraceNode]
    plate_to_symbol: dict[str, str]


def record(model: Model, arguments: Arguments) -> Trace:
    """Runs a model once, under whatever handlers are active."""
    with remembering():
        return typed(poutine.trace(model).get_trace(*arguments.args, **arguments.kwargs))


def record_enumerated(model: Model, arguments: Arguments) -> Trace:
    """Runs a model with its latent sites enumerated, and names the dims of every site."""
    enumerated = poutine.trace(config_enumerate(model, default="parallel"))
    with remembering():
        trace = prune_subsample_sites(enumerated.get_trace(*arguments.args, **arguments.kwargs))
    trace.symbolize_dims()
    return typed(trace)


def typed(trace: PyroTrace) -> Trace:
    """A trace of Pyro's, its nodes known."""
    return cast(Trace, trace)


def plates_of(node: TraceNode) -> list[Frame]:
    """The plates of a site that have a dim, outermost first."""
    return [frame for frame in node["cond_indep_stack"] if frame.vectorized]


def made_frame(name: str, dim: int, size: int) -> Frame:
    """A plate that the model does not have."""
    return cast(Frame, CondIndepStackFrame(name, dim, size, 0))


def symbols_of(node: TraceNode) -> Mapping[int, str]:
    """The names of a site's batch dims, counted from the right; a plain run gives none."""
    return node["infer"].get("_dim_to_symbol", {})


def is_computed(node: TraceNode) -> bool:
    """Whether a site shows a value, by ``pyro.deterministic``: nothing is drawn there."""
    return bool(node["infer"].get("_deterministic"))


def is_factor_statement(fn: object) -> bool:
    """Whether a distribution is that of a ``pyro.factor`` statement, which has no data."""
    return isinstance(fn, dist.Unit)


def is_subsample(node: TraceNode) -> bool:
    """Whether a site is the choice of rows that every plate makes."""
    return isinstance(node["fn"], _Subsample)
