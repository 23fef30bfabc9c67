"""Where EM starts: responsibilities, then one M-step.

Starting from responsibilities rather than from parameters lets every family, prior and link find
its own starting values, by the same M-step that the loop uses. The kinds of start:

==============  ==================================================================================
"kmeans"        k-means++ on the standardised data below each latent, the best of a few seedings
"points"        random rows as centres, every row to the nearest (Biernacki et al. 2003)
"hierarchical"  Ward's agglomeration, of a random subset where rows are many, every row to the
                nearest centroid; the same each time as long as all rows are agglomerated
"random"        random responsibilities, row by row. Every component then starts near the whole
                data, close to the saddle at which all are alike. That suits latent classes. A
                single start of a Gaussian mixture is slow and chancy so, and no way of drawing
                responsibilities row by row mends it ("points" is the remedy); yet among several
                starts it now and then finds the optimum that clusters do not lead to.
"sticky"        for chains: states are levels of the data (quantiles of their first principal
                component). The same as "kmeans" where there is no chain
"windows"       k-means on the steps of a chain next to the one before and the one after: where few
                values are emitted, what tells states apart is the order in which they come. The
                same as "kmeans" where there is no chain
"prior"         parameters drawn from the model's own priors, without responsibilities
==============  ==================================================================================

A chain starts with persistent moves, whatever the labels of neighbouring steps are; at "windows"
and "random" alone its moves are those of the labels.

A latent on nodes has no states: whatever the kind, its rows are spread around scores of the data
(``scores.py``), at "random" around random ones.

A latent without data of its own starts at random, whatever the kind. With several starts the first
is the wished one and the others are of several kinds (``start_kinds``), since no kind is best for
all data: an optimum that one kind never leads to is often found by another.

References:
    Biernacki, Celeux & Govaert (2003), *Choosing starting values for the EM algorithm*,
    Computational Statistics & Data Analysis 41, 561-575; Zucchini, MacDonald & Langrock (2016),
    *Hidden Markov Models for Time Series*, ch. 3 (quantiles as starting values of states).
"""

import contextlib
import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ember.inference.expectation.completed import completed, completed_on_nodes
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.initialisation.clustering import KMEANS_TRIES, cluster, levels, standardise
from ember.inference.initialisation.features import dims_of, features, windows
from ember.inference.initialisation.gaussian_moments import starting_moments
from ember.inference.initialisation.given_params import check_params
from ember.inference.initialisation.known_latents import with_known
from ember.inference.initialisation.numbering import best_numbering
from ember.inference.initialisation.prior_draws import draw_from_priors
from ember.inference.initialisation.responsibilities import weights_of
from ember.inference.initialisation.scores import Scores, scores_of
from ember.inference.maximisation.degeneracy import Degenerate
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.updates import How, updates
from ember.inference.optimality.curvature import Curvature
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.parameters.supports import bounds, inwards
from ember.inference.plan.plan import Near, Plan
from ember.inference.queries.coincidence import coinciding

__all__ = ["Init", "has_states", "params_from", "start_kinds", "starting_params"]


Init = str | Mapping[str, Tensor] | Callable[..., Mapping[str, Tensor]]
BLEND = 0.05  # share of the uniform in a k-means start: a probability of exactly 0 would stay 0
OFF = 0.01  # of an interval's width, which a start keeps from its ends
COMPLETIONS = 3  # of what else is latent, the responsibilities being as they are
FROM_DATA = ("windows", "random")  # kinds whose labels say how a chain moves
SAME = 1e-9  # difference of log probabilities of states that a start has left alike
STAY = 0.9  # weight of staying at other kinds, the rest goes to all states alike
STAYS = (0.6, 0.98)  # its range in sticky starts that should differ
FOR_CHAINS = ("windows", "sticky")
OTHERS = ("points", "random", "kmeans")  # the kinds that further starts go through in turn


def start_kinds(init: Init, count: int, chains: bool = False) -> list[Init]:
    """The wished start, then others of several kinds in turn; one of them is hierarchical.

    Where the model has ``chains``, the kinds made for them come first among the others.
    """
    turn: list[Init] = [kind for kind in OTHERS if kind != init]
    if chains:
        turn = [*(kind for kind in FOR_CHAINS if kind != init), *turn]
    if isinstance(init, str) and init != "hierarchical" and init not in turn:
        turn.append(init)
    once: list[Init] = [] if init == "hierarchical" else ["hierarchical"]
    others = itertools.chain(turn[:2], once, turn[2:], itertools.cycle(turn))
    return [init, *itertools.islice(others, count - 1)]


def has_states(plan: Plan) -> bool:
    """Whether a latent has several values, so that a start can share out the data among them."""
    return any(plan.sizes.get(symbol, 1) > 1 for symbol in plan.latent_symbols.values())


