"""How often each user came back to the same item, how long that took, and how long ago it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recotransfer.data import Interactions

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Repeats:
    """Each pair of user and item in a log, by the user's moments: all events of a user at one time are one moment.

    In a log without times every event is a moment, and nothing is known of their order.

    Attributes:
        user, item: (pairs,) positions, sorted by user and item.
        count: (pairs,) moments with the pair, at least 1.
        chances: (pairs,) the user's moments after the first with the pair; without times, all but one.
        age: (pairs,) the user's moments after the last with the pair, 0 for the newest; without times 0.
        since: (pairs,) time from the last moment with the pair to the user's last moment; without times 0.
        gap, gap_moments: (repeats,) time and number of moments between neighbouring moments with the same pair; empty
            without times.
        gap_item: (repeats,) item of each gap.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    count: NDArray[np.int64]
    chances: NDArray[np.int64]
    age: NDArray[np.int64]
    since: Doubles
    gap: Doubles
    gap_moments: NDArray[np.int64]
    gap_item: NDArray[np.int64]


def repeats_of(events: Interactions) -> Repeats:
    """The pairs of the events with a positive weight."""
    events = events.select(events.weight > 0)
    n, rows = max(len(events.items), 1), events.order
    user, timed = events.user[rows], events.time is not None
    time = np.arange(len(rows), dtype=np.float64) if events.time is None else events.time[rows]
    moment = np.cumsum((np.diff(user, prepend=-1) != 0) | (np.diff(time, prepend=np.nan) != 0)) - 1

    newest = np.zeros(len(events.users), np.int64)
    newest[user] = np.arange(len(rows))  # of several values the last one stays
    moments = np.bincount(user[np.diff(moment, prepend=-1) != 0], minlength=len(events.users))

    pair = user * n + events.item[rows]
    by_pair = np.argsort(pair, kind="stable")
    by_pair = by_pair[(np.diff(pair[by_pair], prepend=-1) != 0) | (np.diff(moment[by_pair], prepend=-1) != 0)]
    pair, moment_of, time_of = pair[by_pair], moment[by_pair], time[by_pair]
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    count = np.diff(first, append=len(pair))
    last = first + count - 1
    owner, item = pair[first] // n, pair[first] % n
    none = np.zeros(len(first), np.int64)
    if not timed:
        empty = np.zeros(0, np.int64)
        return Repeats(
            owner, item, count, moments[owner] - 1, none, none.astype(float), empty.astype(float), empty, empty
        )

    again = np.flatnonzero(np.diff(pair) == 0)
    return Repeats(
        owner,
        item,
        count,
        moment[newest[owner]] - moment_of[first],
        moment[newest[owner]] - moment_of[last],
        time[newest[owner]] - time_of[last],
        time_of[again + 1] - time_of[again],
        moment_of[again + 1] - moment_of[again],
        pair[again] % n,
    )
