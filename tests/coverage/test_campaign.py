"""A short slice of the campaign that ``make coverage`` runs at length."""

import pytest
import torch

from tests.coverage.campaign import covered, line, run
from tests.coverage.populations import POPULATIONS

SETS = 8


@pytest.mark.parametrize("name", POPULATIONS)
def test_intervals_cover_the_truth_about_as_often_as_they_say(name: str) -> None:
    outcomes = [run(name, seed) for seed in range(SETS)]
    shares = torch.cat([each.reshape(-1) for each in covered(outcomes).values()])
    # Of 8 fair intervals fewer than 5 cover the truth less than once in 2,000 times.
    assert float(shares.min()) >= 5 / SETS
    assert float(shares.mean()) > 0.8
    assert name in line(name, outcomes)
