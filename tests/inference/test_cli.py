"""The command prints tables, writes files, and answers every mistake with one sentence."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from ember.inference import EM
from ember.inference.command_line.main import main
from ember.inference.inputs.tables import air_quality, law_school_test, old_faithful, read_table
from ember.models import gaussian_mixture, item_response

FAITHFUL = str(Path(__file__).parents[1] / "reference" / "data" / "faithful.csv")
OWN = """
import pyro, torch
import pyro.distributions as dist

def mine(x, groups, spread=1.0):
    locs = pyro.sample("locs", dist.Normal(0.0, 10.0).expand([groups]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(groups)))
        pyro.sample("x", dist.Normal(locs[z], spread), obs=x[:, 0])

def broken(x):
    raise KeyError("oops")
"""

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    frame = pd.DataFrame(
        {"a": [0.1, 0.4, 0.2, 5.3, 5.9, 5.1], "b": [1, 2, 1, 8, 9, 9], "name": list("uvwxyz")}
    )
    frame.assign(gap=[1.0, float("nan"), 2.0, 3.0, 4.0, 5.0]).to_csv(
        tmp_path / "gap.csv", index=False
    )
    frame.assign(far=[1.0, float("inf"), 2.0, 3.0, 4.0, 5.0]).to_csv(
        tmp_path / "far.csv", index=False
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "bad.py").write_text("this is no python")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "words.csv").write_text("u,v\na,b\n")
    (tmp_path / "not.parquet").write_text("not a parquet file")
    return tmp_path / "t.csv"


def test_the_data_that_ship_are_the_reference_data() -> None:
    pd.testing.assert_frame_equal(old_faithful(), pd.read_csv(FAITHFUL).astype("float64"))
    air = pd.read_csv(FAITHFUL.replace("faithful", "airquality4")).astype("float64")
    pd.testing.assert_frame_equal(air_quality(), air)
    for section in (6, 7):
        answers = pd.read_csv(FAITHFUL.replace("faithful", f"lsat{section}")).astype("float64")
        pd.testing.assert_frame_equal(law_school_test(section), answers)
    with pytest.raises(ValueError, match="section=5 is not shipped"):
        law_school_test(5)


def test_abilities_are_written_with_their_standard_deviations(tmp_path: Path) -> None:
    data, out = FAITHFUL.replace("faithful", "lsat6"), tmp_path / "rows.csv"
    words = ["fit", data, "--model", "item_response", "--option", "model=rasch"]
    assert main([*words, "--output", str(out)]) == 0
    rows = pd.read_csv(out)
    fit = EM(item_response, seed=0).fit(law_school_test(6), model="rasch")
    assert rows["ability"].to_numpy() == pytest.approx(fit.predict().numpy(), abs=1e-5)
    sd = fit.posterior("ability").stddev.numpy()
    assert rows["ability_stddev"].to_numpy() == pytest.approx(sd, abs=1e-5)
    assert [*rows.columns[5:]] == ["ability", "ability_stddev"]


def test_fit_prints_the_report_and_writes_what_the_library_finds(
    tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "fit.json"
    assert main(["fit", FAITHFUL, "--components", "2", "--seed", "3", "--output", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("EM (MAP): converged")
    assert f"wrote {out}" in printed.err
    written = json.loads(out.read_text())
    fit = EM(gaussian_mixture, seed=3).fit(old_faithful(), components=2)
    assert written["log_posterior"] == pytest.approx(fit.log_posterior, rel=1e-12)
    for row, loc in zip(written["params"]["locs"], fit.params["locs"].tolist(), strict=True):
        assert row == pytest.approx(loc, rel=1e-9)
    assert written["history"][-1] == pytest.approx(fit.log_posterior)


def test_options_reach_the_model_and_the_method(table: Path, capsys: Captured) -> None:
    words = ["fit", str(table), "--components", "2", "--columns", "b, a", "--objective", "mle"]
    assert main([*words, "--option", "covariance=diag", "--restarts", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("EM (MLE)")
    x = torch.tensor(read_table(table, ["b", "a"]).to_numpy())
    fit = EM(gaussian_mixture, "mle", seed=0, restarts=2).fit(x, components=2, covariance="diag")
    assert f"{fit.log_likelihood:.6f}" in printed.out
    assert printed.err == ""


def test_columns_that_hold_no_numbers_are_left_out_and_said(table: Path, capsys: Captured) -> None:
    assert main(["fit", str(table), "--components", "1"]) == 0
    assert "left out (not numeric): 'name'" in capsys.readouterr().err


def test_a_model_of_ones_own_is_taken_from_its_file(table: Path, capsys: Captured) -> None:
    model = f"{table.parent / 'own.py'}:mine"
    words = ["fit", str(table), "--model", model, "--option", "groups=2", "--columns", "a"]
    assert main([*words, "--option", "spread=0.5"]) == 0
    assert "locs: [" in capsys.readouterr().out


def test_components_are_the_states_of_a_chain(table: Path, capsys: Captured) -> None:
    words = ["fit", str(table), "--model", "hidden_markov_poisson", "--columns", "b"]
    assert main([*words, "--components", "2"]) == 0
    assert "transition" in capsys.readouterr().out


def test_parquet_is_read_like_csv(table: Path) -> None:
    pytest.importorskip("pyarrow")
    frame = pd.read_csv(table).astype({"b": "Int64"})
    frame.to_parquet(table.with_suffix(".parquet"))
    pd.testing.assert_frame_equal(
        read_table(table.with_suffix(".parquet")), read_table(table), check_dtype=True
    )


def test_compare_prints_all_methods_and_draws_them(table: Path, capsys: Captured) -> None:
    out = table.parent / "compared.PNG"
    words = ["compare", FAITHFUL, "--components", "2", "--columns", "waiting", "--steps", "20"]
    assert main([*words, "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    for name in ("EM (MLE)", "EM (MAP)", "SVI (AutoDelta)", "SVI (AutoNormal)"):
        assert name in printed
    assert next(table.parent.glob("compared.*")).read_bytes().startswith(b"\x89PNG")


def test_gaps_in_a_table_are_missing_entries(table: Path, capsys: Captured) -> None:
    gappy = str(table.parent / "gap.csv")
    out = table.parent / "gap.png"
    assert main(["fit", gappy, "--components", "1", "--output", str(out)]) == 0
    truth = EM(gaussian_mixture).fit(read_table(gappy), components=1).log_likelihood
    assert f"{truth:.6f}" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    two = ["compare", gappy, "--components", "1", "--columns", "a,gap", "--steps", "10"]
    assert main([*two, "--output", str(out)]) == 0


def test_the_demonstration_says_what_it_does(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "demo.png"
    assert main(["demo", "--steps", "20", "--output", str(out)]) == 0
    printed = capsys.readouterr()
    assert "-1130.2640" in printed.out  # the published maximum of the log likelihood
    assert f"wrote {out}" in printed.err
    assert out.read_bytes().startswith(b"\x89PNG")
    share = [line for line in printed.out.splitlines() if line.startswith("weights[0]")][-1]
    assert share.split()[2] == "0.0290891"  # its standard error


def test_a_fit_tells_how_sure_it_is(table: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "fit.json"
    words = ["fit", str(table), "--components", "1", "--errors", "--output", str(out)]
    assert main(words) == 0
    assert "std. error" in capsys.readouterr().out
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["standard_errors"]["weights"] == [0.0]
    lower, upper = written["intervals"]["locs"]
    assert lower[0][0] < written["params"]["locs"][0][0] < upper[0][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "none.csv", "--components", "2"], "there is no file none.csv"),
        (["fit", "t.txt", "--components", "2"], "neither a .csv nor a .parquet"),
        (["fit", "{}/empty.csv", "--components", "2"], "empty.csv is empty"),
        (["fit", "{}/words.csv", "--components", "2"], "holds no rows of numbers"),
        (["fit", "{}/not.parquet", "--components", "2"], "not.parquet cannot be read"),
        (["fit", "{}/far.csv", "--components", "2"], "infinite values in column 'far'"),
        (["fit", "{}/t.csv"], "needs 'components'; give it with --components N"),
        (
            ["fit", "{}/t.csv", "--components", "2", "--columns", "a,z"],
            "no column 'z'; its columns",
        ),
        (["fit", "{}/t.csv", "--components", "2", "--columns", "name"], "'name' of"),
        (["fit", "{}/t.csv", "--components", "9"], "more than the 6 rows"),
        (["fit", "{}/t.csv", "--components", "0"], "'0' is no whole number of at least 1"),
        (["fit", "{}/t.csv", "--components", "2", "--model", "gmm"], "there is no model 'gmm'"),
        (["fit", "{}/t.csv", "--model", "{}/none.py:f"], "there is no file"),
        (["fit", "{}/t.csv", "--model", "{}/own.py:f"], "has no function 'f'"),
        (["fit", "{}/t.csv", "--model", "{}/bad.py:f"], "cannot be imported: SyntaxError"),
        (["fit", "{}/t.csv", "--model", "{}/own.py:broken"], "oops"),
        (["fit", "{}/t.csv", "--model", "{}/own.py:mine"], "needs 'groups'; give it with --option"),
        (["fit", "{}/t.csv", "--components", "2", "--option", "colour=1"], "no option 'colour'"),
        (["fit", "{}/t.csv", "--components", "2", "--option", "colour"], "of the form key=value"),
        (["fit", "{}/t.csv", "--components", "2", "--option", "covariance=x"], "not 'x'"),
        (["fit", "{}/t.csv", "--components", "2", "--output", "a.pdf"], ".json or .png"),
        (["fit", "{}/t.csv", "--components", "2", "--output", "/none/a.png"], "no folder /none"),
        (["fit", "{}/t.csv", "--objective", "best"], "invalid choice: 'best'"),
        (["fit", "{}/t.csv", "--colour"], "unrecognized arguments: --colour"),
        (["compare", "{}/t.csv", "--components", "9"], "more than the 6 rows"),
        (["paint"], "invalid choice: 'paint'"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(
    words: list[str], message: str, table: Path, capsys: Captured
) -> None:
    words = [word.replace("{}", str(table.parent)) for word in words]
    try:
        code = main(words)
    except SystemExit as end:  # argparse's own way to end
        code = int(str(end.code))
    printed = capsys.readouterr()
    assert code == 2
    assert message in printed.err
    errors = [line for line in printed.err.splitlines() if not line.startswith("left out")]
    assert len(errors) == 1
    assert errors[0].startswith("ember: error: ")
    assert printed.out == ""


def test_help_has_examples_and_the_version_is_told(capsys: Captured) -> None:
    for words, expected in ((["--help"], "ember compare faithful.csv"), (["--version"], "ember ")):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
        assert expected in capsys.readouterr().out
    assert main([]) == 2
    assert "ember fit faithful.csv" in capsys.readouterr().err


def test_a_column_of_frequencies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notices.csv"
    path.write_text("deaths,days\n0,162\n1,267\n2,271\n3,185\n4,111\n5,61\n6,27\n7,8\n8,3\n9,1\n")
    command = ["fit", str(path), "--model", "poisson_mixture", "--components", "2"]
    assert main([*command, "--objective", "mle", "--frequency", "days"]) == 0
    assert "-1989.9458" in capsys.readouterr().out
    assert main([*command, "--frequency", "weeks"]) == 2
    assert "'weeks'" in capsys.readouterr().err
    assert main([*command, "--option", "components=3"]) == 2
    assert "disagree" in capsys.readouterr().err
    chain = ["fit", str(path), "--model", "hidden_markov_poisson", "--components", "2"]
    assert main([*chain, "--columns", "deaths", "--frequency", "days"]) == 2
    assert "`frequency` weighs whole sequences" in capsys.readouterr().err


EUROPEAN = "länge;gewicht;ort;neu\n" + "".join(
    f"{0.5 + i % 2 * 4 + 0.01 * i:.2f};{1000 + i % 2 * 900 + 3 * i:.1f};".replace(".", ",")
    + f"{'Nord' if i % 3 else 'Süd'};{i % 2 == 0}\n"
    for i in range(24)
)


@pytest.fixture
def european(tmp_path: Path) -> Path:
    path = tmp_path / "eu.csv"
    path.write_text(EUROPEAN, encoding="latin-1")
    return path


def test_a_european_file_is_fitted_as_its_translation_is(european: Path, capsys: Captured) -> None:
    words = ["fit", str(european), "--components", "2", "--columns", "länge,gewicht"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    x = pd.read_csv(european, sep=";", decimal=",", encoding="latin-1")[["länge", "gewicht"]]
    fit = EM(gaussian_mixture, seed=0).fit(x, components=2)
    assert f"{fit.log_likelihood:.6f}" in printed
    assert "länge" in printed
    assert f"{fit.bic:.6f}" in printed
    assert main([*words, "--sep", ";", "--decimal", ","]) == 0
    assert f"{fit.log_likelihood:.6f}" in capsys.readouterr().out
    assert main([*words, "--decimal", "."]) == 2
    assert "'0,50' in row 1" in capsys.readouterr().err
    assert main(["compare", *words[1:], "--steps", "5"]) == 0
    assert "locs[0, gewicht]" in capsys.readouterr().out


def test_a_file_without_names_keeps_its_first_row(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "t.csv"
    path.write_text("3.1,79\n1.8,54\n3.3,74\n2.3,62\n4.5,85\n")
    assert main(["fit", str(path), "--components", "1"]) == 0
    printed = capsys.readouterr()
    assert "5 observations" in printed.out
    assert "x1" in printed.out
    assert "read as data" in printed.err
    assert main(["fit", str(path), "--components", "1", "--header"]) == 0
    assert "4 observations" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_are_written_with_their_states(european: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    out = european.parent / f"rows.{suffix}"
    words = ["fit", str(european), "--components", "2", "--columns", "länge,gewicht"]
    assert main([*words, "--output", str(out)]) == 0
    rows = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    assert list(rows.columns[:4]) == ["länge", "gewicht", "ort", "neu"]
    x = read_table(european, ["länge", "gewicht"])
    fit = EM(gaussian_mixture, seed=0).fit(x, components=2)
    assert rows["assignment"].tolist() == fit.predict().tolist()
    probs = rows[["assignment_probability_0", "assignment_probability_1"]].to_numpy()
    assert probs == pytest.approx(fit.posterior("assignment").probs.numpy())


def test_words_are_categories_where_a_model_takes_them(european: Path, capsys: Captured) -> None:
    words = ["fit", str(european), "--model", "categorical_mixture", "--components", "2"]
    assert main([*words, "--columns", "ort,neu", "--output", str(european.parent / "f.json")]) == 0
    printed = capsys.readouterr().out
    assert "ort: 0 = Nord, 1 = Süd" in printed
    written = json.loads((european.parent / "f.json").read_text(encoding="utf-8"))
    assert written["labels"] == {"ort": ["Nord", "Süd"]}
    assert written["columns"] == ["ort", "neu"]
    yes = ["fit", str(european), "--model", "bernoulli_mixture", "--components", "1"]
    assert main([*yes, "--columns", "ort,neu"]) == 0
    assert "0 = Nord, 1 = Süd" in capsys.readouterr().out
    assert main(["fit", str(european), "--components", "2", "--columns", "ort"]) == 2
    assert "column 'ort'" in capsys.readouterr().err


def test_a_regression_takes_its_response_by_name(european: Path, capsys: Captured) -> None:
    words = ["fit", str(european), "--model", "regression_mixture", "--components", "1"]
    words += ["--columns", "länge,gewicht"]
    assert main([*words, "--response", "gewicht"]) == 0
    assert "intercept" in capsys.readouterr().out
    for more, message in (
        ([], "give it with --response COLUMN"),
        (["--response", "ort"], "'ort'"),
        (["--response", "x"], "no column 'x'"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["fit", str(european), "--components", "2", "--response", "länge"]) == 2
    assert "is no regression" in capsys.readouterr().err


def test_a_missing_file_is_reported_first(capsys: Captured) -> None:
    assert main(["fit", "none.csv", "--model", "nothing", "--output", "a.pdf"]) == 2
    assert "there is no file none.csv" in capsys.readouterr().err


def test_the_data_are_not_overwritten(european: Path, capsys: Captured) -> None:
    assert main(["fit", str(european), "--components", "1", "--output", str(european)]) == 2
    assert "is the file of the data" in capsys.readouterr().err
    assert european.read_text(encoding="latin-1") == EUROPEAN
