"""Parameters that ``pyro.condition`` holds at a value, told apart from data.

Both are observed sites to Pyro. A held parameter is a continuous site that would be a parameter
were it not conditioned: nothing random feeds it, neither a parameter nor a latent nor data, and
other sites depend on its value. Its density is a prior, no likelihood. A conditioned site that
nothing depends on, or whose distribution is to be estimated, is data; so is the first step of a
series of data (``x_0`` before ``x_1``, ``x_2``, ...).
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.numerics.shapes import varies_outside_plates
from ember.inference.parameters.supports import shown
from ember.inference.reading.graphs import leaves_of
from ember.inference.reading.sequences import base_name
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace, TraceNode, is_subsample
from ember.inference.reading.unwrapping import given_arguments, unwrap

__all__ = ["held_density", "held_sites", "prior_sources"]


def held_sites(
    structure: Structure, candidates: Sequence[str], params: Mapping[str, Tensor], plain: Trace
) -> tuple[str, ...]:
    """Those of the conditioned sites that are held parameters, in the model's order.

    Args:
        structure: Runs the model.
        candidates: Continuous sites that are conditioned.
        params: Where to run it.
        plain: An ordinary run.

    Raises:
        ValueError: If a held value is outside the support of its site.
    """
    values = {name: plain.nodes[name]["value"] for name in candidates}
    nodes, sources = _graph(structure, params, values)
    used = set[str]().union(*sources.values())
    held: list[str] = []
    for name in sources:
        is_rooted = sources[name] <= set(held) and not _varies(nodes[name], structure.nesting)
        if name in values and name in used and is_rooted:
            held.append(name)
    series = {base_name(n) for n in sources if nodes[n]["is_observed"] and n not in held} - {None}
    held = [name for name in held if base_name(name) not in series]
    for name in held:
        _check(name, plain.nodes[name])
    return tuple(held)


def prior_sources(structure: Structure, params: Mapping[str, Tensor], name: str) -> set[str]:
    """The parameters that the density of a parameter's own site depends on."""
    return _graph(structure, params, {})[1][name]


def _graph(
    structure: Structure, params: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> tuple[Mapping[str, TraceNode], dict[str, set[str]]]:
    """The sites of a run, and for each the parameters and given sites that its density reads."""
    leaves = {n: v.detach().clone().requires_grad_() for n, v in {**params, **values}.items()}
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own complaints of float(parameter)
        nodes = structure.trace(leaves, {name: leaves[name] for name in values}).nodes
    return nodes, _sources(nodes, {id(leaf): name for name, leaf in leaves.items()})


def _sources(nodes: Mapping[str, TraceNode], names: Mapping[int, str]) -> dict[str, set[str]]:
    """For each sample site the other sites that its density depends on."""
    sources = {}
    for name, node in nodes.items():
        if node["type"] == "sample" and not is_subsample(node):
            leaves = leaves_of(*_made_from(node))
            sources[name] = {names[leaf] for leaf in leaves if leaf in names} - {name}
    return sources


def _made_from(node: TraceNode) -> list[Tensor]:
    """The tensors that decide on the density of a site."""
    unwrapped = unwrap(node["fn"])
    tensors: list[object] = [value for _, value in given_arguments(unwrapped.base).values()]
    tensors += [node["value"], node["mask"], node["scale"]]
    return [each for each in tensors if isinstance(each, Tensor) and each.requires_grad]


def _varies(node: TraceNode, nesting: int) -> bool:
    """Whether a site has dims of enumerated latents."""
    return varies_outside_plates(node["fn"].batch_shape, nesting)


def _check(name: str, site: TraceNode) -> None:
    """Refuses values of held parameters that their sites do not admit."""
    fn, value = site["fn"], site["value"]
    if bool(value.isnan().any()) or not bool(torch.as_tensor(fn.support.check(value)).all()):
        raise ValueError(
            f"parameter '{name}' is held by pyro.condition at a value outside the support of its "
            f"prior ({shown(fn.support)}); give it a value inside."
        )


def held_density(trace: Trace, names: Sequence[str]) -> float:
    """The log prior density of held parameters: a constant, left out where it is infinite.

    A transition that is held at zero has prior density zero; the posterior of all else given it is
    well defined all the same.
    """
    total = 0.0
    for name in names:
        node = trace.nodes[name]
        log_prob = node["fn"].log_prob(node["value"])
        mask = torch.as_tensor(True if node["mask"] is None else node["mask"])
        log_density = float((torch.where(mask, log_prob, 0.0) * node["scale"]).sum())
        total += log_density if abs(log_density) < float("inf") else 0.0
    return total
