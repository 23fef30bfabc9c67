"""Well-conditioned directions for numerical updates: what Newton and L-BFGS walk along.

The coefficients of a linear predictor are moved in the coordinates of its design (``design.py``):
in a Poisson regression on years intercept and slope make a valley so narrow that no method finds
its floor, while centred and orthogonal features make a round one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.inference.coordinates import Coordinates
from ember.inference.design import frame_of, joint_coordinates
from ember.inference.factors import Site
from ember.inference.plan import Plan
from ember.inference.reading.affine import AffineMap, CoefficientTable

__all__ = ["directions"]


def directions(plan: Plan, names: Sequence[str], coordinates: Coordinates) -> tuple[Tensor, Tensor]:
    """Directions, one a column, in the free coordinates of the named parameters, ``(P, P)``.

    Also marks those that change nothing, ``(P,)``, as columns that determine one another leave
    open: slope and curvature along them are rounding, and lead as far as to lose all digits.
    """
    key = f"directions of {', '.join(names)}"
    if key not in plan.notes:
        plan.notes[key] = _directions(plan, names, coordinates)
    found: tuple[Tensor, Tensor] = plan.notes[key]
    return found


def _directions(
    plan: Plan, names: Sequence[str], coordinates: Coordinates
) -> tuple[Tensor, Tensor]:
    places = coordinates.slices()
    count = sum(len(own) for own in places.values())
    seen: dict[CoefficientTable, list[tuple[Tensor, Tensor]]] = {}
    for name in plan.factor_and_prior_names():
        site = plan.site(name)
        maps = {} if site.density is None else site.density.maps
        for _, found in maps.values():
            if isinstance(found, AffineMap) and not {*names}.isdisjoint(found.sources):
                seen.setdefault(found.table, []).append(_rows(site, found))
    # Coefficients that stay where they are come last, and are dropped.
    total, designs = count, []
    for table, rows in seen.items():
        own = []
        for source in table.sources:
            size = plan.structure.parameters[source].shape.numel()
            own.append(places[source] if source in names else total + torch.arange(size))
            total += 0 if source in names else size
        features, weights = (torch.cat(column) for column in zip(*rows, strict=True))
        frame = frame_of(features, torch.zeros_like(weights), weights)
        designs.append((frame.determined, torch.cat(own)[torch.tensor(table.entries)]))
    if not designs:
        return torch.eye(count, dtype=torch.float64), torch.zeros(count, dtype=torch.bool)
    along, columns = joint_coordinates(designs, total)
    along = along[:count, :count]
    idle = torch.stack([(each == 0.0).flatten(0, 1).all(0) for each in columns]).all(0)[:count]
    for name in names:
        if not _only_in_designs(plan, name):
            idle = idle & (along[places[name]] == 0.0).all(0)
    return along, idle


def _only_in_designs(plan: Plan, name: str) -> bool:
    """Whether a parameter enters nothing but linear predictors, not even a prior of its own."""
    if name in plan.priors:
        return False
    for site in plan.factor_and_prior_names():
        if name not in plan.dependencies(site):
            continue
        density = plan.site(site).density
        if density is None:
            return False
        used = [found for _, found in density.maps.values() if name in found.sources]
        if not used or not all(isinstance(found, AffineMap) for found in used):
            return False
    return True


def _rows(site: Site, found: AffineMap) -> tuple[Tensor, Tensor]:
    """The features of every row, and whether it counts."""
    features = found.features
    weights = torch.ones(features.shape[:-1], dtype=torch.float64)
    if site.mask is not None and not found.event_dim:
        weights = weights * site.mask
    features = features.expand(*weights.shape, features.shape[-1])
    return features.reshape(-1, features.shape[-1]), weights.reshape(-1)
