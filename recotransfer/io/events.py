"""Read the columns of a log other than ids (event kinds, weights, times), and drop or merge repeated rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

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
    """Weights and event kinds of the rows; rows with no positive weight are dropped from the table.

    Args:
        table: the log.
        names: role -> column, as in `find_columns`.
        events: how events and ratings become weights.

    Returns:
        (n,) weights; (n,) event kinds as positions in the third value, -1 for kinds of weight 0, or None if there is no
        column of kinds; the kinds with a positive weight.

    Raises:
        InputError: an event kind is unknown, or ratings are asked for and there are none.
    """
    weight = np.ones(len(table.frame))
    kind: NDArray[np.int16] | None = None
    kinds: tuple[str, ...] = ()
    if "event" in names:
        kind, kinds = _kinds(table, names["event"], events)
        weight_of = events.table()
        weight *= np.array([*(weight_of[name] for name in kinds), 0.0])[kind]  # kind -1 takes the 0 at the end

    uses_rating = events.rating_threshold is not None or events.rating_as_weight
    if uses_rating and "rating" not in names:
        raise InputError(
            f"{table.name}: rating_threshold and rating_as_weight need a rating column, but none was found; "
            "pass columns={'rating': ...}"
        )

    # The weights of event kind, rating and weight column multiply.
    if "rating" in names and uses_rating:
        rating = _numbers(table, names["rating"], "rating")
        if events.rating_threshold is not None:
            low = rating < events.rating_threshold
            reason = f"rating below {events.rating_threshold:g}"
            table.drop(low, reason, names["rating"], "lower rating_threshold to keep it")
        if events.rating_as_weight:
            weight *= rating
    elif "rating" in names:
        table.notes.append("every rating has weight 1, whatever its value; set rating_threshold or rating_as_weight")

    if "weight" in names:
        weight *= _numbers(table, names["weight"], "weight")

    column = names.get("weight") or (names.get("rating") if events.rating_as_weight else None) or names.get("event")
    table.drop(weight <= 0, "weight of 0 or less", column, "give it a positive weight to keep it")

    return weight, kind, kinds


def _numbers(table: Table, column: str, role: Literal["rating", "weight"]) -> NDArray[np.float64]:
    """(n,) the column as numbers; rows without a number are dropped from the table."""
    notes: list[str] = []
    numbers, bad = parse_numbers(table.frame[column], notes, decimal_comma=table.decimal_comma)
    table.notes += [f"column {column!r}: {note}" for note in notes]
    table.drop(bad, f"the {role} is not a number", column, f"write the {role} as a number")
    table.drop(np.isnan(numbers), f"missing {role}", column, f"fill in the {role}")

    return numbers


def _kinds(table: Table, column: str, events: EventWeights) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    """(n,) event kinds as positions in the kinds with a positive weight, -1 for other kinds; and these kinds."""
    cells = table.frame[column]
    table.drop(cells.isna().to_numpy(), "missing event kind", column, "fill in the kind of event")
    codes, spellings = pd.factorize(cells)
    kind_of_code = [events.kind_of(str(name)) for name in spellings]
    if unknown := [code for code, kind in enumerate(kind_of_code) if kind is None]:
        shown = ", ".join(
            f"{spellings[code]!r} ({int((codes == code).sum())} rows, first on {table.numbering} "
            f"{table.at(np.flatnonzero(codes == code)[:1])[0]})"
            for code in unknown[:5]
        )
        raise InputError(
            f"{table.name}, column {column!r}: unknown kinds of event: {shown}; pass their weights, for example "
            f"EventWeights(weights={{{str(spellings[unknown[0]])!r}: 1.0}}), or 0 to leave a kind out"
        )

    kinds = tuple(kind for kind, weight in events.table().items() if kind in kind_of_code and weight > 0)
    positions = [kinds.index(kind) if kind in kinds else -1 for kind in kind_of_code]

    return np.array([*positions, -1], np.int16)[codes], kinds  # an empty cell has code -1, the last position


def times_of(table: Table, column: str, time_format: str | None) -> NDArray[np.float64]:
    """(n,) time of each row in seconds; rows without a readable time are dropped from the table."""
    try:
        times = parse_times(table.frame[column], time_format)
    except InputError as cause:
        raise InputError(f"{table.name}, column {column!r}: {cause}") from None

    table.notes.extend(times.notes)
    remedy = "write it as ISO 8601 or seconds since 1970, or pass time_format=..."
    table.drop(times.bad, "unreadable time", column, remedy)
    table.drop(np.isnan(times.seconds), "missing time", column, "fill in the time")

    return times.seconds


def drop_duplicates(table: Table, log: pd.DataFrame) -> None:
    """Drop rows that equal an earlier one; in a log without times, keep them and add a note."""
    duplicate = np.zeros(len(log), bool)
    duplicate[table.keep] = log[table.keep].duplicated().to_numpy()
    if "time" in log:
        table.drop(duplicate, "duplicate row", None, "no action needed: it counts once")
    elif duplicate.any():
        table.notes.append(
            f"rows that equal an earlier one: {int(duplicate.sum()):,}; without times they were kept as repeated events"
        )


def merge_repeats(table: Table, log: pd.DataFrame, repeats: str) -> pd.DataFrame:
    """The kept rows; with `repeats` "sum" or "last", only the latest event of each user-item pair.

    Args:
        table: the log, from which the other rows are dropped.
        log: one row per row of the table, with columns user, item, weight and, if known, time.
        repeats: as in `EventWeights`.
    """
    if repeats == "all":
        return log[table.keep]

    # A stable sort: of events at the same time, the one in the later row is the latest.
    by_time = log[table.keep].sort_values("time", kind="stable") if "time" in log else log[table.keep]
    pairs = by_time.groupby(["user", "item"], sort=False)["weight"]
    if repeats == "sum":
        log = log.assign(weight=pairs.transform("sum"))

    older = np.zeros(len(log), bool)
    older[by_time.index[by_time.duplicated(["user", "item"], keep="last")]] = True
    reason = "merged into the latest event" if repeats == "sum" else "older than the latest event"
    remedy = "no action needed; to keep it, pass EventWeights(repeats='all')"
    table.drop(older, f"{reason} of its user and item", None, remedy)

    return log[table.keep]


def note_unread(table: Table, names: Mapping[str, str]) -> None:
    """Note which columns of a log are not used, and, if it has no times, which of them may hold times."""
    unread = [c for c in table.frame.columns if c not in names.values() and not is_row_number(c, table.frame[c])]
    if not unread:
        return

    # Splits and sequence models need times, so a column that was missed is worth a hint.
    if "time" not in names and (dates := [c for c in unread if has_dates(c, table.frame[c])]):
        shown = " and ".join(map(repr, dates))
        table.notes.append(
            f"no time column was found, so the events have no order; {shown} may hold times: if so, pass "
            f'columns={{"time": {dates[0]!r}}} (on the command line: --event-column time={dates[0]})'
        )

    remedy = ""
    if "weight" not in names and any(pd.api.types.is_numeric_dtype(table.frame[c]) for c in unread):
        remedy = '; to use one as the weight of events, pass columns={"weight": ...}'

    table.notes.append(f"unused columns: {', '.join(unread)}{remedy}")
