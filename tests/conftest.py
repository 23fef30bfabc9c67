"""What every test shares: one thread, fixed seeds, no display, clean state, reference data."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pyro
import pytest
import torch
from hypothesis import settings
from matplotlib import pyplot as plt

REFERENCE = Path(__file__).parent / "reference"

matplotlib.use("Agg")
torch.set_num_threads(1)  # sums come out in the same order everywhere; the workers fill the cores
settings.register_profile("ember", derandomize=True, deadline=None)
settings.load_profile("ember")


@pytest.fixture(autouse=True)
def _clean_global_state() -> Iterator[None]:
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)  # torch, numpy and random
    yield
    plt.close("all")
    pyro.clear_param_store()
    torch.set_default_dtype(dtype)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def reference_data() -> Callable[[str], pd.DataFrame]:
    """Load a table of reference data by its name: ``reference_data("faithful")``."""

    def load(name: str) -> pd.DataFrame:
        return pd.read_csv(REFERENCE / "data" / f"{name}.csv")

    return load


@pytest.fixture(scope="session")
def reference_cases() -> dict[str, dict[str, Any]]:
    """The published results by name of case; ``reference/README.md`` explains their fields."""
    cases = json.loads((REFERENCE / "cases.json").read_text(encoding="utf-8"))
    return {case["name"]: case for case in cases}
