"""Sites with the latent with a conjugate prior that they read, their form with weights of events.

A latent's own prior counts whatever masks hide: what it integrates to beside masked sites is one.
"""

import dataclasses

import torch

from ember.inference.families.conjugate_latents import conjugate_family
from ember.inference.families.rates import Rate
from ember.inference.families.superposition import SuperposedForm
from ember.inference.families.weighted import with_weights
from ember.inference.numerics.distribution import Distribution
from ember.inference.reading.site import ConjugateSlot, Site

__all__ = ["conjugate_site"]


def conjugate_site(site: Site, slot: ConjugateSlot | None, own: Distribution | None) -> Site:
    """A site with its slot; without one as it is.

    Args:
        site: The site as it is where the latents change nothing.
        slot: What it reads.
        own: Of a latent itself the prior without its wrappers, else None.
    """
    if own is not None:
        return _prior(site, own)
    if slot is None:
        return site
    if _has_gaps(site):
        reason = "rows that are missing in part have no weighted sufficient statistics"
        return dataclasses.replace(site, form=None, reason=reason, conjugate=slot)
    if site.form is None or isinstance(site.form, SuperposedForm):
        reason = site.reason or "a superposition times a latent has no closed form"
        return dataclasses.replace(site, form=None, reason=reason, conjugate=slot)
    return dataclasses.replace(site, form=with_weights(site.form), conjugate=slot)


def _has_gaps(site: Site) -> bool:
    """Whether vectors are missing in part."""
    event = site.event_dim - site.layout.inner
    if site.missing is None or not event:
        return False
    gone = site.missing.flatten(site.missing.dim() - event)
    return bool((gone.any(-1) & ~gone.all(-1)).any())


def _prior(site: Site, own: Distribution) -> Site:
    """A latent by its own prior; only that of a known shape has sufficient statistics."""
    family = conjugate_family(own)
    assert family is not None
    event = site.draw_shape
    batch = site.value.shape[: site.value.dim() - len(event)]
    first = torch.arange(batch.numel()).reshape(batch) * event.numel()
    form = site.form if site.form is not None and isinstance(site.form.family, Rate) else None
    return dataclasses.replace(
        site,
        form=form,
        reason=site.reason or "its parameters have no closed form",
        mask=None,
        conjugate=ConjugateSlot(site.name, first, family),
    )
