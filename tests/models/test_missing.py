"""Models with missing entries (NaN) under Pyro alone: densities, priors, guides and NUTS."""

from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, config_enumerate
from scipy import stats
from torch import Tensor

from ember.models import (
    bernoulli_mixture,
    categorical_mixture,
    gaussian_mixture,
    poisson_mixture,
)
from ember.models.parts.missing import GappyMultivariateNormal
from ember.models.parts.priors import count_mean, default_scale, default_variance, weighted_mean

N, D, K = 14, 3, 2
NAN = torch.nan
COVARIANCES = ("full", "tied", "diag", "spherical")


def gappy(dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows of every pattern of missing entries, that of no entry at all included."""
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=dtype)
    hidden = torch.tensor([[n >> d & 1 for d in range(D)] for n in range(N)], dtype=torch.bool)
    return x.masked_fill(hidden, NAN)


def marginal(row: Tensor, loc: Tensor, covariance: Tensor) -> float:
    shown = (~row.isnan()).numpy()
    if not shown.any():
        return 0.0
    block = covariance.numpy()[np.ix_(shown, shown)]
    density = stats.multivariate_normal(loc.numpy()[shown], block)
    return float(density.logpdf(row.numpy()[shown]))


def factors(*batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(*batch, D, D, generator=generator, dtype=torch.float64).tril(-1)
    return root + torch.eye(D) * 1.3


@pytest.mark.parametrize(
    ("loc", "matrix", "value"),
    [
        ((), (), (N,)),
        ((K, 1), (K, 1), (N,)),
        ((K, 1), (), (N,)),
        ((N,), (), (N,)),
        ((N,), (N,), (N,)),
        ((4, K, 1), (4, K, 1), (N,)),
        ((K,), (K,), (7, 2, 1)),
        ((), (K,), (7, 2, 1)),
        ((), (), ()),
    ],
)
@pytest.mark.parametrize("argument", ["scale_tril", "precision_matrix", "covariance_matrix"])
def test_the_density_is_that_of_the_observed_entries(
    loc: Any, matrix: Any, value: Any, argument: str
) -> None:
    generator = torch.Generator().manual_seed(2)
    means = torch.randn(*loc, D, generator=generator, dtype=torch.float64)
    scale = factors(*matrix)
    given = {"scale_tril": scale, "covariance_matrix": scale @ scale.mT,
             "precision_matrix": torch.linalg.inv(scale @ scale.mT)}[argument]  # fmt: skip
    x = gappy()[: int(np.prod(value))].reshape(*value, D) if value else gappy()[1]
    fn = GappyMultivariateNormal(means, **{argument: given})
    found = fn.log_prob(x)
    shape = torch.broadcast_shapes(loc, matrix, value)
    assert found.shape == shape
    for index in np.ndindex(*shape):
        row = x.expand(*shape, D)[index]
        truth = marginal(
            row, means.expand(*shape, D)[index],
            (scale @ scale.mT).expand(*shape, D, D)[index],
        )  # fmt: skip
        assert float(found[index]) == pytest.approx(truth, rel=1e-10, abs=1e-12)


def test_complete_rows_have_the_usual_density_and_gaps_leave_gradients_finite() -> None:
    x = torch.nan_to_num(gappy())
    loc = torch.zeros(K, 1, D, dtype=torch.float64, requires_grad=True)
    scale = factors(K, 1).requires_grad_()
    left = GappyMultivariateNormal(loc, scale_tril=scale).log_prob(x)
    right = dist.MultivariateNormal(loc, scale_tril=scale).log_prob(x)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    GappyMultivariateNormal(loc, scale_tril=scale).log_prob(gappy()).sum().backward()
    for gradient in (loc.grad, scale.grad):
        assert gradient is not None
        assert bool(gradient.isfinite().all())


def test_shapes_and_single_precision() -> None:
    fn = GappyMultivariateNormal(torch.zeros(D), torch.eye(D), validate_args=True)
    assert fn.log_prob(gappy(torch.float32)).dtype == torch.float32
    with pytest.raises(ValueError, match="event_shape"):
        fn.log_prob(torch.zeros(2, 1))
    wide: Any = GappyMultivariateNormal(torch.zeros(D).double(), torch.eye(D).double())
    assert wide.log_prob(gappy()).dtype == torch.float64
    assert wide.expand((4, N)).log_prob(gappy()).shape == (4, N)
    assert wide.sample((5,)).shape == (5, D)


MODELS: list[tuple[Any, Tensor, dict[str, Any]]] = [
    *((gaussian_mixture, gappy(), {"covariance": c}) for c in COVARIANCES),
    (poisson_mixture, gappy().abs().mul(4.0).round(), {}),
    (poisson_mixture, gappy()[:, 0].abs().mul(4.0).round(), {}),
    (bernoulli_mixture, (gappy() > 0.0).double().where(~gappy().isnan(), NAN), {}),
    (categorical_mixture, gappy().abs().clamp_max(2.0).round(), {"levels": 3}),
    (categorical_mixture, gappy().abs().clamp_max(2.0).round(), {"levels": [3, 4, 3]}),
]  # fmt: skip
each_model = pytest.mark.parametrize(("model", "x", "options"), MODELS)


@each_model
def test_a_row_s_density_is_that_of_its_observed_entries(
    model: Any, x: Tensor, options: dict[str, Any], prior_draw: Any, log_likelihood: Any
) -> None:
    """Each entry alone, where entries are independent; each row alone, against scipy, else."""
    torch.set_default_dtype(torch.float64)
    options = {"components": K, **options}
    values = prior_draw(model, x, **options)
    found = float(log_likelihood(model, values, x, **options).detach())
    weights = values["weights"]
    rows = x if x.dim() == 2 else x.unsqueeze(-1)
    total = 0.0
    for row in rows:
        parts = []
        for k in range(K):
            if options.get("covariance") in ("full", "tied"):
                precision = values["precisions"]
                precision = precision[k] if precision.dim() == 3 else precision
                parts.append(marginal(row, values["locs"][k], torch.linalg.inv(precision)))
            else:
                entries = [entry(values, k, j, float(v)) for j, v in enumerate(row) if v == v]
                parts.append(sum(entries))
        total += float(torch.logsumexp(weights.log() + torch.tensor(parts), 0))
    assert found == pytest.approx(total, rel=1e-9)


def entry(values: dict[str, Tensor], k: int, j: int, v: float) -> float:
    """The log density of one entry given its component."""
    if "locs" in values:
        precision = values["precisions"][k].reshape(-1)
        precision = precision[min(j, len(precision) - 1)]
        return float(stats.norm(values["locs"][k, j], precision.rsqrt()).logpdf(v))
    if "rates" in values:
        return float(stats.poisson(values["rates"][k].reshape(-1)[j]).logpmf(v))
    table = values.get("probs", values.get(f"probs_{j}"))
    assert table is not None
    if "probs" not in values:
        return float(table[k, int(v)].log())
    if table.dim() == 3:
        return float(table[k, j, int(v)].log())
    return float(stats.bernoulli(float(table[k, j])).logpmf(v))


@each_model
def test_guides_take_gaps(model: Any, x: Tensor, options: Any, check_guides: Any) -> None:
    torch.set_default_dtype(torch.float64)
    check_guides(model, x, components=K, **options)


@pytest.mark.parametrize(("model", "x", "options"), [MODELS[2], MODELS[6]])
def test_nuts_takes_gaps(model: Any, x: Tensor, options: Any) -> None:
    torch.set_default_dtype(torch.float64)
    kernel = NUTS(config_enumerate(model), max_plate_nesting=1, max_tree_depth=2)
    mcmc = MCMC(kernel, num_samples=3, warmup_steps=2, disable_progbar=True)
    mcmc.run(x, K, **options)
    assert all(bool(draws.isfinite().all()) for draws in mcmc.get_samples().values())


@each_model
def test_the_data_keep_their_shape_and_can_be_drawn(model: Any, x: Tensor, options: Any) -> None:
    drawn = poutine.trace(poutine.uncondition(model)).get_trace(x, K, **options)
    sites = [name for name in drawn.nodes if name == "x" or name.startswith("x_")]
    shapes = {tuple(drawn.nodes[name]["value"].shape) for name in sites}
    assert shapes == {tuple(x.shape) if len(sites) == 1 else (N,)}
    assert not any(bool(drawn.nodes[name]["value"].double().isnan().any()) for name in sites)


def test_default_priors_come_from_the_observed_entries() -> None:
    x = gappy()
    ones = torch.ones(N, dtype=x.dtype)
    table = x.numpy()
    np.testing.assert_allclose(weighted_mean(x, ones), np.nanmean(table, 0), rtol=1e-12)
    variance = np.nanvar(table, 0, ddof=1)
    np.testing.assert_allclose(default_variance(x, ones, 1), variance, rtol=1e-12)
    scale = default_scale(x, ones, 1)
    np.testing.assert_allclose(scale.diagonal(), variance, rtol=1e-12)
    assert float(torch.linalg.eigvalsh(scale)[0]) > 0.0
    np.testing.assert_allclose(count_mean(x.abs(), ones), np.nanmean(np.abs(table), 0), rtol=1e-12)
    weights = torch.arange(N) % 3 + 1
    repeated = x.repeat_interleave(weights, 0)
    more = torch.ones(len(repeated), dtype=x.dtype)
    for of in (weighted_mean, count_mean):
        torch.testing.assert_close(of(x, weights.to(x.dtype)), of(repeated, more))
    for shared in (default_scale, default_variance):
        torch.testing.assert_close(shared(x, weights.to(x.dtype), K), shared(repeated, more, K))


def test_a_row_of_new_data_may_lack_a_column_where_parameters_are_known() -> None:
    # Predictions meet single rows: no prior can be scaled by them, and none is asked for.
    with dist.validation_enabled(False):
        for covariance in COVARIANCES:
            trace = poutine.trace(gaussian_mixture).get_trace(
                gappy()[1:2], K, covariance=covariance
            )
            assert torch.as_tensor(trace.nodes["locs"]["value"]).isfinite().all()
