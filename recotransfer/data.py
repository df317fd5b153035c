"""The carriers that every part of the package passes around: ids, items, interactions, embeddings, recommendations.

All are frozen; their arrays are read-only. Ids are what the user knows, positions are what the mathematics uses.
Reading files into carriers is the business of `readers.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from recotransfer.errors import InputError, UnknownIdError

ColumnKind = Literal["text", "image", "category", "number"]
_EVENT_TYPES = {"user": np.int64, "item": np.int64, "weight": np.float32, "time": np.float64, "kind": np.int16}


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view of `array`; the caller's own array stays writable."""
    view = array.view()
    view.flags.writeable = False
    return view


def _some(values: Any, n: int = 5) -> str:
    shown = ", ".join(repr(v) for v in list(values[:n]))
    return shown + (f" and {len(values) - n} more" if len(values) > n else "")


class IdMap:
    """A fixed two-way map between ids and positions 0..n-1.

    Ids may be of any hashable type and are kept as they came. `1` and `"1"` are two ids, `1` and `1.0` are one, as
    they are as keys of a dict.

    >>> items = IdMap(["a", "b"])
    >>> items.positions(["b", "a"]).tolist()
    [1, 0]
    """

    __slots__ = ("_index",)

    def __init__(self, ids: Iterable[Any] | pd.Index) -> None:
        index = _id_index(ids)
        if index.hasnans:
            raise InputError(f"ids must not be missing; position {int(np.flatnonzero(index.isna())[0])} is")
        if not index.is_unique:
            raise InputError(f"ids must be unique; these occur twice: {_some(index[index.duplicated()].unique())}")
        self._index = index

    @property
    def ids(self) -> NDArray[Any]:
        """All ids in order of position, shape (n,)."""
        return _frozen(np.asarray(self._index))

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, item: object) -> bool:
        return bool(_find(self._index, _id_index([item]))[0] >= 0)

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, IdMap):
            return self is other
        flags = [index.inferred_type == "boolean" for index in (self._index, other._index)]  # True is not 1
        return flags[0] == flags[1] and self._index.equals(other._index)

    __hash__ = None  # type: ignore[assignment]  # equal by content, so not usable as a key

    def __repr__(self) -> str:
        return f"IdMap({len(self)} ids: {_some(self.ids, 3)})"

    def positions(
        self, ids: ArrayLike | pd.Index, missing: Literal["raise", "negative"] = "raise"
    ) -> NDArray[np.int64]:
        """Positions of `ids`, shape (len(ids),).

        Unknown ids raise `UnknownIdError`, or give -1 with missing="negative".
        """
        wanted = _id_index(ids)
        found = _find(self._index, wanted)
        if missing == "raise" and (lost := np.flatnonzero(found < 0)).size:
            raise UnknownIdError(
                f"unknown ids: {_some(np.asarray(wanted)[lost])}; known ids look like {_some(self.ids, 3)}"
            )
        return found

    def take(self, positions: NDArray[np.integer]) -> NDArray[Any]:
        """Ids at `positions`, same shape; None where a position is negative."""
        positions = np.asarray(positions)
        if not len(self):
            return np.full(positions.shape, None, dtype=object)
        # Through the index: `self.ids` would turn every id of a text column into a Python string.
        out = np.asarray(self._index.take(np.maximum(positions, 0).ravel())).reshape(positions.shape)
        if (positions < 0).any():
            out = out.astype(object)
            out[positions < 0] = None
        return out

    def union(self, other: IdMap) -> IdMap:
        """These ids in their order, then those of `other` that are new."""
        if self == other:
            return self
        new = other._index[_find(self._index, other._index) < 0]
        if not len(new):
            return self
        return IdMap(_id_index([*self._index, *new]) if self._index.dtype != new.dtype else self._index.append(new))


