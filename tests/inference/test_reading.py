"""Models as analysts write them: what works, and what is refused in one sentence."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM, SVI
from ember.models import gaussian_mixture
from tests.inference import pyro_evidence

X = torch.tensor([0.3, -0.2, 4.1, 3.8, 4.6, -0.9, 0.1, 4.2], dtype=torch.float64)
YES = X > 1.0


def parts() -> tuple[Tensor, Tensor]:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    locs = pyro.sample("locs", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    return weights, locs


def refused(model: Callable[..., None], match: str, *args: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=match) as error:
        EM(model).fit(*(args or (X,)))
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


# -- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2.0, torch.tensor(2.0), torch.tensor([2.0])])
def test_scales_on_a_model_without_plates(scale: Any) -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with poutine.scale(scale=scale):
            pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]).to_event(1), obs=x)

    fit = EM(model).fit(X)
    params = {"loc": fit.params["loc"]}
    assert fit.log_likelihood == pytest.approx(pyro_evidence.log_evidence(model, params, X))
    assert float(fit.params["loc"]) == pytest.approx(float(2 * X.sum() / (2 * 8 + 1 / 25)))


def test_weights_of_rows_on_a_parameter() -> None:
    def model(x: Tensor) -> None:
        with poutine.scale(scale=torch.ones(8)):
            loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
            with pyro.plate("rows", 8):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    refused(model, r"'loc' is inside a poutine.scale of shape \(8,\)")


# -- rows ----------------------------------------------------------------------------------------


def test_rows_leave_out_what_stands_outside_their_plate() -> None:
    def model(x: Tensor, penalty: float) -> None:
        weights, locs = parts()
        pyro.factor("penalty", -penalty * locs.square().sum())
        with pyro.plate("rows", len(x)):
            pyro.factor("tilt", torch.full((), -0.5, dtype=torch.float64))
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    fit = EM(model, seed=0).fit(X, 0.25)
    weights, locs = fit.params["weights"], fit.params["locs"]
    joint = weights.log() + dist.Normal(locs, 1.0).log_prob(X.unsqueeze(-1))
    torch.testing.assert_close(fit.log_prob(), joint.logsumexp(-1) - 0.5)
    outside = -0.25 * float(locs.square().sum())
    assert fit.log_likelihood == pytest.approx(float(fit.log_prob().sum()) + outside, rel=1e-10)


def test_data_outside_the_plate_make_one_number() -> None:
    def model(x: Tensor) -> None:
        weights, locs = parts()
        pyro.sample("y", dist.Normal(locs[0], 1.0), obs=torch.tensor(4.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    fit = EM(model, seed=0).fit(X)
    assert fit.log_prob().shape == ()
    assert float(fit.log_prob()) == pytest.approx(fit.log_likelihood, rel=1e-12)


# -- booleans and counts -------------------------------------------------------------------------


def yes_or_no(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    probs = pyro.sample("probs", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Bernoulli(probs[z]), obs=x)


@pytest.mark.parametrize(
    "data",
    [
        YES,
        YES.numpy(),
        pd.Series(YES.numpy()),
        pd.array([*YES.numpy()], "boolean"),
        YES.tolist(),
    ],
    ids=["tensor", "array", "series", "nullable", "list"],
)
@pytest.mark.parametrize("method", [EM(yes_or_no, seed=0), SVI(yes_or_no, steps=20, seed=0)])
def test_truth_values_are_data(method: Any, data: Any) -> None:
    truth = method.fit(YES.double())
    fit = method.fit(data)
    assert fit.log_posterior == pytest.approx(truth.log_posterior, rel=1e-12)
    torch.testing.assert_close(fit.log_prob(data), truth.log_prob())


def test_truth_values_of_several_kinds() -> None:
    def model(x: Any, labels: Any) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        locs = pyro.sample("locs", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), obs=labels)
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    truth = EM(model).fit(X, YES.long())
    assert EM(model).fit(X, YES).log_posterior == pytest.approx(truth.log_posterior, rel=1e-12)


def counted(kind: Any) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        shares = pyro.sample("shares", dist.Dirichlet(torch.full((6,), 2.0)))
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(x)):
            size = pyro.sample("size", dist.Categorical(shares))
            pyro.sample("x", kind(size, p), obs=x)

    return model


def test_counts_out_of_a_latent_number() -> None:
    x = torch.tensor([0.0, 1.0, 3.0, 2.0, 5.0, 1.0], dtype=torch.float64)
    refused(counted(dist.Binomial), r"'x'.*\(Binomial: .*\).*write ExtendedBinomial", x)
    model = counted(dist.ExtendedBinomial)
    fit = EM(model, seed=0).fit(x)
    truth = pyro_evidence.log_evidence(model, fit.params, x)
    assert fit.log_likelihood == pytest.approx(truth, rel=1e-10)


# -- the parameter store -------------------------------------------------------------------------


def from_the_store(x: Tensor) -> None:
    locs, weights = pyro.param("locs"), pyro.param("weights")
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


@pytest.mark.parametrize("method", [EM, SVI])
def test_parameters_that_the_user_has_declared(method: Any) -> None:
    pyro.param("locs", torch.tensor([0.0, 3.0]))
    pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    before = pyro.get_param_store().get_state()
    fit = method(from_the_store, init={"locs": torch.tensor([0.0, 3.0])}).fit(X)
    assert float(fit.params["weights"].sum()) == pytest.approx(1.0)
    assert fit.log_prob(X[:3]).shape == (3,)
    after = pyro.get_param_store().get_state()
    assert before["params"].keys() == after["params"].keys()
    for name, value in before["params"].items():
        assert after["params"][name] is value
        assert value.dtype is torch.float32


def test_parameters_that_nobody_has_declared() -> None:
    refused(from_the_store, r"pyro.param\('locs'\) has no initial value")


# -- refusals ------------------------------------------------------------------------------------


def test_data_computed_from_latents() -> None:
    def model(x: Tensor) -> None:
        weights, locs = parts()
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x - locs[z])

    refused(model, r"data of site 'x' are computed from a latent site \('z'\)")


def test_rows_of_one_plate_that_meet() -> None:
    def in_a_table(x: Tensor) -> None:
        weights, locs = parts()
        with pyro.plate("nodes", 4, dim=-1):
            z: Any = pyro.sample("z", dist.Categorical(weights))
        with pyro.plate("to", 4, dim=-2), pyro.plate("from", 4, dim=-1):
            pyro.sample("x", dist.Normal(locs[z.unsqueeze(-1)] + locs[z], 1.0), obs=x)

    def by_edges(x: Tensor) -> None:
        weights, locs = parts()
        with pyro.plate("nodes", 4):
            z: Any = pyro.sample("z", dist.Categorical(weights))
        with pyro.plate("edges", 2):
            pyro.sample("x", dist.Normal(locs[z[[0, 1]]] + locs[z[[2, 3]]], 1.0), obs=x)

    refused(in_a_table, "'x'.*'z'.*each a site of its own", X.reshape(2, 4).repeat(2, 1))
    refused(by_edges, "latent sites.*IndexError.*each a site of its own", X[:2])


def test_rows_that_meet_as_sites_of_their_own() -> None:
    def model(x: Tensor) -> None:
        weights, locs = parts()
        z = [pyro.sample(f"z_{i}", dist.Categorical(weights)) for i in pyro.plate("nodes", 3)]
        for i, j in ((0, 1), (1, 2), (0, 2)):
            pyro.sample(f"x_{i}{j}", dist.Normal(locs[z[i]] - locs[z[j]], 1.0), obs=x[i, j])

    x = torch.randn(3, 3, dtype=torch.float64)
    fit = EM(model, seed=0).fit(x)
    truth = pyro_evidence.log_evidence(model, fit.params, x)
    assert fit.log_likelihood == pytest.approx(truth, rel=1e-10)


def test_a_plate_without_a_size() -> None:
    def model(x: Tensor) -> None:
        weights, locs = parts()
        with pyro.plate("rows"):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    refused(model, "plate 'rows' has no size")


class Odd(Exception):
    """An exception of the user's own."""


