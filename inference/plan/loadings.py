"""Latents of fixed spread that parameters multiply: factors, whose loadings may take up a scale."""

import math
from dataclasses import dataclass

import torch

from ember.inference.factors.tied import TieKey
from ember.inference.families.regression import Regression
from ember.inference.plan.plan import Plan

__all__ = ["Loadings", "loadings_of"]


@dataclass(frozen=True)
class Loadings:
    """A latent with a fixed prior whose entries are read as features alone.

    Attributes:
        latent: The latent.
        count: The number of its events.
        columns: For everything tied that reads it, the column of each entry of an event among the
            features.
    """

    latent: str
    count: int
    columns: dict[TieKey, tuple[int, ...]]


def loadings_of(plan: Plan) -> tuple[Loadings, ...]:
    """The latents of a plan whose scale, and correlation, loadings may take up.

    Every column reads every row once, so that the products of latents are in its statistics.
    """
    whole = [component for component in plan.components if component.is_whole]
    found = (_loadings(plan, name) for component in whole for name in component.latents)
    return tuple(each for each in found if each is not None)


def _loadings(plan: Plan, name: str) -> Loadings | None:
    latent = plan.sites[name]
    if latent.density is None or not latent.density.is_constant or latent.mask is not None:
        return None
    if len(latent.slots) > 1 and any(slot.latent != name for slot in latent.slots):
        return None
    size = math.prod(latent.value.shape[latent.value.dim() - latent.event_dim :])
    columns: dict[TieKey, tuple[int, ...]] = {}
    for site in plan.sites.values():
        slots = [slot for slot in site.slots if slot.latent == name]
        if site is latent or not slots:
            continue
        own = plan.tied[plan.ties[site.name]]
        if any(slot.column is None for slot in slots) or not isinstance(own.family, Regression):
            return None
        places = [slot.entries % size for slot in slots]
        if any(bool((place != place.reshape(-1)[0]).any()) for place in places):
            return None
        by_place = {int(p.reshape(-1)[0]): s.column for p, s in zip(places, slots, strict=True)}
        if by_place.keys() != {*range(size)} or len(slots) != size:
            return None
        if any(not _is_one(slot.coefficient) for slot in slots):
            return None
        found = tuple(column for _, column in sorted(by_place.items()) if column is not None)
        if columns.setdefault(own.key, found) != found:
            return None
    return Loadings(name, latent.value.numel() // size, columns) if columns else None


def _is_one(coefficient: torch.Tensor) -> bool:
    return bool((coefficient == 1.0).all())