def starting_params(plan: Plan, init: Init, varied: bool = False) -> dict[str, Tensor]:
    """Parameters to start from, by the user's choice of ``init``.

    Args:
        plan: The plan to start.
        init: A kind of start (see above), a (possibly partial) dict of constrained values, or a
            callable that returns one when given the model's arguments.
        varied: Whether k-means takes its first seeding instead of the best of a few, a sticky
            start random levels and persistence, and a model of one state random weights of the
            rows: starts of one kind should differ.

    Raises:
        ValueError: If a given value names no parameter, or has the wrong shape or support.
    """
    if callable(init):
        init = init(*plan.structure.arguments.args, **plan.structure.arguments.kwargs)
        if not isinstance(init, Mapping):
            raise TypeError(
                f"init returned {type(init).__name__}; a callable returns a dict of parameters."
            )
    default = {name: p.start.clone() for name, p in plan.structure.parameters.items()}

    def begun(how: str) -> dict[str, Tensor]:
        return _off_the_ends(plan, _from_responsibilities(plan, default, how, varied))

    if init == "prior":
        return draw_from_priors(plan)
    if isinstance(init, str):
        params = begun(init)
        if init == "random" or coinciding(plan, params, SAME) is None:
            return params
        return begun("random")  # where states are all alike EM has nothing to tell them apart by
    given = check_params(plan, init, partial=True)
    if given.keys() == default.keys():
        return given
    return {**begun("kmeans"), **given}


