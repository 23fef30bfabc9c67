"""Pieces whose rows have maps of their own: read once while there is room, and never mistaken."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.inputs.arguments import Arguments
from ember.inference.queries.uncertainty.passes import passes_of
from ember.inference.streaming import kept_plans
from ember.inference.streaming.kept_plans import KeptPlans
from ember.models import regression_mixture


def lines(rows: int = 120, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, rows, generator=generator, dtype=torch.float64)
    return torch.where(torch.arange(rows) % 2 == 0, 1.0 + x, 4.0 - 2.0 * x) + 0.5 * noise, x


class Runs:
    """A model that counts its runs."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model, self.count = model, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return self.model(*args, **kwargs)


class Shuffled:
    """Pieces in another order in each pass, handed over in one and the same place in memory."""

    def __init__(self, *data: Tensor, rows: int) -> None:
        self.pieces = list(zip(*(each.split(rows) for each in data), strict=True))
        self.place = [torch.empty_like(each) for each in self.pieces[0]]
        self.passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        self.passes += 1
        count = len(self.pieces)
        for i in range(count):
            for there, each in zip(self.place, self.pieces[(i + self.passes) % count], strict=True):
                there.copy_(each)
            yield tuple(self.place)


@pytest.mark.parametrize("room", [2**28, 150_000, 0], ids=["all", "some", "none"])
def test_any_room_gives_the_fit_in_memory(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order of the pieces, and wherever they lie."""
    monkeypatch.setattr(kept_plans, "MOST", room)
    data, em = lines(), EM(regression_mixture, "mle", seed=0, tol=1e-10)
    whole = em.fit(*data, components=2)
    fit = em.fit_batches(Shuffled(*data, rows=40), components=2)
    assert fit.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-9)
    at_the_same = EM(regression_mixture, "mle").e_step(fit.params, *data, components=2)
    assert fit.log_likelihood == pytest.approx(at_the_same.log_likelihood, rel=1e-12)
    for name, value in whole.params.items():
        assert torch.allclose(fit.params[name], value, rtol=1e-5, atol=1e-5)
    assert not passes_of(fit.plan).plan.once(KeptPlans)._plans  # a fit holds no rows


def test_later_passes_do_without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    data, runs = lines(80), list[int]()
    for room in (2**28, 0):
        monkeypatch.setattr(kept_plans, "MOST", room)
        model = Runs(regression_mixture)
        em = EM(model, "mle", seed=0, accelerate=None, tol=0.0, max_iter=4)
        em.fit_batches(list(zip(*(each.split(40) for each in data), strict=True)), components=2)
        runs.append(model.count)
    assert runs[0] < 0.7 * runs[1]


def test_what_differs_is_another_piece() -> None:
    """A digest tells apart all that a plan depends on, and what it is not sure of it leaves."""
    em = EM(regression_mixture, "mle")
    y, x = lines(30)
    plan = em.plan(y, x, components=2)
    kept = KeptPlans(plan)
    piece = Arguments((y, x), {"components": 2})
    kept.keep(piece, plan)
    assert kept.plan_for(Arguments((y.clone(), x.clone()), {"components": 2})) is plan
    nudged = x.clone()
    nudged[-1] *= 1.0 + 1e-15
    others = [
        Arguments((y, nudged), {"components": 2}),
        Arguments((y, x), {"components": 3}),
        Arguments((y, x.unsqueeze(-1)), {"components": 2}),
        Arguments((x, y), {"components": 2}),
    ]
    assert all(kept.plan_for(other) is None for other in others)
    unknown = Arguments((y, x), {"components": lambda: 2})
    kept.keep(unknown, plan)
    assert kept.plan_for(unknown) is None
    kept.clear()
    assert kept.plan_for(piece) is None


def test_room_is_counted_without_what_is_shared() -> None:
    """Plans of larger pieces take more, and what the template holds nothing."""
    em = EM(regression_mixture, "mle")
    template, rooms = em.plan(*lines(10), components=2), list[int]()
    for rows in (0, 500, 1000):
        kept = KeptPlans(template)
        data = lines(rows) if rows else lines(10)
        plan = em.plan(*data, components=2) if rows else template
        kept.keep(Arguments(data, {}), plan)
        rooms.append(kept_plans.MOST - kept._room)
    own = [room - kept_plans.ITSELF for room in rooms]
    assert own[0] == 0
    assert own[1] > 2 * 500 * 8  # y and x, in numbers of eight bytes
    assert 1.8 * own[1] < own[2] < 2.2 * own[1]
