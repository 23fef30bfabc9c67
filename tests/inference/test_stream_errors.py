"""Standard errors of fits in pieces: those of the same estimates in memory."""

import dataclasses
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from ember.inference import EM, Fit, chunks
from ember.inference.streaming import passes
from ember.models import (
    gaussian_mixture,
    hidden_markov_gaussian,
    poisson_mixture,
    regression_mixture,
)
from tests.inference.executors import Here

Model = Callable[..., Any]


def points(rows: int = 400, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return noise + 3.0 * (torch.arange(rows) % 2).unsqueeze(-1)


def counts(rows: int = 300) -> Tensor:
    rates = torch.tensor([2.0, 9.0], dtype=torch.float64)[torch.arange(rows) % 2]
    return torch.poisson(rates, generator=torch.Generator().manual_seed(1))


def lines(rows: int = 120) -> tuple[Tensor, Tensor]:
    x, noise = points(rows).unbind(1)
    return torch.where(torch.arange(rows) % 2 == 0, 1.0 + x, 4.0 - 2.0 * x) + 0.3 * noise, x


def sequences(count: int = 30) -> Tensor:
    """Those of a chain that stays where it is most of the time."""
    generator = torch.Generator().manual_seed(2)
    moved = torch.rand(count, 25, generator=generator) < 0.2
    moved[:, 0] = torch.arange(count) % 2 == 0
    noise = torch.randn(count, 25, 1, generator=generator, dtype=torch.float64)
    return 3.0 * (moved.cumsum(1) % 2).unsqueeze(-1) + noise


def in_memory(em: EM, fit: Fit, *data: Tensor, **options: Any) -> Fit:
    """The same estimates of the same data, all of them at hand."""
    return dataclasses.replace(fit, plan=em.plan(*data, **options))


def assert_as_sure(fit: Fit, whole: Fit, robust: bool = False, tolerance: float = 1e-7) -> None:
    found, expected = fit.vcov(robust), whole.vcov(robust)
    assert list(found.index) == list(expected.index)
    units = pd.Series(expected.to_numpy().diagonal() ** 0.5, expected.index)
    apart = (found - expected).div(units, axis=0).div(units, axis=1).abs()
    assert float(apart.to_numpy().max()) < tolerance
    assert int(expected.isna().to_numpy().sum()) == 0


CASES: list[tuple[Model, str, tuple[Tensor, ...], int, dict[str, Any]]] = [
    (gaussian_mixture, "map", (points(),), 90, {"components": 2}),
    (gaussian_mixture, "mle", (points(),), 90, {"components": 2, "covariance": "diag"}),
    (poisson_mixture, "map", (counts(),), 11, {"components": 2}),
    (hidden_markov_gaussian, "map", (sequences(),), 7, {"states": 2}),
    (regression_mixture, "mle", lines(), 50, {"components": 2}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def test_errors_are_those_in_memory(
    case: tuple[Model, str, tuple[Tensor, ...], int, dict[str, Any]],
) -> None:
    """Both from the curvature and from the scores of rows; a prior counts once."""
    model, objective, data, rows, options = case
    em = EM(model, objective, seed=0)
    pieces = list(zip(*(each.split(rows) for each in data), strict=True))
    fit = em.fit_batches(pieces, **options)
    whole = in_memory(em, fit, *data, **options)
    assert_as_sure(fit, whole)
    assert_as_sure(fit, whole, robust=True)
    columns = ["std. error", "lower", "upper"]
    shown, expected = (each.summary(errors=True)[columns] for each in (fit, whole))
    pd.testing.assert_frame_equal(shown, expected, rtol=1e-6)
    assert fit.laplace_samples(3, seed=0).keys() == fit.params.keys()


def test_a_piece_may_be_a_sequence() -> None:
    """Each counts as a row of its own, also in the sandwich."""
    rows = sequences(5)
    em = EM(hidden_markov_gaussian, "mle", seed=0)
    fit = em.fit_batches(list(rows), states=2)
    whole = in_memory(em, fit, rows, states=2)
    assert_as_sure(fit, whole, tolerance=1e-6)
    assert_as_sure(fit, whole, robust=True, tolerance=1e-6)


class Counting:
    """Pieces, and how often they have been read."""

    def __init__(self, *pieces: Tensor) -> None:
        self.pieces, self.passes = list(pieces), 0

    def __iter__(self) -> Iterator[Tensor]:
        self.passes += 1
        return iter(self.pieces)


def test_few_passes_for_many_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Counting(*points().split(100))
    em = EM(gaussian_mixture, seed=0)
    fit = em.fit_batches(loader, components=2)
    again, before = dataclasses.replace(fit), loader.passes
    errors = fit.vcov()
    assert loader.passes == before + 2  # the estimates, and two neighbours for each of 11 numbers
    fit.vcov(robust=True)
    assert loader.passes == before + 3
    monkeypatch.setattr(passes, "AT_ONCE", 60)
    assert torch.equal(torch.tensor(again.vcov().to_numpy()), torch.tensor(errors.to_numpy()))
    assert loader.passes > before + 6


def test_states_that_stand_for_nothing() -> None:
    """They coincide in all pieces, and what they explain adds up."""
    x, em = counts(), EM(poisson_mixture, "mle", seed=0)
    fit = em.fit_batches(chunks(x, rows=70), components=2)
    rates, (first, second) = fit.params["rates"], fit.params["weights"].tolist()
    for rate, weights, said in (
        (torch.tensor([5.0]), torch.tensor([first, second, 1e-9]), "explains no row"),
        (rates[1:], torch.tensor([first, 0.5 * second, 0.5 * second]), "one and the same"),
    ):
        third = {"rates": torch.cat([rates, rate])}
        start = EM(
            poisson_mixture,
            "mle",
            init={**third, "weights": weights / weights.sum()},
            seed=0,
            max_iter=1,
        )
        with pytest.warns(RuntimeWarning):
            found = start.fit_batches(chunks(x, rows=70), components=3)
        whole = in_memory(start, found, x, components=3)
        with pytest.warns(RuntimeWarning, match=said):
            errors = found.standard_errors()
        with pytest.warns(RuntimeWarning, match=said):
            expected = whole.standard_errors()
        for name, value in expected.items():
            assert torch.allclose(errors[name], value, rtol=1e-6, equal_nan=True)
            assert bool(value.isnan().any())


def test_workers_share_the_passes_while_they_are_there() -> None:
    pieces, em = points().split(100), EM(gaussian_mixture, seed=0)
    with Here() as executor:
        fit = em.fit_batches(pieces, components=2, executor=executor)
        later, before = dataclasses.replace(fit), executor.done
        expected = fit.vcov(), fit.vcov(robust=True)
        assert executor.done == before + 3 * len(pieces)
    found = later.vcov(), later.vcov(robust=True)
    assert executor.done == before + 3 * len(pieces)
    for one, other in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=1e-12)


def test_data_that_are_no_longer_there(tmp_path: Path) -> None:
    loader = Counting(*points().split(100))
    fit = EM(gaussian_mixture, seed=0).fit_batches(loader, components=2)
    fit.save(tmp_path / "fit.ember")
    loaded = Fit.load(tmp_path / "fit.ember", gaussian_mixture)
    for gone in (loaded, pickle.loads(pickle.dumps(fit))):
        with pytest.raises(ValueError, match=r"go on from its estimates, EM\(model, init"):
            gone.standard_errors()
    assert len(pickle.dumps(fit)) < len(pickle.dumps(points())) * 40
    kept = loader.pieces
    for pieces, said in (
        (kept[:-1], "the loader gave 300 rows in this pass and 400 in the first"),
        ([each + 1.0 for each in kept], "the loader gives other data than in the fit"),
    ):
        loader.pieces = pieces
        with pytest.raises(ValueError, match=f"further passes over the pieces: {said}"):
            fit.standard_errors()
    del loader.pieces
    with pytest.raises(AttributeError):
        iter(loader)
    with pytest.raises(ValueError, match="the loader failed"):
        fit.standard_errors()
    loader.pieces = kept
    assert bool(torch.isfinite(fit.standard_errors()["locs"]).all())


def test_one_sequence_has_no_sandwich() -> None:
    fit = EM(hidden_markov_gaussian, "mle", seed=0).fit_batches([sequences()[0]], states=2)
    with (
        pytest.warns(RuntimeWarning, match="boundary"),
        pytest.raises(ValueError, match="one unit"),
    ):
        fit.standard_errors(robust=True)
