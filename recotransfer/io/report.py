"""A table that is being read, and the report of what became of its rows."""

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
    """Rows (or, where `cells` is true, single cells emptied in rows that stay) left out for one reason.

    `rows` are the first ten row numbers, counted as the report's `numbering` says.
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
    """What a read kept and dropped; `rows_read` is `rows_kept` plus the counts of all dropped rows.

    `numbering` is "line" for CSV: the line of the file that the row starts on, the header being line 1. It is "row" for
    everything else, and for CSV files with empty lines inside: rows are counted from 1, the header apart.
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
    """A source that is being read: its frame, which rows are kept so far, and what was noted.

    Attributes:
        frame: one row per row of the source.
        name: the source's name in messages.
        folder: where relative paths in cells start; None where there is no such folder.
        lines: (n,) the line of the file that each row starts on; None where rows are counted instead.
        notes: choices made on the way.
        dropped: rows and cells left out so far.
        decimal_comma: whether the file comes from where decimals are written with a comma, as semicolons between
            cells suggest.
        keep: (n,) bool, the rows that are kept so far.
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
        """The numbers by which a person finds the first ten of `rows` in the source."""
        numbers = rows + 1 if self.lines is None else self.lines[rows]
        return tuple(int(n) for n in numbers[:10])

    @property
    def numbering(self) -> Literal["line", "row"]:
        """Whether `at` counts lines of the file or rows from 1."""
        return "row" if self.lines is None else "line"

    def drop(
        self, bad: NDArray[np.bool_], reason: str, column: str | None, remedy: str, *, cells: bool = False
    ) -> None:
        """Record those rows of `bad` that are kept so far, and unless only `cells` are meant drop them."""
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
        """What became of the rows, `kept` of which went into the carrier."""
        return ReadReport(self.name, len(self.frame), kept, tuple(self.dropped), tuple(self.notes), self.numbering)

    def check_some_left(self, what: str) -> None:
        """Raise with the whole report when no row is left."""
        if not self.keep.any():
            raise InputError(
                f"{self.name}: no {what} is left after reading; mend the rows named here\n{self.report(0)}"
            )


def shortened(value: Any) -> str:
    """The value as an example in a message, 60 characters at most."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def check_names(names: Sequence[str], source: str) -> None:
    """Raise where a table has no columns, or two of one name."""
    if not names:
        raise InputError(f"{source}: has no columns; give a table with a header")
    if twice := sorted({n for n in names if n and names.count(n) > 1}):
        raise InputError(f"{source}: the header names {', '.join(map(repr, twice))} more than once; rename one of them")
