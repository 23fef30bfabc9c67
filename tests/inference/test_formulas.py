"""Formulas: the same fits as arrays give, new tables encoded alike, clear refusals."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.inference import EM, Fit, select
from ember.inference.inputs.bars import parse
from ember.models import (
    gaussian_mixture,
    generalised_linear_mixed_model,
    linear_mixed_model,
    regression_mixture,
    student_t_regression,
)

pytest.importorskip("formulaic")
Load = Callable[[str], pd.DataFrame]
RNG = np.random.default_rng(1)
TABLE = pd.DataFrame(
    {
        "y": RNG.normal(size=48),
        "x": RNG.normal(size=48),
        "z": RNG.normal(size=48),
        "sex": RNG.choice(["f", "m"], 48),
        "dose": pd.Categorical(
            RNG.choice(["low", "mid", "high"], 48), categories=["low", "mid", "high"]
        ),
        "school": np.repeat(["n", "s", "e", "w"], 12),
        "form": np.tile(np.repeat(["a", "b", "c"], 4), 4),
    }
)
TABLE["y"] += TABLE["x"] + np.where(TABLE["school"] == "n", 1.5, 0.0)


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(values, dtype=float))


def codes(*columns: str) -> torch.Tensor:
    return torch.tensor(TABLE.groupby(list(columns), sort=True).ngroup().to_numpy())


Y, X = tensor(TABLE["y"]), tensor(TABLE[["x"]])
ONES = torch.ones(48, 1, dtype=torch.float64)
MALE = tensor(TABLE["sex"] == "m").unsqueeze(-1)
DOSE = tensor(pd.get_dummies(TABLE["dose"])[["mid", "high"]])
SCHOOL, FORM = codes("school"), codes("school", "form")
PLAIN: dict[str, dict[str, Any]] = {
    "y ~ x": {"X": X},
    "y ~ 0 + x": {"X": X, "intercept": False},
    "y ~ 1": {"X": None},
    "y ~ x + sex + dose": {"X": torch.cat([X, MALE, DOSE], 1)},
    "y ~ x * sex": {"X": torch.cat([X, MALE, X * MALE], 1)},
    "y ~ np.exp(x) + I(x ** 2)": {"X": tensor([np.exp(TABLE["x"]), TABLE["x"] ** 2]).T},
}
MIXED: dict[str, dict[str, Any]] = {
    "y ~ x + (1 | school)": {"X": X, "groups": {"school": SCHOOL}},
    "y ~ (1 | school)": {"groups": {"school": SCHOOL}},
    "y ~ x + (1 + x | school)": {
        "X": X, "groups": {"school": SCHOOL}, "design": {"school": torch.cat([ONES, X], 1)},
    },
    "y ~ x + (x || school)": {
        "X": X, "groups": {"school": SCHOOL}, "design": {"school": torch.cat([ONES, X], 1)},
        "correlated": False,
    },
    "y ~ x + (0 + x | school)": {
        "X": X, "groups": {"school": SCHOOL}, "design": {"school": X},
    },
    "y ~ (1 | sex) + x + (1|dose)": {
        "X": X, "groups": {"sex": codes("sex"), "dose": tensor(TABLE["dose"].cat.codes)},
    },
    "y ~ x + (1 | school/form)": {
        "X": X, "groups": {"school": SCHOOL, "school_form": FORM},
    },
    "y ~ x + (1 | school:form)": {"X": X, "groups": {"school_form": FORM}},
    "y ~ x + (1 | school) + (0 + x | school)": {
        "X": X, "groups": {"school": SCHOOL, "school_2": SCHOOL}, "design": {"school_2": X},
    },
}  # fmt: skip


def same(one: Fit, other: Fit) -> bool:
    """Whether two fits are the same to the last bit."""
    assert one.params.keys() == other.params.keys()
    return one.log_likelihood == other.log_likelihood and all(
        torch.equal(one.params[name], other.params[name]) for name in other.params
    )


# -- fits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("formula", PLAIN)
def test_a_formula_is_its_matrix(formula: str) -> None:
    fit = EM(regression_mixture, seed=0).fit(formula, data=TABLE, components=1)
    assert same(fit, EM(regression_mixture, seed=0).fit(Y, components=1, **PLAIN[formula]))


@pytest.mark.parametrize("formula", MIXED)
def test_bars_are_groups_and_designs(formula: str) -> None:
    fit = EM(linear_mixed_model, max_iter=5, tol=0).fit(formula, data=TABLE)
    assert same(fit, EM(linear_mixed_model, max_iter=5, tol=0).fit(Y, **MIXED[formula]))


def test_other_models_take_formulas() -> None:
    fit = EM(student_t_regression, seed=0).fit("y ~ x + dose", data=TABLE, df=5.0)
    plain = EM(student_t_regression, seed=0).fit(Y, torch.cat([X, DOSE], 1), df=5.0)
    assert same(fit, plain)


def test_generalised_mixed_models_take_formulas() -> None:
    fit = EM(generalised_linear_mixed_model, "mle").fit("sex ~ x + (1 | school)", data=TABLE)
    groups = {"school": SCHOOL}
    plain = EM(generalised_linear_mixed_model, "mle").fit(MALE[:, 0], X, groups=groups)
    assert same(fit, plain)
    assert fit.axes["coefficients"] == {0: ("intercept", "x")}
    assert list(fit.posterior("school_effects").summary().index) == ["e", "n", "s", "w"]
    slopes = EM(generalised_linear_mixed_model, max_iter=1, tol=0).fit(
        "sex ~ x + (1 + x | school)", data=TABLE
    )
    assert slopes.axes["school_precision"] == {0: ("intercept", "x"), 1: ("intercept", "x")}


def test_a_response_of_words_and_a_computed_one() -> None:
    fit = EM(regression_mixture, seed=0).fit("sex ~ x", data=TABLE, components=1, family="logistic")
    plain = EM(regression_mixture, seed=0).fit(MALE[:, 0], X, components=1, family="logistic")
    assert same(fit, plain)
    assert fit.labels == {"sex": ("f", "m")}
    computed = EM(regression_mixture, seed=0).fit("np.exp(y) ~ x", data=TABLE, components=1)
    assert same(
        computed, EM(regression_mixture, seed=0).fit(tensor(np.exp(TABLE["y"])), X, components=1)
    )


def test_statsmodels_finds_the_same_effects(reference_data: Load) -> None:
    mixed = pytest.importorskip("statsmodels.formula.api").mixedlm
    sleep = reference_data("sleepstudy")
    theirs = mixed("Reaction ~ Days", sleep, groups="Subject", re_formula="~ Days").fit(reml=False)
    fit = EM(linear_mixed_model, "mle").fit("Reaction ~ Days + (1 + Days | Subject)", data=sleep)
    assert fit.log_likelihood == pytest.approx(float(theirs.llf), rel=1e-6)
    ours = fit.summary().loc[["coefficients[0]", "coefficients[1]"]].set_index("column")
    assert ours.loc["intercept", "estimate"] == pytest.approx(theirs.params["Intercept"], rel=1e-5)
    assert ours.loc["Days", "estimate"] == pytest.approx(theirs.params["Days"], rel=1e-5)
    effects = fit.posterior("Subject_effects").summary()["mean"]
    for subject in (308, 372):
        wanted = theirs.random_effects[subject]
        assert effects[str(subject), "intercept"] == pytest.approx(wanted.iloc[0], rel=1e-2)
        assert effects[str(subject), "Days"] == pytest.approx(wanted.iloc[1], rel=1e-2)


def test_terms_name_the_coefficients() -> None:
    fit = EM(linear_mixed_model).fit("y ~ x + sex + dose + (1 + x | school)", data=TABLE)
    named = ("intercept", "x", "sex[T.m]", "dose[T.mid]", "dose[T.high]")
    assert fit.axes["coefficients"] == {0: named}
    assert fit.axes["school_effects"] == {0: ("e", "n", "s", "w"), 1: ("intercept", "x")}
    assert fit.axes["school_precision"] == {0: ("intercept", "x"), 1: ("intercept", "x")}
    nested = EM(linear_mixed_model).fit("y ~ x + (1 | school/form)", data=TABLE)
    assert nested.axes["school_form_effects"][0][:4] == ("e:a", "e:b", "e:c", "n:a")


# -- new tables -------------------------------------------------------------------------------


@given(rows=st.lists(st.integers(0, 47), min_size=1, max_size=6))
@settings(max_examples=8, deadline=None)
def test_new_rows_are_encoded_as_the_old_ones(rows: list[int]) -> None:
    fit, new = FIT(), TABLE.iloc[rows]
    torch.testing.assert_close(fit.log_prob(data=new), fit.log_prob()[rows])


def FIT() -> Fit:
    if not _FITS:
        formula = "y ~ center(x) + dose + sex:z"  # the centre is that of the fit
        _FITS.append(EM(regression_mixture, seed=0).fit(formula, data=TABLE, components=2))
    return _FITS[0]


_FITS: list[Fit] = []


def test_predictions_need_no_response_and_may_have_new_groups() -> None:
    fit = EM(linear_mixed_model).fit("y ~ x + dose + (1 | school)", data=TABLE)
    new = TABLE.iloc[[0, 30, 5]].drop(columns="y").assign(school=["n", "e", "new"])
    known = {"X": torch.cat([X, DOSE], 1)[[0, 30, 5]], "groups": {"school": tensor([1, 0, 4])}}
    torch.testing.assert_close(fit.predictive(data=new).mean, fit.predictive(**known).mean)
    with pytest.raises(ValueError, match="reads 'y'"):
        fit.log_prob(data=new)


def test_gaps_in_the_response_stay_gaps() -> None:
    gaps = TABLE.assign(y=TABLE["y"].where(TABLE.index % 7 != 0))
    fit = EM(linear_mixed_model).fit("y ~ x + (1 | school)", data=gaps)
    plain = EM(linear_mixed_model).fit(tensor(gaps["y"]), X, groups={"school": SCHOOL})
    assert same(fit, plain)


def test_a_sweep_takes_a_formula() -> None:
    chosen = select(regression_mixture, "y ~ x", data=TABLE, components=[1, 2], em={"seed": 0})
    assert set(chosen.options) == {"components"}
    assert chosen.best.recipe.text == "y ~ x"


def test_a_file_keeps_the_text_but_runs_no_code(tmp_path: Path) -> None:
    path, formula = tmp_path / "fit.ember", "y ~ center(x) + (1 | school)"
    fit = EM(linear_mixed_model).fit(formula, data=TABLE)
    fit.save(path)
    again = Fit.load(path, linear_mixed_model)
    assert again.labels == fit.labels
    with pytest.raises(ValueError, match=r"a formula is code, .* 'y ~ center\(x\) \+ \(1 \| s"):
        again.predictive(data=TABLE)
    again = Fit.load(path, linear_mixed_model, formula, data=TABLE)
    new = TABLE.iloc[:3]
    assert torch.equal(again.predictive(data=new).mean, fit.predictive(data=new).mean)


# -- refusals ---------------------------------------------------------------------------------


GAP = TABLE.assign(x=TABLE["x"].where(TABLE.index != 2), form=TABLE["form"].where(TABLE["x"] < 2))
GAP.loc[3, "form"] = None


@pytest.mark.parametrize(
    ("model", "formula", "table", "match"),
    [
        (regression_mixture, "y ~ w", TABLE, "'w' is neither a column nor a function .* 'y', 'x'"),
        (regression_mixture, "w ~ x", TABLE, "reads 'w', which the table does not have"),
        (regression_mixture, "y ~ x", GAP, "column 'x' lacks 1 of its 48 entries"),
        (regression_mixture, "y ~ x + (1 | school)", TABLE, r"has no groups; leave out \(1 \| s"),
        (gaussian_mixture, "y ~ x", TABLE, "no argument X .* name columns instead"),
        (linear_mixed_model, "y ~ x", TABLE, r"needs groups; add a term such as \(1 \| group\)"),
        (linear_mixed_model, "y ~ (1 | form)", GAP, "column 'form' lacks .* needs its group"),
        (linear_mixed_model, "y ~ (1 | town)", TABLE, "reads 'town'"),
        (linear_mixed_model, "y ~ (x || school) + (x | form)", TABLE, "all single or all double"),
        (linear_mixed_model, "y ~ x * (1 | school)", TABLE, "a term of its own"),
        (linear_mixed_model, "y ~ x + 1 | school", TABLE, "stand in parentheses"),
        (linear_mixed_model, "y ~ (1 | C(school))", TABLE, "stand columns"),
        (linear_mixed_model, "y ~ (1 | school | form)", TABLE, "more than one bar"),
        (linear_mixed_model, "y ~ (1 | school", TABLE, "without its other"),
        (regression_mixture, "y ~ x ~ z", TABLE, "not of the form 'response ~ terms'"),
        (regression_mixture, "y + z - y*z ~ x", TABLE, "responses"),
        (regression_mixture, "y ~ x +", TABLE, "insuf"),
    ],
)
def test_formulas_that_are_refused(model: Any, formula: str, table: Any, match: str) -> None:
    kwargs = {} if model is linear_mixed_model else {"components": 1}
    with pytest.raises(ValueError, match=match) as error:
        EM(model).fit(formula, data=table, **kwargs)
    assert "\n" not in str(error.value)


def test_a_category_that_the_fit_has_not_seen() -> None:
    fit = EM(regression_mixture, seed=0).fit("y ~ dose + C(form)", data=TABLE, components=1)
    with pytest.raises(ValueError, match=r"column 'dose' has the label 'none', .* 'low', 'mid'"):
        fit.log_prob(data=TABLE.assign(dose="none"))
    with pytest.raises(ValueError, match=r"the data of the fit did not: \{'d'\}"):
        fit.log_prob(data=TABLE.assign(form="d"))


def test_what_the_formula_says_is_not_said_again() -> None:
    with pytest.raises(ValueError, match="says already what 'X' is"):
        EM(regression_mixture).fit("y ~ x", X=X, data=TABLE, components=1)
    with pytest.raises(ValueError, match="are passed by name"):
        EM(regression_mixture).fit("y ~ x", 2, data=TABLE)
    with pytest.raises(ValueError, match="pass the table with its columns too"):
        EM(regression_mixture).fit("y ~ x", components=1)


def test_without_formulaic_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "formulaic", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-ember\[formula\]'"):
        EM(regression_mixture).fit("y ~ x", data=TABLE, components=1)


# -- the text ---------------------------------------------------------------------------------


def test_functions_and_quotes_are_no_bars() -> None:
    found = parse("`my y` ~ C(a, Treatment('b|c')) + (x + z) * w + (1 | `the group`) - 1")
    assert found.response == "`my y`"
    assert "".join(found.fixed.split()) == "C(a,Treatment('b|c'))+(x+z)*w-1"
    assert [bar.columns for bar in found.bars] == [("the group",)]
