"""Options that are about discrete latents, asked of a plan with continuous ones."""

from collections.abc import Sequence

from ember.inference.plan.plan import Plan

__all__ = ["check_discrete_options"]


def check_discrete_options(plan: Plan, assignment: str, anneal: Sequence[float]) -> None:
    """Refuses hard assignment and annealing of latents that they are not about.

    Beside discrete latents both are meant for these: what is integrated exactly stays so, and
    the discrete ones take their most probable value, or have their posterior flattened. Nodes are
    states to the elimination: it can flatten their posterior, but should not choose one of them.

    Raises:
        ValueError: Naming the continuous latent.
    """
    exact = [*plan.structure.gaussian, *plan.structure.conjugate, *plan.structure.units]
    alone = [] if plan.latent_symbols else exact
    for name in [*plan.structure.nodes, *alone] if assignment == "hard" else []:
        raise ValueError(
            "assignment='hard' takes the most probable value of discrete latents, but the latent "
            f"'{name}' is continuous, and that of a density is a point: leave it out, or estimate "
            f"the site as a parameter (integrate={{'{name}': None}})."
        )
    for name in alone if anneal else []:
        raise ValueError(
            f"anneal=... flattens the posterior of latents that are summed over, but '{name}' is "
            "continuous; leave it out and use restarts=... instead."
        )
