"""The schemes of acceleration by the names that a user gives them."""

from typing import Any

from ember.inference.iteration.acceleration.alternating import Alternating
from ember.inference.iteration.acceleration.anderson import Anderson
from ember.inference.iteration.acceleration.em_map import Scheme
from ember.inference.iteration.acceleration.lbfgs import Lbfgs
from ember.inference.iteration.acceleration.plain import Plain
from ember.inference.iteration.acceleration.squarem import Squarem
from ember.inference.plan.plan import Plan

__all__ = ["SCHEMES", "scheme_for"]


SCHEMES: dict[str | None, Scheme[Any]] = {
    None: Plain(),
    "auto": Alternating((Squarem(), Lbfgs())),
    "squarem": Squarem(),
    "anderson": Anderson(),
    "lbfgs": Lbfgs(),
}

# Of few parameters the expected log joint shows the curvature, and steps soon the rest of it.
FEW = 48  # entries of parameters
INFORMED = Alternating((Lbfgs(informed=True), Squarem()))


def scheme_for(name: str | None, plan: Plan) -> Scheme[Any]:
    """The scheme of a name for one plan; that of ``"auto"`` depends on what is latent.

    Where all that is latent is Gaussian, the objective is smooth, and has a single top as a rule.
    """
    gaussian = plan.components and not plan.structure.latent and not plan.conjugate
    sizes = (p.shape.numel() for p in plan.structure.parameters.values())
    return INFORMED if name == "auto" and gaussian and sum(sizes) <= FEW else SCHEMES[name]
