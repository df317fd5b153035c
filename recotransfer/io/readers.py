"""CSV, Parquet, DataFrames and SQL into `Items` and `Interactions`, with a report of what was dropped and why.

Sources are opened in `tables`; cells are read in `parsing`; what a column means is settled in `schema`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.arguments import checked, checked_class
from recotransfer.data import ColumnKind, IdMap, Interactions, Items
from recotransfer.data.matching import match_ids, mixed_types
from recotransfer.errors import InputError
from recotransfer.io.csv_files import first_line, is_csv, read_csv
from recotransfer.io.events import drop_duplicates, merge_repeats, note_unread, times_of, weights_and_kinds
from recotransfer.io.ids import distinct_ids, settled_ids, share_in, share_known, take_ids
from recotransfer.io.parsing import shape
from recotransfer.io.report import ReadReport, Table
from recotransfer.io.schema import (
    EventWeights,
    find_columns,
    flat,
    guess_kind,
    id_columns,
    is_price,
    is_role_name,
    is_row_number,
    typed,
    wordiest,
)
from recotransfer.io.tables import Source, load_table

T = TypeVar("T", Items, Interactions)


@checked_class
@dataclass(frozen=True)
class Read(Generic[T]):
    """A carrier and the report of how it was read."""

    data: T
    report: ReadReport


@checked
def read_items(
    source: Source,
    *,
    columns: Mapping[str, str] | None = None,
    kinds: Mapping[str, ColumnKind] | None = None,
    image_root: Path | None = None,
    events: Source | None = None,
    event_columns: Mapping[str, str] | None = None,
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
        events: the log that belongs to the catalogue. Where several columns may hold the ids, the one whose values the
            log uses is taken.
        event_columns: names of the log's columns, as in `read_interactions`.

    Raises:
        InputError: an unreadable source, no id column, or two that may be it.
    """
    table = load_table(source)
    shares = None if events is None else {"item": _share_used_by(events, event_columns or {})}
    roles = find_columns(table.frame, "items", columns, table.name, share_known=shares)
    key = roles.names["item"]
    kinds = dict(kinds or {})
    if lost := [c for c in kinds if c not in table.frame.columns or c == key]:
        raise InputError(f"kinds names {lost}; the columns of {table.name} are {', '.join(table.frame.columns)}")
    if wrong := [k for k in kinds.values() if k not in get_args(ColumnKind)]:
        raise InputError(f"kinds must be {', '.join(get_args(ColumnKind))}; got {wrong}")

    ids = take_ids(table, key, "item")
    table.drop(ids.duplicated().to_numpy(), "an earlier row has the same item id", key, "give one row per item")
    table.check_some_left("item")
    table.notes += [f"item = {key!r}", *roles.notes]
    rows = np.flatnonzero(table.keep)
    numbering = [name for name in table.frame.columns.drop(key) if name not in kinds]
    numbering = [name for name in numbering if is_row_number(name, table.frame[name])]
    if numbering:
        table.notes.append(f"left out, as it only numbers the rows: {', '.join(map(repr, numbering))}")

    out: dict[str, pd.Series] = {}
    found: dict[str, str | None] = {}

    for name in table.frame.columns.drop([key, *numbering]):
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
    index = pd.Index(settled_ids(ids[table.keep]))
    table.notes += [f"column {key!r}: {note}" for note in mixed_types(index)]

    return Read(Items(IdMap(index), frame, used), table.report(len(rows)))


def _share_used_by(events: Source, columns: Mapping[str, str]) -> Callable[[pd.Series], float]:
    """A function that gives the greatest share of a log's item ids that a column of the catalogue holds.

    The log is read when it is first called, which only a catalogue with several possible id columns does.
    """
    log: list[IdMap] = []

    def share(values: pd.Series) -> float:
        if not log:
            frame = load_table(events).frame
            names = (
                [columns["item"]] if columns.get("item") in frame.columns else id_columns(frame, "item", "interactions")
            )
            log.extend(IdMap(distinct_ids(frame[name])) for name in names)

        candidates = IdMap(distinct_ids(values))
        return max((share_known(used.ids, candidates) for used in log), default=0.0)

    return share


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

    notes: list[str] = []
    cells, bad = typed(values, kind, notes, decimal_comma=table.decimal_comma)
    table.notes += [f"column {name!r}: {note}" for note in notes]
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


