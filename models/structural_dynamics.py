"""Vibrations of structures: modes that ring, driven by noise and seen by noisy sensors.

   real_parts, imaginary_parts        loadings, locs, uniquenesses
              |                                  |
              v                                  v
mode_0 ---> mode_1 ---> ...          y_t ~ modes at t
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.models.parts.checks import check_size
from ember.models.parts.design import called
from ember.models.parts.factors import FACTOR_KEYS, loadings_site, locs_site, noise_site
from ember.models.parts.gaussian_chains import check_series, columns_of_series, observe_chain
from ember.models.parts.missing import shown_entries
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["structural_dynamics"]

MODE_KEYS = ("real_mean", "imaginary_mean", "deviation_of_parts", *FACTOR_KEYS)
START = 0.98  # how much of a mode is left after a step, by default
SEGMENTS = 200  # widths of the smoothed spectrum


def structural_dynamics(
    y: Tensor, modes: int, *, step: float = 1.0, prior: Prior | None = None
) -> None:
    r"""Vibration modes of a structure from its response to noise: operational modal analysis.

    A structure of masses, springs and dampers moves as a sum of modes, each of which turns by an
    angle and shrinks by a factor in a time step. With :math:`\lambda_j = a_j + i b_j` the pole of a
    mode and :math:`\Delta` the time step,

    .. math::

        z_t^{(j)} = \begin{pmatrix} a_j & b_j \\ -b_j & a_j \end{pmatrix} z_{t-1}^{(j)} + w_t,
        \qquad f_j = \frac{|\log \lambda_j|}{2\pi\Delta}, \qquad
        \zeta_j = -\frac{\operatorname{Re} \log \lambda_j}{|\log \lambda_j|}.

    Equations, the states :math:`z_0` before the first step being standard normal::

        real_parts_j      ~ Normal(real_mean_j, deviation_of_parts)
        imaginary_parts_j ~ Normal(imaginary_mean_j, deviation_of_parts)
        loadings_dk       ~ Normal(0, loading_d)                            2 for each mode
        locs_d            ~ Normal(mean_d, deviation_d)
        uniquenesses_d    ~ InverseGamma(df / 2, scale_d / 2)
        z_t               ~ Normal(turned z_[t-1], 1)
        y_td              ~ Normal(locs_d + loadings_d @ z_t, sqrt(uniquenesses_d))

    The time step is exact: sampled at equal times, the poles are those of the continuous motion.
    `natural_frequencies` :math:`f` and `damping_ratios` :math:`\zeta` are deterministic sites, in
    cycles per unit of `step`; the loadings of a mode are its shape, in its two phases. The poles
    enter the transition linearly, so EM updates them by least squares, whatever the mass and
    stiffness matrices; these themselves do not enter linearly, and are not told by noise of unknown
    strength. The forces on the modes are taken to be white and independent: right for modes that
    are lightly damped and well apart.

    ======================== ======================= ==============================================
    key of `prior`           shape it broadcasts to  default
    ======================== ======================= ==============================================
    `"real_mean"`,           (modes,)                poles at the highest peaks of the spectrum,
    `"imaginary_mean"`                               0.98 in size
    `"deviation_of_parts"`   (modes,)                0.5
    `"loading"`              (D, 2 modes)            the standard deviation of the column
    `"mean"`                 (D,)                    the mean of the column
    `"deviation"`            (D,)                    ten standard deviations of the column
    `"df"`                   (D,)                    3: the mode is a fifth of `scale`
    `"scale"`                (D,)                    the variance of the column
    ======================== ======================= ==============================================

    Args:
        y: the response (T, D) of D sensors, or that of several records (N, T, D), floating, NaN
            where missing; its dtype is that of all parameters.
        modes: the number of modes.
        step: the time between two samples.
        prior: hyperparameters that replace the defaults, by the keys above.

    Raises:
        TypeError: if `y` is not a floating tensor, `modes` no integer or `prior` no mapping.
        ValueError: if `y` is not (T, D) or (N, T, D), is empty or infinite, has fewer than two
            steps, or a constant column; if `step` is not positive; if a key of `prior` is unknown
            or a hyperparameter outside its domain.

    References:
        B. Peeters and G. De Roeck (2001). Stochastic system identification for operational modal
        analysis: a review. Journal of Dynamic Systems, Measurement, and Control 123, 659-667.
        F. J. Cara, J. Carpio, J. Juan and E. Alarcon (2012). An approach to operational modal
        analysis using the expectation maximization algorithm. Mechanical Systems and Signal
        Processing 31, 109-129.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> time = torch.arange(400) / 20
        >>> y = torch.sin(2 * torch.pi * 1.5 * time).unsqueeze(-1) + 0.1 * torch.randn(400, 1)
        >>> trace = poutine.trace(structural_dynamics).get_trace(y, 1, step=1 / 20)
        >>> for name in ("real_parts", "imaginary_parts", "natural_frequencies", "loadings"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        real_parts (1,)
        imaginary_parts (1,)
        natural_frequencies (1,)
        loadings (1, 2)
    """
    y = check_series(y)
    check_size(modes, "modes")
    if not step > 0:
        raise ValueError(f"`step={step}` must be greater than 0: the time between two samples.")
    hyper = Hyperparameters(prior, MODE_KEYS, y)
    columns = columns_of_series(y, hyper.covers("loading", "deviation", "scale"))

    angles = _peaks(y, modes)
    real_mean = hyper.real("real_mean", (modes,), lambda: START * angles.cos())
    imaginary_mean = hyper.real("imaginary_mean", (modes,), lambda: START * angles.sin())
    spread = hyper.above("deviation_of_parts", (modes,), 0.5)
    a = pyro.sample("real_parts", dist.Normal(real_mean, spread).to_event(1))
    b = pyro.sample("imaginary_parts", dist.Normal(imaginary_mean, spread).to_event(1))
    loadings = loadings_site(columns, (), 2 * modes, hyper)
    locs = locs_site(columns, (), hyper)
    uniquenesses = noise_site("uniquenesses", columns.variance, hyper, 1)
    rate = torch.complex(a, b.abs()).log().abs()
    pyro.deterministic("natural_frequencies", rate / (2 * math.pi * step))
    pyro.deterministic("damping_ratios", -(a.square() + b.square()).log() / (2 * rate))
    observe_chain(y, _turns(a, b), loadings, locs, uniquenesses)


def _turns(a: Tensor, b: Tensor) -> Tensor:
    """The transition matrix (*batch, 2 modes, 2 modes): a turn of each mode by itself."""
    modes = a.shape[-1]
    places = torch.diag_embed(torch.eye(modes, dtype=a.dtype, device=a.device))
    one = torch.eye(2, dtype=a.dtype, device=a.device)
    quarter = one.flip(0) * one.new_tensor([[1.0], [-1.0]])
    kept, turned = (
        (places[:, :, None, :, None] * block[:, None, :]).reshape(modes, 2 * modes, 2 * modes)
        for block in (one, quarter)
    )
    return (a[..., None, None] * kept + b[..., None, None] * turned).sum(-3)


def _peaks(y: Tensor, modes: int) -> Tensor:
    """The angles per step of the highest peaks of the smoothed spectrum, ascending (modes,)."""
    with torch.no_grad(), called("y"):
        shown = shown_entries(y)
        centred = y - y.nanmean((*range(y.dim() - 1),), keepdim=True)
        if shown is not None:
            centred = torch.where(shown, centred, 0.0)
        power = torch.fft.rfft(centred, dim=-2).abs().square()
        power = power / centred.square().mean(-2, keepdim=True)
        power = power.sum(-1).reshape(-1, power.shape[-2]).sum(0)
        reach = max(1, y.shape[-2] // SEGMENTS)
        window = torch.hann_window(2 * reach + 3, periodic=False, dtype=y.dtype)[1:-1]
        smooth = torch.nn.functional.conv1d(
            power[None, None], (window / window.sum())[None, None], padding=reach
        ).reshape(-1)
        found: list[int] = []
        for _ in range(modes):
            best = int(smooth[1:].argmax()) + 1 if len(smooth) > 1 else 0
            found.append(best)
            smooth[max(0, best - 2 * reach) : best + 2 * reach + 1] = -1.0
        return 2 * math.pi * torch.tensor(sorted(found)).to(y) / y.shape[-2]
