"""Data frames as arguments: columns by name, words as codes, labels in every answer."""

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

from ember.inference import EM, SVI, Fit, Laplace, select
from ember.inference.inputs.categories import coded, holds_words, labels_of
from ember.inference.tables import read_table
from ember.models import (
    bernoulli_mixture,
    categorical_mixture,
    gaussian_mixture,
    latent_profile,
    linear_mixed_model,
    naive_bayes,
    poisson_mixture,
    regression_mixture,
)

RNG = np.random.default_rng(0)
CLASS = RNG.integers(0, 2, 90)
SEEN = pd.DataFrame(
    {
        "smokes": np.where(RNG.random(90) < np.where(CLASS, 0.8, 0.2), "yes", "no"),
        "town": pd.Categorical(RNG.choice(["a", "b", "c"], 90), categories=["c", "a", "b"]),
        "sport": RNG.random(90) < np.where(CLASS, 0.2, 0.9),
    }
)
SEEN.loc[4, "town"] = None
CODES = torch.tensor(
    np.stack([SEEN["smokes"] == "yes", SEEN["town"].cat.codes, SEEN["sport"]], 1).astype(float)
)
CODES[4, 1] = torch.nan
SCHOOL = RNG.choice(["north", "east", "south"], 60)
MARKS = pd.DataFrame({"mark": RNG.normal(size=60), "hours": RNG.normal(size=60), "school": SCHOOL})
MARKS["mark"] += MARKS["hours"] + np.where(SCHOOL == "north", 2.0, 0.0)
SCHOOL_CODES = torch.tensor(pd.factorize(MARKS["school"], sort=True)[0])


def same(one: Fit, other: Fit) -> bool:
    """Whether two fits are the same to the last bit."""
    return one.log_likelihood == other.log_likelihood and all(
        torch.equal(one.params[name], other.params[name]) for name in other.params
    )


# -- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "labels"),
    {
        "words": (["b", None, "a"], ("a", "b")),
        "categories": (pd.Categorical(["x", "z"], categories=["z", "y", "x"]), ("z", "x")),
        "yes and no": ([True, None, False], ("False", "True")),
        "numbers of years": (pd.Categorical([2001, 1999]), ("1999", "2001")),
    }.values(),
)
def test_labels_of_words(values: Any, labels: tuple[str, ...]) -> None:
    column = pd.Series(values)
    codes, found = coded(column)
    assert holds_words(column)
    assert found == labels == labels_of(column)
    back = [None if np.isnan(code) else labels[int(code)] for code in codes]
    assert back == [None if pd.isna(value) else str(value) for value in column]


@pytest.mark.parametrize(
    "values", [[1.0, 2.0], [True, False], pd.to_datetime(["2020-01-01"]), [1, "a"], [None, None]]
)
def test_what_holds_no_words(values: Any) -> None:
    assert not holds_words(pd.Series(values))


def test_a_table_of_words_is_one_of_codes() -> None:
    fit = EM(categorical_mixture, seed=0).fit(SEEN, components=2)
    assert same(fit, EM(categorical_mixture, seed=0).fit(CODES, components=2))
    assert fit.labels["town"] == ("c", "a", "b")
    assert fit.summary().loc["probs_1[0, 2]", "column"] == "town, b"
    assert "yes" in str(fit)


def test_labels_that_items_share_name_the_axis_of_levels() -> None:
    items = pd.DataFrame({"q1": SEEN["smokes"], "q2": SEEN["smokes"].to_numpy()[::-1]})
    fit = EM(categorical_mixture, seed=0).fit(items, components=2)
    assert fit.axes["probs"] == {1: ("q1", "q2"), 2: ("no", "yes")}


def test_labels_in_pictures() -> None:
    figure = EM(categorical_mixture, seed=0).fit(SEEN, components=2).plot()
    shown = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    assert shown[:5] == ["smokes = yes", "town = c", "town = a", "town = b", "sport = True"]


def test_new_rows_are_coded_as_the_old_ones() -> None:
    fit = EM(categorical_mixture, seed=0).fit(SEEN, components=2, levels=[2, 3, 2])
    some = SEEN.iloc[[7, 0]].astype({"town": object})  # alone they would have other codes
    torch.testing.assert_close(fit.log_prob(some), fit.log_prob()[[7, 0]])
    with pytest.raises(ValueError, match=r"column 'town' has the label 'd', .* 'c', 'a', 'b'"):
        fit.predict(some.assign(town="d"))


def test_parts_of_a_table_within_a_mapping() -> None:
    data = {"nominal": SEEN[["town"]], "binary": SEEN[["smokes"]]}
    codes = {"nominal": CODES[:, [1]], "binary": CODES[:, [0]]}
    fit = EM(latent_profile, seed=0).fit(data, components=2)
    assert same(fit, EM(latent_profile, seed=0).fit(codes, components=2))
    assert fit.labels == {"town": ("c", "a", "b"), "smokes": ("no", "yes")}


