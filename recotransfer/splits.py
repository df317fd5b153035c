"""Ways of holding events out so that nothing of the future leaks into training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recotransfer.data import Interactions
from recotransfer.errors import InputError


class Split(NamedTuple):
    """Two disjoint parts of a log, over the same users and items."""

    train: Interactions
    valid: Interactions


def leave_last(interactions: Interactions, *, least: int = 3) -> Split:
    """Each user's last event held out, of the users with at least `least` distinct items.

    Last is by time, ties by order in the log. All events of the held-out pair leave training, so that an item seen
    before is not the answer.
    """
    if least < 1:
        raise InputError(f"least must be at least 1 item, got {least}")
    ordered = interactions.select(interactions.order)
    sizes = np.bincount(ordered.user, minlength=len(ordered.users))
    pairs = np.unique(ordered.user * len(ordered.items) + ordered.item) // max(len(ordered.items), 1)
    enough = np.bincount(pairs, minlength=len(ordered.users)) >= least
    last = (np.cumsum(sizes) - 1)[enough]
    key = ordered.user * len(ordered.items) + ordered.item
    held = np.isin(key, key[last])
    return Split(ordered.select(~held), ordered.select(last))
