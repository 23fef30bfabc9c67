"""What README, reference and CONTRIBUTING show works: the Python runs, and prints what it shows."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)]+)\)")
CODE_PATH = re.compile(r"`([\w.]+/[\w./]*(?:/|\.\w+))`")
REFERENCE = "tutorials/reference.md"
PAGES = ["README.md", REFERENCE, "CONTRIBUTING.md", "CHANGELOG.md"]
EFFORT = re.compile(r"\d+ \(\d+ passes over the data, [\d.]+ s\)")
ROUNDED = re.compile(r"gradient \de-\d+")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and text of every fenced block of a file."""
    return [(match[1], match[2]) for match in FENCE.finditer(text_of(name))]


def examples(name: str) -> Iterator[tuple[str, str | None]]:
    """Each Python block, with the text block right after it if there is one: its output."""
    found = blocks(name)
    for i, (language, text) in enumerate(found):
        if language == "python":
            follows = found[i + 1] if i + 1 < len(found) else ("", "")
            yield text, follows[1] if follows[0] == "text" else None


def tidy(text: str) -> list[str]:
    """Lines with single spaces, and without what may differ between machines."""
    lines = [ROUNDED.sub("...", EFFORT.sub("...", line)) for line in text.strip().splitlines()]
    return [" ".join(line.split()) for line in lines]


def anchors(text: str) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("README.md", 4), (REFERENCE, 5)])
def test_the_python_of_a_page_runs_and_prints_what_it_shows(name: str, least: int) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    shown = 0
    for code, expected in examples(name):
        printed = StringIO()
        with redirect_stdout(printed):
            exec(compile(code, name, "exec"), namespace)
        if expected is not None:
            assert tidy(printed.getvalue()) == tidy(expected)
            shown += 1
    assert shown >= least


@pytest.mark.slow
def test_the_examples_of_contributing_run() -> None:
    # In a process of its own: they register families and priors that other tests should not see.
    code = "\n".join(code for code, _ in examples("CONTRIBUTING.md"))
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    assert tidy(run.stdout) == tidy(
        "".join(expected or "" for _, expected in examples("CONTRIBUTING.md"))
    )


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    broken = []
    for link in LINK.findall(FENCE.sub("", text_of(name))):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if link.startswith("http"):
            continue
        if not target.exists() or (
            anchor and anchor not in anchors(target.read_text(encoding="utf-8"))
        ):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", ["README.md", REFERENCE, "CONTRIBUTING.md"])
def test_paths_in_the_text_exist(name: str) -> None:
    paths = CODE_PATH.findall(FENCE.sub("", text_of(name)))
    folders = {"inference", "models", "tests", "tutorials"}
    in_full = [path for path in paths if path.split("/")[0] in folders]
    assert [path for path in in_full if not (ROOT / path).exists()] == []


def map_of_files() -> Iterator[list[str]]:
    """The paths of each row of the map: a place, then what stands in it or beside it."""
    text = text_of(REFERENCE).split("## Where things are")[1]
    for cell in re.findall(r"^\| (`[^|]+`) \|", text, re.MULTILINE):
        yield re.findall(r"`([^`]+)`", cell)


def test_the_map_of_files_names_files_that_exist() -> None:
    rows = list(map_of_files())
    assert len(rows) > 20
    for first, *others in rows:
        place = ROOT / first
        folder = place if place.is_dir() else place.parent
        for path in [place, *(folder / other for other in others)]:
            assert path.exists(), path


def test_the_map_of_files_names_every_room() -> None:
    named = {ROOT / first for first, *_ in map_of_files()}
    rooms = {path.parent for path in (ROOT / "inference").glob("*/__init__.py")}
    assert rooms <= named
    ((_, *files),) = [row for row in map_of_files() if row[0] == "inference/fit.py"]
    written = {path.name for path in (ROOT / "inference").glob("*.py")}
    assert written == {"__init__.py", "fit.py", *files}


def test_the_make_targets_exist() -> None:
    makefile = text_of("Makefile")
    for name in PAGES:
        for target in set(re.findall(r"(?:^|`)make (\w+)", text_of(name), re.MULTILINE)):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
