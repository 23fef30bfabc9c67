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
# # Effects of groups where nothing is normal
#
# Seeds on one plate germinate together or not at all; the trees of an orchard grow along curves of
# one shape, each along its own. In both cases measurements come in groups, a group has effects of
# its own, and these are *latent*: nobody measured them. In a linear mixed model they can be
# integrated out in closed form. Here they cannot, because they stand inside a logit or inside a
# curve. EM then needs the integral
#
# $$ p(y_g \mid \theta) = \int p(u_g \mid \theta) \prod_{n \in g} p(y_n \mid u_g, \theta)
#    \,\mathrm d u_g $$
#
# of each group $g$ on its own, and takes it on a few *nodes* that stand where the integrand of
# that group is: around its mode, as far apart as its curvature says.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch

from ember.inference import EM, SVI, MonteCarlo, compare
from ember.models import generalised_linear_mixed_model, growth_curves

torch.set_default_dtype(torch.float64)
plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)

# %% [markdown]
# ## Counts that differ from plate to plate
#
# Crowder (1978) counted how many seeds of two kinds germinated in two root extracts, on 21 plates.
# The shares of plates that were treated alike differ by more than chance explains, so every plate
# gets an effect on the logit:
#
# $$ r_g \sim \operatorname{Binomial}(n_g, p_g), \qquad
#    \operatorname{logit} p_g = x_g^\top \beta + u_g, \qquad u_g \sim \mathcal N(0, \sigma^2). $$

# %%
seeds = pd.DataFrame(
    {
        "germinated": [
            10,
            23,
            23,
            26,
            17,
            5,
            53,
            55,
            32,
            46,
            10,
            8,
            10,
            8,
            23,
            0,
            3,
            22,
            15,
            32,
            3,
        ],
        "seeds": [39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7],
        "kind": [0] * 11 + [1] * 10,
        "extract": [0] * 5 + [1] * 6 + [0] * 5 + [1] * 5,
    }
)
columns = np.stack([seeds["kind"], seeds["extract"], seeds["kind"] * seeds["extract"]], 1)
plates = {
    "X": torch.tensor(columns, dtype=torch.float64),
    "groups": {"plate": torch.arange(21)},
    "family": "binomial",
    "trials": torch.tensor(seeds["seeds"].to_numpy()),
}
germinated = torch.tensor(seeds["germinated"].to_numpy(), dtype=torch.float64)
em = EM(generalised_linear_mixed_model, objective="mle", seed=0)
em.explain(germinated, **plates)

# %% [markdown]
# The table is the routine that was found. The effects are integrated, on 15 nodes for each plate.
# Their variance keeps its closed form, and the coefficients, which meet the effects inside the
# binomial, take Newton steps.

# %%
fit = em.fit(germinated, **plates)
print(fit)

# %% [markdown]
# Breslow & Clayton (1993, table 2) give the maximum-likelihood estimates of these data, found by
# numerical integration: they are ours, to a unit of the last digit that they print.

# %%
published = pd.Series(
    [-0.548, 0.097, 1.337, -0.811, 0.236], ["constant", "kind", "extract", "both", "sigma"]
)
ours = pd.Series(
    [*fit.params["coefficients"].tolist(), float(fit.params["plate_variance"]) ** 0.5],
    published.index,
)
pd.DataFrame({"published": published, "here": ours.round(3)})

# %% [markdown]
# What is known of each plate is its posterior. The caterpillar shows means and 95 % intervals: no
# single plate stands out, though together they vary.

# %%
fit.plot()

# %% [markdown]
# The last line above the estimates says how far to trust the integrals. More nodes would change
# the log evidence of a plate by that much, at most.
#
# ## Curves that differ from tree to tree
#
# Draper & Smith (1981) print the circumferences of five orange trees at seven ages. A logistic
# curve fits each of them; the trees differ in how thick they become. Any Pyro function will do for
# a model, and a note beside the site asks for its integral.

# %%
age = torch.tensor([118.0, 484, 664, 1004, 1231, 1372, 1582]).repeat(5)
tree = torch.arange(5).repeat_interleave(7)
circumference = torch.tensor(
    [
        [30.0, 58, 87, 115, 120, 142, 145],
        [33, 69, 111, 156, 172, 203, 203],
        [30, 51, 75, 108, 115, 139, 140],
        [32, 62, 112, 167, 179, 209, 214],
        [30, 49, 81, 125, 142, 174, 177],
    ]
).reshape(-1)


def orange_trees(circumference, age, tree):
    """A logistic curve for each tree, which differ in their height alone."""
    positive = dist.constraints.positive
    height = pyro.param("height", torch.tensor(200.0), constraint=positive)
    middle = pyro.param("middle", torch.tensor(700.0), constraint=positive)
    length = pyro.param("length", torch.tensor(300.0), constraint=positive)
    spread = pyro.param("spread", torch.tensor(20.0), constraint=positive)
    noise = pyro.param("noise", torch.tensor(10.0), constraint=positive)
    with pyro.plate("trees", 5):
        own = pyro.sample("own", dist.Normal(height, spread), infer={"integrate": "quadrature"})
    with pyro.plate("rows", len(age)):
        curve = own[tree] * torch.sigmoid((age - middle) / length)
        pyro.sample("circumference", dist.Normal(curve, noise), obs=circumference)


trees = EM(orange_trees, objective="mle", seed=0).fit(circumference, age, tree)
print(trees)

