"""Guides over the parameters of a model: made from a name, checked, and kept after the fit."""

import copy
import inspect
from collections.abc import Collection, Mapping

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoGuide, init_to_value
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ember.inference.inputs.arguments import Model
from ember.inference.inputs.options import check_choice
from ember.inference.plan.plan import Plan
from ember.inference.reading.runs import default_value
from ember.inference.reading.trace import TraceNode, is_subsample, record
from ember.inference.variational.elbo import GuideFunction, latent_values, parameter_values

__all__ = [
    "GUIDES",
    "Guide",
    "LearntGuide",
    "check_guide",
    "guide_name",
    "make_guide",
    "point_estimate",
    "sampled_sites",
]


GUIDES: dict[str, type[AutoGuide]] = {
    "delta": autoguide.AutoDelta,
    "normal": autoguide.AutoNormal,
    "multivariate_normal": autoguide.AutoMultivariateNormal,
}


Guide = str | type[AutoGuide] | GuideFunction  # what a user may pass


class _At(Messenger):
    """Gives ``pyro.param`` statements fixed values, whatever the parameter store holds."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: TraceNode) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class _AtMean(Messenger):
    """Sets every sampled site to the mean of its distribution."""

    def _pyro_sample(self, msg: TraceNode) -> None:
        if not msg["is_observed"] and not is_subsample(msg):
            msg["value"], msg["done"] = default_value(msg["fn"]), True


class LearntGuide:
    """A guide with the values that were learnt for its parameters; needs no parameter store.

    Args:
        guide: The guide.
        values: Learnt values of its ``pyro.param`` statements, and of the model's.
        plan: The plan of the model, for its arguments and the names of its parameters.
        latents: Those of its parameters that are latents on nodes without a guide.
        choice: The name by which the user chose it; None for a guide of the user's own.
    """

    def __init__(
        self,
        guide: GuideFunction,
        values: Mapping[str, Tensor],
        plan: Plan,
        latents: Collection[str] = (),
        choice: str | None = None,
    ) -> None:
        self.guide, self.values, self._plan = guide, dict(values), plan
        self.latents, self.choice = tuple(latents), choice

    @property
    def is_delta(self) -> bool:
        """Whether the guide is a point, so that the bound is the log posterior density."""
        return isinstance(self.guide, autoguide.AutoDelta) or self.guide is _nothing

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Runs the guide, as Pyro's ``Predictive`` and ``Importance`` do."""
        with _At(self.values):
            return self.guide(*args, **kwargs)

    @property
    def covered(self) -> tuple[str, ...]:
        """The continuous latents that the guide draws; others are integrated out."""
        with torch.no_grad(), _At(self.values):
            trace = record(self.guide, self._plan.structure.arguments)
        return (*latent_values(self._plan, trace), *self.latents)

    def draw(self, n: int) -> dict[str, Tensor]:
        """Draws ``n`` values of every parameter: site name to ``(n, ...)``, constrained.

        And of the continuous latents that the guide covers.
        """
        arguments = self._plan.structure.arguments
        drawn: dict[str, list[Tensor]] = {}
        with torch.no_grad(), _At(self.values):
            for _ in range(n):
                trace = record(self.guide, arguments)
                values = parameter_values(self._plan, trace) | latent_values(self._plan, trace)
                for name, value in values.items():
                    drawn.setdefault(name, []).append(value)
        return {name: torch.stack(values) for name, values in drawn.items()}


def check_guide(guide: object) -> None:
    """Refuses what is no guide.

    Raises:
        ValueError: If a name is unknown.
        TypeError: If the guide is neither a name, nor callable.
    """
    if isinstance(guide, str):
        check_choice("guide", guide, tuple(GUIDES), ", an AutoGuide class or a guide of your own")
    elif not callable(guide):
        raise TypeError(
            f"guide must be a name, an AutoGuide or a function, not {type(guide).__name__}; "
            f"names are {', '.join(map(repr, GUIDES))}."
        )


def guide_name(guide: Guide) -> str:
    """How tables call a guide."""
    if isinstance(guide, str):
        return GUIDES[guide].__name__
    if isinstance(guide, AutoGuide):
        return type(guide).__name__
    return getattr(guide, "__name__", type(guide).__name__)


def make_guide(
    choice: Guide,
    plan: Plan,
    start: Mapping[str, Tensor],
    latents: Mapping[str, Tensor] | None = None,
) -> GuideFunction:
    """A fresh guide over the parameter sites with a prior, begun at ``start`` where it can be.

    Args:
        choice: What the user asks for.
        plan: The plan.
        start: Values of the parameters.
        latents: The continuous latents that a guide made here covers as well, with their starts.

    Raises:
        ValueError: If the guide misses a parameter site, guides a latent one, or draws in a way
            that has no reparametrised gradient.
    """
    guided = [name for name, p in plan.structure.parameters.items() if p.has_prior]
    latents = latents or {}
    kind = GUIDES[choice] if isinstance(choice, str) else choice
    guide: GuideFunction
    if isinstance(kind, type) and issubclass(kind, AutoGuide):
        parameters = [name for name in guided if name not in latents]
        begin = {**start, **latents}
        guide = _automatic(kind, plan.structure.model, begin, parameters, list(latents))
    elif isinstance(kind, torch.nn.Module):
        guide = _copy(kind)  # the fit leaves the user's own untouched
    else:
        guide = kind
    _check_sites(guide, plan, guided)
    return guide


