"""Breeding values: matrices known but for a factor, pencils, pedigrees, entries read together."""

import pickle
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.factors.gaussian.pencil import PencilComponent
from ember.inference.plan.plan import Plan
from ember.inference.plan.potentials import natural_parameters, values_of
from ember.inference.reading.known_factors import KnownFactors, Remembered
from ember.models import animal_model
from ember.models.pedigrees import inverse_relationship_matrix, relationship_matrix
from tests.inference.dense_gaussian import dense

Params = dict[str, Tensor]
GAUSSIAN: Any = {"integrate": "gaussian"}


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def positive(name: str, value: float) -> Tensor:
    return torch.as_tensor(pyro.param(name, torch.tensor(value), constraint=constraints.positive))


def real(name: str, value: float, *shape: int) -> Tensor:
    return torch.as_tensor(pyro.param(name, torch.full(shape, value)))


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def livestock(generations: int, size: int, sires: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sire and dam of every animal: a few sires of each generation have all offspring."""
    draw = torch.Generator().manual_seed(seed)
    sire = torch.full((generations * size,), -1)
    dam = sire.clone()
    for g in range(1, generations):
        before, own = (g - 1) * size, slice(g * size, (g + 1) * size)
        chosen = before + torch.randperm(size, generator=draw)[:sires]
        sire[own] = chosen[torch.randint(sires, (size,), generator=draw)]
        dam[own] = before + torch.randint(size, (size,), generator=draw)
    return sire, dam


def records(matrix: Tensor, additive: float, variance: float, seed: int = 1) -> Tensor:
    """One record of each animal, about 3."""
    values: Tensor = torch.linalg.cholesky(matrix) @ normal(seed, len(matrix))
    noise: Tensor = variance**0.5 * normal(seed + 1, len(matrix))
    found: Tensor = 3.0 + additive**0.5 * values + noise
    return found


def genomic(animals: int, seed: int = 3) -> Tensor:
    """A relationship matrix without zeros, as from markers."""
    markers: Tensor = normal(seed, animals, 2 * animals)
    return markers @ markers.mT / (2 * animals) + 0.05 * torch.eye(animals, dtype=torch.float64)


def plan_of(model: Any, *args: Any, **kwargs: Any) -> Plan:
    em = EM(model, "mle")
    return em._kept.plan_for(em._options, args, kwargs)


# -- matrices known but for a factor ---------------------------------------------------------------


def process(y: Tensor, how: str, matrix: Tensor) -> None:
    v = pyro.sample("v", dist.InverseGamma(2.0, 3.0))
    given: dict[str, Any] = {
        "covariance_matrix": v * matrix,
        "precision_matrix": torch.linalg.inv(matrix) / v,
        "scale_tril": v.sqrt() * torch.linalg.cholesky(matrix),
    }
    with pyro.plate("rows", len(y)):
        fn = dist.MultivariateNormal(torch.ones(len(matrix)), **{how: given[how]})
        pyro.sample("y", fn, obs=y)


EVERY_WAY = ["covariance_matrix", "precision_matrix", "scale_tril"]
CURVES = 1.0 + 1.6 * normal(5, 5, 6) @ torch.linalg.cholesky(genomic(6)).mT


@pytest.mark.parametrize("how", EVERY_WAY)
def test_the_variance_of_a_known_kernel_has_a_closed_form(how: str) -> None:
    em = EM(process)
    table = em.explain(CURVES, how, genomic(6)).set_index("site")
    assert table.loc["v", "why"] == f"conjugate: MultivariateNormal.{how} with InverseGamma prior"
    fit = em.fit(CURVES, how, genomic(6))
    residual = CURVES - 1.0
    square = float((residual @ torch.linalg.inv(genomic(6)) * residual).sum())
    assert float(fit.params["v"]) == pytest.approx((3.0 + square / 2) / (3.0 + 15.0), rel=1e-12)


@pytest.mark.parametrize("how", EVERY_WAY)
def test_missing_entries_of_a_process_drop_out(how: str) -> None:
    y = CURVES.clone()
    y[0, 1:3] = y[2] = y[4, 5] = torch.nan
    fit = EM(process).fit(y, how, genomic(6))
    covariance = fit.params["v"] * genomic(6)
    expected = 0.0
    for row in y:
        shown = (~row.isnan()).nonzero().squeeze(-1)
        if len(shown):
            part = covariance[shown][:, shown]
            fn = dist.MultivariateNormal(torch.ones(len(shown)).double(), part)
            expected += float(fn.log_prob(row[shown]))
    assert fit.log_likelihood == pytest.approx(expected, rel=1e-11)


def test_every_plate_has_a_matrix_of_its_own() -> None:
    matrices = torch.stack([genomic(4, seed) for seed in (6, 7, 8)])

    def model(y: Tensor) -> None:
        v = positive("v", 1.0)
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(4), v * matrices), obs=y)

    y = normal(9, 3, 4)
    fit = EM(model, "mle").fit(y)
    square = torch.einsum("ni,nij,nj->", y, torch.linalg.inv(matrices), y)
    assert float(fit.params["v"]) == pytest.approx(float(square) / 12, rel=1e-12)
    fn = dist.MultivariateNormal(torch.zeros(4).double(), fit.params["v"] * matrices)
    assert fit.log_likelihood == pytest.approx(float(fn.log_prob(y).sum()), rel=1e-12)


@pytest.mark.parametrize("what", ["jitter", "two matrices", "scale within"])
def test_what_is_no_multiple_of_a_known_matrix_is_left_to_the_model(what: str) -> None:
    def model(y: Tensor) -> None:
        v, w = positive("v", 1.0), positive("w", 0.7)
        matrix = {
            "jitter": v * genomic(4) + 1e-6 * torch.eye(4),
            "two matrices": v * genomic(4) + w * torch.eye(4),
            "scale within": v * torch.exp(-w * (1.0 - genomic(4)).square()) + torch.eye(4),
        }[what]
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(4), matrix), obs=y)

    table = EM(model, "mle").explain(normal(10, 9, 4)).set_index("site")
    assert table.loc["v", "M-step"] == "numerical"


def test_a_class_chooses_the_variance_of_a_process() -> None:
    K = genomic(4)

    def model(y: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        with pyro.plate("kinds", 2):
            v = pyro.sample("v", dist.InverseGamma(2.0, torch.tensor([0.1, 10.0])))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Categorical(weights))
            fn = dist.MultivariateNormal(torch.zeros(4), v[z][..., None, None] * K)
            pyro.sample("y", fn, obs=y)

    y = torch.where(torch.arange(20) < 8, 0.1, 2.0)[:, None] * normal(11, 20, 4)
    em = EM(model)
    table = em.explain(y).set_index("site")
    assert table.loc["v", "M-step"] == "closed form"
    fit = em.fit(y)
    parts = [
        dist.MultivariateNormal(torch.zeros(4).double(), v * K).log_prob(y) + w.log()
        for v, w in zip(fit.params["v"], fit.params["weights"], strict=True)
    ]
    expected = float(torch.logsumexp(torch.stack(parts), 0).sum())
    assert fit.log_likelihood == pytest.approx(expected, rel=1e-12)


# -- latents of many entries -----------------------------------------------------------------------


def kinship(y: Tensor, animal: Tensor, matrix: Tensor, X: Tensor) -> None:
    beta, va, ve = real("beta", 0.5, X.shape[1]), positive("va", 1.0), positive("ve", 1.0)
    zeros = torch.zeros(len(matrix))
    u = pyro.sample("u", dist.MultivariateNormal(zeros, va * matrix), infer=GAUSSIAN)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(X @ beta + u[animal], ve.sqrt()), obs=y)


def repeated(animals: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Records, their animals, a relationship and covariates; some animals have no record."""
    draw = torch.Generator().manual_seed(4)
    animal = torch.randint(animals - 3, (rows,), generator=draw)
    X = torch.stack([torch.ones(rows).double(), normal(12, rows)], 1)
    matrix = genomic(animals)
    y = records(matrix, 1.4, 0.1)[animal] + X[:, 1] + 0.7 * normal(22, rows)
    return y, animal, matrix, X


def at(plan: Plan, values: dict[str, Any]) -> Params:
    shapes = {name: p.shape for name, p in plan.structure.parameters.items()}
    return {
        name: torch.as_tensor(values[name], dtype=torch.float64).expand(shape).clone()
        for name, shape in shapes.items()
    }


def test_a_pencil_is_the_component_in_other_coordinates() -> None:
    data = repeated(90, 140)
    plan = plan_of(kinship, *data)
    (pencil,) = plan.components
    assert isinstance(pencil, PencilComponent)
    assert pencil.description == "90 entries, diagonalised once"
    for values in ({"beta": 1.3, "va": 0.4, "ve": 2.0}, {"beta": -0.2, "va": 3.0, "ve": 0.01}):
        natural = {
            key: eta.requires_grad_()
            for key, eta in natural_parameters(plan, values_of(plan, at(plan, values))).items()
        }
        one, other = pencil.log_prob(natural), pencil.whole.log_prob(natural)
        torch.testing.assert_close(one, other, rtol=1e-11, atol=0)
        every = list(natural.values())
        for left, right in zip(
            torch.autograd.grad(one, every), torch.autograd.grad(other, every), strict=True
        ):
            size = float(right.abs().max())
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9 * size)


