"""Item response models: sites, densities against scipy, guides and MCMC, errors."""

import functools
import re
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.optim import ClippedAdam
from scipy import special, stats
from torch import Tensor

from ember.models import item_response

N, J = 12, 4


@pytest.fixture
def answers() -> Tensor:
    return (torch.rand(N, J, dtype=torch.float64) < 0.6).double()


@pytest.fixture
def graded() -> Tensor:
    codes = torch.randint(0, 3, (N, J))
    codes[:3] = torch.arange(3).unsqueeze(-1)
    return codes


ITEMS = {"discriminations": (J,), "intercepts": (J,), "difficulties": (J,)}
PERSONS = {"ability": (N,), "answers": (N, J)}


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({}, {**ITEMS, **PERSONS}),
        ({"model": "rasch"}, {"intercepts": (J,), "difficulties": (J,), **PERSONS}),
        ({"model": "1pl"}, {**ITEMS, "discriminations": (), **PERSONS}),
        ({"model": "3pl"}, {**ITEMS, "guessing": (J,), **PERSONS}),
        (
            {"dimensions": 2},
            {
                "loadings": (2 * J - 1,), "discriminations": (J, 2), "intercepts": (J,),
                "ability": (N, 2), "answers": (N, J),
            },
        ),
        (
            {"groups": torch.arange(N) % 3},
            {**ITEMS, "means": (2,), "deviations": (2,), **PERSONS},
        ),
        (
            {"groups": torch.arange(N) % 2, "dimensions": 2},
            {
                "loadings": (2 * J - 1,), "discriminations": (J, 2), "intercepts": (J,),
                "means": (1, 2), "deviations": (1, 2), "ability": (N, 2), "answers": (N, J),
            },
        ),
    ],
)  # fmt: skip
def test_sites(
    answers: Tensor, dtype: torch.dtype, options: dict[str, Any], shapes: Any, check_sites: Any
) -> None:
    expected = dtype if dtype.is_floating_point else torch.float32
    check_sites(shapes, expected, functools.partial(item_response, **options), answers.to(dtype))


@pytest.mark.parametrize("levels", [None, 3, 5])
def test_graded_sites(graded: Tensor, levels: int | None, check_sites: Any) -> None:
    size = levels or 3
    shapes = {
        "discriminations": (J,), "intercepts": (J,), "steps": (J, size - 2),
        "difficulties": (J, size - 1), "ability": (N,), "answers": (N, J),
    }  # fmt: skip
    model = functools.partial(item_response, model="graded", levels=levels)
    check_sites(shapes, torch.float32, model, graded)


def answers_density(values: dict[str, Tensor], *args: Any) -> float:
    """The log density of the answers given everything else."""
    trace = poutine.trace(poutine.condition(item_response, values)).get_trace(*args)
    trace.compute_log_prob()
    return float(trace.nodes["answers"]["log_prob"].sum())


@pytest.fixture
def values() -> dict[str, Tensor]:
    return {
        "discriminations": torch.tensor([0.5, 1.0, 1.5, 2.0]).double(),
        "intercepts": torch.tensor([-1.0, 0.0, 0.5, 2.0]).double(),
        "guessing": torch.tensor([0.1, 0.2, 0.3, 0.05]).double(),
        "ability": torch.randn(N).double(),
        "steps": torch.tensor([[0.5], [1.0], [1.5], [0.2]]).double(),
    }


@pytest.mark.parametrize("kind", ["2pl", "3pl"])
@pytest.mark.parametrize("gaps", [False, True])
def test_density_of_binary_answers(
    answers: Tensor, values: dict[str, Tensor], kind: str, gaps: bool
) -> None:
    if gaps:
        answers[2, 1] = answers[5] = torch.nan
    a, d, u = (values[n].numpy() for n in ("discriminations", "intercepts", "ability"))
    p = special.expit(a * (u[:, None] + d / a))
    if kind == "3pl":
        c = values["guessing"].numpy()
        p = c + (1 - c) * p
    expected = np.nansum(stats.bernoulli.logpmf(np.nan_to_num(answers.numpy()), p)
                         * np.where(np.isnan(answers.numpy()), np.nan, 1.0))  # fmt: skip
    given = {n: v for n, v in values.items() if n != "steps" and (kind == "3pl" or n != "guessing")}
    found = answers_density(given, answers, kind)
    assert found == pytest.approx(expected, rel=1e-12)


def test_density_of_graded_answers(graded: Tensor, values: dict[str, Tensor]) -> None:
    a, d, u = (values[n].numpy() for n in ("discriminations", "intercepts", "ability"))
    line = a * u[:, None]
    first = special.expit(line + d)
    second = special.expit(line + d - values["steps"].numpy()[:, 0])
    p = np.stack([1 - first, first - second, second], -1)
    expected = np.log(np.take_along_axis(p, graded.numpy()[..., None], -1)).sum()
    given = {n: v for n, v in values.items() if n != "guessing"}
    found = answers_density(given, graded.double(), "graded")
    assert found == pytest.approx(expected, rel=1e-12)


def test_graded_answers_of_two_levels_are_binary(
    answers: Tensor, values: dict[str, Tensor]
) -> None:
    given = {n: values[n] for n in ("discriminations", "intercepts", "ability")}
    one = answers_density(given, answers)
    two = answers_density(given, answers, "graded")
    assert two == pytest.approx(one, rel=1e-12)


