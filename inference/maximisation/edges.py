"""Whether densities have edges, where their slopes jump: there a curvature says nothing."""

import contextlib

from ember.inference.factors.second_order import SecondOrder
from ember.inference.maximisation.objective import near
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["check_edges", "has_edges"]


def has_edges(plan: Plan, statistics: Statistics) -> bool:
    """Whether a site without sufficient statistics has a density with edges, as ``Laplace`` has.

    Args:
        plan: The plan.
        statistics: Of the place where that is asked.

    Whether it has is not known of one that cannot be differentiated twice, or has no value there.
    """
    with contextlib.suppress(RuntimeError, ValueError, ArithmeticError):
        return check_edges(plan, statistics)
    return False


def check_edges(plan: Plan, statistics: Statistics) -> bool:
    """The same.

    Raises:
        RuntimeError: If a density cannot be differentiated twice.
        ValueError: If it has no value there.
    """
    start = statistics.params
    flat = SecondOrder.flat(plan.opaque, plan.structure.parameters, start)
    if flat is None:
        return False
    quick = near(statistics, start)
    known = any(site.has_edges for site in quick.near)
    return known or any(flat.of(p, start, True).has_edges(p, start) for p in quick.opaque)
