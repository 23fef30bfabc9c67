"""What goes wrong with data in pieces: one sentence that names the piece, and nothing is lost."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from ember.inference import EM, chunks
from ember.models import gaussian_mixture, poisson_mixture


def pieces(count: int = 20) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(30 * count, 2, generator=generator, dtype=torch.float64)
    return list((noise + 3.0 * (torch.arange(30 * count) % 2).unsqueeze(-1)).split(30))


def test_an_infinite_entry_is_found_before_the_fit() -> None:
    data = pieces()
    data[16][4, 1] = torch.inf
    with pytest.raises(ValueError, match=r"piece 17 of the data: .*infinite"):
        EM(gaussian_mixture).fit_batches(data, components=2)


def test_nan_is_a_missing_entry_wherever_it_stands() -> None:
    data = pieces()
    data[16][4, 1] = torch.nan
    em = EM(gaussian_mixture, seed=0)
    whole, fit = em.fit(torch.cat(data), components=2), em.fit_batches(data, components=2)
    assert fit.log_posterior == pytest.approx(whole.log_posterior, rel=1e-9)


def test_counts_below_zero_are_named() -> None:
    data = [piece.abs().round() for piece in pieces()]
    data[16][0] = -1.0
    with pytest.raises(ValueError, match="piece 17 of the data"):
        EM(poisson_mixture).fit_batches(data, components=2)


def test_pieces_of_other_columns_are_named() -> None:
    data = pieces()
    data[3] = torch.cat([data[3], data[3]], 1)
    with pytest.raises(ValueError, match=r"piece 4 of the data has .* \(4,\) .* first has \(2,\)"):
        EM(gaussian_mixture).fit_batches(data, components=2)


class Changing:
    """Data of which an entry turns bad in some pass."""

    def __init__(self, passes: int, how: str) -> None:
        self.data, self.left, self.how = pieces(), passes, how

    def __iter__(self) -> Iterator[Tensor]:
        self.left -= 1
        for number, piece in enumerate(self.data):
            if self.left < 0 and number == 16:
                if self.how == "fewer":
                    continue
                piece = piece.clone()
                piece[0, 0] = torch.inf
            yield piece


@pytest.mark.parametrize(
    ("how", "said"),
    [("fewer", "gave 570 rows in this pass and 600 in the first"), ("infinite", "piece 17")],
)
def test_data_that_change_end_the_fit_with_what_was_reached(how: str, said: str) -> None:
    em = EM(gaussian_mixture, init={"weights": torch.tensor([0.5, 0.5])}, seed=0)
    with pytest.warns(RuntimeWarning, match=said):
        fit = em.fit_batches(Changing(6, how), components=2)
    assert not fit.converged
    assert len(fit.history) > 1
    assert bool(torch.isfinite(fit.params["locs"]).all())


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    x = pd.DataFrame(torch.cat(pieces()).numpy(), columns=["a", "b"])
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.Table.from_pandas(x), path, row_group_size=100)
    loader = chunks(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match="cannot be read as Parquet, perhaps because it was cut"):
        chunks(path)
    with pytest.raises(ValueError, match=r"piece 1 of the data cannot be read: .*Parquet"):
        EM(gaussian_mixture).fit_batches(loader, components=2)
    array = tmp_path / "x.npy"
    np.save(array, x.to_numpy())
    loader = chunks(array, rows=100)
    array.write_bytes(array.read_bytes()[:3000])
    with pytest.raises(ValueError, match="piece 1 of the data cannot be read"):
        EM(gaussian_mixture).fit_batches(loader, components=2)


def test_words_are_refused() -> None:
    words = [pd.DataFrame({"a": ["x", "y"] * 20})]
    with pytest.raises(ValueError, match=r"piece 1 of the data cannot be read: .*numbers"):
        EM(gaussian_mixture).fit_batches(words, components=2)


class Interrupted:
    """Ctrl-C in some pass."""

    def __init__(self, passes: int) -> None:
        self.data, self.left = pieces(), passes

    def __iter__(self) -> Iterator[Tensor]:
        self.left -= 1
        for piece in self.data:
            if self.left < 0:
                raise KeyboardInterrupt
            yield piece


def test_an_interrupt_keeps_what_was_reached() -> None:
    em = EM(gaussian_mixture, init={"weights": torch.tensor([0.5, 0.5])}, seed=0)
    fit = em.fit_batches(Interrupted(6), components=2)
    assert "interrupted" in fit.stop_reason
    assert len(fit.history) > 1
