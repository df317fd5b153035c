"""A table while it is being read, and the report of which rows were kept and dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.errors import InputError


@dataclass(frozen=True)
class Dropped:
    """Rows dropped for one reason; if `cells` is true, single cells emptied in rows that are kept.

    `rows` holds the first ten row numbers, in the report's `numbering`.
    """

    reason: str
    count: int
    rows: tuple[int, ...]
    column: str | None
    example: str | None
    remedy: str
    cells: bool = False


@dataclass(frozen=True)
class ReadReport:
    """What a reader kept and dropped; `rows_read` is `rows_kept` plus the counts of all dropped rows.

    `numbering` is "line" for CSV files: the line on which the row starts, where the header is line 1. It is "row" for
    all other sources and for CSV files with empty lines: rows are counted from 1, without the header.
    """

    source: str
    rows_read: int
    rows_kept: int
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()
    numbering: Literal["line", "row"] = "row"

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.rows_read:,} rows read, {self.rows_kept:,} kept"]
        for d in self.dropped:
            more = f" and {d.count - len(d.rows):,} more" if d.count > len(d.rows) else ""
            where = f"{self.numbering}{'s' * (d.count > 1)} {', '.join(map(str, d.rows))}{more}"
            about = (
                (f"column {d.column!r}, " if d.column else "") + where + (f", e.g. {d.example}" if d.example else "")
            )
            what = ("cell" if d.cells else "row") + "s" * (d.count > 1)
            lines.append(
                f"  {d.count:,} {what} {'emptied' if d.cells else 'dropped'}: {d.reason} ({about}); {d.remedy}"
            )

        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON data."""
        plain = asdict(self)
        return plain | {"dropped": [d | {"rows": list(d["rows"])} for d in plain["dropped"]], "notes": list(self.notes)}


@dataclass
class Table:
    """A source while it is being read: its frame, the rows kept so far, and notes for the report.

    Attributes:
        frame: one row per row of the source.
        name: the source's name in messages.
        folder: base folder of relative paths in cells; None if there is none.
        lines: (n,) line of the file on which each row starts; None if rows are counted instead.
        notes: choices that the reader made, for the report.
        dropped: rows and cells dropped so far.
        decimal_comma: whether numbers probably use a decimal comma, as in files with semicolons between cells.
        keep: (n,) bool, the rows kept so far.
    """

    frame: pd.DataFrame
    name: str
    folder: Path | None = None
    lines: NDArray[np.int64] | None = None
    notes: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    decimal_comma: bool = False

    def __post_init__(self) -> None:
        self.keep = np.ones(len(self.frame), bool)

    def at(self, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """Line or row numbers in the source of the first ten of `rows`."""
        numbers = rows + 1 if self.lines is None else self.lines[rows]
        return tuple(int(n) for n in numbers[:10])

    @property
    def numbering(self) -> Literal["line", "row"]:
        """Whether `at` returns line numbers of the file or row numbers from 1."""
        return "row" if self.lines is None else "line"

    def drop(
        self, bad: NDArray[np.bool_], reason: str, column: str | None, remedy: str, *, cells: bool = False
    ) -> None:
        """Record the rows in `bad` that are still kept, and drop them, unless only `cells` were emptied."""
        bad = bad & self.keep
        rows = np.flatnonzero(bad)
        if not len(rows):
            return

        value = self.frame[column].iloc[rows[0]] if column is not None else None
        example = None if column is None or value is None or value is pd.NA or value != value else shortened(value)
        self.dropped.append(Dropped(reason, len(rows), self.at(rows), column, example, remedy, cells))
        if not cells:
            self.keep &= ~bad

    def report(self, kept: int) -> ReadReport:
        """The report of this read, with `kept` rows in the result."""
        return ReadReport(self.name, len(self.frame), kept, tuple(self.dropped), tuple(self.notes), self.numbering)

    def check_some_left(self, what: str) -> None:
        """Raise `InputError` with the full report if no row is left."""
        if not self.keep.any():
            raise InputError(
                f"{self.name}: no {what} is left after reading; correct the rows named here\n{self.report(0)}"
            )


def shortened(value: Any) -> str:
    """The value's repr for a message, cut to 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def check_names(names: Sequence[str], source: str) -> None:
    """Raise `InputError` if a table has no columns, or two with the same name."""
    if not names:
        raise InputError(f"{source}: has no columns; give a table with a header")
    if twice := sorted({n for n in names if n and names.count(n) > 1}):
        raise InputError(f"{source}: the header names {', '.join(map(repr, twice))} more than once; rename one of them")
