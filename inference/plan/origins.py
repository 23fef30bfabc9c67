r"""Where Gaussian latents are measured from: near the data, lest digits be lost to a distance.

Where a latent carries the location of the data, as in :math:`\theta_g \sim N(\mu, \tau)`,
:math:`y_n \sim N(\theta_{g(n)}, \sigma)`, it lies as far from zero as they do, and the moments of
its prior would be small differences of large squares. So it is integrated as :math:`z = o + d`
with an origin :math:`o` that is no parameter: the constant about which its own prior lies, that of
the latents that its prior reads, or, where its prior has a location that is sought, what brings the
data that have none of their own nearest to zero, by least squares.

A latent that a parameter multiplies is measured from zero: its coefficients would have to carry the
origin along. So is one of which the prior reads an earlier entry, and the first state of a hidden
chain, behind whose entries those of the later states follow.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.numerics.shapes import append_dims
from ember.inference.reading.site import Site, Slot

__all__ = ["about_origins", "origins_of"]


MOST = 16  # numbers that are sought by least squares
ROUNDING = 1e-10  # of directions that the data leave open
Parts = Mapping[
    str, Tensor
]  # of each entry of a latent: what is known, then a share of each number


def about_origins(sites: Mapping[str, Site], origins: Mapping[str, Tensor]) -> dict[str, Site]:
    """The sites with the values that their events have where all latents are at their origins."""
    out = dict(sites)
    for name, site in sites.items():
        if any(slot.latent in origins for slot in site.slots):
            columns = {latent: each.unsqueeze(-1) for latent, each in origins.items()}
            value = site.value + _moved(site, site.slots, columns)[..., 0]
            out[name] = dataclasses.replace(site, value=value)
    return out


def origins_of(sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """The origin of every entry of the latents that have one other than zero, flat."""
    latents = {slot.latent for site in sites.values() for slot in site.slots}
    latents -= _from_zero(sites)
    free = [(n, k) for n in sites if n in latents and not _is_given(sites[n])
            for k in range(_event(sites[n]))]  # fmt: skip
    if not latents or len(free) > MOST:
        return {}
    parts: dict[str, Tensor] = {}
    for name, site in sites.items():
        if name in latents:
            parts[name] = _parts(site, parts, free)
    sought = _numbers(sites, parts, len(free))
    numbers = torch.cat([sought.new_ones(1), sought])
    origins = {name: part @ numbers for name, part in parts.items()}
    return {name: each for name, each in origins.items() if bool((each != 0.0).any())}


def _from_zero(sites: Mapping[str, Site]) -> set[str]:
    """The latents that are measured from zero, with all that meet them in a site."""
    groups = [{slot.latent for slot in site.slots} for site in sites.values() if site.slots]
    gone = set[str]()
    for name, site in sites.items():
        own = sum(slot.latent == name for slot in site.slots)
        back = own > 0 and own != site.draw_shape.numel()
        on = any(int(s.entries.max()) >= sites[s.latent].value.numel() for s in site.slots)
        if back or on or site.density is None or any(s.column is not None for s in site.slots):
            gone.update(slot.latent for slot in site.slots)
    while more := [group for group in groups if group & gone and group - gone]:
        gone.update(*more)
    return gone


def _event(site: Site) -> int:
    """How many entries an event of a latent has, independent ones among them."""
    return site.value.shape[site.value.dim() - site.event_dim :].numel()


def _is_given(site: Site) -> bool:
    """Whether the location of a site, latents at zero, is known."""
    assert site.density is not None
    return site.density.maps["loc"][1].is_constant


def _moved(site: Site, slots: Sequence[Slot], parts: Parts) -> Tensor:
    """What the events of a site are moved by, ``(*batch, *event, columns)``."""
    event = 0 if site.form is None else site.form.event_dim
    total = site.value.new_zeros(1, dtype=torch.float64)
    for slot in slots:
        if slot.latent in parts:
            each = parts[slot.latent][slot.entries]
            each = each.reshape(*slot.entries.shape, *(1,) * event, each.shape[-1])
            total = total + slot.coefficient.unsqueeze(-1) * each
    return total


def _parts(site: Site, parts: Parts, free: Sequence[tuple[str, int]]) -> Tensor:
    """The origin of a latent's entries, ``(entries, columns)``, given those that it reads."""
    others = [slot for slot in site.slots if slot.latent != site.name]
    columns = 1 + len(free)
    none = site.value.new_zeros((*site.value.shape, columns), dtype=torch.float64)
    out = none - _moved(site, others, parts)
    if _is_given(site):
        location = _location(site)
        # Any origin will do: where classes have locations of their own, one amid them.
        beyond = tuple(range(location.dim() - site.value.dim()))
        out[..., 0] += location.mean(beyond) if beyond else location
    out = out.reshape(-1, columns)
    for i, (name, k) in enumerate(free):
        if name == site.name:
            out[k :: _event(site), 1 + i] += 1.0
    return out


def _location(site: Site) -> Tensor:
    """The location of a site where it is known."""
    assert site.density is not None
    return site.density.maps["loc"][1].evaluate({})


def _numbers(sites: Mapping[str, Site], parts: Parts, count: int) -> Tensor:
    """The numbers that bring the data nearest to what is known of their location."""
    like = next(iter(parts.values()))
    squares, products = like.new_zeros(count, count), like.new_zeros(count)
    for left, shares in _data(sites, parts):
        squares, products = squares + shares.mT @ shares, products - shares.mT @ left
    scale = squares.diagonal().sqrt()
    scale = torch.where(scale > 0.0, scale, 1.0)
    inverse = torch.linalg.pinv(squares / scale / scale.unsqueeze(-1), rtol=ROUNDING)
    numbers: Tensor = inverse @ (products / scale) / scale
    return numbers


def _data(sites: Mapping[str, Site], parts: Parts) -> Iterator[tuple[Tensor, Tensor]]:
    """For each site without a location of its own what is left of it, and the numbers' shares."""
    for name, site in sites.items():
        slots = [slot for slot in site.slots if slot.latent in parts]
        if name in parts or not slots or not _is_given(site):
            continue
        moved = _moved(site, slots, parts)
        left = site.value - _location(site) + moved[..., 0]
        shown = left.isfinite()
        if site.mask is not None:
            event = 0 if site.form is None else site.form.event_dim
            shown = shown & append_dims(site.mask, event)
        if site.missing is not None:
            shown = shown & ~site.missing
        left, shown = torch.broadcast_tensors(left, shown)
        shares = moved[..., 1:].expand(*left.shape, moved.shape[-1] - 1)
        yield left[shown], shares[shown]
