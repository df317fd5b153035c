"""Ranked lists of every recommender: filling short lists, merging lists, and reasons for their items."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import IdMap, Reason
from recotransfer.numerics.topk import TopK
from recotransfer.numerics.vectors import Float

_PRIOR = 1e-6  # score of the most popular item among those that fill a list, below any score from evidence
_LEAST_SHARE = 0.005  # share of the score below which a history item is not named as a reason


def filled(top: TopK, k: int, popularity: Float, seen: sparse.csr_array | None, mask: NDArray[np.bool_] | None) -> TopK:
    """Lists of length k, filled up with the most popular items that are allowed, not seen and not listed yet.

    Args:
        top: (users, at most k) lists, padded with -1.
        k: list length.
        popularity: (items,) number of users of each item.
        seen: (users, items) pairs that must not be listed; None excludes nothing.
        mask: (items,) True for items that may be listed; None allows all.
    """
    width = k - top.positions.shape[1]
    positions = np.pad(top.positions, ((0, 0), (0, width)), constant_values=-1)
    scores = np.pad(top.scores, ((0, 0), (0, width)), constant_values=-np.inf)
    short = np.flatnonzero((positions < 0).any(axis=1))
    if not len(short):
        return TopK(positions, scores)

    order = np.argsort(-popularity, kind="stable")
    if mask is not None:
        order = order[mask[order]]

    prior = popularity * np.float32(_PRIOR / max(float(popularity.max()), 1.0))
    for row in short:
        listed = int((positions[row] >= 0).sum())
        excluded = seen.indices[seen.indptr[row] : seen.indptr[row + 1]] if seen is not None else np.empty(0, np.int64)
        excluded = np.concatenate([excluded, positions[row, :listed]])
        pool = order[: k + len(excluded)]  # enough items, even if all the excluded ones are among them
        more = pool[~np.isin(pool, excluded)][: k - listed]
        positions[row, listed : listed + len(more)] = more
        scores[row, listed : listed + len(more)] = prior[more]

    # Filled items rank below all others, whose scores may be lower still: no score may exceed the one before it.
    np.minimum.accumulate(scores, axis=1, out=scores)

    return TopK(positions, scores)


def merged(best: TopK, scores: Float, positions: NDArray[np.int64]) -> TopK:
    """The (n, k) best of the lists `best` (n, k) and of candidates at `positions` (m,) with `scores` (n, m)."""
    k = best.positions.shape[1]
    both = np.hstack([best.scores, scores])
    where = np.hstack([best.positions, np.broadcast_to(positions, scores.shape)])
    order = np.argsort(-both, axis=1, kind="stable")[:, :k]

    return TopK(np.take_along_axis(where, order, axis=1), np.take_along_axis(both, order, axis=1))


def reason_for(
    contributions: Mapping[str, Float], history: NDArray[np.int64], catalogue: IdMap, *, source: str, most: int = 3
) -> Reason:
    """The reason for one item: the history items that contributed most, and each component's share of the score.

    Args:
        contributions: model component -> (len(history),) contribution of each history item to the score.
        history: positions of the items in the user's history.
        catalogue: item ids by position.
        source: component to name if `contributions` is empty, because the model cannot attribute its scores.
        most: upper bound on the number of history items named.
    """
    gains = {name: np.maximum(values, 0) for name, values in contributions.items()}
    if not gains:
        return Reason((), {source: 1.0})

    total = float(sum(values.sum() for values in gains.values()))
    if total <= 0:
        return Reason((), {"popularity": 1.0})

    each = np.sum(list(gains.values()), axis=0) / total
    best = [i for i in np.argsort(-each, kind="stable")[:most] if each[i] > _LEAST_SHARE]
    ids = catalogue.take(history[best]).tolist()
    because = tuple((item, float(each[i])) for item, i in zip(ids, best, strict=True))
    shares = {name: float(values.sum() / total) for name, values in gains.items()}

    return Reason(because, {name: share for name, share in shares.items() if share > 0})
