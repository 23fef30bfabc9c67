"""Estimates without a standard error are named and get NaN: at boundaries, or not identified."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM, SVI
from ember.inference.fit import Fit
from ember.inference.queries.uncertainty import observed_information
from ember.models import (
    factor_analysis,
    gaussian_mixture,
    hidden_markov_poisson,
    linear_mixed_model,
    poisson_mixture,
    probabilistic_pca,
    student_t_regression,
)

Load = Callable[[str], pd.DataFrame]


def quietly(em: EM, *args: Any, **kwargs: Any) -> Fit:
    """A fit whose own warnings are tested elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return em.fit(*args, **kwargs)


def normals(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def check_nowhere(fit: Fit, *names: str) -> None:
    """That the named sites, and they alone, have no number in any answer."""
    summary = fit.summary(errors=True)
    site = summary.index.str.replace(r"\[.*", "", regex=True)
    unknown = summary[["std. error", "lower", "upper"]].isna()
    assert bool(unknown[site.isin(names)].all().all())
    assert not bool(unknown[~site.isin(names)].any().any())
    covariance = fit.vcov()
    assert bool((covariance.isna().all() == unknown["lower"].to_numpy()).all())


def test_a_variance_of_zero() -> None:
    y = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5, -0.5], dtype=torch.float64)
    fit = quietly(EM(linear_mixed_model, "mle"), y, groups=torch.tensor([0, 0, 1, 1, 2, 2]))
    with pytest.warns(RuntimeWarning, match="group_variance is at a boundary"):
        check_nowhere(fit, "group_variance")
    with pytest.warns(RuntimeWarning, match="group_variance is at a boundary"):
        errors = fit.standard_errors()
    variance = float(y.square().mean())  # without groups: a normal sample
    assert float(errors["coefficients"]) == pytest.approx((variance / 6) ** 0.5, rel=1e-4)
    assert float(errors["variance"]) == pytest.approx(variance * (2 / 6) ** 0.5, rel=1e-4)


def test_a_heywood_case() -> None:
    """The mean of each column is as sure as its variance says, whatever the factors."""
    x = torch.cat([normals(0, 60, 3), normals(1, 60, 2)], 1)
    x[:, 1] += 2.0 * x[:, 0]
    fit = quietly(EM(factor_analysis, "mle", seed=0), x, factors=2)
    assert float(fit.params["uniquenesses"].min()) < 1e-5
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        errors = fit.standard_errors()
    boundary, idle = (str(each.message) for each in caught)
    assert "uniquenesses[" in boundary
    assert "do not identify loadings[" in idle
    # Two factors may rotate, which moves all loadings.
    assert bool(errors["loadings"].isnan().all())
    expected = (x.var(0, correction=0) / 60).sqrt()
    torch.testing.assert_close(errors["locs"], expected, rtol=1e-3, atol=0)


def test_rotations_leave_what_they_do_not_move() -> None:
    loadings = torch.tensor([[2.0, 0, 1, 1, 0, 1], [0.0, 2, 1, -1, 1, 0]], dtype=torch.float64)
    x = normals(2, 300, 2) @ loadings + normals(3, 300, 6)
    fit = EM(probabilistic_pca, "mle").fit(x, factors=2)
    with pytest.warns(RuntimeWarning, match=r"the data do not identify loadings\["):
        check_nowhere(fit, "loadings")
    with pytest.warns(RuntimeWarning, match=r"the data do not identify loadings\["):
        draws = fit.laplace_samples(500, seed=0)
    # Draws keep to what is identified: W W' has the spread that the data leave it.
    square = draws["loadings"] @ draws["loadings"].mT
    assert bool((square.std(0) > 0.01).all())


def test_components_that_are_one() -> None:
    x = torch.tensor([0.0, 1, 2, 3]).repeat_interleave(torch.tensor([60, 90, 70, 40]))
    fit = quietly(EM(poisson_mixture, "mle", seed=0), x, components=2)
    rates = fit.params["rates"]
    assert float((rates[0] - rates[1]).abs()) < 1e-3
    with pytest.warns(RuntimeWarning, match="states 0 and 1 of latent site 'assignment' are one"):
        check_nowhere(fit, "weights", "rates")