def fails(error: Exception) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        raise error

    return model


@pytest.mark.parametrize(
    "error", [AssertionError("three rows, please"), AssertionError(), KeyError("k"), Odd("odd")]
)
def test_whatever_a_model_raises_is_told_in_a_sentence(error: Exception) -> None:
    refused(fails(error), f"{type(error).__name__}.*in the line `raise error`")


def test_an_assertion_about_parameters() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        assert loc < 0.5, "only small ones"
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    table = EM(model).explain(X).set_index("site")
    assert "AssertionError: only small ones" in str(table.loc["x", "why"])


def test_two_plates_of_one_name() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z: Any = pyro.sample("z", dist.Bernoulli(0.25))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    refused(model, "named 'rows'.*rows = pyro.plate")


# -- computed values -----------------------------------------------------------------------------


def test_computed_values_have_no_role() -> None:
    def model(x: Tensor) -> None:
        weights, locs = parts()
        gap = pyro.deterministic("gap", locs[1] - locs[0])
        pyro.sample("gap_again", dist.Delta(gap), obs=gap)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            centre = pyro.deterministic("centre", locs[z])
            pyro.sample("x", dist.Normal(centre, 1.0), obs=x)

    table = EM(model).explain(X).set_index("site")
    assert list(table.index) == ["locs", "weights", "z", "x"]
    assert set(table["M-step"]) == {"closed form"}
    assert set(EM(model, seed=0).fit(X).sample(3)) == {"z", "x"}


