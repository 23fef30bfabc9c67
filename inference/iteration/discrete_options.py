"""Options that are about discrete latents, asked of a plan whose latents are all Gaussian."""

from collections.abc import Sequence

from ember.inference.plan.plan import Plan

__all__ = ["check_discrete_options"]


def check_discrete_options(plan: Plan, assignment: str, anneal: Sequence[float]) -> None:
    """Refuses hard assignment and annealing where there is no discrete latent.

    Beside discrete latents both are meant: Gaussian latents stay integrated, and the discrete ones
    take their most probable value, or have their posterior flattened.

    Raises:
        ValueError: Naming the Gaussian latent.
    """
    if not plan.components or plan.latent_symbols:
        return
    name = next(iter(plan.structure.gaussian))
    only = f"but the model's latents, such as '{name}', are Gaussian and are integrated exactly"
    if assignment == "hard":
        raise ValueError(
            f"assignment='hard' gives discrete latents their most probable value, {only}; leave it "
            "out."
        )
    if anneal:
        raise ValueError(
            f"anneal=... flattens the posterior of discrete latents, {only}; leave it out and use "
            "restarts=... instead."
        )
