"""Counts that are sums of hidden counts, against the classical formulae, enumeration and SciPy."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.sparse
import torch
from numpy.typing import NDArray
from pyro import poutine
from scipy import stats
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM, SVI
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.families.superposition import SuperposedForm
from ember.inference.parameters.matrices import MatrixOperator
from ember.inference.plan.plan import Plan
from ember.inference.reading.traced_operator import TracedOperator

Array = NDArray[np.float64]
Model = Callable[..., None]
RAYS, PIXELS = 60, 40
PRIOR = {"shape": 1.7, "rate": 0.3}


@pytest.fixture(autouse=True)
def _no_beta_warning() -> Iterator[None]:
    """PyTorch says once in a process that compressed rows are new."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        yield


def weights(seed: int = 0, rays: int = RAYS, pixels: int = PIXELS) -> Array:
    generator = np.random.default_rng(seed)
    found = generator.random((rays, pixels))
    found *= generator.random((rays, pixels)) < 0.3
    found[np.arange(pixels) % rays, np.arange(pixels)] += 0.2  # every pixel is seen
    return found


def counts_of(system: Array, seed: int = 1, level: float = 3.0) -> Array:
    generator = np.random.default_rng(seed)
    return generator.poisson(system @ generator.gamma(1.0, level, system.shape[1])).astype(float)


def classical(
    system: Array,
    counts: Array,
    image: Array,
    steps: int,
    background: float | Array = 0.0,
    shape: float = 1.0,
    rate: float = 0.0,
) -> Array:
    """Shepp and Vardi (1982), with the pseudo-counts of a Gamma prior."""
    sensitivity = system.sum(0)
    for _ in range(steps):
        back = system.T @ (counts / (system @ image + background))
        image = (shape - 1.0 + image * back) / (rate + sensitivity)
    return image


def tomography(
    counts: Tensor, system: Any, shape: float = 1.7, rate: float = 0.3, background: float = 0.0
) -> None:
    with pyro.plate("pixels", system.shape[1]):
        image = pyro.sample("image", dist.Gamma(torch.tensor(shape), torch.tensor(rate)))
    with pyro.plate("rays", len(counts)):
        pyro.sample("counts", dist.Poisson(system @ image + background), obs=counts)


def seen_through(project: Callable[[Tensor, Tensor], Tensor]) -> Model:
    def model(counts: Tensor, system: Tensor) -> None:
        with pyro.plate("pixels", system.shape[1]):
            image = pyro.sample("image", dist.Gamma(torch.tensor(1.7), torch.tensor(0.3)))
        with pyro.plate("rays", len(counts)):
            pyro.sample("counts", dist.Poisson(project(system, image)), obs=counts)

    return model


def plan_of(em: EM, *args: Any, **kwargs: Any) -> Plan:
    return em.plan(*args, **kwargs)


def operator_of(em: EM, *args: Any, **kwargs: Any) -> Any:
    form = plan_of(em, *args, **kwargs).sites["counts"].form
    assert isinstance(form, SuperposedForm)
    return form.map.operator


def plain(model: Model, objective: str, steps: int, **options: Any) -> EM:
    return EM(model, objective, accelerate=None, max_iter=steps, tol=1e-15, **options)


