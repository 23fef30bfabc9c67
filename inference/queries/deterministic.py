"""The values of a model's ``pyro.deterministic`` statements at given parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.plan.without_data import StructureWithoutData
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace, is_computed

__all__ = ["deterministic_values"]


def deterministic_values(structure: Structure, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Site name to value, of every ``pyro.deterministic`` that parameters and data determine.

    A value that depends on a latent site differs from state to state and from row to row, and is
    left out; so is one without numbers, and one of rows that stand for others.
    """
    if isinstance(structure, StructureWithoutData):
        return dict(structure.record.deterministic)
    # Most models have none and need not be run again.
    roles = {*structure.parameters, *structure.factor_names}
    if not any(kind == "sample" and name not in roles for name, kind, *_ in structure.signature):
        return {}
    ones = {name: torch.ones(shape) for name, shape in structure.gaussian.items()}
    with torch.no_grad():
        plain, enumerated = structure.run(params), _statements(structure.trace(params))
        moved = _statements(structure.run({**params, **ones})) if ones else _statements(plain)
    values = {}
    for name, value in _statements(plain).items():
        # Summed over, a latent takes its values in a dim on the left: so does what it feeds.
        known = enumerated.get(name)
        follows = name not in moved or not torch.equal(moved[name], value)  # a Gaussian latent
        if name in structure.of_rows:
            continue
        if known is not None and known.shape == value.shape and not follows:
            values[name] = value.detach().clone()
    return values


def _statements(trace: Trace) -> dict[str, Tensor]:
    return {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and is_computed(site) and isinstance(site["value"], Tensor)
    }
