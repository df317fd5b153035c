"""Metrics of lists beyond accuracy: coverage, concentration, novelty, diversity, calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from recotransfer.arguments import Numbers, checked
from recotransfer.data import Embeddings, IdMap, Interactions, Recommendations
from recotransfer.errors import InputError
from recotransfer.evaluation.metrics.ranking import BLOCK, Float, check_k, ranks, safe_ratio

_SMOOTHING = 0.01  # Steck's alpha: share of the history's categories mixed into those of the list


@checked
def coverage(recommendations: Recommendations, k: int, mask: NDArray[np.bool_] | None = None) -> float:
    """Share of the catalogue (of `mask`, the items that may be shown) that is among the first k of at least one list.

    NaN if no item may be shown.
    """
    shown = _times_shown(recommendations, k, mask)
    return float(np.mean(shown > 0)) if len(shown) else float("nan")


@checked
def gini(recommendations: Recommendations, k: int, mask: NDArray[np.bool_] | None = None) -> float:
    """Gini coefficient of how often each item is among the first k: 0 if equally often, near 1 if few items dominate.

    Items of the catalogue (of `mask`, the items that may be shown) that are never listed count as zeros. NaN if
    nothing is listed.
    """
    shown = np.sort(_times_shown(recommendations, k, mask))
    n, total = len(shown), shown.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ shown / (n * total)) if total else float("nan")


@checked
def average_popularity(recommendations: Recommendations, popularity: Numbers, k: int) -> Float:
    """(lists,) mean `popularity` (items of the catalogue,) of the first k; NaN for an empty list."""
    return _list_mean(recommendations, popularity, k)


@checked
def novelty(recommendations: Recommendations, popularity: Numbers, users: int, k: int) -> Float:
    """(lists,) mean self-information of the first k in bits: minus log2 of the probability that a user has the item.

    The probability is smoothed, (its users + 1) / (users + 2), so that an item without users has a finite value. NaN
    for an empty list. Zhou et al., "Solving the apparent diversity-accuracy dilemma of recommender systems" (2010).

    Args:
        recommendations: the lists.
        popularity: (items of the catalogue,) number of distinct training users, see `popularity_counts`.
        users: number of training users.
        k: list length.

    Raises:
        InputError: an item has more than `users` users, or fewer than none.
    """
    counts = np.asarray(popularity, np.float64)
    if counts.size and not (counts.min() >= 0 and counts.max() <= users):
        raise InputError(
            f"popularity lies in {counts.min():g}..{counts.max():g}, expected 0..{users}, the distinct users"
        )

    return _list_mean(recommendations, -np.log2((counts + 1) / (users + 2)), k)


@checked
def intra_list_diversity(recommendations: Recommendations, embeddings: Embeddings, k: int) -> Float:
    """(lists,) one minus the mean cosine of all pairs among the first k: 0 identical, 1 unrelated, at most 2.

    Items without content are left out; NaN if fewer than two remain.
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
    step = max(1, BLOCK // max(1, vectors.shape[1]))

    for start in range(0, len(n), step):
        sums = lists[start : start + step] @ vectors
        squares[start : start + step] = np.einsum("nd,nd->n", sums, sums)

    return 1 - safe_ratio(squares - n, n * (n - 1))


@checked
def serendipity(recommendations: Recommendations, truth: Interactions, expected: Recommendations, k: int) -> Float:
    """(users,) share of the first k places with a true item that is not among the first k of `expected`.

    |(list without expected) and true| / k, for the users of `hits`. `expected` are the lists of a simple model, usually
    `Popularity`, for the same users and settings; a user without such a list expects nothing.
    Ge, Delgado-Battenfeld and Jannach, "Beyond accuracy: evaluating recommender systems by coverage and serendipity"
    (2010); Kotkov, Wang and Veijalainen, "A survey of serendipity in recommender systems" (2016).
    """
    for lists in (recommendations, expected):
        check_k(lists.positions.shape[1], k)

    user, _, rank = ranks(recommendations, truth)
    usual = ranks(expected, truth).rank
    surprising = (rank >= 0) & (rank < k) & ~((usual >= 0) & (usual < k))
    _, row = np.unique(user, return_inverse=True)

    return np.bincount(row, weights=surprising) / k


@checked
def calibration(
    recommendations: Recommendations,
    histories: Interactions,
    categories: sparse.sparray | sparse.spmatrix | Numbers,
    k: int,
) -> Float:
    """(lists,) divergence in nats of the categories of the first k from the history's: 0 equal, greater is worse.

    KL(p, q), where p is the mean category distribution of the history's distinct items and q that of the list's, each
    item spreading a weight of 1 over its categories; q is smoothed with .01 p. Items without a category are left out;
    NaN if either side has none left.
    Steck, "Calibrated recommendations" (2018).

    Args:
        recommendations: the lists.
        histories: earlier events of the users; users without a list are ignored.
        categories: (items of the catalogue, categories) non-negative weights, sparse or dense.
        k: list length.

    Raises:
        InputError: categories of another shape or with negative weights, or a history item outside the catalogue.
    """
    weights = sparse.csr_array(categories, dtype=np.float64)
    n = len(recommendations.catalogue)
    if weights.ndim != 2 or weights.shape[0] != n or not ((weights.data >= 0) & np.isfinite(weights.data)).all():
        raise InputError(
            f"categories have shape {weights.shape}; expected {n} rows, one per catalogue item, and no negative or "
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


def _listed(recommendations: Recommendations, k: int) -> NDArray[np.int64]:
    check_k(recommendations.positions.shape[1], k)
    return recommendations.positions[:, :k]


def _times_shown(recommendations: Recommendations, k: int, mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """How often each item (of `mask`) is among the first k."""
    positions = _listed(recommendations, k)
    catalogue = recommendations.catalogue
    shown = np.bincount(positions[positions >= 0], minlength=len(catalogue)).astype(np.int64)
    if mask is None:
        return shown
    mask = np.asarray(mask, bool)
    if mask.shape != shown.shape:
        raise InputError(f"mask has shape {mask.shape}, expected ({len(catalogue)},), one per item of the catalogue")
    if (stray := np.flatnonzero((shown > 0) & ~mask)).size:
        raise InputError(f"item {catalogue.take(stray[:1])[0]!r} is listed but not in the mask of items to be shown")

    return shown[mask]


def _list_mean(recommendations: Recommendations, values: ArrayLike, k: int) -> Float:
    """(lists,) mean of the items' values over the first k, NaN for an empty list."""
    positions = _listed(recommendations, k)
    of_items = np.asarray(values, np.float64)
    if of_items.shape != (len(recommendations.catalogue),):
        wanted = len(recommendations.catalogue)
        raise InputError(f"popularity has shape {of_items.shape}, expected ({wanted},), one per item of the catalogue")

    return safe_ratio(np.append(of_items, 0)[positions].sum(axis=1), (positions >= 0).sum(axis=1))  # -1 takes the 0


def _matrix(recommendations: Recommendations, k: int) -> sparse.csr_array:
    """(lists, items of the catalogue) float32, 1 where an item is among the first k."""
    positions = _listed(recommendations, k)
    row, place = np.nonzero(positions >= 0)
    return _indicator(row, positions[row, place], (len(recommendations), len(recommendations.catalogue)))


def _indicator(row: NDArray[np.int64], column: NDArray[np.int64], shape: tuple[int, int]) -> sparse.csr_array:
    """A matrix with 1 at these places, which may repeat."""
    out = sparse.coo_array((np.ones(len(row), np.float32), (row, column)), shape=shape).tocsr()
    out.sum_duplicates()
    out.data[:] = 1
    return out


def _shares(weights: sparse.csr_array) -> sparse.csr_array:
    """Rows scaled to sum 1, sorted by column and without zeros; empty rows stay empty."""
    out = weights.astype(np.float64)
    out.sum_duplicates()
    out.eliminate_zeros()
    out.data /= np.repeat(out.sum(axis=1), np.diff(out.indptr))
    return out
