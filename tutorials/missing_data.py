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
# # Missing data
#
# Tables have gaps. Three things that are done about them:
#
# | | what it does | what it costs |
# |---|---|---|
# | **complete cases** | drops every row with a gap | rows, and a bias if those are special |
# | **mean imputation** | puts the column's mean in | variances and correlations too small |
# | **EM** | counts a row by what was observed of it | nothing, if missing at random |
#
# With Ember the third is the least work: leave the gaps as they are, `NaN`. The likelihood of a row
# is then that of its observed entries $x_o$, the missing ones $x_m$ integrated out,
#
# $$ p(x_o \mid \theta) = \int p(x_o, x_m \mid \theta)\, dx_m, $$
#
# and EM, which was made for this (Dempster, Laird and Rubin, 1977), maximises it: its E-step finds
# the conditional mean *and covariance* of what is missing, given what is not.
#
# *Missing at random* means that whether an entry is missing depends on observed entries only. An
# instrument that fails on hot days is fine, if the temperature is recorded. One that fails where
# its own reading would be high is not, and no method that looks at these data alone repairs that.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Ellipse

from ember.inference import EM
from ember.inference.tables import air_quality, old_faithful
from ember.models import gaussian_mixture

torch.set_default_dtype(torch.float64)
plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"

# %% [markdown]
# ## A table with gaps
#
# Air quality in New York, on 153 days of the summer of 1973. Ozone is missing on every fourth day.

# %%
table = air_quality()
patterns = table.notna().value_counts().rename("days").reset_index()

fig, axes = plt.subplots(
    1, 2, figsize=(10, 3.0), layout="constrained", width_ratios=[2.2, 1], sharey=True
)
left, right = axes
left.imshow(
    table.isna().T, aspect="auto", interpolation="none", cmap=ListedColormap(["#DDE6EE", ORANGE])
)
left.set_yticks(range(4), table.columns)
left.set(xlabel="day", title="what is missing (orange)")
share = table.isna().mean()
right.barh(range(4), 100 * share, color=ORANGE, height=0.6)
for i, value in enumerate(share):
    right.text(100 * value + 0.5, i, f"{int(table.isna().sum().iloc[i])} days", va="center")
right.set(xlabel="missing (%)", xlim=(0, 32), title="by column")
patterns  # noqa: B018

# %% [markdown]
# ## One call
#
# A mixture with one component is a multivariate normal. `explain` says how the gaps are dealt with:
# they are not filled in, so nothing in the M-step had to change.

# %%
em = EM(gaussian_mixture, objective="mle", seed=0)
print(em.explain(table, components=1))
fit = em.fit(table, components=1)
print(fit)

# %% [markdown]
# ## Three answers
#
# The same call, on what complete cases and mean imputation leave of the table.

# %%
methods = {
    "complete cases": em.fit(table.dropna(), components=1),
    "mean imputation": em.fit(table.fillna(table.mean()), components=1),
    "EM": fit,
}
COLOURS = dict(zip(methods, (GREEN, ORANGE, BLUE), strict=True))
STYLES = dict(zip(methods, ((0, (1, 1.5)), (0, (5, 2)), "-"), strict=True))


def moments(fit):
    return fit.params["locs"][0].numpy(), np.linalg.inv(fit.params["precisions"][0].numpy())


def row(fit, what="ozone"):
    mean, covariance = moments(fit)
    deviation = np.sqrt(np.diag(covariance))
    return {
        f"{what}, mean": mean[0],
        f"{what}, sd": deviation[0],
        f"{what}, correlation with temperature": covariance[0, 3] / deviation[0] / deviation[3],
    }


answers = pd.DataFrame({name: row(found) for name, found in methods.items()}).T
answers.round(3)


# %%
def ellipse(ax, mean, covariance, colour, style="-", label=None, deviations=2.0):
    values, vectors = np.linalg.eigh(covariance)
    width, height = 2.0 * deviations * np.sqrt(values)
    angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
    ax.add_patch(
        Ellipse(
            mean, width, height, angle=angle, fill=False, ec=colour, lw=2, ls=style, label=label
        )
    )
    ax.plot(*mean, "+", color=colour, ms=10, mew=2)


fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharex=True, sharey=True)
gone = table["Ozone"].isna()
for ax, which in zip(axes, ("EM", "mean imputation"), strict=True):
    ax.plot(table["Temp"][~gone], table["Ozone"][~gone], ".", color="0.6", ms=5)
    ax.set(xlabel="temperature (F)", title=which)
