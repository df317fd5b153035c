"""CSV files as frames of text, in the forms that spreadsheets, databases, Spark and people write them."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from recotransfer.errors import InputError
from recotransfer.io.parsing import shape
from recotransfer.io.report import Table, check_names, shortened

EMPTY_CELLS = ["", "NULL", "null", "NaN", "nan", "\\N", "<NA>"]
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; save the sheet as CSV UTF-8",
    b"\x1f\x8b": "gzip-compressed; rename it to end in .gz",
    b"PAR1": "a Parquet file; rename it to end in .parquet",
    b"SQLite format 3": 'a SQLite database; give it as "sqlite:///PATH#TABLE"',
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV UTF-8",
    b"%PDF": "a PDF; give the table as CSV",
    b"<!DOCTYPE": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"\xff\xfe": "UTF-16 text; save it as CSV UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as CSV UTF-8",
}
_SEPARATOR_LINE = re.compile(rb'"?sep=(.)"?[ \t]*\r?\n', re.IGNORECASE)  # Excel's own first line
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class _Text:
    """The bytes of a CSV file and how they are written: after a `sep=` line, with this mark between cells."""

    path: Path
    data: bytes
    mark: str
    lines_before: int
    notes: tuple[str, ...]


def read_csv(path: Path, *, header: bool = True) -> Table:
    """The file as a table of text, empty cells missing; without `header` its only column is called "id"."""
    text = _opened(path)
    names = [n.strip() for n in _first_row(text)] if header else ["id"]
    check_names(names, str(path))
    if header and all(_NUMBER.fullmatch(n) for n in names):
        raise InputError(
            f"{path}, line {1 + text.lines_before}: {shortened(names)} looks like data, not column names; add a "
            "header line"
        )

    table, text = _parsed(text, len(names), header)
    if not table.num_rows:
        raise InputError(f"{path}: has a header but no rows; give a file with rows")

    lines = _line_numbers(table, text, header)
    out = Table(table.rename_columns(names).to_pandas(), str(path), path.parent, lines, list(text.notes))
    out.decimal_comma = text.mark == ";"
    _open_formulas(out)
    _leave_out_headers(out, names)
    _note_swallowed_rows(out, text.mark)
    if "" in names:
        out.notes.append(f"column {names.index('') + 1} has no name and was left out")
        out.frame = out.frame.loc[:, [n != "" for n in names]]

    return out


def first_line(path: Path) -> list[str]:
    """The cells of the file's first line."""
    return [cell.strip() for cell in _first_row(_opened(path))]


def is_csv(path: Path) -> bool:
    """Whether a file of this name is read as CSV."""
    return path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv", ".txt"))


def _opened(path: Path) -> _Text:
    data, tabbed = _csv_bytes(path), ".tsv" in path.name.lower()
    notes: list[str] = []
    said = _SEPARATOR_LINE.match(data)
    if said is not None:
        data = data[said.end() :]
        if not data.strip():
            raise InputError(f"{path}: holds a sep= line and nothing else; give a file with a header line and rows")

    first = re.sub(rb'"[^"]*"', b"", data.lstrip(b"\r\n").split(b"\n", 1)[0])
    marks = (b"\t", b",", b";", b"|") if tabbed else (b",", b"\t", b";", b"|")
    mark = (said[1] if said is not None else max(marks, key=first.count)).decode("latin-1")
    if mark != "," and not tabbed:
        notes.append(f"cells are separated by {mark!r}")

    # A backslash before a quote that ends no cell can only be an escape, as Spark, MySQL and others write it.
    if re.search(rb'(?<!\\)\\"(?!["\r\n' + re.escape(mark.encode()) + rb"]|$)", data):
        data = _with_doubled_quotes(data)
        notes.append("quotes inside cells are written with a backslash")

    return _Text(path, data, mark, int(said is not None), tuple(notes))


def _with_doubled_quotes(data: bytes) -> bytes:
    def doubled(found: re.Match[bytes]) -> bytes:
        slashes = len(found[1])
        return b"\\" * (slashes // 2) + (b'""' if slashes % 2 else b'"')

    return re.sub(rb'(\\+)"', doubled, data)


def _csv_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        if not data.startswith(b"\x1f\x8b"):
            raise InputError(f"{path}: is not gzip-compressed although its name ends in .gz; rename it")

        try:
            data = gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as cause:
            raise InputError(f"{path}: the gzip data is cut short or damaged ({cause}); fetch the file again") from None

    for start, what in _FOREIGN.items():
        if data[:16].lower().startswith(start.lower()):
            raise InputError(f"{path}: is not CSV but {what}")

    if b"\0" in data[:65536]:
        raise InputError(f"{path}: holds zero bytes, so it is not UTF-8 text; save it as CSV UTF-8")

    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in data and b"\n" not in data:
        raise InputError(f"{path}: its lines end in carriage returns alone; save it with ordinary line ends")
    if not data.strip():
        raise InputError(f"{path}: is empty; give a file with a header line and rows")

    return data


def _first_row(text: _Text) -> list[str]:
    start = io.StringIO(text.data[: 1 << 20].decode("utf-8", "replace"))
    return next(row for row in csv.reader(start, delimiter=text.mark) if row)


def _parsed(text: _Text, width: int, header: bool) -> tuple[Any, _Text]:
    """The table, and the text as it was read: a second time, with escaped quotes, where the first try fails."""
    columns = _first_row(text) if header else ["id"]
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(text.data),
            read_options=arrow_csv.ReadOptions(column_names=None if header else columns),
            parse_options=arrow_csv.ParseOptions(delimiter=text.mark, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types={n: pa.string() for n in columns}, null_values=EMPTY_CELLS, strings_can_be_null=True
            ),
        )
        unclosed = table.num_rows and _is_unclosed(table, text.data)
        failure = None
    except pa.ArrowInvalid as cause:
        unclosed, failure = False, cause

    if (unclosed or failure) and b'\\"' in text.data:
        escaped = _with_doubled_quotes(text.data)
        note = "quotes inside cells are written with a backslash"
        return _parsed(_Text(text.path, escaped, text.mark, text.lines_before, (*text.notes, note)), width, header)

    if failure is not None:
        raise _csv_error(text, width, failure) from None

    if unclosed:
        lines = _line_numbers(table, text, header)
        where = f"line {lines[-1]}" if lines is not None else f"row {table.num_rows}"
        raise InputError(
            f"{text.path}, {where}: a quote is opened and never closed; close it, or double the quotes in cells"
        )

    return table, text