def _automatic(
    kind: type[AutoGuide],
    model: Model,
    start: Mapping[str, Tensor],
    parameters: list[str],
    latents: list[str],
) -> GuideFunction:
    """An autoguide over parameters and continuous latents.

    No point will do for a latent, whose joint mode with its variance is unbounded: beside a delta
    over the parameters stand independent normals.
    """
    options = {}
    if "init_loc_fn" in inspect.signature(kind.__init__).parameters:
        options["init_loc_fn"] = init_to_value(values=dict(start))

    def over(names: list[str], kind: type[AutoGuide]) -> AutoGuide:
        return kind(poutine.block(model, expose=names), **options)

    if not parameters and not latents:
        return _nothing  # every parameter is a pyro.param: there is nothing to guide
    if not latents or not issubclass(kind, autoguide.AutoDelta):
        return over([*parameters, *latents], kind)
    normals = over(latents, autoguide.AutoNormal)
    if not parameters:
        return normals
    both = autoguide.AutoGuideList(poutine.block(model, expose=[*parameters, *latents]))
    both.append(over(parameters, kind))
    both.append(normals)
    return both


def sampled_sites(choice: Guide, plan: Plan) -> frozenset[str] | None:
    """The sites that a guide of the user's own samples; None of one that is made here."""
    if isinstance(choice, (str, type)):
        return None
    guide = _copy(choice) if isinstance(choice, torch.nn.Module) else choice
    trace = record(guide, plan.structure.arguments)
    return frozenset(name for name, node in trace.nodes.items() if node["type"] == "sample")


def _copy(guide: torch.nn.Module) -> torch.nn.Module:
    """A copy of a guide. Copying an ``AutoGuide`` makes it, and the copy, forget their models."""
    models = [m._model if isinstance(m, AutoGuide) else None for m in guide.modules()]
    copied = copy.deepcopy(guide)
    for either in (guide, copied):
        for module, model in zip(either.modules(), models, strict=True):
            if isinstance(module, AutoGuide) and model is not None:
                module._model = model
    return copied


def _check_sites(guide: GuideFunction, plan: Plan, guided: list[str]) -> None:
    """Runs the guide once and looks at what it samples."""
    trace = record(guide, plan.structure.arguments)
    # Plates are sites as well, of no interest here.
    sites = {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and not is_subsample(node)
    }
    for name in guided:
        if name not in sites:
            raise ValueError(
                f"the guide does not sample the parameter site '{name}'; add a pyro.sample "
                "statement of that name to it."
            )
    for component in plan.components:
        drawn = [name for name in component.latents if name in sites]
        left = [name for name in component.latents if name not in sites]
        if drawn and left:
            raise ValueError(
                f"the guide samples the Gaussian latent '{drawn[0]}' but not '{left[0]}', on which "
                "it depends; sample both or neither."
            )
    for name in plan.structure.gaussian:
        own = [sites[n]["fn"] for n in (name, f"{name}_unconstrained") if n in sites]
        if own and plan.scales[name] is not None and all(isinstance(fn, Delta) for fn in own):
            raise ValueError(
                f"the Gaussian latent '{name}' has poutine.scale weights, which this guide cannot "
                "count row by row; use guide='normal' or 'delta', or integrate the latent with "
                f"SVI(model, integrate={{'{name}': 'gaussian'}})."
            )
    for name, site in sites.items():
        if name in {*plan.structure.latent, *plan.structure.conjugate, *plan.structure.units}:
            raise ValueError(
                f"the guide samples the latent site '{name}', which is integrated out; hide "
                "it from the guide with poutine.block."
            )
        if not site["fn"].has_rsample:
            raise ValueError(
                f"site '{name}' of the guide ({type(site['fn']).__name__}) has no reparametrised "
                "draws; use a distribution with rsample."
            )
        shape = plan.structure.gaussian.get(name)
        if name in guided:
            shape = plan.structure.parameters[name].shape
        if shape is not None and site["value"].shape != shape:
            raise ValueError(
                f"the guide draws '{name}' with shape {tuple(site['value'].shape)} but the model "
                f"declares {tuple(shape)}; use the same shape."
            )


def _nothing(*args: object, **kwargs: object) -> None:
    """The guide of a model whose parameters are all ``pyro.param`` statements."""


def point_estimate(guide: GuideFunction, plan: Plan) -> dict[str, Tensor]:
    """Constrained parameters in the middle of the guide.

    A delta gives its value, a normal guide its median, which passes through the transforms; a
    guide of the user's own is run with each of its sites at the mean.
    """
    arguments = plan.structure.arguments
    with torch.no_grad():
        if isinstance(guide, AutoGuide):
            try:
                median = guide.median(*arguments.args, **arguments.kwargs)
            except NotImplementedError:
                pass
            else:
                return {
                    name: (median[name] if p.has_prior else pyro.param(name)).detach().clone()
                    for name, p in plan.structure.parameters.items()
                }
        with _AtMean():
            trace = record(guide, arguments)
        values = parameter_values(plan, trace)
        return {name: value.detach().clone() for name, value in values.items()}
