"""Metrics of ranked lists against held-out events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recotransfer.arguments import checked
from recotransfer.data import IdMap, Interactions, Recommendations
from recotransfer.errors import InputError

Float = NDArray[np.float64]
POPULARITY_BUCKETS = ((0, 0), (1, 5), (6, 20), (21, None))  # least and most distinct training users of an item
POPULARITY_BUCKET_NAMES = ("0", "1-5", "6-20", ">20")
BLOCK = 1 << 22  # numbers in memory at a time


class Ranks(NamedTuple):
    """Each distinct held-out pair, as positions in `users` and `items` of the truth, and its `rank` from 0 or -1."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    rank: NDArray[np.int64]


class Hits(NamedTuple):
    """`found` (users, k) bool, True where a list has a true item; `relevant` (users,) true items, at least one each."""

    found: NDArray[np.bool_]
    relevant: NDArray[np.int64]


@checked
def ranks(recommendations: Recommendations, truth: Interactions) -> Ranks:
    """The rank of each distinct pair of `truth`, sorted by user, then item; -1 for pairs that are not in a list.

    Raises:
        InputError: a user has two lists.
    """
    user, item = _pairs(truth)
    row = IdMap(recommendations.users).positions(truth.users.ids, missing="negative")[user]
    position = recommendations.catalogue.positions(truth.items.ids, missing="negative")[item]
    rank = np.full(len(user), -1)
    known = np.flatnonzero((row >= 0) & (position >= 0))
    step = max(1, BLOCK // max(1, recommendations.positions.shape[1]))

    for start in range(0, len(known), step):
        some = known[start : start + step]
        pair, place = np.nonzero(recommendations.positions[row[some]] == position[some, None])
        rank[some[pair]] = place

    return Ranks(user, item, rank)


@checked
def hits(recommendations: Recommendations, truth: Interactions) -> Hits:
    """Hits of all users with at least one true item; users without a list have none.

    Positions past the end of a list are misses.
    """
    user, _, rank = ranks(recommendations, truth)
    _, row, relevant = np.unique(user, return_inverse=True, return_counts=True)
    found = np.zeros((len(relevant), recommendations.positions.shape[1]), bool)
    listed = rank >= 0
    found[row[listed], rank[listed]] = True

    return Hits(found, relevant.astype(np.int64))


@checked
def recall(found: Hits, k: int) -> Float:
    """(users,) share of each user's true items that are among the first k."""
    return np.asarray(_first(found, k).sum(axis=1) / found.relevant)


@checked
def precision(found: Hits, k: int) -> Float:
    """(users,) share of the first k places with a true item; places past the end of a short list are misses."""
    return np.asarray(_first(found, k).sum(axis=1) / k)


@checked
def hit_rate(found: Hits, k: int) -> Float:
    """(users,) 1 if a true item is among the first k, otherwise 0."""
    return np.asarray(_first(found, k).any(axis=1), np.float64)


@checked
def mrr(found: Hits, k: int) -> Float:
    """(users,) reciprocal rank, from 1, of the first true item; 0 if none is among the first k."""
    first = _first(found, k)
    return np.asarray(first.any(axis=1) / (first.argmax(axis=1) + 1))


@checked
def average_precision(found: Hits, k: int) -> Float:
    """(users,) sum of the precision at each hit among the first k, divided by min(true items, k).

    A list of k true items scores 1. trec_eval's `map` and `map_cut` divide by all true items instead, which gives less
    for users with more than k.
    """
    first = _first(found, k)
    at_hits = np.where(first, np.cumsum(first, axis=1) / np.arange(1, k + 1), 0.0)
    return np.asarray(at_hits.sum(axis=1) / np.minimum(found.relevant, k))


@checked
def ndcg(found: Hits, k: int) -> Float:
    """(users,) discounted gain of the first k relative to the ideal list, with binary relevance and log2 discount.

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


@checked
def rank_metrics(found: Hits, ks: Sequence[int]) -> dict[str, Float]:
    """Every ranking metric at every cut, (users,) each, by names such as "ndcg@10" and "recall@20".

    The names are recall, precision, hit_rate, mrr, map (`average_precision`) and ndcg.
    """
    return {f"{name}@{k}": metric(found, k) for k in ks for name, metric in _RANKING.items()}


@checked
def auc(
    recommendations: Recommendations, truth: Interactions, candidates: int | Sequence[int] | NDArray[np.integer]
) -> Float:
    """(users,) probability that a true item ranks above another candidate: area under the ROC curve of the ranking.

    Candidates that are not listed rank below the list and tie with each other, a tie counting half; a user without a
    list scores .5. True items outside the catalogue are candidates too. NaN if every candidate is true.

    Args:
        recommendations: lists of any length; longer lists have fewer ties.
        truth: the held-out pairs.
        candidates: how many items could have been listed, listed and true ones included: one number, or (users,).

    Raises:
        InputError: fewer candidates than items that are listed or true.
    """
    user, _, rank = ranks(recommendations, truth)
    asked, row, relevant = np.unique(user, return_inverse=True, return_counts=True)

    try:
        total = np.broadcast_to(np.asarray(candidates, np.int64), asked.shape)
    except ValueError:
        raise InputError(
            f"candidates: {np.size(candidates)} numbers, expected one, or {len(asked)} for the users"
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

    # Other items that rank above each listed true one: its rank minus the true ones above it.
    before = np.bincount(row[listed], weights=rank[listed], minlength=len(asked)) - hit * (hit - 1) / 2
    others = total - relevant
    won = hit * others - before + (relevant - hit) * (others - (lengths - hit)) / 2

    return safe_ratio(won, relevant * others)


@checked
def popularity_counts(events: Interactions) -> NDArray[np.int64]:
    """(items,) distinct users of each item."""
    return np.bincount(_pairs(events)[1], minlength=len(events.items)).astype(np.int64)


@checked
def popularity_bucket(counts: ArrayLike) -> NDArray[np.int64]:
    """(n,) position in `POPULARITY_BUCKETS` of items with these numbers of distinct training users."""
    starts = [least for least, _ in POPULARITY_BUCKETS]
    return np.asarray(np.searchsorted(starts, np.asarray(counts), side="right") - 1, np.int64)


def _pairs(events: Interactions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """User and item of each distinct pair, sorted by user, then item."""
    width = max(len(events.items), 1)
    pairs = np.sort(events.user * width + events.item)  # np.unique hashes, which is a hundred times slower
    return np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], width)


def check_k(width: int, k: int) -> None:
    """Raise `InputError` unless the lists are at least `k` long."""
    if not 1 <= k <= width:
        raise InputError(f"k is {k}, but the lists were made with k = {width}; recommend that many")


def _first(found: Hits, k: int) -> NDArray[np.bool_]:
    check_k(found.found.shape[1], k)
    return found.found[:, :k]


def safe_ratio(top: NDArray[Any], bottom: NDArray[Any]) -> Float:
    """(n,) element-wise top / bottom, NaN where bottom is 0."""
    return np.asarray(np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom != 0))
