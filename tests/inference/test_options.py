"""Options of what surrounds a fit: numpy's numbers are numbers, and mistakes get one sentence."""

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

from ember.inference import EM, SVI, Fit, align, select
from ember.inference.tables import old_faithful
from ember.models import gaussian_mixture, linear_mixed_model, poisson_mixture

COUNTS = torch.tensor([0.0, 1, 0, 2, 1, 9, 11, 8, 10, 12])


def fitted() -> Fit:
    return EM(poisson_mixture, seed=0).fit(COUNTS, components=2)


def chosen(**options: Any) -> Any:
    return select(poisson_mixture, COUNTS, **{"components": [1, 2], **options})


MISTAKES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "one fold": (lambda: chosen(folds=1), ValueError, "folds=1 leaves nothing"),
    "folds below zero": (lambda: chosen(folds=-2), ValueError, "folds=-2 leaves nothing"),
    "half a fold": (lambda: chosen(folds=2.5), TypeError, r"folds=2\.5 must be a whole number"),
    "too many folds": (lambda: chosen(folds=11), ValueError, "folds=11 are more than the 10 rows"),
    "options of EM": (lambda: chosen(em=3), TypeError, "em=3 must be a dict"),
    "an array of options": (
        lambda: chosen(components=np.arange(1, 3)),
        ValueError,
        "'components' is an array, which counts as data: pass a list",
    ),
    "a seed in words": (lambda: SVI(poisson_mixture, seed="a"), TypeError, "seed='a' must be"),  # type: ignore[arg-type]
    "a seed of a sample": (lambda: fitted().sample(3, seed="a"), TypeError, "seed='a' must be"),  # type: ignore[arg-type]
    "a large seed": (lambda: EM(poisson_mixture, seed=2**70), ValueError, "seed=.* too large"),
    "no fit": (lambda: align(fitted(), None), TypeError, "align: fit must be a fit, not NoneType"),  # type: ignore[arg-type]
    "no path": (lambda: fitted().save(3), TypeError, "3 is no path"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name: str) -> None:
    call, kind, said = MISTAKES[name]
    with pytest.raises(kind, match=said):
        call()


def test_numbers_of_numpy() -> None:
    whole, two = fitted(), np.int64(2)
    em = EM(poisson_mixture, seed=np.int64(0), restarts=np.int64(1))  # type: ignore[arg-type]
    assert em.fit(COUNTS, components=two).log_posterior == whole.log_posterior
    assert chosen(components=[np.int64(1), two], folds=np.int64(2)).options == {"components": 2}


def test_every_row_may_be_a_fold() -> None:
    assert bool(np.isfinite(chosen(folds=len(COUNTS)).table["held_out"]).all())


def test_columns_are_told_by_their_names(tmp_path: Path) -> None:
    table = old_faithful()
    fit = EM(gaussian_mixture, seed=0).fit(table, components=2)
    turned = table[["waiting", "eruptions"]].assign(other=0.0)
    fit.save(tmp_path / "fit.ember")
    for known in (fit, Fit.load(tmp_path / "fit.ember", gaussian_mixture)):
        assert torch.equal(known.predict(turned), fit.predict())
        assert torch.equal(known.log_prob(turned), fit.log_prob())
        assert torch.equal(known.predict(table.to_numpy()), fit.predict())
        gaps = turned.assign(eruptions=np.nan)
        assert torch.equal(known.impute(gaps), fit.impute(gaps[["eruptions", "waiting"]]))
    with pytest.raises(ValueError, match="the table lacks 'eruptions' of the columns of the fit"):
        fit.predict(table.rename(columns={"eruptions": "length"}))


def test_a_new_table_without_its_groups() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"y": rng.normal(size=40), "g": rng.choice([*"abcd"], 40)})
    fit = EM(linear_mixed_model, "mle").fit("y ~ 1 + (1 | g)", data=table)
    with pytest.raises(ValueError, match=r"formula .* reads 'g', which the table does not have"):
        fit.log_prob(data=table[["y"]])


def answers_of_persons(y: Tensor) -> None:
    with pyro.plate("items", 4):
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("persons", len(y), dim=-2):
        prior = dist.Normal(0.0, 1.0)
        ability = pyro.sample("ability", prior, infer={"integrate": "quadrature"})  # type: ignore[arg-type]
        with pyro.plate("answers", 4, dim=-1):
            pyro.sample("y", dist.Bernoulli(logits=ability - b), obs=y)


@pytest.mark.parametrize("guide", ["delta", "normal"])
@pytest.mark.parametrize("persons", [4, 30])
def test_svi_of_a_latent_left_of_the_items(guide: str, persons: int) -> None:
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(persons, 4, generator=generator) < 0.6).double()
    best = EM(answers_of_persons, seed=0).fit(y).log_posterior
    fit = SVI(answers_of_persons, guide=guide, steps=100, seed=0).fit(y)
    assert best - 5.0 < fit.log_posterior <= best + 1e-9


def test_svi_that_leaves_the_positive_matrices_keeps_what_it_has() -> None:
    with pytest.warns(RuntimeWarning, match="lower learning_rate") as told:
        fit = SVI(gaussian_mixture, learning_rate=10.0, steps=100, seed=0).fit(
            old_faithful(), components=2
        )
    assert "not finite" in fit.stop_reason
    assert told[0].filename == __file__  # the user's own line
