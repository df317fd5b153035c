"""How good lists and predictions are, vectorised over all users: ranking, beyond accuracy, classes.

Ranking metrics take `Hits` and give one value per user of the truth who has something to find, in the order of
`np.unique(truth.user)`. Metrics of lists alone give one value per row of the `Recommendations`. Lists meet the truth on
positions, so padding is never a hit, and lists count as ranked: equal scores are judged in the order listed.
Means, intervals and tests are the business of `uncertainty.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from recotransfer.data import Embeddings, IdMap, Interactions, Recommendations
from recotransfer.errors import InputError

Float = NDArray[np.float64]

POPULARITY_BUCKETS = ((0, 0), (1, 5), (6, 20), (21, None))  # least and most distinct training users of an item
POPULARITY_BUCKET_NAMES = ("0", "1-5", "6-20", ">20")
_BLOCK = 1 << 22  # numbers held at once
_SMOOTHING = 0.01  # Steck's share of the history's mix in the list's


class Ranks(NamedTuple):
    """Each distinct true pair, positions in the truth's `users` and `items`, and its `rank` from 0, -1 if unlisted."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    rank: NDArray[np.int64]


class Hits(NamedTuple):
    """What the lists found: `found` (users, k) bool and `relevant` (users,) number of true items, one at least."""

    found: NDArray[np.bool_]
    relevant: NDArray[np.int64]


