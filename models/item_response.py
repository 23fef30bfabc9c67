"""Item response theory: answers to items that depend on a continuous ability.

means, deviations (G - 1)      discriminations, intercepts (J), ...   (plate "items")
          |                         |
          v                         v
     ability (N)  ------------> answers (N, J)                        (plate "persons")
"""

from collections.abc import Sequence
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ember.models.parts.answers import check_answers, check_enough_answers, group_codes
from ember.models.parts.checks import check_option, row_frequency
from ember.models.parts.missing import observe, shown_entries
from ember.models.parts.plates import data_plate
from ember.models.parts.priors import Hyperparameters, Prior

__all__ = ["item_response"]

ON_NODES: Any = {"integrate": "quadrature"}  # a key that Pyro passes over
MODELS = ("rasch", "1pl", "2pl", "3pl", "graded")
KEYS = (
    "discrimination_shape", "discrimination_rate", "loading_scale", "intercept_scale",
    "step_shape", "step_rate", "guessing1", "guessing0",
    "mean_scale", "deviation_shape", "deviation_rate",
)  # fmt: skip


def item_response(
    answers: Tensor,
    model: str = "2pl",
    *,
    dimensions: int = 1,
    groups: Tensor | Sequence[int] | None = None,
    group_count: int | None = None,
    levels: int | None = None,
    prior: Prior | None = None,
    frequency: Tensor | Sequence[float] | None = None,
) -> None:
    """Answers of N persons to J items, given the ability of each person.

    Equations, with ability `theta_n`, discrimination `a_j` and intercept `d_j`::

        theta_n          ~ Normal(0, 1)
        logit p_nj       = a_j theta_n + d_j = a_j (theta_n - b_j)
        answers_nj       ~ Bernoulli(p_nj)

    ========== ======================================== ==========================================
    `model`    sites                                    answers
    ========== ======================================== ==========================================
    `"rasch"`  `intercepts` (J)                         as above, all discriminations 1
    `"1pl"`    `discriminations` (), `intercepts`       as above, one discrimination for all items
    `"2pl"`    `discriminations` (J), `intercepts`      as above
    `"3pl"`    the same and `guessing` (J)              right with probability c_j + (1 - c_j) p_nj
    `"graded"` `discriminations` (J), `intercepts` (J), levels 0, ..., L - 1: logit P(answer >= l)
               `steps` (J, L - 2)                       = a_j theta_n + d_jl, where d_j1 is the
                                                        intercept and d_j,l+1 is d_jl less a step
    ========== ======================================== ==========================================

    The published difficulties `b_j = -d_j / a_j` (graded: `b_jl`) are the deterministic site
    `difficulties`. With two `dimensions` ability is a vector, and the discriminations (J, 2) are
    made of the site `loadings` (2 J - 1), of either sign: the loading of the first item on the
    second dimension is 0, which keeps the axes from turning. They then have no single difficulty.

    With several `groups` the first is Normal(0, 1), and the sites `means` and `deviations` (G - 1,
    or G - 1 by 2) hold the mean and standard deviation of the ability in each other one.

    ========================= ============= =======================================================
    key of `prior`            default
    ========================= ============= =======================================================
    `"discrimination_shape"`  2             Gamma prior: its mode is 1, as in a Rasch model ...
    `"discrimination_rate"`   1             ... and it weighs as much as one observation
    `"loading_scale"`         3             Normal prior about 0 of the loadings, two dimensions
    `"intercept_scale"`       5             Normal prior about 0: log odds at ability 0
    `"step_shape"`            1.5           Gamma prior of the steps of graded answers: none is 0
    `"step_rate"`             0.1
    `"guessing1"`             5             Beta prior of guessing with mean 0.23: the data alone
    `"guessing0"`             17            seldom tell it
    `"mean_scale"`            5             Normal prior about 0 of the means of groups
    `"deviation_shape"`       2             Gamma prior of their standard deviations, mode 1
    `"deviation_rate"`        1
    ========================= ============= =======================================================

    Ability asks to be integrated by quadrature, `infer={"integrate": "quadrature"}`. That concerns
    Ember's EM alone: under SVI and MCMC it is a latent like any other. Discriminations of one
    dimension are positive: recode items that count the other way.

    Args:
        answers: codes (N, J), of any real dtype; parameters have torch's default dtype where it is
            integer or boolean. NaN stands for an answer that is missing at random.
        model: one of the models above. Pass it by its place to Pyro's own `SVI.step`, which has an
            argument of this name.
        dimensions: 1 or 2.
        groups: the group of each person (N,), codes 0, ..., G - 1; all are of one unless given.
        group_count: the number G of groups, read from `groups` unless given. Give it where a fitted
            model meets persons of some of the groups only.
        levels: the number L of levels of graded answers, read from `answers` unless given.
        prior: hyperparameters that replace the defaults, by the keys above.
        frequency: how many times each row counts (N,), non-negative; once unless given.

    Raises:
        TypeError: if `answers` is not a tensor, or an option has the wrong type.
        ValueError: if `answers` is not (N, J), holds anything but codes and NaN, or an item without
            an answer; if an option, a group or a key of `prior` is unknown; if two dimensions are
            asked of a model other than "2pl", or a hyperparameter or frequency is outside its
            domain.

    References:
        A. Birnbaum (1968). Some latent trait models. In Lord and Novick, Statistical Theories of
        Mental Test Scores, Addison-Wesley.
        F. Samejima (1969). Estimation of latent ability using a response pattern of graded scores.
        Psychometrika Monograph 17.
        R. D. Bock and M. Aitkin (1981). Marginal maximum likelihood estimation of item parameters:
        application of an EM algorithm. Psychometrika 46, 443-459.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> answers = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]])
        >>> trace = poutine.trace(item_response).get_trace(answers)
        >>> for name in ("discriminations", "intercepts", "difficulties", "ability", "answers"):
        ...     print(name, tuple(trace.nodes[name]["value"].shape))
        discriminations (3,)
        intercepts (3,)
        difficulties (3,)
        ability (4,)
        answers (4, 3)
    """
    check_option(model, "model", MODELS)
    _check_dimensions(dimensions, model)
    levels = check_answers(answers, levels, model)
    counts = row_frequency(frequency, answers)
    check_enough_answers(answers, counts)
    hyper = Hyperparameters(prior, KEYS, counts)
    shown, codes = shown_entries(answers), answers.to(counts.dtype)
    items = answers.shape[1]

    plate = pyro.plate("items", items)
    slopes = _discriminations(model, dimensions, plate, hyper)
    scale = hyper.above("intercept_scale", (items,), 5.0)
    with plate:
        intercepts = pyro.sample("intercepts", dist.Normal(0.0, scale))
        heights = _heights(intercepts, model, levels, hyper)
        guessing = _guessing(items, hyper) if model == "3pl" else None
    if dimensions == 1:
        steep = slopes.unsqueeze(-1) if heights.dim() > 1 and slopes.dim() else slopes
        pyro.deterministic("difficulties", -heights / steep)
    population = _population(groups, group_count, dimensions, answers, hyper)
    with data_plate(len(answers), None if frequency is None else counts, "persons"):
        ability = pyro.sample("ability", population, infer=ON_NODES)
        line = ability @ slopes.mT if dimensions > 1 else ability.unsqueeze(-1) * slopes
        observe("answers", _answer(line, heights, guessing).to_event(1), codes, shown)