@checked
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
        items: the catalogue's ids; ids of another type are converted to its type where that loses nothing.
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
    known = {role: ids for role, ids in (("item", items), ("user", users)) if ids is not None}
    shares = {role: partial(share_in, ids) for role, ids in known.items()}
    found = find_columns(table.frame, "interactions", columns, table.name, share_known=shares)
    names = found.names
    table.notes += [", ".join(f"{role} = {name!r}" for role, name in names.items()), *found.notes]
    note_unread(table, names)
    ids = {role: take_ids(table, names[role], role, known.get(role)) for role in ("user", "item")}
    weight, kind, kinds = weights_and_kinds(table, names, events or EventWeights())
    time = times_of(table, names["time"], time_format) if "time" in names else None
    table.check_some_left("event")
    item_map, item = _positions(table, ids["item"], names["item"], items, "item", grow=unknown_items == "keep")
    table.drop(item < 0, "unknown item", names["item"], "add the item to the catalogue, or unknown_items='keep'")
    table.check_some_left("event")
    user_map, user = _positions(table, ids["user"], names["user"], users, "user", grow=True)
    log = pd.DataFrame({"user": user, "item": item, "weight": weight})
    log = log.assign(**({} if time is None else {"time": time}), **({} if kind is None else {"kind": kind}))
    drop_duplicates(table, log)
    log = merge_repeats(table, log, (events or EventWeights()).repeats)
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


def _positions(
    table: Table, ids: pd.Series, column: str, known: IdMap | None, role: Literal["user", "item"], *, grow: bool
) -> tuple[IdMap, NDArray[np.int64]]:
    """The id map and (n,) each row's position in it; -1 for rows that were dropped and, unless `grow`, unknown ids."""
    codes, distinct = pd.factorize(settled_ids(ids[table.keep]))
    index, out = pd.Index(distinct), np.full(len(ids), -1, np.int64)
    if known is None or not len(known):
        notes = mixed_types(index)
        known = IdMap(index) if known is None or grow else known
    else:
        matched = match_ids(index, known)
        before, index = index, matched.ids
        notes = (*matched.notes, *([matched.mixed] if matched.mixed and grow else ()))
        notes = notes if matched.mixed else (*mixed_types(index.unique()), *notes)
        if not (known.positions(index, missing="negative") >= 0).any():
            alike = matched.mixed is None and (role == "user" or before.equals(index))
            if not (grow and alike):
                raise _none_known(table, before, column, known, role, notes)

    table.notes += [f"column {column!r}: {note}" for note in notes]
    known = known.union(IdMap(index.unique())) if grow else known
    out[table.keep] = known.positions(index, missing="negative")[codes]

    return known, out


def _none_known(
    table: Table, index: pd.Index, column: str, known: IdMap, role: str, notes: Sequence[str]
) -> InputError:
    here, there = (", ".join(map(repr, ids[:3].tolist())) for ids in (index, known.ids))
    also = f" ({notes[-1]})" if notes else ""
    remedy = "use the ids of the catalogue" if role == "item" else "write the ids as before"

    return InputError(
        f"{table.name}, column {column!r}: none of its {len(index)} ids is known; they look like {here} "
        f"and the known ids like {there}{also}; {remedy}, or name the right column with columns={{...}}"
    )


@checked
def read_ids(source: Source, *, role: Literal["user", "item"], known: IdMap) -> NDArray[Any]:
    """The distinct ids of a source's user or item column, or of its only column, in the type of `known`.

    A text file of one column may have a header or not: its first line is an id where it is known, or looks like one.

    Raises:
        InputError: an unreadable source, no such column, or a missing id.
        UnknownIdError: an id that `known` lacks.
    """
    table = _ids_without_header(source, role, known) or load_table(source)
    names = list(table.frame.columns)
    if len(names) == 1:
        column = names[0]
    else:
        shares: dict[str, Callable[[pd.Series], float]] = {role: partial(share_in, known)}
        found = find_columns(table.frame, "interactions", None, table.name, roles=(role,), share_known=shares)
        column = found.names[role]

    ids = take_ids(table, column, role, known)
    table.check_some_left(f"{role} id")

    return as_known(pd.unique(ids[table.keep]).tolist(), known)


def _ids_without_header(source: Source, role: Literal["user", "item"], known: IdMap) -> Table | None:
    """A text file of one column whose first line is no header, as a table; None for every other source."""
    if not isinstance(source, (str, Path)) or not is_csv(Path(source)) or not Path(source).is_file():
        return None

    first = first_line(Path(source))
    if len(first) != 1:
        return None

    if share_known(np.array(first, dtype=object), known) == 0:
        if is_role_name(first[0], role):
            return None

        table = read_csv(Path(source), header=False)
        others = pd.concat([table.frame["id"].iloc[1:1000], pd.Series(known.ids[:1000]).astype(str)])
        if shape(first[0]) not in {shape(cell) for cell in others.dropna()}:
            return None

    return read_csv(Path(source), header=False)


@checked
def as_known(ids: Sequence[Any], known: IdMap) -> NDArray[Any]:
    """The distinct ids in the types of `known`: "17" becomes 17 if known ids are integers.

    Raises:
        UnknownIdError: an id that `known` lacks.
    """
    index = match_ids(ids, known).ids
    known.positions(index)

    return np.asarray(index.unique())
