"""Pieces in worker processes, and in several of one group: the same fit, or a sentence."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ember.inference import EM, chunks
from ember.models import gaussian_mixture
from tests.inference.streamed_models import dying_model, slow_model


def points(rows: int = 600) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return noise + 3.0 * (torch.arange(rows) % 2).unsqueeze(-1)


def pool(count: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


def test_workers_give_the_fit_of_one_process(tmp_path: Path) -> None:
    x, path = points(), tmp_path / "x.npy"
    np.save(path, x.numpy())
    em = EM(gaussian_mixture, seed=0)
    alone = em.fit_batches(chunks(path, rows=150), components=2)
    with pool() as executor:
        fit = em.fit_batches(chunks(path, rows=150), components=2, executor=executor)
        by_rows = em.fit_batches(x.split(150), components=2, executor=executor)
    for found in (fit, by_rows):
        assert torch.equal(found.history, alone.history)
        for name, value in alone.params.items():
            assert torch.equal(found.params[name], value)
        assert found.n_observations == 600


DASK = """
import sys
import torch
from distributed import Client, LocalCluster
from ember.inference import EM, chunks
from ember.models import gaussian_mixture

if __name__ == "__main__":
    pieces, em = chunks(sys.argv[1], rows=150), EM(gaussian_mixture, seed=0)
    alone = em.fit_batches(pieces, components=2)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(processes=True, **options) as cluster, Client(cluster) as client:
        fit = em.fit_batches(pieces, components=2, executor=client.get_executor())
    print(torch.equal(fit.history, alone.history))
"""


def test_workers_of_dask(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    np.save(tmp_path / "x.npy", points().numpy())
    script = tmp_path / "script.py"
    script.write_text(DASK)
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "x.npy")], capture_output=True, text=True
    )
    assert run.stdout.strip() == "True", run.stderr


def test_a_worker_that_dies_ends_the_fit_with_what_was_reached(tmp_path: Path) -> None:
    x, path = points(), tmp_path / "fit.ckpt"
    em = EM(dying_model, accelerate=None, tol=1e-300, seed=0)
    with pool() as executor, pytest.warns(RuntimeWarning, match="a worker has died"):
        fit = em.fit_batches(
            x.split(150), deadline=str(tmp_path / "count"), executor=executor,
            checkpoint=path, checkpoint_every=0.0,
        )  # fmt: skip
    assert not fit.converged
    assert len(fit.history) > 1
    assert path.exists()
    assert bool(torch.isfinite(fit.params["mean"]).all())


def test_a_worker_that_hangs_is_not_waited_for() -> None:
    em = EM(slow_model, seed=0)
    with pool(1) as executor:
        with pytest.raises(ValueError, match="no worker has answered for piece 1 within 5 seconds"):
            em.fit_batches(points().split(150), parent=os.getpid(), executor=executor, patience=5.0)
        for process in executor._processes.values():
            process.kill()


def test_refusals() -> None:
    x = points()
    em = EM(gaussian_mixture)
    with ThreadPoolExecutor(1) as threads, pytest.raises(TypeError, match="runs threads"):
        em.fit_batches([x], components=2, executor=threads)
    with pytest.raises(TypeError, match="has no submit method"):
        em.fit_batches([x], components=2, executor=3)  # type: ignore[arg-type]

    def local(x: Tensor) -> None:
        gaussian_mixture(x, 2)

    with pool(1) as executor, pytest.raises(ValueError, match="failed in its worker"):
        EM(local).fit_batches([x], executor=executor)


# -- several processes of one group ------------------------------------------------------------

SCRIPT = """
import dataclasses, os, sys, time, warnings
from datetime import timedelta
import torch
from torch import distributed
from ember.inference import EM, chunks
from ember.inference.streaming import ranks
from ember.models import gaussian_mixture

folder, how = sys.argv[1], sys.argv[2]
distributed.init_process_group("gloo")
rank, world = distributed.get_rank(), distributed.get_world_size()
pieces = chunks(folder + "/x.npy", rows=100)[rank::world]

