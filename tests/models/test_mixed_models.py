"""Linear mixed models and the animal model: sites, densities by covariance matrices, errors."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy.stats import multivariate_normal
from torch import Tensor

from ember.models import animal_model, linear_mixed_model
from tests.inference.dense_gaussian import dense
from tests.models.gaussian_examples import DAY, DESIGN, GROUP, ITEM, KIN, Y, normal


def real(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def sites_of(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The sites of one run."""
    return poutine.trace(model).get_trace(*args, **kwargs).nodes


def shapes(model: Any, *args: Any, **kwargs: Any) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(site["value"].shape)
        for name, site in sites_of(model, *args, **kwargs).items()
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
    }


def log_density(y: Tensor, mean: Tensor, covariance: Tensor) -> float:
    return float(multivariate_normal(mean.numpy(), covariance.numpy()).logpdf(y.numpy()))


def incidence(codes: Tensor, levels: int) -> Tensor:
    return torch.nn.functional.one_hot(codes, levels).double()


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, {"group_variance": (), "group_effects": (4,)}),
        ({"design": DAY}, {"group_precision": (1, 1), "group_effects": (4, 1)}),
        ({"design": DESIGN}, {"group_precision": (2, 2), "group_effects": (4, 2)}),
        (
            {"design": DESIGN, "correlated": False},
            {"group_variances": (2,), "group_effects": (4, 2)},
        ),
        (
            {"groups": {"a": GROUP, "b": ITEM}, "design": {"b": DESIGN}},
            {"a_variance": (), "a_effects": (4,), "b_precision": (2, 2), "b_effects": (3, 2)},
        ),
    ],
)
def test_sites_of_a_mixed_model(kwargs: Any, expected: Any) -> None:
    found = shapes(linear_mixed_model, Y, DAY, **{"groups": GROUP, **kwargs})
    assert found == {"coefficients": (2,), "variance": (), "y": (24,), **expected}


def test_intercepts_are_as_asked_for() -> None:
    assert shapes(linear_mixed_model, Y, groups=GROUP)["coefficients"] == (1,)
    plain = shapes(linear_mixed_model, Y, DESIGN, groups=GROUP, intercept=False)
    assert plain["coefficients"] == (2,)


def test_correlated_slopes_are_a_marginal_normal() -> None:
    D, beta = real([[2.0, -0.3], [-0.3, 0.5]]), real([9.0, 1.5])
    params = {"coefficients": beta, "variance": real(0.8), "group_precision": torch.linalg.inv(D)}
    kwargs: dict[str, Any] = {"groups": GROUP, "design": DESIGN}
    found = dense(linear_mixed_model, ["group_effects"], params, Y, DAY, **kwargs)
    same = incidence(GROUP, 4) @ incidence(GROUP, 4).mT
    covariance = same * (DESIGN @ D @ DESIGN.mT) + 0.8 * torch.eye(24).double()
    expected = log_density(Y, DESIGN @ beta, covariance)
    assert float(found.log_evidence) == pytest.approx(expected, rel=1e-11)


def test_crossed_effects_are_a_marginal_normal() -> None:
    variances = {"a_variance": real(2.0), "b_variances": real([0.7, 0.2])}
    params = {"coefficients": real([9.0]), "variance": real(0.8), **variances}
    kwargs: dict[str, Any] = {
        "groups": {"a": GROUP, "b": ITEM},
        "design": {"b": DESIGN},
        "correlated": False,
    }
    found = dense(linear_mixed_model, ["a_effects", "b_effects"], params, Y, **kwargs)
    a, b = incidence(GROUP, 4), incidence(ITEM, 3)
    covariance = 2.0 * a @ a.mT + 0.8 * torch.eye(24).double()
    covariance = covariance + (b @ b.mT) * (0.7 + 0.2 * torch.outer(DAY, DAY))
    expected = log_density(Y, real(9.0).expand(24), covariance)
    assert float(found.log_evidence) == pytest.approx(expected, rel=1e-11)


def params_of(frequency: Any = None) -> dict[str, Tensor]:
    return {"coefficients": real([9.0, 1.0]), "variance": real(0.8), "group_variance": real(2.0)}