# -- row effects ---------------------------------------------------------------------------------


def effects(way: str) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        centre = pyro.sample("centre", dist.Normal(0.0, 5.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        normal = dist.Normal(centre, spread)
        if way == "event":
            effect = pyro.sample("effect", normal.expand([len(x)]).to_event(1))
        else:
            with pyro.plate("another plate", len(x)):
                effect = pyro.sample("effect", normal)
        if way == "shuffled":
            effect = effect.flip(0)
        if way == "weighted":
            effect = centre + 2.0 * effect
        loc = effect.exp() if way == "exponential" else effect
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    return model


@pytest.mark.parametrize("objective", ["map", "mle"])
@pytest.mark.parametrize("way", ["plate", "event", "shuffled", "weighted"])
def test_effects_of_rows_are_integrated_however_they_are_written(way: str, objective: str) -> None:
    em = EM(effects(way), objective)
    assert em.explain(X).set_index("site").loc["effect", "role"] == "latent"
    centre, spread = torch.tensor([0.3, 0.8], dtype=torch.float64)
    params = {"centre": centre, "spread": spread}
    slope, shift = (2.0, centre) if way == "weighted" else (1.0, 0.0)
    marginal = dist.Normal(slope * centre + shift, (1.0 + (slope * spread) ** 2) ** 0.5)
    truth = float(marginal.log_prob(X.flip(0) if way == "shuffled" else X).sum())
    assert em.e_step(params, X).log_likelihood == pytest.approx(truth, rel=1e-12)


def test_effects_of_rows_that_cannot_be_integrated_are_refused() -> None:
    refused(effects("exponential"), r"'effect' has one value for each row.*'(centre|spread)'")


def test_effects_of_rows_are_estimated_on_demand() -> None:
    fit = EM(effects("plate"), "mle", integrate={"effect": None}).fit(X)  # as many means as rows
    torch.testing.assert_close(fit.params["effect"], X)


def test_coefficients_are_no_effects_of_rows() -> None:
    design = torch.randn(8, 9, dtype=torch.float64)

    def model(x: Tensor) -> None:
        spread = pyro.sample("spread", dist.Gamma(2.0, 2.0))
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0).expand([9]).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(design @ beta, spread.rsqrt()), obs=x)

    assert set(EM(model).fit(X).params) == {"spread", "beta"}


