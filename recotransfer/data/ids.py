"""`IdMap`: the map between ids, which users work with, and positions, which computations use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from recotransfer.arguments import checked_class
from recotransfer.errors import InputError, UnknownIdError


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view of `array`; the caller's own array stays writable."""
    view = array.view()
    view.flags.writeable = False
    return view


def preview(values: Any, n: int = 5) -> str:
    """The first `n` values as text, and how many more there are, for messages."""
    shown = ", ".join(repr(v) for v in list(values[:n]))
    return shown + (f" and {len(values) - n} more" if len(values) > n else "")


@checked_class
class IdMap:
    """An immutable two-way map between ids and positions 0..n-1.

    Ids may be of any hashable type, which they keep. As with keys of a dict, `1` and `"1"` are different ids, and `1`
    and `1.0` are the same.

    Args:
        ids: the ids in order of position; they must be unique and not missing.

    >>> items = IdMap(["a", "b"])
    >>> items.positions(["b", "a"]).tolist()
    [1, 0]
    """

    __slots__ = ("_index",)

    def __init__(self, ids: Iterable[Any] | pd.Index) -> None:
        index = id_index(ids)
        if index.hasnans:
            raise InputError(f"ids must not be missing; position {int(np.flatnonzero(index.isna())[0])} is")
        if not index.is_unique:
            raise InputError(f"ids must be unique; these occur twice: {preview(index[index.duplicated()].unique())}")

        self._index = index

    @property
    def ids(self) -> NDArray[Any]:
        """(n,) all ids in order of position, read-only."""
        return read_only(np.asarray(self._index))

    @property
    def dtype(self) -> Any:
        """The common dtype of the ids, such as text, integers or floats; `object` for other or mixed types."""
        return self._index.dtype

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, item: object) -> bool:
        return bool(_find(self._index, id_index([item]))[0] >= 0)

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, IdMap):
            return self is other

        flags = [index.inferred_type == "boolean" for index in (self._index, other._index)]  # True is not 1
        return flags[0] == flags[1] and self._index.equals(other._index)

    __hash__ = None  # type: ignore[assignment]  # equal by content, so not usable as a key

    def __repr__(self) -> str:
        return f"IdMap({len(self)} ids: {preview(self.ids, 3)})"

    def positions(
        self, ids: ArrayLike | pd.Index, missing: Literal["raise", "negative"] = "raise"
    ) -> NDArray[np.int64]:
        """(len(ids),) positions of `ids`; with missing="negative", -1 for unknown ids.

        Raises:
            UnknownIdError: an id is unknown, and `missing` is "raise".
        """
        index = id_index(ids)
        positions = _find(self._index, index)
        if missing == "raise" and (unknown := np.flatnonzero(positions < 0)).size:
            raise UnknownIdError(
                f"unknown ids: {preview(np.asarray(index)[unknown])}; known ids look like {preview(self.ids, 3)}"
            )

        return positions

    def take(self, positions: NDArray[np.integer]) -> NDArray[Any]:
        """The ids at `positions`, an array of any shape, in the same shape; None for negative positions."""
        positions = np.asarray(positions)
        if not len(self):
            return np.full(positions.shape, None, dtype=object)

        # From the index, because `self.ids` would convert all text ids to Python strings.
        out = np.asarray(self._index.take(np.maximum(positions, 0).ravel())).reshape(positions.shape)
        if (positions < 0).any():
            out = out.astype(object)
            out[positions < 0] = None

        return out

    def union(self, other: IdMap) -> IdMap:
        """A map of these ids, which keep their positions, followed by the ids of `other` that are new."""
        if self == other:
            return self

        new = other._index[_find(self._index, other._index) < 0]
        if not len(new):
            return self

        return IdMap(id_index([*self._index, *new]) if self._index.dtype != new.dtype else self._index.append(new))


def id_index(ids: object) -> pd.Index:
    """A pandas index that leaves the ids unchanged: unless all are text or all are numbers, it has dtype object.

    Raises:
        InputError: the ids are not a flat list, or one is not hashable.
    """
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise InputError(f"ids must be a list, got {ids!r}; put a single one in brackets")

    if isinstance(ids, pd.MultiIndex):
        ids = ids.to_flat_index()

    if isinstance(ids, np.ndarray) and ids.ndim != 1:
        raise InputError(f"ids must be a flat list, got an array of shape {ids.shape}")
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

    objects = np.fromiter(values, dtype=object, count=len(values))  # np.array would turn tuples into rows
    mixed: pd.Index = pd.Index(objects, dtype=object, tupleize_cols=False)

    return mixed


def _find(index: pd.Index, wanted: pd.Index) -> NDArray[np.int64]:
    """(len(wanted),) positions in `index`, -1 where unknown."""
    if {index.dtype.kind, wanted.dtype.kind} in ({"i", "f"}, {"u", "f"}):  # as floats, large integers could be equal
        index, wanted = index.astype(object), wanted.astype(object)

    return np.asarray(index.get_indexer(wanted), dtype=np.int64)
