"""Read CSV files as tables of text, in the dialects of spreadsheets, databases, Spark and people.

Arrow parses the file. What it does not report is worked out from the bytes: the delimiter, backslash escapes, the line
on which each row starts, and a message for files that cannot be read.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from recotransfer.errors import InputError
from recotransfer.io.parsing import shape
from recotransfer.io.report import Table, check_names, shortened

EMPTY_CELLS = ["", "NULL", "null", "NaN", "nan", "\\N", "<NA>"]
# First bytes of other file formats, and what to do with such a file.
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
_SEP_LINE = re.compile(rb'"?sep=(.)"?[ \t]*\r?\n', re.IGNORECASE)  # a first line that tells Excel the delimiter
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_BACKSLASH_NOTE = "quotes inside cells are escaped with a backslash"


@dataclass(frozen=True)
class _Text:
    """A CSV file in memory.

    Attributes:
        path: the file.
        data: its bytes, decompressed, without byte order mark and `sep=` line.
        delimiter: what separates cells.
        lines_before: number of lines of the file before `data`: 1 if there is a `sep=` line, else 0.
        notes: for the report.
    """

    path: Path
    data: bytes
    delimiter: str
    lines_before: int
    notes: tuple[str, ...]


def read_csv(path: Path, *, header: bool = True) -> Table:
    """The file as a table of text, with empty cells missing.

    Args:
        path: a CSV file, possibly compressed by gzip.
        header: whether the first line holds the column names; if not, the file has one column, which is called "id".

    Raises:
        InputError: the file is not CSV in UTF-8, or has no rows. The message names the line where possible.
    """
    text = _opened(path)
    names = [name.strip() for name in _first_row(text)] if header else ["id"]
    check_names(names, str(path))
    if header and all(_NUMBER.fullmatch(name) for name in names):
        raise InputError(
            f"{path}, line {1 + text.lines_before}: {shortened(names)} looks like data, not column names; add a "
            "header line"
        )

    table, text = _parsed(text, len(names), header)
    if not table.num_rows:
        raise InputError(f"{path}: has a header but no rows; give a file with rows")

    lines = _line_numbers(table, text, header)
    out = Table(table.rename_columns(names).to_pandas(), str(path), path.parent, lines, list(text.notes))
    out.decimal_comma = text.delimiter == ";"  # spreadsheets use semicolons where the comma is the decimal separator
    _unwrap_formulas(out)
    _drop_repeated_headers(out, names)
    _note_swallowed_rows(out, text.delimiter)
    if "" in names:
        out.notes.append(f"column {names.index('') + 1} has no name and was ignored")
        out.frame = out.frame.loc[:, [name != "" for name in names]]

    return out


def first_line(path: Path) -> list[str]:
    """The cells of the file's first line."""
    return [cell.strip() for cell in _first_row(_opened(path))]


def is_csv(path: Path) -> bool:
    """Whether a file of this name is read as CSV."""
    return path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv", ".txt"))


def _opened(path: Path) -> _Text:
    """The file's text and its delimiter, with quotes escaped by doubling, as Arrow expects them."""
    data = _csv_bytes(path)
    is_tsv = ".tsv" in path.name.lower()
    notes: list[str] = []
    sep_line = _SEP_LINE.match(data)
    if sep_line is not None:
        data = data[sep_line.end() :]
        if not data.strip():
            raise InputError(f"{path}: holds a sep= line and nothing else; give a file with a header line and rows")

    # The most frequent candidate in the first line, without what is quoted; on a tie the usual one.
    first = re.sub(rb'"[^"]*"', b"", data.lstrip(b"\r\n").split(b"\n", 1)[0])
    candidates = (b"\t", b",", b";", b"|") if is_tsv else (b",", b"\t", b";", b"|")
    delimiter = (sep_line[1] if sep_line is not None else max(candidates, key=first.count)).decode("latin-1")
    if delimiter != "," and not is_tsv:
        notes.append(f"cells are separated by {delimiter!r}")

    # A backslash before a quote that does not end a cell can only be an escape, as Spark, MySQL and others write it.
    if re.search(rb'(?<!\\)\\"(?!["\r\n' + re.escape(delimiter.encode()) + rb"]|$)", data):
        data = _with_doubled_quotes(data)
        notes.append(_BACKSLASH_NOTE)

    return _Text(path, data, delimiter, int(sep_line is not None), tuple(notes))