# -- gradients that are cut ----------------------------------------------------------------------


def cut(how: str) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        a = pyro.param("a", torch.tensor(1.0))
        b = pyro.param("b", torch.tensor(0.5))
        loc = {
            "closed form": lambda: b.detach(),
            "item": lambda: torch.as_tensor(b.item()),
            "numerical": lambda: a + b.detach().exp(),
            "in part": lambda: a + b.exp() + b.detach().square(),
        }[how]()
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, (a - a + 1.0)), obs=x)

    return model


@pytest.mark.parametrize("how", ["closed form", "item", "numerical", "in part"])
@pytest.mark.parametrize("method", [EM, SVI])
def test_parameters_cut_off_from_the_gradient(method: Any, how: str) -> None:
    options = {"steps": 5} if method is SVI else {"max_iter": 1000}
    with pytest.warns(RuntimeWarning, match="'b' is cut off from the gradient of site 'x'"):
        method(cut(how), **options).fit(X)


def test_no_warning_where_nothing_is_cut() -> None:
    def model(x: Tensor) -> None:
        a = pyro.param("a", torch.tensor(1.0))
        b = pyro.param("b", torch.tensor(0.5))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Gamma((a + b.exp()).exp(), b.exp() + a * a), obs=x)

    EM(model, seed=0).fit(X.abs() + 0.1)


# -- latents that decide what the model does -----------------------------------------------------


def first_or_second(z: Any, locs: Tensor) -> Tensor:
    return locs[0] if z == 0 else locs[1]


def switch(how: str) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        weights, locs = parts()
        for i in pyro.plate("rows", 3):
            z: Any = pyro.sample(f"z_{i}", dist.Categorical(weights))
            loc: Any = first_or_second(z, locs) if how == "branch" else locs[z]
            if how != "reduced" or z.max() > 0:
                pyro.sample(f"x_{i}", dist.Normal(loc, 1.0), obs=x[int(i)])
            if how == "table":
                loc = list(locs)[z]
        pyro.sample("y", dist.Normal(loc, 1.0), obs=x[3])

    return model


def test_latents_that_decide_on_the_course_of_a_model() -> None:
    refused(switch("branch"), "latent sites.*line `return locs.*`.*torch.where")
    refused(switch("table"), "latent sites.*TypeError.*line `loc = .*`.*torch.where")
    refused(switch("reduced"), "site 'x_0' is there at some values of the latent sites only")


# -- messages without tensors --------------------------------------------------------------------


def test_messages_show_no_tensors() -> None:
    def bad_scale(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(0.0, x), obs=x)

    def bad_data(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Uniform(loc - torch.arange(8.0), loc + 1.0), obs=x)

    def bad_mask(x: Tensor) -> None:
        with pyro.plate("rows", len(x)), poutine.mask(mask=torch.ones(8)):  # type: ignore[call-overload]
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def bad_weights(x: Tensor) -> None:
        with pyro.plate("rows", len(x)), poutine.scale(scale=torch.ones(3)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    refused(bad_scale, r"^[^\[]*scale[^\[]*GreaterThan[^\[]*\[8\][^\[]*$|satisfy the constraint")
    refused(
        bad_data, r"'x' has values outside the support of its distribution \(Uniform: Interval\)"
    )
    refused(bad_mask, r"mask.bool\(\)")
    refused(bad_weights, r"'x' is inside a poutine.scale of shape \(3,\)")
    for model in (bad_scale, bad_data):
        with pytest.raises(ValueError, match=r"'x'|scale") as error:
            EM(model).fit(X)
        assert "tensor(" not in str(error.value)


def test_large_matrices_are_read() -> None:
    """A random triangular matrix of many rows is all but singular, unless it is drawn with care."""
    x = torch.randn(200, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = EM(gaussian_mixture).explain(x, components=3).set_index("site")
    assert set(table["M-step"]) == {"closed form"}
