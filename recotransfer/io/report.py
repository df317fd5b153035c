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
    """Rows that were dropped for one reason, or cells that were emptied.

    Attributes:
        reason: why.
        count: number of rows, or of cells.
        rows: the first ten row numbers, in the report's `numbering`.
        column: the column with the cause; None if it is the row as a whole.
        example: the first such cell, shortened; None if it is empty.
        remedy: what to do to keep them.
        cells: whether only the cells in `column` were emptied and the rows kept.
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

    Attributes:
        source: the file, database table or "DataFrame".
        rows_read: number of rows in the source, without the header.
        rows_kept: number of rows in the result.
        dropped: rows and cells left out, in the order in which they were found.
        notes: choices that the reader made, and columns it did not use.
        numbering: "line" if rows are numbered by the line of the CSV file on which they start (the header is line 1);
            "row" for other sources and CSV files with empty lines: rows count from 1, without the header.
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
            plural = "s" * (d.count > 1)
            what = f"cell{plural} emptied" if d.cells else f"row{plural} dropped"
            column = f"column {d.column!r}, " if d.column else ""
            more = f" and {d.count - len(d.rows):,} more" if d.count > len(d.rows) else ""
            where = f"{self.numbering}{plural} {', '.join(map(str, d.rows))}{more}"
            example = f", e.g. {d.example}" if d.example else ""
            lines.append(f"  {d.count:,} {what}: {d.reason} ({column}{where}{example}); {d.remedy}")

        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON data."""
        fields = asdict(self)
        dropped = [entry | {"rows": list(entry["rows"])} for entry in fields["dropped"]]
        return fields | {"dropped": dropped, "notes": list(self.notes)}


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
        decimal_comma: whether numbers probably use a decimal comma, as in files with semicolons as delimiters.
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
        """Drop the rows in `bad` that are still kept, and record them for the report.

        Args:
            bad: (n,) bool, the rows to drop.
            reason: why, for the report.
            column: the column with the cause; None if it is the row as a whole.
            remedy: what to do to keep them, for the report.
            cells: only record that the cells in `column` were emptied; the rows stay.
        """
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
        """Raise `InputError` with the full report if every row was dropped."""
        if not self.keep.any():
            raise InputError(f"{self.name}: no {what} is left; correct the rows that were dropped\n{self.report(0)}")


def shortened(value: object) -> str:
    """The value's repr, cut to 60 characters for a message."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def check_names(names: Sequence[str], source: str) -> None:
    """Raise `InputError` if a table has no columns, or two with the same name."""
    if not names:
        raise InputError(f"{source}: has no columns; give a table with a header")
    if twice := sorted({n for n in names if n and names.count(n) > 1}):
        raise InputError(f"{source}: the header names {', '.join(map(repr, twice))} more than once; rename one of them")
