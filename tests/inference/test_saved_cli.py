"""The command saves fits, shows them again, and asks them about new tables."""

import json
from pathlib import Path

import pandas as pd
import pytest

from ember.inference import EM, Fit
from ember.inference.command_line.main import main
from ember.inference.tables import old_faithful
from ember.models import categorical_mixture, gaussian_mixture

FAITHFUL = str(Path(__file__).parents[1] / "reference" / "data" / "faithful.csv")
Captured = pytest.CaptureFixture[str]
OWN = """
import pyro, torch
import pyro.distributions as dist

def mine(x):
    locs = pyro.sample("locs", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x[:, 0])
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    place = ["Nord", "Nord", "Süd", "Süd", "Nord", "Süd"]
    frame = {"a": [0.1, 0.4, 0.2, 5.3, 5.9, 5.1], "b": [1, 2, 1, 8, 9, 9], "place": place}
    pd.DataFrame(frame).to_csv(path, index=False)
    (tmp_path / "own.py").write_text(OWN)
    return path


def run(capsys: Captured, *words: object, code: int = 0) -> str:
    """What a command prints, or the sentence with which it ends."""
    assert main([str(word) for word in words]) == code
    printed = capsys.readouterr()
    return printed.out if code == 0 else printed.err


@pytest.mark.parametrize("without", [(), ("--without-data",)])
def test_a_saved_fit_shows_its_report_and_predicts(
    tmp_path: Path, capsys: Captured, without: tuple[str, ...]
) -> None:
    path = tmp_path / "faithful.ember"
    report = run(capsys, "fit", FAITHFUL, "--components", "2", "--save", path, *without)
    assert run(capsys, "show", path) == report
    new = old_faithful().iloc[:5, ::-1].assign(other="word")
    new.to_csv(tmp_path / "new.csv", index=False)
    run(capsys, "predict", path, tmp_path / "new.csv", "--output", tmp_path / "rows.csv")
    rows = pd.read_csv(tmp_path / "rows.csv")
    fit = EM(gaussian_mixture, seed=0).fit(old_faithful(), components=2)
    assert rows.columns[:4].tolist() == ["waiting", "eruptions", "other", "assignment"]
    assert rows["assignment"].tolist() == fit.predict()[:5].tolist()
    assert rows["log_prob"].tolist() == pytest.approx(fit.log_prob()[:5].tolist(), rel=1e-12)
    probs = fit.posterior("assignment").probs[:5, 1]
    assert rows["assignment_probability_1"].tolist() == pytest.approx(probs.tolist(), rel=1e-12)
    printed = run(capsys, "predict", path, tmp_path / "new.csv")
    assert printed == (tmp_path / "rows.csv").read_text()


def test_show_writes_what_fit_writes(tmp_path: Path, capsys: Captured) -> None:
    saved = tmp_path / "f.ember"
    words = ["fit", FAITHFUL, "--components", "2", "--save", saved]
    run(capsys, *words, "--output", tmp_path / "one.json")
    run(capsys, "show", saved, "--output", tmp_path / "two.json")
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one == two
    run(capsys, "show", saved, "--output", tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")


def test_a_fit_that_python_saved_predicts(tmp_path: Path, capsys: Captured) -> None:
    fit = EM(gaussian_mixture, seed=0).fit(old_faithful()[["waiting"]], components=2)
    fit.save(tmp_path / "f.ember")
    printed = run(capsys, "predict", tmp_path / "f.ember", FAITHFUL)
    assert printed.splitlines()[1].split(",")[2] == str(int(fit.predict()[0]))


def test_words_keep_their_codes(table: Path, capsys: Captured) -> None:
    saved, new = table.parent / "f.ember", table.parent / "new.csv"
    words = ["fit", table, "--model", "categorical_mixture", "--components", "1"]
    run(capsys, *words, "--columns", "place", "--save", saved)
    assert "0 = Nord, 1 = Süd" in run(capsys, "show", saved)
    new.write_text('place\nSüd\n""\nSüd\n')
    rows = run(capsys, "predict", saved, new).splitlines()
    fit = Fit.load(saved, categorical_mixture)
    assert float(rows[1].split(",")[-1]) == pytest.approx(float(fit.log_prob()[2]))
    new.write_text("place\nOst\n")
    assert "label 'Ost', which the data of the fit did not" in run(
        capsys, "predict", saved, new, code=2
    )


def test_regressions_and_single_columns(table: Path, capsys: Captured) -> None:
    saved = table.parent / "f.ember"
    words = ["fit", table, "--model", "regression_mixture", "--components", "1"]
    run(capsys, *words, "--columns", "a", "--response", "b", "--save", saved)
    assert run(capsys, "predict", saved, table).startswith("a,b,place,")
    chain = ["fit", table, "--model", "hidden_markov_poisson", "--components", "2"]
    run(capsys, *chain, "--columns", "b", "--save", saved)
    printed = run(capsys, "predict", saved, table).splitlines()
    assert printed[0] == "a,b,place,state,state_probability_0,state_probability_1"
    assert len(printed) == 7


def test_a_model_of_ones_own_is_run_only_if_it_is_named(table: Path, capsys: Captured) -> None:
    saved, own = table.parent / "f.ember", f"{table.parent / 'own.py'}:mine"
    run(capsys, "fit", table, "--model", own, "--columns", "a", "--save", saved)
    for words in (["show", saved], ["predict", saved, table]):
        said = run(capsys, *words, code=2)
        assert "a fit of 'mine', which is no ready model; give yours with --model" in said
        run(capsys, *words, "--model", own)
    said = run(capsys, "show", saved, "--model", "poisson_mixture", code=2)
    assert "'poisson_mixture' cannot be read with its arguments" in said


def test_mistakes_get_one_sentence(table: Path, capsys: Captured) -> None:
    saved = table.parent / "f.ember"
    fit = ["fit", table, "--components", "1", "--columns", "a,b", "--save"]
    assert "there is no folder" in run(capsys, *fit, "/none/f.ember", code=2)
    assert "is the file of the data" in run(capsys, *fit, table, code=2)
    run(capsys, *fit, saved)
    assert "there is no file" in run(capsys, "show", table.parent / "none.ember", code=2)
    assert "no fit" in run(capsys, "show", table, code=2)
    assert "there is no file" in run(capsys, "predict", saved, "none.csv", code=2)
    few = table.parent / "few.csv"
    few.write_text("a\n1\n2\n")
    assert "no column 'b'" in run(capsys, "predict", saved, few, code=2)
    output = ["--output", table.parent / "x.pdf"]
    assert ".csv or .parquet" in run(capsys, "predict", saved, table, *output, code=2)
    run(capsys, *fit, saved, "--without-data")
    picture = ["--output", table.parent / "x.png"]
    assert "saved without its data" in run(capsys, "show", saved, *picture, code=2)
