"""Emission tomography: an image seen through Poisson counts along rays.

image (P)                  (plate "pixels")
    |
    v
counts (R)                 (plate "rays")
"""

from contextlib import nullcontext
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import BoolTensor, Tensor

from ember.models.parts.checks import FLOATS, parameter_dtype
from ember.models.parts.priors import HALF_COUNT, Hyperparameters, Prior

__all__ = ["emission_tomography"]

Background = Tensor | float


def emission_tomography(
    counts: Tensor,
    system: Tensor,
    *,
    background: Background | None = None,
    prior: Prior | None = None,
) -> None:
    r"""Counts along R rays through an image of P non-negative pixels.

    Equations, with the known system matrix :math:`A \ge 0`::

        image_j  ~ Gamma(shape, rate)
        counts_i ~ Poisson(sum_j A_ij image_j + background_i)

    A_ij is how many counts along ray i a pixel j of intensity 1 is expected to give. Each count is
    a sum of hidden counts, one from each pixel, so EM's update is the classical one: with
    `objective="mle"` that of Shepp and Vardi (1982) and Lange and Carson (1984),

    .. math:: \lambda_j \leftarrow \frac{\lambda_j}{\sum_i A_{ij}}
        \sum_i \frac{A_{ij} y_i}{(A \lambda + b)_i},

    and with the prior `shape - 1` counts and an exposure of `rate` are added to each pixel's own.

    ================= ====================== =====================================================
    key of `prior`    shape it broadcasts to default
    ================= ====================== =====================================================
    `"shape"`         (P,)                   1.5: half a count, so that no pixel is at 0
    `"rate"`          (P,)                   shape / level: the pixels have this mean
    ================= ====================== =====================================================

    The level is that of the uniform image which explains all counts taken together. An image of
    expectations `m` worth `k` counts each is `prior={"shape": k, "rate": k / m}`.

    Args:
        counts: the counts (R,), of an integer or floating dtype; NaN along rays that were not
            measured. A sinogram is flattened first. Parameters have torch's default dtype where it
            is integer.
        system: the system matrix (R, P), floating and non-negative, dense or sparse; of the sparse
            layouts compressed rows (`system.to_sparse_csr()`) are the fastest.
        background: known expected counts that do not come from the image (randoms, scatter), a
            number or (R,); none unless given. It belongs to the rays: pass it again with new ones.
        prior: hyperparameters that replace the defaults, by the keys above.

    Raises:
        TypeError: if `counts` or `system` is no tensor of numbers, or `prior` no mapping.
        ValueError: if the shapes do not fit; if `counts` has infinite, negative or fractional
            values, `system` or `background` negative or not finite ones; if a count lies on a ray
            that meets no pixel and has no background; if a key of `prior` is unknown, or a
            hyperparameter outside its domain.

    References:
        L. A. Shepp and Y. Vardi (1982). Maximum likelihood reconstruction for emission tomography.
        IEEE Transactions on Medical Imaging 1, 113-122.

        K. Lange and R. Carson (1984). EM reconstruction algorithms for emission and transmission
        tomography. Journal of Computer Assisted Tomography 8, 306-316.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> system = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
        >>> trace = poutine.trace(emission_tomography).get_trace(torch.tensor([9, 5]), system)
        >>> for name in ("image", "counts"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        image (3,)
        counts (2,)
    """
    counts, observed = _check_counts(counts)
    dtype = parameter_dtype(counts)
    _check_system(system, len(counts))
    system, counts = system.to(counts.device, dtype), counts.to(dtype)
    known = _check_background(background, counts)
    if dist.is_validation_enabled():
        _check_rays(counts, system, known)
    pixels = (system.shape[1],)
    hyper = Hyperparameters(prior, ("shape", "rate"), counts)
    shape = hyper.above("shape", pixels, HALF_COUNT)
    rate = hyper.above("rate", pixels, lambda: shape / _level(counts, system, known, observed))

    with pyro.plate("pixels", *pixels):
        image = pyro.sample("image", dist.Gamma(shape, rate))
    measured = (
        nullcontext() if bool(observed.all()) else poutine.mask(mask=cast(BoolTensor, observed))
    )
    with pyro.plate("rays", len(counts)), measured:
        pyro.sample("counts", dist.Poisson(_project(system, image) + known), obs=counts)


def _project(system: Tensor, image: Tensor) -> Tensor:
    """The sums along the rays (..., R) of images (..., P)."""
    if system.layout is torch.strided:
        return image @ system.T
    columns = image.reshape(-1, image.shape[-1]).T
    return (system @ columns).T.reshape(*image.shape[:-1], system.shape[0])


