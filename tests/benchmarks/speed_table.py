"""Measures the table of speeds in the reference anew, and writes it there.

The figures are those of ``bench_mixture.py`` and ``bench_chains.py``, which it runs. Run it with
``make speed`` on a quiet machine.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.benchmarks import bench_chains, bench_mixture

PAGE = Path(__file__).parents[2] / "tutorials" / "reference.md"
BEGIN, END = "<!-- speed: written by `make speed` -->\n", "<!-- speed: end -->\n"
HEAD = (
    "rows, columns, components",
    "torch alone",
    "with `fast`",
    "",
    "sequences, steps, states",
    "torch alone",
    "with `fast`",
)


def main() -> None:
    """Measure, and write the page."""
    if bench_mixture.competitors() != ["torch", "compiled"]:
        sys.exit("the table has columns for the extra `fast`: install it first")
    mixtures = list(shown(map(of_mixture, bench_mixture.lines())))
    chains = list(shown(map(of_chain, bench_chains.lines())))
    empty = [""] * 3
    rows = [
        [*left, "", *right]
        for left, right in itertools.zip_longest(mixtures, chains, fillvalue=empty)
    ]
    table = "".join(f"| {' | '.join(row)} |\n" for row in [HEAD, ["---"] * len(HEAD), *rows])
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + table + "\n" + END + rest.split(END)[1])


def of_mixture(line: bench_mixture.Line) -> list[str]:
    """The size of a mixture, and its ratios."""
    covariance, *numbers = line.size
    size = ", ".join(f"{n:,}" for n in numbers)
    return [size if covariance == "full" else f"diagonal: {size}", *rounded(line.ratios)]


def of_chain(line: tuple[tuple[int, ...], dict[str, bench_chains.Times]]) -> list[str]:
    """The size of chains, and their ratios."""
    size, found = line
    return [", ".join(f"{n:,}" for n in size), *rounded(bench_chains.ratios(found))]


def rounded(ratios: dict[str, float]) -> list[str]:
    """Two digits of each."""
    return [f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}" for ratio in ratios.values()]


def shown(cells: Iterable[list[str]]) -> Iterator[list[str]]:
    """Cells of the table, each line printed as it comes."""
    for each in cells:
        print(*each, sep=" | ", flush=True)
        yield each


if __name__ == "__main__":
    main()
