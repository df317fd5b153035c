"""The log, one row per event: `Interactions`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data.ids import IdMap, id_index, read_only
from recotransfer.errors import InputError

_EVENT_TYPES = {"user": np.int64, "item": np.int64, "weight": np.float32, "time": np.float64, "kind": np.int16}


@dataclass(frozen=True)
class Interactions:
    """Who did what: one row per event (or rating, or label), by position in `users` and `items`.

    Attributes:
        users, items: all known ids; an id may have no event.
        user, item: (n,) positions.
        weight: (n,) float32, greater is stronger.
        time: (n,) float64 seconds since 1970, or None where nothing is timed. Order alone is also a time.
        kind: (n,) int16 positions in `kinds`, or None.
        kinds: names of the event kinds.
    """

    users: IdMap
    items: IdMap
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    weight: NDArray[np.float32]
    time: NDArray[np.float64] | None = None
    kind: NDArray[np.int16] | None = None
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.user)
        for name, kind in _EVENT_TYPES.items():
            if getattr(self, name) is None:
                continue

            array = np.asarray(getattr(self, name))
            if array.shape != (n,):
                raise InputError(f"interactions: {name} has shape {array.shape}, wanted ({n},)")
            if n and not np.can_cast(array.dtype, kind, "same_kind"):
                raise InputError(f"interactions: {name} must be {kind.__name__}, got {array.dtype}")

            with np.errstate(over="ignore"):  # what passes the range is infinite, and refused below
                object.__setattr__(self, name, read_only(array.astype(kind, copy=False)))

        for name, size in (("user", len(self.users)), ("item", len(self.items)), ("kind", len(self.kinds))):
            array = getattr(self, name)
            if n and array is not None and (array.min() < 0 or array.max() >= size):
                raise InputError(f"interactions: {name} positions must lie in 0..{size - 1}")

        if n and not (np.isfinite(self.weight).all() and (self.time is None or np.isfinite(self.time).all())):
            raise InputError("interactions: weight and time must be finite")

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        user: str = "user",
        item: str = "item",
        weight: str | None = None,
        time: str | None = None,
        users: IdMap | None = None,
        items: IdMap | None = None,
    ) -> Interactions:
        """Interactions from a clean frame; for gaps, other names or event kinds use `readers.read_interactions`.

        `time` must be numeric (seconds). Ids outside given `users` or `items` raise `UnknownIdError`.
        """
        for name in (user, item, weight, time):
            if name is not None and name not in frame.columns:
                raise InputError(f"no column {name!r}; the frame has {list(frame.columns)}")

        users = IdMap(pd.unique(frame[user])) if users is None else users
        items = IdMap(pd.unique(frame[item])) if items is None else items

        return cls(
            users,
            items,
            users.positions(frame[user]),
            items.positions(frame[item]),
            np.ones(len(frame), np.float32) if weight is None else frame[weight].to_numpy(np.float32),
            None if time is None else frame[time].to_numpy(np.float64),
        )

    @classmethod
    def from_labels(cls, labels: Sequence[Any] | pd.Series, items: IdMap) -> Interactions:
        """One interaction per item: the label is the user who holds it.

        `labels` follows the order of `items`; None is unlabelled.
        """
        column = pd.Series(list(labels), dtype=object)
        if len(column) != len(items):
            raise InputError(f"{len(column)} labels for {len(items)} items; give one per item, None where unknown")

        rows = np.flatnonzero(column.notna()).astype(np.int64)
        known = id_index(column.iloc[rows])
        names = known.unique()

        with contextlib.suppress(TypeError):  # labels of several types stay in the order they came in
            names = names.sort_values()

        users = IdMap(names)

        return cls(users, items, users.positions(known), rows, np.ones(len(rows), np.float32))

    def matrix(self) -> sparse.csr_array:
        """(users, items) float32 with the summed weight of each pair."""
        shape = (len(self.users), len(self.items))
        out = sparse.coo_array((self.weight, (self.user, self.item)), shape=shape, dtype=np.float32).tocsr()
        out.sum_duplicates()
        return out

    def binary_matrix(self) -> sparse.csr_array:
        """(users, items) float32, 1 where the summed weight of a pair is above 0; no other cell is stored."""
        out = self.matrix()
        out.data[:] = out.data > 0
        out.eliminate_zeros()
        return out

    def select(self, rows: NDArray[Any]) -> Interactions:
        """The events at `rows` (positions or a boolean mask); ids stay the same."""
        return Interactions(
            self.users,
            self.items,
            self.user[rows],
            self.item[rows],
            self.weight[rows],
            None if self.time is None else self.time[rows],
            None if self.kind is None else self.kind[rows],
            self.kinds,
        )

    def with_items(self, items: IdMap) -> Interactions:
        """The same events over another item map, which must hold every item that has an event."""
        if items == self.items:
            return self

        used, where = np.unique(self.item, return_inverse=True)
        at = items.positions(self.items.take(used))
        return Interactions(self.users, items, self.user, at[where], self.weight, self.time, self.kind, self.kinds)

    def joined(self, other: Interactions) -> Interactions:
        """These events, then those of `other`, over the ids of both; the ids of these keep their positions.

        Raises:
            InputError: only one of the two has times, or event kinds. A log without events has what the other has.
        """
        for name in ("time", "kind"):
            if len(self) and len(other) and (getattr(self, name) is None) != (getattr(other, name) is None):
                raise InputError(f"only one of the two logs has a {name}, so that they cannot be one; give both one")

        users, items = self.users.union(other.users), self.items.union(other.items)
        kinds = tuple(dict.fromkeys([*self.kinds, *other.kinds]))
        renamed = np.array([kinds.index(name) for name in other.kinds], np.int16)
        moved = Interactions(
            users,
            items,
            users.positions(other.users.ids)[other.user],
            items.positions(other.items.ids)[other.item],
            other.weight,
            other.time,
            None if other.kind is None else renamed[other.kind],
            kinds,
        )

        def both(name: str) -> Any:
            parts = [part for part in (getattr(self, name), getattr(moved, name)) if part is not None]
            return np.concatenate(parts) if parts else None

        return Interactions(users, items, kinds=kinds, **{name: both(name) for name in _EVENT_TYPES})

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(users + 1,) where each user's events begin, for events that are sorted by user."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.user, minlength=len(self.users)))]).astype(np.int64)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(n,) event positions sorted by user, then time; ties and untimed events keep their order in the log."""
        if self.time is None:
            return np.argsort(self.user, kind="stable")

        return np.lexsort((np.arange(len(self)), self.time, self.user))
