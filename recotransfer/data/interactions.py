"""`Interactions`: a log of events, ratings or labels."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.arguments import checked_class
from recotransfer.data.ids import IdMap, id_index, read_only
from recotransfer.data.matching import match_ids, spelt_twice
from recotransfer.data.moments import as_seconds
from recotransfer.errors import InputError

_EVENT_TYPES = {"user": np.int64, "item": np.int64, "weight": np.float32, "time": np.float64, "kind": np.int16}


@checked_class
@dataclass(frozen=True)
class Interactions:
    """A log with one row per event, rating or label.

    Attributes:
        users, items: all users and items, including those without events.
        user, item: (n,) positions in `users` and `items`.
        weight: (n,) float32, finite; higher means a stronger interest.
        time: (n,) float64 seconds since 1970, or any numbers that give the order; None for a log without times.
        kind: (n,) int16 positions in `kinds`; None for a log without event kinds.
        kinds: names of the event kinds.

    Raises:
        InputError: shapes or types that do not fit together, positions out of range, or numbers that are not finite.
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

            with np.errstate(over="ignore"):  # overflow becomes infinity, which a check below rejects
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
        """Build interactions from a clean frame; `read_interactions` handles missing cells, text and event kinds.

        Args:
            frame: one row per event.
            user: name of the column of users.
            item: name of the column of items.
            weight: name of the column of weights; None gives every event weight 1.
            time: name of the column of times: seconds since 1970 (or any numbers that give the order), or dates,
                datetimes and durations of any unit and time zone. Those without a time zone are UTC.
            users: known users; None takes those of the frame. Ids of another type are converted if that is exact.
            items: known items, in the same way.

        Raises:
            InputError: a column does not exist, ids are missing, or weights or times are not numbers.
            UnknownIdError: an id is not in the given `users` or `items`.
        """
        for name in (user, item, weight, time):
            if name is not None and name not in frame.columns:
                raise InputError(f"no column {name!r}; the frame has {list(frame.columns)}")

        users, user_positions = _mapped(frame[user], users)
        items, item_positions = _mapped(frame[item], items)
        weights = np.ones(len(frame), np.float32)
        if weight is not None:
            weights = _as_numbers(frame[weight]).astype(np.float32)

        seconds = None
        if time is not None:
            seconds = as_seconds(frame[time])
            seconds = _as_numbers(frame[time]) if seconds is None else seconds

        return cls(users, items, user_positions, item_positions, weights, seconds)

    @classmethod
    def from_labels(cls, labels: Sequence[Any] | pd.Series, items: IdMap) -> Interactions:
        """Build interactions from labels: each label is a user who has interacted with the items that bear it.

        Args:
            labels: one per item, in the order of `items`; None for items without a label.
            items: the items' ids.

        Raises:
            InputError: the numbers of labels and items differ, or a label cannot be an id.
        """
        column = pd.Series(list(labels), dtype=object)
        if len(column) != len(items):
            raise InputError(f"{len(column)} labels for {len(items)} items; give one per item, None where unknown")

        rows = np.flatnonzero(column.notna()).astype(np.int64)
        given = id_index(column.iloc[rows])
        names = given.unique()

        with contextlib.suppress(TypeError):  # labels of mixed types cannot be sorted, and keep their order
            names = names.sort_values()

        users = IdMap(names)

        return cls(users, items, users.positions(given), rows, np.ones(len(rows), np.float32))

    def matrix(self) -> sparse.csr_array:
        """(users, items) float32 sparse matrix with the summed weight of each pair."""
        shape = (len(self.users), len(self.items))
        out = sparse.coo_array((self.weight, (self.user, self.item)), shape=shape, dtype=np.float32).tocsr()
        out.sum_duplicates()
        return out

    def binary_matrix(self) -> sparse.csr_array:
        """(users, items) float32 sparse matrix with a 1 for each pair whose summed weight is above 0."""
        out = self.matrix()
        out.data[:] = out.data > 0
        out.eliminate_zeros()
        return out

    def select(self, rows: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> Interactions:
        """The events at `rows` (positions or a boolean mask), over the same users and items."""
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
        """The same events over another item map, which must contain every item with an event."""
        if items == self.items:
            return self

        used, inverse = np.unique(self.item, return_inverse=True)
        at = items.positions(self.items.take(used))
        return Interactions(self.users, items, self.user, at[inverse], self.weight, self.time, self.kind, self.kinds)

    def with_ids_like(self, users: IdMap, items: IdMap) -> Interactions:
        """The same events with ids converted to the types of known users and items, so that 5 and "5" are one user.

        Raises:
            InputError: ids cannot be converted exactly to the type of the known ids, such as "bob" to a number.
        """
        new_users, user = _like(self.users, users, "user")
        new_items, item = _like(self.items, items, "item")
        return replace(self, users=new_users, items=new_items, user=user[self.user], item=item[self.item])

    def concat(self, other: Interactions) -> Interactions:
        """These events followed by those of `other`; ids of this log keep their positions, and new ids follow.

        Raises:
            InputError: only one of the logs has times or event kinds.
        """
        for name in ("time", "kind"):
            if len(self) and len(other) and (getattr(self, name) is None) != (getattr(other, name) is None):
                raise InputError(
                    f"only one of the two logs has a {name}, so they cannot be combined; give both a {name}, or neither"
                )

        users, items = self.users.union(other.users), self.items.union(other.items)
        kinds = tuple(dict.fromkeys([*self.kinds, *other.kinds]))
        new_kinds = np.array([kinds.index(name) for name in other.kinds], np.int16)
        appended = Interactions(
            users,
            items,
            users.positions(other.users.ids)[other.user],
            items.positions(other.items.ids)[other.item],
            other.weight,
            other.time,
            None if other.kind is None else new_kinds[other.kind],
            kinds,
        )

        def both(name: str) -> Any:
            arrays = [array for array in (getattr(self, name), getattr(appended, name)) if array is not None]
            return np.concatenate(arrays) if arrays else None

        return Interactions(users, items, kinds=kinds, **{name: both(name) for name in _EVENT_TYPES})

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(users + 1,) row of each user's first event in a log that is sorted by user, and the number of rows."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.user, minlength=len(self.users)))]).astype(np.int64)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(n,) row numbers sorted by user, then time; rows with equal times or none keep their order."""
        if self.time is None:
            return np.argsort(self.user, kind="stable")

        return np.lexsort((np.arange(len(self)), self.time, self.user))


def _mapped(column: pd.Series, known: IdMap | None) -> tuple[IdMap, NDArray[np.int64]]:
    """The id map (`known`, or one of the column's ids), and (n,) the position of each cell in it."""
    ids = IdMap(pd.unique(column))
    positions = ids.positions(column)
    if known is not None:
        return known, known.positions(match_ids(ids.ids, known).ids)[positions]

    if same := spelt_twice(id_index(ids.ids)):
        raise InputError(f"column {column.name!r} holds both {same[0]!r} and {same[1]!r}; write ids in one type")

    return ids, positions


def _like(given: IdMap, known: IdMap, role: str) -> tuple[IdMap, NDArray[np.int64]]:
    """The ids converted to the types of `known`, and (len(given),) the position of each given id among them."""
    if given.dtype == known.dtype and given.dtype != object:
        return given, np.arange(len(given))

    matched = match_ids(given.ids, known)
    if matched.mixed:
        raise InputError(f"{role} {matched.mixed}; write all of them in one type")

    ids = IdMap(matched.ids.unique())

    return ids, ids.positions(matched.ids)


def _as_numbers(column: pd.Series) -> NDArray[np.float64]:
    try:
        return np.asarray(column.to_numpy(np.float64, na_value=np.nan), np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"column {column.name!r} does not hold numbers, but values such as {column.iloc[0]!r}; convert it, or read "
            "the frame with read_interactions"
        ) from None
