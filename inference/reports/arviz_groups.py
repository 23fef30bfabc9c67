"""A fit as ArviZ takes it: draws, data and replicates, with names for all dims.

Plates lend their names to dims. Axes that run along columns of a data frame are called ``column``
and have the names of the columns as coordinates. All other axes are numbered after their site.
"""

import importlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ember.inference.queries.at_draws import (
    data_of,
    latents_at,
    pointwise_at,
    replicates_at,
)
from ember.inference.reading.sequences import members
from ember.inference.reading.trace import Trace, plates_of
from ember.inference.reports.fitted import Fitted

__all__ = ["arviz_data"]


Values = Mapping[str, Tensor]


def arviz_data(fit: Fitted, draws: Values) -> Any:
    """ArviZ' data tree (or its InferenceData, before ArviZ 1.0) of a fit.

    Args:
        fit: The fit.
        draws: Draws of its parameters, site name to ``(chains, n, ...)``.

    Raises:
        ImportError: If ArviZ is not installed.
    """
    arviz, plan = _arviz(), fit.plan
    params = {name: draws[name].flatten(0, 1) for name in fit.params}
    chains = max((len(values) for values in draws.values()), default=1)
    latents = latents_at(plan, params)
    observed, pointwise = data_of(plan, fit.params), pointwise_at(plan, params, latents)
    named = _NamedDims(fit, plan.structure.run(fit.params), plan.structure.observed)
    for name, value in {**params, **latents}.items():
        named.add(name, value.shape[1:])
    for name, value in observed.items():
        named.add(name, value.shape)
    row = plan.row_plate()
    if "joint" in pointwise and row is not None:
        named.dims["joint"] = [row[0]]
    groups = {
        "posterior": {**params, **latents},
        "log_likelihood": pointwise,
        "posterior_predictive": replicates_at(plan, params),
    }
    return _tree(
        arviz,
        {
            **{group: _by_chain(values, chains) for group, values in groups.items()},
            "observed_data": {name: value.cpu().numpy() for name, value in observed.items()},
        },
        named,
    )


def _by_chain(values: Values, chains: int) -> dict[str, Any]:
    """Draws ``(chains * n, ...)`` as ``(chains, n, ...)``."""
    return {
        name: value.detach().unflatten(0, (chains, -1)).cpu().numpy()
        for name, value in values.items()
    }


class _NamedDims:
    """The names of the dims of every variable, and the coordinates along them."""

    def __init__(self, fit: Fitted, trace: Trace, observed: Sequence[str]) -> None:
        self.dims: dict[str, list[str]] = {}
        self.coords: dict[str, list[Any]] = {}
        self._fit, self._trace, self._observed = fit, trace, observed

    def add(self, name: str, shape: Sequence[int]) -> None:
        """Names the dims of a variable."""
        found: list[str | None] = [None] * len(shape)
        for axis, plate in self._plates(name, shape).items():
            if self.coords.setdefault(plate, list(range(shape[axis]))) and (
                len(self.coords[plate]) == shape[axis]
            ):
                found[axis] = plate
        for axis, labels in self._labels(name, shape).items():
            found[axis] = self._column(labels, found)
        self.dims[name] = [dim or f"{name}_dim_{axis}" for axis, dim in enumerate(found)]

    def _plates(self, name: str, shape: Sequence[int]) -> dict[int, str]:
        """The names of axes that plates, or the steps of a chain, run along."""
        structure, nodes = self._fit.plan.structure, self._trace.nodes
        chain = next((c for c in structure.composites if name in (c.latent, c.site)), None)
        steps = members(name, nodes)
        site = chain.site if chain else steps[0] if steps and name not in nodes else name
        family = structure.family(name)
        if family is not None:
            site, steps = family.names[0], list(family.names)
        if site not in nodes or nodes[site]["type"] != "sample":
            return {}
        node = nodes[site]
        hidden = chain is not None and name == chain.latent
        event = 0 if hidden else node["fn"].event_dim
        batch = len(node["fn"].batch_shape) if hidden else len(shape) - event - bool(site != name)
        axes = {batch + plate.dim: plate.name for plate in plates_of(node)}
        if chain is not None and chain.steps is not None and batch < len(shape):
            axes[batch] = chain.time
        if steps and site != name:
            axes[batch] = f"{name}_step"
        return {axis: plate for axis, plate in axes.items() if 0 <= axis < len(shape)}

    def _labels(self, name: str, shape: Sequence[int]) -> dict[int, Sequence[str]]:
        """The names of columns along the axes of a variable."""
        if name in self._observed:
            columns = self._fit.columns.get(name, ())
            last = len(shape) - 1
            return {last: columns} if len(shape) > 1 and len(columns) == shape[-1] else {}
        axes = self._fit.axes.get(name, {})
        return {a: labels for a, labels in axes.items() if a >= 0 and len(labels) == shape[a]}

    def _column(self, labels: Sequence[str], taken: Sequence[str | None]) -> str:
        """The dim with these labels; a second one in a variable, as of a matrix, has its own."""
        count = 0
        while True:
            count += 1
            name = "column" if count == 1 else f"column_{count}"
            if name in self._trace.nodes or name in taken:
                continue
            if self.coords.setdefault(name, list(labels)) == list(labels):
                return name


# -- ArviZ --------------------------------------------------------------------------------------


def _arviz() -> Any:
    """The ArviZ that is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it announces its version 1
            return importlib.import_module("arviz")
    except ImportError as error:
        raise ImportError("to_arviz needs ArviZ; install it with: pip install arviz") from error


def _tree(arviz: Any, groups: Mapping[str, Any], named: _NamedDims) -> Any:
    """The groups as ArviZ keeps them; from its version 1 on they come as one argument."""
    options = {"dims": named.dims, "coords": named.coords}
    if "posterior" in inspect.signature(arviz.from_dict).parameters:
        return arviz.from_dict(**groups, **options)
    return arviz.from_dict(dict(groups), **options)