@pytest.mark.filterwarnings("ignore:EM .* not converged")
class TestClassicalIterates:
    @pytest.mark.parametrize("background", [0.0, 0.8])
    @pytest.mark.parametrize("objective", ["mle", "map"])
    @pytest.mark.parametrize("layout", ["dense", "coo", "csr", "csc", "scipy", "numpy", "float32"])
    def test_in_every_layout(self, layout: str, objective: str, background: float) -> None:
        system = weights()
        if layout == "float32":
            system = system.astype(np.float32).astype(float)
        counts = counts_of(system)
        dense = torch.from_numpy(system)
        given = {
            "dense": dense,
            "coo": dense.to_sparse(),
            "csr": dense.to_sparse_csr(),
            "csc": dense.to_sparse_csc(),
            "scipy": scipy.sparse.csc_matrix(system),
            "numpy": system,
            "float32": dense.float().to_sparse(),
        }[layout]
        em = plain(tomography, objective, 20)
        options = {**PRIOR, "background": background}
        fit = em.fit(torch.from_numpy(counts), given, **options)
        start = em.initialise(torch.from_numpy(counts), given, **options)["image"]
        assert torch.equal(start, torch.full_like(start, PRIOR["shape"] / PRIOR["rate"]))
        prior = PRIOR if objective == "map" else {}
        expected = classical(system, counts, start.numpy(), 20, background, **prior)
        np.testing.assert_allclose(fit.params["image"].numpy(), expected, rtol=1e-12)
        assert fit.iterations == 20
        assert bool((fit.history.diff() > 0).all())
        rate = system @ expected + background
        by_hand = stats.poisson(rate).logpmf(counts).sum()
        assert fit.log_likelihood == pytest.approx(by_hand, rel=1e-12)

    @pytest.mark.parametrize(
        ("project", "kind"),
        [
            (torch.mv, MatrixOperator),
            (lambda a, x: torch.mm(a, x[:, None])[:, 0], MatrixOperator),
            (lambda a, x: torch.sparse.mm(a.to_sparse(), x[:, None])[:, 0], MatrixOperator),
            (lambda a, x: x @ a.T, MatrixOperator),
            (lambda a, x: torch.einsum("ij,j->i", a, x), MatrixOperator),
            (lambda a, x: torch.nn.functional.linear(x, a), MatrixOperator),
            (lambda a, x: (a * x).sum(-1), MatrixOperator),
            (lambda a, x: (x.flip(0) * a.flip(1)).sum(-1), MatrixOperator),
            (lambda a, x: torch.stack([a[::2] @ x, a[1::2] @ x], 1).reshape(-1), MatrixOperator),
        ],
        ids=["mv", "mm", "sparse", "transposed", "einsum", "linear", "sum", "flipped", "pieces"],
    )
    def test_in_every_notation(self, project: Any, kind: Any) -> None:
        system = weights()
        counts = counts_of(system)
        args = torch.from_numpy(counts), torch.from_numpy(system)
        em = plain(seen_through(project), "map", 15)
        assert isinstance(operator_of(em, *args), kind)
        expected = classical(system, counts, np.full(PIXELS, 1.7 / 0.3), 15, shape=1.7, rate=0.3)
        np.testing.assert_allclose(em.fit(*args).params["image"].numpy(), expected, rtol=1e-12)

    def test_with_efficiencies_of_the_rays(self) -> None:
        system = weights()
        efficiency = np.linspace(0.0, 2.0, RAYS)
        counts = counts_of(efficiency[:, None] * system)
        known = torch.from_numpy(efficiency)
        args = torch.from_numpy(counts), torch.from_numpy(system).to_sparse_csr()
        em = plain(seen_through(lambda a, x: known * (a @ x)), "map", 15)
        operator = operator_of(em, *args)
        assert isinstance(operator, MatrixOperator)
        assert operator.matrices[0].is_sparse
        start = np.full(PIXELS, 1.7 / 0.3)
        expected = classical(
            efficiency[1:, None] * system[1:], counts[1:], start, 15, shape=1.7, rate=0.3
        )
        np.testing.assert_allclose(em.fit(*args).params["image"].numpy(), expected, rtol=1e-11)

    def test_of_a_blur_that_only_the_model_knows(self) -> None:
        kernel = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

        def blurred(counts: Tensor) -> None:
            start = torch.full((50,), 2.0)
            image = pyro.param("image", start, constraint=constraints.positive)
            rate = torch.nn.functional.conv1d(image[None, None], kernel[None, None], padding=1)
            with pyro.plate("rays", 50):
                pyro.sample("counts", dist.Poisson(rate.reshape(-1) + 0.3), obs=counts)

        taps = kernel.numpy()
        matrix = scipy.sparse.diags([taps[0], taps[1], taps[2]], [-1, 0, 1], (50, 50)).toarray()
        counts = counts_of(matrix)
        em = plain(blurred, "mle", 15)
        assert isinstance(operator_of(em, torch.from_numpy(counts)), TracedOperator)
        expected = classical(matrix, counts, np.full(50, 2.0), 15, 0.3)
        fit = em.fit(torch.from_numpy(counts))
        np.testing.assert_allclose(fit.params["image"].numpy(), expected, rtol=1e-12)

    def test_of_an_image_and_an_unknown_level(self) -> None:
        def with_level(counts: Tensor, system: Tensor) -> None:
            level = pyro.param("level", torch.tensor(0.5), constraint=constraints.positive)
            image = pyro.param("image", torch.ones(5, 8), constraint=constraints.positive)
            with pyro.plate("rays", len(counts)):
                rate = system @ image.reshape(-1) + level
                pyro.sample("counts", dist.Poisson(rate), obs=counts)

        system = weights()
        counts = counts_of(system) + 1.0
        args = torch.from_numpy(counts), torch.from_numpy(system).to_sparse()
        fit = plain(with_level, "mle", 15).fit(*args)
        both = np.hstack([system, np.ones((RAYS, 1))])
        expected = classical(both, counts, np.append(np.ones(PIXELS), 0.5), 15)
        np.testing.assert_allclose(fit.params["image"].reshape(-1), expected[:-1], rtol=1e-12)
        assert float(fit.params["level"]) == pytest.approx(expected[-1], rel=1e-12)

    def test_where_another_site_counts_the_pixels_themselves(self) -> None:
        def counted_twice(counts: Tensor, system: Tensor, direct: Tensor) -> None:
            with pyro.plate("pixels", PIXELS):
                image = pyro.sample("image", dist.Gamma(1.7, 0.3))
                pyro.sample("direct", dist.Poisson(0.5 * image), obs=direct)
            with pyro.plate("rays", len(counts)):
                pyro.sample("counts", dist.Poisson(system @ image), obs=counts)

        system = weights()
        both = np.vstack([system, 0.5 * np.eye(PIXELS)])
        counts = counts_of(both)
        pieces = torch.from_numpy(counts).split([RAYS, PIXELS])
        fit = plain(counted_twice, "map", 15).fit(pieces[0], torch.from_numpy(system), pieces[1])
        expected = classical(both, counts, np.full(PIXELS, 1.7 / 0.3), 15, shape=1.7, rate=0.3)
        np.testing.assert_allclose(fit.params["image"].numpy(), expected, rtol=1e-11)


