"""Users' histories as weighted sparse rows, and as sequences of items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import IdMap, Interactions
from recotransfer.numerics.vectors import Float


def histories(events: Interactions, decay: float = 1.0) -> sparse.csr_array:
    """(users, items) float32: strength of each pair times `decay` ** age.

    Age is the number of distinct items the user met later (0 for the newest). Strength is log2(1 + summed weight) of
    the pair, the logarithmic confidence of Hu, Koren and Volinsky (2008): one event of weight 1 counts 1. Zeros, from
    weights of 0 or less or from great age, are not stored.
    """
    item, strength, age, start = sequences(events)
    user = np.repeat(np.arange(len(events.users)), np.diff(start))
    data = strength * (decay**age).astype(np.float32)
    out = sparse.coo_array((data, (user, item)), shape=(len(events.users), len(events.items))).tocsr()
    out.eliminate_zeros()

    return out


def sequences(events: Interactions) -> tuple[NDArray[np.int64], Float, NDArray[np.int64], NDArray[np.int64]]:
    """Each user's distinct items, oldest first: item, strength and age of each entry, and each user's first entry.

    Strength and age are those of `histories`; the entries of user u are start[u] : start[u + 1].
    """
    last, total, start = last_events(events)
    size = np.diff(start)
    age = np.repeat(start[1:], size) - 1 - np.arange(len(last))
    return events.item[last], np.log2(1 + np.maximum(total, 0)).astype(np.float32), age, start


def last_events(events: Interactions) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Row of each pair's last event, by user and time; the pair's summed weight; and each user's first entry."""
    order = events.order
    # Searching the reversed order for the first occurrence of each pair finds its last event.
    pair = events.user[order] * max(len(events.items), 1) + events.item[order]
    unique, first_from_end, inverse = np.unique(pair[::-1], return_index=True, return_inverse=True)
    total = np.bincount(inverse, weights=events.weight[order][::-1], minlength=len(unique)).astype(np.float64)
    place = len(order) - 1 - first_from_end
    by_time = np.argsort(place)
    rows: NDArray[np.int64] = order[place[by_time]]
    start = np.searchsorted(events.user[rows], np.arange(len(events.users) + 1)).astype(np.int64)

    return rows, total[by_time], start


def changed_users(before: Interactions, events: Interactions) -> NDArray[np.int64]:
    """Positions of the users with more events than `before`; both logs are sorted by user and have the same users."""
    return np.flatnonzero(np.diff(events.offsets) > np.diff(before.offsets))


def seen_items(events: Interactions) -> sparse.csr_array:
    """(users, items) with a stored entry for every item a user has interacted with, for use as `exclude`."""
    shape = (len(events.users), len(events.items))
    return sparse.coo_array((np.ones(len(events), np.float32), (events.user, events.item)), shape=shape).tocsr()


def subset(events: Interactions, users: NDArray[np.int64]) -> Interactions:
    """The events of the given distinct users, renumbered in that order; `events` must be sorted by user."""
    start = events.offsets
    sizes = start[users + 1] - start[users]
    offsets = np.repeat(start[users] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
    rows = np.arange(int(sizes.sum())) + offsets

    return Interactions(
        IdMap(events.users.take(users)),
        events.items,
        np.repeat(np.arange(len(users)), sizes),
        events.item[rows],
        events.weight[rows],
        None if events.time is None else events.time[rows],
    )
