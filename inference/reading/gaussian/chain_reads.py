"""Which states move the sites of a Gaussian chain: known from its matrices, all steps at once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.numerics.shapes import append_dims
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.parameter import Parameter
from ember.inference.reading.gaussian.reads import NotIntegrable, Reads
from ember.inference.reading.matching.arguments import ArgumentValues, match_argument
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace, TraceNode
from ember.inference.reading.unwrapping import unwrap

__all__ = ["chain_reads"]


Params = Mapping[str, Tensor]


def chain_reads(
    structure: Structure, probes: Sequence[Params], traces: Sequence[Trace]
) -> dict[str, list[Reads]]:
    """The states that move the sites of each Gaussian chain that a distribution hides.

    The numbers of the states before those of each step run on from the first ones.

    Args:
        structure: The model.
        probes: Random values of the parameters.
        traces: Runs there.

    Raises:
        NotIntegrable: If an entry of a matrix is computed from parameters.
    """
    out = {}
    for chain in structure.gaussian_chains:
        shape = structure.gaussian[chain.latent]
        *batch, steps, size = shape
        rows = torch.Size(batch).numel()
        first = torch.arange(rows * size).reshape(*batch, 1, size)
        now = torch.arange(shape.numel()).reshape(shape)
        before = torch.cat([first, rows * size + now[..., : steps - 1, :]], -2)
        for name, latent, entries in (
            (chain.latent, chain.initial, before),
            (chain.site, chain.latent, now),
        ):
            nodes = [trace.nodes[name] for trace in traces]
            inner = _inner(nodes[0])
            out[name] = [
                Reads(latent, append_dims(entries[..., k], inner), found)
                for k, found in enumerate(_rows(chain.site, nodes, structure.parameters, probes))
            ]
    return out


def _inner(node: TraceNode) -> int:
    """How many dims of an event are batch dims of its distribution: 1 of independent normals."""
    return unwrap(node["fn"]).reinterpreted


def _rows(
    name: str,
    nodes: Sequence[TraceNode],
    parameters: Mapping[str, Parameter],
    probes: Sequence[Params],
) -> list[ArgumentMap]:
    """The rows of a matrix ``(old, new)``, each entry known or an entry of a parameter."""
    matrices = [_homogeneous(node["infer"]["_matrix"]).double() for node in nodes]
    values = ArgumentValues("real", 0, matrices)
    found = match_argument(values, parameters, probes)
    if found is None:
        raise NotIntegrable(
            f"a matrix of the Gaussian chain of site '{name}' is computed from parameters; make "
            "each of its entries a constant or an entry of a parameter, times a constant."
        )
    full = found.index.shape
    return [
        ArgumentMap(
            found.domain, found.space, found.table,
            *(t.expand(full)[..., k, :] for t in (found.index, found.coefficient, found.offset)),
        )
        for k in range(full[-2])
    ]  # fmt: skip


def _homogeneous(matrix: Tensor) -> Tensor:
    """A matrix with steps and rows of plates for which it is the same as one."""
    for dim in range(matrix.dim() - 2):
        first = matrix.narrow(dim, 0, 1)
        if matrix.size(dim) > 1 and (matrix.stride(dim) == 0 or bool((matrix == first).all())):
            matrix = first
    return matrix
