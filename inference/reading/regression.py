"""Normal regression in exponential-family form: weighted least squares for its coefficients."""

import torch
from torch import Tensor

from ember.inference import families
from ember.inference.reading.affine import AffineMap
from ember.inference.reading.parameter_maps import ArgumentMap
from ember.inference.rules import rate_slot
from ember.inference.slots import Form, Slot

__all__ = ["regression"]


def regression(location: AffineMap, scale: ArgumentMap) -> Form | str:
    """The form of ``Normal(x @ beta + offset, scale)``, or the reason why there is none.

    A scale that varies by known factors weighs the rows, as in weighted least squares.
    """
    bound = rate_slot(scale, -2.0)
    if isinstance(bound, str):
        return bound
    rate, rate_index, factor = bound
    slot = Slot("coefficients", location.table, "identity", 1.0, torch.zeros(0))
    features, offset = location.features, location.offset

    def statistics(y: Tensor, reference: Tensor | float) -> tuple[Tensor, Tensor | None]:
        residual = (y - offset).unsqueeze(-1)
        shape = torch.broadcast_shapes(residual.shape[:-1], features.shape[:-1], factor.shape)
        width = features.shape[-1]
        both = torch.cat([features.expand(*shape, width), residual.expand(*shape, 1)], -1)
        weighted = both * factor.sqrt().unsqueeze(-1)
        base = (
            None if bool((factor == 1.0).all()) else 0.5 * families.safe_log(factor).expand(shape)
        )
        return families.Regression.statistics(weighted), base

    return Form(families.Regression(), (slot, rate), (location.index, rate_index), statistics)
