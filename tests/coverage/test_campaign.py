"""A short slice of the campaign that ``make coverage`` runs at length."""

import pytest
import torch

from tests.coverage.campaign import covered, line, run
from tests.coverage.populations import POPULATIONS

SETS = 16


@pytest.mark.parametrize("name", POPULATIONS)
def test_intervals_cover_the_truth_about_as_often_as_they_say(name: str) -> None:
    outcomes = [run(name, seed) for seed in range(SETS)]
    shares = torch.cat([each.reshape(-1) for each in covered(outcomes).values()])
    # Of 16 fair intervals fewer than 11 cover the truth once in 10,000 times, and entries vary
    # alike; of all of them together the mean has a standard deviation below 0.03.
    assert float(shares.min()) >= 11 / SETS
    assert float(shares.mean()) > 0.87
    assert name in line(name, outcomes)
