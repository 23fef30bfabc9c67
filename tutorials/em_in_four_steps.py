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
# # The EM algorithm in four steps
#
# Many models would be easy to fit if only we knew something that was not recorded: which group
# a row belongs to, which state a system was in. The EM algorithm fits such models by turns. It
# fills in what is missing with its expectation, fits the completed data, and repeats:
#
# 1. **initialise** the parameters;
# 2. **E-step**: with the parameters given, find the distribution of what is missing;
# 3. **M-step**: with that distribution given, find the parameters that fit best;
# 4. **check convergence**, and go back to 2 until nothing is left to gain.
#
# In Ember each step is a method of `EM` with that name. This notebook runs them one by one on a
# mixture of two Gaussians, looks at what each of them does, and then at two things that textbooks
# mention and pictures show better: EM may end at the wrong optimum, and it may take its time.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Ellipse, FancyBboxPatch, Polygon

from ember.inference import EM
from ember.inference.tables import old_faithful

torch.set_default_dtype(torch.float64)
plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"

# %% [markdown]
# ## The flow chart
#
# The E-step also reports the log likelihood at the parameters that it was given, so convergence
# is judged right after it.


# %%
def box(ax, x, y, title, code, colour, width=2.3, height=1.0):
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.15"
    ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, fc="white", ec=colour, lw=2))
    ax.text(x, y + 0.18, title, ha="center", va="center", weight="bold", color=colour)
    ax.text(x, y - 0.22, code, ha="center", va="center", family="monospace", size=9)


def arrow(ax, *points, label="", at=(0.0, 0.0)):
    ax.plot(*zip(*points[:-1], strict=True), color=GREY, lw=1.5)
    style = {"arrowstyle": "-|>", "color": GREY, "lw": 1.5, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", points[-1], points[-2], arrowprops=style)
    ax.text(*at, label, ha="center", va="center", color=GREY)


def flow_chart():
    _, ax = plt.subplots(figsize=(10.5, 3.2), layout="constrained")
    box(ax, 1.2, 2.2, "1  Initialise", "em.initialise(x)", GREY, width=2.4)
    box(ax, 4.4, 2.2, "2  E-step", "em.e_step(params, x)", BLUE, width=2.7)
    ax.add_patch(
        Polygon([(6.4, 2.2), (8.0, 3.15), (9.6, 2.2), (8.0, 1.25)], fc="white", ec=GREEN, lw=2)
    )
    ax.text(8.0, 2.36, "4  Converged?", ha="center", va="center", weight="bold", color=GREEN)
    ax.text(8.0, 1.98, "em.converged(…)", ha="center", va="center", family="monospace", size=9)
    box(ax, 11.4, 2.2, "Estimates", "params", GREY, width=1.9)
    box(ax, 6.2, 0.4, "3  M-step", "em.m_step(stats)", ORANGE)
    arrow(ax, (2.4, 2.2), (3.05, 2.2))
    arrow(ax, (5.75, 2.2), (6.4, 2.2), label="stats", at=(6.03, 2.42))
    arrow(ax, (9.6, 2.2), (10.45, 2.2), label="yes", at=(9.95, 2.42))
    arrow(ax, (8.0, 1.25), (8.0, 0.4), (7.35, 0.4), label="no", at=(8.25, 0.85))
    arrow(ax, (5.05, 0.4), (4.4, 0.4), (4.4, 1.7), label="params", at=(3.9, 0.95))
    ax.set(xlim=(-0.1, 12.6), ylim=(-0.2, 3.25), aspect="equal")
    ax.axis("off")


flow_chart()

# %% [markdown]
# ## Data and model
#
# Old Faithful is a geyser in Yellowstone National Park. For 272 eruptions we know how long each
# took and how long the wait for the next one was, both in minutes. There seem to be two kinds of
# eruption, but which kind each one was is not recorded.
#
# The model says so in plain Pyro. Each row draws its kind `z` and then its values from the
# Gaussian of that kind. Nothing in it is written for EM: Ember reads it and finds that `z` is
# discrete and unobserved, hence **latent**, and that the other unobserved sites are continuous,
# hence **parameters**.

# %%
table = old_faithful()
x = torch.tensor(table.to_numpy(), dtype=torch.float64)


def two_gaussians(x):
    columns = x.shape[1]
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        precisions = pyro.sample(
            "precisions", dist.Wishart(torch.tensor(columns + 2.0), torch.eye(columns))
        )
        locs = pyro.sample(
            "locs", dist.MultivariateNormal(x.mean(0), precision_matrix=0.01 * precisions)
        )
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], precision_matrix=precisions[z]), obs=x)