def ranks(recommendations: Recommendations, truth: Interactions) -> Ranks:
    """One row per distinct pair of `truth`, sorted by user, then item; a user without a list finds nothing.

    Raises:
        InputError: a user who has two lists.
    """
    user, item = _pairs(truth)
    row = IdMap(recommendations.users).positions(truth.users.ids, missing="negative")[user]
    position = recommendations.catalogue.positions(truth.items.ids, missing="negative")[item]
    rank = np.full(len(user), -1)
    known = np.flatnonzero((row >= 0) & (position >= 0))
    step = max(1, _BLOCK // max(1, recommendations.positions.shape[1]))
    for start in range(0, len(known), step):
        some = known[start : start + step]
        pair, place = np.nonzero(recommendations.positions[row[some]] == position[some, None])
        rank[some[pair]] = place
    return Ranks(user, item, rank)


def hits(recommendations: Recommendations, truth: Interactions) -> Hits:
    """Hits of the users who have something to find; a user without a list finds nothing.

    Users of `truth` without a true item are left out. Positions past the end of a list are misses.
    """
    user, _, rank = ranks(recommendations, truth)
    _, row, relevant = np.unique(user, return_inverse=True, return_counts=True)
    found = np.zeros((len(relevant), recommendations.positions.shape[1]), bool)
    listed = rank >= 0
    found[row[listed], rank[listed]] = True
    return Hits(found, relevant.astype(np.int64))


def recall(found: Hits, k: int) -> Float:
    """(users,) share of each user's true items that stand among the first k."""
    return np.asarray(_first(found, k).sum(axis=1) / found.relevant)


def precision(found: Hits, k: int) -> Float:
    """(users,) share of k places that hold a true item; the missing places of a short list are misses."""
    return np.asarray(_first(found, k).sum(axis=1) / k)


def hit_rate(found: Hits, k: int) -> Float:
    """(users,) 1 where a true item stands among the first k, else 0."""
    return np.asarray(_first(found, k).any(axis=1), np.float64)


def mrr(found: Hits, k: int) -> Float:
    """(users,) one over the rank, from 1, of the first true item; 0 where none stands among the first k."""
    first = _first(found, k)
    return np.asarray(first.any(axis=1) / (first.argmax(axis=1) + 1))


def average_precision(found: Hits, k: int) -> Float:
    """(users,) precision at each hit among the first k, summed, over the hits there could be: min(true items, k).

    So a list of k true items has 1. trec_eval's `map` and `map_cut` divide by all true items instead, and give less
    where a user has more than k.
    """
    first = _first(found, k)
    at_hits = np.where(first, np.cumsum(first, axis=1) / np.arange(1, k + 1), 0.0)
    return np.asarray(at_hits.sum(axis=1) / np.minimum(found.relevant, k))


def ndcg(found: Hits, k: int) -> Float:
    """(users,) discounted gain of the first k over that of the best possible list, binary relevance, log2 discount.

    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques" (2002).
    """
    gain = 1 / np.log2(np.arange(2, k + 2))
    return np.asarray(_first(found, k) @ gain / np.cumsum(gain)[np.minimum(found.relevant, k) - 1])


_RANKING = {
    "recall": recall,
    "precision": precision,
    "hit_rate": hit_rate,
    "mrr": mrr,
    "map": average_precision,
    "ndcg": ndcg,
}


def rank_metrics(found: Hits, ks: Sequence[int]) -> dict[str, Float]:
    """Every ranking metric at every cut, (users,) each, by names such as "ndcg@10" and "recall@20".

    The names are recall, precision, hit_rate, mrr, map (`average_precision`) and ndcg.
    """
    return {f"{name}@{k}": metric(found, k) for k in ks for name, metric in _RANKING.items()}


def auc(recommendations: Recommendations, truth: Interactions, candidates: ArrayLike) -> Float:
    """(users,) chance that a true item stands before another candidate: area under the ROC curve of the whole ranking.

    Candidates that are not listed stand after the list and tie with each other, a tie counting half; a user without a
    list has .5. True items outside the catalogue are candidates too. NaN where every candidate is true.

    Args:
        recommendations: lists of any length; the longer, the fewer ties.
        truth: the true pairs.
        candidates: how many items could have been listed, listed and true ones included: one number, or (users,).

    Raises:
        InputError: candidates fewer than the items that are listed or true.
    """
    user, _, rank = ranks(recommendations, truth)
    asked, row, relevant = np.unique(user, return_inverse=True, return_counts=True)
    try:
        total = np.broadcast_to(np.asarray(candidates, np.int64), asked.shape)
    except ValueError:
        raise InputError(
            f"candidates: {np.size(candidates)} numbers, wanted one, or {len(asked)} for the users"
        ) from None
    at = IdMap(recommendations.users).positions(truth.users.take(asked), missing="negative")
    lengths = np.append((recommendations.positions >= 0).sum(axis=1), 0)[at]  # -1 takes the 0
    listed = rank >= 0
    hit = np.bincount(row[listed], minlength=len(asked))
    if (short := np.flatnonzero(total < lengths + relevant - hit)).size:
        needed = (lengths + relevant - hit)[short[0]]
        raise InputError(
            f"{total[short[0]]} candidates for user {truth.users.take(asked[short[:1]])[0]!r}, who has {needed} items "
            "listed or true; count every item that could have been listed"
        )
    # Other items that stand before each listed true one: its rank less the true ones before it.
    before = np.bincount(row[listed], weights=rank[listed], minlength=len(asked)) - hit * (hit - 1) / 2
    others = total - relevant
    won = hit * others - before + (relevant - hit) * (others - (lengths - hit)) / 2
    return _ratio(won, relevant * others)


def popularity_counts(events: Interactions) -> NDArray[np.int64]:
    """(items,) distinct users of each item."""
    return np.bincount(_pairs(events)[1], minlength=len(events.items)).astype(np.int64)


def popularity_bucket(counts: ArrayLike) -> NDArray[np.int64]:
    """(n,) position in `POPULARITY_BUCKETS` of items with these numbers of distinct training users."""
    starts = [least for least, _ in POPULARITY_BUCKETS]
    return np.asarray(np.searchsorted(starts, np.asarray(counts), side="right") - 1, np.int64)


def coverage(recommendations: Recommendations, k: int, mask: NDArray[np.bool_] | None = None) -> float:
    """Share of the catalogue (of `mask`, the items that may be shown) that stands in at least one list's first k.

    NaN where no item may be shown.
    """
    shown = _times_shown(recommendations, k, mask)
    return float(np.mean(shown > 0)) if len(shown) else float("nan")


def gini(recommendations: Recommendations, k: int, mask: NDArray[np.bool_] | None = None) -> float:
    """Gini coefficient of how often each item stands in a first k: 0 all alike, towards 1 few take everything.

    Items of the catalogue (of `mask`, the items that may be shown) that are never listed count as zeros. NaN where
    nothing is listed.
    """
    shown = np.sort(_times_shown(recommendations, k, mask))
    n, total = len(shown), shown.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ shown / (n * total)) if total else float("nan")


