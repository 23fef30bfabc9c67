"""What README and CONTRIBUTING show works: their Python runs, and prints what they show."""

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
LINK = re.compile(r"\]\(([^)#]+)\)")
EFFORT = re.compile(r"\d+ \(\d+ passes over the data, [\d.]+ s\)")


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and text of every fenced block of a file."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [(match[1], match[2]) for match in FENCE.finditer(text)]


def examples(name: str) -> Iterator[tuple[str, str | None]]:
    """Each Python block, with the text block right after it if there is one: its output."""
    found = blocks(name)
    for i, (language, text) in enumerate(found):
        if language == "python":
            follows = found[i + 1] if i + 1 < len(found) else ("", "")
            yield text, follows[1] if follows[0] == "text" else None


def tidy(text: str) -> list[str]:
    """Lines with single spaces, and without what may differ between machines: how long it took."""
    lines = [EFFORT.sub("...", line) for line in text.strip().splitlines()]
    return [" ".join(line.split()) for line in lines]


@pytest.mark.slow
def test_the_readme_s_python_runs_and_prints_what_it_shows() -> None:
    namespace: dict[str, Any] = {"__name__": "readme"}
    shown = 0
    for code, expected in examples("README.md"):
        printed = StringIO()
        with redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), namespace)
        if expected is not None:
            assert tidy(printed.getvalue()) == tidy(expected)
            shown += 1
    assert shown >= 4


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


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    links = LINK.findall((ROOT / name).read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_the_map_of_files_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Where things are")[1]
    for cell in re.findall(r"^\| (`[^|]+`) \|", text, re.MULTILINE):
        folder = ROOT
        for path in re.findall(r"`([^`]+)`", cell):
            found = folder / path if (folder / path).exists() else ROOT / path
            assert found.exists(), path
            folder = found.parent if found.is_file() and folder == ROOT else folder


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE)):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
