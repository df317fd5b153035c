"""Ranking metrics, vectorised over all users. Lists meet the truth on positions, so padding is never a hit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recotransfer.data import Interactions, Recommendations
from recotransfer.errors import InputError


class Hits(NamedTuple):
    """What the lists found: `found` (users, k) bool and `relevant` (users,) number of true items, one at least."""

    found: NDArray[np.bool_]
    relevant: NDArray[np.int64]


def hits(recommendations: Recommendations, truth: Interactions) -> Hits:
    """Hits of the users who have something to find; a user without a list finds nothing.

    Users of `truth` without a true item are left out. Positions past the end of a list are misses.
    """
    events = truth.with_items(recommendations.catalogue.union(truth.items))
    width = max(len(events.items), 1)
    pairs = np.unique(events.user * width + events.item)
    relevant = np.bincount(pairs // width, minlength=len(events.users))
    asked = np.flatnonzero(relevant)
    at = {user: row for row, user in enumerate(recommendations.users.tolist())}
    rows = np.array([at.get(user, -1) for user in events.users.take(asked).tolist()], dtype=np.int64)
    found = np.zeros((len(asked), recommendations.positions.shape[1]), bool)
    listed = np.flatnonzero(rows >= 0)
    positions = recommendations.positions[rows[listed]]
    found[listed] = np.isin(asked[listed, None] * width + positions, pairs) & (positions >= 0)
    return Hits(found, relevant[asked].astype(np.int64))


def recall(found: Hits, k: int) -> NDArray[np.float64]:
    """(users,) share of each user's true items that stand among the first k."""
    _check_k(found, k)
    return np.asarray(found.found[:, :k].sum(axis=1) / found.relevant)


def ndcg(found: Hits, k: int) -> NDArray[np.float64]:
    """(users,) discounted gain of the first k over that of the best possible list, binary relevance, log2 discount.

    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques" (2002).
    """
    _check_k(found, k)
    gain = 1 / np.log2(np.arange(2, k + 2))
    best = np.cumsum(gain)[np.minimum(found.relevant, k) - 1]
    return np.asarray(found.found[:, :k] @ gain / best)


def _check_k(found: Hits, k: int) -> None:
    if not 1 <= k <= found.found.shape[1]:
        raise InputError(f"k is {k}, but the lists were made with k = {found.found.shape[1]}; recommend that many")