def _check_dimensions(dimensions: object, model: str) -> None:
    check_option(dimensions, "dimensions", (1, 2))
    if dimensions != 1 and model != "2pl":
        raise ValueError(f"dimensions=2 needs model='2pl', not {model!r}.")


def _discriminations(
    model: str, dimensions: int, plate: pyro.plate, prior: Hyperparameters
) -> Tensor:
    """Declare the discriminations: (J), (J, 2), one number, or nothing but the number 1."""
    shape = prior.above("discrimination_shape", (), 2.0)
    rate = prior.above("discrimination_rate", (), 1.0)
    if model == "rasch":
        return shape.new_ones(())
    if model == "1pl":
        return torch.as_tensor(pyro.sample("discriminations", dist.Gamma(shape, rate)))
    if dimensions == 1:
        with plate:
            return torch.as_tensor(pyro.sample("discriminations", dist.Gamma(shape, rate)))
    items = plate.size
    scale = prior.above("loading_scale", (2 * items - 1,), 3.0)
    free = pyro.sample("loadings", dist.Normal(0.0, scale).to_event(1))
    second = torch.cat([free.new_zeros(1), free[items:]])
    return torch.as_tensor(
        pyro.deterministic("discriminations", torch.stack([free[:items], second], -1))
    )


def _heights(intercepts: Tensor, model: str, levels: int, prior: Hyperparameters) -> Tensor:
    """The intercept of each step up, (J) or (J, L - 1); of graded answers they fall."""
    if model != "graded":
        return intercepts
    if levels == 2:
        return intercepts.unsqueeze(-1)
    shape, rate = prior.above("step_shape", (), 1.5), prior.above("step_rate", (), 0.1)
    steps = pyro.sample("steps", dist.Gamma(shape, rate).expand([levels - 2]).to_event(1))
    down = torch.cat([torch.zeros_like(steps[..., :1]), steps.cumsum(-1)], -1)
    return intercepts.unsqueeze(-1) - down


