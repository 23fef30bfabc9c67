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
# # From CSV to report
#
# A table comes as a file, with words in some columns and gaps in others. This notebook goes the
# whole way: read it, write the model as a formula, see what Ember will do, fit, look at the errors
# and the residuals, predict, choose among models, and save what goes into the report.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ember.inference import EM, Fit, select
from ember.inference.tables import read_table
from ember.models import categorical_mixture, linear_mixed_model, regression_mixture

plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)
folder = tempfile.TemporaryDirectory()
path = Path(folder.name)

# %% [markdown]
# ## The file
#
# Marks of 480 pupils in 24 schools: hours of homework a week, the pupil's course, four questions
# with words for answers, and whether the year was passed. The data are made up, so that the truth
# is known: an hour is worth 2 points on average, and more or less of them by school.

# %%
rng = np.random.default_rng(8)
pupils, schools = 480, 24
school = np.repeat(np.arange(schools), pupils // schools)
level, slope = rng.normal(0.0, 6.0, schools), rng.normal(0.0, 0.8, schools)
hours = rng.gamma(6.0, 0.8, pupils).round(1)
course = rng.choice(["basic", "advanced", "evening"], pupils, p=[0.5, 0.3, 0.2])
keen = rng.random(pupils) < 0.4
gain = pd.Series(course).map({"basic": 0.0, "advanced": 8.0, "evening": -3.0}).to_numpy()
mark = 40.0 + gain + level[school] + (2.0 + slope[school]) * hours + rng.normal(0.0, 5.0, pupils)
answers = {
    "reads": np.where(rng.random(pupils) < np.where(keen, 0.85, 0.25), "often", "seldom"),
    "sport": np.where(rng.random(pupils) < np.where(keen, 0.3, 0.7), "often", "seldom"),
    "screen": np.where(
        rng.random(pupils) < np.where(keen, 0.7, 0.2),
        "some",
        np.where(rng.random(pupils) < 0.6, "much", "none"),
    ),
    "library": np.where(rng.random(pupils) < np.where(keen, 0.9, 0.35), "yes", "no"),
}
table = pd.DataFrame({"school": [f"S{s + 1:02d}" for s in school], "hours": hours})
table = table.assign(course=course, mark=mark.round(1), **answers)
table["passed"] = np.where(rng.random(pupils) < 1 / (1 + np.exp(-(mark - 48) / 5)), "yes", "no")
table.loc[rng.choice(pupils, 25, replace=False), "mark"] = None
table.loc[rng.choice(pupils, 12, replace=False), "hours"] = None
table.loc[rng.choice(pupils, 30, replace=False), "screen"] = None
table.to_csv(path / "pupils.csv", index=False)
print((path / "pupils.csv").read_text()[:210])

# %% [markdown]
# `read_table` finds the delimiter, the decimal mark and the header by itself. Columns of words
# become codes of their labels, and the labels stay with them. `pd.read_csv` will do as well.

# %%
data = read_table(path / "pupils.csv", categories=True)
print(data.attrs["labels"]["course"], data.attrs["labels"]["screen"])
data.isna().sum()[lambda gaps: gaps > 0]

# %% [markdown]
# ## The model as a formula
#
# The fixed part is that of R and of `formulaic`: the category `course` gets a coefficient for each
# level but the first. A bar gives every school its own level and its own worth of an hour.

# %%
formula = "mark ~ hours + course + (1 + hours | school)"
em = EM(linear_mixed_model, objective="mle")
try:
    em.explain(formula, data=data)
except ValueError as error:
    print(error)

# %% [markdown]
# Marks that are missing are no trouble: they drop out of the likelihood. A covariate that is
# missing is, and Ember says so before any work is done. We follow the advice.

# %%
complete = data.dropna(subset=["hours"])
em.explain(formula, data=complete)

# %%
fit = em.fit(formula, data=complete)
print(fit)

# %% [markdown]
# ## How sure
#
# Errors come from the observed information, without bootstrap. The coefficients bear the names of
# the formula's terms.

# %%
summary = fit.summary(errors=True).round(3)
worth = summary[summary["column"] == "hours"].iloc[0]
assert worth["lower"] < 2.0 < worth["upper"]  # the truth
summary.head(6)

# %% [markdown]
# ## Pictures
#
# What each school adds, with 95 % intervals, under its own name; and the marks against what the fit
# expects of them.

# %%
fit.plot()

# %% [markdown]
# The residuals have no pattern, and their order follows the normal within the band that holds 95 %
# of each. Had the noise been of another shape, its ends would leave the band.

# %%
fit.plot_residuals()

# %%
fit.posterior("school_effects").summary().round(2).head(6)

# %% [markdown]
# ## New rows
#
# A new table needs the columns that the formula names, the response aside. It is encoded as the old
# one was. A school that the fit has not seen gets the average school's line, and a wider interval.

# %%
new = pd.DataFrame(
    {"school": ["S01", "S24", "S99"], "hours": [5.0, 5.0, 5.0], "course": ["basic"] * 3}
)
ahead = fit.predictive(data=new)
new.assign(mark=ahead.mean.numpy().round(1), deviation=ahead.stddev.numpy().round(1))

# %%
assert ahead.stddev[2] > ahead.stddev[0]
try:
    fit.predictive(data=new.assign(course="weekend"))
except ValueError as error:
    print(error)

# %% [markdown]
# ## Yes or no
#
# Who passes? A logistic regression is a `regression_mixture` with one component. The response may
# be a column of two words; the second in the alphabet is the one whose probability is meant. The
# first panel is the *calibration*: of pupils to whom the fit gives like chances, as many should
# pass.

# %%
passing = EM(regression_mixture, objective="mle").fit(
    "passed ~ mark", data=data.dropna(subset=["mark"]), components=1, family="logistic"
)
passing.plot_residuals()

# %% [markdown]
# ## How many kinds of pupils
#
# The four questions by latent classes; their gaps stay gaps. `select` fits one to four classes, and
# BIC chooses.

# %%
items = data[["reads", "sport", "screen", "library"]]
chosen = select(
    categorical_mixture,
    items,
    components=range(1, 5),
    em={"seed": 0, "restarts": 5},
)
chosen.plot()

# %%
assert chosen.options["components"] == 2
chosen.best.plot()

# %% [markdown]
# ## The report
#
# The table of estimates goes into a file that any word processor reads, the pictures beside it. The
# fit is saved too. A file holds no code, and a formula is code, so it is given again on loading.

# %%
summary.to_csv(path / "estimates.csv")
fit.plot().savefig(path / "schools.png", dpi=150)
fit.save(path / "marks.ember")
again = Fit.load(path / "marks.ember", linear_mixed_model, formula, data=complete)
assert bool((again.predictive(data=new).mean == ahead.mean).all())
print(sorted(file.name for file in path.iterdir()))
folder.cleanup()