def test_the_e_step_is_the_expectation_over_all_hidden_counts() -> None:
    """Two rays, two pixels and a background: every way to split the counts, weighed."""
    system = np.array([[0.5, 1.2], [0.9, 0.3]])
    counts, image, background = [4, 3], np.array([1.3, 0.7]), 0.4
    expected, evidence = np.zeros(2), 1.0
    for ray, count in enumerate(counts):
        sums, total = np.zeros(2), 0.0
        for split in itertools.product(range(count + 1), repeat=2):
            rest = count - sum(split)
            if rest >= 0:
                rates = (*(system[ray] * image), background)
                p = np.prod([stats.poisson(r).pmf(z) for r, z in zip(rates, (*split, rest))])  # noqa: B905
                sums, total = sums + p * np.array(split), total + p
        expected, evidence = expected + sums / total, evidence * total
    em = EM(tomography, "mle")
    args = torch.tensor(counts).double(), torch.from_numpy(system)
    found = em.e_step({"image": torch.from_numpy(image)}, *args, background=background)
    ((_, statistics),) = found.sums.values()
    np.testing.assert_allclose(statistics[:, 0].numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(statistics[:, 1].numpy(), system.sum(0), rtol=1e-12)
    assert found.log_likelihood == pytest.approx(np.log(evidence), rel=1e-12)


@pytest.mark.parametrize("parts", [2, 5])
def test_rays_add_up(parts: int) -> None:
    system = weights()
    counts = counts_of(system)
    em = EM(tomography)
    params = {"image": torch.linspace(0.0, 4.0, PIXELS).double()}
    whole = em.e_step(params, torch.from_numpy(counts), torch.from_numpy(system))
    pieces = [
        em.e_step(params, torch.from_numpy(y), torch.from_numpy(a).to_sparse())
        for y, a in zip(np.split(counts, parts), np.split(system, parts), strict=True)
    ]
    total = sum(pieces[1:], start=pieces[0])
    assert total.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)
    one, two = em.m_step(total)["image"], em.m_step(whole)["image"]
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:EM .* not converged")
@pytest.mark.parametrize("accelerate", ["auto", "squarem", "lbfgs", "anderson"])
@pytest.mark.parametrize("objective", ["mle", "map"])
class TestOptimum:
    def test_is_that_of_scipy(self, objective: str, accelerate: str) -> None:
        system = weights(rays=120)
        counts = counts_of(system)
        rate = 0.3 if objective == "map" else 0.0
        prior = {"shape": 1.0, "rate": 0.3}  # exponential: zeros are allowed, so some pixels end so

        def negative(image: Array) -> tuple[float, Array]:
            expected = np.maximum(system @ image, 1e-300)
            value = stats.poisson(expected).logpmf(counts).sum() - rate * image.sum()
            return -value, system.sum(0) + rate - system.T @ (counts / expected)

        best = scipy.optimize.minimize(
            negative, np.ones(PIXELS), jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * PIXELS,
            options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000, "maxfun": 20000},
        )  # fmt: skip
        em = EM(tomography, objective, accelerate=accelerate, max_iter=3000)
        fit = em.fit(torch.from_numpy(counts), torch.from_numpy(system), **prior)
        theirs = -best.fun + (PIXELS * np.log(0.3) if objective == "map" else 0.0)
        assert fit.log_posterior == pytest.approx(theirs, abs=2e-5)
        assert bool((fit.history.diff() >= 0).all())
        image = fit.params["image"].numpy()
        _, slope = negative(image)
        assert (image < 1e-4).sum() >= 3
        assert np.abs(image * slope).max() < 2e-3  # no slope inside ...
        assert slope.min() > -2e-2  # ... and no way up from zero
        np.testing.assert_allclose(image, best.x, atol=2e-2)