def test_a_third_component_with_nothing_to_do(reference_data: Load) -> None:
    """Hasselblad (1969): two rates explain the deaths, and what they say remains."""
    table = reference_data("notices")
    em = EM(poisson_mixture, "mle", seed=0)
    two = em.fit(table.iloc[:, 0], components=2, frequency=table.iloc[:, 1])
    three = quietly(em, table.iloc[:, 0], components=3, frequency=table.iloc[:, 1])
    with pytest.warns(RuntimeWarning, match="states 0 and 2 of latent site"):
        errors = three.standard_errors()
    for name, expected in two.standard_errors().items():
        assert bool(errors[name][[0, 2]].isnan().all())
        assert float(errors[name][1]) == pytest.approx(float(expected[1]), rel=1e-3)


def test_a_component_without_data() -> None:
    x = torch.tensor([0.0, 1, 2, 3, 2, 1])
    fit = quietly(EM(poisson_mixture, "mle", seed=0, max_iter=1), x, components=2)
    params = {"weights": [1.0, 0.0], "rates": [1.5, 9.0]}
    fit = dataclasses.replace(fit, params={n: torch.tensor(v).double() for n, v in params.items()})
    with pytest.warns(RuntimeWarning, match="state 1 of latent site 'assignment' explains no row"):
        errors = fit.standard_errors()
    assert errors["rates"].isnan().tolist() == [False, True]


def test_estimates_that_the_prior_rules_out() -> None:
    fit = EM(poisson_mixture, seed=0).fit(torch.tensor([0.0, 1, 9, 8]), components=2)
    never = {**fit.params, "weights": torch.tensor([1.0, 0.0]).double()}
    with pytest.raises(ValueError, match="no finite curvature at the estimates"):
        dataclasses.replace(fit, params=never).standard_errors()


def test_moves_that_never_happen() -> None:
    counts = torch.tensor([1.0, 1, 2, 1, 1, 9, 9, 8, 7, 10])
    fit = EM(hidden_markov_poisson, "mle", seed=0).fit(counts, states=2)
    with pytest.warns(RuntimeWarning, match=r"initial\[0\] and transition\[0, 1\] are at a bound"):
        summary = fit.summary(errors=True)
    gone = summary.index[summary["std. error"].isna()]
    assert set(gone) == {"initial[0]", "transition[0, 1]"}
    stays = summary.loc["transition[1, 1]", "std. error"]  # 4 of 5 known moves
    assert stays == pytest.approx((0.8 * 0.2 / 5) ** 0.5, rel=2e-3)
    assert summary.loc["initial[1]", "std. error"] == 0.0  # its simplex has nothing left to give


def logistic(x: Tensor, y: Tensor) -> None:
    slopes = pyro.param("slopes", torch.zeros(2))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)


def test_separated_groups() -> None:
    x = normals(5, 40, 2)
    fit = quietly(EM(logistic, "mle"), x, (x[:, 0] > 0).double())
    assert "infinity" in fit.stop_reason
    with pytest.warns(RuntimeWarning, match=r"slopes\[0\].* on the way to infinity"):
        errors = fit.standard_errors()
    assert bool(errors["slopes"][0].isnan())


def test_degrees_of_freedom_without_end() -> None:
    x = normals(6, 60, 1)
    y = x[:, 0] + torch.linspace(-1, 1, 60).double()  # shorter tails than a normal's
    fit = quietly(EM(student_t_regression, "mle"), y, X=x)
    assert float(fit.params["df"]) > 1e3
    with pytest.warns(RuntimeWarning, match="df is at a boundary"):
        check_nowhere(fit, "df")
    for df in (1e6, 4e9, 1e12):  # where the scores of such numbers are rounding
        params = {**fit.params, "df": torch.tensor(df, dtype=torch.float64)}
        with pytest.warns(RuntimeWarning, match="df is at a boundary"):
            check_nowhere(dataclasses.replace(fit, params=params), "df")


