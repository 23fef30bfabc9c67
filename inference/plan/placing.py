"""A plan with the nodes of its continuous latents where its parameters want them.

Nodes of units stand at mode and curvature. A grid for all rows follows the prior: left where it
stands, it would let the prior's scale shrink onto one of its nodes, where the density grows without
bound. Nodes move between E-steps; within one they are constants, as are the statistics that the
M-step is given.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.factors.missing import compile_site
from ember.inference.factors.tied import TiedFactors
from ember.inference.factors.units.component import UnitComponent
from ember.inference.numerics.adaptive import Adaptive
from ember.inference.parameters.computed_rows import ComputedRows, node_input
from ember.inference.plan.plan import Params, Plan
from ember.inference.reading.nodes import Nodes, nodes_of

__all__ = ["placed", "placed_units", "with_units"]


def placed(plan: Plan, params: Params) -> Plan:
    """The plan with all nodes placed by the priors at ``params``; itself if it has no nodes."""
    if not plan.structure.nodes and not plan.units:
        return plan
    fixed = {name: value.detach() for name, value in params.items()}
    if plan.structure.nodes:
        nodes = {name: _nodes(plan, name, fixed) for name in plan.structure.nodes}
        plan = plan.once(_Placed).at(plan, nodes)
    return with_units(plan, [placed_units(plan, c, fixed) for c in plan.units])


class _Placed:
    """A plan at the nodes that were last asked for: where a prior is fixed, they stay."""

    def __init__(self, plan: Plan) -> None:
        self._last: tuple[dict[str, Nodes], Plan] | None = None

    def at(self, plan: Plan, nodes: dict[str, Nodes]) -> Plan:
        """The plan at some nodes."""
        if self._last is None or not all(map(_same, self._last[0].values(), nodes.values())):
            self._last = nodes, _at(plan, nodes)
        return self._last[1]


def placed_units(
    plan: Plan, component: UnitComponent, params: Params, rule: Adaptive | None = None
) -> UnitComponent:
    """Latents of units with their nodes at modes and curvatures; by another rule if one is given.

    Args:
        plan: The plan.
        component: The latents.
        params: The parameters.
        rule: Says how many nodes there are.
    """
    with torch.no_grad():
        keys = {prior.cells.key for prior in component.priors.values()}
        natural = {key: plan.tied[key].natural_parameters(params) for key in keys}
        return component.placed(natural, params, rule)


def with_units(plan: Plan, units: Sequence[UnitComponent]) -> Plan:
    """The plan with the nodes of its units where they stand in ``units``."""
    if not units:
        return plan
    opaque = dataclasses.replace(plan.opaque, units=tuple(units))
    return dataclasses.replace(plan, units=tuple(units), opaque=opaque)


def _nodes(plan: Plan, name: str, params: Params) -> Nodes:
    """The nodes of one latent at some parameters."""
    rule, density = plan.structure.nodes[name].rule, plan.sites[name].density
    if density is None:
        return nodes_of(plan.structure.trace(params).nodes[name]["fn"], rule)
    fn = density.distribution(params)
    return nodes_of(fn.to_event(len(density.inner_shape)) if density.inner_shape else fn, rule)


def _same(one: Nodes, other: Nodes) -> bool:
    """Whether nodes are in the same places, with the same weights."""
    pairs = ((one.values, other.values), (one.log_weights, other.log_weights))
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


def _at(plan: Plan, nodes: Mapping[str, Nodes]) -> Plan:
    """The plan at some nodes: their own sites, and what is computed from them."""
    sites, compiled = dict(plan.sites), dict(plan.compiled)
    for name, each in nodes.items():
        site = sites[name]
        value = each.values.reshape(site.value.shape)
        sites[name] = dataclasses.replace(site, value=value, log_weights=each.log_weights)
        if name in compiled:
            cells = plan.node_cells[name]
            compiled[name] = (cells.key, compile_site(sites[name], cells.index, cells.reference))
    inputs = {node_input(name): each.values for name, each in nodes.items()}
    structure = dataclasses.replace(plan.structure, nodes=nodes)
    return dataclasses.replace(
        plan,
        structure=structure,
        sites=sites,
        compiled=compiled,
        tied={key: _tied_at(tied, inputs) for key, tied in plan.tied.items()},
        opaque=plan.opaque.at(structure, sites, inputs),
    )


def _tied_at(tied: TiedFactors, inputs: Mapping[str, Tensor]) -> TiedFactors:
    """Tied factors whose computed parameters are computed at other nodes."""
    if not any(isinstance(p.table, ComputedRows) for p in tied.parameters):
        return tied
    parameters = tuple(
        dataclasses.replace(p, table=p.table.at(inputs)) if isinstance(p.table, ComputedRows) else p
        for p in tied.parameters
    )
    return dataclasses.replace(tied, parameters=parameters)
