r"""How large the variance of a Gaussian latent may be, as the data show before any fit.

A latent that sites read with known coefficients :math:`c` may be responsible for half of the spread
of what it moves, :math:`\sum c^2 v = s^2 / 2`, whatever the units of the data; one that another
latent lies about may vary as much as that does. One whose prior has no parameter in its scale has
the variance of the prior.
"""

import torch

from ember.inference.factors.gaussian.component import GaussianComponent
from ember.inference.numerics.shapes import append_dims
from ember.inference.plan.origins import about_origins
from ember.inference.plan.plan import Params, Plan
from ember.inference.reading.site import Site

__all__ = ["usual_variances"]


LEAST = 1e-8  # of the size of data that are all the same


def usual_variances(plan: Plan, component: GaussianComponent, params: Params) -> dict[str, float]:
    """The variance that each latent of a component may have; data first, then what they move.

    Args:
        plan: The plan.
        component: The component.
        params: Where priors without parameters are asked for their variance.
    """
    found: dict[str, float] = {}
    sites = about_origins(plan.sites, plan.origins)
    members = [site for name, site in sites.items() if name in component.sites]
    for site in reversed(members):  # data stand below the latents that they read
        spread = _spread(site) if site.name not in component.latents else None
        if site.name in component.latents:
            fixed = _prior_variance(site, params)
            if fixed is not None:
                found[site.name] = fixed
            spread = found.setdefault(site.name, 1.0)
        others = [s for s in site.slots if s.column is None and s.latent != site.name]
        total = sum(float(s.coefficient.square().mean()) for s in others)
        for slot in others:
            if site.name in component.latents:  # the steps of a walk must not halve it each time
                size = float(slot.coefficient.square().mean())
                share = (spread or 1.0) / size if size > 0 else 1.0
            else:
                share = (spread or 1.0) / (2.0 * total) if total > 0 else 1.0
            found[slot.latent] = min(found.get(slot.latent, share), share)
    return found


def _spread(site: Site) -> float:
    """The variance of a site's data about their mean."""
    value = site.value.detach()
    shown = value.isfinite()
    if site.mask is not None:
        event = value.dim() - max(site.mask.dim(), 0)
        inside = append_dims(site.mask, max(0, min(event, site.event_dim - site.layout.inner)))
        value, shown = torch.broadcast_tensors(value, shown & inside)
    data = value[shown]
    if len(data) < 2:
        return 1.0
    variance = float(data.var(correction=0))
    return variance if variance > 0 else max(float(data.abs().max()) ** 2 * LEAST, LEAST)


def _prior_variance(site: Site, params: Params) -> float | None:
    """The variance of a prior without parameters in its scale."""
    assert site.density is not None
    _, scale = site.density.maps["scale" if "scale" in site.density.maps else "matrix"]
    if not scale.is_constant:
        return None
    fn = site.density.distribution(params)
    return float(fn.variance.mean())