def test_a_pencil_against_the_dense_joint() -> None:
    data = repeated(70, 90)
    plan = plan_of(kinship, *data)
    assert isinstance(plan.components[0], PencilComponent)
    params = at(plan, {"beta": 0.8, "va": 0.6, "ve": 1.1})
    truth = dense(kinship, ["u"], params, *data)
    stats = LogEvidence.of(plan).statistics(params)
    assert stats.log_likelihood == pytest.approx(float(truth.log_evidence), rel=1e-11)
    after = EM(kinship, "mle").m_step(EM(kinship, "mle").e_step(params, *data))
    inverse, mean = torch.linalg.inv(data[2]), truth.mean("u")
    square = mean @ inverse @ mean + (inverse * truth.covariance("u")).sum()
    assert float(after["va"]) == pytest.approx(float(square) / 70, rel=1e-10)
    potentials = plan.components[0].potentials(natural_parameters(plan, values_of(plan, params)))
    found, pairs = plan.components[0].system.moments(potentials.linear, potentials.precision)
    torch.testing.assert_close(found.reshape(-1), mean, rtol=1e-9, atol=1e-9)
    pattern = plan.components[0].pattern
    expected = truth.covariance("u")[pattern.rows, pattern.columns]
    torch.testing.assert_close(pairs.reshape(-1), expected, rtol=1e-9, atol=1e-9)