def hyper(x: Tensor) -> None:
    centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
    loc = pyro.sample("loc", dist.Normal(centre, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_what_only_priors_read_has_no_likelihood() -> None:
    em = EM(hyper, "mle", integrate={"loc": None})
    fit = em.fit(torch.tensor([1.0, 2.0, 3.0]))
    with pytest.warns(RuntimeWarning, match="the data do not identify centre: other values"):
        check_nowhere(fit, "centre")
    fit = EM(hyper, integrate={"loc": None}).fit(torch.tensor([1.0, 2.0, 3.0]))
    assert float(fit.standard_errors()["centre"]) > 0.0  # with its prior there is


def twice(x: Tensor, unit: float) -> None:
    one = pyro.param("one", torch.tensor(1.0))
    two = pyro.param("two", torch.tensor(unit))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(one + two / unit, scale), obs=x)


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_the_verdict_does_not_depend_on_units(unit: float) -> None:
    fit = quietly(EM(twice, "mle"), torch.tensor([1.0, 2.0, 4.0]), unit)
    with pytest.warns(RuntimeWarning, match="the data do not identify one and two: other"):
        check_nowhere(fit, "one", "two")


# -- no maximum, and no independent rows ---------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*max_iter")
def test_estimates_that_are_no_maximum_yet() -> None:
    x = torch.cat([normals(0, 30), 2.0 + normals(1, 30)]).unsqueeze(-1)
    fit = EM(gaussian_mixture, "mle", seed=0, max_iter=2, accelerate=None).fit(x, components=2)
    with pytest.warns(RuntimeWarning, match="no maximum; what that concerns has no standard error"):
        fit.standard_errors()
    em = EM(gaussian_mixture, "mle", seed=0, max_iter=6, accelerate=None)
    fit = em.fit(x + (torch.arange(60) > 29).unsqueeze(-1), components=2)
    with pytest.warns(RuntimeWarning, match="standard errors away from the maximum"):
        fit.standard_errors()


def test_variational_points_are_judged_alike() -> None:
    x = torch.tensor([0.0, 1, 2, 1, 0, 9, 11, 10, 12, 1, 2], dtype=torch.float64)
    fit = SVI(poisson_mixture, steps=3, seed=0).fit(x, components=2)
    assert fit.certificate is None
    with pytest.warns(RuntimeWarning, match="the estimates"):
        fit.standard_errors()


def test_a_collapsed_component() -> None:
    x = torch.tensor([[0.0], [0.0], [0.0], [5.0], [6.0], [7.5]])
    fit = quietly(EM(gaussian_mixture, "mle", seed=0), x, components=2)
    assert fit.is_degenerate
    with pytest.raises(ValueError, match="standard errors need a maximum, and this fit has none"):
        fit.standard_errors()


def test_more_parameters_than_a_matrix_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observed_information, "MOST", 2)
    fit = EM(poisson_mixture, seed=0).fit(torch.tensor([0.0, 1, 2, 9, 11]), components=2)
    with pytest.raises(ValueError, match="the standard errors of 3 free parameters take a matrix"):
        fit.vcov()


def test_one_unit_has_no_sandwich() -> None:
    counts = torch.tensor([1.0, 1, 2, 9, 8, 1, 2, 7, 1])
    chain = EM(hidden_markov_poisson, seed=0).fit(counts, states=2)
    with pytest.raises(ValueError, match="the data of this model are one unit"):
        chain.standard_errors(robust=True)
    y, groups = normals(7, 12), torch.arange(12) % 3
    mixed = quietly(EM(linear_mixed_model), y + 3.0 * groups, groups=groups)
    with pytest.raises(ValueError, match="effects that rows share"):
        mixed.summary(errors=True, robust=True)


