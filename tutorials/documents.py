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
# # Documents: topics, and classes from a handful of labels
#
# Text needs no download: every Python package carries some. Here the documents are the docstrings
# of SciPy's functions, some five hundred pages of prose in five subpackages. We ask two questions.
#
# | question | model |
# |---|---|
# | What are these documents about? | `topic_model`: words have topics, documents mix them |
# | Which subpackage is each from, if we know it of a few? | `naive_bayes` with some labels |
#
# In both, what is not known is a discrete latent, and EM sums it out exactly.

# %%
# %matplotlib inline
import importlib
import inspect
import re
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from ember.inference import EM
from ember.models import naive_bayes, topic_model

torch.set_default_dtype(torch.float64)
plt.rcParams.update(
    {"figure.dpi": 100, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
)
BLUE, ORANGE = "#0072B2", "#D55E00"

# %% [markdown]
# ## From text to counts
#
# A document becomes a bag of words: how often each word of a vocabulary occurs in it, in whatever
# order. We leave out the examples (code) and references, words in fewer than fifteen documents or
# in more than a quarter of them, and the jargon that every docstring shares.

# %%
PACKAGES = ["stats", "signal", "linalg", "ndimage", "optimize"]
JARGON = """
    array_like ndarray parameters returns return optional default given with this that which from
    shape input output value values used function functions specified first more than have will
    also when where other each must into same only following number numbers element elements
    integer float none true false note notes example examples otherwise axis scalar dtype bool
    size between over should called returned type case such these then they there using some
    well many both either been does since being very your whether before after above below while
    version option options argument arguments keyword name object list tuple string dimension
    dimensions length index indices provided raises warning error method methods described
    details compute computes computed calculate calculated result results based about
    corresponding containing contains order equal along algorithm
"""

texts, package, names = [], [], []
for k, name in enumerate(PACKAGES):
    module = importlib.import_module(f"scipy.{name}")
    for function in sorted(module.__all__):
        documentation = inspect.getdoc(getattr(module, function)) or ""
        prose = documentation.split("\nExamples")[0].split("\nReferences")[0]
        if inspect.isfunction(getattr(module, function)) and len(prose.split()) >= 60:
            texts.append(re.findall(r"[a-z]{4,}", prose.lower()))
            package.append(k)
            names.append(f"{name}.{function}")
package = torch.tensor(package)

occurs_in = Counter(word for text in texts for word in set(text))
most = len(texts) / 4
words = sorted(w for w, n in occurs_in.items() if 15 <= n <= most and w not in JARGON.split())
place = {word: i for i, word in enumerate(words)}
counts = torch.zeros(len(texts), len(words))
for n, text in enumerate(texts):
    for word in text:
        if word in place:
            counts[n, place[word]] += 1

sizes = package.bincount().tolist()
pd.DataFrame(
    {
        "documents": sizes,
        "words in each": [float(counts[package == k].sum(1).median()) for k in range(5)],
    },
    index=[f"scipy.{name}" for name in PACKAGES],
)

# %% [markdown]
# ## Topics
#
# $$
# \begin{aligned}
# \text{weights}_m &\sim \mathrm{Dirichlet}(1.1, \dots, 1.1) && \text{the topics of document } m \\
# \text{probs}_k &\sim \mathrm{Dirichlet}(1.1, \dots, 1.1) && \text{the words of topic } k \\
# z_c &\sim \mathrm{Categorical}(\text{weights}_m), \quad
# \text{word}_c \sim \mathrm{Categorical}(\text{probs}_{z_c})
# \end{aligned}
# $$
#
# All occurrences of a word in a document are alike, so one latent, weighted by their number, stands
# for them. This is the MAP estimate of latent Dirichlet allocation; with `objective="mle"` it would
# be probabilistic latent semantic analysis. Nobody tells the model about subpackages.

# %%
TOPICS = 7
fit = EM(topic_model, seed=0, tol=1e-6).fit(counts, topics=TOPICS)
print(f"{int((counts > 0).sum())} cells of the table, {fit.iterations} iterations")

# %% [markdown]
# A word is telling if it is frequent in its topic, and more so than in the whole corpus. We number
# the topics by their share of all words.

# %%
lengths = counts.sum(1, keepdim=True)
share = (fit.params["weights"] * lengths).sum(0) / lengths.sum()
order = share.argsort(descending=True)
weights, probs = fit.params["weights"][:, order], fit.params["probs"][order]
overall = counts.sum(0) / counts.sum()
telling = probs * (probs / overall).log()
best = telling.argsort(1, descending=True)[:, :8]

fig, axes = plt.subplots(1, TOPICS, figsize=(12, 2.6), layout="constrained")
for k, ax in enumerate(axes):
    chosen = best[k].tolist()[::-1]
    ax.barh([words[i] for i in chosen], probs[k, chosen].numpy(), color="#99c7e0")
    ax.barh([words[i] for i in chosen], overall[chosen].numpy(), color=BLUE)
    ax.set_title(f"topic {k}: {float(share[order[k]]):.0%}", size=9)
    ax.tick_params(axis="y", labelsize=8, length=0)
    ax.set_xticks([])
handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in ("#99c7e0", BLUE)]
captions = ["share of the topic's words", "share of all words"]
_ = fig.legend(handles, captions, loc="outside lower center", ncols=2, frameon=False)