def test_gaps_are_rows_left_out() -> None:
    hidden = torch.arange(24) % 5 == 2
    gappy = torch.where(hidden, torch.nan, Y)
    both = []
    for y, day, group in ((gappy, DAY, GROUP), (Y[~hidden], DAY[~hidden], GROUP[~hidden])):
        found = dense(
            linear_mixed_model, ["group_effects"], params_of(), y, day, groups=group
        ).log_evidence
        sites = sites_of(linear_mixed_model, y, day, groups=group)
        scale = sites["coefficients"]["fn"].covariance_matrix
        both.append((float(found), scale, sites["variance"]["fn"].base_dist.rate))
    assert both[0][0] == pytest.approx(both[1][0], rel=1e-12)
    torch.testing.assert_close(both[0][1:], both[1][1:])


def test_frequencies_are_rows_repeated() -> None:
    frequency = 1.0 + (torch.arange(24) % 3).double()
    rows = torch.arange(24).repeat_interleave(frequency.long())
    one = dense(
        linear_mixed_model, ["group_effects"], params_of(), Y, DAY, groups=GROUP,
        frequency=frequency,
    )  # fmt: skip
    two = dense(
        linear_mixed_model, ["group_effects"], params_of(), Y[rows], DAY[rows], groups=GROUP[rows]
    )
    assert float(one.log_evidence) == pytest.approx(float(two.log_evidence), rel=1e-12)
    torch.testing.assert_close(one.mean("group_effects"), two.mean("group_effects"))
    weighed = sites_of(linear_mixed_model, Y, DAY, groups=GROUP, frequency=frequency)
    written = sites_of(linear_mixed_model, Y[rows], DAY[rows], groups=GROUP[rows])
    for site in ("coefficients", "variance", "group_variance"):
        value = written[site]["value"]
        expected = written[site]["fn"].log_prob(value)
        torch.testing.assert_close(weighed[site]["fn"].log_prob(value), expected)


def test_columns_of_the_design_may_be_mixed() -> None:
    """The default prior of correlated effects follows any change of the design's columns."""
    change = real([[1.0, 3.0], [0.0, 2.0**-8]])
    one, two = (
        sites_of(linear_mixed_model, Y, DAY, groups=GROUP, design=design)
        for design in (DESIGN, DESIGN @ change)
    )
    scale = [sites["group_precision"]["fn"].precision_matrix for sites in (one, two)]
    inverse = torch.linalg.inv(change)
    torch.testing.assert_close(scale[1], inverse @ scale[0] @ inverse.mT)


ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"y": Y.numpy()}, TypeError, "`y` must be a torch.Tensor, not ndarray"),
    ({"y": Y[:, None]}, ValueError, "`y` must have shape (N,), not (24, 1)"),
    ({"y": Y * torch.nan}, ValueError, "`y` has nothing but NaN"),
    ({"y": Y / 0}, ValueError, "`y` has 24 infinite value(s)"),
    ({"y": 0 * Y}, ValueError, "`y` is constant in column(s) 0"),
    ({"X": DAY[:5]}, ValueError, "`X` has 5 row(s) but `y` has 24"),
    ({"groups": GROUP[:5]}, ValueError, "`groups` has 5 row(s) but `y` has 24: pass one level"),
    ({"groups": GROUP - 1}, ValueError, "`groups` must hold level codes 0, 1"),
    ({"groups": [0, 1]}, TypeError, "`groups` must be a tensor of level codes (N,), or a mapping"),
    ({"groups": {"a": GROUP - 1}}, ValueError, "`groups['a']` must hold level codes"),
    ({"groups": {"a b": GROUP}}, ValueError, "`groups` has the name 'a b': names must be"),
    ({"groups": {"a": GROUP}, "design": DESIGN}, TypeError, "`design` must be a mapping from"),
    ({"design": {"group": DESIGN}}, ValueError, "`design` names grouping factors, but `groups`"),
    (
        {"groups": {"a": GROUP}, "design": {"b": DESIGN}},
        ValueError,
        "`design` names 'b', which `groups` has not: it has 'a'",
    ),
    ({"design": DESIGN[:5]}, ValueError, "`design` has 5 row(s) but `y` has 24"),
    ({"design": DESIGN / 0}, ValueError, "`design` has 48 NaN or infinite value(s)"),
    ({"prior": {"slope": 1.0}}, ValueError, "'df', 'scale', 'group_df', 'group_scale'"),
    ({"prior": {"group_scale": 0.0}}, ValueError, "prior['group_scale'] must be greater than 0"),
    (
        {"design": DESIGN, "prior": {"group_scale": -torch.eye(2)}},
        ValueError,
        "prior['group_scale'] must be symmetric and positive definite",
    ),
    ({"frequency": [1.0]}, ValueError, "`frequency` must have shape (24,)"),
]


