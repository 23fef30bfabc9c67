"""hmmlearn's hidden Markov models as oracles; and a published series that both reproduce.

Three things about the rival, which set what is compared. Its Gaussian model has a prior on the
covariances by default (``covars_prior=0.01``) that its score leaves out, so that the score may fall
from one iteration to the next; here it is 0. It stops when one iteration gains less than ``tol``,
and has no acceleration: slow chains end early at the default of 0.01. It has one start; restarts
are up to the user.
"""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ember.inference import EM
from ember.models import (
    hidden_markov_categorical,
    hidden_markov_gaussian,
    hidden_markov_poisson,
)
from tests.peers.common import EARTHQUAKES, at, best_of, equal, gain_of_a_step, tensors

hmm = pytest.importorskip("hmmlearn.hmm")

each_covariance = pytest.mark.parametrize("covariance", ["full", "diag", "spherical", "tied"])
TIGHT: dict[str, Any] = {"tol": 1e-9, "n_iter": 3000, "random_state": 0}
CODES = torch.from_numpy(np.digitize(EARTHQUAKES[:60], [13, 18, 24]))  # four levels


def chain(fitted: Any) -> dict[str, Any]:
    return {"initial": fitted.startprob_, "transition": fitted.transmat_}


def emissions(fitted: Any) -> dict[str, Any]:
    """The rival's estimates under the names of the sites."""
    if hasattr(fitted, "lambdas_"):
        return {"rates": fitted.lambdas_[:, 0]}
    if hasattr(fitted, "emissionprob_"):
        return {"probs": fitted.emissionprob_}
    # `covars_` are full matrices, whatever the structure; those of a fitted spherical model come in
    # D copies, (K D, D, D), each state's together.
    precisions = np.linalg.inv(fitted.covars_)
    structure = {
        "full": precisions,
        "tied": precisions[0],
        "diag": precisions.diagonal(axis1=1, axis2=2),
        "spherical": precisions[:: len(precisions) // fitted.n_components, 0, 0],
    }
    return {"locs": fitted.means_, "precisions": structure[fitted.covariance_type]}


def estimates(fitted: Any) -> dict[str, Any]:
    return {**chain(fitted), **emissions(fitted)}


@pytest.fixture
def eruptions(reference_data: Any) -> np.ndarray[Any, Any]:
    """60 eruptions of Old Faithful in their order: long and short ones take turns."""
    frame: pd.DataFrame = reference_data("faithful")
    return np.asarray(frame.to_numpy(dtype=float)[:60] / np.array([1.0, 10.0]))


def gaussian(covariance: str) -> Any:
    return hmm.GaussianHMM(2, covariance_type=covariance, min_covar=0.0, covars_prior=0.0, **TIGHT)


def same(theirs: Any, ours: Any, x: np.ndarray[Any, Any]) -> None:
    """Log likelihood, smoothed marginals, and the most probable path."""
    equal(ours.log_likelihood, theirs.score(x), 1e-10)
    equal(ours.posterior("state").probs, theirs.predict_proba(x))
    assert (ours.predict().numpy() == theirs.predict(x)).all()


@each_covariance
def test_gaussian_chain_at_the_rival_s_estimates(
    covariance: str, eruptions: np.ndarray[Any, Any]
) -> None:
    theirs = gaussian(covariance).fit(eruptions)
    x, options = torch.from_numpy(eruptions), {"states": 2, "covariance": covariance}
    ours = at(hidden_markov_gaussian, estimates(theirs), x, **options)
    same(theirs, ours, eruptions)
    assert gain_of_a_step(hidden_markov_gaussian, ours.params, x, **options) < 1e-6


@each_covariance
def test_gaussian_chain_at_our_estimates(covariance: str, eruptions: np.ndarray[Any, Any]) -> None:
    x = torch.from_numpy(eruptions)
    ours = EM(hidden_markov_gaussian, seed=0).fit(x, states=2, covariance=covariance)  # MAP
    theirs = gaussian(covariance)
    theirs.startprob_, theirs.transmat_ = (
        ours.params[n].numpy() for n in ("initial", "transition")
    )
    theirs.means_, theirs.n_features = ours.params["locs"].numpy(), 2
    precisions = ours.params["precisions"]
    matrices = covariance in ("full", "tied")
    theirs.covars_ = (torch.linalg.inv(precisions) if matrices else 1 / precisions).numpy()
    same(theirs, ours, eruptions)


@each_covariance
def test_as_good_an_optimum_of_the_gaussian_chain(
    covariance: str, eruptions: np.ndarray[Any, Any]
) -> None:
    theirs = gaussian(covariance).fit(eruptions)
    ours = best_of(
        hidden_markov_gaussian, 1, torch.from_numpy(eruptions), states=2, covariance=covariance
    )
    assert ours.log_likelihood >= theirs.score(eruptions) - 1e-6


def test_the_rival_s_default_prior_costs_likelihood(eruptions: np.ndarray[Any, Any]) -> None:
    """0.01 is not weak in every unit; our default prior is in the units of the data."""
    small = eruptions / 10.0
    theirs = hmm.GaussianHMM(2, covariance_type="full", **TIGHT).fit(small)
    ours = best_of(hidden_markov_gaussian, 1, torch.from_numpy(small), states=2)
    assert ours.log_likelihood > theirs.score(small) + 1.0


def test_sequences_of_several_lengths(eruptions: np.ndarray[Any, Any]) -> None:
    lengths = [25, 1, 14, 20]
    theirs = gaussian("full").fit(eruptions, lengths)
    padded = torch.full((4, 25, 2), torch.nan, dtype=torch.float64)
    for s, piece in enumerate(np.split(eruptions, np.cumsum(lengths)[:-1])):
        padded[s, : len(piece)] = torch.from_numpy(piece)
    options = {"states": 2, "lengths": lengths}
    ours = at(hidden_markov_gaussian, estimates(theirs), padded, **options)
    equal(ours.log_likelihood, theirs.score(eruptions, lengths), 1e-10)
    posterior, path = ours.posterior("state").probs, ours.predict()
    together = torch.cat([posterior[s, :n] for s, n in enumerate(lengths)])
    equal(together, theirs.predict_proba(eruptions, lengths))
    paths = torch.cat([path[s, :n] for s, n in enumerate(lengths)])
    assert (paths.numpy() == theirs.predict(eruptions, lengths)).all()
    # One step at a sequence's end is where counting transitions goes wrong most easily.
    assert gain_of_a_step(hidden_markov_gaussian, ours.params, padded, **options) < 1e-6


def poisson(states: int, seed: int) -> Any:
    counts = EARTHQUAKES[:, None]
    return hmm.PoissonHMM(states, tol=1e-10, n_iter=3000, random_state=seed).fit(counts)


# Zucchini, MacDonald & Langrock (2016), tables 3.1 and 4.1: the first state is free.
PUBLISHED = {1: -391.9189, 2: -341.8787, 3: -328.5275}


@pytest.mark.parametrize("states", PUBLISHED)
def test_earthquakes_as_published(states: int) -> None:
    counts = EARTHQUAKES[:, None]
    x = torch.from_numpy(EARTHQUAKES)
    theirs = max((poisson(states, seed) for seed in range(3)), key=lambda fit: fit.score(counts))
    ours = at(hidden_markov_poisson, estimates(theirs), x, states=states)
    same(theirs, ours, counts)
    fit = best_of(hidden_markov_poisson, 1, x, states=states)
    assert fit.log_likelihood == pytest.approx(PUBLISHED[states], abs=5e-5)
    assert fit.log_likelihood >= theirs.score(counts) - 1e-6


def categorical(seed: int, **prior: float) -> Any:
    codes = CODES.numpy()[:, None]
    return hmm.CategoricalHMM(2, **{**TIGHT, "random_state": seed}, **prior).fit(codes)


def test_categorical_chain_at_the_rival_s_estimates() -> None:
    theirs, x = categorical(1), CODES.numpy()[:, None]
    ours = at(hidden_markov_categorical, estimates(theirs), CODES, states=2)
    equal(ours.log_likelihood, theirs.score(x), 1e-10)
    equal(ours.posterior("state").probs, theirs.predict_proba(x))
    assert gain_of_a_step(hidden_markov_categorical, ours.params, CODES, states=2) < 1e-6
    # Several paths may be the most probable, in different orders of the same steps: compare how
    # probable they are.
    path, (best, _) = ours.predict(), theirs.decode(x)
    logs = {name: value.log() for name, value in ours.params.items()}
    steps = logs["transition"][path[:-1], path[1:]].sum() + logs["probs"][path, CODES].sum()
    equal(logs["initial"][path[0]] + steps, best, 1e-10)


def test_as_good_an_optimum_of_the_categorical_chain(reference_data: Any) -> None:
    """100 eruptions, short or long: the long ones come singly or in runs, the short ones singly.

    Clusters of levels, our default start, know nothing of the order in which levels come and may
    lead to a lesser optimum; random starts, as the rival has them, find this one. So do windows of
    neighbouring steps, the second of several starts.
    """
    eruptions = reference_data("faithful").iloc[:100, 0].to_numpy()
    codes = (eruptions > 3.0).astype(int)
    seeds = [{**TIGHT, "random_state": seed} for seed in range(1)]
    fits = [hmm.CategoricalHMM(2, **options).fit(codes[:, None]) for options in seeds]
    best = max(fit.score(codes[:, None]) for fit in fits)
    for options in ({"init": "random"}, {"restarts": 2}):
        em = EM(hidden_markov_categorical, "mle", seed=0, **options)
        assert em.fit(torch.from_numpy(codes), states=2).log_likelihood >= best - 1e-6


def test_a_dirichlet_prior_is_the_same_prior() -> None:
    """The rival's Dirichlet concentrations are ours: both add ``alpha - 1`` counts to each.

    It stops as soon as the likelihood, which is not what it maximises then, gains less than the
    tolerance: at the first iteration in which the prior costs likelihood. So it must be told never
    to stop.
    """
    concentrations = {"startprob_prior": 3.0, "transmat_prior": 2.0, "emissionprob_prior": 1.5}
    options = {"states": 2, "prior": {"initial": 3.0, "transition": 2.0, "probs": 1.5}}
    theirs = hmm.CategoricalHMM(2, tol=-np.inf, n_iter=600, random_state=0, **concentrations)
    theirs.fit(CODES.numpy()[:, None])
    em = EM(hidden_markov_categorical)
    there = em.e_step(tensors(estimates(theirs)), CODES, **options)
    moved = em.m_step(there)  # its end is stationary for us
    for name, value in estimates(theirs).items():
        equal(moved[name], value, 1e-4)
    # But no maximum: it has come to rest at a saddle, which we leave.
    ours = EM(hidden_markov_categorical, init=tensors(estimates(theirs))).fit(CODES, **options)
    assert ours.converged
    assert ours.log_posterior > there.objective + 1.0
    early = categorical(0, **concentrations)
    stopped = em.e_step(tensors(estimates(early)), CODES, **options)
    assert stopped.objective < ours.log_posterior - 1e-3