# %% [markdown]
# `objective="mle"` leaves the priors out: we look for the maximum of the likelihood, whose value
# is published. `explain` shows the routine that Ember found for this model: the latent site is
# summed over its two values, and every parameter has an update in closed form.

# %%
em = EM(two_gaussians, objective="mle", init="random", seed=1)
em.explain(x)

# %% [markdown]
# ## 1. Initialise
#
# Random responsibilities are a poor start, which makes a good picture: both components begin as
# nearly the same Gaussian. (The default start, `init="kmeans"`, would be at the goal too soon.)

# %%
params = em.initialise(x)
for name, value in params.items():
    print(name, value.tolist())

# %% [markdown]
# ## 2. The E-step
#
# With the parameters given, Bayes' rule says how probable it is that row $n$ is of kind $k$. These
# probabilities are called **responsibilities**:
#
# $$ r_{nk} = \frac{w_k \, \mathcal{N}(x_n \mid \mu_k, \Sigma_k)}
#                  {\sum_j w_j \, \mathcal{N}(x_n \mid \mu_j, \Sigma_j)}. $$
#
# `e_step` returns what the M-step needs of them, summed over rows, and the log likelihood at
# `params`.

# %%
stats = em.e_step(params, x)
print(f"log likelihood at the start: {stats.log_likelihood:.3f}")


def responsibilities(params):
    kinds = dist.MultivariateNormal(params["locs"], precision_matrix=params["precisions"])
    log_joint = params["weights"].log() + kinds.log_prob(x[:, None])
    return log_joint.softmax(-1)


# %% [markdown]
# ## 3. The M-step
#
# With the responsibilities given, the best parameters are weighted averages. We can check the
# locations by hand: $\mu_k = \sum_n r_{nk} x_n / \sum_n r_{nk}$.

# %%
better = em.m_step(stats)
r = responsibilities(params)
by_hand = (r.T @ x) / r.sum(0)[:, None]
print("locs by Ember  ", better["locs"].tolist())
print("locs by hand   ", by_hand.tolist())

# %% [markdown]
# ## 4. Converged?
#
# One E-step and one M-step together never lower the likelihood, so we repeat them until nothing
# is left to gain. `converged` looks at the results of the last three E-steps. It does not ask
# whether the last step was small, since EM may take small steps for a long time, but estimates
# from the way the steps shrink how much is still to come.
#
# This is the whole algorithm:

# %%
params = em.initialise(x)
history = [em.e_step(params, x)]
while not em.converged(history):
    params = em.m_step(history[-1])
    history.append(em.e_step(params, x))

objective = np.array([stats.log_likelihood for stats in history])
print(f"{len(history) - 1} iterations, log likelihood {objective[-1]:.6f}")

# %% [markdown]
# `em.fit(x)` runs the same loop, and returns a `Fit` that knows how it went.

# %%
plain = EM(two_gaussians, objective="mle", init="random", seed=1, accelerate=None).fit(x)
print(plain)

# %% [markdown]
# ### What the iterations do
#
# Each point is coloured by its responsibility: blue for one kind, orange for the other, grey for
# undecided. The ellipses hold 90 % of each component.

# %%
BLEND = LinearSegmentedColormap.from_list("kinds", [ORANGE, "#cccccc", BLUE])


def ellipse(ax, loc, precision, colour, **style):
    """The contour of a Gaussian that holds 90 % of it."""
    values, vectors = np.linalg.eigh(np.linalg.inv(precision))
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
    height, width = 2 * np.sqrt(values * -2 * np.log(0.1))
    ax.add_patch(Ellipse(loc, width, height, angle=angle, fc="none", ec=colour, lw=2, **style))


