"""Bars appear for whoever watches, and nowhere else."""

import sys
import time
from collections.abc import Callable

import pytest
import torch

from ember.inference import EM, SVI, select
from ember.inference.inputs import progress
from ember.inference.inputs.progress import counted
from ember.models import poisson_mixture

COUNTS = torch.tensor([0.0, 1, 0, 2, 1, 9, 11, 8, 10, 12])
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


def watch(monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    """Makes the standard error a terminal; called from within a test, whose capture it is then."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "PATIENCE", patience)


def several() -> None:
    EM(poisson_mixture, restarts=4, seed=0, progress=True).fit(COUNTS, components=2)


def steps() -> None:
    SVI(poisson_mixture, steps=5, seed=0, progress=True).fit(COUNTS, components=2)


def sweep() -> None:
    select(poisson_mixture, COUNTS, components=[1, 2], progress=True)


def errors() -> None:
    EM(poisson_mixture, seed=0).fit(COUNTS, components=2).standard_errors()


@pytest.mark.parametrize(
    ("work", "names"),
    [
        (several, ("4 starts", "EM (MAP)")),
        (steps, ("SVI (AutoDelta)",)),
        (sweep, ("select",)),
        (errors, ("derivatives",)),
    ],
)
def test_long_work_is_shown_on_a_terminal(
    work: Callable[[], None],
    names: tuple[str, ...],
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch(monkeypatch, 0.0)
    work()
    shown = capsys.readouterr().err
    for name in names:
        assert name in shown


@pytest.mark.parametrize("work", [several, steps, sweep, errors])
def test_nothing_is_shown_in_a_pipe(work: Callable[[], None], capsys: Captured) -> None:
    work()
    assert capsys.readouterr().err == ""


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    watch(monkeypatch, 1.0)
    assert list(counted([1, 2, 3], "short")) == [1, 2, 3]
    assert "short" not in capsys.readouterr().err
    watch(monkeypatch, 0.05)
    for _ in counted(range(4), "long"):
        time.sleep(0.06)
    assert "long" in capsys.readouterr().err
