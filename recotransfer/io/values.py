"""Encode ids and table cells of any common type as text, and decode them to the same type without executing code.

A value is encoded as the name of its kind, such as "int" or "date", and a text. Values of other types cannot be saved;
`check_ids` finds them before a model is fitted, so that no work is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from recotransfer.errors import ArtifactError, InputError

_ENCODED = b"recotransfer.coded"  # Parquet metadata key: names of the columns whose cells are encoded


class _Kind(NamedTuple):
    """A type that can be saved: its name in files, its encoder and its decoder."""

    name: str
    to_text: Callable[[Any], str]
    from_text: Callable[[str], Any]


def _zone_name(zone: tzinfo | None) -> str | None:
    """The IANA name of a time zone; None for fixed offsets or no zone."""
    name = getattr(zone, "key", None) or getattr(zone, "zone", None)
    return name if isinstance(name, str) else None


def _datetime_to_text(value: datetime) -> str:
    # ISO 8601 holds neither the fold (which of the two hours when clocks go back) nor the name of the zone.
    return json.dumps([value.isoformat(), value.fold, _zone_name(value.tzinfo)])


def _datetime_from_text(text: str) -> datetime:
    iso, fold, zone = json.loads(text)
    value = datetime.fromisoformat(iso)
    return value.replace(fold=fold, tzinfo=value.tzinfo if zone is None else ZoneInfo(zone))


def _timestamp_to_text(value: pd.Timestamp) -> str:
    offset = value.utcoffset()
    seconds = None if offset is None else offset.total_seconds()

    # The integer with its unit ("ns", "s") is exact; ISO 8601 text would lose nanoseconds.
    return json.dumps([int(value.to_datetime64().astype(np.int64)), value.unit, seconds, _zone_name(value.tzinfo)])


def _timestamp_from_text(text: str) -> pd.Timestamp:
    number, unit, seconds, zone = json.loads(text)
    value = pd.Timestamp(np.datetime64(number, unit))
    if seconds is None:
        return value

    offset = timezone(timedelta(seconds=seconds)) if seconds else UTC
    return value.tz_localize("UTC").tz_convert(zone or offset)


def _numpy_time_to_text(value: np.datetime64 | np.timedelta64) -> str:
    return json.dumps([int(value.astype(np.int64)), np.datetime_data(value.dtype)[0]])


def _list_to_text(values: Iterable[Any]) -> str:
    return json.dumps([pack(value) for value in values])


def _list_from_text(text: str) -> list[Any]:
    return [unpack(kind, inner) for kind, inner in json.loads(text)]


def _dict_to_text(values: dict[Any, Any]) -> str:
    return json.dumps([[*pack(key), *pack(value)] for key, value in values.items()])


def _dict_from_text(text: str) -> dict[Any, Any]:
    return {unpack(*entry[:2]): unpack(*entry[2:]) for entry in json.loads(text)}


# Types of ids, all of them hashable.
_IDS: dict[type, _Kind] = {
    bool: _Kind("bool", str, "True".__eq__),
    int: _Kind("int", str, int),
    float: _Kind("float", float.hex, float.fromhex),  # hexadecimal text is exact
    str: _Kind("str", str, str),
    bytes: _Kind("bytes", bytes.hex, bytes.fromhex),
    UUID: _Kind("uuid", str, UUID),
    Decimal: _Kind("decimal", str, Decimal),
    date: _Kind("date", date.isoformat, date.fromisoformat),
    time: _Kind("time", time.isoformat, time.fromisoformat),
    datetime: _Kind("datetime", _datetime_to_text, _datetime_from_text),
    timedelta: _Kind(
        "timedelta",
        lambda v: json.dumps([v.days, v.seconds, v.microseconds]),
        lambda text: timedelta(*json.loads(text)),
    ),
    pd.Timestamp: _Kind("timestamp", _timestamp_to_text, _timestamp_from_text),
    pd.Timedelta: _Kind(
        "pandas timedelta",
        lambda v: _numpy_time_to_text(v.to_timedelta64()),
        lambda text: pd.Timedelta(np.timedelta64(*json.loads(text))),
    ),
    np.datetime64: _Kind("datetime64", _numpy_time_to_text, lambda text: np.datetime64(*json.loads(text))),
    np.timedelta64: _Kind("timedelta64", _numpy_time_to_text, lambda text: np.timedelta64(*json.loads(text))),
    tuple: _Kind("tuple", _list_to_text, lambda text: tuple(_list_from_text(text))),
}
# Types of cells: ids, missing values and containers.
_CELLS: dict[type, _Kind] = _IDS | {
    type(None): _Kind("none", lambda _: "", lambda _: None),
    list: _Kind("list", _list_to_text, _list_from_text),
    set: _Kind("set", _list_to_text, lambda text: set(_list_from_text(text))),
    frozenset: _Kind("frozenset", _list_to_text, lambda text: frozenset(_list_from_text(text))),
    dict: _Kind("dict", _dict_to_text, _dict_from_text),
}
_ESCAPED = _Kind("escaped", json.dumps, json.loads)  # text with lone surrogates, which UTF-8 cannot encode
_BY_NAME = {kind.name: kind for kind in [*_CELLS.values(), _ESCAPED]}


def pack(value: Any, kinds: dict[type, _Kind] = _CELLS) -> tuple[str, str]:
    """Encode a value as (kind, text); numpy scalars and arrays are encoded as Python scalars and lists.

    Raises:
        KeyError: the value, or one inside it, is of a type that cannot be saved.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic) and not isinstance(value, (np.datetime64, np.timedelta64)):
        value = value.item()

    kind = kinds[type(value)]
    if kind.name == "tuple" and kinds is _IDS:
        return kind.name, json.dumps([pack(inner, _IDS) for inner in value])
    if kind.name == "str" and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        kind = _ESCAPED

    return kind.name, kind.to_text(value)


