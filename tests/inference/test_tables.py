"""Tables are read in whatever dialect they were written, or refused in one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ember.inference.inputs.tables import read_table

ROWS = [[-1.25, 1234.5], [0.5, 987.25], [2.75, 10456.125], [1.0, 20.5]]


def written(value: float, decimal: str, group: str) -> str:
    return f"{value:,.3f}".replace(",", "G").replace(".", decimal).replace("G", group)


def read(path: Path, text: str | bytes, **options: Any) -> dict[str, list[float]]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    table = read_table(path, **options)
    return {str(name): table[name].tolist() for name in table}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize(
    ("sep", "decimal", "group"),
    [
        (";", ",", ""), (";", ",", "."), (";", ",", " "), (";", ".", ","), (";", ".", "'"),
        ("\t", ",", ""), ("\t", ".", ","), ("|", ",", "."), (" ", ",", "."), (" ", ".", ""),
        (",", ".", ""), (",", ".", " "),
    ],
)  # fmt: skip
def test_numbers_are_read_whatever_the_dialect(
    tmp_path: Path, sep: str, decimal: str, group: str, header: bool, encoding: str
) -> None:
    lines = [sep.join(written(v, decimal, group) for v in row) for row in ROWS]
    text = "\r\n".join([sep.join(["größe", "n"])] * header + lines) + "\r\n"
    found = read(tmp_path / "t.csv", text.encode(encoding))
    assert list(found) == (["größe", "n"] if header else ["x1", "x2"])
    np.testing.assert_array_equal(np.array(list(found.values())).T, ROWS)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("x\n1,5\n2,7\n3\n", {"x": [1.5, 2.7, 3.0]}),  # one column, decimal commas
        ('a,b\n"1,5","2"\n"2,5","3"\n', {"a": [1.5, 2.5], "b": [2, 3]}),  # in quotes
        ('a,b\n"1,234",2\n"5",3\n', {"a": [1234, 5], "b": [2, 3]}),  # thousands
        ("a;b\n1,234;1\n2,255;2\n", {"a": [1.234, 2.255], "b": [1, 2]}),  # a fraction
        ("a;b\n1,5;1.234\n2,5;3.555\n", {"a": [1.5, 2.5], "b": [1234, 3555]}),
        ("sep=;\na;b\n1,5;2\n2,5;3\n", {"a": [1.5, 2.5], "b": [2, 3]}),  # Excel's first line
        ("a,b\n1,2,\n3,4,\n", {"a": [1, 3], "b": [2, 4]}),  # a delimiter at the end
        (",a,b\n0,1.5,2\n1,3,4\n", {"a": [1.5, 3], "b": [2, 4]}),  # an index of pandas
        ('"a" "b"\n"1" 1.5 2\n"2" 3 4\n', {"a": [1.5, 3], "b": [2, 4]}),  # row names of R
        ("a,a\n1,2\n3,4\n", {"a": [1, 3], "a.1": [2, 4]}),
        ("a,b\ntrue,1\nFALSE,2\n", {"a": [1, 0], "b": [1, 2]}),
        ("0,1,2\n.5,.5,1.5\n1.5,2,3\n", {"0": [0.5, 1.5], "1": [0.5, 2], "2": [1.5, 3]}),
        ("land,2001,2002\nA,3.5,4.5\nB,1.5,2.5\n", {"2001": [3.5, 1.5], "2002": [4.5, 2.5]}),
        ("5.1,a\n4.9,a\n6.2,b\n", {"x1": [5.1, 4.9, 6.2]}),  # no names, words among the data
        ("a,b\n1e3,-2.5E-3\n+3,−4\n", {"a": [1000, 3], "b": [-0.0025, -4]}),
    ],
)
def test_uncommon_files(tmp_path: Path, text: str, columns: dict[str, list[float]]) -> None:
    assert read(tmp_path / "t.csv", text) == columns


def test_missing_values_have_many_spellings(tmp_path: Path) -> None:
    words = ["NA", "nan", "-", "?", ".", "N/A", "null", "None", "#DIV/0!", ""]
    text = "a,b\n1.5,0\n" + "".join(f"{word},{i}\n" for i, word in enumerate(words))
    found = read(tmp_path / "t.csv", text)["a"]
    assert found[0] == 1.5
    assert np.isnan(found[1:]).all()


def test_what_was_guessed_is_said_and_can_be_given(tmp_path: Path) -> None:
    said: list[str] = []
    text = "1,2\n3,4\n5,6\n"
    assert read(tmp_path / "t.csv", text, say=said.append) == {"x1": [1, 3, 5], "x2": [2, 4, 6]}
    assert len(said) == 1
    assert "read as data" in said[0]
    assert read(tmp_path / "t.csv", text, header=True) == {"1": [3, 5], "2": [4, 6]}
    assert read(tmp_path / "t.csv", "a\n1.234\n2.555\n", decimal=",") == {"a": [1234, 2555]}
    assert read(tmp_path / "t.tsv", "a\tb\n1\t2\n", sep="tab") == {"a": [1], "b": [2]}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n3\n", {}, "line 3 has 1 fields where others have 2"),
        ("a;b\n", {}, "only the names of columns"),
        ("a;b\n1.5;2,5\n2.25;3,5\n", {}, "different decimal marks"),
        ("a,b\n1,x\n2,3\n4,5\n6,7\n", {}, "column 'b' .* it has 'x' in row 1"),
        ("a;b\n1,5;2\n2,5;3\n", {"decimal": "."}, "'a' .* it has '1,5' in row 1"),
        ("a,b\n1,2\n3,4\n", {"sep": ";"}, "nowhere between its fields"),
        ("a,b\n1,2\n3,4\n", {"sep": "ab"}, "one character"),
        ("a,b\n1,2\n3,4\n", {"decimal": "x"}, "decimal mark is"),
        ("a,b\n1,\n3,\n", {"columns": ["b"]}, "'b' .* holds no values"),
        (b"PK\0\0", {}, "binary data"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(
    tmp_path: Path, text: str | bytes, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        read(tmp_path / "t.csv", text, **options)
    assert "\n" not in str(refused.value)


def test_words_become_codes_of_their_labels(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,c\nu,red\nv,blue\nw,\nx,red\ny,blue\n")
    table = read_table(path, categories=True)
    np.testing.assert_array_equal(table["c"], [1.0, 0.0, np.nan, 1.0, 0.0])
    assert table.attrs["labels"] == {"c": ("blue", "red")}  # the names of rows are no category
    assert list(read_table(path, ["id"], categories=True)["id"]) == [0, 1, 2, 3, 4]
