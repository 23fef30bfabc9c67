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
# # How sure is an EM fit?
#
# EM ends at a point. How far from the truth may it be? The classical answer needs the curvature of
# the log likelihood there, with the latents integrated out, and EM is said not to give it. It does:
# by Fisher's identity, the gradient of the log likelihood at any parameters is that of the expected
# log joint, which one E-step provides. So two E-steps for each free parameter, a little to both
# sides, give the matrix of second derivatives, and with it
#
# $$\operatorname{Cov}\hat\theta \approx J \bigl(-\nabla^2_u \log p(x \mid \hat\theta)\bigr)^{-1}
#   J^\top,$$
#
# with $u$ the parameters in free coordinates (logarithms, log-ratios, log-Cholesky factors) and $J$
# the Jacobian of the way back. No resampling, and no derivative through the sum over latents
# (Louis 1982, JRSS B 44, 226-233; Jamshidian & Jennrich 2000, JRSS B 62, 257-270).

# %%
# %matplotlib inline
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch

from ember.inference import EM
from ember.inference.tables import law_school_test, old_faithful
from ember.models import (
    gaussian_mixture,
    hidden_markov_poisson,
    item_response,
    poisson_mixture,
    regression_mixture,
)

torch.set_default_dtype(torch.float64)
plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)
BLUE, RED, GREY = "#0072B2", "#D55E00", "0.6"

# %% [markdown]
# ## The first example of EM
#
# Rao's 197 animals fall in four cells with probabilities $\tfrac12 + \tfrac\theta4$, twice
# $\tfrac{1 - \theta}4$, and $\tfrac\theta4$. The first cell is the sum of two, and which of them an
# animal is in was not seen. Dempster, Laird and Rubin began with these data in 1977; Louis gave the
# standard error in 1982: 0.0515.


# %%
def linkage(cell):
    theta = pyro.sample("theta", dist.Uniform(0.0, 1.0))
    rest = 0.25 * (1.0 - theta)
    five = torch.stack([torch.full_like(theta, 0.5), 0.25 * theta, rest, rest, 0.25 * theta])
    looks = torch.eye(4)[[0, 0, 1, 2, 3]]
    with pyro.plate("animals", len(cell)):
        z = pyro.sample("z", dist.Categorical(five))
        pyro.sample("cell", dist.Categorical(looks[z]), obs=cell)


cells = torch.arange(4).repeat_interleave(torch.tensor([125, 18, 20, 34]))
animals = EM(linkage, objective="mle").fit(cells)
print(animals.summary(errors=True))
print(animals)
assert abs(float(animals.standard_errors()["theta"]) - 0.0515) < 5e-5

# %% [markdown]
# The error is the width of the likelihood at its top. Below, the log likelihood of $\theta$ and the
# parabola of that curvature. The interval is made on the logit of $\theta$, so it is a little
# longer to the left here, as the likelihood is, and it cannot leave the range from 0 to 1.
#
# `print(fit)` says by what the place is a maximum: the gradient, and the least curvature relative
# to what it would be if nothing were latent. It is 0.867 here: 13 % of the information is missing.
# The same 0.133 is the rate at which plain EM converges.

# %%
theta, error = float(animals.params["theta"]), float(animals.standard_errors()["theta"])
lower, upper = (float(end) for end in animals.confidence_intervals()["theta"])
grid = np.linspace(theta - 3.2 * error, theta + 3.2 * error, 200)
counts = np.array([125, 18, 20, 34])
shares = np.stack([2 + grid, 1 - grid, 1 - grid, grid]) / 4
height = counts @ np.log(shares) - animals.log_likelihood

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(grid, height, color=BLUE, linewidth=2, label="log likelihood")
axes.plot(
    grid, -((grid - theta) ** 2) / (2 * error**2), color=RED, linestyle="--", label="curvature"
)
axes.axvspan(lower, upper, color=GREY, alpha=0.2, linewidth=0, label="95 % interval")
axes.axvline(theta, color=GREY, linewidth=1)
axes.set(xlabel=r"$\theta$", ylabel="below the maximum", ylim=(-5.5, 0.3))
axes.legend(frameon=False, loc="lower center")
plt.show()
assert abs(animals.certificate.curvature - 0.8672) < 1e-3

# %% [markdown]
# ## Against a bootstrap
#
# The way without derivatives is to draw the rows of the Old Faithful data again, with replacement,
# and to fit each such sample. Here rows are not copied but weighed (`frequency`), and each fit
# begins at the estimates, which makes the bootstrap as fast as it can be.