def test_where_nothing_is_free() -> None:
    def coin(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        with pyro.plate("tosses", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    fit = EM(coin, "mle").fit(torch.ones(5))
    for robust in (False, True):
        with pytest.warns(RuntimeWarning, match="p is at a boundary"):
            assert bool(fit.standard_errors(robust)["p"].isnan())
    with pytest.warns(RuntimeWarning, match="p is at a boundary"):
        assert fit.laplace_samples(3)["p"].tolist() == pytest.approx([1.0] * 3, abs=1e-15)

    def known(x: Tensor) -> None:
        with pyro.plate("tosses", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Bernoulli(0.2 + 0.6 * z), obs=x)

    with pytest.raises(ValueError, match="the model has no parameters"):
        EM(known).fit(torch.ones(5)).vcov()


def test_names_of_columns_stay_in_the_summary() -> None:
    table = pd.DataFrame({"a": [0.0, 1, 2, 8, 9, 10], "b": [1.0, 0, 2, 9, 8, 12]})
    fit = EM(gaussian_mixture, seed=0).fit(table, components=2)
    expected = ["column", "estimate", "std. error", "lower", "upper"]
    assert list(fit.summary(errors=True).columns) == expected


def test_a_fall_by_rounding_on_the_way_up_is_no_convergence() -> None:
    """Next to a variance of zero digits are lost; what was still rising has not converged."""
    x = torch.cat([normals(0, 60, 3), normals(1, 60, 2)], 1)
    x[:, 1] += 2.0 * x[:, 0]
    fits = [
        quietly(EM(factor_analysis, "mle", seed=0, accelerate=name), x, factors=2)
        for name in ("auto", "lbfgs", "squarem")
    ]
    best = max(fit.log_likelihood for fit in fits)
    assert fits[0].converged
    for fit in fits:
        assert not fit.converged or fit.log_likelihood == pytest.approx(best, abs=0.03)


@pytest.mark.parametrize("seed", [0, 3])
def test_counts_that_vary_less_than_poisson_s_have_no_dispersion(seed: int) -> None:
    """However near to its end the search for it has come, which rounding decides."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.rand(60, 10, generator=generator, dtype=torch.float64) < 0.5).sum(1).double()

    def model(y: Tensor) -> None:
        positive = constraints.positive
        size = pyro.param("size", torch.tensor(1.0, dtype=torch.float64), constraint=positive)
        mean = pyro.param("mean", torch.tensor(1.0, dtype=torch.float64), constraint=positive)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.NegativeBinomial(size, logits=(mean / size).log()), obs=y)

    fit = quietly(EM(model, "mle", seed=0), y)
    assert "infinity" in fit.stop_reason
    assert "'size'" in fit.warning
    assert fit.log_likelihood == pytest.approx(float(dist.Poisson(y.mean()).log_prob(y).sum()))


def rates_that_vary(y: Tensor) -> None:
    with pyro.plate("rows", len(y)):
        rate = pyro.sample("rate", dist.Gamma(positive("one"), positive("two")))
        pyro.sample("y", dist.Poisson(rate), obs=y)


def shares_that_vary(y: Tensor) -> None:
    with pyro.plate("rows", len(y)):
        share = pyro.sample("share", dist.Beta(positive("one"), positive("two")))
        pyro.sample("y", dist.Binomial(10, share), obs=y)


def positive(name: str) -> Tensor:
    start = torch.tensor(1.0, dtype=torch.float64)
    return pyro.param(name, start, constraint=constraints.positive)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("model", [rates_that_vary, shares_that_vary])
def test_a_mixing_density_that_the_data_do_not_want(
    model: Callable[[Tensor], None], seed: int
) -> None:
    """Both of its parameters rise in step, along a way that is known to few digits far out."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.rand(80, 3, generator=generator, dtype=torch.float64) < 0.5).sum(1) + 3.0
    fit = quietly(EM(model, "mle", seed=0), y)
    assert "infinity" in fit.stop_reason
    assert "'one'" in fit.warning
    limit: Any = dist.Binomial(10, y.mean() / 10)
    if model is rates_that_vary:
        limit = dist.Poisson(y.mean())
    assert 0.0 < float(limit.log_prob(y).sum()) - fit.log_likelihood < 0.01


def test_a_mixing_density_that_they_want() -> None:
    generator = torch.Generator().manual_seed(1)
    rates = 4.0 + torch.randn(4000, generator=generator, dtype=torch.float64).clamp(-3, 3) * 0.5
    y = torch.poisson(rates, generator=generator)
    fit = EM(rates_that_vary, "mle", seed=0).fit(y)
    assert fit.converged
    size = fit.params["one"]
    oracle = dist.NegativeBinomial(size, logits=(y.mean() / size).log()).log_prob(y).sum()
    assert fit.log_likelihood == pytest.approx(float(oracle))
    assert fit.params["one"] / fit.params["two"] == pytest.approx(float(y.mean()))