def test_default_settings_come_to_rest_at_zeros() -> None:
    system = weights(rays=120)
    counts = counts_of(system)
    fit = EM(tomography, "mle").fit(torch.from_numpy(counts), torch.from_numpy(system))
    assert fit.converged
    assert fit.evaluations < 400


class TestPixels:
    def test_whose_rays_are_all_dark_end_at_zero(self) -> None:
        system = weights()
        counts = counts_of(system)
        counts[system[:, 3] > 0] = 0.0
        fit = EM(tomography, "mle").fit(torch.from_numpy(counts), torch.from_numpy(system))
        assert float(fit.params["image"][3]) == 0.0
        assert fit.converged
        again = EM(tomography, "mle").e_step(
            fit.params, torch.from_numpy(counts), torch.from_numpy(system)
        )
        assert again.log_likelihood == pytest.approx(fit.log_likelihood, rel=1e-12)
        assert "image" in str(fit)

    def test_that_no_ray_meets_keep_their_value_or_get_the_prior_s(self) -> None:
        system = weights(rays=120)
        counts = counts_of(system)
        system[:, [3, 7]] = 0.0
        args = torch.from_numpy(counts), torch.from_numpy(system)
        with pytest.warns(RuntimeWarning, match="entry 3 .and of 1 others. of site 'image'"):
            fit = EM(tomography, "mle").fit(*args)
        assert fit.params["image"][[3, 7]].tolist() == [1.7 / 0.3] * 2
        fit = EM(tomography).fit(*args)
        assert fit.params["image"][[3, 7]].tolist() == pytest.approx([0.7 / 0.3] * 2, rel=1e-12)

    def test_with_an_unbounded_prior_are_named(self) -> None:
        system = weights()
        counts = counts_of(system)
        counts[system[:, 3] > 0] = 0.0
        with pytest.warns(RuntimeWarning, match="component 3 of site 'image'.*concentration below"):
            fit = EM(tomography).fit(torch.from_numpy(counts), torch.from_numpy(system), shape=0.5)
        assert fit.is_degenerate


class TestRays:
    def test_weights_are_repetitions_and_masked_rays_are_absent(self) -> None:
        def weighed(counts: Tensor, system: Tensor, times: Tensor, seen: Any) -> None:
            with pyro.plate("pixels", PIXELS):
                image = pyro.sample("image", dist.Gamma(1.7, 0.3))
            with (
                pyro.plate("rays", len(counts)),
                poutine.scale(scale=times),
                poutine.mask(mask=seen),
            ):
                pyro.sample("counts", dist.Poisson(system @ image), obs=counts)

        system = weights()
        counts = counts_of(system)
        times = torch.arange(RAYS) % 3 + 1
        seen = torch.arange(RAYS) % 7 != 2
        y, a = torch.from_numpy(counts.copy()), torch.from_numpy(system)
        missing = torch.where(seen, y, torch.nan)
        given = EM(weighed).fit(missing, a, times, seen)
        kept = times * seen
        plain = EM(tomography).fit(y.repeat_interleave(kept), a.repeat_interleave(kept, 0), **PRIOR)
        assert given.log_posterior == pytest.approx(plain.log_posterior, rel=1e-10)
        torch.testing.assert_close(
            given.params["image"], plain.params["image"], rtol=1e-5, atol=1e-6
        )

    @pytest.mark.parametrize("how", ["event", "plates"])
    def test_may_stand_in_two_dims(self, how: str) -> None:
        def sinogram(counts: Tensor, system: Tensor) -> None:
            with pyro.plate("pixels", PIXELS):
                image = pyro.sample("image", dist.Gamma(1.7, 0.3))
            rate = (system @ image).reshape(counts.shape)
            if how == "event":
                with pyro.plate("angles", len(counts)):
                    pyro.sample("counts", dist.Poisson(rate).to_event(1), obs=counts)
            else:
                with pyro.plate("angles", len(counts), dim=-2), pyro.plate("bins", 10, dim=-1):
                    pyro.sample("counts", dist.Poisson(rate), obs=counts)

        system = weights()
        counts = torch.from_numpy(counts_of(system)).reshape(6, 10)
        fit = EM(sinogram).fit(counts, torch.from_numpy(system))
        flat = EM(tomography).fit(counts.reshape(-1), torch.from_numpy(system), **PRIOR)
        assert fit.log_posterior == pytest.approx(flat.log_posterior, rel=1e-12)
        rows = flat.log_prob().reshape(6, 10).sum(1)
        assert float(fit.log_prob().sum()) == pytest.approx(float(rows.sum()), rel=1e-9)

    def test_that_can_count_nothing_are_named(self) -> None:
        system = weights()
        counts = counts_of(system)
        system[4], counts[4] = 0.0, 2.0
        with pytest.raises(ValueError, match="entry 4 of observed site 'counts' counts 2"):
            EM(tomography).fit(torch.from_numpy(counts), torch.from_numpy(system))