def draw(ax, params, title, **style):
    ax.scatter(*x.T, c=responsibilities(params)[:, 0], cmap=BLEND, vmin=0, vmax=1, s=10, **style)
    for k, colour in enumerate([BLUE, ORANGE]):
        ellipse(ax, params["locs"][k].numpy(), params["precisions"][k].numpy(), colour)
    ax.set_title(title, size=10)
    ax.set(xlim=(0.4, 6.2), ylim=(33, 104), xlabel="eruption (minutes)")


shown = [0, 16, 20, len(history) - 1]
fig, axes = plt.subplots(1, 4, figsize=(11, 3.1), sharey=True, layout="constrained")
for ax, i in zip(axes, shown, strict=True):
    draw(ax, history[i].params, f"iteration {i}: {objective[i]:.1f}")
axes[0].set_ylabel("wait for the next (minutes)")
_ = fig.colorbar(axes[0].collections[0], ax=axes, label="responsibility", pad=0.01)

# %% [markdown]
# ### The rising objective
#
# On the left the log likelihood, which never falls. On the right its distance to the optimum, on
# a logarithmic scale: after a slow beginning, in which the two components come apart, it becomes a
# straight line. Each iteration leaves 5.7 % of the distance. This is how EM converges: linearly,
# and the slower the more information is missing. Here the two kinds hardly overlap, so that is
# little.

# %%
optimum = -1130.263960185
gap = np.maximum(optimum - objective, 1e-10)
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot(objective, "o-", color=BLUE, ms=3)
left.axhline(optimum, color=GREY, lw=1, ls="--")
left.text(0, optimum - 6, f"optimum {optimum:.3f}", color=GREY, va="top")
left.set(xlabel="iteration", ylabel="log likelihood")
right.semilogy(gap, "o-", color=BLUE, ms=3)
_ = right.set(xlabel="iteration", ylabel="distance to the optimum")

# %% [markdown]
# ## A bad start
#
# EM climbs the hill it stands on. Here we start the two locations at two rows of the data, and
# give both components the covariance of all data: a common way to begin. For one pair of rows, both
# from the same cloud, plain EM ends somewhere else.

# %%
overall = torch.linalg.inv(torch.cov(x.T))


def start_at(i, j):
    return {
        "weights": torch.tensor([0.5, 0.5]),
        "locs": x[[i, j]],
        "precisions": torch.stack([overall, overall]),
    }


pair = torch.tensor([[4.533, 84.0], [4.767, 78.0]])
rows = [int((x == row).all(1).nonzero()[0]) for row in pair]
stuck = EM(two_gaussians, objective="mle", init=start_at(*rows), accelerate=None).fit(x)
print(f"log likelihood {stuck.log_likelihood:.4f} after {stuck.iterations} iterations")

# %% [markdown]
# The log likelihood is 155 below the optimum, yet EM has no reason to leave: if we jolt the
# parameters by a few per cent, it comes back, as it does to a local maximum. One component has
# become a thin slice across both clouds.
#
# The curve on the right is a warning about stopping rules. After twenty iterations each gains about
# a hundredth, and one may take that for the end; yet more than a unit is still to come, and
# around iteration 120 the gains even grow again.

# %%
torch.manual_seed(0)
jolted = {
    "weights": stuck.params["weights"],
    "locs": stuck.params["locs"] * (1 + 0.01 * torch.randn(2, 2)),
    "precisions": stuck.params["precisions"] * 1.05,
}
again = EM(two_gaussians, objective="mle", init=jolted).fit(x)
print(f"jolted by a few per cent, and back at {again.log_likelihood:.4f}")

fig, (left, middle, right) = plt.subplots(
    1, 3, figsize=(11, 3.2), width_ratios=[1, 1, 1.4], layout="constrained"
)
draw(left, stuck.params, f"the bad start ends at {stuck.log_likelihood:.2f}")
left.scatter(*x[rows].T, marker="X", s=90, color="black", edgecolor="white", label="start")
left.legend(frameon=False, loc="upper left", handletextpad=0.1)
draw(middle, plain.params, f"the optimum is {plain.log_likelihood:.2f}")
left.set_ylabel("wait for the next (minutes)")
right.plot(stuck.history, color=BLUE)
right.set(xlabel="iteration", ylabel="log likelihood", ylim=(-1287.6, -1285.0))
_ = right.set_title("the objective on the way to the bad end", size=10)

