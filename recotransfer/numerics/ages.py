"""How old each item of a history is: in later items, or in later moments where the order within one means nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Interactions
from recotransfer.numerics.histories import last_events
from recotransfer.numerics.vectors import Float

AGE_EDGES = (0, 1, 2, 4, 8, 16, 32, 64)  # youngest age in each bucket
_SHUFFLES = 5  # random orders that the order found within moments is compared with
_EXCESS = 1.5  # how many times more often than by chance neighbours must recur for their order to count


@dataclass(frozen=True)
class Steps:
    """Each user's distinct items, oldest first, each with the step at which the user met it last.

    Attributes:
        user, item: (entries,) positions, sorted by user and step.
        strength: (entries,) log2(1 + summed weight) of the pair, as in `histories`.
        step: (entries,) counts up within each user's entries; entries of one step have no order between them.
        start: (users + 1,) first entry of each user.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    strength: Float
    step: NDArray[np.int64]
    start: NDArray[np.int64]

    @property
    def age(self) -> NDArray[np.int64]:
        """(entries,) number of the user's later steps: 0 for the newest."""
        last = self.start[1:][self.user] - 1  # every entry's user has entries, so there is a last one
        return self.step[last] - self.step


def steps_of(events: Interactions, *, by_moment: bool) -> Steps:
    """The users' items in steps of one item each, or with `by_moment` one step for all events of the same time."""
    last, total, start = last_events(events)
    user = np.repeat(np.arange(len(events.users)), np.diff(start))
    follows = np.zeros(len(last), bool)  # whether an entry begins a later step than the entry before it
    follows[1:] = user[1:] == user[:-1]
    if by_moment:
        same = np.ones(len(last), bool) if events.time is None else np.diff(events.time[last], prepend=np.nan) == 0
        follows &= ~same

    count = np.cumsum(follows)
    first = count[np.minimum(start[:-1], max(len(count) - 1, 0))] if len(count) else np.zeros(len(events.users), int)
    strength = np.log2(1 + np.maximum(total, 0)).astype(np.float32)

    return Steps(user, events.item[last], strength, count - first[user], start)


def aged_histories(steps: Steps, shape: tuple[int, int]) -> list[sparse.csr_array]:
    """One (users, items) matrix of strengths per bucket of age; together they hold every pair once."""
    bucket = np.searchsorted(AGE_EDGES, steps.age, side="right") - 1
    out = []
    for at in range(len(AGE_EDGES)):
        of = bucket == at
        out.append(sparse.coo_array((steps.strength[of], (steps.user[of], steps.item[of])), shape=shape).tocsr())

    return out


def order_within_moments(events: Interactions, seed: int = 0) -> bool:
    """Whether the order of events that share user and time carries information, so that it should be kept.

    A log may list a basket as it was filled, or as a database returned it. In the first case the same two items follow
    each other for several users far more often than if each basket were shuffled. Without such evidence the order is
    taken to mean nothing; True where no moment has three events, so that there is little to decide.

    Args:
        events: the log, with times.
        seed: random seed of the shuffled baskets.
    """
    steps = steps_of(events, by_moment=True)
    group = np.concatenate([[0], np.cumsum((np.diff(steps.user) != 0) | (np.diff(steps.step) != 0))])[: len(steps.item)]
    tied = np.bincount(group)[group] > 2 if len(group) else np.zeros(0, bool)
    item, group = steps.item[tied], group[tied]

    def recurring(items: NDArray[np.int64]) -> float:
        both = group[1:] == group[:-1]
        pair = items[:-1][both] * max(len(events.items), 1) + items[1:][both]
        times = np.unique(pair, return_counts=True)[1].astype(np.float64)
        return float((times * (times - 1)).sum())

    if len(item) < 2:
        return True

    rng = np.random.default_rng(seed)
    by_chance = []
    for _ in range(_SHUFFLES):
        shuffled = np.lexsort((rng.random(len(item)), group))
        by_chance.append(recurring(item[shuffled]))

    return recurring(item) > _EXCESS * float(np.mean(by_chance))


def transitions(
    steps: Steps, items: int, past: float, future: float, horizon: int = 50
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Pasts and futures, both (splits, items): each user's history split before every step except the first.

    An item of the past weighs `past` ** (steps before the split's last past step), one of the future `future` **
    (steps after its first future step). Both reach at most `horizon` items from the split. With one item to a step
    they are the inputs of a directed item-item regression: Choi et al., "Session-aware linear item-item models" (SLIST,
    2021).

    Args:
        steps: the histories.
        items: number of items in the catalogue.
        past: factor on the weight of an item of the past for each further step from the split.
        future: the same for items of the future.
        horizon: most items on either side of a split.
    """
    cut = 1 + np.flatnonzero((np.diff(steps.user) == 0) & (np.diff(steps.step) > 0))  # the first entry of the future
    owner = steps.user[cut]
    low = np.maximum(cut - horizon, steps.start[owner])
    high = np.minimum(cut + horizon, steps.start[owner + 1])

    def side(nearest: NDArray[np.int64], width: NDArray[np.int64], direction: int, decay: float) -> sparse.csr_array:
        """For each split, `width` entries from `nearest` on in `direction`, decaying with the steps between them."""
        indptr = np.concatenate([[0], np.cumsum(width)])
        distance = np.arange(indptr[-1]) - np.repeat(indptr[:-1], width)
        entry = np.repeat(nearest, width) + direction * distance
        gap = direction * (steps.step[entry] - np.repeat(steps.step[nearest], width))
        return sparse.csr_array(((decay**gap).astype(np.float32), steps.item[entry], indptr), shape=(len(cut), items))

    return side(cut - 1, cut - low, -1, past), side(cut, high - cut, 1, future)
