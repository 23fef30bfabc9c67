# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # State space models
#
# A quantity moves, and is seen with noise. Where it was is a *continuous* latent at every step:
#
# $$ s_t = A\, s_{t-1} + w_t, \qquad y_t = C\, s_t + v_t. $$
#
# With normal noises all states are jointly normal given the data, so Ember integrates them exactly:
# the E-step finds their means, variances and the covariances of neighbours (what the Kalman
# smoother finds), and the M-step is least squares on these moments (Shumway and Stoffer, 1982).
# Two examples: a river, written step by step, and a building that shakes, as one site of Pyro's
# `GaussianHMM`.

# %%
# %matplotlib inline
import math

import matplotlib.pyplot as plt
import numpy as np
import torch

from ember.inference import EM, SVI, compare
from ember.models import local_level, structural_dynamics

torch.set_default_dtype(torch.float64)
plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"

# %% [markdown]
# ## The Nile
#
# The flow of the river at Aswan, 1871 to 1970, the example of Durbin and Koopman's book. Some years
# around 1890 and 1930 are taken out, to see what becomes of gaps.

# %%
# fmt: off
flow = torch.tensor([
    1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960, 1180,
    799, 958, 1140, 1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840, 874, 694, 940, 833,
    701, 916, 692, 1020, 1050, 969, 831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821, 768, 845,
    864, 862, 698, 845, 744, 796, 1040, 759, 781, 865, 845, 944, 984, 897, 822, 1010, 771, 676, 649,
    846, 812, 742, 801, 1040, 860, 874, 848, 890, 744, 749, 838, 1050, 918, 986, 797, 923, 975, 815,
    1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740,
]).double()
# fmt: on
years = np.arange(1871, 1971)
known = {"initial_mean": 0.0, "initial_deviation": math.sqrt(1e7)}  # as good as nothing known

em = EM(local_level, objective="mle")
print(em.explain(flow, prior=known))
nile = em.fit(flow, prior=known)
print(nile)

# %% [markdown]
# `explain` shows 100 sites of each kind as one row: the levels are integrated, as a chain, and both
# variances have closed forms. The estimates are those of the book, 15099 and 1469.
#
# `posterior("level")` holds the smoothed level with its variance. Missing years drop out of the
# likelihood; the level moves on through them, and its band is wider there.

# %%
gappy = flow.clone()
gappy[20:30] = torch.nan
gappy[60:70] = torch.nan
through = em.fit(gappy, prior=known)
level = through.posterior("level")
ahead = through.predictive(torch.full((15,), torch.nan))


def band(axes, x, mean, deviation, colour, label):
    mean, deviation = mean.numpy(), 1.96 * deviation.numpy()
    axes.plot(x, mean, color=colour, lw=1.5, label=label)
    axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)


fig, axes = plt.subplots(figsize=(10, 3.2), layout="constrained")
axes.plot(years, flow, color=GREY, marker="o", ms=2.5, lw=0.6, alpha=0.4)
axes.plot(years, gappy, color=GREY, marker="o", ms=3, lw=0.8, label="observed")
band(axes, years, level.mean, level.stddev, BLUE, "level, 95 %")
band(axes, np.arange(1971, 1986), ahead.mean, ahead.stddev, ORANGE, "forecast, 95 %")
axes.legend(frameon=False, ncols=3)
_ = axes.set(xlabel="year", ylabel="flow")
filled = torch.cat([flow[20:30], flow[60:70]])
shown = through.predictive()
gone = torch.isnan(gappy)
inside = ((filled - shown.mean[gone]).abs() < 1.96 * shown.stddev[gone]).double().mean()
print(f"{float(inside):.0%} of the years taken out lie within their 95 % interval")

# %% [markdown]
# The forecast is `predictive` with steps that are not known (`NaN`): a level that stays where it
# was, ever less certain.

# %% [markdown]
# ## A building that shakes
#
# Two floors on springs, pushed about by wind: only the positions are measured, 20 times a second,
# with errors. From that alone we want the natural frequencies and the damping of the structure. The
# simulation is exact: a linear system under white noise, over a time step, is again a linear system
# with normal noise (van Loan, 1978).