# %%
eruptions = old_faithful()
began = time.perf_counter()
faithful = EM(gaussian_mixture, objective="mle", seed=0).fit(eruptions, components=2)
fitted = time.perf_counter()
errors = faithful.standard_errors()
asked = time.perf_counter()

generator = np.random.default_rng(0)
again = EM(gaussian_mixture, objective="mle", init=faithful.params)
samples = []
for _ in range(200):
    drawn = generator.multinomial(len(eruptions), np.full(len(eruptions), 1 / len(eruptions)))
    samples.append(again.fit(eruptions, components=2, frequency=drawn).params)
ended = time.perf_counter()
print(f"fit {fitted - began:.2f} s, standard errors {asked - fitted:.2f} s, "
      f"bootstrap of 200 {ended - asked:.1f} s")  # fmt: skip

# %%
labels, values, curvature, robust, resampled = [], [], [], [], []
sandwich = faithful.standard_errors(robust=True)
for name in ("weights", "locs", "precisions"):
    drawn = torch.stack([params[name] for params in samples]).std(0)
    for index in np.ndindex(*faithful.params[name].shape):
        if (name == "precisions" and index[1] > index[2]) or (name == "weights" and index[0]):
            continue  # what follows from another entry
        labels.append(f"{name}{list(index)}")
        curvature.append(float(errors[name][index]))
        robust.append(float(sandwich[name][index]))
        resampled.append(float(drawn[index]))
curvature, robust, resampled = map(np.array, (curvature, robust, resampled))

figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
places = np.arange(len(labels))
axes.axhline(1.0, color=GREY, linewidth=1)
noise = 1 / np.sqrt(2 * len(samples))
axes.axhspan(1 - 2 * noise, 1 + 2 * noise, color=GREY, alpha=0.2, linewidth=0)
axes.plot(places, curvature / resampled, "o", color=BLUE, label="curvature")
axes.plot(places, robust / resampled, "D", color=RED, markersize=5, label="sandwich")
axes.set_xticks(places, labels, rotation=40, ha="right")
axes.set(ylabel="standard error / that of the bootstrap", ylim=(0.5, 1.4))
axes.legend(frameon=False, ncols=2, loc="upper center")
plt.show()
assert np.abs(robust / resampled - 1).max() < 0.35
assert np.median(np.abs(robust / resampled - 1)) < 0.1

# %% [markdown]
# The grey band is what 200 samples leave uncertain of the bootstrap itself. The sandwich,
# `robust=True`, comes nearer to the bootstrap than the curvature alone, which is far too sure of
# the precision of the duration of short eruptions, and says by this that these are not normal.
# Which leads to the question what an error is worth if the model is wrong.
#
# ## When the model is wrong
#
# The curvature is the right answer if the data come from the model. If only the part of interest is
# right, such as the line of a regression, the scores of the rows tell how much they really vary:
#
# $$I^{-1} \Bigl(\sum_n s_n s_n^\top\Bigr) I^{-1}, \qquad
#   s_n = \nabla_u \log p(x_n \mid \hat\theta)$$
#
# (White 1982, Econometrica 50, 1-25). Counts that vary more than Poisson's are the common case.


