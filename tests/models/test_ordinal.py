"""Ordered responses: against statsmodels' ordered probit, sums over a grid, and its own limits."""

from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from statsmodels.miscmodels.ordinal_model import OrderedModel
from torch import Tensor

from ember.inference import EM
from ember.models import ordinal_probit

Array = np.ndarray[Any, Any]
GROUP = torch.arange(120) % 15
LINE = np.linspace(-9.0, 9.0, 901)


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = 3.0 + torch.randn(120, 2, generator=generator, dtype=torch.float64)
    u = 0.8 * torch.randn(15, generator=generator, dtype=torch.float64)
    noise = torch.randn(120, generator=generator, dtype=torch.float64)
    line = (x - 3.0) @ torch.tensor([0.9, -0.6]).double() + u[GROUP] + noise
    return (line.unsqueeze(-1) > torch.tensor([-1.0, 0.0, 1.2])).sum(-1), x


def test_without_groups_it_is_ordered_probit() -> None:
    y, x = example()
    fit = EM(ordinal_probit, "mle", seed=0).fit(y, x)
    assert fit.converged, fit.stop_reason
    rival = OrderedModel(y.numpy(), x.numpy(), distr="probit").fit(method="bfgs", disp=False)
    assert fit.log_likelihood == pytest.approx(float(rival.llf), abs=1e-6)
    assert fit.params["coefficients"].numpy() == pytest.approx(rival.params[:2], abs=1e-3)
    limits = rival.model.transform_threshold_params(rival.params)[1:-1]
    assert fit.deterministic["thresholds"].numpy() == pytest.approx(limits, abs=5e-3)


def test_with_groups_it_is_the_integral() -> None:
    y, x = example()
    fit = EM(ordinal_probit, "mle", seed=0).fit(y, x, groups=GROUP)
    limits = np.concatenate([[-np.inf], fit.deterministic["thresholds"].numpy(), [np.inf]])
    sd = float(fit.params["group_variance"]) ** 0.5
    line = (x @ fit.params["coefficients"]).numpy()[:, None] + sd * LINE
    upper, lower = limits[y.numpy() + 1][:, None], limits[y.numpy()][:, None]
    rows = np.log(scipy.stats.norm.cdf(upper - line) - scipy.stats.norm.cdf(lower - line) + 1e-300)
    joint = np.zeros((15, len(LINE)))
    np.add.at(joint, GROUP.numpy(), rows)
    joint += scipy.stats.norm.logpdf(LINE) + np.log(LINE[1] - LINE[0])
    truth = scipy.special.logsumexp(joint, axis=1).sum()
    assert fit.log_likelihood == pytest.approx(truth, abs=1e-6)
    assert fit.posterior("group_effects").mean.shape == (15,)


def test_units_and_origin_of_covariates_make_no_odds() -> None:
    y, x = example()
    one, other = (EM(ordinal_probit, seed=0).fit(y, z) for z in (x, 1e3 * x + 5e4))
    assert other.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-6)
    assert torch.allclose(other.params["threshold"], one.params["threshold"], atol=1e-4)
    assert torch.allclose(1e3 * other.params["coefficients"], one.params["coefficients"], atol=1e-4)


def test_far_thresholds_keep_their_digits() -> None:
    """Levels of probability 1e-200 and less have a finite density, mirror images the same."""
    trace: Any = poutine.trace(
        poutine.condition(
            ordinal_probit,
            {
                "threshold": torch.tensor(30.0).double(),
                "steps": torch.tensor([1.0, 1.0]).double(),
            },
        )
    ).get_trace(torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64), levels=4)
    logits = trace.nodes["y"]["fn"].logits
    assert bool(logits.isfinite().all())
    assert float(logits[0, 1]) == pytest.approx(scipy.stats.norm.logsf(30.0), rel=1e-9)
    assert float(logits[0, 3]) == pytest.approx(scipy.stats.norm.logsf(32.0), rel=1e-9)


def test_frequencies_and_gaps() -> None:
    y, x = example()
    times = torch.arange(120) % 3
    each = torch.arange(120).repeat_interleave(times)
    hidden = torch.where(times == 0, torch.nan, y.double())
    fits = [
        EM(ordinal_probit, seed=0).fit(y[each], x[each]),
        EM(ordinal_probit, seed=0).fit(y, x, frequency=times),
    ]
    assert fits[1].log_likelihood == pytest.approx(fits[0].log_likelihood, abs=1e-6)
    one = EM(ordinal_probit, seed=0).fit(hidden, x, groups=GROUP)
    kept = times > 0
    two = EM(ordinal_probit, seed=0).fit(y[kept], x[kept], groups=GROUP[kept])
    assert one.log_posterior == pytest.approx(two.log_posterior, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.tensor([0.5, 1.0])}, "`y` must hold level codes"),
        ({"levels": 2}, r"`y` has the level 3, but `levels=2`: pass 4"),
        ({"levels": 1}, "`levels` must be at least 2"),
        ({"groups": {"a": GROUP, "b": GROUP}}, "2 grouping factors"),
        ({"prior": {"scale": 1.0}}, "unknown key 'scale'"),
        ({"X": torch.ones(3)}, r"`X` has 3 row\(s\)"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    y, x = example()
    with pytest.raises(ValueError, match=message):
        ordinal_probit(**{"y": y, "X": x, **change})