# %% [markdown]
# The topics were found from the words alone, and yet every subpackage turns out to have one or two
# of its own.

# %%
by_package = torch.stack([weights[package == k].mean(0) for k in range(5)])
fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
picture = ax.imshow(by_package.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
for k in range(5):
    for topic in range(TOPICS):
        value = float(by_package[k, topic])
        colour = "white" if value > 0.5 else "black"
        ax.text(topic, k, f"{value:.2f}", ha="center", va="center", color=colour, size=8)
ax.set(xticks=range(TOPICS), xlabel="topic", yticks=range(5), yticklabels=PACKAGES)
_ = ax.set_title("average weight of each topic in the documents of a subpackage", size=10)

# %% [markdown]
# ## A handful of labels
#
# Now we do know a few things: the subpackage of 1, 3 or 10 documents of each. Naive Bayes takes
# every document for a bag of words of one class, and learns the words of each class from the
# labelled documents. But the others speak as well: a document that says *filter* and *frequency*,
# which the model has seen labelled, tells it that *poles* belong there too. In
# `naive_bayes(..., labels=...)` an unknown label (-1) is a latent, and EM fills it in (Nigam,
# McCallum, Thrun and Mitchell 2000).


# %%
def accuracy(predicted, hidden):
    return float((predicted[hidden] == package[hidden]).double().mean())


rows = []
for known in (1, 3, 10):
    for seed in range(3):
        shuffled = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
        labels = torch.full((len(counts),), -1)
        for k in range(5):
            labels[shuffled[package[shuffled] == k][:known]] = k
        hidden = labels < 0
        alone = EM(naive_bayes).fit(counts[~hidden], classes=5, labels=labels[~hidden])
        both = EM(naive_bayes, init=alone.params).fit(counts, classes=5, labels=labels)
        rows.append(
            {
                "labels of each": known,
                "labelled alone": accuracy(alone.predict(counts), hidden),
                "with the others": accuracy(both.predict(), hidden),
            }
        )
table = pd.DataFrame(rows).groupby("labels of each").mean()
table.round(3)

# %%
fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
frame = pd.DataFrame(rows)
for column, colour, shift in [("labelled alone", ORANGE, 0.95), ("with the others", BLUE, 1.05)]:
    ax.plot(frame["labels of each"] * shift, frame[column], "o", color=colour, ms=4, alpha=0.5)
    ax.plot(table.index, table[column], color=colour, lw=2, label=column)
ax.set(xscale="log", xlabel="labelled documents of each subpackage", ylabel="accuracy")
ax.set_xticks([1, 3, 10], ["1", "3", "10"])
ax.yaxis.set_major_formatter("{x:.0%}")
_ = ax.legend(frameon=False, loc="lower right")

# %% [markdown]
# With one label of each the documents without labels are worth most. With all labels known there is
# nothing left to sum out: EM is done after one step, which is the usual classifier.

# %%
everything = EM(naive_bayes).fit(counts, classes=5, labels=package)
print(everything.stop_reason)
odds = everything.params["probs"].log() - everything.params["probs"].log().mean(0)
pd.DataFrame(
    {
        PACKAGES[k]: [words[i] for i in (odds[k] * everything.params["probs"][k]).topk(6).indices]
        for k in range(5)
    }
)

# %% [markdown]
# ## What we claimed

# %%
assert fit.converged
assert bool((fit.history.diff() >= 0).all())
assert float(by_package.amax(1).min()) > 0.25  # each subpackage leans on some topic ...
assert float((by_package.amax(0) / by_package.mean(0)).min()) > 1.5  # ... and each topic on some
# The purest use of the topics: name each by the subpackage that uses it most.
named = by_package.argmax(0)[weights.argmax(1)]
assert float((named == package).double().mean()) > 0.6
gain = table["with the others"] - table["labelled alone"]
assert gain[1] > 0.03  # labels are dear: the others help most
assert gain[1] > gain[10]
assert table["with the others"].is_monotonic_increasing
smoothed = counts.new_ones(5, len(words))
smoothed.index_add_(0, package, counts)
closed_form = smoothed / smoothed.sum(1, keepdim=True)
assert everything.iterations == 1
assert np.allclose(everything.params["probs"], closed_form, rtol=1e-10)
print("all as claimed")
