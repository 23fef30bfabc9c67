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
# # A Gaussian mixture three ways: MLE, MAP, SVI
#
# One model, written once, and three questions that can be put to it:
#
# | question | in Ember |
# |---|---|
# | Which parameters make the data most probable? (MLE) | `EM(model, objective="mle")` |
# | Which are most probable, given the data and a prior? (MAP) | `EM(model)` |
# | How far may they be from that? (the posterior, approximated) | `SVI(model, guide="normal")` |
#
# The model is `gaussian_mixture` of `ember.models`, a plain Pyro function:
#
# $$
# \begin{aligned}
# \text{weights} &\sim \mathrm{Dirichlet}(2, \dots, 2) \\
# \text{precisions}_k = \Lambda_k &\sim \mathrm{Wishart}(\nu, S^{-1}) \\
# \text{locs}_k = \mu_k &\sim \mathcal{N}\bigl(m, (\kappa \Lambda_k)^{-1}\bigr) \\
# \text{assignment}_n = z_n &\sim \mathrm{Categorical}(\text{weights}) \\
# x_n &\sim \mathcal{N}(\mu_{z_n}, \Lambda_{z_n}^{-1})
# \end{aligned}
# $$
#
# By default the prior is weak and in the units of the data: $m$ is the mean of the data,
# $\kappa = 0.01$, $\nu = D + 2$, and $S$ the covariance of the data, shared out among the
# components.

# %%
# %matplotlib inline
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Ellipse

from ember.inference import EM, SVI, compare
from ember.inference.tables import old_faithful
from ember.models import gaussian_mixture

torch.set_default_dtype(torch.float64)
plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"

table = old_faithful()
table.describe().loc[["count", "mean", "std", "min", "max"]].round(2)

# %% [markdown]
# ## All at once
#
# `compare` fits the same data by each method, and numbers the components of all fits alike. The
# likelihood does not mind which component comes first, so without this the columns could not be
# compared.

# %%
methods = [
    EM(gaussian_mixture, objective="mle", seed=0),
    EM(gaussian_mixture, objective="map", seed=0),
    SVI(gaussian_mixture, guide="delta", steps=1000, seed=0),
    SVI(gaussian_mixture, guide="normal", steps=1000, seed=0),
]
comparison = compare(methods, table, components=2)
print(comparison)

# %% [markdown]
# On the left all four are on top of each other. On the right each one's distance from the best
# value of its objective, against time. EM needs a handful of iterations, SVI hundreds of gradient
# steps. (The first method in the list also pays for what Python loads only once.)

# %%
comparison.plot()

# %% [markdown]
# ## EM and `AutoDelta` agree
#
# EM with `objective="map"` and SVI with a delta guide maximise the same function: the log posterior
# density, in the space in which the model declares its sites. They go about it in quite
# different ways, so that they meet is a test of both.

# %%
mle, by_em, by_svi, spread = comparison.fits.values()
aligned = comparison.params
difference = max(
    float(((aligned[by_svi.method][site] - value) / value).abs().max())
    for site, value in aligned[by_em.method].items()
)
print(f"log posterior by EM   {by_em.log_posterior:.8f}")
print(f"log posterior by SVI  {by_svi.log_posterior:.8f}")
print(f"largest relative difference of a parameter {difference:.1e}")

# %% [markdown]
# ## How far from that? SVI with a normal guide
#
# EM gives a point. A normal guide gives a distribution around it, from which we can draw, here as
# the locations of the two components. The price is an approximation: the guide takes all
# parameters as independent, so each interval is a little too narrow if they are not.

# %%
draws = spread.posterior_samples(2000, seed=0)
order = draws["locs"].mean(0)[:, 0].argsort()  # the short eruptions first
locs = draws["locs"][:, order]
at_mode = by_em.params["locs"][by_em.params["locs"][:, 0].argsort()]
bounds = torch.quantile(locs, torch.tensor([0.025, 0.975]), 0)

fig, axes = plt.subplots(1, 4, figsize=(10, 2.4), layout="constrained")
cells = [(k, d) for d in range(2) for k in range(2)]
for ax, (k, d) in zip(axes, cells, strict=True):
    kind, column = ["short", "long"][k], ["eruption", "wait"][d]
    ax.hist(locs[:, k, d].numpy(), bins=40, density=True, color="#99c7e0")
    ax.axvspan(*bounds[:, k, d].tolist(), color="#dddddd", zorder=0)
    ax.axvline(float(at_mode[k, d]), color=ORANGE, lw=2)
    ax.set_title(f"{kind} eruptions: mean {column}", size=9)
    ax.set(yticks=[], xlabel="minutes")
    ax.spines["left"].set_visible(False)
handles = [
    plt.Rectangle((0, 0), 1, 1, color="#99c7e0"),
    plt.Rectangle((0, 0), 1, 1, color="#dddddd"),
    plt.Line2D([], [], color=ORANGE, lw=2),
]
names = ["draws from the guide", "the middle 95 % of them", "EM (MAP)"]
_ = fig.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)

# %% [markdown]
# ## What the prior changes
#
# With 272 rows, very little. With few rows it matters: here are the first 20 eruptions only. The
# default prior is worth a few rows, and keeps the components from hugging the sample: they come
# out a little larger, and lean towards the shape of all data. And a prior is a plain argument: the
# third fit believes firmly, as if 30 rows had told it so, that each component has a quarter of the
# covariance of all data, and the sample has little to say against it.


# %%
def ellipse(ax, loc, precision, **style):
    """The contour of a Gaussian that holds 90 % of it."""
    values, vectors = np.linalg.eigh(np.linalg.inv(precision))
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
    height, width = 2 * np.sqrt(values * -2 * np.log(0.1))
    ax.add_patch(Ellipse(loc, width, height, angle=angle, fc="none", lw=2, **style))