def test_far_out_no_digits_are_lost(values: dict[str, Tensor]) -> None:
    """At an ability of 60 the chance of a wrong answer is exp(-60), and its logarithm -60."""
    wrong = torch.zeros(2, 1).double()
    given = {
        "discriminations": torch.ones(1).double(), "intercepts": torch.zeros(1).double(),
        "ability": torch.tensor([60.0, 60.0]).double(),
    }  # fmt: skip
    assert answers_density(given, wrong) == pytest.approx(-120.0)
    given["guessing"] = torch.tensor([0.25]).double()
    expected = -120.0 + 2 * np.log(0.75)
    found = answers_density(given, wrong, "3pl")
    assert found == pytest.approx(expected)


def test_the_zero_loading(answers: Tensor) -> None:
    trace: Any = poutine.trace(item_response).get_trace(answers, dimensions=2)
    slopes, free = trace.nodes["discriminations"]["value"], trace.nodes["loadings"]["value"]
    assert float(slopes[0, 1]) == 0.0
    assert torch.equal(torch.cat([slopes[:, 0], slopes[1:, 1]]), free)


def test_groups_after_the_first_have_their_own_population(answers: Tensor) -> None:
    groups = torch.arange(N) % 2
    given = {"means": torch.tensor([0.7]).double(), "deviations": torch.tensor([1.3]).double()}
    model = poutine.condition(item_response, given)
    nodes: Any = poutine.trace(model).get_trace(answers, groups=groups).nodes
    fn = nodes["ability"]["fn"]
    assert fn.mean.tolist() == pytest.approx([0.0, 0.7] * (N // 2))
    assert fn.stddev.tolist() == pytest.approx([1.0, 1.3] * (N // 2))


def test_priors_are_arguments(answers: Tensor) -> None:
    prior = {"discrimination_shape": 3.0, "intercept_scale": [1.0, 2.0, 3.0, 4.0]}
    nodes: Any = poutine.trace(item_response).get_trace(answers, prior=prior).nodes
    assert float(nodes["discriminations"]["fn"].concentration[0]) == 3.0
    assert nodes["intercepts"]["fn"].scale.tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("guide", [AutoDelta, AutoNormal])
@pytest.mark.parametrize("kind", ["2pl", "3pl"])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_runs_under_svi_unchanged(answers: Tensor, guide: Any, kind: str, dimensions: int) -> None:
    kind = kind if dimensions == 1 else "2pl"
    svi = SVI(item_response, guide(item_response), ClippedAdam({"lr": 0.01}), Trace_ELBO())
    losses = [svi.step(answers, kind, dimensions=dimensions) for _ in range(5)]
    assert np.isfinite(losses).all()


def test_runs_under_mcmc_unchanged(answers: Tensor) -> None:
    mcmc = MCMC(NUTS(item_response), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(answers, model="1pl")
    assert mcmc.get_samples()["ability"].shape == (5, N)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda y: (y.tolist(), {}), TypeError, "`answers` must be a torch.Tensor, not list"),
        (lambda y: (y[0], {}), ValueError, "`answers` must have shape (N, J)"),
        (lambda y: (y - 1.0, {}), ValueError, "`answers` must hold codes 0, 1, 2"),
        (lambda y: (y * 0.5, {}), ValueError, "`answers` must hold codes 0, 1, 2"),
        (lambda y: (y * 2, {}), ValueError, "only 0, 1 and NaN for model='2pl'"),
        (lambda y: (y / 0.0, {}), ValueError, "`answers` must hold codes 0, 1, 2"),
        (lambda y: (y, {"model": "4pl"}), ValueError, "`model` must be one of 'rasch', '1pl'"),
        (lambda y: (y, {"dimensions": 3}), ValueError, "`dimensions` must be one of 1, 2"),
        (
            lambda y: (y, {"dimensions": 2, "model": "3pl"}), ValueError,
            "dimensions=2 needs model='2pl', not '3pl'",
        ),
        (
            lambda y: (2 * y, {"model": "graded", "levels": 2}), ValueError,
            "`answers` has the code 2, but levels=2 allows 0 to 1",
        ),
        (lambda y: (y, {"groups": [0, 1]}), ValueError, "`groups` must have shape (12,)"),
        (
            lambda y: (y, {"groups": 2 * (torch.arange(N) % 2)}), ValueError,
            "`groups` has nobody with the code 1",
        ),
        (
            lambda y: (y, {"groups": torch.arange(N) % 3, "group_count": 2}), ValueError,
            "`groups` has the code 2, but group_count=2",
        ),
        (lambda y: (y, {"prior": {"scale": 1.0}}), ValueError, "unknown key 'scale'"),
        (
            lambda y: (y, {"prior": {"guessing1": -1.0}, "model": "3pl"}), ValueError,
            "prior['guessing1'] must be greater than 0",
        ),
        (
            lambda y: (torch.where(torch.arange(J) == 2, torch.nan, y), {}), ValueError,
            "nothing but NaN for item(s) 2",
        ),
        (lambda y: (y[:1], {}), ValueError, "those of one person"),
    ],
)  # fmt: skip
def test_errors(answers: Tensor, change: Any, error: type[Exception], message: str) -> None:
    answers[0] = 1.0
    data, options = change(answers)
    with pytest.raises(error, match=re.escape(message)):
        item_response(data, **options)