# %%
STEP, SEEN = 0.05, 1500
stiffness = torch.tensor([[80.0, -40.0], [-40.0, 40.0]])
squares, shapes = torch.linalg.eigh(stiffness)
damping = shapes @ torch.diag(2 * 0.02 * squares.sqrt()) @ shapes.mT
one, none = torch.eye(2), torch.zeros(2, 2)
motion = torch.cat([torch.cat([none, one], 1), torch.cat([-stiffness, -damping], 1)])
push = torch.block_diag(none, one)
whole = torch.cat([torch.cat([-motion, push], 1), torch.cat([0 * motion, motion.mT], 1)])
turned = torch.linalg.matrix_exp(STEP * whole)
move = turned[4:, 4:].mT
root = torch.linalg.cholesky(move @ turned[:4, 4:])

torch.manual_seed(2)
state, path = torch.zeros(4), []
for white in torch.randn(SEEN + 500, 4):
    state = move @ state + root @ white
    path.append(state[:2])
position = torch.stack(path[500:])
y = position + 0.3 * position.std() * torch.randn(SEEN, 2)
y[700:740, 1] = torch.nan  # a sensor that fails for two seconds
truth = squares.sqrt() / (2 * math.pi)

# %% [markdown]
# `structural_dynamics` takes the motion apart into modes, each a turn by some angle and a shrinkage
# in every step. Its transition matrix holds real and imaginary parts of the poles as entries, so
# that EM has a closed form for them; frequency and damping follow from the poles. The chain is *one
# site*, `y`. Ember opens it into its states:

# %%
building = EM(structural_dynamics)
print(building.explain(y, modes=2, step=STEP))
fit = building.fit(y, modes=2, step=STEP)
print(fit.stop_reason, f"({fit.evaluations} passes)")
found = fit.deterministic
for j in range(2):
    print(
        f"mode {j + 1}: {found['natural_frequencies'][j]:.3f} Hz (truth {truth[j]:.3f}), damping "
        f"{found['damping_ratios'][j]:.3f} (truth 0.020)"
    )

# %%
clean = fit.predictive()
span = slice(640, 800)
time = STEP * np.arange(SEEN)[span]
error = (clean.mean - position).square().mean().sqrt() / position.std()
fig, axes = plt.subplots(figsize=(10, 3.0), layout="constrained")
axes.plot(time, y[span, 1], color=GREY, lw=0, marker="o", ms=2.5, label="sensor 2")
axes.plot(time, position[span, 1], color=GREEN, lw=1.2, label="true position")
band(axes, time, clean.mean[span, 1], clean.stddev[span, 1], BLUE, "sensor, 95 %")
axes.legend(frameon=False, ncols=3)
_ = axes.set(xlabel="seconds", ylabel="position")
print(f"error of the smoothed positions: {float(error):.0%} of their spread; of the sensors 30 %")

# %% [markdown]
# While the sensor is silent the other one and the dynamics tell where the floor is.
#
# ## EM beside SVI
#
# The same function goes into variational inference. For a point estimate both climb the same hill;
# SVI follows gradients through the chain, as many steps as it is told to take.

# %%
shaken = y[:400]
methods = [
    EM(structural_dynamics),
    SVI(structural_dynamics, guide="delta", steps=150, seed=0),
]
comparison = compare(methods, shaken, modes=2, step=STEP)
print(comparison.table[["log posterior", "iterations"]].round(2))

# %%
fig, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
for (name, each), colour in zip(comparison.fits.items(), (BLUE, ORANGE), strict=True):
    axes.plot(each.times, each.history, color=colour, lw=1.5, label=name)
axes.legend(frameon=False)
best = max(each.log_posterior for each in comparison.fits.values())
_ = axes.set(xlabel="seconds", ylabel="log posterior", ylim=(best - 150.0, best + 10.0))

# %% [markdown]
# ## What we claimed

# %%
assert nile.converged
assert abs(float(nile.params["variance"]) / 15099.7 - 1) < 0.002
assert abs(float(nile.params["level_variance"]) / 1468.5 - 1) < 0.002
assert abs(nile.log_likelihood + 641.58558) < 1e-4
assert bool((level.stddev[20:30] > level.stddev[40:50]).all())
assert bool((ahead.stddev.diff() > 0).all())
assert inside >= 0.8
assert bool((found["natural_frequencies"] / truth - 1).abs().max() < 0.02)
assert bool((found["damping_ratios"] - 0.02).abs().max() < 0.015)
assert float(error) < 0.2
by_em, by_svi = (comparison.fits[name] for name in comparison.fits)
assert by_em.log_posterior > by_svi.log_posterior
print("all as claimed")
