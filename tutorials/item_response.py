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
# # Item response: a continuous latent
#
# A thousand people answered five questions of the Law School Admission Test, right or wrong.
# What does an answer say of the question, and what of the person? In the two-parameter model
# every person $n$ has an ability $\theta_n$, every item $j$ a discrimination $a_j$ and a
# difficulty $b_j$, and
#
# $$ \theta_n \sim \mathcal N(0, 1), \qquad
#    \operatorname{logit} P(y_{nj} = 1) = a_j (\theta_n - b_j) = a_j \theta_n + d_j. $$
#
# Ability is latent, as the component of a mixture is, but continuous. Estimating it for each
# person together with the items, as if it were a parameter, is biased; we shall see how much. EM
# integrates over it instead. The integral has no closed form, so it is taken on a fixed grid of
# *nodes*, and a latent on nodes is nothing but a discrete one of 61 values (Bock & Aitkin 1981).

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from ember.inference import EM, SVI, Quadrature, compare, select
from ember.inference.tables import law_school_test
from ember.models import item_response

torch.set_default_dtype(torch.float64)
plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)
answers = law_school_test(section=7)
answers.head(3)

# %% [markdown]
# ## What EM makes of the model
#
# The model is plain Pyro; that ability is to be integrated is a note beside its site,
# `infer={"integrate": "quadrature"}`, which Pyro passes over. The arguments of the Bernoulli
# differ from node to node and from item to item, but not from person to person. So there are $61
# \times 5$ *cells*, and all that the M-step needs of the data is how many right and wrong
# answers are expected in each.

# %%
em = EM(item_response, objective="mle")
em.explain(answers)

# %%
fit = em.fit(answers)
print(fit)

# %% [markdown]
# The nodes follow the prior and reach 7.5 standard deviations to each side. The last line of the
# first block is a check that costs nothing: every other node is a grid of its own, and the two
# integrals, by the even and by the odd nodes, agree to seven digits for every person.
#
# ## The items
#
# Question 3 tells people apart best, question 5 is the easiest. The last column has the
# intercepts $d_j$ as the documentation of the R package mirt prints them; it stops a little
# earlier.

# %%
mirt = [1.856, 0.808, 1.804, 0.486, 1.855]
items = pd.DataFrame(
    {
        "discrimination": fit.params["discriminations"].numpy(),
        "difficulty": fit.deterministic["difficulties"].numpy(),
        "intercept": fit.params["intercepts"].numpy(),
        "mirt": mirt,
    },
    index=answers.columns,
)
items.round(3)

# %% [markdown]
# The item characteristic curves, and below them where the people stand:

# %%
fit.plot()

# %% [markdown]
# ## The people
#
# The posterior of an ability is a weight for each node; its mean and standard deviation follow.
# There are 32 patterns of answers, and two people with as many right answers are not the same: a
# right answer to question 3 says more than one to question 5.

# %%
patterns = answers.drop_duplicates().reset_index(drop=True)
posterior = fit.posterior("ability", patterns)
people = patterns.astype(int).assign(
    right=patterns.sum(axis=1).astype(int),
    ability=posterior.mean.numpy(),
    sd=posterior.stddev.numpy(),
)
people.sort_values("ability").round(2).iloc[[0, 1, 2, 3, -4, -3, -2, -1]]

# %%
figure, axes = plt.subplots(figsize=(6, 4))
axes.errorbar(people["right"], people["ability"], yerr=people["sd"], fmt="none", color="0.8")
points = axes.scatter(people["right"], people["ability"], c=people["Q3"], cmap="coolwarm", zorder=2)
axes.set(xlabel="right answers", ylabel="ability: posterior mean, and one sd")
_ = axes.legend(*points.legend_elements(), title="question 3", frameon=False)

# %% [markdown]
# New people need no new fit, and an answer that is missing is left NaN: it drops out of the
# likelihood, and its probability of being right follows from the others.

