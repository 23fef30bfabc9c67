"""What is known of some latents, in the responsibilities of a start."""

from collections.abc import Mapping

import scipy.optimize
import torch
from torch import Tensor

from ember.inference.numerics.shapes import prepend_dims
from ember.inference.plan.plan import Plan

__all__ = ["with_known"]


def with_known(plan: Plan, responsibilities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Responsibilities ``(*plates, K)`` that are certain where a latent was observed.

    A start numbers its clusters at will: they are renumbered to agree best with what is known.
    """
    certain = dict(responsibilities)
    owner = {symbol: name for name, symbol in plan.latent_symbols.items()}
    for channel in filter(plan.structure.is_channel, plan.structure.observed):
        names = [owner[s] for s in plan.sites[channel].layout.outer if s in owner]
        latents = [name for name in names if _shows(plan, channel, name)]
        if len(latents) == 1 and latents[0] in certain:
            (latent,) = latents
            certain[latent] = _agreeing(plan, channel, latent, certain[latent])
    return certain


def _shows(plan: Plan, channel: str, latent: str) -> bool:
    names = {f"{name}_observed" for name in plan.structure.own_names(latent)}
    return not names.isdisjoint(plan.structure.own_names(channel))


def _agreeing(plan: Plan, channel: str, latent: str, soft: Tensor) -> Tensor:
    """The responsibilities of one latent, known entries certain."""
    site, plates = plan.sites[channel], plan.places(latent)
    full = [plan.sizes[s] if s in plates else 1 for s in site.layout.outer]

    def over_plates(tensor: Tensor) -> Tensor:
        moved = prepend_dims(tensor, len(full)).expand(full)
        order = [site.layout.outer.index(s) for s in plates]
        rest = [i for i in range(len(full)) if i not in order]
        return moved.permute(*order, *rest).reshape([plan.sizes[s] for s in plates])

    codes = over_plates(site.value)
    known = over_plates(torch.ones((), dtype=torch.bool) if site.mask is None else site.mask)
    exact = torch.nn.functional.one_hot(codes, soft.shape[-1]).to(soft.dtype)
    overlap = exact[known].T @ soft[known]
    order = scipy.optimize.linear_sum_assignment(-overlap.cpu().numpy())[1]
    return torch.where(known.unsqueeze(-1), exact, soft[..., torch.as_tensor(order)])
