"""Checkpoints: a fit in pieces that is broken off goes on to the same result, to the bit."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ember.inference import EM, Fit, chunks
from ember.inference.streaming import checkpoints
from ember.models import gaussian_mixture, poisson_mixture


def points(rows: int = 500) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return noise + 1.2 * (torch.arange(rows) % 2).unsqueeze(-1)


class Failing:
    """Pieces that cannot be read from some pass on."""

    def __init__(self, x: Tensor, passes: int) -> None:
        self.pieces, self.left = list(x.split(120)), passes

    def __iter__(self) -> Iterator[Tensor]:
        self.left -= 1
        for number, piece in enumerate(self.pieces):
            if self.left < 0 and number == 2:
                raise OSError("the disk has gone")
            yield piece


@pytest.mark.parametrize("accelerate", ["auto", None, "squarem", "lbfgs", "anderson"])
@pytest.mark.parametrize("passes", [6, 17])
def test_a_fit_goes_on_to_the_bit(tmp_path: Path, accelerate: str | None, passes: int) -> None:
    x, path = points(), tmp_path / "fit.ckpt"
    em = EM(gaussian_mixture, init=_start(), accelerate=accelerate, max_iter=25, seed=0)
    whole = _quiet(em, x.split(120))
    broken = _quiet(em, Failing(x, passes), checkpoint=path, checkpoint_every=0.0)
    assert len(broken.history) > 1
    if len(broken.history) < len(whole.history):
        assert not broken.converged
        assert "the loader failed at piece 3: the disk has gone" in broken.warning
    again = _quiet(em, x.split(120), resume=path)
    assert torch.equal(again.history, whole.history)
    for name, value in whole.params.items():
        assert torch.equal(again.params[name], value)
    assert again.log_likelihood == whole.log_likelihood
    assert again.stop_reason == whole.stop_reason


def _start() -> dict[str, Tensor]:
    return {"weights": torch.tensor([0.5, 0.5]), "locs": torch.tensor([[0.0, 0.0], [1.0, 0.5]])}


def _quiet(em: EM, loader: Any, **options: Any) -> Fit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return em.fit_batches(loader, components=2, **options)


def test_a_checkpoint_belongs_to_its_fit(tmp_path: Path) -> None:
    x, path = points(), tmp_path / "fit.ckpt"
    em = EM(gaussian_mixture, init=_start(), seed=0)
    em.fit_batches(x.split(120), components=2, checkpoint=path, checkpoint_every=0.0)
    with pytest.raises(ValueError, match="its objective was 'map' and is 'mle'"):
        EM(gaussian_mixture, "mle", init=_start()).fit_batches(
            x.split(120), components=2, resume=path
        )
    with pytest.raises(ValueError, match="number of rows was 500 and is 400"):
        em.fit_batches(x[:400].split(120), components=2, resume=path)
    with pytest.raises(ValueError, match="a checkpoint of other data"):
        em.fit_batches((x + 0.1 * x.square()).split(120), components=2, resume=path)
    with pytest.raises(ValueError, match="its parameters"):
        em.fit_batches(x.split(120), components=3, resume=path)
    with pytest.raises(ValueError, match="its model was 'gaussian_mixture'"):
        EM(poisson_mixture).fit_batches(x.abs().round().split(120), components=2, resume=path)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    x, path = points(), tmp_path / "fit.ckpt"
    em = EM(gaussian_mixture, init=_start(), max_iter=3, seed=0)
    fit = _quiet(em, x.split(120), checkpoint=path, checkpoint_every=0.0)
    content = path.read_bytes()
    other = tmp_path / "other"
    fit.save(other)
    with pytest.raises(ValueError, match="no checkpoint that fit_batches wrote"):
        em.fit_batches(x.split(120), components=2, resume=other)
    with pytest.raises(ValueError, match="holds tensors, but no fit"):
        Fit.load(path, gaussian_mixture)
    other.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged, for instance cut short"):
        em.fit_batches(x.split(120), components=2, resume=other)
    other.write_bytes(content[:-3] + bytes(3))
    with pytest.raises(ValueError, match="its checksum does not agree"):
        em.fit_batches(x.split(120), components=2, resume=other)
    with pytest.raises(ValueError, match="there is no file"):
        em.fit_batches(x.split(120), components=2, resume=tmp_path / "none")


def test_a_full_disk_is_a_warning_and_the_old_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, path = points(), tmp_path / "fit.ckpt"
    em = EM(gaussian_mixture, init=_start(), tol=1e-3, seed=0)
    whole = em.fit_batches(x.split(120), components=2)
    assert whole.converged
    write, written = save_file, list[bytes]()

    def full(tensors: Any, name: str, metadata: Any) -> None:
        if len(written) >= 2:
            raise OSError(28, "No space left on device")
        write(tensors, name, metadata=metadata)
        written.append(Path(name).read_bytes())

    monkeypatch.setattr("ember.inference.storage.sealed_file.save_file", full)
    with pytest.warns(RuntimeWarning, match="No space left on device") as told:
        fit = em.fit_batches(x.split(120), components=2, checkpoint=path, checkpoint_every=0.0)
    assert len(told) == 1
    assert torch.equal(fit.history, whole.history)
    assert path.read_bytes() == written[1]
    assert not [p for p in tmp_path.iterdir() if p != path]  # no half-written file is left
    monkeypatch.undo()
    again = em.fit_batches(x.split(120), components=2, resume=path)
    assert torch.equal(again.history, whole.history)


def test_checkpoints_come_every_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = [0.0], list[float]()
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(checkpoints, "write_checkpoint", lambda *_: written.append(clock[0]))
    keep = checkpoints.Checkpoints(tmp_path / "c", 10.0, {})
    for _ in range(25):
        clock[0] += 3.0
        keep(None, None)  # type: ignore[arg-type]
    assert written == [12.0, 24.0, 36.0, 48.0, 60.0, 72.0]


SCRIPT = """
import sys, time, warnings
import torch
from ember.inference import EM, chunks
from ember.models import gaussian_mixture

path, resume = sys.argv[1], len(sys.argv) > 2
x = torch.load(path + ".x")
warnings.simplefilter("ignore")

class Slow:
    def __iter__(self):
        for piece in x.split(120):
            time.sleep(0.0 if resume else 0.02)
            yield piece

start = {"weights": torch.tensor([0.5, 0.5]), "locs": torch.tensor([[0.0, 0.0], [1.0, 0.5]])}
em = EM(gaussian_mixture, init=start, seed=0)
fit = em.fit_batches(Slow(), components=2, checkpoint=None if resume else path,
                     checkpoint_every=0.0, resume=path if resume else None)
torch.save((fit.params, fit.history), path + ".fit")
"""


def test_killed_and_resumed(tmp_path: Path) -> None:
    """kill -9 in the middle: what was written goes on to the same end."""
    x, path = points(), tmp_path / "fit.ckpt"
    torch.save(x, f"{path}.x")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script), str(path)])
    for _ in range(600):
        if path.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert path.exists()
    subprocess.run([sys.executable, str(script), str(path), "resume"], check=True)
    params, history = torch.load(f"{path}.fit")
    whole = EM(gaussian_mixture, init=_start(), seed=0).fit_batches(x.split(120), components=2)
    assert torch.equal(history, whole.history)
    for name, value in whole.params.items():
        assert torch.equal(params[name], value)


def test_chunks_and_checkpoints_go_together(tmp_path: Path) -> None:
    x = points()
    fit = EM(gaussian_mixture, seed=0).fit_batches(
        chunks(x, rows=100), components=2, checkpoint=tmp_path / "c"
    )
    assert fit.converged