# %%
new = torch.tensor([[1.0, 1.0, torch.nan, 1.0, 1.0], [0.0, 0.0, torch.nan, 0.0, 1.0]])
print("abilities ", fit.predict(new).round(decimals=2).tolist())
print("question 3", fit.impute(new)[:, 2].round(decimals=2).tolist())

# %% [markdown]
# ## One discrimination, or five?
#
# In the Rasch model all discriminations are 1, in the one-parameter model they are equal. They
# are options of the same function, so `select` sweeps them.

# %%
swept = select(item_response, answers, model=["rasch", "1pl", "2pl"], em={"objective": "mle"})
swept.table[["model", "log_likelihood", "parameters", "aic", "bic"]].round(2)

# %% [markdown]
# The five discriminations gain six nats for four parameters. AIC takes them; BIC, which charges
# more, does not. Three-parameter (`"3pl"`, with guessing) and graded (`"graded"`, several
# levels) models are further options, and `groups=` gives each group of people a mean and a
# standard deviation of its own.
#
# ## Beside variational inference
#
# The same function goes into SVI, where the guide covers the abilities too. What the table says
# of a fit has them integrated out, whatever the method, so the rows can be compared.

# %%
compared = compare(
    [
        EM(item_response, seed=0),
        SVI(item_response, guide="normal", steps=3000, seed=0),
        SVI(item_response, guide="delta", steps=3000, seed=0),
    ],
    answers,
)
compared.table[["log likelihood", "log posterior", "passes"]].round(2)

# %%
figure, axes = plt.subplots(figsize=(6, 4))
for name, params in compared.params.items():
    axes.plot(answers.columns, params["discriminations"], "o-", label=name)
axes.set(ylabel="discrimination", yscale="log")
_ = axes.legend(frameon=False)

# %% [markdown]
# Both guides come near: each takes a normal for every ability, one beside normals for the items,
# the other beside points. Were each ability taken at its best value, together with the items
# (`EM(item_response, integrate={"ability": None})`, or Pyro's own `AutoDelta`), the people would be
# pushed apart, and discriminations would grow without need, a thousand abilities being as many
# parameters that explain their own answers. That is the bias we began with.
#
# ## How many nodes?
#
# As many as the narrowest posterior needs: with five questions a posterior is two thirds as wide
# as the prior, and two dozen would do. The gap between even and odd nodes knows: the error of
# the integral is about the square of it, over 400. Where the gap is above $10^{-3}$ for some
# person, the fit goes on with twice as many nodes, up to 241.

# %%
counts = [11, 13, 15, 17, 21, 25, 31, 41, 61]
truth = EM(item_response, "mle", integrate={"ability": Quadrature(481)})
best = truth.e_step(fit.params, answers).log_likelihood
errors = [
    EM(item_response, "mle", integrate={"ability": Quadrature(count)})
    .e_step(fit.params, answers)
    .log_likelihood
    - best
    for count in counts
]
figure, axes = plt.subplots(figsize=(6, 4))
axes.semilogy(counts, np.abs(errors), "o-")
_ = axes.set(xlabel="nodes", ylabel="error of the log likelihood")

# %% [markdown]
# ## What we claimed

# %%
assert fit.converged
assert abs(fit.log_likelihood - -2658.805) < 5e-4
assert np.abs(fit.params["intercepts"].numpy() - mirt).max() < 2e-3
assert items["discrimination"].idxmax() == "Q3"
assert items["difficulty"].idxmin() == "Q5"
assert fit.node_gaps["ability"] < 1e-6
gain = swept.table["log_likelihood"].diff().iloc[-1]
assert 6.0 < gain < 6.2
assert swept.table.set_index("model")["aic"].idxmin() == "2pl"
assert swept.table.set_index("model")["bic"].idxmin() != "2pl"
em_map, normal, delta = compared.table["log posterior"]
assert min(normal, delta) > em_map - 1.0
assert abs(errors[-1]) < 1e-9