# %%
def overdispersed(seed):
    """Counts with the mean exp(0.5 + 0.8 x) and far more noise than Poisson's at large x."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.5, 1.5, size=300)
    mean = np.exp(0.5 + 0.8 * x)
    return x, rng.poisson(mean * rng.gamma(1.0, 1.0, size=300)).astype(float)


def slope_intervals(seed):
    x, y = overdispersed(seed)
    fit = EM(regression_mixture, objective="mle", seed=0).fit(y, x, components=1, family="poisson")
    found = [fit.confidence_intervals(robust=robust)["coefficients"] for robust in (False, True)]
    return np.array([[float(end[0, 1]) for end in interval] for interval in found])


intervals = np.stack([slope_intervals(seed) for seed in range(100)])
covers = (intervals[..., 0] < 0.8) & (intervals[..., 1] > 0.8)
print("95 % intervals that cover the true slope:", covers.mean(0))

figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
for k, (axes, title) in enumerate(zip(panels, ("curvature", "sandwich"), strict=True)):
    colours = np.where(covers[:, k], GREY, RED)
    axes.hlines(np.arange(100), *intervals[:, k].T, color=colours, linewidth=1.2)
    axes.axvline(0.8, color=BLUE, linewidth=1.2)
    axes.set(title=f"{title}: {covers[:, k].sum()} of 100 cover", xlabel="slope")
panels[0].set_ylabel("data set")
plt.show()
assert covers[:, 0].mean() < 0.8 < 0.88 < covers[:, 1].mean()

# %% [markdown]
# ## Do the intervals hold what they promise?
#
# If the model is right, a 95 % interval should cover the truth 19 times out of 20, as long as there
# are enough data for the log likelihood to be about a parabola. Try it on mixtures of two Poisson
# rates, from few rows to many. (`make coverage` does the same for 500 data sets of five models.)

# %%
truth = {"weights": torch.tensor([0.6, 0.4]), "rates": torch.tensor([2.0, 8.0])}


def coverage(rows, sets=60):
    hits = []
    for seed in range(sets):
        rng = np.random.default_rng(seed)
        counts = rng.poisson(np.where(rng.random(rows) < 0.6, 2.0, 8.0)).astype(float)
        fit = EM(poisson_mixture, objective="mle", init=truth).fit(counts, components=2)
        for name, (low, high) in fit.confidence_intervals().items():
            hits += ((low <= truth[name]) & (truth[name] <= high)).tolist()
    return np.mean(hits)


sizes = [30, 100, 300]
shares = [coverage(rows) for rows in sizes]
print(dict(zip(sizes, np.round(shares, 3), strict=True)))
assert min(shares) > 0.88
assert max(shares) < 0.99

# %% [markdown]
# ## What has no standard error
#
# Some estimates have none, and a number would be a lie. A chain that was never seen to leave a
# state has the estimate 0 for that move: it lies at a *boundary*, where the likelihood does not
# have the shape of a parabola.

# %%
counts = torch.tensor([1.0, 1, 2, 1, 1, 9, 9, 8, 7, 10])
chain = EM(hidden_markov_poisson, objective="mle", seed=0).fit(counts, states=2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    table = chain.summary(errors=True)
print(table)
print(*(each.message for each in caught), sep="\n")
assert np.isnan(table.loc["transition[0, 1]", "std. error"])

# %% [markdown]
# Other values are *not identified*: all of them fit equally well. Deaths of women over 80 in The
# Times, 1910 to 1912, are a mixture of two Poisson rates (Hasselblad 1969). A third component has
# nothing left to do. It comes to the same rate as another, and their shares could be anything. What
# is known of the remaining component is the same as with two.

# %%
deaths = torch.arange(10.0)
days = torch.tensor([162, 267, 271, 185, 111, 61, 27, 8, 3, 1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    three = EM(poisson_mixture, objective="mle", seed=0).fit(deaths, components=3, frequency=days)
    table = three.summary(errors=True)
print(table)
print(*(each.message for each in caught), sep="\n")
two = EM(poisson_mixture, objective="mle", seed=0).fit(deaths, components=2, frequency=days)
print(two.summary(errors=True))
assert int(table["std. error"].isna().sum()) == 4
assert not two.summary(errors=True).isna().any().any()

# %% [markdown]
# The errors of what remains take a value at the boundary as known. With a prior (MAP) both go
# away: the posterior has its top inside, and the errors are those of the log posterior.
#
# ## From errors to pictures and draws
#
# `fit.plot(errors=True)` draws confidence bands: here the curves of the five items of the Law
# School Admission Test. Few of the 1000 persons have abilities below -2, so the curves are vague
# there. The errors of difficulties, which the model computes, come from the delta method; they are
# those that the R package ltm prints.

# %%
test = EM(item_response, objective="mle").fit(law_school_test(), model="2pl")
print(test.summary(errors=True).round(3))
published = [0.2581, 0.1867, 0.2326, 0.1852, 0.2100]
assert np.allclose(test.standard_errors()["discriminations"], published, atol=3e-4)
test.plot(errors=True)

# %% [markdown]
# `fit.laplace_samples(n)` draws parameters from the normal approximation in free coordinates, so
# that any function of them has its spread at once: below, the probability that a person of average
# ability solves the first item and not the third.

# %%
draws = test.laplace_samples(4000, seed=0)
solved = torch.sigmoid(draws["intercepts"])
both = solved[:, 0] * (1 - solved[:, 2])
low, high = np.quantile(both.numpy(), [0.025, 0.975])
print(f"{float(both.mean()):.3f}, 95 % from {low:.3f} to {high:.3f}")
assert low < 0.4133 < high

# %% [markdown]
# ## What to remember
#
# - `fit.summary(errors=True)`, `standard_errors()`, `vcov()`, `confidence_intervals()`: two E-steps
#   for each free parameter, for every model that Ember fits, whatever its latents.
# - `robust=True` where rows are independent and the model of their spread may be wrong.
# - NaN, with a sentence, for estimates at a boundary and for what the data do not identify.
# - All of it is about one maximum. It does not know of other local optima: `restarts` do.
