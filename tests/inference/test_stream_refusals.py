"""What data in pieces rest on: rows that are independent, pieces that are alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM, Quadrature, chunks
from ember.models import gaussian_mixture, ordinal_probit, poisson_mixture

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(400, generator=GENERATOR, dtype=torch.float64)
X = (X + 4.0 * (torch.arange(400) % 2)).sort().values
PIECES = list(X.split(100))


def mixture(x: Tensor, kind: str = "plain") -> None:
    """A mixture with a line on a covariate, and something from all rows at hand."""
    weights = pyro.sample("weights", dist.Dirichlet(2.0 * torch.ones(2)))
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 3.0))
    if kind == "penalty":
        pyro.factor("penalty", -20.0 * slope.square().sum())
    if kind == "observed once":
        pyro.sample("once", dist.Normal(mean.sum(), 1.0), obs=torch.tensor(1.0))
    covariate = (3.0 * x).sin()
    if kind == "centred":
        covariate = covariate - covariate.mean()
    scale = x.std() if kind == "scaled" else torch.tensor(1.0)
    weight = 100.0 / len(x) if kind == "weighed" else 1.0
    pyro.deterministic("gap", mean[1] - mean[0])
    pyro.deterministic("line", slope[0] * covariate)
    with pyro.plate("rows", len(x)), pyro.poutine.scale(scale=weight):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mean[z] + slope[z] * covariate, scale), obs=x)


@pytest.mark.parametrize("kind", ["centred", "scaled", "weighed"])
def test_rows_that_depend_on_each_other_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="not the sum of those of their halves"):
        EM(mixture, seed=0).fit_batches(PIECES, kind=kind)


@pytest.mark.parametrize(("kind", "site"), [("penalty", "penalty"), ("observed once", "once")])
def test_what_would_count_once_a_piece_is_refused(kind: str, site: str) -> None:
    with pytest.raises(ValueError, match=f"site '{site}' stands outside the plate of"):
        EM(mixture, seed=0).fit_batches(PIECES, kind=kind)


def test_values_of_single_rows_are_left_out() -> None:
    """Those of the sample are of other rows than any piece's."""
    fit = EM(mixture, seed=0).fit_batches(PIECES)
    assert fit.deterministic.keys() == {"gap"}
    assert set(fit.summary(errors=True).index.str.replace(r"\[.*", "", regex=True)) == {
        "weights", "mean", "slope", "gap"
    }  # fmt: skip


def test_rows_are_counted_without_what_stands_beside_them() -> None:
    fit = EM(mixture, seed=0).fit(X, "penalty")
    assert fit.n_observations == 400.0
    assert EM(mixture, seed=0).fit(X, "observed once").n_observations == 400.0


def test_ordinal_thresholds_are_about_the_mean_of_all_rows() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = (1.5 + 0.6 * X + noise).clamp(0.0, 2.99).floor()
    pieces = [{"y": y[i : i + 100], "X": X[i : i + 100, None]} for i in range(0, 400, 100)]
    for objective in ("mle", "map"):
        em = EM(ordinal_probit, objective, seed=0)
        whole, fit = em.fit(y, X=X[:, None], levels=3), em.fit_batches(pieces, levels=3)
        assert fit.log_posterior == pytest.approx(whole.log_posterior, rel=1e-9)
        for name, value in whole.params.items():
            assert torch.allclose(fit.params[name], value, rtol=1e-4, atol=1e-5), name