def test_the_optimum_is_that_of_the_marginal_normal() -> None:
    y, animal, matrix, X = repeated(80, 120)
    Z = torch.nn.functional.one_hot(animal, 80).double()

    def negative(free: Any) -> float:
        va, ve = np.exp(free[:2])
        covariance = va * Z @ matrix @ Z.mT + ve * torch.eye(120).double()
        mean = X @ torch.as_tensor(free[2:])
        return -float(dist.MultivariateNormal(mean, covariance).log_prob(y))

    best = scipy.optimize.minimize(negative, [0.0, 0.0, 0.0, 0.0], method="BFGS")
    fit = EM(kinship, "mle", tol=1e-12).fit(y, animal, matrix, X)
    assert fit.log_likelihood == pytest.approx(-best.fun, abs=1e-6)
    assert float(fit.params["va"].log()) == pytest.approx(best.x[0], abs=1e-3)
    assert float(fit.params["ve"].log()) == pytest.approx(best.x[1], abs=1e-3)
    assert bool((fit.history.diff() >= -1e-9 * fit.history[1:].abs()).all())


def test_the_inverse_of_a_pedigree_stays_sparse() -> None:
    sire, dam = livestock(6, 60, 4)
    plan = plan_of(animal_model, records(relationship_matrix(sire, dam), 2.0, 1.0),
                   relationship=relationship_matrix(sire, dam))  # fmt: skip
    (component,) = plan.components
    whole = component.whole if isinstance(component, PencilComponent) else component
    known = inverse_relationship_matrix(sire, dam)
    assert len(whole.pattern) == (known._nnz() + len(sire)) // 2


