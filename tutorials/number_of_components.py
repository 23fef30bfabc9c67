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
# # How many components?
#
# A mixture with more components always fits better: its likelihood counts only what it gains, not
# what it spends. So the number of components is chosen by a criterion that charges for them. With
# $L$ the log likelihood at the estimates, $d$ free parameters, $n$ rows and responsibilities
# $t_{nk}$:
#
# | criterion | formula | what it asks |
# |---|---|---|
# | AIC | $-2L + 2d$ | Which model predicts new rows best? (an approximation) |
# | BIC | $-2L + d \log n$ | Which model is most probable, given the data? (an approximation) |
# | ICL | $\mathrm{BIC} - 2\sum_{nk} t_{nk} \log t_{nk}$ | The same, if they can be told apart |
# | held-out | mean $\log p(x_n)$ of rows left out | Which predicts new rows best? (measured) |
#
# The first three are better when smaller, the last when larger. They answer different questions,
# so they need not agree. `select` computes them for every combination of options, and we look at
# two data sets: one where they disagree, and one where we know the answer.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.patches import Ellipse
from sklearn.datasets import load_wine
from sklearn.metrics import adjusted_rand_score

from ember.inference import EM, select
from ember.inference.tables import old_faithful
from ember.models import gaussian_mixture

torch.set_default_dtype(torch.float64)
plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]

# %% [markdown]
# ## Old Faithful: two components, or three?
#
# 272 eruptions of the geyser. Any option given as a list or range is swept. The options of `EM`
# itself go into `em`: here two starts for each fit, and a seed, so that the table comes out the
# same tomorrow. The fits are MAP fits with the default prior, which is worth about a row: BIC and
# its relatives hardly notice it, and no component can collapse (Fraley & Raftery 2007).

# %%
eruptions = old_faithful()
swept = select(
    gaussian_mixture,
    eruptions,
    components=range(1, 6),
    covariance=["full", "tied"],
    em={"seed": 0, "restarts": 2},
)
shown = ["components", "covariance", "parameters", "log_likelihood", "aic", "bic", "icl"]
swept.table[shown].sort_values("bic").head(8).round(2).reset_index(drop=True)

# %%
swept.plot()

# %% [markdown]
# The log likelihood goes on rising with every component, as it must, and the criteria turn around
# at different places. BIC and ICL are in the picture; here are the favourites of all, the held-out
# likelihood included. That one refits the model for each fold, so we ask it for fewer
# combinations.

# %%
held = select(
    gaussian_mixture,
    eruptions,
    criterion="held_out",
    folds=5,
    components=range(1, 4),
    covariance=["full", "tied"],
    em={"seed": 0},
)


def favourite(table, criterion):
    """The row that a criterion prefers."""
    return table.loc[
        table[criterion].idxmax() if criterion == "held_out" else table[criterion].idxmin()
    ]


def favourites(**tables):
    rows = {name: favourite(table, name) for name, table in tables.items()}
    return pd.DataFrame(rows).T[["components", "covariance", "parameters", "log_likelihood"]]


chosen = favourites(aic=swept.table, bic=swept.table, icl=swept.table, held_out=held.table)
chosen  # noqa: B018

# %% [markdown]
# How decided are they? The differences say more than the ranks. A difference in BIC of 2 is hardly
# worth a mention, one of 10 is strong; and a difference of held-out likelihood should be seen
# against its standard error, since rows vary.

# %%
two_full, three_tied = (
    swept.fits[int(swept.table.query(f"components == {k} and covariance == '{c}'").index[0])]
    for k, c in ((2, "full"), (3, "tied"))
)
by_bic = swept.table.set_index(["components", "covariance"])["bic"]
gap = by_bic[2, "full"] - by_bic[3, "tied"]
held_out = held.table.set_index(["components", "covariance"])["held_out"]
best_held, two_held = held_out.max(), held_out[2, "full"]
by_row = three_tied.log_prob() - two_full.log_prob()
row_error = float(by_row.std() / len(by_row) ** 0.5)
print(f"BIC of two full components less that of three tied   {gap:6.2f}")
print(f"held-out likelihood per row: three tied less two     {best_held - two_held:6.4f}")
print(f"standard error of such a difference                  {row_error:6.4f}")

# %% [markdown]
# ## Why they disagree
#
# Here are BIC's choice and ICL's. Two full Gaussians each have a shape of their own. Three that
# share one shape have as many parameters, 11, and follow the long eruptions, which are not quite
# Gaussian, with two overlapping ones. As a *density* that is better at the same price, hence BIC.
# As *clusters* the two are one: nobody could say to which of them a long eruption belongs. The
# right hand column shows it, as the entropy of each row's responsibilities. ICL adds up just
# these, and says two.


