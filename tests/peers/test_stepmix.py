"""StepMix's latent class models as oracles: items of several kinds, weights of rows, covariates.

The rival clips probabilities to 1e-15, adds 1e-6 to variances, and starts at random. What it calls
a structural model of covariates is maximised by one Newton step in each iteration.
"""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.selection import criteria
from ember.models import bernoulli_mixture, categorical_mixture, gaussian_mixture
from tests.peers.common import at, best_of, equal, gain_of_a_step, log_likelihood

stepmix = pytest.importorskip("stepmix.stepmix")
datasets = pytest.importorskip("sklearn.datasets")

Array = np.ndarray[Any, Any]
CLASSES = 3


def rival(measurement: Any, **options: Any) -> Any:
    settings = {
        "n_components": CLASSES,
        "abs_tol": 1e-14,
        "max_iter": 20_000,
        "random_state": 0,
        "progress_bar": 0,
        **options,
    }
    return stepmix.StepMix(measurement=measurement, **settings)


def wine() -> Array:
    """Four columns, in units in which their spreads are alike."""
    x = datasets.load_wine().data[:, [0, 6, 9, 12]]
    return np.asarray(x / x.std(0))


def levels(levels: int) -> Array:
    """The same cut into as many levels of equal size, coded from 0."""
    x = datasets.load_wine().data[:, [0, 5, 6, 9, 10, 12]]
    cuts = np.quantile(x, np.linspace(0, 1, levels + 1)[1:-1], axis=0)
    return np.asarray((x[:, None, :] > cuts).sum(1))


def digits() -> Array:
    """Images of the digits 0, 1 and 4, their inner pixels black or white."""
    found = datasets.load_digits()
    images = found.images[np.isin(found.target, [0, 1, 4])][:250, 1:7, 2:6].reshape(-1, 24)
    return np.asarray((images > 7).astype(float))


def weights(rows: int) -> Array:
    return np.asarray(np.random.default_rng(3).choice([0.5, 1.0, 2.5, 4.0], rows))


def by_level(pis: Array, size: int) -> Array:
    """The rival's probabilities ``(K, J L)`` as ``(K, J, L)``, normalised after its clipping."""
    probs = pis.reshape(len(pis), -1, size)
    return np.asarray(probs / probs.sum(-1, keepdims=True))


def bits(fitted: Any) -> dict[str, Any]:
    found = fitted.get_parameters()
    return {"weights": found["weights"], "probs": found["measurement"]["pis"]}


def codes(fitted: Any) -> dict[str, Any]:
    found = fitted.get_parameters()
    return {"weights": found["weights"], "probs": by_level(found["measurement"]["pis"], 3)}


def gaussians(fitted: Any) -> dict[str, Any]:
    found = fitted.get_parameters()
    covariances = found["measurement"]["covariances"]
    inverse = np.linalg.inv(covariances) if covariances.shape[-2:] == (4, 4) else 1 / covariances
    return {
        "weights": found["weights"],
        "locs": found["measurement"]["means"],
        "precisions": inverse,
    }


CASES: dict[str, Any] = {
    "binary": (bernoulli_mixture, digits, bits, {}),
    "categorical": (categorical_mixture, lambda: levels(3), codes, {"levels": 3}),
    **{
        f"gaussian_{c}": (gaussian_mixture, wine, gaussians, {"covariance": c})
        for c in ("full", "tied", "diag", "spherical")
    },
}


