r"""Split-and-merge: leaving an optimum with two components in one cluster and one in two.

After convergence the components :math:`i, j` whose posteriors :math:`P` overlap most are merged,
and the component :math:`k` whose density is farthest from the rows that it holds is split:

.. math::

    J_\text{merge}(i, j) = P_i^\top P_j, \qquad
    J_\text{split}(k) = \sum_n f_k(x_n) \log \frac{f_k(x_n)}{p(x_n \mid k, \theta)}, \quad
    f_k(x_n) = \frac{P(k \mid x_n)}{\sum_m P(k \mid x_m)}.

A few EM steps then move these three alone, their share of each row held fixed, and the whole loop
follows. What it reaches is kept if the objective has risen; otherwise the next candidate is tried.
A merge is a sum of responsibilities and a split shares them out, so any family will do.

Reference: Ueda, Nakano, Ghahramani & Hinton (2000), *SMEM algorithm for mixture models*, Neural
Computation 12, 2109-2128.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.expectation.posterior import marginals
from ember.inference.factors.factor import align
from ember.inference.initialisation.clustering import KMEANS_TRIES, cluster, standardise
from ember.inference.initialisation.features import features
from ember.inference.initialisation.starting_params import BLEND, params_from
from ember.inference.iteration.convergence import StopReason
from ember.inference.iteration.loop import ImpossibleStart
from ember.inference.iteration.run import Run
from ember.inference.plan.plan import Plan
from ember.inference.plan.potentials import all_tensors
from ember.inference.queries.component_axes import numberings

__all__ = ["check_mixture", "split_and_merge"]


CANDIDATES = 5  # triples (merge, merge, split) tried from one optimum; the paper's number
PARTIAL = 20  # EM steps of the three alone
SETTLED = 1e-3  # change of a responsibility below which the three are at rest
Params = dict[str, Tensor]
Triple = tuple[int, int, int]


def check_mixture(plan: Plan) -> None:
    """Refuses a model that is no plain mixture: one latent, one value of it for each row.

    Raises:
        ValueError: Naming the latent sites.
    """
    latent = plan.structure.latent
    chain = bool(plan.structure.steps or plan.chains)
    plain = len(latent) == 1 and plan.row is not None and not chain and not plan.on_nodes
    if not plain or plan.sites[latent[0]].plates != {plan.row}:
        raise ValueError(
            "escape='split-merge' needs a plain mixture, with one latent site that has one value "
            "of finitely many for each row, but the model's latent sites are "
            f"{[*numberings(plan), *sorted(plan.on_nodes)]}; leave "
            "escape out and use restarts=... or anneal=... instead."
        )


def split_and_merge(plan: Plan, fit: Run, run: Callable[[Params], Run], tolerance: float) -> Run:
    """A fit that is at least as good, after all splits and merges that raised the objective.

    Args:
        plan: The plan of a plain mixture; with fewer than three components there is nothing to do.
        fit: A fit at an optimum.
        run: The whole loop from given parameters.
        tolerance: Share of the objective that counts as a rise.

    An interrupt ends it with the best fit so far.
    """
    better: Run | None = fit
    try:
        while better is not None:
            fit, better = better, None
            spent = 0
            for triple in _candidates(plan, fit.params):
                try:
                    attempt = run(_exchanged(plan, fit.params, triple))
                except (ArithmeticError, RuntimeError, ImpossibleStart):
                    continue
                spent += attempt.evaluations
                last = float(fit.history[-1])
                rise = float(attempt.history[-1]) - last
                if not attempt.is_degenerate and rise > tolerance * (1.0 + abs(last)):
                    better = _continued(fit, attempt, spent)
                if attempt.stop is StopReason.INTERRUPTED:
                    raise KeyboardInterrupt
                if better is not None:
                    break
            else:
                fit = dataclasses.replace(fit, evaluations=fit.evaluations + spent)
    except KeyboardInterrupt:
        return dataclasses.replace(better or fit, stop=StopReason.INTERRUPTED)
    return fit


def _continued(before: Run, after: Run, spent: int) -> Run:
    """The better fit, with the history of both as far as the objective was a new highest."""
    higher = after.history > before.history[-1]
    return dataclasses.replace(
        after,
        history=torch.cat([before.history, after.history[higher]]),
        times=torch.cat([before.times, after.times[higher]]),
        evaluations=before.evaluations + spent,
        starts=before.starts,
    )


def _candidates(plan: Plan, params: Params) -> Iterator[Triple]:
    """Components to merge (two) and to split (one), the most promising triples first."""
    posterior, weight = _posterior(plan, params)
    count = posterior.shape[1]
    overlap = (posterior * weight).T @ posterior
    misfit = _misfit(plan, params, posterior, weight)
    pairs = sorted(itertools.combinations(range(count), 2), key=lambda p: -float(overlap[p]))
    worst = torch.argsort(misfit, descending=True).tolist()
    triples = ((i, j, k) for i, j in pairs for k in worst if k not in (i, j))
    return itertools.islice(triples, CANDIDATES)


def _posterior(plan: Plan, params: Params) -> tuple[Tensor, Tensor]:
    """Responsibilities ``(N, K)`` and the weight of each row ``(N, 1)``."""
    (latent,) = plan.structure.latent
    assert plan.row is not None
    scale = plan.scales[latent]
    rows = plan.sizes[plan.row]
    weight = torch.ones(rows) if scale is None else align(scale.tensor, scale.dims, (plan.row,))
    posterior = marginals(plan, params, [latent])[latent].nan_to_num()  # rows of weight zero
    return posterior, weight.expand(rows).unsqueeze(1)


def _misfit(plan: Plan, params: Params, posterior: Tensor, weight: Tensor) -> Tensor:
    """The local Kullback divergence of every component, ``(K,)``."""
    (latent,) = plan.structure.latent
    with torch.no_grad():
        tensors = all_tensors(plan, params)
        names = [factor.name for factor in plan.factors]
        at = names.index(latent)
        union = (str(plan.row), plan.latent_symbols[latent])
        log_weights = align(tensors[at], plan.factors[at].dims, union)
        log_joint = posterior.log() + LogEvidence.of(plan).rows(params).unsqueeze(1)
    held = (posterior * weight).sum(0).clamp_min(torch.finfo(weight.dtype).tiny)
    share = posterior * weight / held
    terms = share * (posterior.log() - held.log() - (log_joint - log_weights))
    return torch.where(share > 0, terms, torch.zeros(())).sum(0)


def _exchanged(plan: Plan, params: Params, triple: Triple) -> Params:
    """Parameters after one merge, one split and a few EM steps of the three components alone.

    Raises:
        Degenerate: If a component has collapsed or emptied on the way.
    """
    (latent,) = plan.structure.latent
    posterior, weight = _posterior(plan, params)
    merged, free, split = triple
    trio = list(triple)
    held = posterior[:, trio].sum(1, keepdim=True)
    side = _sides(plan, posterior[:, split] * weight[:, 0])
    shared = posterior.clone()
    shared[:, merged] = posterior[:, merged] + posterior[:, free]
    shared[:, free] = posterior[:, split] * side
    shared[:, split] = posterior[:, split] * (1.0 - side)
    for _ in range(PARTIAL):
        params = params_from(plan, params, {latent: shared})
        shares = marginals(plan, params, [latent])[latent][:, trio]
        shares = shares.clamp_min(torch.finfo(shares.dtype).tiny)
        renewed = held * shares / shares.sum(1, keepdim=True)
        change = float((renewed - shared[:, trio]).abs().max())
        shared[:, trio] = renewed
        if change < SETTLED:
            break
    return params_from(plan, params, {latent: shared})


def _sides(plan: Plan, weight: Tensor) -> Tensor:
    """The share of one half in each row when rows of these weights are cut in two, ``(N,)``."""
    heavy = weight > 0.5 * weight.max()
    side = torch.full_like(weight, 0.5)
    columns = list(features(plan).values())
    if columns and int(heavy.sum()) > 1:
        labels = cluster(standardise(columns[0][heavy]), 2, "kmeans", KMEANS_TRIES)
        side[heavy] = BLEND + (1.0 - 2.0 * BLEND) * labels.to(weight.dtype)
    else:
        side = torch.rand(weight.shape)
    return side