def _level(counts: Tensor, system: Tensor, background: Tensor, observed: Tensor) -> Tensor:
    """The intensity of the uniform image with as many counts, half a count at least."""
    reach = _project(system, counts.new_ones(system.shape[1]))
    emitted = (counts - background)[observed].sum().clamp_min(0.5)
    total = reach[observed].sum()
    return emitted / torch.where(total > 0, total, 1.0)


def _check_counts(counts: object) -> tuple[Tensor, Tensor]:
    """Return the counts, zero where they are missing, and where they are not."""
    if not isinstance(counts, Tensor):
        raise TypeError(
            f"`counts` must be a torch.Tensor, not {type(counts).__name__}: convert it with "
            "torch.as_tensor."
        )
    if counts.is_complex() or counts.dtype == torch.bool:
        raise TypeError(f"`counts` must hold numbers, not {counts.dtype}.")
    if counts.dim() != 1:
        raise ValueError(
            f"`counts` must have shape (R,), one count for each ray, not {tuple(counts.shape)}: "
            "flatten a sinogram with counts.reshape(-1)."
        )
    if not len(counts):
        raise ValueError("`counts` is empty: pass at least two rays.")
    observed = ~counts.isnan()
    if not bool(observed.any()):
        raise ValueError("`counts` is NaN along every ray: nothing was measured.")
    counts = counts.nan_to_num(nan=0.0, posinf=-1.0) if counts.is_floating_point() else counts
    if bool((counts < 0).any()) or (
        counts.is_floating_point() and not bool((counts == counts.floor()).all())
    ):
        raise ValueError(
            "`counts` must hold counts 0, 1, 2, ..., or NaN where a ray was not measured, but has "
            "negative, fractional or infinite values: pass the counts before any correction, which "
            "belongs into `system` and `background`."
        )
    return counts, observed


def _check_system(system: object, rays: int) -> None:
    if not isinstance(system, Tensor):
        raise TypeError(
            f"`system` must be a torch.Tensor, dense or sparse, not {type(system).__name__}: "
            "convert an array with torch.as_tensor, a SciPy matrix m of compressed rows with "
            "torch.sparse_csr_tensor(m.indptr, m.indices, m.data, m.shape)."
        )
    if system.dtype not in FLOATS:
        raise TypeError(
            f"`system` must be float32 or float64, not {system.dtype}: convert it with "
            "system.double()."
        )
    if system.dim() != 2 or system.shape[0] != rays or not system.shape[1]:
        raise ValueError(
            f"`system` must have shape (R, P), one row for each of the {rays} rays of `counts`, "
            f"not {tuple(system.shape)}."
        )
    if not dist.is_validation_enabled():  # as many weights as may be, and they do not change
        return
    if system.layout is torch.sparse_coo:
        weights = system.coalesce().values()
    else:
        weights = system if system.layout is torch.strided else system.values()
    if not bool((weights >= 0).all()) or not bool(weights.isfinite().all()):
        raise ValueError(
            "`system` must be finite and non-negative: its entries are expected counts along a "
            "ray from a pixel of intensity 1."
        )


def _check_background(background: object, counts: Tensor) -> Tensor:
    if background is None:
        return counts.new_zeros(())
    try:
        known = torch.as_tensor(background, dtype=counts.dtype, device=counts.device)
    except (RuntimeError, TypeError, ValueError):
        raise TypeError(
            f"`background` must hold numbers, not {type(background).__name__}: pass a number or a "
            "tensor."
        ) from None
    if known.shape not in ((), counts.shape):
        raise ValueError(
            f"`background` must be one number or have shape ({len(counts)},), one for each ray, "
            f"not {tuple(known.shape)}."
        )
    if not bool((known >= 0).all()) or not bool(known.isfinite().all()):
        raise ValueError("`background` must be finite and non-negative: it holds expected counts.")
    return known


def _check_rays(counts: Tensor, system: Tensor, background: Tensor) -> None:
    """Refuse a count where none can be expected."""
    reach = _project(system, counts.new_ones(system.shape[1])) + background
    impossible = ((reach <= 0) & (counts > 0)).nonzero().reshape(-1)
    if len(impossible):
        ray = int(impossible[0])
        raise ValueError(
            f"`counts` has {float(counts[ray]):g} along ray {ray}, which meets no pixel of "
            "`system` and has no background: give it a background, or set it to NaN."
        )