def _is_unclosed(table: Any, data: bytes) -> bool:
    """Whether the last cell runs over the end of the file because a quote is missing."""
    last = table.slice(table.num_rows - 1).to_pylist()[0]
    return data.count(b'"') % 2 == 1 and any("\n" in str(cell) for cell in last.values())


def _line_numbers(table: Any, text: _Text, header: bool) -> NDArray[np.int64] | None:
    """The line each row starts on; None where empty lines inside the file make that uncertain."""
    rows, total = table.num_rows, text.data.rstrip(b"\r\n").count(b"\n") + 1
    first = int(header) + 1
    plain = np.arange(first, rows + first, dtype=np.int64)
    if total == rows + first - 1:
        return plain + text.lines_before

    inside = sum(
        np.asarray(pc.fill_null(pc.count_substring(table.column(i), "\n"), 0), np.int64)
        for i in range(table.num_columns)
    )
    inside = np.asarray(inside, np.int64)
    lines = plain + np.cumsum(inside) - inside

    return lines + text.lines_before if lines[-1] + inside[-1] >= total else None


def _open_formulas(table: Table) -> None:
    """Take the text out of cells such as ="007", by which spreadsheets are made to keep zeros."""
    for i, name in enumerate(table.frame.columns):
        cells = table.frame.iloc[:, i]
        formulas = cells.str.fullmatch(r'="[^"]*"').to_numpy(bool, na_value=False)
        if formulas.any():
            table.frame.isetitem(i, cells.where(~formulas, cells.str.slice(2, -1)).array)
            table.notes.append(f"column {name!r}: formulas such as {cells[formulas].iloc[0]} were read as their text")


def _leave_out_headers(table: Table, names: Sequence[str]) -> None:
    """Take out rows that repeat the header, as files that were put together from several have them."""
    again = np.ones(len(table.frame), bool)
    for i, name in enumerate(names):
        if name and again.any():
            again &= (table.frame.iloc[:, i].str.strip() == name).to_numpy(bool, na_value=False)

    if not again.any() or not any(names):
        return

    rows = np.flatnonzero(again)
    where = ", ".join(map(str, table.at(rows)))
    table.notes.append(f"{len(rows):,} rows repeat the header and were left out ({table.numbering} {where})")
    table.frame = table.frame[~again].reset_index(drop=True)
    table.lines = None if table.lines is None else table.lines[~again]
    table.keep = np.ones(len(table.frame), bool)
    if not len(table.frame):
        raise InputError(f"{table.name}: has headers but no rows; give a file with rows")


def _note_swallowed_rows(table: Table, mark: str) -> None:
    """Note cells that run over lines which look like rows: a quote was opened by mistake and closed much later."""
    width = table.frame.shape[1]
    if width < 2:
        return

    shapes: set[str] | None = None
    for i, name in enumerate(table.frame.columns):
        cells = table.frame.iloc[:, i]
        for row in np.flatnonzero(cells.str.contains("\n", regex=False).to_numpy(bool, na_value=False)):
            inner = str(cells.iloc[row]).split("\n")[1:]
            if shapes is None:
                shapes = {shape(c) for c in table.frame.iloc[:, 0].dropna().head(1000)}

            alike = [line for line in inner if mark in line and shape(line.split(mark)[0]) in shapes]
            whole = [line for line in alike[:-1] if line.count(mark) == width - 1]
            if len(alike) < len(inner) or len(whole) < len(inner) - 1:
                continue

            (where,) = table.at(np.array([row]))
            table.notes.append(
                f"{table.numbering} {where}, column {name!r}: one cell holds {len(inner):,} further lines that look "
                f"like rows of the table, e.g. {shortened(inner[0])}; mend the quotes there"
            )


def _csv_error(text: _Text, width: int, cause: Exception) -> InputError:
    path, before = text.path, text.lines_before
    try:
        decoded = text.data.decode("utf-8")
    except UnicodeDecodeError as bad:
        line = text.data.count(b"\n", 0, bad.start) + 1 + before
        return InputError(
            f"{path}, line {line}: byte {bad.start} (0x{text.data[bad.start]:02x}) is not UTF-8; "
            "save the file as UTF-8 (in a spreadsheet: CSV UTF-8)"
        )

    reader, start = csv.reader(io.StringIO(decoded, newline=""), delimiter=text.mark, strict=True), 1 + before
    try:
        for row in reader:
            if row and len(row) != width:
                return InputError(
                    f"{path}, line {start}: has {len(row)} cells where the header has {width}; "
                    f"mend the line, or quote the cells that hold {text.mark!r}"
                )

            start = reader.line_num + 1 + before
    except csv.Error as error:
        return InputError(f"{path}, line {start}: {error}; close the quotes, and double those inside a cell")

    return InputError(f"{path}: cannot be read as CSV ({cause}); write it again with one header line and quoted cells")
