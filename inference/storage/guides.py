"""Guides in files: those that ``SVI`` makes from a name are made again, with what they learnt."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.inputs.arguments import Model
from ember.inference.plan.plan import Plan
from ember.inference.variational.guided_latents import with_guided_latents
from ember.inference.variational.guides import LearntGuide, make_guide

__all__ = ["GuideRecord", "copied", "guide_of", "record_of_guide"]


@dataclass(frozen=True, eq=False)
class GuideRecord:
    """What a guide is made from again.

    Attributes:
        choice: The name by which it was chosen.
        values: The learnt values of its parameters, and of the model's.
        covered: The continuous latents that it draws.
        on_nodes: Those of them that would be on nodes if it did not.
    """

    choice: str
    values: Mapping[str, Tensor]
    covered: tuple[str, ...]
    on_nodes: tuple[str, ...]


def record_of_guide(guide: LearntGuide) -> GuideRecord | None:
    """The record of a guide; None of one of the user's own, of which only its code knows."""
    if guide.choice is None:
        return None
    return GuideRecord(guide.choice, guide.values, guide.covered, guide.latents)


def guide_of(record: GuideRecord, plan: Plan) -> LearntGuide:
    """The guide of a record, over the model of a plan."""
    guided = with_guided_latents(plan, record.on_nodes)
    start = {name: p.start for name, p in guided.structure.parameters.items()}
    shapes = guided.structure.gaussian
    covered = {
        name: start[name] if name in start else torch.zeros(shapes[name]) for name in record.covered
    }
    guide = make_guide(record.choice, guided, start, covered)
    if isinstance(guide, torch.nn.Module):
        _set_plain_parameters(guide, record.values)
    return LearntGuide(guide, record.values, guided, record.on_nodes, record.choice)


def _set_plain_parameters(guide: torch.nn.Module, values: Mapping[str, Tensor]) -> None:
    """Sets those parameters of a module that Pyro takes from the module and not from its store."""
    with torch.no_grad():
        for name, parameter in guide.named_parameters(prefix=type(guide).__name__):
            if name in values:
                parameter.copy_(values[name])


def copied(model: Model) -> Model:
    """A module as ``SVI`` trains it: the user's own stays as it is."""
    return copy.deepcopy(model).double() if isinstance(model, torch.nn.Module) else model