def _id_index(ids: Any) -> pd.Index:
    """An index that never turns one id into another: whatever is not all text or all numbers stays as objects."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise InputError(f"ids must come as a list, got {ids!r}; put a single id in brackets")
    if isinstance(ids, pd.MultiIndex):
        ids = ids.to_flat_index()
    if isinstance(ids, np.ndarray) and ids.ndim != 1:
        raise InputError(f"ids must come as a flat list, got an array of shape {ids.shape}")
    if isinstance(ids, (pd.Index, pd.Series, np.ndarray)) and ids.dtype != object:
        return pd.Index(ids, dtype=object if ids.dtype.kind == "b" else None)
    values = list(ids)
    kinds = {type(v) for v in values}
    if len(kinds) == 1 and (kinds <= {int, float, str} or issubclass(kinds.pop(), np.number)):
        same: pd.Index = pd.Index(values)
        return same
    for value in values:
        try:
            hash(value)
        except TypeError:
            raise InputError(f"{value!r} cannot be an id; use text, numbers or another hashable type") from None
    objects = np.fromiter(values, dtype=object, count=len(values))
    mixed: pd.Index = pd.Index(objects, dtype=object, tupleize_cols=False)
    return mixed


def _find(index: pd.Index, wanted: pd.Index) -> NDArray[np.int64]:
    """Positions of `wanted`, -1 where unknown."""
    if {index.dtype.kind, wanted.dtype.kind} in ({"i", "f"}, {"u", "f"}):  # as floats, great integers run together
        index, wanted = index.astype(object), wanted.astype(object)
    return np.asarray(index.get_indexer(wanted), dtype=np.int64)


@dataclass(frozen=True)
class Items:
    """The catalogue's raw content, one row per item.

    Attributes:
        ids: the items, in row order.
        columns: a frame with one row per item and a default index; None or NaN where an item has no value.
        kinds: what each column holds; columns left out are carried along for filters and output only.
    """

    ids: IdMap
    columns: pd.DataFrame
    kinds: Mapping[str, ColumnKind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.columns):
            raise InputError(f"{len(self.ids)} ids but {len(self.columns)} rows of columns; give one row per id")
        if not self.columns.columns.is_unique:
            twice = self.columns.columns[self.columns.columns.duplicated()]
            raise InputError(f"columns must have names of their own; these occur twice: {_some(twice.unique())}")
        object.__setattr__(self, "columns", self.columns.reset_index(drop=True))
        if lost := set(self.kinds) - set(self.columns.columns):
            raise InputError(f"kinds names columns that the items lack: {sorted(lost)}; they have {list(self.columns)}")

    def __len__(self) -> int:
        return len(self.ids)

    def of_kind(self, kind: ColumnKind) -> list[str]:
        """Names of the columns of this kind, in table order."""
        return [c for c in self.columns.columns if self.kinds.get(c) == kind]

    def take(self, positions: NDArray[np.integer]) -> Items:
        """The items at `positions`, in that order."""
        return Items(IdMap(self.ids.take(positions)), self.columns.iloc[positions].reset_index(drop=True), self.kinds)


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
                object.__setattr__(self, name, _frozen(array.astype(kind, copy=False)))
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
        known = _id_index(column.iloc[rows])
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

    def taken(self) -> sparse.csr_array:
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


@dataclass(frozen=True)
class Embeddings:
    """Item vectors from a frozen encoder or a transfer.

    Attributes:
        ids: the items, in row order.
        vectors: (n, dim) float32, finite. Rows of items without content are zero.
        source: encoder name, revision and the maps applied.
        present: (n,) bool; False where the item has no content at all, so that its zeros are never read as content.
        blocks: (name, width) of the modalities side by side in `vectors`, for example (("text", 384), ("image", 1280)).
    """

    ids: IdMap
    vectors: NDArray[np.float32]
    source: str = "given"
    present: NDArray[np.bool_] | None = None
    blocks: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        vectors = np.asarray(self.vectors)
        if vectors.ndim != 2 or len(vectors) != len(self.ids):
            raise InputError(f"vectors have shape {vectors.shape}, wanted ({len(self.ids)}, dim)")
        if vectors.dtype.kind not in "fiub":
            raise InputError(f"vectors must be numbers, got {vectors.dtype}")
        with np.errstate(over="ignore"):  # what passes the range is infinite, and refused below
            object.__setattr__(self, "vectors", vectors.astype(np.float32, copy=False))
        bad = [i for s in range(0, len(self.ids), 65536) for i in _not_finite(self.vectors[s : s + 65536], s)]
        if bad:
            raise InputError(f"vectors must be finite; these items have NaN or infinity: {_some(self.ids.ids[bad])}")
        mask = np.ones(len(self.ids), bool) if self.present is None else np.asarray(self.present, bool)
        if mask.shape != (len(self.ids),):
            raise InputError(f"present has shape {mask.shape}, wanted ({len(self.ids)},)")
        if self.vectors[~mask].any():
            object.__setattr__(self, "vectors", np.where(mask[:, None], self.vectors, np.float32(0)))
        object.__setattr__(self, "vectors", _frozen(self.vectors))
        object.__setattr__(self, "present", _frozen(mask))
        if not self.blocks:
            object.__setattr__(self, "blocks", (("content", self.dim),))
        if sum(width for _, width in self.blocks) != self.dim:
            raise InputError(f"blocks {self.blocks} do not add up to dim {self.dim}")

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.vectors.shape[1])

    @property
    def has_content(self) -> NDArray[np.bool_]:
        """(n,) bool, `present` with its type settled."""
        assert self.present is not None  # set in __post_init__
        return self.present

    def align(self, ids: IdMap) -> Embeddings:
        """Rows for `ids` in their order; items without a vector are marked as not present."""
        if ids == self.ids:
            return self
        at = self.ids.positions(ids.ids, missing="negative")
        vectors = self.vectors[np.maximum(at, 0)] if len(self.ids) else np.zeros((len(ids), self.dim), np.float32)
        present = (at >= 0) & (self.has_content[np.maximum(at, 0)] if len(self.ids) else False)
        vectors[~present] = 0
        return Embeddings(ids, vectors, self.source, present, self.blocks)

    def joined(self, other: Embeddings) -> Embeddings:
        """These rows, then those of `other`, whose ids are new; source and blocks are those of these."""
        if other.dim != self.dim:
            raise InputError(f"new items have {other.dim} dimensions, those known {self.dim}; encode both alike")
        vectors = np.concatenate([self.vectors, other.vectors])
        present = np.concatenate([self.has_content, other.has_content])
        return Embeddings(self.ids.union(other.ids), vectors, self.source, present, self.blocks)


def _not_finite(rows: NDArray[np.float32], start: int) -> list[int]:
    return [] if np.isfinite(rows).all() else (np.flatnonzero(~np.isfinite(rows).all(axis=1)) + start).tolist()


@dataclass(frozen=True)
class Reason:
    """Why an item stands in a list.

    Attributes:
        because: (item id, share) of the user's own items that weighed most, shares of the positive evidence.
        parts: share of the score by source, for example {"behaviour": 0.7, "text": 0.3}.
    """

    because: tuple[tuple[Any, float], ...]
    parts: Mapping[str, float]

    def __str__(self) -> str:
        items = ", ".join(f"{item} ({share:.0%})" for item, share in self.because)
        parts = ", ".join(f"{name} {share:.0%}" for name, share in self.parts.items() if share >= 0.005)
        return f"because of {items} [{parts}]" if items else f"[{parts}]"


@dataclass(frozen=True)
class Recommendations:
    """Ranked lists, best first.

    Attributes:
        users: (n,) ids of the users (or, for `similar_items`, of the items asked about).
        catalogue: the items that `positions` point into.
        positions: (n, k) int64; -1 past the end of a list that could not be filled.
        scores: (n, k) float32, greater is better; -inf where `positions` is -1.
        reason: (n, k) of `Reason` or None, when asked for.
    """

    users: NDArray[Any]
    catalogue: IdMap
    positions: NDArray[np.int64]
    scores: NDArray[np.float32]
    reason: NDArray[np.object_] | None = None

    def __post_init__(self) -> None:
        shape = (len(self.users), self.positions.shape[-1])
        for name, wanted in (("users", shape[:1]), ("positions", shape), ("scores", shape), ("reason", shape)):
            if (array := getattr(self, name)) is None:
                continue
            if array.shape != wanted:
                raise InputError(f"recommendations: {name} has shape {array.shape}, wanted {wanted}")
            object.__setattr__(self, name, _frozen(array))

    @property
    def items(self) -> NDArray[Any]:
        """(n, k) item ids, None past the end of a list."""
        return self.catalogue.take(self.positions)

    def __len__(self) -> int:
        return len(self.users)

    def to_frame(self, user_name: str = "user", item_name: str = "item") -> pd.DataFrame:
        """One row per recommendation: user, item, rank (from 1), score, and reason as text when there is one."""
        row, column = np.nonzero(self.positions >= 0)
        frame = pd.DataFrame(
            {
                user_name: self.users[row],
                item_name: self.catalogue.take(self.positions[row, column]),
                "rank": (column + 1).astype(np.int32),
                "score": self.scores[row, column],
            }
        )
        if self.reason is not None:
            frame["reason"] = [str(r) for r in self.reason[row, column]]
        return frame