def _rows(table: Any) -> dict[str, Any]:
    return {row["site"]: row for _, row in table.iterrows()}


class TestExplain:
    def test_names_the_superposition(self) -> None:
        system = weights()
        args = torch.from_numpy(counts_of(system)), torch.from_numpy(system).to_sparse()
        rows = _rows(EM(tomography).explain(*args))
        assert rows["image"]["M-step"] == "closed form"
        assert rows["image"]["why"] == "conjugate: Poisson.rate (superposition) with Gamma prior"
        assert rows["counts"]["E-step"] == "counts split among 40 entries"
        assert "superposition" in rows["counts"]["why"]
        assert "sparse matrix" in rows["counts"]["why"]

    @pytest.mark.parametrize("how", ["matrix", "columns", "model", "background"])
    def test_says_why_not_where_weights_are_negative(self, how: str) -> None:
        system = weights()
        pixels = 20 if how == "columns" else PIXELS
        system = system[:, :pixels]
        if how != "background":
            system[5, 3] = -0.3
        project: Any = {
            "model": lambda a, x: torch.cat([x, x[:20] - 0.1 * x[20:]]) + 5.0,
            "background": lambda a, x: a @ x - 1e-9,
        }.get(how, lambda a, x: a @ x + 5.0)
        args = torch.from_numpy(counts_of(np.abs(system))), torch.from_numpy(system)
        rows = _rows(EM(seen_through(project)).explain(*args))
        assert rows["image"]["M-step"] == "numerical"
        assert "negative" in rows["image"]["why"]
        if how == "columns":
            fit = EM(seen_through(project)).fit(*args)
            assert fit.converged
            image = fit.params["image"].numpy()
            slope = system.T @ (args[0].numpy() / (system @ image + 5.0) - 1.0) + 0.7 / image - 0.3
            assert np.abs(slope * image).max() < 1e-3

    @pytest.mark.parametrize(
        "project",
        [
            lambda a, x: (a @ x).square(),
            lambda a, x: a @ x.sqrt(),
            lambda a, x: (a @ x).clamp_max(3.0),
            lambda a, x: a @ x + x.prod(),
            lambda a, x: (a @ x) / x.sum(),
        ],
    )
    def test_leaves_other_rates_to_the_numerical_update(self, project: Any) -> None:
        system = weights()
        args = torch.from_numpy(counts_of(system)), torch.from_numpy(system)
        rows = _rows(EM(seen_through(project)).explain(*args))
        assert rows["image"]["M-step"] == "numerical"
        assert "superposition" not in rows["image"]["why"] + rows["counts"]["why"]

    def test_a_sum_that_varies_with_a_latent_is_left_to_the_model(self) -> None:
        def switched(counts: Tensor, system: Tensor) -> None:
            with pyro.plate("pixels", 8):
                image = pyro.sample("image", dist.Gamma(1.7, 0.3))
            with pyro.plate("rays", len(counts)):
                on = pyro.sample("on", dist.Bernoulli(torch.tensor(0.7)))
                pyro.sample("counts", dist.Poisson((system @ image) * on + 0.5), obs=counts)

        system = weights(pixels=8)
        args = torch.from_numpy(counts_of(system)), torch.from_numpy(system)
        em = EM(switched)
        rows = _rows(em.explain(*args))
        assert rows["image"]["M-step"] == "numerical"
        assert "varies with a latent" in rows["image"]["why"]
        assert bool((em.fit(*args).history.diff() >= 0).all())