def unpack(kind: str, text: str) -> Any:
    """Decode a value that `pack` encoded; raises `ArtifactError` for a kind that this version does not know."""
    if kind not in _BY_NAME:
        raise ArtifactError(f"a value of kind {kind!r} cannot be read; install the version that wrote it")

    return _BY_NAME[kind].from_text(text)


# -- ids ---------------------------------------------------------------------------------------------------------------


def check_ids(*ids: NDArray[Any]) -> None:
    """Raise `InputError` for the first id that cannot be saved."""
    for array in ids:
        if array.dtype == object:
            # Encoding is slow, and only values of rarer types can fail, such as a tuple with a set inside.
            common = {str, int, bool, float, bytes, UUID}
            if rare := [value for value in array if type(value) not in common]:
                ids_to_frame(np.fromiter(rare, dtype=object, count=len(rare)))
        elif array.dtype.kind not in "iufbUMm":
            raise _unsupported_id(array[0] if len(array) else array.dtype, str(array.dtype))


def _unsupported_id(value: object, type_name: str) -> InputError:
    return InputError(
        f"id {value!r} of type {type_name} cannot be saved; use str, int, float, bytes, UUID, dates, Decimal or tuples "
        "of them"
    )


def ids_to_frame(ids: NDArray[Any]) -> pd.DataFrame:
    """Encode ids as a frame with one row per id, from which `frame_to_ids` restores them with their types."""
    if ids.dtype != object:
        return pd.DataFrame({"id": ids})

    encoded = []
    for value in ids:
        try:
            encoded.append(pack(value, _IDS))
        except (KeyError, ValueError):
            raise _unsupported_id(value, type(value).__name__) from None

    kinds = [kind for kind, _ in encoded]
    texts = [text for _, text in encoded]
    if set(kinds) <= {"str"}:
        return pd.DataFrame({"id": pd.Series(texts, dtype="str")})

    return pd.DataFrame({"kind": kinds, "text": texts})


def frame_to_ids(frame: pd.DataFrame) -> NDArray[Any]:
    """Decode the ids of a frame that `ids_to_frame` made, each in its original type."""
    if "id" in frame:
        return np.asarray(frame["id"])

    values = (unpack(kind, text) for kind, text in zip(frame["kind"], frame["text"], strict=True))
    return np.fromiter(values, dtype=object, count=len(frame))  # np.array would turn tuples into a 2-d array


# -- tables ------------------------------------------------------------------------------------------------------------


def to_table(frame: pd.DataFrame) -> pa.Table:
    """Convert a frame to an Arrow table; columns whose values Parquet would change are encoded as text."""
    encoded = [str(name) for name in frame if not _is_native(frame[name])]
    columns = {str(name): _encode(frame[name]) if str(name) in encoded else frame[name] for name in frame}
    table = pa.Table.from_pandas(pd.DataFrame(columns, index=frame.index), preserve_index=False)
    if not encoded:
        return table

    return table.replace_schema_metadata({**(table.schema.metadata or {}), _ENCODED: json.dumps(encoded).encode()})


def from_table(table: pa.Table) -> pd.DataFrame:
    """Convert a table that `to_table` made back to a frame, every cell in its original type."""
    encoded = json.loads((table.schema.metadata or {}).get(_ENCODED, b"[]"))
    frame: pd.DataFrame = table.to_pandas()
    for name in encoded:
        cells = [None if pd.isna(cell) else unpack(*json.loads(cell)) for cell in frame[name]]
        frame[name] = pd.Series(np.fromiter(cells, dtype=object, count=len(cells)), index=frame.index)

    return frame


def _is_native(column: pd.Series) -> bool:
    """Whether Parquet preserves the type and value of every cell of the column."""
    if column.dtype != object:
        try:
            pa.Array.from_pandas(column)
        except (pa.ArrowException, TypeError, ValueError):
            return False

        return not isinstance(column.dtype, pd.SparseDtype)

    # Columns of one of these types are preserved; mixed types would be converted to a common one, or refused.
    types = set(map(type, column.dropna())) if not column.map(pd.api.types.is_list_like).any() else {list}
    return types <= {str} or types <= {bool} or types == {bytes} or (len(types) == 1 and types <= {date})


def _encode(column: pd.Series) -> pd.Series:
    cells = column.astype(object)
    return cells.map(lambda cell: None if _is_missing(cell) else json.dumps(pack(cell)))


def _is_missing(cell: Any) -> bool:
    return not pd.api.types.is_list_like(cell) and bool(pd.isna(cell))
