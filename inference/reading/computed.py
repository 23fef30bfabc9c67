r"""Sites whose arguments are computed from a latent on nodes and parameters, once for each *cell*.

In :math:`\operatorname{logit} p_{nj} = a_j u_n + d_j` the argument is another one at each node and
item, but the same for all persons. Such an argument is a table with a row for each pair of node and
item, filled in from the parameters by the operations that the model applies, recorded on a tape.
With that table in the place of a parameter the site is an ordinary exponential family: the E-step
is a product of its natural parameters with sufficient statistics, and the M-step sees the expected
statistics of each cell, however many persons there are.

Reference: Bock & Aitkin (1981), *Marginal maximum likelihood estimation of item parameters*,
Psychometrika 46, 443-459.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.families.by_cell import CellFamily, family_by_cell
from ember.inference.families.exponential_form import ExponentialForm, FamilyParameter
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import broadcast_shapes, unexpanded
from ember.inference.numerics.tape import Tape, record
from ember.inference.parameters.computed_rows import ComputedRows, node_input
from ember.inference.reading.checks.sites import batch_shape
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import TraceNode, plates_of, symbols_of
from ember.inference.reading.unwrapping import given_arguments, unwrap

__all__ = ["argument_of", "computed_form", "is_below_nodes", "latents_on_nodes"]


Params = Mapping[str, Tensor]
MOVED = 0.9, 0.05  # nodes at which a tape must give what the model gives: these times, and plus


def is_below_nodes(name: str, structure: Structure, nodes: Mapping[str, TraceNode]) -> bool:
    """Whether a site's distribution varies with a latent on nodes."""
    return any(latent != name for latent in latents_on_nodes(name, structure, nodes))


def latents_on_nodes(name: str, structure: Structure, nodes: Mapping[str, TraceNode]) -> list[str]:
    """The latents on nodes in a site: itself if it is one, and those with which it varies."""
    node = nodes[name]
    shape = batch_shape(name, node)
    # The site may know of dims along which it does not vary.
    known = {s for dim, s in symbols_of(node).items() if -dim <= len(shape) and shape[dim] > 1}
    return [n for n in structure.nodes if nodes[n]["infer"]["_enumerate_symbol"] in known]


def computed_form(
    name: str, structure: Structure, nodes: Mapping[str, TraceNode], probes: Sequence[Params]
) -> ExponentialForm | str:
    """The form of a site below a latent on nodes, or why its arguments are no table of cells.

    Args:
        name: The site.
        structure: Runs the model.
        nodes: The sites of the run at the first of the probes.
        probes: Random parameters: where the tape is recorded, and where it is checked.
    """
    base = unwrap(nodes[name]["fn"]).base
    found = family_by_cell(base)
    if isinstance(found, str):
        return found
    names = [argument for argument, _ in found.arguments]
    values = [unexpanded(argument_of(base, argument), found.argument_dim) for argument in names]
    batch = [value.shape[: value.dim() - found.argument_dim] for value in values]
    cells = broadcast_shapes(*batch)
    varied = _plate_of_rows(structure, nodes, name, cells)
    if varied:
        return f"its arguments vary in plate '{varied}'"
    tape = _recorded(name, structure, found, probes)
    if tape is None or not _is_constant(name, structure, found, nodes, probes):
        return "its arguments cannot be recorded"
    at = {node_input(n): each.values for n, each in structure.nodes.items()}
    index = torch.arange(cells.numel()).reshape(cells)
    parameters = []
    for (argument, link), kind in zip(found.arguments, found.family.kinds, strict=True):
        own = tape.only(argument)
        sources = tuple(n for n in structure.parameters if n in own.inputs_used)
        rows = ComputedRows(name, argument, sources, own, cells, found.argument_dim, at)
        parameters.append(FamilyParameter(kind, rows, link))
    return ExponentialForm(
        found.family, tuple(parameters), (index,) * len(parameters), found.statistics,
        found.event_dim, found.centred,
    )  # fmt: skip


def argument_of(base: Distribution, argument: str) -> Tensor:
    """An argument as the distribution was given it."""
    holder = getattr(base, "_categorical", base)
    if argument in ("probs", "logits") and hasattr(holder, "_param"):
        value: Tensor = holder._param
        return value
    return torch.as_tensor(getattr(base, argument))


def _plate_of_rows(
    structure: Structure, nodes: Mapping[str, TraceNode], name: str, cells: torch.Size
) -> str:
    """A plate that a latent on nodes stands in and that the cells vary in too, if there is one."""
    inner = len(nodes[name]["fn"].event_shape[: unwrap(nodes[name]["fn"]).reinterpreted])
    outer = cells[: len(cells) - inner]
    of_latents = {plate.name for latent in structure.nodes for plate in plates_of(nodes[latent])}
    for plate in plates_of(nodes[name]):
        if plate.name in of_latents and -plate.dim <= len(outer) and outer[plate.dim] > 1:
            return plate.name
    return ""


def _recorded(
    name: str, structure: Structure, found: CellFamily, probes: Sequence[Params]
) -> Tape | None:
    """The tape of all arguments, which takes the nodes as inputs."""
    names = [argument for argument, _ in found.arguments]

    def compute(inputs: Params) -> dict[str, Tensor]:
        at = structure.at_nodes({n: inputs[node_input(n)] for n in structure.nodes})
        trace = at.trace({n: inputs[n] for n in structure.parameters})
        base = unwrap(trace.nodes[name]["fn"]).base
        return {a: _under_expand(argument_of(base, a), found.argument_dim) for a in names}

    def inputs(params: Params, times: float, plus: float) -> dict[str, Tensor]:
        moved = {node_input(n): times * each.values + plus for n, each in structure.nodes.items()}
        return {**params, **moved}

    first, *others = probes
    return record(compute, inputs(first, 1.0, 0.0), [inputs(p, *MOVED) for p in others[-2:]])


def _under_expand(value: Tensor, keep: int) -> Tensor:
    """The tensor that was expanded: the gradient of a part of an expanded one fills it all."""
    part, base = unexpanded(value, keep), value._base
    if base is None or part is value or not base.is_contiguous():
        return part
    strides = [value.stride(d) for d in range(value.dim()) if part.size(d) > 1]
    below = [base.stride(d) for d in range(base.dim()) if base.size(d) > 1]
    if strides != below or part.storage_offset() != base.storage_offset():
        return part
    if base.numel() != part.numel():
        return part
    return base if base.shape == part.shape else base.reshape(part.shape)


def _is_constant(
    name: str,
    structure: Structure,
    found: CellFamily,
    nodes: Mapping[str, TraceNode],
    probes: Sequence[Params],
) -> bool:
    """Whether what the family takes for known, such as a total count, is so at other parameters."""
    read = {argument for argument, _ in found.arguments}
    here = given_arguments(unwrap(nodes[name]["fn"]).base)
    known = {a: value for a, (_, value) in here.items() if a == "total_count" and a not in read}
    if not known:
        return True
    with torch.no_grad():
        base = unwrap(structure.trace(probes[-1]).nodes[name]["fn"]).base
    return all(torch.equal(value, getattr(base, argument)) for argument, value in known.items())