def test_processes_of_several_rows() -> None:
    """A Gaussian process for each row, read with gaps and noise."""
    K = genomic(5)

    def model(y: Tensor, shown: Tensor) -> None:
        v, s = positive("v", 1.0), positive("s", 0.5)
        with pyro.plate("rows", len(y)):
            f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(5), v * K), infer=GAUSSIAN)
            pyro.sample("y", dist.Normal(f, s).mask(shown).to_event(1), obs=y)

    y, shown = normal(13, 7, 5), torch.rand(7, 5, generator=torch.Generator().manual_seed(1)) < 0.8
    params = {"v": number(1.3), "s": number(0.6)}
    stats = EM(model, "mle").e_step(params, y, shown)
    truth = dense(model, ["f"], params, y, shown)
    assert stats.log_likelihood == pytest.approx(float(truth.log_evidence), rel=1e-11)


def test_a_process_of_data_below_an_effect() -> None:
    """Observed vectors with a known covariance, up to a factor, about a latent level."""
    K = genomic(4)

    def model(y: Tensor, group: Tensor) -> None:
        v, su = positive("v", 1.0), positive("su", 0.5)
        with pyro.plate("groups", 3):
            level = pyro.sample("level", dist.Normal(0.0, su), infer=GAUSSIAN)
        with pyro.plate("rows", len(y)):
            mean = level[group].unsqueeze(-1) * torch.arange(1.0, 5.0)
            pyro.sample("y", dist.MultivariateNormal(mean, v * K), obs=y)

    y, group = normal(14, 8, 4), torch.arange(8) % 3
    y[2] += 3.0
    params = {"v": number(0.7), "su": number(1.6)}
    em = EM(model, "mle")
    stats = em.e_step(params, y, group)
    truth = dense(model, ["level"], params, y, group)
    assert stats.log_likelihood == pytest.approx(float(truth.log_evidence), rel=1e-11)
    inverse = torch.linalg.inv(K)

    def square(latents: dict[str, Tensor]) -> Tensor:
        residual = y - latents["level"][group].unsqueeze(-1) * torch.arange(1.0, 5.0).double()
        return torch.einsum("ni,ij,nj->", residual, inverse, residual)

    expected = float(truth.expectation(square)) / 32
    assert float(em.m_step(stats)["v"]) == pytest.approx(expected, rel=1e-10)


def test_a_precision_with_a_rate() -> None:
    """A Gamma prior on the rate of a known precision is conjugate, of a latent too."""
    matrix, y = genomic(9), records(genomic(9), 1.0, 0.4)

    def model(y: Tensor) -> None:
        tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
        s = positive("s", 0.5)
        precision = tau * torch.linalg.inv(matrix)
        fn = dist.MultivariateNormal(torch.zeros(9), precision_matrix=precision)
        u = pyro.sample("u", fn, infer=GAUSSIAN)
        with pyro.plate("rows", 9):
            pyro.sample("y", dist.Normal(u, s), obs=y)

    params = {"tau": number(0.8), "s": number(0.6)}
    em = EM(model)
    stats = em.e_step(params, y)
    truth = dense(model, ["u"], params, y)
    assert stats.log_likelihood == pytest.approx(float(truth.log_evidence), rel=1e-11)
    inverse, mean = torch.linalg.inv(matrix), truth.mean("u")
    square = mean @ inverse @ mean + (inverse * truth.covariance("u")).sum()
    expected = (2.0 - 1.0 + 4.5) / (1.0 + float(square) / 2)
    assert float(em.m_step(stats)["tau"]) == pytest.approx(expected, rel=1e-10)


# -- pedigrees -------------------------------------------------------------------------------------


def test_generations_are_the_relationship_matrix() -> None:
    sire, dam = livestock(4, 15, 3)
    dam[20], sire[31] = -1, -1
    matrix = relationship_matrix(sire, dam)
    y = records(matrix, 2.0, 1.0)
    fits = [
        EM(animal_model, tol=1e-12).fit(y, **given)
        for given in ({"relationship": matrix}, {"sire": sire, "dam": dam})
    ]
    assert fits[0].log_likelihood == pytest.approx(fits[1].log_likelihood, rel=1e-10)
    for name, value in fits[0].params.items():
        torch.testing.assert_close(fits[1].params[name], value, rtol=1e-5, atol=1e-8)
    found = fits[1].params
    share = found["additive_variance"] / (found["additive_variance"] + found["variance"])
    assert float(fits[1].deterministic["heritability"]) == pytest.approx(float(share))