axes[0].set_ylabel("ozone (ppb)")
guesses = pd.DataFrame(fit.impute().numpy(), columns=table.columns)
axes[0].plot(table["Temp"][gone], guesses["Ozone"][gone], "x", color=BLUE, ms=5)
axes[1].plot(
    table["Temp"][gone], np.full(gone.sum(), table["Ozone"].mean()), "x", color=ORANGE, ms=5
)
for ax, name in zip(axes, ("EM", "mean imputation"), strict=True):
    mean, covariance = moments(methods[name])
    ellipse(ax, mean[[3, 0]], covariance[np.ix_([3, 0], [3, 0])], COLOURS[name])

# %% [markdown]
# Crosses are the days without ozone. Mean imputation puts all of them on one line, whatever the
# weather was: the ellipse flattens and turns. EM's conditional means follow the temperature, the
# wind and the sun of the day. (They are a picture of the fit here, and not what it was fitted to:
# a cloud of conditional means would vary too little as well.)
#
# ## Where the truth is known
#
# Nobody knows the ozone of those days, so these data cannot tell who is right. The 111 complete
# days can: we delete readings from *them*, more often on hot days, and see how well each method
# finds what it would have found without the gaps. Fifty times, and on the logarithm of ozone, for
# which a normal distribution is a fair model: what EM knows of hot days without ozone it has from
# cooler ones, by way of the model.

# %%
complete = table.dropna().assign(Ozone=lambda days: np.log(days["Ozone"])).to_numpy()
truth = row(em.fit(torch.tensor(complete), components=1), "log ozone")
generator = np.random.default_rng(0)
hot = 1.0 / (1.0 + np.exp(-(complete[:, 3] - 82.0) / 4.0))
errors = {name: [] for name in methods}
for _ in range(50):
    x = complete.copy()
    x[generator.random(len(x)) < 0.9 * hot, 0] = np.nan
    x[generator.random(len(x)) < 0.15, 1] = np.nan
    kept = x[~np.isnan(x).any(1)]
    filled = np.where(np.isnan(x), np.nanmean(x, axis=0), x)
    for name, data in zip(methods, (kept, filled, x), strict=True):
        found = row(em.fit(torch.tensor(data), components=1), "log ozone")
        errors[name].append([found[key] / truth[key] - 1.0 for key in truth])
errors = {name: 100.0 * np.array(values) for name, values in errors.items()}

fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained", sharey=True)
for i, (ax, key) in enumerate(zip(axes, truth, strict=True)):
    boxes = ax.boxplot(
        [values[:, i] for values in errors.values()],
        patch_artist=True,
        widths=0.6,
        showfliers=False,
    )
    for patch, colour in zip(boxes["boxes"], COLOURS.values(), strict=True):
        patch.set(facecolor=colour, alpha=0.75)
    plt.setp(boxes["medians"], color="white")
    ax.axhline(0.0, color=GREY, lw=1, zorder=0)
    ax.set_title(key.replace(", corr", ",\ncorr"), size=10)
    ax.set_xticks([1, 2, 3], ["complete\ncases", "mean\nimputation", "EM"], size=8)
_ = axes[0].set_ylabel("error (%)")

# %% [markdown]
# Complete cases see the cool days only: less ozone, and a smaller spread. Mean imputation adds the
# fault of its own, no variance at all in what it filled in. EM comes close. What is left of its
# error is the model's: it extends to hot days the straight line that it sees on cooler ones.
#
# ## What might the missing values have been?
#
# `fit.impute()` gives conditional means; `fit.impute(draws=...)` gives draws from the conditional
# distribution. The means are the better guess of one value. The draws show how sure the guess is,
# and a table filled with a draw varies as the data do, so that what is computed from it is not too
# sure of itself. (The parameters are taken as known. Rubin's multiple imputation also draws them.)

# %%
means = fit.impute()[:, 0].numpy()
draws = fit.impute(draws=500, seed=0)[:, :, 0].numpy()
low, high = np.quantile(draws, [0.05, 0.95], axis=0)
days = np.arange(len(table))
fig, ax = plt.subplots(figsize=(10, 3.3), layout="constrained")
ax.plot(days, table["Ozone"], ".-", color="0.55", lw=0.8, ms=4, label="observed")
ax.vlines(days[gone], low[gone], high[gone], color=BLUE, alpha=0.35, lw=3, label="90% of the draws")
ax.plot(days[gone], means[gone], "o", color=BLUE, ms=4, label="conditional mean")
ax.axhline(0.0, color=GREY, lw=0.8)
ax.set(xlabel="day", ylabel="ozone (ppb)", xlim=(-1, 153))
_ = ax.legend(frameon=False, ncols=3, loc="upper left")

