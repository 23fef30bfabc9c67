"""Guides in files: those that ``SVI`` makes from a name are made again, with what they learnt."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor

from ember.inference.inputs.arguments import Model
from ember.inference.plan.plan import Plan
from ember.inference.variational.guided_latents import with_guided_latents
from ember.inference.variational.guides import LearntGuide, make_guide

__all__ = ["GuideRecord", "MissingGuide", "copied", "guide_of", "record_of_guide"]


@dataclass(frozen=True, eq=False)
class GuideRecord:
    """What a guide is made from again.

    Attributes:
        choice: The name by which it was chosen; None of a guide that is not saved.
        is_delta: Whether it is a point.
        values: The learnt values of its parameters, and of the model's.
        covered: The continuous latents that it draws.
        on_nodes: Those of them that would be on nodes if it did not.
    """

    choice: str | None
    is_delta: bool
    values: Mapping[str, Tensor] = field(default_factory=dict)
    covered: tuple[str, ...] = ()
    on_nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MissingGuide:
    """Stands for a guide that was not saved.

    Attributes:
        is_delta: Whether it was a point.
    """

    is_delta: bool
    covered: tuple[str, ...] = ()
    choice: None = None

    def draw(self, n: int) -> NoReturn:
        """Says that there is nothing to draw from."""
        raise ValueError(
            "the guide of this fit is not in the file that it was loaded from: guides of one's own "
            "are not saved, and none is without the data; fit again to draw from it."
        )


def record_of_guide(guide: LearntGuide | MissingGuide, data: bool) -> GuideRecord:
    """The record of a guide; of one of the user's own, and without data, that there was one."""
    if not data or guide.choice is None or isinstance(guide, MissingGuide):
        return GuideRecord(None, guide.is_delta)
    return GuideRecord(guide.choice, guide.is_delta, guide.values, guide.covered, guide.latents)


def guide_of(record: GuideRecord, plan: Plan | None) -> LearntGuide | MissingGuide:
    """The guide of a record, over the model of a plan if there is one."""
    if record.choice is None or plan is None:
        return MissingGuide(record.is_delta)
    guided = with_guided_latents(plan, record.on_nodes)
    start = guided.structure.start
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