def _with_doubled_quotes(data: bytes) -> bytes:
    r"""The text with \" as "" and, before quotes, \\ as \."""

    def doubled(match: re.Match[bytes]) -> bytes:
        slashes = len(match[1])
        return b"\\" * (slashes // 2) + (b'""' if slashes % 2 else b'"')

    return re.sub(rb'(\\+)"', doubled, data)


def _csv_bytes(path: Path) -> bytes:
    """The decompressed bytes of the file without byte order mark; raises `InputError` if they cannot be CSV."""
    data = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        if not data.startswith(b"\x1f\x8b"):
            raise InputError(f"{path}: is not gzip-compressed although its name ends in .gz; rename it")

        try:
            data = gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as cause:
            raise InputError(f"{path}: the gzip data is truncated or damaged ({cause}); fetch the file again") from None

    for start, what in _FOREIGN.items():
        if data[:16].lower().startswith(start.lower()):
            raise InputError(f"{path}: is not CSV but {what}")

    if b"\0" in data[:65536]:
        raise InputError(f"{path}: contains zero bytes, so it is not UTF-8 text; save it as CSV UTF-8")

    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in data and b"\n" not in data:
        raise InputError(f"{path}: its lines end in carriage returns only; save it with ordinary line ends")
    if not data.strip():
        raise InputError(f"{path}: is empty; give a file with a header line and rows")

    return data


def _first_row(text: _Text) -> list[str]:
    start = io.StringIO(text.data[: 1 << 20].decode("utf-8", "replace"))
    return next(row for row in csv.reader(start, delimiter=text.delimiter) if row)


def _parsed(text: _Text, width: int, header: bool) -> tuple[pa.Table, _Text]:
    """The table, and the text it was parsed from.

    If parsing fails and there are backslashes before quotes, these were escapes after all: the second attempt has them
    replaced, and the returned text differs from the given one.
    """
    columns = _first_row(text) if header else ["id"]
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(text.data),
            read_options=arrow_csv.ReadOptions(column_names=None if header else columns),
            parse_options=arrow_csv.ParseOptions(delimiter=text.delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types={n: pa.string() for n in columns}, null_values=EMPTY_CELLS, strings_can_be_null=True
            ),
        )
        unclosed = table.num_rows and _is_unclosed(table, text.data)
        failure = None
    except pa.ArrowInvalid as cause:
        unclosed, failure = False, cause

    if (unclosed or failure) and b'\\"' in text.data:
        escaped = replace(text, data=_with_doubled_quotes(text.data), notes=(*text.notes, _BACKSLASH_NOTE))
        return _parsed(escaped, width, header)

    if failure is not None:
        raise _csv_error(text, width, failure) from None

    if unclosed:
        lines = _line_numbers(table, text, header)
        where = f"line {lines[-1]}" if lines is not None else f"row {table.num_rows}"
        raise InputError(
            f"{text.path}, {where}: a quote is opened and never closed; close it, or double the quotes inside the cell"
        )

    return table, text


def _is_unclosed(table: pa.Table, data: bytes) -> bool:
    """Whether the last row extends to the end of the file because a closing quote is missing, which Arrow accepts."""
    last = table.slice(table.num_rows - 1).to_pylist()[0]
    return data.count(b'"') % 2 == 1 and any("\n" in str(cell) for cell in last.values())


def _line_numbers(table: pa.Table, text: _Text, header: bool) -> NDArray[np.int64] | None:
    """(n,) the line on which each row starts; None if empty lines inside the file make that uncertain."""
    rows = table.num_rows
    total = text.data.rstrip(b"\r\n").count(b"\n") + 1
    first = int(header) + 1
    one_line_each = np.arange(first, rows + first, dtype=np.int64)
    if total == rows + first - 1:
        return one_line_each + text.lines_before

    # Line breaks inside the cells of a row move all later rows down.
    breaks = sum(
        np.asarray(pc.fill_null(pc.count_substring(table.column(i), "\n"), 0), np.int64)
        for i in range(table.num_columns)
    )
    breaks = np.asarray(breaks, np.int64)
    lines = one_line_each + np.cumsum(breaks) - breaks

    # If these do not account for all lines, the others are empty lines, which Arrow skips without saying where.
    return lines + text.lines_before if lines[-1] + breaks[-1] >= total else None