@pytest.mark.parametrize(
    ("name", "weighted"),
    [(name, w) for name in CASES for w in (False, True) if (name, w) != ("gaussian_tied", True)],
)
def test_latent_classes(name: str, weighted: bool) -> None:
    model, data, translate, options = CASES[name]
    x = data()
    frequency = weights(len(x)) if weighted else None
    extra = {"measurement_params": {"reg_covar": 0.0}} if "gaussian" in name else {}
    theirs = rival(name, n_init=3, **extra).fit(x, sample_weight=frequency)
    total = len(x) if frequency is None else frequency.sum()
    best = theirs.score(x, sample_weight=frequency) * total

    arguments = {"components": CLASSES, **options}
    if frequency is not None:
        arguments["frequency"] = torch.from_numpy(frequency)
    ours = at(model, translate(theirs), torch.from_numpy(x), **arguments)
    equal(ours.log_likelihood, best, 1e-9)
    equal(ours.posterior("assignment").probs, theirs.predict_proba(x))
    assert (ours.predict().numpy() == theirs.predict(x)).all()
    if not weighted:  # its criteria count rows, whatever they weigh
        equal(criteria(ours)["bic"], theirs.bic(x), 1e-9)
        equal(criteria(ours)["aic"], theirs.aic(x), 1e-9)
    assert gain_of_a_step(model, ours.params, torch.from_numpy(x), **arguments) < 1e-6

    found = best_of(model, 10, torch.from_numpy(x), **arguments)
    assert found.log_likelihood >= best - 1e-6


@pytest.mark.parametrize("name", ["binary", "categorical"])
def test_the_rival_at_our_estimates(name: str) -> None:
    model, data, _, options = CASES[name]
    x = data()
    ours = EM(model, seed=0).fit(torch.from_numpy(x), components=CLASSES, **options)  # MAP
    theirs = rival(name).fit(x)
    found = theirs.get_parameters()
    found["weights"] = ours.params["weights"].numpy()
    found["measurement"]["pis"] = ours.params["probs"].reshape(CLASSES, -1).numpy()
    theirs.set_parameters(found)
    equal(ours.log_likelihood, theirs.score(x) * len(x), 1e-10)
    equal(ours.posterior("assignment").probs, theirs.predict_proba(x))


def test_weights_with_a_tied_covariance() -> None:
    """The rival borrows scikit-learn's update of it, which leaves the weights out of ``X' X``.

    What it takes off that is weighted, so that the result need not even be a covariance. Ours is
    checked by repeating rows.
    """
    x, counts = wine(), np.random.default_rng(3).integers(1, 4, 178)
    with pytest.raises(ValueError, match="ill-defined empirical covariance"):
        rival("gaussian_tied").fit(x, sample_weight=counts.astype(float))
    repeated = np.repeat(x, counts, axis=0)
    theirs = rival("gaussian_tied", n_init=3, measurement_params={"reg_covar": 0.0}).fit(repeated)
    options: dict[str, Any] = {
        "components": CLASSES,
        "covariance": "tied",
        "frequency": torch.from_numpy(counts).double(),
    }
    data = torch.from_numpy(x)
    ours = log_likelihood(gaussian_mixture, gaussians(theirs), data, **options)
    best = theirs.score(repeated) * len(repeated)
    equal(ours, best, 1e-10)
    assert gain_of_a_step(gaussian_mixture, gaussians(theirs), data, **options) < 1e-6
    assert best_of(gaussian_mixture, 3, data, **options).log_likelihood >= best - 1e-6


def mixed(answers: Tensor, level: Tensor, sizes: Tensor) -> None:
    """Items of three kinds below one class: yes or no, three levels, and of unit variance."""
    items, questions, columns = answers.shape[1], level.shape[1], sizes.shape[1]
    shares = pyro.sample("weights", dist.Dirichlet(torch.ones(CLASSES)))
    with pyro.plate("classes", CLASSES):
        probs = pyro.sample("probs", dist.Beta(1.0, 1.0).expand([items]).to_event(1))
        table = pyro.sample("table", dist.Dirichlet(torch.ones(3)).expand([questions]).to_event(1))
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0).expand([columns]).to_event(1))
    with pyro.plate("rows", len(answers)):
        z = pyro.sample("z", dist.Categorical(shares))
        pyro.sample("answers", dist.Bernoulli(probs[z]).to_event(1), obs=answers)
        pyro.sample("level", dist.Categorical(table[z]).to_event(1), obs=level)
        pyro.sample("sizes", dist.Normal(locs[z], 1.0).to_event(1), obs=sizes)


