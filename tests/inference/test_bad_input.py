"""Bad input: one clear sentence that names the site or the argument, before any work is done."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM, SVI
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.options import EM_CONSTRAINTS, SVI_CONSTRAINTS

X = torch.linspace(-2.0, 3.0, 12, dtype=torch.float64).cos() * 2.0
COUNTS = torch.tensor([0.0, 1.0, 3.0, 2.0, 7.0, 4.0])
GAPPY_SHARES = torch.tensor([[0.2, 0.3, 0.5], [0.1, torch.nan, torch.nan], [0.3, 0.3, 0.4]])


def gaussians(x: Tensor, components: int = 2) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(components)))
    with pyro.plate("components", components):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
        scales = pyro.sample("scales", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)


def poissons(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    rates = pyro.sample("rates", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rates[z]), obs=x)


def dirichlets(x: Tensor) -> None:
    concentration = pyro.sample("concentration", dist.Gamma(2.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Dirichlet(concentration), obs=x)


def one_sentence(error: Any) -> None:
    """Short enough to read, and ending as a sentence does."""
    text = str(error.value)
    assert "\n" not in text.strip()
    assert 20 < len(text) < 500
    assert text.rstrip().endswith((".", "'")), text


# -- data ----------------------------------------------------------------------------------------

DATA: dict[str, tuple[Callable[..., None], Any, str]] = {
    "matrix for a vector": (gaussians, torch.zeros(12, 2), "'x'.*shape"),
    "empty": (gaussians, X[:0], "empty"),
    "one row": (gaussians, X[:1], "at least (2|two)"),
    "NaN in an event without a marginal": (dirichlets, GAPPY_SHARES, "'x'.*NaN"),
    "infinite": (gaussians, torch.where(X > 1.0, torch.inf, X), "'x'.*infinite"),
    "negative counts": (poissons, COUNTS - 1.0, "'x'.*support"),
    "fractional counts": (poissons, COUNTS + 0.5, "'x'.*support"),
    "boolean reals": (gaussians, X > 0.0, "x"),
    "text": (gaussians, np.array(["a", "b", "c"]), "numbers"),
    "text columns": (gaussians, pd.Series(["u", "v"], name="a"), "numbers"),
    "object": (gaussians, None, "argument|data|tensor|NoneType"),
    "string": (gaussians, "abc", "argument|data|tensor|'x'"),
}


@pytest.mark.parametrize("name", DATA)
def test_bad_data(name: str) -> None:
    model, data, match = DATA[name]
    with pytest.raises((TypeError, ValueError), match=match) as error:
        EM(model).fit(data)
    if name != "object":  # the model's own len(None) may speak
        one_sentence(error)


def test_more_components_than_rows() -> None:
    with pytest.raises(ValueError, match=r"'z'.*13 states.*12 rows") as error:
        EM(gaussians).fit(X, 13)
    one_sentence(error)


def test_as_many_components_as_rows_is_possible_for_map() -> None:
    fit = EM(gaussians, seed=0).fit(X[:3], 3)
    assert np.isfinite(fit.log_posterior)


def test_integers_where_reals_are_needed() -> None:
    whole = torch.tensor([1, 5, 2, 9, 8, 1])
    with pytest.raises((TypeError, ValueError), match=r"'x'.*int64.*double") as error:
        EM(gaussians, seed=0).fit(whole)
    one_sentence(error)
    # Counts may be whole numbers of either kind.
    counts = EM(poissons, seed=0).fit(whole)
    assert counts.log_posterior == pytest.approx(
        EM(poissons, seed=0).fit(whole.double()).log_posterior, rel=1e-12
    )


def test_arrays_and_frames_are_taken_for_tensors() -> None:
    truth = EM(gaussians, seed=0).fit(X).log_posterior
    for data in (X.numpy(), pd.Series(X.numpy())):
        assert EM(gaussians, seed=0).fit(data).log_posterior == pytest.approx(truth, rel=1e-12)


HIDDEN = torch.tensor([True, False, False, False, True, False])
GAPPY = torch.where(HIDDEN, torch.nan, COUNTS)
WHOLE = [9, 1, 3, 2, 9, 4]  # at the hidden places, what no fit should see
NULLABLE = pd.Series(WHOLE, dtype="Int64").mask(pd.Series(HIDDEN.numpy()))
GAPS: dict[str, Any] = {
    "masked reals": np.ma.masked_array(np.array(WHOLE, dtype=float), HIDDEN.numpy()),
    "masked integers": np.ma.masked_array(WHOLE, HIDDEN.numpy()),
    "nullable series": NULLABLE,
    "nullable array": NULLABLE.array,
}


@pytest.mark.parametrize("name", GAPS)
def test_masked_and_nullable_entries_are_missing(name: str) -> None:
    truth = EM(poissons, seed=0).fit(GAPPY)
    fit = EM(poissons, seed=0).fit(GAPS[name])
    assert fit.log_posterior == pytest.approx(truth.log_posterior, rel=1e-12)
    torch.testing.assert_close(fit.params["rates"], truth.params["rates"], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("method", "constraints", "others"),
    [
        (EM, EM_CONSTRAINTS, {"progress"}),
        (SVI, SVI_CONSTRAINTS, {"guide", "progress"}),
    ],
)
def test_every_option_has_a_constraint(
    method: type, constraints: dict[str, object], others: set[str]
) -> None:
    options = set(inspect.signature(method).parameters)
    assert options - others == set(constraints)


def test_what_masks_nothing_stays_whole_numbers() -> None:
    for whole in (np.ma.masked_array(WHOLE), pd.array(WHOLE, dtype="Int64")):
        (tensor,) = prepare((whole,), {}).args
        assert isinstance(tensor, torch.Tensor)
        assert torch.equal(tensor, torch.tensor(WHOLE))


def test_data_that_record_gradients_are_constants() -> None:
    fit = EM(gaussians, seed=0).fit(X.clone().requires_grad_())
    constant = EM(gaussians, seed=0).fit(X)
    assert fit.log_posterior == pytest.approx(constant.log_posterior, rel=1e-12)
    assert not any(value.requires_grad for value in fit.params.values())


def test_an_error_of_the_model_itself_is_its_own() -> None:
    with pytest.raises(TypeError, match="compnents"):
        EM(gaussians).fit(X, compnents=3)


# -- models --------------------------------------------------------------------------------------


def without_to_event(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2, 2]).to_event(2))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=torch.stack([x, x], -1))


def without_plate(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    z = pyro.sample("z", dist.Categorical(weights.expand(len(x), 2)))
    pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def collides_with_states(x: Tensor) -> None:
    # Two undeclared rows and two states: the shapes fit by accident, the meaning does not.
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    z = pyro.sample("z", dist.Categorical(weights))
    pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x[:2])


def observed_without_plate(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]), obs=x)


def continuous_local(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        effect = pyro.sample("effect", dist.Normal(locs[z], 1.0))
        pyro.sample("x", dist.Normal(effect.exp(), 1.0), obs=x)


def asks_for_gaussian(x: Tensor) -> None:
    how: Any = {"integrate": "gaussian"}
    with pyro.plate("rows", len(x)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0), infer=how)
        pyro.sample("x", dist.Normal(0.0, effect.exp()), obs=x)


def subsampled(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x), subsample_size=5) as i:
        pyro.sample("x", dist.Poisson(rate), obs=(x[i] > 0).double())


def subsample_given(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", 100, subsample=torch.arange(len(x))):
        pyro.sample("x", dist.Poisson(rate), obs=(x > 0).double())


def branches(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        if loc > 0.1:
            pyro.sample("x", dist.Normal(loc + z, 1.0), obs=x)
        else:
            pyro.sample("y", dist.Normal(loc - z, 1.0), obs=x)


def changes_family(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        family = dist.Normal if loc > 0.1 else dist.Laplace
        pyro.sample("x", family(loc + z, 1.0), obs=x)


def infinite_latent(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Poisson(rate))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def observes_nothing(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Categorical(weights))


def bad_dirichlet(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([-1.0, 2.0])))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)


def bad_gamma(x: Tensor) -> None:
    precision = pyro.sample("precision", dist.Gamma(2.0, -1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(0.0, precision.rsqrt()), obs=x)


def bad_wishart(x: Tensor) -> None:
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(0.5), torch.eye(2)))
    pairs = torch.stack([x, x.cos()], -1)
    with pyro.plate("rows", len(x)):
        fn = dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision)
        pyro.sample("x", fn, obs=pairs)


def delta_site(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Delta(torch.tensor(0.5)))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


MODELS: dict[str, tuple[Callable[..., None], str]] = {
    "missing to_event": (without_to_event, "x.*(to_event|plate)"),
    "missing plate, latent": (without_plate, "'z'.*plate"),
    "missing plate, observed": (observed_without_plate, "'x'.*(to_event|plate)"),
    "missing plate, rows like states": (collides_with_states, "'x'.*(to_event|plate)"),
    "continuous local latent": (continuous_local, "'effect'.*latent"),
    "Gaussian integration": (asks_for_gaussian, "'effect'.*Gaussian.*'scale'"),
    "subsample_size": (subsampled, "'rows'.*subsample"),
    "subsample": (subsample_given, "'rows'.*subsample"),
    "branches": (branches, "structure depends on parameter"),
    "family by branch": (changes_family, "structure depends on parameter"),
    "infinite latent": (infinite_latent, "'z'.*support"),
    "nothing observed": (observes_nothing, "observes nothing"),
    "Dirichlet outside its domain": (bad_dirichlet, "weights"),
    "Gamma outside its domain": (bad_gamma, "precision"),
    "Wishart outside its domain": (bad_wishart, "precision"),
    "Delta": (delta_site, "'loc'.*Delta"),
}


@pytest.mark.parametrize("name", MODELS)
def test_bad_models(name: str) -> None:
    model, match = MODELS[name]
    with pytest.raises(ValueError, match=match) as error:
        EM(model).fit(X)
    one_sentence(error)


@pytest.mark.parametrize("name", MODELS)
def test_explain_refuses_them_too(name: str) -> None:
    model, _ = MODELS[name]
    with pytest.raises(ValueError):  # noqa: PT011 (the message is tested above)
        EM(model).explain(X)


def test_nothing_to_estimate() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    try:
        fit = EM(model).fit(X)
    except ValueError as error:
        assert "parameter" in str(error)  # noqa: PT017 (a fit without parameters would do as well)
    else:
        assert fit.converged
        assert fit.params == {}


def test_a_model_without_latents_takes_one_m_step_and_says_so() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    fit = EM(model).fit(X)
    assert fit.iterations == 1
    assert fit.converged
    assert "no latent" in fit.stop_reason
    mode = float(X.sum()) / (len(X) + 0.01)
    assert float(fit.params["loc"]) == pytest.approx(mode, rel=1e-12)
    with pytest.raises(ValueError, match="no latent"):
        fit.predict()


# -- options -------------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "objective": ({"objective": "bayes"}, "objective='bayes'.*'map'.*'mle'"),
    "init": ({"init": "kmean"}, "init='kmean'.*'kmeans'"),
    "init type": ({"init": 3}, "init=3"),
    "accelerate": ({"accelerate": "turbo"}, "accelerate='turbo'.*'squarem'"),
    "restarts": ({"restarts": 0}, "restarts=0"),
    "restarts type": ({"restarts": 1.5}, r"restarts=1\.5"),
    "tol": ({"tol": -1.0}, r"tol=-1\.0"),
    "tol type": ({"tol": "small"}, "tol='small'"),
    "max_iter": ({"max_iter": 0}, "max_iter=0"),
    "seed": ({"seed": "seven"}, "seed='seven'"),
    "unknown": ({"iterations": 3}, "iterations"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_unknown_options(name: str) -> None:
    options, match = OPTIONS[name]
    with pytest.raises((TypeError, ValueError), match=match):
        EM(gaussians, **options)


def test_a_model_that_is_no_function() -> None:
    with pytest.raises(TypeError, match="model must be"):
        EM(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("integrate", [{"nosuch": "gaussian"}, {"z": "gaussian"}])
def test_integrate_names_a_site_that_cannot_be(integrate: dict[str, str]) -> None:
    (name,) = integrate
    with pytest.raises(ValueError, match=name):
        EM(gaussians, integrate=integrate).fit(X)


INITS: dict[str, tuple[Any, str]] = {
    "unknown name": ({"locations": torch.zeros(2)}, "'locations'.*'locs'"),
    "a latent's name": ({"z": torch.zeros(12)}, "'z'"),
    "shape": ({"locs": torch.zeros(3)}, r"'locs'.*\(3,\).*\(2,\)"),
    "support": ({"scales": torch.tensor([-1.0, 1.0])}, "'scales'.*support"),
    "simplex": ({"weights": torch.tensor([0.9, 0.9])}, "'weights'.*support"),
    "NaN": ({"locs": torch.tensor([0.0, torch.nan])}, "'locs'"),
    "text": ({"locs": "left"}, "locs"),
    "callable without a dict": (lambda x: 3, "init"),
}


@pytest.mark.parametrize("name", INITS)
def test_bad_starts(name: str) -> None:
    init, match = INITS[name]
    with pytest.raises((TypeError, ValueError), match=match):
        EM(gaussians, init=init).fit(X)


GOOD = {"weights": torch.tensor([0.5, 0.5]), "locs": torch.zeros(2), "scales": torch.ones(2)}
E_STEPS: dict[str, tuple[Any, str]] = {
    "missing": ({"locs": torch.zeros(2)}, r"'scales', 'weights'.*missing"),
    "unknown": ({**GOOD, "nosuch": torch.ones(1)}, "'nosuch'"),
    "shape": ({**GOOD, "locs": torch.zeros(3)}, r"'locs'.*shape"),
    "support": ({**GOOD, "scales": -torch.ones(2)}, "'scales'.*support"),
    "no dict": ([1, 2], "params"),
}


@pytest.mark.parametrize("name", E_STEPS)
def test_bad_params_for_the_e_step(name: str) -> None:
    params, match = E_STEPS[name]
    with pytest.raises((TypeError, ValueError), match=match):
        EM(gaussians).e_step(params, X)


def test_statistics_add_only_at_the_same_parameters() -> None:
    em = EM(gaussians)
    left = em.e_step(GOOD, X)
    right = em.e_step({**GOOD, "locs": torch.ones(2)}, X)
    with pytest.raises(ValueError, match="same param"):
        left + right
    with pytest.raises(TypeError):
        left + 3


def test_an_unknown_latent_or_a_bad_number_of_draws() -> None:
    fit = EM(gaussians, seed=0).fit(X)
    with pytest.raises(ValueError, match=r"'q'.*'z'"):
        fit.posterior("q")
    wrong: list[Any] = [0, -1, 2.5]
    for n in wrong:
        with pytest.raises((TypeError, ValueError), match="n="):
            fit.sample(n)
