"""New data of probability zero under a fit: no answer follows from them, as one warning says."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM, Fit

MOVES = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]], dtype=torch.float64)
SEEN = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]], dtype=torch.float64)
POSSIBLE = torch.tensor([[0, 1, 1, 2], [0, 0, 1, 2], [1, 1, 2, 2]])
MIXED = torch.tensor([[0, 1, 1, 2], [2, 0, 1, 1], [1, 1, 2, 2]])  # no 0 after a 2
LEFT_OUT = "1 of 3 rows (the first at index 1) are impossible"


def chains(x: Tensor) -> None:
    first = pyro.sample("first", dist.Dirichlet(torch.full((3,), 1.5)))
    with pyro.plate("sequences", len(x)):
        chain = dist.DiscreteHMM(first.log(), MOVES.log(), dist.Categorical(SEEN))
        pyro.sample("x", chain, obs=x)


def loops(x: Tensor) -> None:
    first = pyro.sample("first", dist.Dirichlet(torch.full((3,), 1.5)))
    with pyro.plate("sequences", len(x)):
        state = None
        for t in pyro.markov(range(x.shape[1])):
            own = first @ MOVES if state is None else MOVES[state]
            state = pyro.sample(f"state_{t}", dist.Categorical(own))
            pyro.sample(f"x_{t}", dist.Categorical(SEEN[state]), obs=x[:, t])


ITEMS = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.0, 0.8]], dtype=torch.float64)


def items(x: Tensor) -> None:
    """Two items with three answers each, of which either kind of person rules one out."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        answers = dist.Categorical(ITEMS[z].unsqueeze(-2).expand([*z.shape, 2, 3]))
        pyro.sample("x", answers.to_event(1), obs=x)


def said(fit: Fit, ask: str, *args: Any) -> Any:
    with pytest.warns(RuntimeWarning, match="impossible under the estimates") as caught:
        answer = getattr(fit, ask)(*args)
    assert len(caught) == 1
    return answer


@pytest.mark.parametrize("model", [chains, loops])
def test_an_impossible_sequence_has_no_states(model: Any) -> None:
    fit = EM(model, seed=0).fit(POSSIBLE)
    assert fit.log_prob(MIXED).isneginf().tolist() == [False, True, False]
    assert EM(model).e_step(fit.params, MIXED).log_likelihood == -torch.inf
    posterior = said(fit, "posterior", "state", MIXED).probs
    pairs = said(fit, "posterior_pairs", "state", MIXED)
    path = said(fit, "predict", MIXED)
    assert posterior[1].isnan().all()
    assert pairs[1].isnan().all()
    assert path[1].tolist() == [-1, -1, -1, -1]
    for i in (0, 2):  # the others are as if it were not there
        alone = MIXED[i : i + 1]
        torch.testing.assert_close(posterior[i], fit.posterior("state", alone).probs[0])
        torch.testing.assert_close(pairs[i], fit.posterior_pairs("state", alone)[0])
        assert path[i].tolist() == fit.predict(alone)[0].tolist()


def test_a_forecast_ends_where_data_are_impossible() -> None:
    fit = EM(chains, seed=0).fit(POSSIBLE)
    with pytest.warns(RuntimeWarning, match=r"1 of 3 rows \(the first at index 1\)"):
        ahead = fit.forecast("x", MIXED)
    gone = ahead.mixture_distribution.probs.isnan().all(-1)
    assert gone.tolist() == [[False] * 5, [False, False, True, True, True], [False] * 5]
    torch.testing.assert_close(
        fit.forecast("state", MIXED[:1]).probs[0], ahead.mixture_distribution.probs[0]
    )


def test_an_impossible_row_of_a_mixture_belongs_to_no_component() -> None:
    fit = EM(items, seed=0).fit(torch.tensor([[0.0, 1.0], [0.0, 2.0], [2.0, 2.0], [1.0, 1.0]]))
    x = torch.tensor([[1.0, 1.0], [1.0, 2.0], [0.0, 2.0]])
    assert said(fit, "posterior", "z", x).probs.isnan().any(-1).tolist() == [False, True, False]
    assert said(fit, "predict", x).tolist() == [0, -1, 1]


def both(x: Tensor, y: Tensor) -> None:
    """An answer that may be impossible, and beside it a number that may be missing."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        answers = dist.Categorical(torch.eye(3)[:2][z])
        pyro.sample("x", answers, obs=x)
        pyro.sample("y", dist.Normal(10.0 * z, 1.0), obs=y)


def test_nothing_is_imputed_where_the_rest_is_impossible() -> None:
    fit = EM(both, seed=0).fit(torch.tensor([0, 1, 1]), torch.tensor([0.0, 10.0, 11.0]))
    new = torch.tensor([0, 2, 1]), torch.tensor([torch.nan, torch.nan, 8.0])
    filled = said(fit, "impute", *new)["y"]
    assert filled.isnan().tolist() == [False, True, False]
    assert filled.tolist()[::2] == [0.0, 8.0]
    with pytest.warns(RuntimeWarning, match="impossible under the estimates"):
        drawn = fit.impute(*new, draws=3, seed=0)["y"]
    assert drawn.isnan().tolist() == [[False, True, False]] * 3


def test_a_group_is_impossible_as_a_whole() -> None:
    """Rows below a latent of their group: one that contradicts another leaves nothing for it."""

    def groups(x: Tensor) -> None:
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        with pyro.plate("groups", x.shape[1]):
            kind = pyro.sample("kind", dist.Bernoulli(share))
            with pyro.plate("rows", x.shape[0]):
                pyro.sample("x", dist.Categorical(ITEMS[kind.long()]), obs=x)

    fit = EM(groups, seed=0).fit(torch.tensor([[0, 1, 2], [1, 1, 0]]))
    x = torch.tensor([[0, 1, 2], [1, 2, 2]])
    assert said(fit, "posterior", "kind", x).probs.isnan().any(-1).tolist() == [False, True, False]
    predicted = said(fit, "predict", x)  # a Bernoulli's values are floats
    assert predicted.isnan().tolist() == [False, True, False]
    assert predicted[2] == 1.0