def _guessing(items: int, prior: Hyperparameters) -> Tensor:
    """Declare the probability (J) of a right answer without ability."""
    right, wrong = prior.above("guessing1", (items,), 5.0), prior.above("guessing0", (items,), 17.0)
    return torch.as_tensor(pyro.sample("guessing", dist.Beta(right, wrong)))


def _population(
    groups: Tensor | Sequence[int] | None,
    group_count: int | None,
    dimensions: int,
    answers: Tensor,
    prior: Hyperparameters,
) -> TorchDistribution:
    """The distribution of ability: standard normal, or one for each group."""
    event = (dimensions,) if dimensions > 1 else ()
    zero, one = prior.like.new_zeros((1, *event)), prior.like.new_ones((1, *event))
    if groups is None:
        return cast(TorchDistribution, dist.Normal(zero[0], one[0]).to_event(len(event)))
    codes, count = group_codes(groups, group_count, answers)
    if count > 1:
        spread = prior.above("mean_scale", (), 5.0)
        shape = prior.above("deviation_shape", (), 2.0)
        rate = prior.above("deviation_rate", (), 1.0)
        with pyro.plate("groups", count - 1):
            mean = dist.Normal(0.0, spread).expand([*event]) if event else dist.Normal(0.0, spread)
            means = pyro.sample("means", mean.to_event(len(event)))
            deviation = dist.Gamma(shape, rate)
            deviation = deviation.expand([*event]).to_event(1) if event else deviation
            deviations = pyro.sample("deviations", deviation)
        zero, one = torch.cat([zero, means]), torch.cat([one, deviations])
    return cast(TorchDistribution, dist.Normal(zero[codes], one[codes]).to_event(len(event)))


def _answer(line: Tensor, heights: Tensor, guessing: Tensor | None) -> TorchDistribution:
    """The distribution of the answer to each item; its logits lose no digits far out."""
    if heights.dim() > 1:
        above = line.unsqueeze(-1) + heights  # log odds of at least 1, 2, ..., L - 1
        return cast(TorchDistribution, dist.Categorical(logits=_graded(above)))
    logits = line + heights
    if guessing is not None:
        softplus = torch.nn.functional.softplus(logits)
        logits = torch.logaddexp(torch.logit(guessing) + softplus, logits)
    return cast(TorchDistribution, dist.Bernoulli(logits=logits))


def _graded(above: Tensor) -> Tensor:
    """Log probabilities of levels, from the falling log odds of at least 1, 2, ..., L - 1."""
    log_sigmoid = torch.nn.functional.logsigmoid
    reached = torch.cat([torch.zeros_like(above[..., :1]), log_sigmoid(above)], -1)
    missed = torch.cat([log_sigmoid(-above), torch.zeros_like(above[..., :1])], -1)
    # sigmoid(s) - sigmoid(t) = sigmoid(s) sigmoid(-t) (1 - exp(t - s))
    between = torch.log(-torch.expm1(above[..., 1:] - above[..., :-1]))
    between = torch.nn.functional.pad(between, (1, 1))
    return reached + missed + between