COLUMN = X.unsqueeze(-1)
UNLIKE: dict[str, tuple[list[Any], str]] = {
    "a name less": (
        [{"x": COLUMN[:50], "frequency": torch.ones(50)}, {"x": COLUMN[50:]}],
        "gives the arguments components, x where the first gives components, frequency, x",
    ),
    "another option": (
        [{"x": COLUMN[:50], "components": 2}, {"x": COLUMN[50:], "components": 3}],
        "comes with 3 where the first comes with 2",
    ),
    "by position": (
        [(COLUMN[:50],), {"x": COLUMN[50:]}],
        "gives the arguments components, x where the first gives 1 by position, components",
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_pieces_that_differ_are_named(name: str) -> None:
    pieces, said = UNLIKE[name]
    options: dict[str, Any] = {} if name == "another option" else {"components": 2}
    with pytest.raises(ValueError, match=said):
        EM(gaussian_mixture, seed=0).fit_batches(pieces, **options)


def test_columns_are_those_that_are_asked_for(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": X.numpy(), "b": X.numpy() ** 2, "c": 0.0})
    both = chunks(frame, rows=150, columns=["a", "b"])[1].load()
    assert list(both.columns) == ["a", "b"]
    assert chunks(frame, rows=150, columns="b")[0].load().shape == (150,)
    with pytest.raises(ValueError, match="has no column 'z'; it has 'a', 'b', 'c'"):
        chunks(frame, columns=["a", "z"])
    with pytest.raises(ValueError, match="has no columns by name"):
        chunks(X, columns=["a"])
    np.save(tmp_path / "x.npy", X.numpy())
    with pytest.raises(ValueError, match="has no columns by name"):
        chunks(tmp_path / "x.npy", columns=["a"])
    with pytest.raises(TypeError, match=r"rows=2\.5 must be a whole number"):
        chunks(X, rows=2.5)  # type: ignore[arg-type]
    pytest.importorskip("pyarrow")
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="has no column 'z'"):
        chunks(tmp_path / "x.parquet", columns=["z"])


def test_a_checkpoint_of_other_parameters_says_which(tmp_path: Path) -> None:
    path = tmp_path / "fit.ckpt"
    pieces = [torch.poisson(torch.full((60,), 4.0), generator=GENERATOR) for _ in range(3)]
    EM(poisson_mixture, seed=0).fit_batches(
        pieces, components=2, checkpoint=path, checkpoint_every=0.0
    )
    with pytest.raises(ValueError, match=r"its parameters was .*'rates': \(2,\).*and is .*\(3,\)"):
        EM(poisson_mixture, seed=0).fit_batches(pieces, components=3, resume=path)


NODES: Any = {"integrate": "quadrature"}


def log_normal(y: Tensor, nodes: int | None = None) -> None:
    """Counts with a scale that asks for many nodes."""
    m = pyro.param("m", torch.tensor(0.0))
    s = pyro.param("s", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("rows", len(y)):
        u = pyro.sample("u", dist.Normal(m, s), infer=NODES)
        pyro.sample("y", dist.Poisson(u.exp()), obs=y)


Model = Callable[..., Any]


def test_nodes_follow_their_prior_and_are_enough() -> None:
    """They stand where the parameters put them, in every piece; and there are as many as asked."""
    rates = (1.0 + 0.7 * torch.randn(300, generator=GENERATOR)).exp()
    y = torch.poisson(rates, generator=GENERATOR).double()
    em = EM(log_normal, "mle", seed=0)
    whole, fit = em.fit(y), em.fit_batches(list(y.split(90)))
    assert fit.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-10)
    assert fit.node_gaps["u"] == pytest.approx(whole.node_gaps["u"], rel=0.1, abs=1e-9)
    large = torch.poisson((7.0 + torch.randn(60, generator=GENERATOR)).exp(), generator=GENERATOR)
    with pytest.warns(RuntimeWarning, match="241 nodes of site 'u' are too few"):
        whole = em.fit(large.double())
    with pytest.warns(RuntimeWarning, match="241 nodes of site 'u' are too few"):
        fit = em.fit_batches(list(large.double().split(25)))
    for each in (whole, fit):
        assert each.node_gaps["u"] > 1e-3
        assert "please report" not in each.stop_reason
    with pytest.raises(ValueError, match="nodes that follow the parameters of its prior"):
        em.fit_online(list(y.split(90)))


def laplace(x: Tensor, linked: bool = False) -> None:
    """A density with an edge, which a link or a symmetric start may hide."""
    a = pyro.param("a", torch.tensor(0.0, dtype=torch.float64))
    s = pyro.param(
        "s", torch.tensor(1.0, dtype=torch.float64), constraint=dist.constraints.positive
    )
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Laplace(a.exp() if linked else a, s), obs=x)


@pytest.mark.parametrize("linked", [False, True])
def test_edges_are_seen_from_anywhere(linked: bool) -> None:
    x = torch.cat([-X, X]) if not linked else X.abs() + 1.0
    with pytest.raises(ValueError, match="its density has edges"):
        EM(laplace, "mle", seed=0).fit_batches(list(x.split(100)), linked=linked)


def averaged(x: Tensor, n: int = 5) -> None:
    """A value of the rows at hand that is the same wherever the slope is zero; few nodes."""
    b = pyro.param("b", torch.tensor(0.0, dtype=torch.float64))
    pyro.deterministic("mean", (x * b).mean())
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=NODES)
        pyro.sample("y", dist.Poisson((1.0 + b * u).exp()), obs=x.abs().round())


def test_values_of_rows_are_left_out_on_more_nodes_too() -> None:
    rule = {"u": Quadrature(5)}
    fit = EM(averaged, "mle", integrate=rule, init={"b": torch.tensor(0.7)}, seed=0).fit_batches(
        list(X.split(100))
    )
    assert not fit.deterministic
    assert bool((fit.history.diff() >= 0.0).all())


def test_options_that_are_no_number_and_pieces_without_rows() -> None:
    def model(x: Tensor, fill: float) -> None:
        mean = pyro.param("mean", torch.tensor(0.0, dtype=torch.float64))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    em = EM(model, "mle", seed=0)
    fit = em.fit_batches(PIECES, fill=float("nan"))
    assert float(fit.params["mean"]) == pytest.approx(float(X.mean()))
    with pytest.raises(ValueError, match="piece 2 of the data has no rows"):
        em.fit_batches([X[:50], X[:0], X[50:]], fill=0.0)


def test_the_callers_draws_go_on() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    EM(poisson_mixture).fit_batches([X.abs().round()[i::2] for i in (0, 1)], components=2)
    assert torch.equal(torch.rand(3), expected)


def test_a_step_that_overshoots_is_not_believed() -> None:
    """Small pieces, rates far too small: Newton's first steps would lead beyond all numbers."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 9, generator=generator, dtype=torch.float64)
    y = torch.poisson((0.3 * rows.sum(1)).exp(), generator=generator)

    def model(y: Tensor, x: Tensor) -> None:
        a = pyro.param("a", torch.tensor(0.0, dtype=torch.float64))
        b = pyro.param("b", torch.zeros(9, dtype=torch.float64))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson((a + x @ b).exp()), obs=y)

    whole = EM(model, "mle", seed=0).fit(y, rows)
    pieces = list(zip(y.split(100), rows.split(100), strict=True))
    for method in ("stepwise", "variance-reduced"):
        start = {"a": torch.tensor(0.0), "b": torch.zeros(9)}
        fit = EM(model, "mle", init=start, seed=0).fit_online(pieces, method=method, passes=5)
        assert fit.stop_reason.startswith("finished")
        assert whole.log_likelihood - fit.log_likelihood < 0.01 * abs(whole.log_likelihood)