def average_popularity(recommendations: Recommendations, popularity: ArrayLike, k: int) -> Float:
    """(lists,) mean `popularity` (items of the catalogue,) of the first k; NaN for an empty list."""
    return _list_mean(recommendations, popularity, k)


def novelty(recommendations: Recommendations, popularity: ArrayLike, users: int, k: int) -> Float:
    """(lists,) mean self-information of the first k in bits: minus log2 of the chance that a user has the item.

    The chance is Laplace's, (its users + 1) / (users + 2), so that an item without users has a finite value. NaN for an
    empty list. Zhou et al., "Solving the apparent diversity-accuracy dilemma of recommender systems" (2010).

    Args:
        recommendations: the lists.
        popularity: (items of the catalogue,) distinct training users of each, see `popularity_counts`.
        users: number of training users.
        k: list length.

    Raises:
        InputError: an item with more users than there are, or fewer than none.
    """
    counts = np.asarray(popularity, np.float64)
    if counts.size and not (counts.min() >= 0 and counts.max() <= users):
        raise InputError(
            f"popularity lies in {counts.min():g}..{counts.max():g}, wanted 0..{users}, the distinct users"
        )
    return _list_mean(recommendations, -np.log2((counts + 1) / (users + 2)), k)


def intra_list_diversity(recommendations: Recommendations, embeddings: Embeddings, k: int) -> Float:
    """(lists,) one minus the mean cosine of all pairs among the first k: 0 all alike, 1 unrelated, at most 2.

    Items without content are left out; NaN where fewer than two remain.
    Ziegler et al., "Improving recommendation lists through topic diversification" (2005).
    """
    vectors = embeddings.align(recommendations.catalogue).vectors
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    scale = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    lists = _matrix(recommendations, k)
    lists.data = scale[lists.indices]
    lists.eliminate_zeros()
    n = np.diff(lists.indptr).astype(np.float64)
    squares = np.empty(len(n))  # |sum of unit vectors|^2 is the sum of all cosines
    step = max(1, _BLOCK // max(1, vectors.shape[1]))
    for start in range(0, len(n), step):
        sums = lists[start : start + step] @ vectors
        squares[start : start + step] = np.einsum("nd,nd->n", sums, sums)
    return 1 - _ratio(squares - n, n * (n - 1))


def serendipity(recommendations: Recommendations, truth: Interactions, expected: Recommendations, k: int) -> Float:
    """(users,) share of k places that hold a true item which `expected` did not put among its own first k.

    |(list without expected) and true| / k, users as of `hits`. `expected` are the lists of a primitive model, usually
    `Popularity`, asked as the judged model was; a user without such a list expects nothing.
    Ge, Delgado-Battenfeld and Jannach, "Beyond accuracy: evaluating recommender systems by coverage and serendipity"
    (2010); Kotkov, Wang and Veijalainen, "A survey of serendipity in recommender systems" (2016).
    """
    for lists in (recommendations, expected):
        _check_k(lists.positions.shape[1], k)
    user, _, rank = ranks(recommendations, truth)
    usual = ranks(expected, truth).rank
    surprising = (rank >= 0) & (rank < k) & ~((usual >= 0) & (usual < k))
    _, row = np.unique(user, return_inverse=True)
    return np.bincount(row, weights=surprising) / k


def calibration(
    recommendations: Recommendations, histories: Interactions, categories: sparse.sparray | NDArray[Any], k: int
) -> Float:
    """(lists,) divergence in nats of the first k's mix of categories from the history's: 0 the same, greater is worse.

    KL(p, q) with p the mean mix of the history's distinct items and q that of the list's, each item sharing one over
    its categories; q is smoothed by .01 p. Items without a category are left out; NaN where either side has none left.
    Steck, "Calibrated recommendations" (2018).

    Args:
        recommendations: the lists.
        histories: what the users did before; its users without a list are not asked about.
        categories: (items of the catalogue, categories) weights, not negative, sparse or dense; a row may have several.
        k: list length.

    Raises:
        InputError: categories of another shape or with weights below 0, or a history item outside the catalogue.
    """
    weights = sparse.csr_array(categories, dtype=np.float64)
    n = len(recommendations.catalogue)
    if weights.ndim != 2 or weights.shape[0] != n or not ((weights.data >= 0) & np.isfinite(weights.data)).all():
        raise InputError(
            f"categories have shape {weights.shape}; wanted {n} rows, one per catalogue item, and no negative or "
            "infinite weight"
        )
    share = _shares(weights)
    events = histories.with_items(recommendations.catalogue)
    row = IdMap(recommendations.users).positions(histories.users.ids, missing="negative")[events.user]
    own = _indicator(row[row >= 0], events.item[row >= 0], (len(recommendations), n))
    p, q = _shares(own @ share), _shares(_matrix(recommendations, k) @ share)
    smooth = ((1 - _SMOOTHING) * q + _SMOOTHING * p).multiply(p.sign()).tocsr()
    smooth.sort_indices()  # the places of p, in the order of p
    owner = np.repeat(np.arange(len(recommendations)), np.diff(p.indptr))
    out = np.bincount(owner, weights=p.data * np.log(p.data / smooth.data), minlength=len(recommendations))
    undefined = (np.diff(p.indptr) == 0) | (np.diff(q.indptr) == 0)
    return np.where(undefined, np.nan, np.maximum(out, 0))  # below zero by rounding only


def f1(truth: ArrayLike, predicted: ArrayLike, classes: int) -> Float:
    """(classes,) F1 of each class, from true and predicted class positions (n,).

    NaN for a class that is neither true nor predicted anywhere, so that `np.nanmean` is the macro F1 of the others.
    """
    label, guess = _labels(truth, predicted, classes)
    right, real, said = (np.bincount(some, minlength=classes) for some in (label[label == guess], label, guess))
    return _ratio(2 * right, real + said)


def roc_auc(truth: ArrayLike, scores: ArrayLike) -> Float:
    """(classes,) area under the ROC curve of each class against the rest, ties counting half.

    NaN for a class that no row has, or every row; `np.nanmean` is the macro AUC of the others.

    Args:
        truth: (n,) true class positions.
        scores: (n, classes) greater is likelier.
    """
    from scipy.stats import rankdata

    grid = _grid(scores)
    label, _ = _labels(truth, np.zeros(len(grid), int), grid.shape[1])
    own = np.bincount(label, minlength=grid.shape[1])
    ranks = rankdata(grid, axis=0) if len(grid) else grid  # ties share their mean rank
    above = np.bincount(label, ranks[np.arange(len(grid)), label], grid.shape[1]) - own * (own + 1) / 2
    return _ratio(above, own * (len(grid) - own))  # the share of pairs in order: Mann and Whitney's U


def calibration_error(truth: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over bins of equal width of the top class's probability, by bin size.

    A probability on an edge belongs to the bin below it; a tie for the top goes to the first class. NaN without rows.
    Guo et al., "On calibration of modern neural networks" (2017).

    Args:
        truth: (n,) true class positions.
        probabilities: (n, classes) rows that sum to 1.
        bins: number of bins.

    Raises:
        InputError: rows that are not probabilities, or fewer than one bin.
    """
    grid = _grid(probabilities)
    if bins < 1:
        raise InputError(f"bins must be at least 1, got {bins}")
    wrong = (grid < 0).any(axis=1) | ~np.isclose(grid.sum(axis=1), 1, atol=1e-3)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise InputError(f"row {at} of the probabilities sums to {grid[at].sum():g} or is negative; give a softmax")
    label, top = _labels(truth, grid.argmax(axis=1), grid.shape[1])
    if not len(grid):
        return float("nan")
    confidence = grid.max(axis=1)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(place, weights=confidence - (label == top))).sum() / len(grid))


def _pairs(events: Interactions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """User and item of each distinct pair, sorted by user, then item."""
    width = max(len(events.items), 1)
    pairs = np.sort(events.user * width + events.item)  # np.unique hashes, which is a hundred times slower
    return np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], width)


def _check_k(width: int, k: int) -> None:
    if not 1 <= k <= width:
        raise InputError(f"k is {k}, but the lists were made with k = {width}; recommend that many")


def _first(found: Hits, k: int) -> NDArray[np.bool_]:
    _check_k(found.found.shape[1], k)
    return found.found[:, :k]


def _ratio(top: NDArray[Any], bottom: NDArray[Any]) -> Float:
    """The quotient, NaN where `bottom` is 0."""
    return np.asarray(np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom != 0))


def _listed(recommendations: Recommendations, k: int) -> NDArray[np.int64]:
    _check_k(recommendations.positions.shape[1], k)
    return recommendations.positions[:, :k]


def _times_shown(recommendations: Recommendations, k: int, mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """How many first k each item (of `mask`) stands in."""
    positions = _listed(recommendations, k)
    catalogue = recommendations.catalogue
    shown = np.bincount(positions[positions >= 0], minlength=len(catalogue)).astype(np.int64)
    if mask is None:
        return shown
    if mask.shape != shown.shape:
        raise InputError(f"mask has shape {mask.shape}, wanted ({len(catalogue)},), one per item of the catalogue")
    if (stray := np.flatnonzero((shown > 0) & ~mask)).size:
        raise InputError(f"item {catalogue.take(stray[:1])[0]!r} is listed but not in the mask of items to be shown")
    return shown[mask]


def _list_mean(recommendations: Recommendations, values: ArrayLike, k: int) -> Float:
    """(lists,) mean of the items' values over the first k, NaN for an empty list."""
    positions = _listed(recommendations, k)
    of_items = np.asarray(values, np.float64)
    if of_items.shape != (len(recommendations.catalogue),):
        wanted = len(recommendations.catalogue)
        raise InputError(f"popularity has shape {of_items.shape}, wanted ({wanted},), one per item of the catalogue")
    return _ratio(np.append(of_items, 0)[positions].sum(axis=1), (positions >= 0).sum(axis=1))  # -1 takes the 0


def _matrix(recommendations: Recommendations, k: int) -> sparse.csr_array:
    """(lists, items of the catalogue) float32, 1 where an item stands among the first k."""
    positions = _listed(recommendations, k)
    row, place = np.nonzero(positions >= 0)
    return _indicator(row, positions[row, place], (len(recommendations), len(recommendations.catalogue)))


def _indicator(row: NDArray[np.int64], column: NDArray[np.int64], shape: tuple[int, int]) -> sparse.csr_array:
    """A matrix with 1 at these places, however often they are named."""
    out = sparse.coo_array((np.ones(len(row), np.float32), (row, column)), shape=shape).tocsr()
    out.sum_duplicates()
    out.data[:] = 1
    return out


def _shares(weights: sparse.csr_array) -> sparse.csr_array:
    """Rows that sum to 1, in order of column and without zeros; an empty row stays empty."""
    out = weights.astype(np.float64)
    out.sum_duplicates()
    out.eliminate_zeros()
    out.data /= np.repeat(out.sum(axis=1), np.diff(out.indptr))
    return out


def _labels(truth: ArrayLike, predicted: ArrayLike, classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both as positions of classes, checked."""
    sides = []
    for name, side in (("truth", truth), ("predicted", predicted)):
        array = np.asarray(side)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iub"):
            raise InputError(f"{name} must be a flat list of class positions, got {array.dtype} of shape {array.shape}")
        if array.size and not (array.min() >= 0 and array.max() < classes):
            raise InputError(f"{name} lies in {array.min()}..{array.max()}, wanted class positions in 0..{classes - 1}")
        sides.append(array.astype(np.int64))
    if len(sides[0]) != len(sides[1]):
        raise InputError(f"{len(sides[0])} true classes but {len(sides[1])} rows predicted; give one each")
    return sides[0], sides[1]


def _grid(values: ArrayLike) -> Float:
    out = np.asarray(values, np.float64)
    if out.ndim != 2 or not np.isfinite(out).all():
        raise InputError(f"scores must be finite with shape (n, classes), got shape {out.shape}")
    return out