# %%
spread = pd.Series(
    {
        "observed days": table["Ozone"].std(),
        "EM's estimate for all days": row(fit)["ozone, sd"],
        "table filled with means": means.std(),
        "table filled with a draw (average of 500)": draws.std(1).mean(),
    },
    name="standard deviation of ozone",
)
spread.round(2).to_frame()

# %% [markdown]
# Some draws are below zero: a normal distribution does not know that ozone cannot be. On the square
# root or the logarithm of ozone it would be a better model; gaps need no care in that either.
#
# ## Clusters with gaps
#
# The same holds for every mixture in `ember.models`, and for any model of your own in Pyro: `NaN`
# in the data of an observed site is a missing entry. Here 35 percent of Old Faithful's entries are
# deleted at random. Mean imputation draws a cross through the data, and the components swell to
# reach its arms.

# %%
whole = torch.tensor(old_faithful().to_numpy())
torch.manual_seed(1)
holed = whole.masked_fill(torch.rand(whole.shape) < 0.35, torch.nan)
crossed = torch.where(holed.isnan(), holed.nanmean(0), holed)
clusters = {
    "without gaps": EM(gaussian_mixture, seed=0).fit(whole, components=2),
    "EM on what is left": EM(gaussian_mixture, seed=0).fit(holed, components=2),
    "mean imputation": EM(gaussian_mixture, seed=0).fit(crossed, components=2),
}
shown = {"without gaps": whole, "EM on what is left": holed, "mean imputation": crossed}
fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharex=True, sharey=True)
for ax, (name, found), colour in zip(axes, clusters.items(), (GREEN, BLUE, ORANGE), strict=True):
    ax.plot(*shown[name].T, ".", color="0.6", ms=4)
    if name == "EM on what is left":  # rows with one entry have a place on the margin
        only = holed.isnan().sum(1) == 1
        ax.plot(holed[only, 0], np.full(only.sum(), 38.0), "|", color="0.5", ms=7)
        ax.plot(np.full(only.sum(), 1.1), holed[only, 1], "_", color="0.5", ms=7)
    for loc, precision in zip(found.params["locs"], found.params["precisions"], strict=True):
        ellipse(ax, loc.numpy(), np.linalg.inv(precision.numpy()), colour)
    ax.set(title=name, xlabel="eruption (minutes)")
_ = axes[0].set_ylabel("wait for the next (minutes)")

# %%
within = pd.DataFrame(
    {
        name: torch.linalg.inv(found.relabel("locs").params["precisions"])
        .diagonal(dim1=1, dim2=2)
        .sqrt()
        .flatten()
        .numpy()
        for name, found in clusters.items()
    },
    index=["short ones: eruption", "short ones: wait", "long ones: eruption", "long ones: wait"],
).T
within.rename_axis("sd within a kind (minutes)").round(2)

# %% [markdown]
# ## What we claimed

# %%
# lavaan (full-information maximum likelihood) gives the same figures for these data.
assert abs(fit.log_likelihood - (-2326.697382798)) < 1e-6
assert np.allclose(moments(fit)[0], [41.8711730, 184.8468062, 9.9575163, 77.8823529], rtol=1e-5)
assert fit.converged
assert "44 of 612 entries missing" in str(em.explain(table, components=1))
assert answers.loc["mean imputation", "ozone, sd"] < 0.9 * answers.loc["EM", "ozone, sd"]
average = {name: np.abs(values.mean(0)) for name, values in errors.items()}
assert (average["EM"] < 8.0).all()
assert (average["mean imputation"] > 3.0 * average["EM"]).all()
assert (average["complete cases"] > 1.5 * average["EM"]).all()
assert spread["table filled with means"] < spread["EM's estimate for all days"]
assert abs(spread.iloc[3] / spread.iloc[1] - 1.0) < 0.03
assert np.array_equal(fit.impute().numpy()[table.notna()], table.to_numpy()[table.notna()])
off = (within / within.loc["without gaps"] - 1.0).abs()
assert (off.loc["EM on what is left"] < 0.12).all()
assert (off.loc["mean imputation"] > off.loc["EM on what is left"]).all()
assert off.loc["mean imputation"].max() > 1.0  # more than twice as wide
truth_locs = clusters["without gaps"].relabel("locs").params["locs"]
found_locs = clusters["EM on what is left"].relabel("locs").params["locs"]
assert ((found_locs / truth_locs - 1.0).abs() < 0.05).all()
print("all as claimed")