def test_a_prior_that_is_not_conjugate_is_maximised_numerically() -> None:
    def model(counts: Tensor, system: Tensor) -> None:
        with pyro.plate("pixels", 8):
            image = pyro.sample("image", dist.LogNormal(1.0, 0.5))
        with pyro.plate("rays", len(counts)):
            pyro.sample("counts", dist.Poisson(system @ image), obs=counts)

    system = weights(pixels=8)
    counts = counts_of(system)

    def negative(log_image: Array) -> float:
        image = np.exp(log_image)
        prior = stats.lognorm(0.5, scale=math.e).logpdf(image).sum()
        return float(-prior - stats.poisson(system @ image).logpmf(counts).sum())

    fit = EM(model).fit(torch.from_numpy(counts), torch.from_numpy(system))
    best = scipy.optimize.minimize(negative, np.ones(8), method="BFGS")
    assert fit.log_posterior == pytest.approx(-best.fun, abs=1e-7)
    assert bool((fit.history.diff() >= 0).all())


def test_a_mixture_beside_the_image_is_fitted_with_it() -> None:
    def model(counts: Tensor, system: Tensor, x: Tensor) -> None:
        tomography(counts, system)
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        with pyro.plate("components", 2):
            rates = pyro.sample("rates", dist.Gamma(2.0, 0.1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rates[z]), obs=x)

    system = weights()
    args = torch.from_numpy(counts_of(system)), torch.from_numpy(system)
    x = torch.tensor([1.0, 2.0, 0.0, 20.0, 25.0, 22.0])
    fit = EM(model, seed=0).fit(*args, x)
    alone = EM(tomography).fit(*args)
    torch.testing.assert_close(fit.params["image"], alone.params["image"], rtol=1e-5, atol=1e-6)
    assert fit.posterior("z").probs.argmax(-1).unique().numel() == 2


def test_autodelta_agrees() -> None:
    system = weights(rays=120)
    args = torch.from_numpy(counts_of(system)), torch.from_numpy(system)
    fit = EM(tomography, tol=1e-12).fit(*args, **PRIOR)
    away = {"image": fit.params["image"] * torch.linspace(0.8, 1.2, PIXELS)}
    other = SVI(tomography, guide="delta", steps=800, init=away, seed=0).fit(*args, **PRIOR)
    assert float(other.history[0]) < fit.log_posterior - 0.5
    assert other.log_posterior <= fit.log_posterior + 1e-9
    assert other.log_posterior == pytest.approx(fit.log_posterior, abs=1e-4)
    torch.testing.assert_close(other.params["image"], fit.params["image"], rtol=5e-3, atol=5e-3)


def test_curvatures_are_those_of_a_poisson_model() -> None:
    system = weights(pixels=8)
    counts = torch.from_numpy(counts_of(system))
    plan = plan_of(EM(tomography, "mle"), counts, torch.from_numpy(system), background=0.5)
    image = torch.linspace(0.5, 3.0, 8, dtype=torch.float64)

    hessian: Any = torch.autograd.functional.hessian
    ours = hessian(lambda x: LogEvidence.of(plan)({"image": x}), image)
    rate = system @ image.numpy() + 0.5
    by_hand = -(system.T * (counts.numpy() / rate**2)) @ system
    np.testing.assert_allclose(ours, by_hand, rtol=1e-10, atol=1e-12)


def test_what_follows_from_a_fit() -> None:
    system = weights()
    counts = counts_of(system)
    args = torch.from_numpy(counts), torch.from_numpy(system).to_sparse()
    fit = EM(tomography).fit(*args, **PRIOR)
    rate = system @ fit.params["image"].numpy()
    np.testing.assert_allclose(fit.log_prob(), stats.poisson(rate).logpmf(counts), rtol=1e-9)
    new = counts[::-1].copy()
    np.testing.assert_allclose(
        fit.log_prob(torch.from_numpy(new)), stats.poisson(rate).logpmf(new), rtol=1e-9
    )
    draws = fit.sample(4 * RAYS, seed=1)["counts"]
    assert draws.shape == (4 * RAYS,)
    assert abs(float(draws.mean()) - rate.mean()) < 4 * (rate.mean() / (4 * RAYS)) ** 0.5
    assert "shape (40,)" not in str(fit)
    assert len(fit.summary()) == PIXELS
