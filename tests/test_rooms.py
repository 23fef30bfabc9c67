"""The rooms of ``inference`` run one way: each imports only rooms that stand above it here."""

import ast
from collections.abc import Iterator
from pathlib import Path

INFERENCE = Path(__file__).parents[1] / "inference"
ROOMS = [
    *("numerics", "inputs", "parameters", "families", "reading", "factors", "plan"),
    *("maximisation", "expectation", "optimality", "queries", "initialisation", "variational"),
    *("variational_bayes", "sampling", "iteration", "reports", "storage", "streaming", "exports"),
    *("answers", "certainty", "fit"),
    *("variational_fit", "sampled_fit", "alignment", "svi", "batches", "em", "vbem"),
    *("sampling_methods",),
    *("marginals", "comparison", "selection", "estimators"),
    "command_line",
]
FACADES = {"__init__", "tables"}  # they hold no code: public names only


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of Ember's own, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                package, *rest = f"{node.module}.{alias.name}".removeprefix("ember.").split(".")
                if package == "inference":
                    yield node.lineno, rest[0]


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {path.stem for path in INFERENCE.iterdir() if (path / "__init__.py").is_file()}
    files = {path.stem for path in INFERENCE.glob("*.py")}
    assert rooms | files == set(ROOMS) | FACADES


def test_imports_run_down() -> None:
    upward = []
    for path in INFERENCE.rglob("*.py"):
        room = path.relative_to(INFERENCE).with_suffix("").parts[0]
        if room in FACADES:
            continue
        for line, other in imports(path):
            if other != room and ROOMS.index(other) > ROOMS.index(room):
                upward.append(f"{path}:{line}: {room} imports {other}, which stands below it")
    assert not upward
