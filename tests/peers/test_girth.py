"""girth as oracle and rival: marginal maximum likelihood of item response models."""

import functools
from typing import Any

import numpy as np
import pytest
import torch

from ember.inference import EM
from ember.models import item_response
from tests.peers.common import log_likelihood

girth = pytest.importorskip("girth")

Array = np.ndarray[Any, Any]


@pytest.fixture
def answers() -> Array:
    generator = np.random.default_rng(3)
    slopes = generator.uniform(0.7, 1.6, 8)
    logits = slopes * generator.normal(size=(1500, 1)) + np.linspace(-1.5, 1.5, 8)
    return (generator.random((1500, 8)) < 1.0 / (1.0 + np.exp(-logits))).astype(int)


def test_two_parameters(answers: Array) -> None:
    """girth stops a little before its maximum: Ember's is near it, and not below."""
    found = girth.twopl_mml(answers.T)
    slopes = found["Discrimination"]
    rival = {"discriminations": slopes, "intercepts": -slopes * found["Difficulty"]}
    y = torch.tensor(answers)
    fit = EM(item_response, "mle", seed=0).fit(y)
    theirs = log_likelihood(item_response, rival, y)
    assert theirs <= fit.log_likelihood < theirs + 0.01
    ours = fit.params["discriminations"].numpy()
    assert ours == pytest.approx(slopes, abs=0.01)
    assert fit.deterministic["difficulties"].numpy() == pytest.approx(found["Difficulty"], abs=0.02)


def test_rasch(answers: Array) -> None:
    found = girth.rasch_mml(answers.T)
    y = torch.tensor(answers)
    fit = EM(item_response, "mle", seed=0).fit(y, model="rasch")
    rival = {"intercepts": -found["Difficulty"]}
    theirs = log_likelihood(functools.partial(item_response, model="rasch"), rival, y)
    assert theirs <= fit.log_likelihood < theirs + 0.05


def test_abilities(answers: Array) -> None:
    y = torch.tensor(answers)
    fit = EM(item_response, "mle", seed=0).fit(y)
    slopes = fit.params["discriminations"].numpy()
    difficulties = fit.deterministic["difficulties"].numpy()
    theirs = girth.ability_eap(answers.T, difficulties, slopes)
    assert fit.predict().numpy() == pytest.approx(theirs, abs=1e-3)
