"""The columns of a log other than ids (event kinds, weights, times), and how repeated rows are treated."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.errors import InputError
from recotransfer.io.parsing import parse_numbers, parse_times
from recotransfer.io.report import Table
from recotransfer.io.schema import EventWeights, has_dates, is_row_number


def weights_and_kinds(
    table: Table, names: Mapping[str, str], events: EventWeights
) -> tuple[NDArray[np.float64], NDArray[np.int16] | None, tuple[str, ...]]:
    """Weight of each row, its event kind as a position in the kinds used, and these kinds.

    Rows of a kind that is left out have weight 0 and kind -1.
    """
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
            f"{table.name}: rating_threshold and rating_as_weight need a rating column, but none was found; "
            "give columns={'rating': ...}"
        )

    for role in ("rating", "weight"):
        if role not in names or (role == "rating" and not uses_rating):
            continue

        notes: list[str] = []
        numbers, bad = parse_numbers(table.frame[names[role]], notes, decimal_comma=table.decimal_comma)
        table.notes += [f"column {names[role]!r}: {note}" for note in notes]
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


def times_of(table: Table, column: str, time_format: str | None) -> NDArray[np.float64]:
    """(n,) time of each row in seconds; rows without a readable time are dropped from the table."""
    try:
        times = parse_times(table.frame[column], time_format)
    except InputError as cause:
        raise InputError(f"{table.name}, column {column!r}: {cause}") from None

    table.notes.extend(times.notes)
    remedy = "write it as ISO 8601 or seconds since 1970, or give time_format=..."
    table.drop(times.bad, "unreadable time", column, remedy)
    table.drop(np.isnan(times.seconds), "missing time", column, "fill in the time")

    return times.seconds


def drop_duplicates(table: Table, log: pd.DataFrame) -> None:
    """Drop rows that equal an earlier one; in a log without times, keep them and add a note."""
    again = np.zeros(len(log), bool)
    again[table.keep] = log[table.keep].duplicated().to_numpy()
    if "time" in log:
        table.drop(again, "the same as an earlier row", None, "nothing to do: it counts once")
    elif again.any():
        table.notes.append(
            f"{int(again.sum()):,} rows repeat an earlier one, and without times they were kept as repeated events"
        )


def merge_repeats(table: Table, log: pd.DataFrame, repeats: str) -> pd.DataFrame:
    """The kept rows; with `repeats` "sum" or "last", only the latest event of each user-item pair."""
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


def note_unread(table: Table, names: Mapping[str, str]) -> None:
    """Note the columns of a log that are not used, and which of them may hold times if it has none."""
    unread = [c for c in table.frame.columns if c not in names.values() and not is_row_number(c, table.frame[c])]
    if not unread:
        return

    if "time" not in names and (dates := [c for c in unread if has_dates(c, table.frame[c])]):
        shown = " and ".join(map(repr, dates))
        table.notes.append(
            f"no time was found, so the events have no order, although {shown} may hold times; if so, give "
            f'columns={{"time": {dates[0]!r}}} (on the command line: --event-column time={dates[0]})'
        )

    remedy = ""
    if "weight" not in names and any(pd.api.types.is_numeric_dtype(table.frame[c]) for c in unread):
        remedy = '; to use one as the weight of events, give columns={"weight": ...}'

    table.notes.append(f"columns that are not used: {', '.join(unread)}{remedy}")