def test_overlapping_generations_and_selfing() -> None:
    sire = torch.tensor([-1, -1, 0, 0, 2, 4, 4, 6])
    dam = torch.tensor([-1, -1, 1, 2, 3, 4, 1, 5])
    matrix = relationship_matrix(sire, dam)
    y, codes = normal(15, 24), torch.arange(24) % 8
    params = {"coefficients": number(0.2).reshape(1), "variance": number(0.8)}
    params["additive_variance"] = number(1.9)
    one, other = (
        EM(animal_model, "mle").e_step(params, y, animal=codes, **given).log_likelihood
        for given in ({"relationship": matrix}, {"sire": sire, "dam": dam})
    )
    assert one == pytest.approx(other, rel=1e-11)


def test_mrodes_growth_of_calves() -> None:
    """Mrode (2005), Linear Models for the Prediction of Animal Breeding Values, example 3.1."""
    sire = torch.tensor([-1, -1, -1, 1, 3, 1, 4, 3]) - 1
    dam = torch.tensor([-1, -1, -1, -1, 2, 2, 5, 6]) - 1
    sire, dam = (torch.where(p < 0, -1, p) for p in (sire, dam))
    y = torch.tensor([4.5, 2.9, 3.9, 3.5, 5.0], dtype=torch.float64)
    male = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    matrix = relationship_matrix(sire, dam)

    def model(y: Tensor) -> None:
        va, ve = positive("va", 20.0), positive("ve", 40.0)
        fixed = real("fixed", 0.0, 2)
        u = pyro.sample("u", dist.MultivariateNormal(torch.zeros(8), va * matrix), infer=GAUSSIAN)
        with pyro.plate("calves", 5):
            mean = fixed[0] * male + fixed[1] * (1.0 - male) + u[3:]
            pyro.sample("y", dist.Normal(mean, ve.sqrt()), obs=y)

    # At known variances the M-step of the fixed effects ends at their best linear estimates.
    params = {"va": number(20.0), "ve": number(40.0), "fixed": torch.zeros(2).double()}
    em = EM(model, "mle")
    for _ in range(400):
        params["fixed"] = em.m_step(em.e_step(params, y))["fixed"]
    np.testing.assert_allclose(params["fixed"], [4.358, 3.404], atol=6e-4)
    plan = plan_of(model, y)
    (component,) = plan.components
    potentials = component.potentials(natural_parameters(plan, values_of(plan, params)))
    means, _ = component.system.moments(potentials.linear, potentials.precision)
    published = [0.098, -0.019, -0.041, -0.009, -0.186, 0.177, -0.249, 0.183]
    np.testing.assert_allclose(means.reshape(-1), published, atol=6e-4)


def test_units_of_the_records_change_the_variances_alone() -> None:
    sire, dam = livestock(4, 20, 3)
    y = records(relationship_matrix(sire, dam), 2.0, 1.0)
    one, other = (EM(animal_model).fit(c * y, sire=sire, dam=dam) for c in (1.0, 1024.0))
    for name, power in {"coefficients": 1, "variance": 2, "additive_variance": 2}.items():
        torch.testing.assert_close(
            other.params[name], 1024.0**power * one.params[name], rtol=1e-6, atol=0
        )


def test_the_heritability_is_recovered() -> None:
    sire, dam = livestock(5, 200, 20)
    y = records(relationship_matrix(sire, dam), 2.0, 3.0, seed=20)
    fit = EM(animal_model, "mle").fit(y, sire=sire, dam=dam)
    assert fit.converged
    assert float(fit.deterministic["heritability"]) == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize("by", ["relationship", "pedigree"])
def test_plans_of_relatives_pickle(by: str) -> None:
    sire, dam = livestock(4, 30, 3)
    matrix = genomic(120)
    given = {"relationship": matrix} if by == "relationship" else {"sire": sire, "dam": dam}
    y = records(matrix, 2.0, 1.0)
    plan = plan_of(animal_model, y, **given)
    again = pickle.loads(pickle.dumps(plan))
    start = {name: p.start for name, p in plan.structure.parameters.items()}
    one, other = (float(LogEvidence.of(each)(start)) for each in (plan, again))
    assert one == other


# -- entries read together -------------------------------------------------------------------------


