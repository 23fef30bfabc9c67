"""A plan with the nodes of its continuous latents where its parameters want them.

The nodes follow the prior: left where they stand, they would let its scale shrink onto one of them,
where the density grows without bound. They move between E-steps; within one they are constants, as
are the statistics that the M-step is given.
"""

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from ember.inference.factors.missing import compile_site
from ember.inference.factors.tied import TiedFactors
from ember.inference.parameters.computed_rows import ComputedRows, node_input
from ember.inference.plan.plan import Params, Plan
from ember.inference.reading.nodes import Nodes, nodes_of

__all__ = ["placed"]


def placed(plan: Plan, params: Params) -> Plan:
    """The plan with all nodes placed by the priors at ``params``; itself if it has no nodes."""
    if not plan.structure.nodes:
        return plan
    fixed = {name: value.detach() for name, value in params.items()}
    return _at(plan, {name: _nodes(plan, name, fixed) for name in plan.structure.nodes})


def _nodes(plan: Plan, name: str, params: Params) -> Nodes:
    """The nodes of one latent at some parameters."""
    rule, density = plan.structure.nodes[name].rule, plan.sites[name].density
    if density is None:
        return nodes_of(plan.structure.trace(params).nodes[name]["fn"], rule)
    fn = density.distribution(params)
    return nodes_of(fn.to_event(len(density.inner_shape)) if density.inner_shape else fn, rule)


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
