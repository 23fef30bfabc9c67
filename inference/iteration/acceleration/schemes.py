"""The schemes of acceleration by the names that a user gives them."""

from typing import Any

from ember.inference.iteration.acceleration.alternating import Alternating
from ember.inference.iteration.acceleration.anderson import Anderson
from ember.inference.iteration.acceleration.em_map import Scheme
from ember.inference.iteration.acceleration.lbfgs import Lbfgs
from ember.inference.iteration.acceleration.louis import Louis
from ember.inference.iteration.acceleration.plain import Plain
from ember.inference.iteration.acceleration.squarem import Squarem
from ember.inference.maximisation.information import MOST_PARAMETERS
from ember.inference.plan.plan import Plan

__all__ = ["SCHEMES", "scheme_for"]


SCHEMES: dict[str | None, Scheme[Any]] = {
    None: Plain(),
    "auto": Alternating((Squarem(), Lbfgs())),
    "squarem": Squarem(),
    "anderson": Anderson(),
    "lbfgs": Lbfgs(),
}
GRADIENTS = Alternating((Lbfgs(), Squarem()))
INFORMATION = Alternating((Louis(), Lbfgs(), Squarem()))


def scheme_for(name: str | None, plan: Plan) -> Scheme[Any]:
    """The scheme of a name.

    With latents of units an M-step takes many passes over the rows, and where each unit says much
    about its own latents, EM moves what they share slowly. So "auto" begins with Newton's steps
    there if these units alone are latent and parameters few, and else with gradients.
    """
    if name != "auto" or not plan.units:
        return SCHEMES[name]
    others = plan.structure.latent or plan.components or plan.conjugate or plan.has_gaps
    sizes = [parameter.shape.numel() for parameter in plan.structure.parameters.values()]
    return GRADIENTS if others or sum(sizes) > MOST_PARAMETERS else INFORMATION