def test_rows_that_read_three_entries() -> None:
    a, b, c = (
        torch.randint(9, (40,), generator=torch.Generator().manual_seed(s)) for s in (1, 2, 3)
    )
    x = normal(16, 40)

    def model(y: Tensor) -> None:
        su, se = positive("su", 1.0), positive("se", 1.0)
        with pyro.plate("members", 9):
            u = pyro.sample("u", dist.Normal(0.0, su), infer=GAUSSIAN)
        with pyro.plate("rows", 40):
            mean = u[a] + 0.5 * u[b] - x * u[c]
            pyro.sample("y", dist.Normal(mean, se), obs=y)

    y = normal(17, 40)
    params = {"su": number(1.2), "se": number(0.7)}
    stats = EM(model, "mle").e_step(params, y)
    truth = dense(model, ["u"], params, y)
    assert stats.log_likelihood == pytest.approx(float(truth.log_evidence), rel=1e-11)


def test_vectors_that_two_parents_pass_on() -> None:
    one = torch.tensor([0, 1, 2, 0, 3, 1])
    other = torch.tensor([4, 3, 4, 4, 2, 4])

    def model(y: Tensor) -> None:
        su, se = positive("su", 1.0), positive("se", 1.0)
        with pyro.plate("parents", 5):
            u = pyro.sample("u", dist.Normal(torch.zeros(2), su).to_event(1), infer=GAUSSIAN)
        with pyro.plate("rows", 6):
            both = u[..., one, :] + u[..., other, :]
            mean = both[..., 0] + 0.3 * both[..., 1]
            pyro.sample("y", dist.Normal(mean, se), obs=y)

    y = normal(18, 6)
    params = {"su": number(1.2), "se": number(0.7)}
    stats = EM(model, "mle").e_step(params, y)
    truth = dense(model, ["u"], params, y)
    assert stats.log_likelihood == pytest.approx(float(truth.log_evidence), rel=1e-11)


def test_rows_that_read_all_entries_are_refused() -> None:
    def model(y: Tensor) -> None:
        su, se = positive("su", 1.0), positive("se", 1.0)
        with pyro.plate("members", 30):
            u = pyro.sample("u", dist.Normal(0.0, su), infer=GAUSSIAN)
        with pyro.plate("rows", 40):
            pyro.sample("y", dist.Normal(normal(19, 40, 30) @ u, se), obs=y)

    with pytest.raises(ValueError, match=r"site 'y' reads the latent 'u'.*cannot be told apart"):
        EM(model, "mle").explain(normal(20, 40))


def test_a_matrix_is_factorised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    factor = Remembered.factor

    def counted(self: Remembered, matrix: Tensor) -> Tensor:
        before = len(self.known)
        found = factor(self, matrix)
        made.append(len(self.known) > before)
        torch.testing.assert_close(found @ found.mT, matrix, rtol=1e-10, atol=1e-12)
        return found

    monkeypatch.setattr(Remembered, "factor", counted)
    plan_of(animal_model, records(genomic(320), 1.0, 1.0), relationship=genomic(320))
    assert len(made) >= 10
    assert sum(made) == 1


def test_a_factor_from_memory_has_the_gradient_of_a_new_one() -> None:
    matrix, remembered = genomic(310), Remembered()
    results = []
    for mode in (KnownFactors(remembered), KnownFactors(remembered), None):
        scale = number(2.0).requires_grad_()
        if mode is None:
            value = torch.linalg.cholesky(scale * matrix).diagonal().log().sum()
        else:
            with mode:
                value = torch.linalg.cholesky(scale * matrix).diagonal().log().sum()
        results.append((float(value.detach()), float(torch.autograd.grad(value, scale)[0])))
    assert results[0] == pytest.approx(results[2], rel=1e-12)
    assert results[1] == pytest.approx(results[2], rel=1e-12)


def test_weights_of_a_process() -> None:
    def model(y: Tensor, weight: Tensor) -> None:
        v = positive("v", 1.0)
        with pyro.plate("rows", len(y)), poutine.scale(scale=weight):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(4), v * genomic(4)), obs=y)

    y, weight = normal(21, 6, 4), torch.arange(1.0, 7.0).double()
    fit = EM(model, "mle").fit(y, weight)
    square = (weight * (y @ torch.linalg.inv(genomic(4)) * y).sum(-1)).sum()
    assert float(fit.params["v"]) == pytest.approx(float(square / (4 * weight.sum())), rel=1e-12)
