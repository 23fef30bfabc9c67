"""Where a guide over Gaussian latents starts: at their posterior given the start."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ember.inference.plan.plan import Plan
from ember.inference.queries.gaussian.moments import ComponentPosterior, entries_of

__all__ = ["gaussian_starts"]


def gaussian_starts(
    plan: Plan, start: Mapping[str, Tensor], integrated: Collection[str] = ()
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of every Gaussian latent that a guide is to cover.

    Args:
        plan: The plan.
        start: The start of the parameters.
        integrated: Latents to be integrated out instead.

    Raises:
        ValueError: If one of two latents that depend on each other is to be integrated out.
    """
    found = {}
    for component in plan.components:
        kept = [name for name in component.latents if name not in integrated]
        if not kept:
            continue
        if len(kept) < len(component.latents):
            other = next(name for name in component.latents if name in integrated)
            raise ValueError(
                f"integrate asks for the Gaussian latent '{other}' but not for '{kept[0]}', on "
                "which it depends; name both or neither."
            )
        posterior = ComponentPosterior.of(plan, start, component)
        every = torch.arange(component.count)
        deviation = posterior.covariances(every, every).sqrt()
        for name in component.latents:
            entries = entries_of(plan, component, [name])
            found[name] = posterior.mean[entries], deviation[entries]
    return found
