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
# # From a fit to ArviZ
#
# [ArviZ](https://python.arviz.org) draws and compares Bayesian models, whatever made their draws.
# `fit.to_arviz()` gives it what it asks for: draws of the parameters and of the latents, the log
# likelihood of each row at each draw, new data, and names for all dims.
#
# The draws are cheap. The parameters come from the normal approximation at the estimates, with the
# exact observed information, in coordinates in which nothing is bounded,
#
# $$u \sim \mathrm{Normal}\bigl(\hat u,\; (-\nabla^2 \log p(x, \hat u))^{-1}\bigr),$$
#
# and the latents, given each draw, from their exact posterior. With enough data that is close to
# what MCMC would find around one maximum; it does not know of other maxima.

# %%
# %matplotlib inline
import logging
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch

from ember.inference import EM
from ember.inference.tables import old_faithful
from ember.models import gaussian_mixture, linear_mixed_model

warnings.filterwarnings("ignore")  # ArviZ announces its version 1
logging.getLogger("arviz").setLevel(logging.ERROR)
import arviz as az

torch.set_default_dtype(torch.float64)
plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)

# %% [markdown]
# ## Draws with names
#
# Two components for the eruptions of Old Faithful: how long each took, and the wait for the next.

# %%
geyser = old_faithful()
fit = EM(gaussian_mixture, seed=0).fit(geyser, components=2)
tree = fit.to_arviz(draws=1000, seed=0)
print({name: dict(tree[name].sizes) for name in ("posterior", "observed_data", "log_likelihood")})

# %% [markdown]
# Plates of the model name the dims (`components`, `data`), and the columns of the data frame are
# coordinates along `column`. So entries are chosen by what they mean.

# %%
shown = az.summary(tree, var_names=["weights", "locs"], kind="stats", hdi_prob=0.95)
shown["standard error"] = (
    fit.summary(errors=True)
    .loc[
        [f"weights[{k}]" for k in range(2)]
        + [f"locs[{k}, {d}]" for k in range(2) for d in range(2)],
        "std. error",
    ]
    .to_numpy()
)
print(shown.to_string())

# %%
axes = az.plot_pair(
    tree,
    var_names=["locs"],
    coords={"column": ["waiting"]},
    kind="kde",
    marginals=True,
    figsize=(5.5, 5.0),
)
plt.suptitle("Waits of the two kinds of eruptions (minutes)", y=0.95)
plt.show()

# %% [markdown]
# ## Latents
#
# Each draw of the parameters comes with a draw of every row's component. Their average is the
# posterior with the uncertainty of the parameters in it; that of the fit takes the estimates to be
# known. With 272 rows the two hardly differ.

# %%
averaged = tree.posterior["assignment"].mean(("chain", "draw")).to_numpy()
known = fit.posterior("assignment").probs[:, 1].numpy()
print(f"largest difference: {np.abs(averaged - known).max():.3f}")

# %% [markdown]
# ## Would the model give such data?
#
# At each draw a whole new data set is drawn, latents included. One normal would put most eruptions
# where there are none; two components follow the data.

# %%
one = EM(gaussian_mixture, seed=0).fit(geyser, components=1).to_arviz(draws=200, seed=0)
fig, panels = plt.subplots(1, 2, figsize=(9.0, 3.2), sharey=True, layout="constrained")
for panel, made, title in zip(panels, (one, tree), ("one normal", "two components"), strict=True):
    az.plot_ppc(
        made, coords={"column": ["waiting"]}, num_pp_samples=80, random_seed=0, ax=panel,
        mean=False, textsize=9,
    )  # fmt: skip
    panel.set(title=title, xlabel="wait (minutes)")
plt.show()

# %% [markdown]
# ## How many components?
#
# Leaving each row out in turn, by Pareto-smoothed importance sampling of the draws (PSIS-LOO),
# estimates how well new rows would be predicted. It needs the log likelihood of each row at each
# draw. The latents are integrated out of it: given its component, the likelihood of a row would say
# nothing of a row that was left out.

# %%
trees = {
    f"{k} components": EM(gaussian_mixture, restarts=8, seed=0)
    .fit(geyser, components=k, covariance="tied")
    .to_arviz(draws=500, seed=0)
    for k in (1, 2, 3, 4)
}
comparison = az.compare(trees, method="pseudo-BMA")
print(comparison[["rank", "elpd_loo", "p_loo", "elpd_diff", "dse"]].round(1).to_string())

# %%
az.plot_compare(comparison, insample_dev=False, figsize=(7.0, 2.6))
plt.title("Expected log predictive density of new rows")
plt.show()

# %% [markdown]
# Two components are far better than one. A third gains about ten, twice its standard error; a
# fourth is within the error of the third. BIC chooses three as well. The diagnostic of the method
# itself is the shape $k$ of the tail of the importance weights, row by row: below 0.7 the estimate
# for a row can be trusted.

# %%
loo = az.loo(tree, pointwise=True)
az.plot_khat(loo, figsize=(7.0, 2.8), show_bins=False, threshold=0.7)
plt.title("Pareto shape of each row")
plt.show()

# %% [markdown]
# ## Effects of groups
#
# Six rails, three readings each of how long an ultrasonic wave takes along them (nanoseconds above
# 36,100; Pinheiro & Bates 2000, *Mixed-Effects Models in S and S-PLUS*, section 1.1). The rails are
# Gaussian latents. The draws hold their effects, jointly with the two variances.

# %%
travel = torch.tensor([55.0, 53, 54, 26, 37, 32, 78, 91, 85, 92, 100, 96, 49, 51, 50, 80, 85, 83])
rail = torch.arange(6).repeat_interleave(3)
rails = EM(linear_mixed_model, "mle").fit(travel, groups=rail)
effects = rails.to_arviz(draws=1000, seed=0)
az.plot_forest(
    effects, var_names=["group_effects"], combined=True, hdi_prob=0.95, figsize=(7.0, 3.0)
)
plt.title("Effect of each rail: medians, quartiles and 95 % intervals")
plt.show()

# %% [markdown]
# ## The numbers that were claimed

# %%
errors = fit.standard_errors()["locs"].numpy()
draws = tree.posterior["locs"]
assert np.allclose(draws.std(("chain", "draw")), errors, rtol=0.1)
assert np.allclose(draws.mean(("chain", "draw")), fit.params["locs"], atol=0.1)
assert tree.posterior["column"].values.tolist() == ["eruptions", "waiting"]
assert np.abs(averaged - known).max() < 0.1
gap = comparison["elpd_diff"]
assert gap["1 components"] > 100.0
assert 5.0 < gap["2 components"] - gap["3 components"] < 15.0
assert abs(gap["4 components"] - gap["3 components"]) < 5.0
assert float(loo.pareto_k.max()) < 0.7
blup = rails.posterior("group_effects").mean.numpy()
spread = effects.posterior["group_effects"].std(("chain", "draw")).to_numpy()
drawn = effects.posterior["group_effects"].mean(("chain", "draw")).to_numpy()
assert np.abs(drawn - blup).max() < 0.2 * spread.max()