def draw(ax, data, fits):
    ax.scatter(*torch.as_tensor(data).T, s=10, color="#999999")
    for (name, fit), (colour, dashes) in zip(fits.items(), LOOKS, strict=False):
        for loc, precision in zip(fit.params["locs"], fit.params["precisions"], strict=True):
            ellipse(ax, loc.numpy(), precision.numpy(), ec=colour, ls=dashes)
        ax.plot([], color=colour, ls=dashes, lw=2, label=name)


LOOKS = [(ORANGE, "-"), (BLUE, (0, (5, 2))), (GREEN, (0, (1, 1)))]
few = torch.tensor(table.to_numpy()[:20])
strong = {"df": 30.0, "scale": 30.0 * torch.cov(few.T) / 4}
on_few = {
    "MLE": EM(gaussian_mixture, objective="mle", seed=0).fit(few, components=2),
    "MAP, default prior": EM(gaussian_mixture, seed=0).fit(few, components=2),
    "MAP, firm prior": EM(gaussian_mixture, seed=0).fit(few, components=2, prior=strong),
}
fig, ax = plt.subplots(figsize=(5, 3.6), layout="constrained")
draw(ax, few, on_few)
ax.set(xlabel="eruption (minutes)", ylabel="wait for the next (minutes)")
_ = ax.legend(frameon=False, loc="upper left")

# %% [markdown]
# ## Why MLE collapses, and MAP never does
#
# The likelihood of a Gaussian mixture has no maximum. Put a component on a single point and let its
# covariance shrink: its density there grows without bound. Usually EM finds a sensible local
# maximum all the same, but not if the data invite it to collapse. Suppose that a logger failed ten
# times and wrote zeros, which nobody noticed:

# %%
logged = torch.cat([torch.tensor(table.to_numpy()), torch.zeros(10, 2)])

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    collapsed = EM(gaussian_mixture, objective="mle", seed=0).fit(logged, components=3)
print(caught[0].message)

# %% [markdown]
# Ember stops before anything turns into NaN, keeps the last good parameters, and says which
# component of which site it was. With the prior, the same data are no trouble:

# %%
kept = EM(gaussian_mixture, seed=0).fit(logged, components=3)
print(kept)

# %% [markdown]
# The next picture shows why. We take the estimates, put the third component right on the ten zeros,
# multiply its covariance by $s$, and look at the two objectives. As $s$ goes to 0, the log
# likelihood gains $-n_k \log s$ without end ($n_k = 10$ rows, $D = 2$). The log density of the
# prior gains a multiple of $-\log s$ as well, but loses
# $\tfrac{1}{2s} \operatorname{tr}(S \Lambda_k)$, and $1 / s$ beats $\log s$ in the end, whatever
# the data.

# %%
at_zero = int(kept.params["locs"].norm(dim=1).argmin())
on_the_point = kept.params["locs"].clone()
on_the_point[at_zero] = 0.0
factors = torch.logspace(-4, 0.5, 60)
methods_of = {kind: EM(gaussian_mixture, objective=kind) for kind in ("mle", "map")}
curves = {kind: [] for kind in methods_of}
for factor in factors:
    precisions = kept.params["precisions"].clone()
    precisions[at_zero] /= factor
    moved = {**kept.params, "locs": on_the_point, "precisions": precisions}
    for kind, em in methods_of.items():
        curves[kind].append(em.e_step(moved, logged, components=3).objective)

fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
left, right = axes
draw(left, logged, {"MAP": kept})
left.set(xlabel="eruption (minutes)", ylabel="wait for the next (minutes)", xlim=(-1.5, 6))
left.set_title("MAP: three components, none collapsed", size=10)
right.semilogx(factors, curves["mle"], color=ORANGE, lw=2, label="log likelihood (MLE)")
right.semilogx(
    factors, curves["map"], color=BLUE, lw=2, ls=(0, (5, 2)), label="log posterior (MAP)"
)
right.axvline(1, color=GREY, lw=1, ls=":")
right.set(xlabel="the third covariance, times", ylabel="objective", ylim=(-1700, -950))
right.legend(frameon=False, loc="center left")
_ = right.set_title("shrinking it: only the prior says no", size=10)

# %% [markdown]
# The prior is no repair of bad data. The third component tells us that something is there, and it
# is for us to see that it is a fault of the logger.

# %% [markdown]
# ## What we claimed

# %%
assert abs(mle.log_likelihood - (-1130.263960185)) < 1e-6  # as published
assert mle.log_likelihood > by_em.log_likelihood  # each is best at what it maximises
log_posterior = comparison.table["log posterior"]
assert log_posterior.idxmax() in (by_em.method, by_svi.method)
assert abs(by_em.log_posterior - by_svi.log_posterior) < 1e-6
assert difference < 1e-4
assert by_em.iterations < 20
assert ((bounds[0] < at_mode) & (at_mode < bounds[1])).all()  # the mode lies in the intervals
volumes = [fit.params["precisions"].det().rsqrt().sum().item() for fit in on_few.values()]
assert volumes[0] < volumes[1]  # the default prior makes the components larger
assert not collapsed.converged
assert collapsed.is_degenerate
assert "precisions" in str(caught[0].message)
assert all(value.isfinite().all() for value in collapsed.params.values())
assert kept.converged
assert (np.diff(curves["mle"]) < 0).all()  # MLE gains by every step towards collapse
assert curves["map"][0] < max(curves["map"]) - 1000  # MAP does not
print("all as claimed")
