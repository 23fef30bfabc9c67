"""Data in pieces: the fit of the whole, whatever the pieces are."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ember.inference import EM, Fit, chunks
from ember.models import (
    bernoulli_mixture,
    factor_analysis,
    gaussian_mixture,
    hidden_markov_gaussian,
    hidden_markov_regression,
    latent_profile,
    linear_mixed_model,
    naive_bayes,
    poisson_mixture,
    regression_mixture,
)

Model = Callable[..., Any]


def points(rows: int = 600, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    centres = torch.tensor([[0.0, 0.0], [3.0, 1.0], [-1.0, 4.0]], dtype=torch.float64)
    return centres[torch.arange(rows) % 3] + noise


def counts(rows: int = 500) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    rates = torch.tensor([2.0, 9.0], dtype=torch.float64)[torch.arange(rows) % 2]
    return torch.poisson(rates, generator=generator)


def pieces_of(*tensors: Tensor, rows: int = 170) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(rows) for tensor in tensors), strict=True))


def assert_same(whole: Fit, fit: Fit, tolerance: float = 1e-8) -> None:
    scale = 1.0 + abs(whole.log_posterior)
    assert fit.log_posterior == pytest.approx(whole.log_posterior, abs=tolerance * scale)
    assert fit.converged
    for name, value in whole.params.items():
        assert torch.allclose(fit.params[name], value, rtol=1e-4, atol=1e-4), name


CASES: list[tuple[Model, Tensor, dict[str, Any]]] = [
    *(
        (gaussian_mixture, points(), {"components": 3, "covariance": covariance})
        for covariance in ("full", "tied", "diag", "spherical")
    ),
    (poisson_mixture, counts(), {"components": 2}),
    (bernoulli_mixture, (points() > 1.0).double(), {"components": 2}),
    (hidden_markov_gaussian, points(1200).reshape(40, 30, 2), {"states": 3}),
]


def case_id(case: Any) -> str:
    return f"{case[0].__name__}-{case[2].get('covariance', '')}"


@pytest.mark.parametrize("objective", ["map", "mle"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_equals_the_fit_of_the_whole(
    case: tuple[Model, Tensor, dict[str, Any]], objective: str
) -> None:
    model, x, options = case
    em = EM(model, objective, seed=0)
    whole = em.fit(x, **options)
    rows = 7 if x.dim() == 3 else 170
    fit = em.fit_batches(chunks(x, rows=rows), **options)
    assert_same(whole, fit)
    assert fit.n_observations == whole.n_observations
    assert fit.bic == pytest.approx(whole.bic, rel=1e-7)
    # Two columns of zeros and ones leave rows that belong to either state with the same right.
    latent = "state" if x.dim() == 3 else "assignment"
    probs, expected = (each.posterior(latent, x[:9]).probs for each in (fit, whole))
    assert torch.allclose(probs, expected, atol=1e-4)
    clear = (expected.amax(-1) > 0.501).reshape(9, -1).all(-1)
    assert torch.equal(fit.predict(x[:9])[clear], whole.predict(x[:9])[clear])
    assert torch.allclose(fit.log_prob(x[:9]), whole.log_prob(x[:9]), rtol=1e-4)
    assert bool((fit.history.diff() >= 0).all())


def test_statistics_are_those_of_the_whole_at_any_parameters() -> None:
    """One pass equals one E-step to rounding, prior included, whatever the pieces."""
    x = points(500)
    start = {"weights": torch.tensor([0.5, 0.3, 0.2])}
    for rows in (13, 500):
        em = EM(gaussian_mixture, init=start, max_iter=3, accelerate=None, seed=0)
        with pytest.warns(RuntimeWarning, match="max_iter"):
            fit = em.fit_batches(chunks(x, rows=rows), components=3)
        whole = EM(gaussian_mixture).e_step(fit.params, x, components=3)
        assert fit.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)
        assert fit.log_posterior == pytest.approx(whole.objective, rel=1e-12)


def test_a_default_prior_is_that_of_all_rows() -> None:
    """Sorted rows give pieces with moments of their own, of which each would be another prior."""
    x = points(900)
    x = x[x[:, 0].argsort()]
    gaps = x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.1, 1e3)
    gaps = gaps.masked_fill(gaps == 1e3, torch.nan)
    for data in (x, gaps):
        for covariance in ("full", "diag"):
            options: dict[str, Any] = {"components": 3, "covariance": covariance}
            whole = EM(gaussian_mixture, seed=0).fit(data, **options)
            fit = EM(gaussian_mixture, init=dict(whole.params), seed=0).fit_batches(
                chunks(data, rows=250), **options
            )
            assert fit.history[0] == pytest.approx(whole.log_posterior, rel=1e-12)


def test_any_order_and_any_kind_of_pieces() -> None:
    x, weights = points(), 1.0 + torch.arange(600.0, dtype=torch.float64) % 3
    em = EM(gaussian_mixture, tol=1e-4, seed=0)
    whole = em.fit(x, components=3, frequency=weights)
    by_name = [{"x": a, "frequency": b} for a, b in pieces_of(x, weights)]
    fits = [em.fit_batches(kind, components=3) for kind in (by_name, by_name[::-1])]
    for fit in fits:
        assert_same(whole, fit)
    plain = em.fit(x, components=3)
    loaders: list[Any] = [
        DataLoader(x, batch_size=170),  # type: ignore[arg-type]
        DataLoader(TensorDataset(x), batch_size=100, shuffle=True),
        [part.numpy() for part in x.split(200)],
        [pd.DataFrame(part.numpy(), columns=["a", "b"]) for part in x.split(200)],
        chunks(x.numpy(), rows=123),
    ]
    for loader in loaders:
        assert_same(plain, em.fit_batches(loader, components=3))


def test_rows_of_pieces_by_name_are_counted() -> None:
    """They come before the options that all pieces share, whatever the order of both."""
    x = points()
    pieces = [{"x": part} for part in x.split(200)]
    fit, whole = (EM(gaussian_mixture, seed=0).fit_batches(p, components=3) for p in (pieces, [x]))
    assert fit.plan.sizes == {"rows": 600}
    found, expected = fit.standard_errors(robust=True), whole.standard_errors(robust=True)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-5), name
    online = EM(gaussian_mixture, seed=0).fit_online(pieces, components=3)
    assert bool(torch.isfinite(online.history).all())


def test_covariates_come_with_their_rows() -> None:
    """Rows with maps of their own: the model is read for each piece."""
    X, generator = points(300), torch.Generator().manual_seed(4)
    lines = torch.stack([1.0 + X[:, 0], 4.0 - 2.0 * X[:, 1]])
    y = lines[torch.arange(300) % 2, torch.arange(300)]
    y = y + 0.3 * torch.randn(300, generator=generator, dtype=torch.float64)
    em = EM(regression_mixture, "mle", seed=0)
    whole = em.fit(y, X, components=2)
    assert_same(whole, em.fit_batches(pieces_of(y, X, rows=80), components=2))


@pytest.mark.parametrize(
    "options", [{}, {"scale": "tied"}, {"intercept": False}], ids=["free", "tied", "origin"]
)
def test_default_priors_of_regressions_are_those_of_all_rows(options: dict[str, Any]) -> None:
    X, generator = points(300), torch.Generator().manual_seed(4)
    lines = torch.stack([1.0 + X[:, 0], 4.0 - 2.0 * X[:, 1]])
    y = lines[torch.arange(300) % 2, torch.arange(300)]
    y = y + 0.3 * torch.randn(300, generator=generator, dtype=torch.float64)
    em = EM(regression_mixture, seed=0)
    whole = em.fit(y, X, components=2, **options)
    assert_same(whole, em.fit_batches(pieces_of(y, X, rows=80), components=2, **options))


def test_sequences_with_covariates_have_default_priors_of_all_of_them() -> None:
    X, generator = points(240).reshape(6, 40, 2), torch.Generator().manual_seed(5)
    states = (torch.arange(240).reshape(6, 40) // 9) % 2
    y = torch.where(states == 0, 1.0 + X[..., 0], 6.0 - X[..., 1])
    y = y + 0.3 * torch.randn(6, 40, generator=generator, dtype=torch.float64)
    em = EM(hidden_markov_regression, seed=0)
    whole = em.fit(y, X=X, states=2)
    pieces = [{"y": y[i : i + 2], "X": X[i : i + 2]} for i in (0, 2, 4)]
    assert_same(whole, em.fit_batches(pieces, states=2))


def test_rows_with_gaussian_latents_of_their_own() -> None:
    generator = torch.Generator().manual_seed(6)
    factor = torch.randn(300, 1, generator=generator, dtype=torch.float64)
    x = factor @ torch.ones(1, 4, dtype=torch.float64)
    x = x + 0.7 * torch.randn(300, 4, generator=generator, dtype=torch.float64)
    em = EM(factor_analysis, "mle", seed=0)
    whole = em.fit(x, factors=1)
    fit = em.fit_batches(chunks(x, rows=80), factors=1)
    assert fit.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-9)


def test_a_single_sequence_is_a_piece() -> None:
    sequences = [points(50, seed) for seed in range(4)]
    fit = EM(hidden_markov_gaussian, "mle", seed=0).fit_batches(sequences, states=2)
    whole = EM(hidden_markov_gaussian, "mle", init=dict(fit.params), seed=0).fit(
        torch.stack(sequences), states=2
    )
    assert fit.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-7)


def switching(x: Tensor, lengths: Any) -> None:
    """A chain of two states written step by step."""
    start = pyro.sample("start", dist.Dirichlet(x.new_full((2,), 1.5)))
    with pyro.plate("states", 2):
        transition = pyro.sample("transition", dist.Dirichlet(x.new_full((2,), 1.5)))
        locs = pyro.sample("locs", dist.Normal(x.new_zeros(()), 10.0))
    with pyro.plate("sequences", len(x)):
        state = None
        for t in pyro.markov(range(x.shape[1])):
            with pyro.poutine.mask(mask=t < lengths):
                probs = start if state is None else transition[state]
                state = pyro.sample(f"state_{t}", dist.Categorical(probs))
                pyro.sample(f"x_{t}", dist.Normal(locs[state], 1.0), obs=x[:, t])


@pytest.mark.parametrize("kind", ["composite", "by hand"])
def test_sequences_are_padded_to_another_length_in_each_piece(kind: str) -> None:
    x = points(1200).reshape(60, 20, 2)
    lengths = torch.arange(60) // 5 + 5
    model: Model = hidden_markov_gaussian
    options: dict[str, Any] = {"states": 3}
    if kind == "by hand":
        x, model, options = x[..., 0], switching, {}
    longest = [(i, int(lengths[i + 19])) for i in (0, 20, 40)]
    pieces = [{"x": x[i : i + 20, :t], "lengths": lengths[i : i + 20]} for i, t in longest]
    em = EM(model, seed=0)
    fit = em.fit_batches(pieces, **options)
    assert_same(em.fit(x, lengths=lengths, **options), fit)
    assert fit.n_observations == int(lengths.sum())


@pytest.mark.parametrize("lacking", [0, 2])
def test_a_piece_may_have_no_labels(lacking: int) -> None:
    x = counts(1200).reshape(300, 4)
    labels = (torch.arange(300) // 2) % 2
    labels[lacking * 100 : (lacking + 1) * 100] = -1
    pieces = [{"x": x[i : i + 100], "labels": labels[i : i + 100]} for i in (0, 100, 200)]
    em = EM(naive_bayes, seed=0)
    whole = em.fit(x, labels=labels, classes=2)
    assert_same(whole, em.fit_batches(pieces, classes=2))
    for method in ("stepwise", "variance-reduced"):
        online = em.fit_online(pieces, passes=3, method=method, classes=2)
        assert abs(online.log_posterior - whole.log_posterior) < 0.1


def test_mixed_columns_by_name() -> None:
    x = {"continuous": points(300), "counts": counts(300).unsqueeze(-1)}
    pieces = [({k: v[i : i + 90] for k, v in x.items()},) for i in range(0, 300, 90)]
    em = EM(latent_profile, seed=0)
    whole = em.fit(x, components=2)
    assert_same(whole, em.fit_batches(pieces, components=2))


def scaled_by_hand(x: Tensor) -> None:
    """A prior that is computed from the rows at hand, in a way that cannot be pooled."""
    mean = pyro.sample("mean", dist.Normal(x.median(), 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@pytest.mark.parametrize("case", [CASES[0], CASES[-1]], ids=case_id)
def test_hard_assignment_is_that_of_the_whole(
    case: tuple[Model, Tensor, dict[str, Any]], tmp_path: Path
) -> None:
    """The classification objective step by step, and the likelihood at the end."""
    model, x, options = case
    pieces = chunks(x, rows=7 if x.dim() == 3 else 170)
    start = dict(EM(model, seed=0).fit(x, **options).params)
    start["locs"] = start["locs"] + 0.7
    em = EM(model, init=start, assignment="hard", seed=0)
    whole, path = em.fit(x, **options), tmp_path / "fit.ckpt"
    fit = em.fit_batches(pieces, checkpoint=path, checkpoint_every=0.0, **options)
    assert fit.iterations > 1
    assert torch.allclose(fit.history, whole.history, rtol=1e-10)
    assert fit.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-10)
    assert abs(float(fit.history[-1]) - fit.log_posterior) > 1e-3  # another objective
    for name, value in whole.params.items():
        assert torch.allclose(fit.params[name], value, rtol=1e-8, atol=1e-8), name
    again = em.fit_batches(pieces, resume=path, **options)
    assert torch.equal(again.history, fit.history)
    found = EM(model, assignment="hard", seed=0).fit_batches(pieces, **options)
    rest = EM(model, init=dict(found.params), assignment="hard").fit(x, **options)
    assert float(rest.history[-1]) == pytest.approx(float(found.history[-1]), rel=1e-9)
    with pytest.raises(ValueError, match="its assignment was 'hard' and is 'soft' now"):
        EM(model, init=start, seed=0).fit_batches(pieces, resume=path, **options)


class Once:
    """Rows that can be read once."""

    def __init__(self, pieces: list[Tensor]) -> None:
        self.pieces = iter(pieces)

    def __iter__(self) -> Iterator[Tensor]:
        return self.pieces


def test_refusals_come_before_any_work() -> None:
    x = points(60)
    em = EM(gaussian_mixture, seed=0)
    with pytest.raises(TypeError, match="which is data and no collection"):
        em.fit_batches(x, components=2)
    with pytest.raises(TypeError, match="can be read only once"):
        em.fit_batches(iter([x]), components=2)
    with pytest.raises(TypeError, match="cannot be iterated over"):
        em.fit_batches(3, components=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the loader is empty"):
        em.fit_batches([], components=2)
    with pytest.raises(ValueError, match="prior of 'mean' depends on the rows"):
        EM(scaled_by_hand).fit_batches([x[:30, 0], x[30:, 0]])
    with pytest.raises(ValueError, match="assignment='hard' needs all rows"):
        EM(gaussian_mixture, assignment="hard").fit_online([x], components=2)
    with pytest.raises(ValueError, match="escape='split-merge' needs all rows"):
        EM(gaussian_mixture, escape="split-merge").fit_batches([x], components=2)
    grouped = [{"y": a, "groups": a.long() % 5} for a in x[:, 0].split(20)]
    with pytest.raises(ValueError, match="is shared by several rows"):
        EM(linear_mixed_model).fit_batches(grouped)
    with pytest.raises(ValueError, match="there is no folder"):
        em.fit_batches([x], components=2, checkpoint="/nowhere/at/all.ckpt")


def test_what_needs_rows_says_so() -> None:
    fit = EM(gaussian_mixture, seed=0).fit_batches(chunks(points(), rows=200), components=3)
    with pytest.raises(ValueError, match="came in pieces"):
        fit.posterior("assignment")
    assert fit.sample(5)["x"].shape == (5, 2)
    assert "passes over the data" in str(fit)
    assert len(fit.summary()) == 3 + 6 + 12


def test_a_saved_fit_of_pieces_comes_back(tmp_path: Any) -> None:
    x = points()
    fit = EM(gaussian_mixture, seed=0).fit_batches(chunks(x, rows=200), components=3)
    fit.save(tmp_path / "fit.ember")
    again = Fit.load(tmp_path / "fit.ember", gaussian_mixture)
    assert torch.equal(again.predict(x[:20]), fit.predict(x[:20]))
    assert again.bic == fit.bic


def test_pieces_of_a_file(tmp_path: Any) -> None:
    x = points().numpy()
    np.save(tmp_path / "x.npy", x)
    em = EM(gaussian_mixture, seed=0)
    whole = em.fit(x, components=3)
    assert_same(whole, em.fit_batches(chunks(tmp_path / "x.npy", rows=130), components=3))
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pd.DataFrame(x, columns=["a", "b"]).assign(other=1.0)
    import pyarrow

    parquet.write_table(
        pyarrow.Table.from_pandas(table), tmp_path / "x.parquet", row_group_size=140
    )
    pieces = chunks(tmp_path / "x.parquet", columns=["a", "b"])
    assert len(pieces) == 5
    assert_same(whole, em.fit_batches(pieces, components=3))
    with pytest.raises(ValueError, match="neither a"):
        chunks(__file__)
    with pytest.raises(ValueError, match="there is no file"):
        chunks("nowhere.npy")


def test_columns_of_pieces_are_told_by_their_names() -> None:
    table = pd.DataFrame(points().numpy(), columns=["a", "b"])
    turned = table[["b", "a"]].assign(c=0.0)
    em = EM(gaussian_mixture, seed=0)
    whole = em.fit(table, components=3)
    for pieces in (
        [table[:200], turned[200:400], table[400:]],
        [{"x": table[:200]}, {"x": turned[200:400]}, {"x": table[400:]}],
    ):
        fit = em.fit_batches(pieces, components=3)
        assert_same(whole, fit)
        assert torch.equal(fit.log_prob(turned), fit.log_prob(table.to_numpy()))
    with pytest.raises(ValueError, match="piece 2 of the data: the table lacks 'b' of the columns"):
        em.fit_batches([table[:300], table[300:].rename(columns={"b": "d"})], components=3)


def optional(x: Tensor, y: Tensor) -> None:
    """A second response, of which some pieces have nothing."""
    a, b = (pyro.param(name, torch.zeros((), dtype=torch.float64)) for name in "ab")
    shown = ~y.isnan()
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)
        if bool(shown.any()):
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


@pytest.mark.parametrize("first", [True, False])
def test_a_site_that_some_pieces_lack(first: bool) -> None:
    x = points(200)
    y = torch.where(torch.arange(200) < 100, x[:, 1], torch.nan)
    pieces = [(x[:100, 0], y[:100]), (x[100:, 0], y[100:])][:: 1 if first else -1]
    em = EM(optional, "mle", seed=0)
    assert_same(em.fit(x[:, 0], y), em.fit_batches(pieces))
    online = em.fit_online(pieces, method="variance-reduced", passes=8)
    assert online.log_likelihood == pytest.approx(em.fit(x[:, 0], y).log_likelihood, abs=1e-2)


def test_the_longest_sequences_may_come_first() -> None:
    x = points(1200).reshape(60, 20, 2)[..., 0]
    lengths = torch.arange(60).flip(0) // 5 + 5
    ends = [(i, int(lengths[i])) for i in (0, 20, 40)]
    pieces = [{"x": x[i : i + 20, :t], "lengths": lengths[i : i + 20]} for i, t in ends]
    em = EM(switching, seed=0)
    assert_same(em.fit(x, lengths=lengths), em.fit_batches(pieces))


def test_columns_are_no_steps() -> None:
    single = [points(40, seed) for seed in range(2)]
    wider = torch.cat([single[1], single[1]], 1)
    with pytest.raises(ValueError, match=r"piece 2 .* give every piece the same columns"):
        EM(hidden_markov_gaussian, seed=0).fit_batches([single[0], wider], states=2)