def test_known_classes_are_words() -> None:
    words = torch.tensor(RNG.poisson(np.where(CLASS[:, None], [1, 5, 2], [5, 1, 2]))).double()
    known = pd.Series(np.where(CLASS, "sport", "art"), dtype=object).where(RNG.random(90) < 0.4)
    codes = torch.tensor(known.map({"art": 0.0, "sport": 1.0}).to_numpy(dtype=float))
    fit = EM(naive_bayes, seed=0).fit(words, labels=known.rename("topic"), classes=2)
    assert same(fit, EM(naive_bayes, seed=0).fit(words, labels=codes, classes=2))
    assert fit.labels == {"topic": ("art", "sport")}


@pytest.mark.parametrize(
    ("fit", "match"),
    {
        "normal": (lambda: EM(gaussian_mixture).fit(SEEN, components=2), "'smokes' .* numbers"),
        "counts": (
            lambda: EM(poisson_mixture).fit(SEEN["town"].dropna(), components=2),
            "'town' holds words, and site 'x' takes numbers",
        ),
        "SVI": (lambda: SVI(gaussian_mixture, steps=1).fit(SEEN, components=2), "takes numbers"),
        "a covariate": (
            lambda: EM(regression_mixture).fit(
                MARKS["mark"], MARKS[["hours", "school"]], components=1
            ),
            "'school' holds words, and the model multiplies it; .* write a formula",
        ),
    }.values(),
)
def test_codes_are_no_numbers(fit: Callable[[], Fit], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        fit()


def test_two_labels_make_a_number() -> None:
    y, word = MARKS["mark"], pd.Series(np.where(MARKS["school"] == "north", "yes", "no"), name="n")
    fit = EM(regression_mixture, seed=0).fit(y, word, components=1)
    numbers = torch.tensor((word == "yes").to_numpy(dtype=float))
    assert same(fit, EM(regression_mixture, seed=0).fit(y, numbers, components=1))


# -- groups -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    {
        "series": {"groups": MARKS["school"]},
        "array": {"groups": SCHOOL},
        "name": {"groups": "school", "data": MARKS},
    }.values(),
    ids=["series", "array", "name"],
)
def test_groups_of_words(given: dict[str, Any]) -> None:
    y, x = ("mark", ["hours"]) if "data" in given else (MARKS["mark"], MARKS[["hours"]])
    fit = EM(linear_mixed_model).fit(y, X=x, **given)
    assert same(
        fit, EM(linear_mixed_model).fit(MARKS["mark"], MARKS[["hours"]], groups=SCHOOL_CODES)
    )
    assert fit.axes["group_effects"] == {0: ("east", "north", "south")}
    table = fit.posterior("group_effects").summary()
    assert list(table.index) == ["east", "north", "south"]
    assert table["mean"].idxmax() == "north"
    shown = [t.get_text() for axes in fit.plot().axes for t in axes.get_yticklabels()]
    assert {"east", "north", "south"} <= set(shown)


def test_levels_that_the_fit_has_not_seen_are_new() -> None:
    fit = EM(linear_mixed_model).fit("mark", groups={"school": "school"}, data=MARKS)
    new = fit.predictive(data=pd.DataFrame({"school": ["south", "west", "north", "up"]}))
    codes = fit.predictive(groups={"school": torch.tensor([2, 3, 1, 4])})
    assert torch.equal(new.mean, codes.mean)
    assert float(new.stddev[1]) == pytest.approx(float(new.stddev[3]))
    assert float(new.stddev[1]) > 1.1 * float(new.stddev[0])


def test_numbers_that_name_groups_are_levels() -> None:
    frame = MARKS.assign(school=MARKS["school"].map({"east": 101, "north": 205, "south": 999}))
    fit = EM(linear_mixed_model).fit("mark", X=["hours"], groups="school", data=frame)
    assert fit.params["group_variance"].dim() == 0
    assert fit.posterior("group_effects").summary().index.tolist() == ["101", "205", "999"]


# -- columns by name --------------------------------------------------------------------------


def test_columns_by_name_are_the_columns() -> None:
    kwargs = {"components": 2, "scale": "tied"}  # a word that is an option, not a column
    fit = EM(regression_mixture, seed=0).fit("mark", X=["hours"], data=MARKS, **kwargs)
    plain = EM(regression_mixture, seed=0).fit(MARKS["mark"], MARKS[["hours"]], **kwargs)
    assert same(fit, plain)
    assert fit.axes == plain.axes
    torch.testing.assert_close(fit.log_prob(data=MARKS.iloc[5:9]), fit.log_prob()[5:9])
    clusters = EM(gaussian_mixture, seed=0).fit(["mark", "hours"], data=MARKS, components=2)
    assert same(clusters, EM(gaussian_mixture, seed=0).fit(MARKS[["mark", "hours"]], components=2))


def test_a_table_that_was_read_with_its_words(tmp_path: Path) -> None:
    MARKS.to_csv(tmp_path / "marks.csv", index=False)
    table = read_table(tmp_path / "marks.csv", categories=True)
    fit = EM(linear_mixed_model).fit("mark", X=["hours"], groups="school", data=table)
    assert fit.axes["group_effects"] == {0: ("east", "north", "south")}
    with pytest.raises(TypeError, match="'school' holds words, and the model multiplies it"):
        EM(regression_mixture).fit("mark", X=["hours", "school"], data=table, components=1)