# %%
def ellipse(ax, loc, precision, **style):
    """The contour of a Gaussian that holds 90 % of it."""
    values, vectors = np.linalg.eigh(np.linalg.inv(precision))
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
    height, width = 2 * np.sqrt(values * -2 * np.log(0.1))
    ax.add_patch(Ellipse(loc, width, height, angle=angle, fc="none", lw=2, **style))


def entropy(fit):
    """How uncertain each row's component is, in bits."""
    t = fit.posterior("assignment").probs
    return -torch.special.xlogy(t, t).sum(1) / np.log(2)


fits = {"ICL: 2 components, full": two_full, "BIC: 3 components, tied": three_tied}
rows = torch.as_tensor(eruptions.to_numpy())
fig, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained", sharex=True, sharey=True)
for pair, (title, fit) in zip(axes, fits.items(), strict=True):
    fit = fit.relabel("locs")  # components in the order of the first entry of their location
    left, right = pair
    precisions = fit.params["precisions"]
    if precisions.dim() == 2:
        precisions = precisions.expand(len(fit.params["locs"]), 2, 2)
    component = fit.predict()
    for k, (loc, precision) in enumerate(zip(fit.params["locs"], precisions, strict=True)):
        own = rows[component == k]
        left.scatter(*own.T, s=10, color=COLOURS[k])
        ellipse(left, loc.numpy(), precision.numpy(), ec=COLOURS[k])
    left.set_title(title, size=10)
    points = right.scatter(*rows.T, s=10, c=entropy(fit), cmap="viridis", vmin=0, vmax=1)
    right.set_title(f"uncertainty, {float(entropy(fit).sum()):.0f} bits in all", size=10)
    left.set_ylabel("wait for the next (minutes)")
for ax in axes[1]:
    ax.set_xlabel("eruption (minutes)")
_ = fig.colorbar(points, ax=axes[:, 1], label="bits", shrink=0.7)

# %% [markdown]
# So neither is wrong. For a description of the density take BIC's three, for kinds of eruption
# ICL's two. For prediction AIC would take five, as many as we let it; the rows left out prefer
# three, but hardly tell them from two.

# %% [markdown]
# ## Wines: the classes are known
#
# 178 wines from three cultivars. The mixture sees four measurements (alcohol, flavanoids, colour,
# proline), and not the cultivars, which serve to judge it afterwards.

# %%
wines = load_wine()
columns = [0, 6, 9, 12]
x = torch.tensor(wines.data[:, columns])
x = (x - x.mean(0)) / x.std(0)
on_wine = select(
    gaussian_mixture,
    x,
    components=range(1, 6),
    covariance=["full", "tied"],
    em={"seed": 0, "restarts": 2},
)
on_wine.table["rand_index"] = [
    adjusted_rand_score(wines.target, fit.predict()) for fit in on_wine.fits.values()
]
best = pd.DataFrame({name: favourite(on_wine.table, name) for name in ("aic", "bic", "icl")}).T
best[["components", "covariance", "parameters", "log_likelihood", "rand_index"]]

# %% [markdown]
# The adjusted Rand index compares two groupings of the same rows: 1 if they are the same, 0 on
# average for groups made at random. BIC and ICL find as many components as there are cultivars,
# and nearly the same groups. AIC, which for mixtures is known to be generous, buys likelihood with
# components that mean nothing. No model in the table agrees better with the cultivars than BIC's;
# in practice one would not know that.

# %%
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
for ax, criterion in zip(axes, ["aic", "bic", "rand_index"], strict=True):
    for (name, group), colour in zip(
        on_wine.table.groupby("covariance", sort=False), COLOURS, strict=False
    ):
        ax.plot(group["components"], group[criterion], marker="o", color=colour, label=name)
    row = favourite(on_wine.table, "bic" if criterion == "rand_index" else criterion)
    ax.plot(row["components"], row[criterion], "o", ms=14, mfc="none", mec="black")
    ax.set(xlabel="components")
axes[0].set_title("AIC (smaller is better)", size=10)
axes[1].set_title("BIC (smaller is better)", size=10)
axes[2].set_title("agreement with the cultivars", size=10)
_ = axes[2].legend(frameon=False)

# %% [markdown]
# ## Restarts
#
# A criterion is only as good as the optimum that it is computed at. EM climbs to the nearest one,
# and with more components there are more of them. Six starts, for three components and for five:
# all take a short run, the best few are run to the end (filled circles), the others are left where
# they are (open ones). `fit.starts` keeps the record.

