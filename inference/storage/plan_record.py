"""What is to be kept of a plan."""

from ember.inference.iteration.run import Run
from ember.inference.plan.plan import Plan
from ember.inference.plan.without_data import PlanRecord, PlanWithoutData
from ember.inference.queries import criteria
from ember.inference.queries.deterministic import deterministic_values

__all__ = ["record_of"]


def record_of(run: Run) -> PlanRecord:
    """The record of a fit's plan; that of one without data is what it was made from."""
    plan = run.plan
    if isinstance(plan, PlanWithoutData):
        return plan.record
    structure = plan.structure
    return PlanRecord(
        objective=plan.objective,
        unconstrained=plan.unconstrained,
        wishes=structure.wishes,
        misread=tuple(sorted(plan.opaque.misread)),
        signature=tuple((*site[:3], *map(tuple, site[3:])) for site in structure.signature),
        rows=_rows(plan),
        n_parameters=criteria.free_parameters(plan),
        n_observations=criteria.observations(plan),
        nodes={name: nodes.shown for name, nodes in structure.nodes.items()},
        deterministic=deterministic_values(structure, run.params),
        units={name: c.rule.shown(c.dims) for c in plan.units for name in c.latents},
    )


def _rows(plan: Plan) -> int:
    """The number of rows of the data; of a single sequence that of its steps."""
    if plan.row is not None:
        return plan.sizes[plan.row]
    tensors = plan.structure.arguments.tensors
    return len(tensors[0]) if tensors and tensors[0].dim() else -1
