"""The checkerboard: a log with one right answer for each user, and content that says the same.

Even users have even items, odd users odd ones, and each user lacks exactly one item of their own colour: the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.data import Embeddings, IdMap, Interactions, Items

USERS = 40
ITEMS = 12


def item_ids() -> IdMap:
    """The items: i0, i1, ..."""
    return IdMap([f"i{i}" for i in range(ITEMS)])


def checkerboard(timed: bool = True) -> Interactions:
    """The log, with or without times."""
    users, items = np.meshgrid(np.arange(USERS), np.arange(ITEMS), indexing="ij")
    own = (users % 2 == items % 2) & (answer()[users] != items)
    user, item = users[own], items[own]
    time = (user * 7 + item * 3) % 11 + 1e9 if timed else None
    weight = np.ones(len(user), np.float32)

    return Interactions(IdMap([f"u{i}" for i in range(USERS)]), item_ids(), user, item, weight, time)


def answer() -> NDArray[np.int64]:
    """(USERS,) position of the one item of their colour that each user lacks."""
    users = np.arange(USERS)
    return (users % 2 + 2 * (users // 2 % (ITEMS // 2))).astype(np.int64)


def parities(ids: IdMap) -> NDArray[np.int64]:
    """Colour of each item: the parity of the number in its id."""
    return np.array([int(str(i)[1:]) % 2 for i in ids.ids])


def colours(ids: IdMap | None = None, seed: int = 0) -> Embeddings:
    """(items, 8) vectors that tell even items from odd ones, with a little noise."""
    ids = item_ids() if ids is None else ids
    parity = parities(ids)
    noise = 0.05 * np.random.default_rng(seed).normal(size=(len(ids), 6))
    vectors = np.concatenate([np.stack([1 - parity, parity], axis=1) - 0.5, noise], axis=1)

    return Embeddings(ids, vectors.astype(np.float32), blocks=(("text", 2), ("image", 6)))


def priced(ids: IdMap | None = None) -> Items:
    """Items whose price is the number in their id."""
    ids = item_ids() if ids is None else ids
    return Items(ids, pd.DataFrame({"price": [float(str(i)[1:]) for i in ids.ids]}))


def titles(columns: Sequence[str] = ("title",)) -> Items:
    """The items with text that tells even ones from odd ones, in each of the columns."""
    ids = item_ids()
    words = ["red woollen scarf", "blue tin mug"]
    text = [f"{words[colour]} number {at}" for at, colour in enumerate(parities(ids))]

    return Items(ids, pd.DataFrame(dict.fromkeys(columns, text)), dict.fromkeys(columns, "text"))
