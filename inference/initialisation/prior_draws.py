"""A start drawn from the model's own priors."""

import warnings

import torch
from pyro import poutine, validation_enabled
from torch import Tensor

from ember.inference.inputs.shelter import Promoted
from ember.inference.plan.plan import Plan
from ember.inference.reading.trace import TraceNode, typed

__all__ = ["check_priors", "draw_from_priors"]


def check_priors(plan: Plan) -> None:
    """Refuses a model with a parameter that has no prior to draw from.

    Raises:
        ValueError: Naming the parameter and the remedy.
    """
    for name, parameter in plan.structure.parameters.items():
        if not parameter.has_prior:
            raise ValueError(_no_draw(name, "is a pyro.param statement, which has no prior"))

        # An improper prior refuses to be sampled: see ``draw_from_priors``.


def draw_from_priors(plan: Plan) -> dict[str, Tensor]:
    """One run of the model with every parameter drawn from its prior.

    Raises:
        ValueError: If a parameter has no prior, or one that cannot be drawn from.
    """
    check_priors(plan)
    structure = plan.structure
    current = ""

    class _Watch(poutine.messenger.Messenger):
        """Remembers the parameter that is being drawn; skips latents, whose values do not count."""

        def _pyro_sample(self, msg: TraceNode) -> None:
            nonlocal current
            if msg["name"] in structure.parameters:
                current = msg["name"]
            elif not msg["is_observed"] and getattr(msg["fn"], "has_enumerate_support", False):
                msg["value"] = msg["fn"].enumerate_support(expand=False)[0]
                msg["done"] = True

    with (
        warnings.catch_warnings(),
        validation_enabled(False),
        poutine.block(),
        _Watch(),
        Promoted(),
        poutine.trace() as tracer,
    ):
        warnings.simplefilter("ignore")  # a single draw of a Wishart may be called singular
        try:
            structure.model(*structure.arguments.args, **structure.arguments.kwargs)
        except NotImplementedError as error:
            raise ValueError(_no_draw(current, "has an improper prior")) from error
    drawn, nodes = {}, typed(tracer.trace).nodes
    for name, parameter in structure.parameters.items():
        value = nodes[name]["value"].detach().to(torch.float64)
        inside = torch.as_tensor(parameter.support.check(value)).all()
        # A draw of a vague prior may round to the edge of its support (a Gamma to 0).
        drawn[name] = value.clone() if bool(inside) else parameter.start.clone()
    return drawn


def _no_draw(name: str, why: str) -> str:
    return (
        f"init='prior' draws every parameter from its prior, but parameter '{name}' {why}; choose "
        "another init, or give the parameter a proper prior."
    )
