"""Labels of rows for a start: by k-means, random centres, agglomeration, or levels of the data.

Whatever the way, it looks at a bounded number of rows and then labels all of them by their nearest
centre, so that a start costs little more than a pass over the data.

References:
    Arthur & Vassilvitskii (2007), *k-means++*, SODA 1027-1035; Celebi, Kingravi & Vela (2013),
    Expert Systems with Applications 40, 200-210 (its greedy form, with several local trials);
    Ward (1963), JASA 58, 236-244;
    Fraley (1998), SIAM Journal on Scientific Computing 20, 270-281 (agglomeration as a start of
    EM); Biernacki, Celeux & Govaert (2003), CSDA 41, 561-575 (random centres).
"""

import math
import warnings

import numpy as np
import scipy.spatial.distance
import torch
from torch import Tensor

__all__ = ["KMEANS_TRIES", "cluster", "levels", "standardise"]


ROWS = 20_000  # rows that k-means and random centres look at
WARD_ROWS = 2_000  # rows that are agglomerated: time and memory grow with their square
KMEANS_TRIES = 5
ITERATIONS = 20
EVENNESS = 5.0  # of randomly cut levels: the concentration of their shares of the rows
Array = np.ndarray


def cluster(data: Tensor, states: int, how: str, tries: int = 1) -> Tensor:
    """A label for every row of standardised data.

    Args:
        data: Rows ``(N, F)``.
        states: The number of labels.
        how: "kmeans" (or "windows", of rows that are windows), "points" or "hierarchical".
        tries: How many seedings of k-means to choose the best of.

    Returns:
        Labels ``(N,)`` below ``states``; some may be missing where rows are few or alike.
    """
    generator = np.random.default_rng(int(torch.randint(2**31, (), device="cpu")))
    rows = data.cpu().numpy()
    match how:
        case "kmeans" | "windows":
            labels = _kmeans(rows, states, tries, generator)
        case "points":
            labels = _nearest(rows, _points(_some(rows, ROWS, generator), states, generator))
        case _:
            labels = _nearest(rows, _ward(_some(rows, WARD_ROWS, generator), states))
    return torch.from_numpy(labels.astype(np.int64)).to(data.device)


def levels(data: Tensor, states: int, varied: bool = False) -> Tensor:
    """A label for every row: from the lowest to the highest, cut at quantiles.

    Rows of several columns are put in order by their first principal component, equal rows at
    random.

    Args:
        data: Standardised rows ``(N, F)``.
        states: The number of labels.
        varied: Whether to cut at random instead of into equal parts.

    Returns:
        Labels ``(N,)`` below ``states``.
    """
    generator = np.random.default_rng(int(torch.randint(2**31, (), device="cpu")))
    rows = data.cpu().numpy()
    count, columns = rows.shape
    last = [columns - 1, columns - 1]
    _, component = scipy.linalg.eigh(rows.T @ rows, subset_by_index=last)
    order = np.lexsort((generator.random(count), rows @ component[:, 0]))
    shares = np.full(states, 1.0 / states)
    if varied:
        shares = generator.dirichlet(np.full(states, EVENNESS))
    labels = np.empty(count, dtype=np.int64)
    labels[order] = np.searchsorted(shares.cumsum()[:-1], (np.arange(count) + 0.5) / count)
    return torch.from_numpy(labels).to(data.device)


def standardise(data: Tensor) -> Tensor:
    """Columns with mean 0 and variance 1, missing entries at 0; constant columns are only moved."""
    missing = ~torch.isfinite(data)
    shown = data.masked_fill(missing, torch.nan)
    mean = shown.nanmean(0).nan_to_num()
    centred = (shown - mean).nan_to_num()
    scale = centred.square().mean(0).sqrt()
    return centred / torch.where(scale > 0, scale, torch.ones(()))


def _some(rows: Array, most: int, generator: np.random.Generator) -> Array:
    """All rows, or a random sample of them where they are many."""
    return rows[generator.choice(len(rows), most, replace=False)] if len(rows) > most else rows


def _nearest(rows: Array, centres: Array) -> Array:
    labels: Array = scipy.cluster.vq.vq(rows, centres)[0]
    return labels


def _kmeans(rows: Array, states: int, tries: int, generator: np.random.Generator) -> Array:
    sample = _some(rows, ROWS, generator)
    best: Array = np.zeros(len(rows), dtype=np.int64)
    lowest = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty cluster only means fewer distinct centres
        for _ in range(tries if states > 1 else 1):
            seeds = _seeds(sample, states, generator)
            centres, _ = scipy.cluster.vq.kmeans2(
                sample, seeds, iter=ITERATIONS, minit="matrix", missing="warn"
            )
            labels, distances = scipy.cluster.vq.vq(rows, centres)
            inertia = float((distances**2).sum())
            if inertia < lowest:
                best, lowest = labels, inertia
    return best


def _seeds(rows: Array, states: int, generator: np.random.Generator) -> Array:
    """Rows as first centres by greedy k-means++: each the best of a few drawn far from the others.

    Of rows drawn by their squared distance to the nearest centre, the one is taken that leaves the
    least sum of these.
    """
    trials = 2 + int(math.log(states))
    chosen = [rows[generator.integers(len(rows))]]
    nearest = _squared_distances(rows, chosen[0][None])[0]
    while len(chosen) < states:
        total = nearest.cumsum()
        drawn = np.searchsorted(total, generator.random(trials) * total[-1], side="right")
        candidates = rows[drawn.clip(max=len(rows) - 1)]
        left = np.minimum(nearest, _squared_distances(rows, candidates))
        best = int(left.sum(1).argmin())
        chosen.append(candidates[best])
        nearest = left[best]
    return np.stack(chosen)


def _squared_distances(rows: Array, centres: Array) -> Array:
    """Of every centre to every row, ``(C, N)``; from differences, so that no digit is lost."""
    found: Array = scipy.spatial.distance.cdist(centres, rows, "sqeuclidean")
    return found


def _points(rows: Array, states: int, generator: np.random.Generator) -> Array:
    """Random rows as centres, no two of them alike where the data allow it."""
    order = generator.permutation(len(rows))
    _, first = np.unique(rows[order], axis=0, return_index=True)
    return rows[order[np.sort(first)[:states]]]


def _ward(rows: Array, states: int) -> Array:
    """The centroids of the clusters at which Ward's agglomeration has ``states`` of them left."""
    if len(rows) < 2:
        return rows
    tree = scipy.cluster.hierarchy.linkage(rows, "ward")
    labels = scipy.cluster.hierarchy.fcluster(tree, states, "maxclust")
    return np.stack([rows[labels == label].mean(0) for label in np.unique(labels)])
