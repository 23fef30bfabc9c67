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
# # Factor analysis, and principal components with gaps
#
# A few hidden numbers of each row explain how its columns move together:
#
# $$z_n \sim \mathrm{Normal}(0, I_q), \qquad
#   x_{nd} \sim \mathrm{Normal}(\mu_d + w_d^\top z_n,\; \sqrt{\psi_d}).$$
#
# Given the parameters everything is Gaussian, so the factors $z_n$ are integrated out exactly, and
# a row is multivariate normal with covariance $WW^\top + \mathrm{diag}(\psi)$. If all columns share
# one noise this is probabilistic PCA: the loadings span the first principal components.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from ember.inference import EM, SVI, compare
from ember.inference.tables import air_quality
from ember.models import factor_analysis, multivariate_normal, probabilistic_pca

torch.set_default_dtype(torch.float64)
plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)

# %% [markdown]
# ## Two abilities behind six tests
#
# Two hundred made-up pupils sit three tests of language and three of mathematics. Two abilities lie
# behind the marks, each test has a noise of its own.

# %%
rng = np.random.default_rng(1)
truth = np.array(
    [[6.0, 1.0], [5.0, 0.5], [7.0, 1.5], [1.0, 8.0], [0.5, 6.0], [1.5, 7.0]]
)  # marks for one standard deviation of each ability
noise = np.array([3.0, 4.0, 3.0, 4.0, 3.0, 5.0])
tests = ["reading", "spelling", "essay", "algebra", "geometry", "statistics"]
marks = pd.DataFrame(
    60.0 + rng.normal(size=(200, 2)) @ truth.T + noise * rng.normal(size=(200, 6)), columns=tests
)
em = EM(factor_analysis, "mle")
em.explain(marks, 2)

# %% [markdown]
# The table says what will happen: `factors` is a latent, integrated exactly, and every parameter
# has a closed form. How many factors are there? The information criterion knows that a rotation of
# the factors is no parameter.

# %%
fits = {q: em.fit(marks, q) for q in (1, 2, 3)}
pd.Series({q: fit.bic for q, fit in fits.items()}, name="BIC").rename_axis("factors").round(1)

# %%
fit = fits[2]
print(fit)
assert min(fits, key=lambda q: fits[q].bic) == 2
assert fit.converged

# %% [markdown]
# Loadings are known up to a rotation; what they imply for the columns is not. Beside the covariance
# of the data, that of the model:

# %%
loadings, uniquenesses = fit.params["loadings"], fit.params["uniquenesses"]
implied = loadings @ loadings.T + torch.diag(uniquenesses)
seen = torch.tensor(np.cov(marks.T, bias=True))
gap = (implied - seen).abs() / (seen.diagonal()[:, None] * seen.diagonal()).sqrt()
assert float(gap.max()) < 0.05
communality = pd.DataFrame(
    {
        "explained": ((loadings**2).sum(-1) / implied.diagonal()).numpy(),
        "truth": (truth**2).sum(-1) / ((truth**2).sum(-1) + noise**2),
    },
    index=tests,
).round(2)
communality  # noqa: B018

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for axis, matrix, title in zip(axes, (seen, implied), ("data", "model"), strict=True):
    scale = matrix.diagonal().sqrt()
    picture = axis.imshow((matrix / scale / scale[:, None]).numpy(), vmin=-1, vmax=1, cmap="RdBu_r")
    axis.set_title(f"correlations, {title}")
    axis.set_xticks(range(6), tests, rotation=45, ha="right")
    axis.set_yticks(range(6), tests)
figure.colorbar(picture, ax=axes)
figure  # noqa: B018

# %% [markdown]
# The picture that belongs to the fit: loadings, and where each pupil stands.

# %%
fit.plot()

# %% [markdown]
# ## Each pupil's factors
#
# `posterior` gives the mean and the covariance of every pupil's factors, `predict` the means. Rows
# of other pupils take the same parameters.

# %%
factors = fit.posterior("factors")
print(factors.mean[:3], factors.covariance[0], sep="\n")
assert factors.mean.shape == (200, 2)

# %% [markdown]
# ## Gaps
#
# Air quality in New York (Chambers et al. 1983): of 153 days, 42 lack the ozone or the radiation.
# With one factor, weather, gaps drop out of the likelihood exactly, and the factor fills them in.

# %%
air = air_quality()
columns = torch.tensor(air.to_numpy(dtype=float))
weather = EM(factor_analysis).fit(columns, 1)
filled = weather.impute()
missing = torch.isnan(columns)
assert not bool(torch.isnan(filled).any())
assert torch.equal(filled[~missing], columns[~missing])
pd.DataFrame(filled[missing.any(-1)][:5].numpy(), columns=air.columns).round(1)

# %% [markdown]
# A normal without structure is the upper bound of what factors can say; a single factor comes near
# it with fewer parameters.

# %%
whole = EM(multivariate_normal, "mle").fit(columns)
one = EM(factor_analysis, "mle").fit(columns, 1)
assert one.log_likelihood < whole.log_likelihood
print(f"one factor {one.log_likelihood:.1f}, unrestricted {whole.log_likelihood:.1f}")

# %% [markdown]
# ## Principal components as a model
#
# Probabilistic PCA has its maximum in closed form (Tipping & Bishop 1999): the noise is the mean of
# the eigenvalues that are left out. EM gets there in a few steps, and takes gaps and weights too.

# %%
pca = EM(probabilistic_pca, "mle").fit(marks, 2)
eigenvalues = np.linalg.eigvalsh(seen.numpy())[::-1]
print(pca.iterations, "iterations;", float(pca.params["variance"]), eigenvalues[2:].mean())
assert abs(float(pca.params["variance"]) / eigenvalues[2:].mean() - 1.0) < 1e-6

# %% [markdown]
# ## Beside variational inference
#
# The same model goes unchanged into Pyro's SVI. A mean-field guide over loadings and factors keeps
# apart what belongs together, so that its bound lies below the log posterior's level, and it takes
# many steps.

# %%
table = compare(
    [EM(factor_analysis), SVI(factor_analysis, guide="normal", steps=1500, seed=0)],
    marks,
    factors=2,
)
print(table)