# %%
started = {k: EM(gaussian_mixture, seed=1, restarts=6).fit(x, components=k) for k in (3, 5)}
fig, ax = plt.subplots(figsize=(6, 1.9), layout="constrained")
for height, fit in enumerate(started.values()):
    carried = np.array(fit.starts.carried)
    below = (fit.starts.best - fit.starts.objectives).numpy()
    style = {"marker": "o", "ls": "none", "ms": 9, "color": COLOURS[height]}
    ax.plot(below[carried], np.full(carried.sum(), height), alpha=0.5, **style)
    ax.plot(below[~carried], np.full((~carried).sum(), height), mfc="none", **style)
ax.set(yticks=[0, 1], yticklabels=[f"{k} components" for k in started], ylim=(-0.6, 1.6))
ax.set_xlabel("log posterior below the best of six starts")
reached = {k: fit.starts.reached for k, fit in started.items()}
for k, fit in started.items():
    print(f"{k} components: {fit.starts}")

# %% [markdown]
# ## The chosen model, refitted
#
# Of BIC's choice we keep the best of the six starts, and number its components by size. The numbers
# of components mean nothing in themselves: `relabel` only puts them in a repeatable order.
# The table shows how they and the cultivars meet.

# %%
final = started[on_wine.options["components"]].relabel()
groups = final.predict().numpy()
print(f"chosen by BIC: {on_wine.options}; {final.stop_reason}")
print(f"weights: {final.params['weights'].numpy().round(3)}")
print(f"adjusted Rand index: {adjusted_rand_score(wines.target, groups):.3f}")
pd.crosstab(
    pd.Series(groups, name="component"),
    pd.Series([wines.target_names[i] for i in wines.target], name="cultivar"),
)

# %%
matched = pd.crosstab(groups, wines.target).idxmax(axis=1)  # each component's commonest cultivar
wrong = matched[groups].to_numpy() != wines.target
unsure = entropy(final)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharex=True, sharey=True)
seen = x[:, [1, 2]]
for k in range(len(final.params["weights"])):
    axes[0].scatter(*seen[groups == k].T, s=16, color=COLOURS[k], label=f"component {k}")
axes[0].scatter(*seen[wrong].T, s=90, fc="none", ec="black", label="another cultivar")
axes[0].legend(frameon=False)
axes[0].set(xlabel="flavanoids", ylabel="colour", title="components, and where they err")
points = axes[1].scatter(*seen.T, s=16, c=unsure, cmap="viridis")
axes[1].scatter(*seen[wrong].T, s=90, fc="none", ec="black")
axes[1].set(xlabel="flavanoids", title="uncertainty of the component")
_ = fig.colorbar(points, ax=axes[1], label="bits")

# %% [markdown]
# The mixture does not know the cultivars, but on average it is less sure of the wines in the wrong
# company than of the others. Not of every single one, as the picture shows.

# %%
print(f"mean uncertainty of the wines in another cultivar's component  {unsure[wrong].mean():.3f}")
print(f"mean uncertainty of all others                                 {unsure[~wrong].mean():.3f}")

# %% [markdown]
# ## What we claimed

# %%
assert swept.table["error"].eq("").all()
assert swept.table["converged"].all()
rising = swept.table.query("covariance == 'tied'")["log_likelihood"]
assert (np.diff(rising) > 1).all()
assert swept.options == {"components": 3, "covariance": "tied"}  # as mclust has it
assert abs(swept.table["bic"].min() - 2314.4) < 0.2
assert (chosen.loc["icl", ["components", "covariance"]] == [2, "full"]).all()
assert chosen.loc["aic", "components"] > 3
assert 5 < gap < 10
assert held.options == {"components": 3, "covariance": "tied"}
assert best_held - two_held < 2 * row_error
assert entropy(three_tied).sum() > 10 * entropy(two_full).sum()
assert on_wine.options == {"components": 3, "covariance": "full"}
assert best.loc["icl", "components"] == 3
assert best.loc["aic", "components"] > 3
assert best.loc["bic", "rand_index"] == on_wine.table["rand_index"].max()
assert best.loc["bic", "rand_index"] > 0.85 > best.loc["aic", "rand_index"] + 0.1
assert reached[3] > reached[5]
assert adjusted_rand_score(wines.target, groups) > 0.85
assert unsure[wrong].mean() > 3 * unsure[~wrong].mean()
assert final.converged
print("all as claimed")
