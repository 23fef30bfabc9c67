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
# # Data that come in pieces
#
# A fit by EM reads the data many times, but never needs all of them at once: an E-step is a sum
# over rows. So the rows may stay in a file, of which one piece is in memory at a time, and the
# result is that of `fit`. This notebook fits a mixture to a file in three ways:
#
# 1. `fit_batches`: exactly, with a checkpoint from which a fit that was broken off goes on;
# 2. `fit_online`, stepwise: an M-step after every piece, with some noise left at the end;
# 3. `fit_online`, with reduced variance: as quick at first, and without that noise.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from ember.inference import EM, chunks
from ember.models import gaussian_mixture

plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"

# %% [markdown]
# ## A file of measurements
#
# 30,000 rows of three kinds. Here they are small enough to be drawn; nothing below depends on that.

# %%
rng = np.random.default_rng(0)
centres = np.array([[0.0, 0.0], [3.0, 1.0], [0.5, 3.5]])
kind = rng.choice(3, size=30_000, p=[0.5, 0.3, 0.2])
rows = centres[kind] + rng.normal(size=(30_000, 2)) * np.array([1.0, 0.7])

folder = Path(tempfile.mkdtemp())
np.save(folder / "x.npy", rows)
pieces = chunks(folder / "x.npy", rows=5_000)
print(f"{len(pieces)} pieces; the first has the shape {pieces[0].load().shape}")

fig, ax = plt.subplots(figsize=(5, 4), layout="constrained")
ax.scatter(*rows[:4000].T, s=2, color="#555555", alpha=0.4)
ax.set(xlabel="first column", ylabel="second column", title="4,000 of the rows")
plt.show()

# %% [markdown]
# ## Exactly, piece by piece
#
# The first pass looks at all rows once: for the moments that the default prior is scaled by, and
# for a random sample on which the fit starts. Each E-step is one pass more.

# %%
em = EM(gaussian_mixture, seed=0)
fit = em.fit_batches(pieces, components=3, checkpoint=folder / "fit.ckpt", checkpoint_every=0.0)
print(fit)

# %% [markdown]
# In memory the same model has the same optimum:

# %%
whole = em.fit(rows, components=3)
print(f"in pieces {fit.log_posterior:.6f}, in memory {whole.log_posterior:.6f}")
assert abs(fit.log_posterior - whole.log_posterior) < 1e-3

picture = EM(gaussian_mixture, init=dict(fit.params), max_iter=1, tol=0).fit(
    rows[:2000], components=3
)
picture.plot()

# %% [markdown]
# The checkpoint holds what the fit had reached. A fit that was killed goes on from there, and comes
# to the same end, to the bit:

# %%
again = em.fit_batches(pieces, components=3, resume=folder / "fit.ckpt")
print(torch.equal(again.params["locs"], fit.params["locs"]))

# %% [markdown]
# The fit holds no rows, so questions about rows take them:

# %%
print(fit.predict(rows[:5]), kind[:5])

# %% [markdown]
# ## A step after every piece
#
# Where a pass over the data takes long, parameters had better move before it has ended.
# `fit_online` keeps a running average of the statistics and makes an M-step after each piece. We
# start it far from the data, as there would be nothing to see otherwise, with smaller pieces.

# %%
start = {
    "weights": torch.tensor([0.4, 0.3, 0.3]),
    "locs": torch.tensor([[1.0, 1.0], [1.5, 1.0], [1.0, 2.0]]),
    "precisions": torch.eye(2).expand(3, 2, 2).clone(),
}
best = EM(gaussian_mixture, tol=1e-12, seed=0).fit(rows, components=3).log_posterior
small = chunks(folder / "x.npy", rows=1_000)
ways = {
    "plain EM": EM(gaussian_mixture, init=start, accelerate=None, tol=0, max_iter=5).fit_batches(
        pieces, components=3
    ),
    "stepwise": EM(gaussian_mixture, init=start, seed=0).fit_online(small, components=3, passes=5),
    "reduced variance": EM(gaussian_mixture, init=start, seed=0).fit_online(
        small, components=3, method="variance-reduced", passes=5
    ),
}

# %%
fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
for (name, way), colour in zip(ways.items(), (BLUE, ORANGE, GREEN), strict=True):
    ax.semilogy(best - way.history.numpy() + 1e-9, "o-", color=colour, label=name)
ax.set(xlabel="passes of steps over the data", ylabel="below the optimum (nats)")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# After one pass of thirty steps both are far ahead of plain EM. Stepwise EM then stays at the noise
# of single pieces, which falls as its steps do; the other has none left to speak of. An exact fit
# is the better choice wherever a few dozen passes can be afforded, and either of the others may
# be where it begins: `EM(model, init=dict(fit.params))`.

# %%
gaps = {name: best - float(way.history[-1]) for name, way in ways.items()}
assert gaps["reduced variance"] < gaps["stepwise"] < gaps["plain EM"]
print({name: round(gap, 3) for name, gap in gaps.items()})