# %% [markdown]
# `nlmer` of the R package lme4 prints 192.05, 727.90 and 348.07 for the three parameters of the
# curve, a log likelihood of -131.57, and standard deviations of 31.65 between trees and 7.84 along
# a curve.

# %%
found = trees.posterior("own")
line = torch.linspace(0.0, 1700.0, 200)
share = torch.sigmoid((line - trees.params["middle"]) / trees.params["length"])
figure, axes = plt.subplots(figsize=(7.0, 4.2))
for g, colour in enumerate(plt.rcParams["axes.prop_cycle"].by_key()["color"][:5]):
    low, high = (found.mean[g] + z * found.stddev[g] for z in (-1.96, 1.96))
    axes.fill_between(line.numpy(), (low * share).numpy(), (high * share).numpy(),
                      color=colour, alpha=0.2, linewidth=0.0)  # fmt: skip
    axes.plot(line.numpy(), (found.mean[g] * share).numpy(), color=colour)
    axes.plot(age[tree == g].numpy(), circumference[tree == g].numpy(), "o", color=colour)
axes.set(xlabel="age (days)", ylabel="circumference (mm)", title="each tree's own curve, with 95 %")
plt.show()

# %% [markdown]
# ## Three effects of each plant
#
# With more plants all three parameters of a curve may differ: how high it ends, when it is
# steepest, and how long it takes. `growth_curves` is that model. Of 60 plants that were measured
# ten times we know the truth, because we made them.

# %%
torch.manual_seed(4)
plants, days = 60, torch.linspace(0.0, 9.0, 10)
truth = torch.tensor([10.0, 4.0, 0.2])
own = truth + torch.tensor([1.5, 0.8, 0.2]) * torch.randn(plants, 3)
plant, day = torch.arange(plants).repeat_interleave(10), days.repeat(plants)
expected = own[plant, 0] * torch.sigmoid((day - own[plant, 1]) * torch.exp(-own[plant, 2]))
height = expected + 0.5 * torch.randn(len(day))

grown = EM(growth_curves, seed=0).fit(height, day, subjects=plant)
print(grown)

# %% [markdown]
# The integral has three dims: $7^3$ nodes for each plant, placed anew at each of the few
# iterations. What the fit knows of each plant can be held against what it really was.

# %%
curves = grown.posterior("curves")
figure, panels = plt.subplots(1, 3, figsize=(10.0, 3.4))
names = ["height", "day when steepest", "log duration"]
for k, (axes, name) in enumerate(zip(panels, names, strict=True)):
    axes.errorbar(own[:, k].numpy(), curves.mean[:, k].numpy(), 1.96 * curves.stddev[:, k].numpy(),
                  fmt="o", markersize=3.0, elinewidth=0.7)  # fmt: skip
    ends = [float(own[:, k].min()), float(own[:, k].max())]
    axes.plot(ends, ends, color="0.5", linewidth=1.0)
    axes.set(xlabel=f"true {name}", ylabel="posterior mean, 95 %" if k == 0 else "")
figure.tight_layout()
plt.show()
covered = ((own - curves.mean).abs() < 1.96 * curves.stddev).double().mean(0)
print("share of the plants whose interval holds the truth:", covered.numpy().round(2))

# %% [markdown]
# ## The same by draws
#
# Nodes suit integrands with one smooth top. Where that is in doubt, or as a check, the effects can
# be *drawn*: stochastic EM (SAEM) averages statistics over Markov chains of each plant's curve, and
# goes on until the error that the draws leave is at most a tenth of the standard error of every
# parameter.

# %%
drawn = EM(growth_curves, seed=0, integrate={"curves": MonteCarlo()}).fit(
    height, day, subjects=plant
)
print(drawn.stop_reason)
pd.DataFrame(
    {
        "on nodes": grown.params["population"].numpy(),
        "by draws": drawn.params["population"].numpy(),
        "Monte Carlo error": drawn.monte_carlo.errors["population"].numpy(),
    },
    index=names,
).round(4)

# %% [markdown]
# ## Beside variational inference
#
# The same function goes into SVI, where a guide covers the plants' curves: independent normals,
# which know nothing of how the three effects of a plant depend on each other. The log likelihoods
# in the table are computed alike for all methods, curves integrated out.

# %%
methods = [
    EM(growth_curves, seed=0),
    SVI(growth_curves, guide="delta", steps=600, seed=0),
    SVI(growth_curves, guide="normal", steps=600, seed=0),
]
comparison = compare(methods, height, day, subjects=plant)
comparison.table[["log likelihood", "log posterior", "iterations"]].round(3)

# %%
comparison.plot()

# %% [markdown]
# EM needs no guide and no steps to be counted, and ends where the gradient is zero. What it gives
# up is any uncertainty about the parameters themselves: they are points.

# %%
assert fit.converged
assert trees.converged
assert grown.converged
assert drawn.converged
assert np.abs(ours - published).max() < 1e-3
assert abs(trees.log_likelihood + 131.57) < 0.01
assert abs(float(trees.params["height"]) - 192.05) < 0.1
assert drawn.monte_carlo.share <= 0.1
off = (drawn.params["population"] - grown.params["population"]).abs()
assert bool((off < 5.0 * drawn.monte_carlo.errors["population"]).all())
assert bool((covered > 0.85).all())
values = comparison.table["log posterior"]
assert values.iloc[0] >= values.max() - 1e-6
