"""CSV, Parquet, DataFrames and SQL into `Items` and `Interactions`, with a report of what was dropped and why.

Sources are opened in `tables`; cells are read in `parsing`; what a column means is settled in `schema`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.data import ColumnKind, IdMap, Interactions, Items
from recotransfer.errors import InputError
from recotransfer.io.parsing import parse_numbers, parse_times
from recotransfer.io.schema import (
    EventWeights,
    as_known_ids,
    clean_ids,
    find_columns,
    flat,
    guess_kind,
    is_price,
    settled_ids,
    typed,
    wordiest,
)
from recotransfer.io.tables import ReadReport, Source, Table, load_table

T = TypeVar("T", Items, Interactions)


@dataclass(frozen=True)
class Read(Generic[T]):
    """A carrier and the report of how it was read."""

    data: T
    report: ReadReport


def read_items(
    source: Source,
    *,
    columns: Mapping[str, str] | None = None,
    kinds: Mapping[str, ColumnKind] | None = None,
    image_root: Path | None = None,
) -> Read[Items]:
    """The catalogue: one row per item, every column read as what it holds.

    Numbers become float64 (signs of currency and thousands understood), texts and categories `object` with None for a
    gap, flags bool, dates datetimes in UTC; flags, dates and other ids are carried along without a kind. Image paths
    become absolute; a cell whose file is missing is emptied. Of several rows with one id the first is kept.

    Args:
        source: as in `read_table`.
        columns: {"item": name of the id column} where it is not a usual one.
        kinds: kinds of columns whose guess is wrong: "text", "image", "category" or "number".
        image_root: folder of relative image paths; None is the folder of the file read.

    Raises:
        InputError: an unreadable source, no id column, or two that may be it.
    """
    table = load_table(source)
    key = find_columns(list(table.frame.columns), "items", columns, table.name)["item"]
    kinds = dict(kinds or {})
    if lost := [c for c in kinds if c not in table.frame.columns or c == key]:
        raise InputError(f"kinds names {lost}; the columns of {table.name} are {', '.join(table.frame.columns)}")
    if wrong := [k for k in kinds.values() if k not in get_args(ColumnKind)]:
        raise InputError(f"kinds must be {', '.join(get_args(ColumnKind))}; got {wrong}")

    ids = _clean_ids(table, key, "item")
    table.drop(ids.duplicated().to_numpy(), "an earlier row has the same item id", key, "give one row per item")
    table.check_some_left("item")
    table.notes.append(f"item = {key!r}")
    rows = np.flatnonzero(table.keep)
    out: dict[str, pd.Series] = {}
    found: dict[str, str | None] = {}

    for name in table.frame.columns.drop(key):
        values = flat(table.frame[name].iloc[rows].reset_index(drop=True), name)
        found[name] = kinds.get(name) or guess_kind(name, values, len(rows))
        if found[name] == "image" and all(isinstance(v, str) and v.startswith("http") for v in values.dropna()):
            found[name] = None
            table.notes.append(f"column {name!r} holds web addresses; save the pictures and give their paths")

        out[name] = _column(table, rows, name, values, found[name], image_root)

    if "text" not in found.values():
        free = [c for c, k in found.items() if k == "category" and c not in kinds]
        if (best := wordiest(pd.DataFrame(out, index=range(len(rows))), free)) is not None:
            found[best] = "text"
            table.notes.append(f"no column holds titles, so {best!r} is taken as text; set kinds to change that")

    used = {c: cast("ColumnKind", k) for c, k in found.items() if k in get_args(ColumnKind)}
    table.notes.append("kinds: " + (", ".join(f"{c} {k}" for c, k in used.items()) or "none"))
    if carried := [c for c in found if c not in used]:
        table.notes.append(f"carried along only: {', '.join(carried)}")

    frame = pd.DataFrame(out, index=pd.RangeIndex(len(rows)))

    return Read(Items(IdMap(pd.Index(settled_ids(ids[table.keep]))), frame, used), table.report(len(rows)))


def _column(
    table: Table, rows: NDArray[np.int64], name: str, values: pd.Series, kind: str | None, root: Path | None
) -> pd.Series:
    """The cells of one column of items in their type; unreadable ones are emptied and recorded."""

    def empty(bad: NDArray[np.bool_], reason: str, remedy: str) -> None:
        mask = np.zeros(len(table.frame), bool)
        mask[rows[bad]] = True
        table.drop(mask, reason, name, remedy, cells=True)

    if kind == "image":
        cells, lost = _images(values, table.folder if root is None else Path(root))
        empty(lost, "there is no such picture file", "put the file there, or give image_root=...")
        return cells

    cells, bad = typed(values, kind)
    empty(bad, f"not a {kind}", f"write a {kind}, or set kinds={{{name!r}: ...}}")
    if kind == "number" and is_price(name):
        negative = cells.to_numpy(np.float64) < 0
        empty(negative, "a price below 0", "write the price, or leave the cell empty")
        cells = cells.mask(negative)

    return cells


def _images(values: pd.Series, root: Path | None) -> tuple[pd.Series, NDArray[np.bool_]]:
    """Paths made absolute under `root` and None where there is no file; bytes and arrays as they are."""
    cells: list[Any] = [None if isinstance(c, float) or c is pd.NA or c == "" else c for c in values.astype(object)]
    lost = np.zeros(len(cells), bool)

    for i, cell in enumerate(cells):
        if isinstance(cell, (str, Path)):
            path = Path(root or ".", str(cell).strip()).absolute()
            lost[i] = not path.is_file()
            cells[i] = None if lost[i] else str(path)

    out = pd.Series([None] * len(cells), dtype=object)
    out[:] = cells

    return out, lost


def _clean_ids(table: Table, column: str, role: str) -> pd.Series:
    try:
        ids, missing = clean_ids(table.frame[column])
        pd.unique(ids)
    except TypeError as cause:
        raise InputError(
            f"{table.name}: column {column!r} holds values that are no ids ({cause}); use plain ids"
        ) from None

    table.drop(missing, f"missing {role} id", column, f"fill in the {role}")

    return ids


def read_interactions(
    source: Source,
    *,
    columns: Mapping[str, str] | None = None,
    events: EventWeights | None = None,
    items: IdMap | None = None,
    users: IdMap | None = None,
    unknown_items: Literal["drop", "keep"] = "drop",
    time_format: str | None = None,
) -> Read[Interactions]:
    """The events (or ratings) in the order of the source.

    Of rows equal in user, item, event, time, rating and weight, one is kept; without a time column equal rows may be
    true repeats and stay. Rows without user, item, event kind or time, where there is such a column, are dropped.

    Args:
        source: as in `read_table`.
        columns: names of the columns for the roles user, item, event, time, rating, weight, where they are not usual.
        events: weights of event kinds, use of ratings, treatment of repeats; None is `EventWeights()`.
        items: the catalogue's ids; ids of another type are converted to its type when no id matches as it stands.
        users: ids that come first in the user map; new users follow them.
        unknown_items: what to do with events on items outside `items`: "drop" and report, or "keep" and add the items.
        time_format: strptime format, or "s", "ms", "us", "ns", "order", where times are not understood by themselves.

    Raises:
        InputError: an unreadable source, columns not found or ambiguous, unknown event kinds, ids that match no item
            of the catalogue, or no event left. The message names the rows and the remedy.
    """
    if unknown_items not in ("drop", "keep"):
        raise InputError(f"unknown_items must be 'drop' or 'keep', got {unknown_items!r}")

    table = load_table(source)
    names = find_columns(list(table.frame.columns), "interactions", columns, table.name)
    table.notes.append(", ".join(f"{role} = {name!r}" for role, name in names.items()))
    ids = {role: _clean_ids(table, names[role], role) for role in ("user", "item")}
    weight, kind, kinds = _weights(table, names, events or EventWeights())
    time = _times(table, names["time"], time_format) if "time" in names else None
    table.check_some_left("event")
    item_map, item = _positions(table, ids["item"], names["item"], items, grow=unknown_items == "keep")
    table.drop(item < 0, "unknown item", names["item"], "add the item to the catalogue, or unknown_items='keep'")
    table.check_some_left("event")
    user_map, user = _positions(table, ids["user"], names["user"], users, grow=True)
    log = pd.DataFrame({"user": user, "item": item, "weight": weight})
    log = log.assign(**({} if time is None else {"time": time}), **({} if kind is None else {"kind": kind}))
    _drop_duplicates(table, log)
    log = _merge_repeats(table, log, (events or EventWeights()).repeats)
    data = Interactions(
        user_map,
        item_map,
        log["user"].to_numpy(np.int64),
        log["item"].to_numpy(np.int64),
        log["weight"].to_numpy(np.float32),
        None if time is None else log["time"].to_numpy(np.float64),
        None if kind is None else log["kind"].to_numpy(np.int16),
        kinds,
    )

    return Read(data, table.report(len(data)))


def _weights(
    table: Table, names: Mapping[str, str], events: EventWeights
) -> tuple[NDArray[np.float64], NDArray[np.int16] | None, tuple[str, ...]]:
    """Weight of each row, and its kind of event as a position in the kinds that occur; -1 and 0 for kinds left out."""
    weight = np.ones(len(table.frame))
    kind: NDArray[np.int16] | None = None
    kinds: tuple[str, ...] = ()
    if "event" in names:
        kind, kinds = _kinds(table, names["event"], events)
        table_of = events.table()
        weight *= np.array([*map(table_of.__getitem__, kinds), 0.0])[kind]

    uses_rating = events.rating_threshold is not None or events.rating_as_weight
    if uses_rating and "rating" not in names:
        raise InputError(
            f"{table.name}: ratings are asked for but no column holds them; give columns={{'rating': ...}}"
        )

    for role in ("rating", "weight"):
        if role not in names or (role == "rating" and not uses_rating):
            continue

        numbers, bad = parse_numbers(table.frame[names[role]])
        table.drop(bad, f"the {role} is not a number", names[role], f"write the {role} as a number")
        table.drop(np.isnan(numbers), f"missing {role}", names[role], f"fill in the {role}")
        if role == "rating" and events.rating_threshold is not None:
            low = numbers < events.rating_threshold
            table.drop(
                low, f"a rating below {events.rating_threshold:g}", names[role], "lower rating_threshold to keep it"
            )

        if role == "weight" or events.rating_as_weight:
            weight *= numbers

    if "rating" in names and not uses_rating:
        table.notes.append("every rating counts 1, whatever its value; set rating_threshold or rating_as_weight")

    column = names.get("weight") or (names.get("rating") if events.rating_as_weight else None) or names.get("event")
    table.drop(weight <= 0, "a weight of 0 or less", column, "give it a positive weight to keep it")

    return weight, kind, kinds


def _kinds(table: Table, column: str, events: EventWeights) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    cells = table.frame[column]
    table.drop(cells.isna().to_numpy(), "missing event kind", column, "fill in the kind of event")
    codes, called = pd.factorize(cells)
    meant = [events.kind_of(str(name)) for name in called]
    if unknown := [i for i, kind in enumerate(meant) if kind is None]:
        shown = ", ".join(
            f"{called[i]!r} ({int((codes == i).sum())} rows, first on {table.numbering} "
            f"{table.at(np.flatnonzero(codes == i)[:1])[0]})"
            for i in unknown[:5]
        )
        raise InputError(
            f"{table.name}, column {column!r}: unknown kinds of event: {shown}; "
            f"give weights, for example EventWeights(weights={{{str(called[unknown[0]])!r}: 1.0}}); 0 leaves a kind out"
        )

    kinds = tuple(k for k, weight in events.table().items() if k in meant and weight > 0)
    at = np.array([*(kinds.index(k) if k in kinds else -1 for k in meant), -1], np.int16)

    return at[codes], kinds


def _times(table: Table, column: str, time_format: str | None) -> NDArray[np.float64]:
    try:
        times = parse_times(table.frame[column], time_format)
    except InputError as cause:
        raise InputError(f"{table.name}, column {column!r}: {cause}") from None

    table.notes.extend(times.notes)
    remedy = "write it as ISO 8601 or seconds since 1970, or give time_format=..."
    table.drop(times.bad, "unreadable time", column, remedy)
    table.drop(np.isnan(times.seconds), "missing time", column, "fill in the time")

    return times.seconds


def _positions(
    table: Table, ids: pd.Series, column: str, known: IdMap | None, *, grow: bool
) -> tuple[IdMap, NDArray[np.int64]]:
    """The id map and (n,) positions of the standing rows in it; -1 for rows dropped and, unless `grow`, unknown ids."""
    codes, distinct = pd.factorize(settled_ids(ids[table.keep]))
    index, out = pd.Index(distinct), np.full(len(ids), -1, np.int64)
    if known is None or not len(known):
        known = IdMap(index) if known is None or grow else known
    elif not (known.positions(index, missing="negative") >= 0).any():
        index = _converted(table, index, column, known, grow=grow)

    known = known.union(IdMap(index.unique())) if grow else known
    out[table.keep] = known.positions(index, missing="negative")[codes]

    return known, out


def _converted(table: Table, index: pd.Index, column: str, known: IdMap, *, grow: bool) -> pd.Index:
    same = as_known_ids(index, known)
    if same is not None and (known.positions(same, missing="negative") >= 0).any():
        one, other = type(index[0]).__name__, type(known.ids[0]).__name__
        table.notes.append(f"ids in column {column!r} were converted from {one} to the known ids' {other}")
        return same

    if grow and type(index.tolist()[0]) is type(known.ids[:1].tolist()[0]):
        return index

    here, there = (", ".join(map(repr, ids[:3].tolist())) for ids in (index, known.ids))
    raise InputError(
        f"{table.name}, column {column!r}: none of its {len(index)} ids is known; they look like {here} "
        f"and the known ids like {there}; use the ids of the catalogue, or name the right column with columns={{...}}"
    )


def _drop_duplicates(table: Table, log: pd.DataFrame) -> None:
    again = np.zeros(len(log), bool)
    again[table.keep] = log[table.keep].duplicated().to_numpy()
    if "time" in log:
        table.drop(again, "the same as an earlier row", None, "nothing to do: it counts once")
    elif again.any():
        table.notes.append(
            f"{int(again.sum()):,} rows repeat an earlier one, and without times they were kept as repeated events"
        )


def _merge_repeats(table: Table, log: pd.DataFrame, repeats: str) -> pd.DataFrame:
    """The standing rows; with "sum" or "last", only the latest of each user and item."""
    if repeats == "all":
        return log[table.keep]

    by_time = log[table.keep].sort_values("time", kind="stable") if "time" in log else log[table.keep]
    pairs = by_time.groupby(["user", "item"], sort=False)["weight"]
    if repeats == "sum":
        log = log.assign(weight=pairs.transform("sum"))

    older = np.zeros(len(log), bool)
    older[by_time.index[by_time.duplicated(["user", "item"], keep="last")]] = True
    what = "merged into the latest event" if repeats == "sum" else "older than the latest event"
    table.drop(older, f"{what} of its user and item", None, "nothing to do, or repeats='all'")

    return log[table.keep]


def read_ids(source: Source, *, role: Literal["user", "item"], known: IdMap) -> NDArray[Any]:
    """The distinct ids of a source's user or item column, or of its only column, in the type of `known`.

    Raises:
        InputError: an unreadable source, no such column, or a missing id.
        UnknownIdError: an id that `known` lacks.
    """
    table = load_table(source)
    names = list(table.frame.columns)
    column = names[0] if len(names) == 1 else find_columns(names, "interactions", None, table.name, (role,))[role]
    ids = _clean_ids(table, column, role)

    return as_known(pd.unique(ids[table.keep]).tolist(), known)


def as_known(ids: Sequence[Any], known: IdMap) -> NDArray[Any]:
    """`ids` as `known` holds them: text such as "17" stands for 17 where all known ids are integers."""
    index: pd.Index = pd.Index(list(ids))
    if not index.isin(known.ids).any() and (same := as_known_ids(index, known)) is not None:
        index = same

    known.positions(index)
    return np.asarray(index)
