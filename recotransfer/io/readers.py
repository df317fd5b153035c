"""Read `Items` and `Interactions` from CSV, Parquet, DataFrames and SQL, with a report of what was dropped and why.

`tables` loads the source, `schema` decides what each column means, and `parsing` converts the cells.
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
    """The data that was read, and the report of what was kept and dropped."""

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
    """The catalogue: one row per item, with the type and kind of each column inferred from its name and values.

    Numbers become float64 (currency signs and thousands separators are understood), text and categories become `object`
    with None for missing values, flags become bool, and dates become datetimes in UTC. Flags, dates and secondary ids
    are kept without a kind: encoders ignore them. Image paths become absolute; cells whose image file is missing are
    emptied. Of several rows with the same id, the first is kept.

    Args:
        source: as in `read_table`.
        columns: {"item": name of the id column}, if it does not have one of the usual names.
        kinds: overrides for columns whose kind is guessed wrong: "text", "image", "category" or "number".
        image_root: base folder of relative image paths; defaults to the folder of the source file.
        events: the interaction log of this catalogue. If several columns could hold the item ids, the one whose values
            occur in the log is used.
        event_columns: names of the log's columns, as in `read_interactions`.

    Raises:
        InputError: the source cannot be read, or it has no id column or several possible ones.
    """
    table = load_table(source)
    share_used = None if events is None else {"item": _share_used_by(events, event_columns or {})}
    roles = find_columns(table.frame, "items", columns, table.name, share_known=share_used)
    id_column = roles.names["item"]

    given_kinds = dict(kinds or {})
    other_columns = table.frame.columns.drop(id_column)
    if unknown := [name for name in given_kinds if name not in other_columns]:
        raise InputError(
            f"kinds names {unknown}, but the columns of {table.name} that can have a kind are "
            f"{', '.join(other_columns) or '(none)'}"
        )

    ids = take_ids(table, id_column, "item")
    table.drop(ids.duplicated().to_numpy(), "duplicate item id", id_column, "give one row per item")
    table.check_some_left("item")
    table.notes += [f"item = {id_column!r}", *roles.notes]

    names = _content_columns(table, id_column, given_kinds)
    frame, found = _read_columns(table, names, given_kinds, image_root)
    found |= _substitute_text(table, frame, found, given_kinds)
    used = _used_kinds(table, found)

    index = pd.Index(settled_ids(ids[table.keep]))
    table.notes += [f"column {id_column!r}: {note}" for note in mixed_types(index)]

    return Read(Items(IdMap(index), frame, used), table.report(len(index)))


def _share_used_by(events: Source, columns: Mapping[str, str]) -> Callable[[pd.Series], float]:
    """A function from a catalogue column to the share of the log's item ids that occur in it.

    The log is read at the first call. Only catalogues with several possible id columns make that call, so that the
    others do not read a large log for nothing.
    """
    log_ids: list[IdMap] = []  # one per column of the log that may hold item ids

    def share(values: pd.Series) -> float:
        if not log_ids:
            frame = load_table(events).frame
            names = (
                [columns["item"]] if columns.get("item") in frame.columns else id_columns(frame, "item", "interactions")
            )
            log_ids.extend(IdMap(distinct_ids(frame[name])) for name in names)

        candidates = IdMap(distinct_ids(values))
        return max((share_known(ids.ids, candidates) for ids in log_ids), default=0.0)

    return share


def _content_columns(table: Table, id_column: str, given_kinds: Mapping[str, ColumnKind]) -> list[str]:
    """The columns to read: all but the id and row numbers. A row number that was given a kind is read too."""
    names = list(table.frame.columns.drop(id_column))
    row_numbers = [name for name in names if name not in given_kinds and is_row_number(name, table.frame[name])]
    if row_numbers:
        table.notes.append(f"ignored as row numbers: {', '.join(map(repr, row_numbers))}")

    return [name for name in names if name not in row_numbers]


def _read_columns(
    table: Table, names: Sequence[str], given_kinds: Mapping[str, ColumnKind], image_root: Path | None
) -> tuple[pd.DataFrame, dict[str, str | None]]:
    """The kept rows of these columns, converted to their types, and the kind of each column as in `guess_kind`."""
    rows = np.flatnonzero(table.keep)
    columns: dict[str, pd.Series] = {}
    found: dict[str, str | None] = {}

    for name in names:
        values = flat(table.frame[name].iloc[rows].reset_index(drop=True), name)
        kind = given_kinds.get(name) or guess_kind(name, values, len(rows))
        if kind == "image" and all(isinstance(v, str) and v.startswith("http") for v in values.dropna()):
            kind = None
            table.notes.append(
                f"column {name!r} contains URLs, which are not downloaded; save the images and give their file paths"
            )

        found[name] = kind
        columns[name] = _column(table, rows, name, values, kind, image_root)

    return pd.DataFrame(columns, index=pd.RangeIndex(len(rows))), found


def _substitute_text(
    table: Table, frame: pd.DataFrame, found: Mapping[str, str | None], given_kinds: Mapping[str, ColumnKind]
) -> dict[str, str | None]:
    """{column: "text"} for the category to treat as text in a catalogue without a text column; else {}."""
    if "text" in found.values():
        return {}

    categories = [name for name, kind in found.items() if kind == "category" and name not in given_kinds]
    best = wordiest(frame, categories)
    if best is None:
        return {}

    table.notes.append(
        f"no text column was found, so {best!r} is read as text; to change that, pass kinds={{{best!r}: 'category'}}"
    )

    return {best: "text"}


def _used_kinds(table: Table, found: Mapping[str, str | None]) -> dict[str, ColumnKind]:
    """The kinds that encoders know, without flags, dates and secondary ids; both groups are noted in the report."""
    used = {name: cast("ColumnKind", kind) for name, kind in found.items() if kind in get_args(ColumnKind)}
    table.notes.append("kinds: " + (", ".join(f"{name} {kind}" for name, kind in used.items()) or "none"))
    if unused := [name for name in found if name not in used]:
        table.notes.append(f"kept, but not used as content: {', '.join(unused)}")

    return used


def _column(
    table: Table, rows: NDArray[np.int64], name: str, values: pd.Series, kind: str | None, image_root: Path | None
) -> pd.Series:
    """One column of the catalogue, converted to its kind; cells that cannot be read are emptied and reported.

    `values` are the cells of the table's `rows`, the rows kept so far.
    """

    def empty(bad: NDArray[np.bool_], reason: str, remedy: str) -> None:
        mask = np.zeros(len(table.frame), bool)
        mask[rows[bad]] = True
        table.drop(mask, reason, name, remedy, cells=True)

    if kind == "image":
        cells, missing = _images(values, table.folder if image_root is None else Path(image_root))
        empty(missing, "image file not found", "put the file there, or pass image_root=...")
        return cells

    notes: list[str] = []
    cells, bad = typed(values, kind, notes, decimal_comma=table.decimal_comma)
    table.notes += [f"column {name!r}: {note}" for note in notes]
    empty(bad, f"not a {kind}", f"write a {kind}, or pass kinds={{{name!r}: ...}}")

    # Exports write values such as -1 for an unknown price.
    if kind == "number" and is_price(name):
        negative = cells.to_numpy(np.float64) < 0
        empty(negative, "negative price", "correct the price, or leave the cell empty")
        cells = cells.mask(negative)

    return cells


def _images(values: pd.Series, root: Path | None) -> tuple[pd.Series, NDArray[np.bool_]]:
    """Absolute image paths, None where the file is missing, and (n,) bool marking these; bytes and arrays are kept."""
    cells: list[object] = [None if isinstance(c, float) or c is pd.NA or c == "" else c for c in values.astype(object)]
    missing = np.zeros(len(cells), bool)

    for i, cell in enumerate(cells):
        if isinstance(cell, (str, Path)):
            path = Path(root or ".", str(cell).strip()).absolute()
            missing[i] = not path.is_file()
            cells[i] = None if missing[i] else str(path)

    return pd.Series(cells, dtype=object), missing


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
    """The events or ratings, in the order of the source.

    Rows without a user or an item are dropped, as are rows without an event kind or a time if there is such a column.
    Duplicate rows (equal user, item, event, time and weight) are dropped if there are times; without times they may be
    real repeats, and are kept.

    Args:
        source: as in `read_table`.
        columns: {role: column} for columns that do not have one of the usual names; the roles are user, item, event,
            time, rating and weight.
        events: weights of event kinds, use of ratings, and treatment of repeats; defaults to `EventWeights()`.
        items: the catalogue's ids. Ids of another type are converted if the conversion is exact ("5" to 5).
        users: known users, which come first in the user map; new users follow.
        unknown_items: "drop" reports and drops events on items that are not in `items`; "keep" adds these items.
        time_format: a strptime format such as "%d/%m/%Y", or the unit of numeric times: "s", "ms", "us", "ns", or
            "order" for numbers that are not dates; guessed by default.

    Raises:
        InputError: the source cannot be read, a column is missing or ambiguous, an event kind is unknown, none of the
            ids is in the catalogue, or no event is left. The message names the rows and a remedy.
    """
    weighting = events or EventWeights()
    table = load_table(source)

    known = {role: ids for role, ids in (("item", items), ("user", users)) if ids is not None}
    share_known_by_role = {role: partial(share_in, ids) for role, ids in known.items()}
    roles = find_columns(table.frame, "interactions", columns, table.name, share_known=share_known_by_role)
    names = roles.names
    table.notes += [", ".join(f"{role} = {name!r}" for role, name in names.items()), *roles.notes]
    note_unread(table, names)

    # Each of these steps drops rows from the table; what it returns still has one entry per row of the source.
    ids = {role: take_ids(table, names[role], role, known.get(role)) for role in ("user", "item")}
    weight, kind, kinds = weights_and_kinds(table, names, weighting)
    time = times_of(table, names["time"], time_format) if "time" in names else None
    table.check_some_left("event")

    # Unknown items are dropped before users get positions, so that users who only have such events get none.
    item_map, item = _positions(table, ids["item"], names["item"], items, "item", grow=unknown_items == "keep")
    remedy = "add the item to the catalogue, or pass unknown_items='keep'"
    table.drop(item < 0, "unknown item", names["item"], remedy)
    table.check_some_left("event")
    user_map, user = _positions(table, ids["user"], names["user"], users, "user", grow=True)

    log = pd.DataFrame({"user": user, "item": item, "weight": weight})
    if time is not None:
        log["time"] = time
    if kind is not None:
        log["kind"] = kind

    drop_duplicates(table, log)
    log = merge_repeats(table, log, weighting.repeats)
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
    """The id map, and (n,) the position in it of each row's id; -1 for dropped rows and for unknown ids.

    With `grow`, unknown ids are appended to the known ones instead.
    """
    codes, distinct = pd.factorize(settled_ids(ids[table.keep]))
    index = pd.Index(distinct)
    notes: tuple[str, ...]
    if known is None or not len(known):
        notes = mixed_types(index)
        known = IdMap(index) if known is None or grow else known
    else:
        matched = match_ids(index, known)
        given, index = index, matched.ids
        if matched.mixed is None:
            notes = (*mixed_types(index.unique()), *matched.notes)
        else:
            notes = (*matched.notes, matched.mixed) if grow else matched.notes

        if not (known.positions(index, missing="negative") >= 0).any():
            # A batch of new users or items only is fine, but not one whose ids are written in another form: that is
            # most likely the wrong column, and would add each known one a second time.
            all_new = matched.mixed is None and (role == "user" or given.equals(index))
            if not (grow and all_new):
                raise _none_known(table, given, column, known, role, notes)

    table.notes += [f"column {column!r}: {note}" for note in notes]
    known = known.union(IdMap(index.unique())) if grow else known
    positions = np.full(len(ids), -1, np.int64)
    positions[table.keep] = known.positions(index, missing="negative")[codes]

    return known, positions


def _none_known(table: Table, ids: pd.Index, column: str, known: IdMap, role: str, notes: Sequence[str]) -> InputError:
    """The error for a column in which no id is known, with examples of both."""
    examples, known_examples = (", ".join(map(repr, some[:3].tolist())) for some in (ids, known.ids))
    note = f" ({notes[-1]})" if notes else ""
    remedy = "use the ids of the catalogue" if role == "item" else "write the ids in the form of the known ones"

    return InputError(
        f"{table.name}, column {column!r}: none of its {len(ids)} ids is known; they look like {examples} and known "
        f"ids like {known_examples}{note}; {remedy}, or name the right column with columns={{...}}"
    )


@checked
def read_ids(source: Source, *, role: Literal["user", "item"], known: IdMap) -> NDArray[Any]:
    """The distinct ids in a source's user or item column, or in its only column, in the type of the known ids.

    In a text file with one column, the header is optional: the first line counts as an id if it is a known id, or looks
    like the other ids.

    Raises:
        InputError: the source cannot be read, or it has no such column or no ids.
        UnknownIdError: an id is not in `known`.
    """
    table = _ids_without_header(source, role, known) or load_table(source)
    names = list(table.frame.columns)
    if len(names) == 1:
        column = names[0]
    else:
        share_known_by_role: dict[str, Callable[[pd.Series], float]] = {role: partial(share_in, known)}
        roles = find_columns(
            table.frame, "interactions", None, table.name, roles=(role,), share_known=share_known_by_role
        )
        column = roles.names[role]

    ids = take_ids(table, column, role, known)
    table.check_some_left(f"{role} id")

    return as_known(pd.unique(ids[table.keep]).tolist(), known)


def _ids_without_header(source: Source, role: Literal["user", "item"], known: IdMap) -> Table | None:
    """The table of a text file with one column and no header line; None for every other source."""
    if not isinstance(source, (str, Path)) or not is_csv(Path(source)) or not Path(source).is_file():
        return None

    cells = first_line(Path(source))
    if len(cells) != 1:
        return None

    if share_known(np.array(cells, dtype=object), known) == 0:
        if is_role_name(cells[0], role):
            return None

        # Neither a known id nor a usual header: it is an id if it has the shape of one, and is reported as unknown.
        table = read_csv(Path(source), header=False)
        others = pd.concat([table.frame["id"].iloc[1:1000], pd.Series(known.ids[:1000]).astype(str)])
        if shape(cells[0]) not in {shape(cell) for cell in others.dropna()}:
            return None

    return read_csv(Path(source), header=False)


@checked
def as_known(ids: Sequence[Any], known: IdMap) -> NDArray[Any]:
    """The distinct ids, converted to the type of the known ids: "17" becomes 17 if these are integers.

    Raises:
        UnknownIdError: an id is not in `known`.
    """
    index = match_ids(ids, known).ids
    known.positions(index)  # raises for unknown ids

    return np.asarray(index.unique())