# %% [markdown]
# ### Restarts
#
# No rule tells a local maximum from the global one, so we try several starts and keep the best. How
# rare is the bad end? We start at 40 random pairs of rows; this is how the pair above was found.

# %%
torch.manual_seed(0)
ends = []
for _ in range(40):
    i, j = torch.randperm(len(x))[:2].tolist()
    em = EM(two_gaussians, objective="mle", init=start_at(i, j))
    ends.append(round(em.fit(x).log_likelihood, 2))
print(pd.Series(ends).value_counts().to_string())

# %% [markdown]
# `restarts=` makes several starts for any model. All take a short run, together; the best of them
# (and the one given, here the bad one) are run to the end. `fit.starts` tells how each began, what
# it came to, and how many reached the best.

# %%
escaped = EM(two_gaussians, objective="mle", init=start_at(*rows), restarts=5, seed=0).fit(x)
for kind, value in zip(escaped.starts.kinds, escaped.starts.objectives, strict=True):
    print(f"{kind:>12}: {value:.3f}")
print(f"starts: {escaped.starts}")

# %% [markdown]
# ## Acceleration
#
# An EM iteration is a map from parameters to parameters, so anything that finds fixed points of
# maps faster may be wrapped around it. By default Ember uses SQUAREM, and in long runs Newton's
# method, for mixtures with few parameters, or L-BFGS. SQUAREM jumps further in the direction of two
# EM steps, and keeps the jump only if the objective has not suffered; the others ask the same of
# their steps. So the objective still never falls. An iteration then costs up to three passes over
# the data instead of one, and the fair comparison is by passes.
#
# From a good start there is little to win. From the slow start above there is more:

# %%
names = {
    None: "none (plain EM)",
    "auto": "auto (default)",
    "squarem": "squarem",
    "anderson": "anderson",
    "lbfgs": "lbfgs",
}
runs = {
    how: EM(two_gaussians, objective="mle", init=start_at(*rows), accelerate=how).fit(x)
    for how in names
}
comparison = pd.DataFrame(
    {
        "log likelihood": [run.log_likelihood for run in runs.values()],
        "iterations": [run.iterations for run in runs.values()],
        "passes over the data": [run.evaluations for run in runs.values()],
    },
    index=pd.Index(names.values(), name="acceleration"),
)
comparison.round(4)

# %% [markdown]
# Acceleration leads to the same local optimum sooner; it does not lead to a better one. That is
# what restarts are for.

# %% [markdown]
# ## What we claimed

# %%
assert abs(objective[-1] - optimum) < 1e-6
assert abs(plain.log_likelihood - (-1130.264)) < 5e-4  # as published
assert (np.diff(objective) > -1e-9).all()  # it never falls
assert torch.allclose(better["locs"], by_hand, rtol=1e-10)
assert torch.allclose(responsibilities(plain.params), plain.posterior("z").probs, atol=1e-8)
assert plain.iterations == len(history) - 1  # the loop by hand is the loop of `fit`
assert np.allclose(plain.history, objective, atol=1e-9)
near = gap[(gap < 1e-2) & (gap > 1e-8)]
assert np.allclose(near[1:] / near[:-1], 0.057, atol=0.003)  # linear: a constant factor
assert abs(stuck.log_likelihood - (-1285.3126)) < 1e-3
assert abs(again.log_likelihood - stuck.log_likelihood) < 1e-3
assert ends.count(-1130.26) >= 35
assert -1285.31 in ends
assert abs(escaped.log_likelihood - optimum) < 1e-6
assert abs(float(escaped.starts.objectives[0]) - stuck.log_likelihood) < 1e-3
assert max(runs[how].evaluations for how in ("auto", "squarem")) < runs[None].evaluations / 2
assert all(abs(run.log_likelihood - stuck.log_likelihood) < 1e-4 for run in runs.values())
assert all(run.converged for run in runs.values())
print("all as claimed")
