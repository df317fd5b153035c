"""Audiences: the users with the highest scores for an item."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from recotransfer.arguments import checked
from recotransfer.data import Filter, positions_like
from recotransfer.errors import InputError
from recotransfer.recommenders.base import Recommender

_BLOCK = 4096  # users ranked at a time, which bounds memory


@checked
def audience(model: Recommender, items: ArrayLike, k: int = 10) -> pd.DataFrame:
    """The k known users with the highest scores for each item, best first: columns item, user, rank, score.

    Scores of different users are compared as they are. Users who already have the item are excluded.

    Args:
        model: a fitted recommender.
        items: ids of known items; the table has them in this order.
        k: number of users per item.

    Raises:
        InputError: an item is unknown, or `k` is below 1.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")

    users = model.known_events().users
    wanted = pd.unique(positions_like(items, model.catalogue_))
    place = np.full(len(model.catalogue_), -1)
    place[wanted] = np.arange(len(wanted))

    # Users are ranked block by block, and only the k best of each item so far are kept.
    best = pd.DataFrame({"place": [], "user": [], "score": []}).astype({"place": int, "user": int})
    only = Filter(allow=model.catalogue_.take(wanted))

    for first in range(0, len(users) if len(wanted) else 0, _BLOCK):
        lists = model.recommend(users.ids[first : first + _BLOCK], len(wanted), filter=only)
        row, column = np.nonzero(lists.positions >= 0)
        at = place[lists.positions[row, column]]
        block = pd.DataFrame({"place": at, "user": first + row, "score": lists.scores[row, column]})
        best = pd.concat([best, block]) if len(best) else block
        best = best.sort_values(["place", "score", "user"], ascending=[True, False, True])
        best = best[best.groupby("place").cumcount() < k]

    return pd.DataFrame(
        {
            "item": model.catalogue_.take(wanted[best["place"].to_numpy()]),
            "user": users.take(best["user"].to_numpy()),
            "rank": best.groupby("place").cumcount().to_numpy() + 1,
            "score": best["score"].to_numpy(np.float32),
        }
    )
