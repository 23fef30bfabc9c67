"""The schemes of acceleration by the names that a user gives them."""

from typing import Any

from ember.inference.iteration.acceleration.alternating import Alternating
from ember.inference.iteration.acceleration.anderson import Anderson
from ember.inference.iteration.acceleration.em_map import EMMap, Scheme
from ember.inference.iteration.acceleration.lbfgs import Lbfgs
from ember.inference.iteration.acceleration.louis import Louis
from ember.inference.iteration.acceleration.newton import Newton
from ember.inference.iteration.acceleration.plain import Plain
from ember.inference.iteration.acceleration.squarem import Squarem
from ember.inference.maximisation.information import MOST_PARAMETERS
from ember.inference.plan.plan import Plan

__all__ = ["SCHEMES", "scheme_for"]


SCHEMES: dict[str | None, Scheme[Any]] = {
    None: Plain(),
    "auto": Alternating((Squarem(), Lbfgs()), turns=(20, 120, 40)),
    "squarem": Squarem(),
    "anderson": Anderson(),
    "lbfgs": Lbfgs(),
}

# Of few parameters the expected log joint shows the curvature, and steps soon the rest of it.
FEW = 48  # entries of parameters
FEW_STEPS = 10  # that are remembered where steps of the past soon mislead
# Where a parameter multiplies a latent, or is the shape of its prior, ridges and variances that
# vanish are usual.
RIDGES = Alternating((Squarem(), Lbfgs(memory=FEW_STEPS)))
INFORMED = Alternating((Lbfgs(informed=True, memory=FEW_STEPS), Squarem()))
GRADIENTS = Alternating((Lbfgs(), Squarem()), turns=(120, 40))
MIXTURE = Alternating((Squarem(), Newton(), Lbfgs(), Squarem(), Lbfgs()), turns=(6, 40, 120, 40))
LARGE_MIXTURE = Alternating(
    (Squarem(), Lbfgs(warm_up=0, informed=True), Squarem(), Lbfgs()), turns=(10, 120, 40)
)
INFORMATION = Alternating((Louis(), Lbfgs(), Squarem()))


def scheme_for(name: str | None, plan: Plan, em: EMMap | None = None) -> Scheme[Any]:
    """The scheme of a name for one plan; that of ``"auto"`` depends on what is latent.

    Where there is a closed form of what latents hide, Newton's steps end the long way of SQUAREM,
    and where there is a sketch of it, L-BFGS begins with that.

    Where all that is latent is Gaussian, with known coefficients, the objective is smooth, and has
    a single top as a rule.
    With latents of units an M-step takes many passes over the rows, and where each unit says much
    about its own latents, EM moves what they share slowly. So "auto" begins with Newton's steps
    there if these units alone are latent and parameters few, and else with gradients.

    Args:
        name: The name.
        plan: The plan.
        em: The map of the plan, which may know the information that the latents hide.
    """
    count = sum(parameter.shape.numel() for parameter in plan.structure.parameters.values())
    if name != "auto":
        return SCHEMES[name]
    discrete = plan.structure.latent or plan.conjugate
    if em is not None and em.missing is not None:
        return MIXTURE
    if em is not None and em.sketch is not None:
        return LARGE_MIXTURE
    if plan.units:
        others = discrete or plan.components or plan.has_gaps
        return GRADIENTS if others or count > MOST_PARAMETERS else INFORMATION
    if plan.conjugate:
        return RIDGES
    if not plan.components or discrete:
        return SCHEMES[name]
    return RIDGES if count > FEW or _has_factors(plan) else INFORMED


def _has_factors(plan: Plan) -> bool:
    """Whether a parameter multiplies a latent."""
    return any(slot.column is not None for site in plan.sites.values() for slot in site.slots)
