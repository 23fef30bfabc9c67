"""What the ``ember`` command understands: its options, its help, and its answers to mistakes."""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["help_text", "parse"]


EXAMPLES = """\
examples:
  ember demo
  ember fit faithful.csv --components 2
  ember fit faithful.csv --components 2 --columns waiting --objective mle --output fit.json
  ember fit iris.csv --components 3 --option covariance=diag --restarts 10 --output iris.png
  ember fit counts.csv --model hidden_markov_poisson --columns count --components 3
  ember fit messung.csv --sep ";" --decimal "," --components 2 --output rows.csv
  ember fit answers.csv --model categorical_mixture --components 3
  ember fit sales.csv --model regression_mixture --response sold --components 2 --output lines.png
  ember fit data.csv --model my_models.py:my_mixture --option groups=4
  ember compare faithful.csv --components 2 --output compared.png
  ember fit faithful.csv --components 2 --save faithful.ember
  ember show faithful.ember
  ember predict faithful.ember new.csv --output rows.csv
"""


class _Parser(argparse.ArgumentParser):
    """Answers a wrong option with one sentence instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        print(f"ember: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the words after ``ember``; ``command`` of the result is empty where none was given.

    Raises:
        SystemExit: With code 2 after one sentence on stderr; with 0 after help or the version.
    """
    return _parser().parse_args(argv)


def help_text() -> str:
    """What ``ember --help`` prints."""
    return _parser().format_help()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ember",
        description="Fit latent-variable models written in Pyro by expectation-maximisation.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ember {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    demo = commands.add_parser("demo", help="four methods on the Old Faithful data")
    demo.add_argument("--output", metavar="PNG", default="ember-demo.png", help="the picture")
    fit = commands.add_parser("fit", help="fit a model to a table by EM")
    fit.add_argument("--objective", choices=("map", "mle"), default="map", help="default: map")
    fit.add_argument(
        "--errors", action="store_true", help="print standard errors and 95 %% intervals as well"
    )
    comparison = commands.add_parser("compare", help="EM and SVI on the same table")
    for command in (fit, comparison):
        _add_data_options(command)
    fit.add_argument(
        "--output",
        metavar="FILE",
        help="write the fit (.json), a picture (.png), or the rows with their most probable state "
        "and the probability of each (.csv, .parquet)",
    )
    comparison.add_argument("--output", metavar="PNG", help="write a picture")
    fit.add_argument("--save", metavar="FILE", help="save the fit, for show and predict")
    fit.add_argument(
        "--without-data", action="store_true", help="save no data: estimates and report remain"
    )
    _add_saved(
        commands.add_parser("show", help="the report of a saved fit"),
        "write it as well (.json), or a picture (.png)",
    )
    predict = commands.add_parser("predict", help="what a saved fit says of new rows")
    _add_saved(predict, "write the rows (.csv, .parquet); default: print them")
    predict.add_argument("data", metavar="DATA", help="a table with the columns of the fit")
    _add_reading(predict)
    for command, steps in ((demo, 1000), (comparison, 2000)):
        command.add_argument(
            "--steps", type=_count, default=steps, metavar="S", help=f"of SVI; default: {steps}"
        )
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("pyro-ember")
    except importlib.metadata.PackageNotFoundError:
        return "(run from its source, not installed)"


def _add_data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "data",
        metavar="DATA",
        help="a .csv, .tsv or .parquet file; true and false are 1 and 0; models of categories and "
        "of yes-or-no items take words",
    )
    _add_reading(command)
    command.add_argument(
        "--components", type=_count, metavar="K", help="number of components (or states)"
    )
    command.add_argument(
        "--model",
        default="gaussian_mixture",
        metavar="MODEL",
        help="a name in ember.models, or path/to/file.py:function; default: gaussian_mixture",
    )
    command.add_argument("--columns", metavar="A,B", help="columns to use; default: all numeric")
    command.add_argument(
        "--response", metavar="COLUMN", help="of a regression; the other columns are covariates"
    )
    command.add_argument(
        "--frequency", metavar="COLUMN", help="column that says how often each row was seen"
    )
    command.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a keyword argument of the model, such as covariance=diag; may be repeated",
    )
    command.add_argument(
        "--restarts", type=_count, default=1, metavar="R", help="starts of EM; default: 1"
    )
    command.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")


def _add_saved(command: argparse.ArgumentParser, output: str) -> None:
    """What the commands take that begin with a saved fit."""
    command.add_argument("fit", metavar="FIT", help="a file that ember fit --save wrote")
    command.add_argument(
        "--model",
        metavar="MODEL",
        help="path/to/file.py:function of a model of your own; ready models are found by name",
    )
    command.add_argument("--output", metavar="FILE", help=output)


def _add_reading(command: argparse.ArgumentParser) -> None:
    """How a text file is read."""
    command.add_argument(
        "--sep", metavar="CHAR", help="what stands between fields, or tab, or space; default: found"
    )
    command.add_argument(
        "--decimal", choices=(".", ","), help="the decimal mark of numbers; default: found"
    )
    command.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first line holds the names of the columns; default: found",
    )


def _count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return value