@pytest.mark.parametrize(("changed", "error", "message"), ERRORS)
def test_errors_of_a_mixed_model(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        linear_mixed_model(**{"y": Y, "groups": GROUP, **changed})


# -- the animal model ------------------------------------------------------------------------------

ANIMAL = torch.arange(24) % 6


def test_sites_of_an_animal_model() -> None:
    found = shapes(animal_model, Y, DAY, relationship=KIN, animal=ANIMAL)
    expected = {
        "coefficients": (2,),
        "variance": (),
        "additive_variance": (),
        "heritability": (),
        "y": (24,),
    }
    assert found == {**expected, "breeding_values": (6,)}
    found = shapes(animal_model, Y, DAY, relationship=KIN, animal=ANIMAL, coordinates="non-centred")
    assert found == {**expected, "standard_values": (6,)}


@pytest.mark.parametrize("coordinates", ["centred", "non-centred"])
def test_breeding_values_are_a_marginal_normal(coordinates: str) -> None:
    params = {
        "coefficients": real([9.0, 1.0]),
        "variance": real(0.8),
        "additive_variance": real(1.7),
    }
    latent = "breeding_values" if coordinates == "centred" else "standard_values"
    kwargs: dict[str, Any] = {"relationship": KIN, "animal": ANIMAL, "coordinates": coordinates}
    found = dense(animal_model, [latent], params, Y, DAY, **kwargs)
    Z = incidence(ANIMAL, 6)
    covariance = 1.7 * Z @ KIN @ Z.mT + 0.8 * torch.eye(24).double()
    expected = log_density(Y, DESIGN @ params["coefficients"], covariance)
    assert float(found.log_evidence) == pytest.approx(expected, rel=1e-11)
    blup = 1.7 * KIN @ Z.mT @ torch.linalg.solve(covariance, Y - DESIGN @ params["coefficients"])
    mean = found.mean(latent)
    if coordinates == "non-centred":
        mean = 1.7**0.5 * torch.linalg.cholesky(KIN) @ mean
    np.testing.assert_allclose(mean, blup, rtol=1e-9)


def test_one_record_of_each_animal_needs_no_codes() -> None:
    assert shapes(animal_model, normal(9, 6), relationship=KIN)["breeding_values"] == (6,)


ANIMAL_ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"relationship": KIN.tolist()}, TypeError, "`relationship` must be a torch.Tensor"),
    ({"relationship": KIN[:3]}, ValueError, "`relationship` must be square and symmetric"),
    ({"relationship": torch.triu(KIN)}, ValueError, "must be square and symmetric"),
    ({"relationship": torch.ones(6, 6).double()}, ValueError, "must be positive definite: merge"),
    ({"relationship": KIN / 0}, ValueError, "`relationship` has 36 NaN or infinite value(s)"),
    ({"animal": None}, ValueError, "`y` has 24 record(s) of 6 animals: pass `animal`"),
    ({"animal": ANIMAL + 1}, ValueError, "`animal` has the code 6, but there are 6"),
    ({"animal": ANIMAL[:4]}, ValueError, "`animal` has 4 row(s) but `y` has 24"),
    ({"coordinates": "mean"}, ValueError, "`coordinates` must be one of 'centred', 'non-centred'"),
    ({"prior": {"rate": 1.0}}, ValueError, "'additive_df', 'additive_scale'"),
]


@pytest.mark.parametrize(("changed", "error", "message"), ANIMAL_ERRORS)
def test_errors_of_an_animal_model(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        animal_model(**{"y": Y, "relationship": KIN, "animal": ANIMAL, **changed})
