"""The distribution holds what it should, and the two packages stay apart."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "inference")
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "inference",
    "models",
    "pyproject.toml",
    "tests",
    "tutorials",
}


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def imported_modules(path: Path) -> set[str]:
    """Every module that a file may import, at any depth; ``from a import b`` gives ``a.b`` too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_package_folder_is_listed(config: dict[str, Any]) -> None:
    on_disk = {
        ".".join(["ember", *source.parent.relative_to(ROOT).parts])
        for package in PACKAGES
        for source in (ROOT / package).rglob("*.py")
    }
    assert on_disk == set(config["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_says_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize(
    ("package", "other"), [("models", "ember.inference"), ("inference", "ember.models")]
)
def test_models_and_inference_do_not_import_each_other(package: str, other: str) -> None:
    guilty = {
        str(source.relative_to(ROOT)): name
        for source in (ROOT / package).rglob("*.py")
        for name in imported_modules(source)
        if name == other or name.startswith(f"{other}.")
    }
    assert guilty == {}


def test_a_fit_loads_nothing_that_draws() -> None:
    """Workers and commands begin a second and a half sooner."""
    asked = "import sys, ember.inference, ember.models; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True
    )
    loaded = set(found.stdout.split())
    assert "ember.inference.em" in loaded
    assert not loaded & {"matplotlib", "scipy.stats", "sympy", "numba"}


def test_the_installed_version_is_the_declared_one(config: dict[str, Any]) -> None:
    assert version("pyro-ember") == config["project"]["version"]


def test_the_command_can_be_loaded() -> None:
    (command,) = entry_points(group="console_scripts", name="ember")
    assert callable(command.load())


def test_nothing_unexpected_lies_at_the_top() -> None:
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    assert {path.split("/")[0] for path in listing.split("\0") if path} <= TOP_LEVEL


def test_no_test_imports_another() -> None:
    # What several tests share stands in a module of its own, so that each can be read alone.
    guilty = {
        str(source.relative_to(ROOT)): name
        for source in (ROOT / "tests").rglob("test_*.py")
        for name in imported_modules(source)
        if name.startswith("tests.") and name.rsplit(".")[-1].startswith("test_")
    }
    assert guilty == {}