def _off_the_ends(plan: Plan, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters a little inside intervals of the user's own, at whose ends no step would count."""
    found = dict(params)
    for name, parameter in plan.structure.parameters.items():
        limits = bounds(parameter.support)
        # A rate of nought, or a probability, may be what the data say.
        if limits is None or None in limits or limits == (0.0, 1.0):
            continue
        way = inwards(parameter, params[name])
        found[name] = params[name] if way is None else params[name] + OFF * way
    return found


def _from_responsibilities(
    plan: Plan, params: dict[str, Tensor], how: str, varied: bool
) -> dict[str, Tensor]:
    if not plan.structure.latent:
        params = _apart(plan, params)
        if not plan.has_gaps and not plan.components and not plan.conjugate:
            return params
        try:
            found = _completed(plan, params, _weighed(plan, {}, varied), varied)
        except Degenerate:
            if plan.has_gaps:
                raise
            return params
        return {**found, **_dynamics(plan, params)}
    rows = features(plan) if how != "random" else {}
    clusters = _clusters(plan, rows, how, varied)
    responsibilities = {
        name: clusters[name] if name in clusters else _random(plan, name)
        for name in plan.discrete_latents
    }
    scores = _scores(plan, rows, varied)
    evidence = LogEvidence.of(plan)
    if evidence.on_nodes is not None:
        weights = scores[evidence.on_nodes.latent].weights
        return MStep.of(plan)(completed_on_nodes(plan, params, weights))
    for name, own in scores.items():
        places = [plan.sizes[symbol] for symbol in plan.places(name)]
        responsibilities[name] = own.weights().reshape(*places, -1)
    stay = float(torch.empty(()).uniform_(*STAYS)) if varied and how == "sticky" else STAY

    def start(numbered: Mapping[str, Tensor]) -> dict[str, Tensor]:
        numbered = with_known(plan, numbered)
        if how in FROM_DATA:
            return params_from(plan, params, numbered)
        try:
            return _completed(plan, params, _weighed(plan, numbered, varied, stay), varied)
        except Degenerate:
            if not clusters:
                raise
            # Among clusters that lie very far apart the uniform share of the others is all that is
            # seen of a component's spread.
            sharp = {
                name: (r == r.amax(-1, keepdim=True)).to(r)
                for name, r in numbered.items()
                if name in clusters
            }
            weights = _weighed(plan, {**numbered, **sharp}, varied, stay)
            with contextlib.suppress(Degenerate):
                return _completed(plan, params, weights, varied)
            raise

    return best_numbering(plan, responsibilities, start)


def _scores(plan: Plan, rows: Mapping[str, Tensor], varied: bool) -> dict[str, Scores]:
    """The scores of each latent on nodes; no two share a principal component."""
    scores: dict[str, Scores] = {}
    taken = 0
    for name, nodes in plan.structure.nodes.items():
        scores[name] = scores_of(plan, name, rows.get(name), taken, varied)
        taken += nodes.values[0].numel()
    return scores


def _weighed(
    plan: Plan, responsibilities: Mapping[str, Tensor], varied: bool, stay: float | None = None
) -> dict[str, Tensor]:
    """The weight of every factor's entries; at random where starts should differ but cannot."""
    weights = weights_of(plan, responsibilities, stay)
    if has_states(plan) or not varied:
        return weights
    return {name: each * torch.empty_like(each).exponential_() for name, each in weights.items()}


def params_from(
    plan: Plan, params: Mapping[str, Tensor], responsibilities: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The M-step for given responsibilities ``(*plates, K)`` of every latent."""
    return _completed(plan, params, weights_of(plan, responsibilities))


def _completed(
    plan: Plan,
    params: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    varied: bool = False,
) -> dict[str, Tensor]:
    """One M-step; where more than that is latent, a few more, each completing it given the last."""
    moments = starting_moments(plan, params, varied)
    moved = MStep.of(plan)(completed(plan, params, weights, True, moments))
    for _ in range(COMPLETIONS if plan.has_gaps or plan.conjugate else 0):
        moved = MStep.of(plan)(completed(plan, moved, weights))
    return moved


def _dynamics(plan: Plan, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What moves the Gaussian states of a chain, where its prior says more than that of zero.

    Components of the data that no parameter has seen yet mix motions that a prior tells apart.
    """
    moving: set[str] = set()
    for chain in plan.structure.gaussian_chains:
        density = plan.sites[chain.latent].density
        moving.update(density.maps["loc"][1].sources if density is not None else ())
    parameters = plan.structure.parameters
    return {
        name: params[name]
        for name in moving
        if parameters[name].has_prior and bool((params[name] != 0).any())
    }


def _apart(plan: Plan, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moves numerically updated parameters off their default, where equal entries may be stuck.

    A mixture whose latent was summed out by hand has a saddle where its components are equal. A
    move is a fraction of a standard deviation, so that covariates may have any units.
    """
    names = [update.name for update in updates(plan) if update.how is How.NUMERICAL]
    coordinates = Coordinates({name: plan.structure.parameters[name] for name in names})
    if not names:
        return params
    flat = coordinates.flatten(params)
    moved = flat + plan.once(_widths, tuple(names), Near(params)) * torch.randn(flat.shape)
    apart = coordinates.unflatten(torch.where(torch.isfinite(flat), moved, flat))
    return {**params, **{name: value.clone() for name, value in apart.items()}}


def _widths(plan: Plan, names: tuple[str, ...], near: Near) -> Tensor:
    """How far to move each coordinate: a tenth, or half a standard deviation if that is less."""
    params = near.params
    coordinates = Coordinates({name: plan.structure.parameters[name] for name in names})
    most = torch.full(coordinates.flatten(params).shape, 0.1)
    every = Coordinates(plan.structure.parameters)
    try:
        curvature = Curvature.at(every, completed(plan, params, weights_of(plan, {})))
    except (RuntimeError, ValueError, ArithmeticError):
        return most
    if curvature is None or curvature.matrix is None:
        return most
    information = curvature.matrix.diagonal()[every.places(names)]
    return torch.where(information > 0.0, torch.minimum(most, 0.5 * information.rsqrt()), most)


def _random(plan: Plan, name: str) -> Tensor:
    *plates, states = (plan.sizes[symbol] for symbol in dims_of(plan, name))
    concentration = torch.full((*plates, states), 0.5)
    return torch.distributions.Dirichlet(concentration, validate_args=False).sample()


def _clusters(plan: Plan, data: Mapping[str, Tensor], how: str, varied: bool) -> dict[str, Tensor]:
    """Responsibilities from clusters of the data that each latent explains, standardised.

    Latents with as many states and features, such as the steps of a chain, share one clustering.
    Latents without data of their own are left out.
    """
    pools: dict[tuple[int, int, str], list[tuple[str, Tensor]]] = {}
    for name, rows in data.items():
        if name in plan.on_nodes:
            continue
        kind = "kmeans" if how in FOR_CHAINS and name not in plan.chains else how
        if kind == "windows":
            rows = windows(plan, name, rows)
        states = plan.sizes[plan.latent_symbols[name]]
        pools.setdefault((states, rows.shape[1], kind), []).append((name, rows))
    responsibilities = {}
    for (states, _, kind), members in pools.items():
        rows = standardise(torch.cat([rows for _, rows in members]))
        if kind == "sticky":
            labels = levels(rows, states, varied)
        else:
            labels = cluster(rows, states, kind, 1 if varied else KMEANS_TRIES)
        one_hot = torch.nn.functional.one_hot(labels, states).to(torch.float64)
        soft = (1.0 - BLEND) * one_hot + BLEND / states
        pieces = soft.split([len(rows) for _, rows in members])
        for (name, _), piece in zip(members, pieces, strict=True):
            responsibilities[name] = piece.reshape([plan.sizes[s] for s in dims_of(plan, name)])
    return responsibilities
