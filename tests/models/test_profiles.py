"""Latent profiles: sites, densities with missing entries, data frames, StepMix, errors."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pyro import poutine
from scipy import special, stats

from ember.inference import EM
from ember.models import bernoulli_mixture, gaussian_mixture, latent_profile, poisson_mixture
from ember.models.profiles import columns_by_kind

N, K = 40, 2


def table(missing: float = 0.2, rows: int = N) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    z = rng.random(rows) < 0.4
    three = np.array(["x", "y", "w"])
    frame = pd.DataFrame(
        {
            "a": np.where(z, 3.0, 0.0) + rng.normal(size=rows),
            "visits": rng.poisson(np.where(z, 1.0, 4.0)),
            "c": rng.random(rows) < np.where(z, 0.8, 0.2),
            "b": np.where(z, -1.0, 1.0) + 2.0 * rng.normal(size=rows),
            "d": rng.random(rows) < np.where(z, 0.7, 0.3),
            "e": three[np.where(z, rng.choice(3, rows), rng.choice(3, rows, p=[0.2, 0.7, 0.1]))],
        }
    ).astype({"visits": "Int64", "c": "boolean", "d": "boolean", "e": "category"})
    for name in frame.columns:
        frame.loc[rng.random(rows) < missing, name] = np.nan if name in "abe" else pd.NA
    return frame


def test_a_frame_is_sorted_by_dtype() -> None:
    frame = table()
    data = columns_by_kind(frame)
    shapes = {kind: tuple(x.shape) for kind, x in data.items()}
    assert shapes == {"continuous": (N, 2), "counts": (N, 1), "binary": (N, 2), "nominal": (N, 1)}
    for name, kind, column in [("b", "continuous", 1), ("visits", "counts", 0), ("d", "binary", 1)]:
        expected = frame[name].to_numpy(dtype=float, na_value=np.nan)
        np.testing.assert_array_equal(data[kind][:, column].numpy(), expected)
    codes = data["nominal"][:, 0]
    assert torch.equal(codes.isnan(), torch.tensor(frame["e"].isna().tolist()))
    assert [("w", "x", "y")[int(c)] for c in codes if c == c] == frame["e"].dropna().tolist()
    moved = columns_by_kind(frame[["visits", "a"]], {"visits": "nominal"})
    assert list(moved) == ["continuous", "nominal"]
    assert columns_by_kind(pd.DataFrame({"s": ["q", "p"]}))["nominal"].tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sites(dtype: torch.dtype, check_sites: Any) -> None:
    data = {kind: x.to(dtype) for kind, x in columns_by_kind(table()).items()}
    shapes: dict[str, tuple[int, ...]] = {"weights": (K,), "assignment": (N,)}
    shapes |= {"locs": (K, 2), "precisions": (K, 2), "continuous": (N, 2)}
    shapes |= {"rates": (K, 1), "counts": (N, 1), "probs": (K, 2), "binary": (N, 2)}
    shapes |= {"probs_0": (K, 4), "nominal_0": (N,)}
    check_sites(shapes, dtype, latent_profile, data, K, levels=4)


def test_it_runs_under_guides(check_guides: Any) -> None:
    data = {kind: x.float() for kind, x in columns_by_kind(table()).items()}
    check_guides(latent_profile, data, K)
    check_guides(latent_profile, {"nominal": data["nominal"]}, 1)


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_log_likelihood_is_the_sum_over_classes_of_what_is_there(
    missing: float, prior_draw: Any, log_likelihood: Any
) -> None:
    data = columns_by_kind(table(missing))
    params = prior_draw(latent_profile, data, K)
    ours = float(log_likelihood(latent_profile, params, data, K).detach())
    p = {name: value.numpy() for name, value in params.items()}
    x = {kind: value.numpy()[:, None] for kind, value in data.items()}
    codes = x["nominal"][..., 0]
    nominal = np.log(p["probs_0"].T[np.nan_to_num(codes[:, 0]).astype(int)])
    parts = [
        stats.norm(p["locs"], p["precisions"] ** -0.5).logpdf(x["continuous"]).transpose(2, 0, 1),
        stats.poisson(p["rates"]).logpmf(x["counts"]).transpose(2, 0, 1),
        stats.bernoulli(p["probs"]).logpmf(x["binary"]).transpose(2, 0, 1),
        np.where(np.isnan(codes), np.nan, nominal)[None],
    ]
    shown = np.nansum(np.concatenate(parts), 0)
    theirs = special.logsumexp(shown + np.log(p["weights"]), 1).sum()
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_default_priors_are_those_of_the_models_of_one_kind(log_joint: Any) -> None:
    frame = table(0.0)
    whole = columns_by_kind(frame)
    z = torch.arange(N) % K
    pairs: list[tuple[str, Any, dict[str, Any]]] = [
        ("continuous", gaussian_mixture, {"covariance": "diag"}),
        ("counts", poisson_mixture, {}),
        ("binary", bernoulli_mixture, {}),
    ]
    for kind, model, options in pairs:
        x = whole[kind]
        params = EM(model, seed=0).initialise(x, K, **options)
        values = {**params, "assignment": z}
        expected = log_joint(model, values, x, K, **options)
        assert float(log_joint(latent_profile, values, {kind: x}, K)) == pytest.approx(
            float(expected), rel=1e-12
        )


def test_missing_entries_do_not_move_the_default_priors() -> None:
    data = columns_by_kind(table(0.0))
    cut = {kind: x.clone() for kind, x in data.items()}
    for x in cut.values():
        x[30:] = torch.nan
    few = {kind: x[:30] for kind, x in data.items()}
    left: Any
    right: Any
    left, right = (poutine.trace(latent_profile).get_trace(d, K).nodes for d in (cut, few))
    for name, argument in [("precisions", "rate"), ("locs", "loc"), ("rates", "rate")]:
        ours, theirs = (getattr(side[name]["fn"].base_dist, argument) for side in (left, right))
        torch.testing.assert_close(ours, theirs)


def test_every_update_is_closed_and_the_fit_is_that_of_stepmix() -> None:
    stepmix = pytest.importorskip("stepmix.stepmix")
    data = columns_by_kind(table(0.15, 300))
    del data["counts"]  # which StepMix does not have
    em = EM(latent_profile, "mle", seed=0, tol=1e-12)
    explained = em.explain(data, K)
    assert set(explained[explained["role"] == "parameter"]["M-step"]) == {"closed form"}
    ours = em.fit(data, K)
    measurement = {
        "g": {"model": "gaussian_diag_nan", "n_columns": 2},
        "b": {"model": "binary_nan", "n_columns": 2},
        "n": {"model": "categorical_nan", "n_columns": 1},
    }
    theirs = stepmix.StepMix(
        K, measurement=measurement, n_init=2, max_iter=2000, abs_tol=1e-13, rel_tol=0,
        random_state=0, progress_bar=0,
    )  # fmt: skip
    columns = np.concatenate([x.numpy() for x in data.values()], 1)
    theirs.fit(columns)
    assert ours.log_likelihood == pytest.approx(len(columns) * theirs.score(columns), rel=1e-10)
    found = theirs.get_parameters()
    order = np.argsort(found["weights"]), ours.params["weights"].argsort()
    np.testing.assert_allclose(
        found["measurement"]["g"]["means"][order[0]], ours.params["locs"][order[1]], atol=1e-5
    )
    np.testing.assert_allclose(
        found["measurement"]["n"]["pis"][order[0]], ours.params["probs_0"][order[1]], atol=1e-5
    )


def test_frequency_is_repeated_rows_and_new_rows_are_predicted() -> None:
    data = columns_by_kind(table())
    frequency = torch.arange(N) % 3
    repeated = {kind: x.repeat_interleave(frequency, 0) for kind, x in data.items()}
    init = {"locs": torch.tensor([[3.0, -1.0], [0.0, 1.0]])}
    one = EM(latent_profile, init=init, seed=0).fit(data, K, frequency=frequency, levels=3)
    two = EM(latent_profile, init=init, seed=0).fit(repeated, K, levels=3)
    assert one.log_posterior == pytest.approx(two.log_posterior, rel=1e-9)
    new = {kind: x[:2] for kind, x in data.items()}
    torch.testing.assert_close(one.log_prob(new), one.log_prob()[:2])
    assert torch.equal(one.predict(new), one.predict()[:2])


GOOD = {"continuous": torch.tensor([[1.0], [2.0], [4.0]]), "binary": torch.tensor([[0], [1], [1]])}
NAN = torch.full((3, 1), torch.nan)

ERRORS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (torch.ones(3, 1), {}, TypeError, "columns_by_kind(frame)"),
    ({}, {}, ValueError, "`data` has no columns"),
    ({"reals": NAN}, {}, ValueError, "`data` has the unknown kind 'reals': pass one or more of"),
    ({"binary": [[1], [0]]}, {}, TypeError, "`data['binary']` must be a torch.Tensor, not list"),
    ({"counts": torch.ones(3)}, {}, ValueError, "`data['counts']` must have shape (N, D)"),
    ({"counts": torch.ones(3, 1) / 2}, {}, ValueError, "`data['counts']` must hold counts"),
    ({"binary": 2 * torch.ones(3, 1)}, {}, ValueError, "`data['binary']` must hold only 0 and 1"),
    ({**GOOD, "counts": NAN}, {}, ValueError, "`data['counts']` has no entry in column 0"),
    ({**GOOD, "counts": torch.ones(2, 1)}, {}, ValueError, "2 of counts"),
    ({"continuous": torch.ones(3, 1)}, {}, ValueError, "`data['continuous']` is constant in col"),
    (GOOD, {"components": 4}, ValueError, "`components=4` is more than the 3 rows of `data`"),
    (GOOD, {"prior": {"alpha": 1.0}}, ValueError, "`prior` has the unknown key 'alpha'"),
    (GOOD, {"frequency": [1.0]}, ValueError, "`frequency` must have shape (3,)"),
]


@pytest.mark.parametrize(("data", "options", "error", "message"), ERRORS)
def test_errors(data: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        latent_profile(data, **{"components": 2, **options})


def test_errors_of_frames() -> None:
    frame = pd.DataFrame({"t": pd.to_datetime(["2020-01-01", "2021-01-01"])})
    with pytest.raises(ValueError, match="column 't' has dtype datetime64"):
        columns_by_kind(frame)
    with pytest.raises(ValueError, match="`kinds` names 'u', which is no column"):
        columns_by_kind(frame, {"u": "counts"})
    with pytest.raises(ValueError, match="`kinds` says 'date' of 't'"):
        columns_by_kind(frame, {"t": "date"})
