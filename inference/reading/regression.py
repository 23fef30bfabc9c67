"""Normal regression in exponential-family form: weighted least squares for its coefficients."""

import torch
from torch import Tensor

from ember.inference.design import Frame
from ember.inference.families import Regression, safe_log
from ember.inference.reading.affine import AffineMap
from ember.inference.reading.parameter_maps import ArgumentMap
from ember.inference.rules import rate_slot
from ember.inference.slots import Form, Slot

__all__ = ["regression"]


def regression(location: AffineMap, scale: ArgumentMap) -> Form | str:
    """The form of ``Normal(x @ beta + offset, scale)``, or the reason why there is none.

    A scale that varies by known factors weighs the rows, as in weighted least squares; one that is
    known altogether is such a factor of a scale of one.
    """
    bound = rate_slot(scale, -2.0)
    if isinstance(bound, str):
        return bound
    rate, rate_index, factor = bound
    if rate.table is None:
        factor = factor * rate.constants[rate_index]
        rate = Slot("rate", None, "constant", 1.0, torch.ones(1))
        rate_index = torch.zeros_like(rate_index[(slice(0, 1),) * rate_index.dim()])
    slot = Slot("coefficients", location.table, "identity", 1.0, torch.zeros(0))
    features, offset = location.features, location.offset
    width = features.shape[-1]

    def rows(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        residual = y - offset
        shape = torch.broadcast_shapes(residual.shape, features.shape[:-1], factor.shape)
        return features.expand(*shape, width), residual.expand(shape), factor.expand(shape)

    def statistics(y: Tensor, reference: "Frame | Tensor | float") -> tuple[Tensor, Tensor | None]:
        x, residual, weights = rows(y)
        if isinstance(reference, Frame):
            x = reference.features(features)
            residual = residual - x @ reference.line
            x = x.expand(*residual.shape, width)
        both = torch.cat([x, residual.unsqueeze(-1)], -1) * weights.sqrt().unsqueeze(-1)
        base = None if bool((factor == 1.0).all()) else 0.5 * safe_log(weights)
        return Regression.statistics(both), base

    return Form(
        Regression(), (slot, rate), (location.index, rate_index), statistics, design=rows
    )
