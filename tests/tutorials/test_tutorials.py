"""Every tutorial runs, its notebook is the script's own, executed, and the small EM is Ember's."""

import base64
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from ember.inference import EM
from ember.models import gaussian_mixture
from tests.further import with_further

TUTORIALS = Path(__file__).parents[2] / "tutorials"
SCRIPTS = sorted(TUTORIALS.glob("*.py"))
QUICK = {"csv_to_report", "em_in_80_lines", "em_in_four_steps"}
LONG = [path for path in SCRIPTS if path.stem not in QUICK]
PERCENT = [path for path in SCRIPTS if "\n# %%" in path.read_text(encoding="utf-8")]


def by_name(paths: list[Path]) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in paths]


@pytest.fixture
def _headless() -> Iterator[None]:
    """No window opens, and what a script sets for its pictures does not outlive it."""
    plt.switch_backend("Agg")
    with plt.rc_context():
        yield


def test_there_are_tutorials() -> None:
    assert len(PERCENT) >= 2
    assert {path.stem for path in SCRIPTS} > QUICK


@pytest.mark.slow
@pytest.mark.usefixtures("_headless")
@pytest.mark.parametrize("script", with_further(SCRIPTS, LONG), ids=lambda path: path.stem)
def test_the_script_runs_and_keeps_its_promises(script: Path) -> None:
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("script", by_name(PERCENT))
class TestNotebook:
    def test_its_code_is_the_script_s(self, script: Path) -> None:
        jupytext = pytest.importorskip("jupytext")
        assert _sources(jupytext.read(script)) == _sources(_notebook(script))

    def test_it_was_executed_in_order_without_errors(self, script: Path) -> None:
        cells = [cell for cell in _notebook(script).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
        assert any(cell.outputs for cell in cells)

    def test_its_pictures_are_in_it(self, script: Path) -> None:
        pictures = [
            base64.b64decode(output.data["image/png"])
            for cell in _notebook(script).cells
            for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})
        ]
        assert len(pictures) >= 3
        assert all(picture.startswith(b"\x89PNG") for picture in pictures)

    def test_it_tells_nothing_of_the_machine(self, script: Path) -> None:
        text = script.with_suffix(".ipynb").read_text(encoding="utf-8")
        assert not [word for word in ("/home/", "/tmp/", "/root/", "/Users/") if word in text]
        outputs = [o for cell in _notebook(script).cells for o in cell.get("outputs", [])]
        assert not [o for o in outputs if o.get("name") == "stderr"]  # no warning went unseen


def _notebook(script: Path) -> Any:
    nbformat = pytest.importorskip("nbformat")
    path = script.with_suffix(".ipynb")
    assert path.exists(), f"{path.name} is missing: run `make tutorials`"
    return nbformat.read(path, as_version=4)


def _sources(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


class TestEMIn80Lines:
    SCRIPT = TUTORIALS / "em_in_80_lines.py"

    @pytest.fixture
    def small(self) -> dict[str, Any]:
        return runpy.run_path(str(self.SCRIPT))

    @pytest.fixture
    def x(self) -> np.ndarray[Any, Any]:
        generator = np.random.default_rng(5)
        means = np.array([[0.0, 0.0, 0.0], [3.0, 1.0, -2.0], [-1.0, 4.0, 2.0]])
        centres: np.ndarray[Any, Any] = means[generator.integers(3, size=200)]
        centres += generator.normal(size=(200, 3)) * np.array([1.0, 0.6, 1.4])
        return centres

    def test_it_has_at_most_80_lines(self) -> None:
        assert len(self.SCRIPT.read_text(encoding="utf-8").splitlines()) <= 80

    def test_it_takes_the_library_s_steps(
        self, small: dict[str, Any], x: np.ndarray[Any, Any]
    ) -> None:
        em = EM(gaussian_mixture, objective="mle")
        params = small["initialise"](x, 3, seed=1)
        for _ in range(25):
            ours = _as_sites(params)
            stats = em.e_step(ours, torch.from_numpy(x), components=3)
            responsibilities, log_likelihood = small["e_step"](params, x)
            assert log_likelihood == pytest.approx(stats.log_likelihood, rel=1e-12)
            params = small["m_step"](responsibilities, x)
            for site, value in em.m_step(stats).items():
                torch.testing.assert_close(_as_sites(params)[site], value, rtol=1e-8, atol=1e-8)

    def test_it_ends_where_the_library_ends(
        self, small: dict[str, Any], x: np.ndarray[Any, Any]
    ) -> None:
        start = small["initialise"](x, 3, seed=1)
        params, history = small["fit"](x, start)
        # Both must be at rest for estimates to agree to 1e-8: a tolerance on the objective of
        # 1e-12 leaves the parameters, where the objective is flat, at 1e-6.
        for _ in range(500):
            params = small["m_step"](small["e_step"](params, x)[0], x)
        em = EM(gaussian_mixture, objective="mle", init=_as_sites(start), tol=1e-12)
        fit = em.fit(torch.from_numpy(x), components=3)
        assert history[-1] == pytest.approx(fit.log_likelihood, abs=1e-8)
        for site, value in _as_sites(params).items():
            torch.testing.assert_close(fit.params[site], value, rtol=1e-8, atol=1e-8)
        assert np.all(np.diff(history) > -1e-9)


def _as_sites(params: Any) -> dict[str, torch.Tensor]:
    """The small EM's parameters under the site names of ``gaussian_mixture``."""
    weights, means, covariances = (torch.from_numpy(np.array(value)) for value in params)
    return {"weights": weights, "locs": means, "precisions": torch.linalg.inv(covariances)}
