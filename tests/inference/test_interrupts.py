"""An interrupt (Ctrl-C) at any moment of a fit keeps the best that was reached."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM, Fit, em
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.iteration import diagnosis, split_merge
from ember.inference.iteration.convergence import StopReason
from ember.inference.iteration.restarts.batched_steps import BatchedSteps
from ember.inference.maximisation.m_step import MStep
from ember.inference.reading.structure import Structure
from ember.models import gaussian_mixture
from tests.further import further, with_further
from tests.inference.examples import EXAMPLES

E_STEPS = [(LogEvidence, "statistics"), (BatchedSteps, "e_step")]
STEPS = [
    *E_STEPS,
    (BatchedSteps, "m_step"),
    (Structure, "trace"),
    (MStep, "__call__"),
    (diagnosis, "idle_entries"),
    (em, "in_canonical_order"),
    (split_merge, "marginals"),
    (split_merge, "params_from"),
]


def regression(x: Tensor, y: Tensor) -> None:
    """Without latents: one M-step, and starts that are run one after another."""
    slope = pyro.sample("slope", dist.Normal(0.0, 3.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, scale), obs=y)


def in_heaps() -> Tensor:
    """Rows for which k-means with this seed leaves something to split and merge."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([-9.0, -8.0, 0.0, 9.0], dtype=torch.float64).repeat(10)
    noise = torch.randn(40, generator=generator, dtype=torch.float64)
    return (centres + 0.3 * noise).unsqueeze(1)


X = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64)
FITS: dict[str, tuple[Any, dict[str, Any], tuple[Any, ...], dict[str, Any]]] = {
    "one start": (EXAMPLES["mixture"].model, {}, EXAMPLES["mixture"].args, {}),
    "several": (EXAMPLES["mixture"].model, {"restarts": 4}, EXAMPLES["mixture"].args, {}),
    "chain": (
        EXAMPLES["chain"].model,
        {"restarts": 4},
        EXAMPLES["chain"].args,
        EXAMPLES["chain"].kwargs,
    ),
    "hard": (
        EXAMPLES["mixture"].model,
        {"restarts": 3, "assignment": "hard"},
        EXAMPLES["mixture"].args,
        {},
    ),
    "in turn": (regression, {"restarts": 3}, (X, X.sin()), {}),
    "split-merge": (
        gaussian_mixture,
        {"escape": "split-merge", "init": "random", "tol": 1e-3},
        (in_heaps(), 4),
        {},
    ),
}


@pytest.mark.filterwarnings("ignore:.*max_iter:RuntimeWarning")
@pytest.mark.parametrize("name", with_further(FITS, ("chain",)))
@pytest.mark.parametrize("moments", [8, *further(20)])  # over each fit, beside all at its end
def test_an_interrupt_at_any_step_keeps_the_best(
    name: str, moments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options, args, kwargs = FITS[name]
    calls: list[str] = []
    wanted = -1

    def counted(step: Callable[..., Any], what: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            calls.append(what)
            if len(calls) - 1 == wanted:
                raise KeyboardInterrupt
            return step(*given, **named)

        return call

    def fit() -> Fit:
        calls.clear()
        return EM(model, seed=0, max_iter=40, **options).fit(*args, **kwargs)

    for owner, what in STEPS:
        monkeypatch.setattr(owner, what, counted(getattr(owner, what), what))
    whole = fit()
    every = list(calls)
    first = next(i for i, what in enumerate(every) if what in dict(E_STEPS).values())
    ordered = len(every) - 1 - every[::-1].index("in_canonical_order")
    some = range(first + 1, ordered, 1 + (ordered - first) // moments)
    for wanted in (*some, *range(ordered - 2, len(every))):
        try:
            found = fit()
        except KeyboardInterrupt:  # which would end the whole test run
            pytest.fail(f"lost at step {wanted}, {every[wanted]}")
        assert found.stop is StopReason.INTERRUPTED, every[wanted]
        assert torch.isfinite(found.history).all()
        assert len(found.history) == len(found.times)
        if name != "hard":
            assert found.log_posterior == pytest.approx(float(found.history[-1]), rel=1e-9)
        if wanted >= ordered:
            assert found.log_posterior == pytest.approx(whole.log_posterior, rel=1e-12)
    wanted = first
    with pytest.raises(KeyboardInterrupt):
        fit()
