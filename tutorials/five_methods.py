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
# # EM, VB-EM, SVI, Laplace and NUTS on one model
#
# A model is written once. Five methods then answer the same question, how certain its parameters
# are, at very different prices:
#
# | method | what it finds | what it leaves out |
# |---|---|---|
# | `EM(model)` | the mode, and the curvature there | the shape of the posterior beyond a normal |
# | `Laplace(model)` | the same in unconstrained coordinates, and the evidence | the same |
# | `VBEM(model)` | a distribution of every parameter | how these hang together with the latents |
# | `SVI(model, guide="normal")` | independent normals | how parameters hang together at all |
# | `NUTS(model)` | draws from the posterior itself | nothing, given time |
#
# Latents are summed out in all of them but VB-EM, which gives them a distribution of their own.
# The data are made so that the difference shows: two groups that overlap.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import torch

from ember.inference import EM, NUTS, SVI, VBEM, Laplace, compare
from ember.models import gaussian_mixture

torch.set_default_dtype(torch.float64)
plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"

rng = np.random.default_rng(3)
x = np.concatenate([rng.normal(0.0, 1.0, 240), rng.normal(3.0, 1.0, 160)])[:, None]

fig, axes = plt.subplots(figsize=(6.0, 2.6), layout="constrained")
axes.hist(x[:, 0], bins=30, color="0.8")
axes.set(xlabel="x", ylabel="rows", title="Two groups that overlap")
plt.show()

# %% [markdown]
# `explain` says which parameters have a posterior of their own in VB-EM. All three do: the weights
# a Dirichlet distribution, each location and its precision a normal-Wishart one together.

# %%
VBEM(gaussian_mixture).explain(x, components=2)

# %% [markdown]
# ## All at once
#
# `compare` fits them one after the other and numbers the components alike.

# %%
methods = [
    EM(gaussian_mixture, seed=0),
    Laplace(gaussian_mixture, seed=0),
    VBEM(gaussian_mixture, seed=0),
    SVI(gaussian_mixture, guide="normal", steps=1000, seed=0),
    NUTS(gaussian_mixture, draws=300, warmup=100, chains=2, seed=0),
]
compared = compare(methods, x, components=2)
compared.table[["log likelihood", "log posterior", "passes"]].round(3)

# %% [markdown]
# The estimates agree to a fraction of their uncertainty. NUTS took thousands of passes over the
# data, each of which is one E-step of EM. Did its chains agree? `r_hat` should be near 1, and the
# effective sample size not far below the number of draws:

# %%
drawn = compared.fits["NUTS"]
summary = drawn.summary()
summary[["estimate", "std. error", "r_hat", "ess"]].round(3)

# %% [markdown]
# ## How sure is each of them?

# %%
marginals = compared.marginals()
spread = marginals.table.xs("sd", axis=1, level=1).drop(["log posterior", "seconds"])
(spread.div(spread["NUTS"], axis=0)).round(2)

# %% [markdown]
# The table has each method's standard deviations as multiples of those of NUTS. VB-EM and SVI are
# too sure of themselves: where groups overlap, how many rows belong to which of them and where they
# lie go together, and a posterior of independent parts cannot say so. EM's curvature and Laplace's
# see it.

# %%
marginals.plot()
# %% [markdown]
# What is left out shows in two dimensions. Were the second group larger, it would lie further to
# the left:

# %%
fig, panels = plt.subplots(1, 3, figsize=(9.0, 3.0), sharex=True, sharey=True, layout="constrained")
for axes, name, colour in zip(
    panels, ["NUTS", "VB-EM", "Laplace"], [ORANGE, GREEN, BLUE], strict=True
):
    draws = marginals.draws[name]
    axes.scatter(
        draws["weights"][:800, 1].numpy(), draws["locs"][:800, 1, 0].numpy(), s=6, alpha=0.4,
        color=colour,
    )  # fmt: skip
    correlation = np.corrcoef(draws["weights"][:, 1].numpy(), draws["locs"][:, 1, 0].numpy())[0, 1]
    axes.set(title=f"{name}: correlation {correlation:.2f}", xlabel="share of the second group")
panels[0].set_ylabel("its location")
plt.show()

# %% [markdown]
# ## How many groups?
#
# The evidence $p(x)$ weighs fit against complexity by itself. VB-EM gives a lower bound of it,
# BIC an approximation. VB-EM does not know that the numbers of components are mere names: it
# describes one of $K!$ equal modes, so $\log K!$ is added.

# %%
rows = {}
for k in (1, 2, 3, 4):
    bound = VBEM(gaussian_mixture, seed=0, restarts=3).fit(x, components=k)
    mode = EM(gaussian_mixture, seed=0, restarts=3).fit(x, components=k)
    rows[k] = (bound.lower_bound + float(torch.lgamma(torch.tensor(k + 1.0))), -0.5 * mode.bic)

fig, axes = plt.subplots(figsize=(5.0, 2.8), layout="constrained")
for place, (label, colour) in enumerate([("VB-EM: lower bound", GREEN), ("EM: -BIC / 2", BLUE)]):
    axes.plot(list(rows), [row[place] for row in rows.values()], "o-", color=colour, label=label)
axes.set(xlabel="components", ylabel="nats", xticks=list(rows))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Or let VB-EM decide: with a concentration well below 1, components that the data do not need end
# without rows.

# %%
sparse = VBEM(gaussian_mixture, seed=0, restarts=3).fit(
    x, components=6, prior={"concentration": 0.01}
)
counts = sparse.sizes["weights|total"] * sparse.params["weights"] - 0.01
counts.round(decimals=1).tolist()

# %% [markdown]
# ## What we have seen

# %%
estimates = {name: fit.params["locs"][:, 0] for name, fit in compared.fits.items()}
reference = compared.params["NUTS"]["locs"][:, 0]
errors = drawn.standard_errors()["locs"][:, 0]
for name, params in compared.params.items():
    assert bool(((params["locs"][:, 0] - reference).abs() < errors).all()), name

assert float(summary["r_hat"].max()) < 1.05
assert drawn.divergences == 0

ratios = spread.div(spread["NUTS"], axis=0)
assert ratios["VB-EM"].max() < 0.9  # too sure of every entry
assert ratios.loc[["locs[0, 0]", "locs[1, 0]"], "EM (MAP)"].between(0.7, 1.3).all()

bounds = {k: row[0] for k, row in rows.items()}
assert max(bounds, key=bounds.get) == 2
assert int((counts > 1.0).sum()) == 2