def _unwrap_formulas(table: Table) -> None:
    """Replace cells such as ="007", which make a spreadsheet keep leading zeros, by their text."""
    for i, name in enumerate(table.frame.columns):
        cells = table.frame.iloc[:, i]
        formulas = cells.str.fullmatch(r'="[^"]*"').to_numpy(bool, na_value=False)
        if formulas.any():
            table.frame.isetitem(i, cells.where(~formulas, cells.str.slice(2, -1)).array)
            table.notes.append(f"column {name!r}: formulas such as {cells[formulas].iloc[0]} were read as their text")


def _drop_repeated_headers(table: Table, names: Sequence[str]) -> None:
    """Remove rows that repeat the header, as in a file that was concatenated from several."""
    repeated = np.ones(len(table.frame), bool)
    for i, name in enumerate(names):
        if name and repeated.any():
            repeated &= (table.frame.iloc[:, i].str.strip() == name).to_numpy(bool, na_value=False)

    if not repeated.any() or not any(names):
        return

    rows = np.flatnonzero(repeated)
    where = ", ".join(map(str, table.at(rows)))
    table.notes.append(f"repeated headers were ignored: {len(rows):,} ({table.numbering} {where})")
    table.frame = table.frame[~repeated].reset_index(drop=True)
    table.lines = None if table.lines is None else table.lines[~repeated]
    table.keep = np.ones(len(table.frame), bool)
    if not len(table.frame):
        raise InputError(f"{table.name}: has headers but no rows; give a file with rows")


def _note_swallowed_rows(table: Table, delimiter: str) -> None:
    """Note cells with line breaks whose lines look like rows: a stray quote was opened and closed much later."""
    width = table.frame.shape[1]
    if width < 2:
        return

    shapes: set[str] | None = None  # of the cells of the first column; found at the first cell with a line break
    for i, name in enumerate(table.frame.columns):
        cells = table.frame.iloc[:, i]
        for row in np.flatnonzero(cells.str.contains("\n", regex=False).to_numpy(bool, na_value=False)):
            inner = str(cells.iloc[row]).split("\n")[1:]
            if shapes is None:
                shapes = {shape(cell) for cell in table.frame.iloc[:, 0].dropna().head(1000)}

            # Each line must start like a row, and all but the last, which the closing quote cuts off, be complete.
            alike = [line for line in inner if delimiter in line and shape(line.split(delimiter)[0]) in shapes]
            complete = [line for line in alike[:-1] if line.count(delimiter) == width - 1]
            if len(alike) < len(inner) or len(complete) < len(inner) - 1:
                continue

            (where,) = table.at(np.array([row]))
            table.notes.append(
                f"{table.numbering} {where}, column {name!r}: one cell contains {len(inner):,} further lines that look "
                f"like rows of the table, e.g. {shortened(inner[0])}; correct the quotes there"
            )


def _csv_error(text: _Text, width: int, cause: Exception) -> InputError:
    """The error for a file that Arrow cannot parse, with the line, found by decoding and parsing the file in Python."""
    path, before = text.path, text.lines_before
    try:
        decoded = text.data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = text.data.count(b"\n", 0, error.start) + 1 + before
        return InputError(
            f"{path}, line {line}: byte {error.start} (0x{text.data[error.start]:02x}) is not UTF-8; "
            "save the file as UTF-8 (in a spreadsheet: CSV UTF-8)"
        )

    reader = csv.reader(io.StringIO(decoded, newline=""), delimiter=text.delimiter, strict=True)
    line = 1 + before
    try:
        for row in reader:
            if row and len(row) != width:
                return InputError(
                    f"{path}, line {line}: has {len(row)} cells where the header has {width}; "
                    f"correct the line, or quote the cells that contain {text.delimiter!r}"
                )

            line = reader.line_num + 1 + before
    except csv.Error as error:
        return InputError(f"{path}, line {line}: {error}; close the quotes, and double those inside a cell")

    return InputError(f"{path}: cannot be read as CSV ({cause}); save it again with one header line and quoted cells")