class Share:
    passes = 0
    def __iter__(self):
        Share.passes += 1
        for number, piece in enumerate(pieces):
            if Share.passes == 8 and rank == 1 and number == 1:
                if how == "dies":
                    os._exit(9)
                if how == "fails":
                    raise OSError("the file is cut short")
            yield piece

warnings.simplefilter("ignore")
em = EM(gaussian_mixture, seed=0, accelerate=None if how != "whole" else "auto", tol=1e-10)
fit = em.fit_batches(Share(), components=2, checkpoint=folder + "/fit.ckpt", checkpoint_every=0.0)
torch.save((dict(fit.params), fit.history, fit.log_posterior, fit.warning, fit.n_observations),
           f"{folder}/{how}-{rank}")
if how == "whole":
    torch.save((fit.standard_errors(), fit.standard_errors(robust=True)), f"{folder}/errors-{rank}")
    ranks.MEETING = timedelta(seconds=1)
    if rank:
        time.sleep(3)
        sys.exit()
    try:
        dataclasses.replace(fit).standard_errors()
    except ValueError as error:
        torch.save(str(error), f"{folder}/alone")
"""


def started(folder: Path, how: str, count: int = 2) -> list[int]:
    """The exit codes of some processes that share the data in a folder."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    port = str(29_000 + os.getpid() % 2_000 + len(how))
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), how],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
        )
        for rank in range(count)
    ]
    try:
        return [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)


def shared(folder: Path) -> Tensor:
    x = points()
    np.save(folder / "x.npy", x.numpy())
    return x


def result(folder: Path, name: str) -> Any:
    return torch.load(folder / name)


def test_two_processes_give_the_fit_of_one(tmp_path: Path) -> None:
    shared(tmp_path)
    assert started(tmp_path, "whole") == [0, 0]
    (params, history, posterior, _, rows), (again, other, *_) = (
        result(tmp_path, f"whole-{rank}") for rank in range(2)
    )
    assert torch.equal(history, other)
    assert rows == 600
    alone = EM(gaussian_mixture, seed=0, tol=1e-10).fit_batches(
        chunks(tmp_path / "x.npy", rows=100), components=2
    )
    assert posterior == pytest.approx(alone.log_posterior, rel=1e-10)
    for name, value in alone.params.items():
        assert torch.equal(params[name], again[name])
        assert torch.allclose(params[name], value, rtol=1e-10, atol=1e-10)
    expected = alone.standard_errors(), alone.standard_errors(robust=True)
    for rank in range(2):
        for own, other in zip(result(tmp_path, f"errors-{rank}"), expected, strict=True):
            for name, value in other.items():
                assert torch.allclose(own[name], value, rtol=1e-6)
    assert "some do not ask for them; ask in every process" in result(tmp_path, "alone")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("dies", "no longer answers"),
        pytest.param("fails", "process 1: .*the file is cut short", marks=pytest.mark.thorough),
    ],
)
def test_one_process_that_stops_ends_the_run_of_all(tmp_path: Path, how: str, said: str) -> None:
    shared(tmp_path)
    codes = started(tmp_path, how)
    assert codes[0] == 0
    params, history, _, warning, _ = result(tmp_path, f"{how}-0")
    assert len(history) > 1
    assert all(bool(torch.isfinite(value).all()) for value in params.values())
    assert re.search(said, warning)
    assert (tmp_path / "fit.ckpt").exists()
    resumed = EM(gaussian_mixture, seed=0, accelerate=None, tol=1e-10).fit_batches(
        chunks(tmp_path / "x.npy", rows=100), components=2, resume=tmp_path / "fit.ckpt"
    )
    assert resumed.converged
    assert torch.allclose(resumed.history[: len(history)], history, rtol=1e-12)


def test_processes_must_know_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(RuntimeError, match="init_process_group"):
        EM(gaussian_mixture).fit_batches([points()], components=2)