def test_by_place_and_weights_by_name() -> None:
    frame = MARKS.assign(n=1.0 + (np.arange(60) % 3))
    fit = EM(regression_mixture, seed=0).fit("mark", ["hours"], 2, frequency="n", data=frame)
    plain = EM(regression_mixture, seed=0).fit(
        MARKS["mark"], MARKS[["hours"]], 2, frequency=torch.tensor(frame["n"].to_numpy())
    )
    assert same(fit, plain)
    torch.testing.assert_close(fit.log_prob(data=frame), fit.log_prob())


def test_a_model_with_an_argument_data_keeps_it() -> None:
    def coins(data: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(data)):
            pyro.sample("heads", dist.Bernoulli(p), obs=data)

    fit = EM(coins).fit(data=pd.Series(["head", "tail", "head"], name="side"))
    assert fit.params["p"] == pytest.approx((1 + 1) / (3 + 2))  # of 'tail', the second label
    assert fit.labels == {"side": ("head", "tail")}


def test_steps_by_hand_and_other_methods_take_names() -> None:
    em, given = EM(regression_mixture, seed=0), {"X": ["hours"], "components": 1, "data": MARKS}
    assert "coefficients" in set(em.explain("mark", **given)["site"])
    params = em.initialise("mark", **given)
    assert em.e_step(params, "mark", **given).log_likelihood < 0
    assert Laplace(regression_mixture, seed=0).fit("mark", **given).recipe.names["X"] == ["hours"]


def test_a_sweep_over_options_beside_names() -> None:
    chosen = select(
        regression_mixture, "mark", X=["hours"], data=MARKS, components=[1],
        scale=["free", "tied"], em={"seed": 0, "tol": 1e-4}, folds=2,
    )  # fmt: skip
    assert set(chosen.options) == {"components", "scale"}
    assert chosen.table["held_out"].notna().all()
    assert not chosen.table["error"].any()


def test_a_file_keeps_labels_and_names(tmp_path: Path) -> None:
    fit = EM(linear_mixed_model).fit("mark", X=["hours"], groups="school", data=MARKS)
    fit.save(tmp_path / "marks.ember")
    again = Fit.load(tmp_path / "marks.ember", linear_mixed_model)
    assert again.labels == fit.labels == {"school": ("east", "north", "south")}
    new = MARKS.iloc[[3, 1]].drop(columns="mark")
    assert torch.equal(again.predictive(data=new).mean, fit.predictive(data=new).mean)


@pytest.mark.parametrize(
    ("args", "kwargs", "match"),
    {
        "no such column": (
            ("mark",), {"X": ["hour"], "data": MARKS}, "argument 'X' names 'hour', .* 'hours'",
        ),
        "no table": (("mark",), {"X": ["hours"]}, "argument 'y' is given as 'mark'; .* data="),
        "no frame": (("mark",), {"X": ["hours"], "data": {"mark": [1]}}, "takes the data frame"),
        "twice": (
            ("mark",), {"X": ["hours"], "data": MARKS[["mark", "hours", "hours"]]}, "several",
        ),
    }.values(),
)  # fmt: skip
def test_names_that_cannot_be_taken(args: Any, kwargs: Any, match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match) as error:
        EM(regression_mixture).fit(*args, components=1, **kwargs)
    assert "\n" not in str(error.value)


def test_a_row_without_a_group() -> None:
    gap = MARKS.assign(school=MARKS["school"].where(MARKS.index != 3))
    with pytest.raises(ValueError, match="column 'school' lacks 1 of its 60 entries"):
        EM(linear_mixed_model).fit("mark", groups="school", data=gap)


def test_a_fit_without_names_takes_no_table() -> None:
    fit = EM(bernoulli_mixture, seed=0).fit(SEEN[["smokes", "sport"]], components=1)
    with pytest.raises(ValueError, match="names no columns"):
        fit.predict(data=SEEN)


def test_words_where_the_fit_had_numbers() -> None:
    fit = EM(categorical_mixture, seed=0).fit(CODES[:, :2], components=2)
    with pytest.raises(ValueError, match=r"'smokes' holds words, and .* had numbers there"):
        fit.predict(SEEN[["smokes", "town"]])


def test_a_model_that_reads_columns_by_name() -> None:
    """A table comes to a model as one tensor; a dict of its columns does not."""
    table = pd.DataFrame({"y": [1.0, 2.0, 4.0, 3.0], "x": [0.0, 1.0, 2.0, 1.0]})

    def line(table: Any) -> None:
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Normal(slope * table["x"], 1.0), obs=table["y"])

    with pytest.raises(TypeError, match=r"reads a column by its name.*pass the columns by name"):
        EM(line, "mle").fit(table)
    fit = EM(line, "mle").fit(dict(table))
    assert float(fit.params["slope"]) == pytest.approx(13.0 / 6.0)