def test_items_of_several_kinds() -> None:
    answers, level, sizes = levels(2)[:, :2].astype(float), levels(3)[:, 2:4], wine()[:, [0, 3]]
    kinds = {
        "answers": {"model": "binary", "n_columns": 2},
        "level": {"model": "categorical", "n_columns": 2},
        "sizes": {"model": "gaussian_unit", "n_columns": 2},
    }
    together = np.column_stack([answers, level, sizes])
    theirs = rival(kinds, n_init=3).fit(together)
    best = theirs.score(together) * len(together)
    found = theirs.get_parameters()
    params = {
        "weights": found["weights"],
        "probs": found["measurement"]["answers"]["pis"],
        "table": by_level(found["measurement"]["level"]["pis"], 3),
        "locs": found["measurement"]["sizes"]["means"],
    }
    data = tuple(torch.from_numpy(v) for v in (answers, level, sizes))
    ours = at(mixed, params, *data)
    equal(ours.log_likelihood, best, 1e-9)
    equal(ours.posterior("z").probs, theirs.predict_proba(together))
    assert gain_of_a_step(mixed, params, *data) < 1e-6
    assert best_of(mixed, 3, *data).log_likelihood >= best - 1e-6


def with_covariates(x: Tensor, answers: Tensor) -> None:
    """Latent class regression: who belongs to which class depends on covariates."""
    beta = pyro.param("beta", torch.zeros(CLASSES - 1, x.shape[1]))
    logits = torch.cat([x.new_zeros(len(x), 1), x @ beta.T], -1)  # the first class is the base
    with pyro.plate("classes", CLASSES):
        probs = pyro.sample("probs", dist.Beta(1.0, 1.0).expand([answers.shape[1]]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=logits))
        pyro.sample("answers", dist.Bernoulli(probs[z]).to_event(1), obs=answers)


def test_classes_that_depend_on_covariates() -> None:
    answers = levels(2).astype(float)
    covariate = datasets.load_wine().data[:, [1]]
    covariate = (covariate - covariate.mean(0)) / covariate.std(0)
    theirs = rival("binary", structural="covariate", n_init=2).fit(answers, covariate)
    best = theirs.score(answers, covariate) * len(answers)
    found = theirs.get_parameters()
    beta = found["structural"]["beta"]
    params = {"beta": beta[1:] - beta[0], "probs": found["measurement"]["pis"]}
    x = torch.from_numpy(np.column_stack([np.ones(len(covariate)), covariate]))
    data = (x, torch.from_numpy(answers))
    ours = at(with_covariates, params, *data)
    equal(ours.log_likelihood, best, 1e-9)
    equal(ours.posterior("z").probs, theirs.predict_proba(answers, covariate))
    assert gain_of_a_step(with_covariates, params, *data) < 1e-6
    assert best_of(with_covariates, 2, *data).log_likelihood >= best - 1e-6


def test_a_probability_of_zero_stays_possible_for_the_rival() -> None:
    """Clipped to 1e-15, an answer that no row gave costs 34.5; under MLE it is impossible.

    Ember says so; its default prior is half an answer of each kind, which is meant.
    """
    x = np.array([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    new = np.array([[1.0, 1.0]])
    theirs = rival("binary", n_components=1).fit(x)
    assert theirs.score(new) == pytest.approx(np.log(1e-15) + np.log(0.6), rel=1e-6)
    params = {"weights": [1.0], "probs": [[0.0, 0.6]]}
    ours = log_likelihood(bernoulli_mixture, params, torch.from_numpy(np.vstack([new, new])), 1)
    assert ours < 2 * -700.0  # the logarithm of the smallest number
    fit = EM(bernoulli_mixture).fit(torch.from_numpy(x), components=1)
    expected = np.log(0.5 / 6.0) + np.log(3.5 / 6.0)
    equal(fit.log_prob(torch.from_numpy(new)), [expected], 1e-9)
