"""Well-conditioned directions for numerical updates: what Newton and L-BFGS walk along.

The coefficients of a linear predictor are moved in the coordinates of its design
(``numerics/design.py``): in a Poisson regression on years intercept and slope make a valley so
narrow that no method finds its floor, while centred and orthogonal features make a round one.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.numerics.design import frame_of, joint_coordinates
from ember.inference.parameters.affine_map import AffineMap, ParameterEntries
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.parameters.parameter import Parameter
from ember.inference.plan.plan import Plan
from ember.inference.reading.site import Site

__all__ = ["Design", "designs_of", "directions"]

Design = tuple[ParameterEntries, Tensor]  # the coefficients of each row, and a root of the products


def directions(
    parameters: Mapping[str, Parameter], designs: Sequence[Design], names: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Directions, one a column, in the free coordinates of the named parameters, ``(P, P)``.

    The second result, ``(P,)``, marks those in which coefficients change no linear predictor, as
    where a column of the design is a multiple of another.
    """
    places = Coordinates({name: parameters[name] for name in names}).slices()
    count = sum(len(own) for own in places.values())
    # Coefficients that stay where they are come last, and are dropped.
    total, joined = count, []
    for table, determined in designs:
        if {*names}.isdisjoint(table.sources):
            continue
        own = []
        for source in table.sources:
            size = parameters[source].shape.numel()
            own.append(
                places[source]
                if source in names
                else total + torch.arange(size, device=places[names[0]].device)
            )
            total += 0 if source in names else size
        entries = torch.tensor(table.entries, device=determined.device)
        joined.append((determined, torch.cat(own)[entries]))
    if not joined:
        one = torch.eye(count, dtype=torch.float64, device=places[names[0]].device)
        return one, one.new_zeros(count, dtype=torch.bool)
    matrix, seen_along = joint_coordinates(joined, total)
    entries = torch.cat([own.reshape(-1) for _, own in joined])
    unseen = torch.stack([(columns == 0.0).all(0).all(0) for columns in seen_along]).all(0)
    unseen &= matrix.new_zeros(total, dtype=torch.bool).index_fill_(0, entries, True)
    return matrix[:count, :count], unseen[:count]


def designs_of(plan: Plan) -> tuple[Design, ...]:
    """The design of every linear predictor, over the rows of all sites that have it."""
    seen: dict[ParameterEntries, list[tuple[Tensor, Tensor]]] = {}
    for name in plan.factor_and_prior_names():
        site = plan.site(name)
        if any(slot.column is not None for slot in site.slots):
            continue  # of features that are latent no design is known
        maps = {} if site.density is None else site.density.maps
        for _, found in maps.values():
            if isinstance(found, AffineMap):
                seen.setdefault(found.table, []).append(_rows(site, found))
    designs = []
    for table, rows in seen.items():
        features, weights = (torch.cat(column) for column in zip(*rows, strict=True))
        frame = frame_of(features, torch.zeros_like(weights), weights)
        designs.append((table, frame.determined))
    return tuple(designs)


def _rows(site: Site, found: AffineMap) -> tuple[Tensor, Tensor]:
    """The features of every row, and whether it counts."""
    features = found.features
    weights = features.new_ones(features.shape[:-1])
    if site.mask is not None and not found.event_dim:
        weights = weights * site.mask
    features = features.expand(*weights.shape, features.shape[-1])
    return features.reshape(-1, features.shape[-1]), weights.reshape(-1)
