"""Measures the table of speeds in the reference anew, and writes it there.

The figures are those of ``bench_mixture.py`` and ``bench_chains.py``, which it runs. Run it with
``make speed`` on a quiet machine.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tests.benchmarks import bench_chains, bench_mixture

T = TypeVar("T")

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
    mixtures, chains = list(map(of_mixture, shown(bench_mixture.lines()))), []
    for size, found in shown(bench_chains.lines()):
        chains.append([", ".join(f"{n:,}" for n in size), *rounded(bench_chains.ratios(found))])
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


def rounded(ratios: dict[str, float]) -> list[str]:
    """Two digits of each."""
    return [f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}" for ratio in ratios.values()]


def shown(lines: Iterable[T]) -> Iterator[T]:
    """The lines, each printed as it comes."""
    for line in lines:
        print(line, flush=True)
        yield line


if __name__ == "__main__":
    main()
