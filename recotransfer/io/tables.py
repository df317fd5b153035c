"""Where tables come from: CSV, Parquet, DataFrames and SQL databases as frames that know their row numbers.

What the cells mean is settled in `cells.py`, what becomes of them in `readers.py`. Nothing is ever written to a source.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.errors import InputError, require

Source = str | Path | pd.DataFrame


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
    """A loaded source on its way to a carrier: the frame, which rows still stand, and what was noted."""

    frame: pd.DataFrame
    name: str
    folder: Path | None = None
    lines: NDArray[np.int64] | None = None
    notes: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

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
        """Record the rows of `bad` that still stand, and unless only `cells` are meant let them go."""
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


def read_table(source: Source) -> pd.DataFrame:
    """The source as a plain frame with a default index; the cells of a CSV file stay text, empty ones missing.

    Args:
        source: a `.csv`, `.tsv` or `.txt` file (also `.gz`), a `.parquet` file or a folder of them, a DataFrame, or
            `"sqlite:///shop.db#events"`: a SQLAlchemy URL and, after `#`, a table or a SELECT.

    Raises:
        InputError: a source that cannot be read; the message names file, line and remedy.
        MissingExtraError: the driver of the database is not installed.
    """
    return load_table(source).frame


def load_table(source: Source) -> Table:
    """The source as `read_table` describes, with its name and row numbers."""
    if isinstance(source, pd.DataFrame):
        return _from_frame(source, "DataFrame")
    if isinstance(source, str) and "://" in source:
        return _from_sql(source)

    path, name = Path(source), str(source).lower()
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path")
    if path.is_dir() or name.endswith((".parquet", ".pq")):
        return _from_parquet(path)
    if name.removesuffix(".gz").endswith((".csv", ".tsv", ".txt")):
        return _from_csv(path)

    raise InputError(
        f"{path}: files of this kind are not read; give CSV (.csv, .tsv, .txt, also .gz), Parquet (.parquet or a "
        'folder of them), or a database URL such as "sqlite:///shop.db#events"; save a spreadsheet as CSV first'
    )


def _from_frame(frame: pd.DataFrame, name: str, folder: Path | None = None) -> Table:
    if any(level is not None for level in frame.index.names):
        frame = frame.reset_index()

    names = [str(c) for c in frame.columns]
    _check_names(names, name)
    if not len(frame):
        raise InputError(f"{name}: has columns but no rows; give a source with rows")

    columns = [frame.iloc[:, i].reset_index(drop=True) for i in range(len(names))]
    plain = [_inferred(c.astype(object)) if isinstance(c.dtype, pd.CategoricalDtype) else c for c in columns]

    return Table(pd.DataFrame(dict(zip(names, plain, strict=True))), name, folder)


def _inferred(column: pd.Series) -> pd.Series:
    """The column in its plainest type; whole numbers with gaps stay objects, as floats would round large ids."""
    filled = column.dropna().infer_objects()
    return column if len(filled) < len(column) and filled.dtype.kind in "iu" else column.infer_objects()


def _check_names(names: Sequence[str], source: str) -> None:
    if not names:
        raise InputError(f"{source}: has no columns; give a table with a header")
    if twice := sorted({n for n in names if n and names.count(n) > 1}):
        raise InputError(f"{source}: the header names {', '.join(map(repr, twice))} more than once; rename one of them")


_EMPTY_CELLS = ["", "NULL", "null", "NaN", "nan", "\\N", "<NA>"]
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


def _from_csv(path: Path) -> Table:
    """Every cell as text; pyarrow reads, and the csv module explains what pyarrow refuses."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    data = _csv_bytes(path)
    first = data.lstrip(b"\r\n").split(b"\n", 1)[0]
    marks = (b"\t", b",", b";", b"|") if ".tsv" in path.name.lower() else (b",", b"\t", b";", b"|")
    mark = max(marks, key=first.count).decode()
    header = next(
        row for row in csv.reader(io.StringIO(data[: 1 << 20].decode("utf-8", "replace")), delimiter=mark) if row
    )
    names = [n.strip() for n in header]
    _check_names(names, str(path))
    if all(re.fullmatch(r"-?\d+(\.\d+)?", n) for n in names):
        raise InputError(f"{path}, line 1: {shortened(names)} looks like data, not column names; add a header line")

    try:
        table = arrow.read_csv(
            pa.BufferReader(data),
            parse_options=arrow.ParseOptions(delimiter=mark, newlines_in_values=True),
            convert_options=arrow.ConvertOptions(
                column_types={n: pa.string() for n in header}, null_values=_EMPTY_CELLS, strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid as cause:
        raise _csv_error(path, data, mark, len(names), cause) from None

    if not table.num_rows:
        raise InputError(f"{path}: has a header but no rows; give a file with rows")

    lines = _line_numbers(table, data)
    if data.count(b'"') % 2 and any(
        "\n" in str(cell) for cell in table.slice(table.num_rows - 1).to_pylist()[0].values()
    ):
        where = f"line {lines[-1]}" if lines is not None else f"row {table.num_rows}"
        raise InputError(
            f"{path}, {where}: a quote is opened and never closed; close it, or double the quotes in cells"
        )

    out = Table(table.rename_columns(names).to_pandas(), str(path), path.parent, lines)
    if mark != "," and ".tsv" not in path.name.lower():
        out.notes.append(f"cells are separated by {mark!r}")

    if "" in names:
        out.notes.append(f"column {names.index('') + 1} has no name and was left out")
        out.frame = out.frame.loc[:, [n != "" for n in names]]

    return out


def _line_numbers(table: Any, data: bytes) -> NDArray[np.int64] | None:
    """The line each row starts on; None where empty lines inside the file make that uncertain."""
    import pyarrow.compute as pc

    rows, total = table.num_rows, data.rstrip(b"\r\n").count(b"\n") + 1
    plain = np.arange(2, rows + 2, dtype=np.int64)
    if total == rows + 1:
        return plain

    inside = sum(
        np.asarray(pc.fill_null(pc.count_substring(table.column(i), "\n"), 0), np.int64)
        for i in range(table.num_columns)
    )
    inside = np.asarray(inside, np.int64)
    lines = plain + np.cumsum(inside) - inside

    return lines if lines[-1] + inside[-1] >= total else None


def _csv_error(path: Path, data: bytes, mark: str, width: int, cause: Exception) -> InputError:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as bad:
        line = data.count(b"\n", 0, bad.start) + 1
        return InputError(
            f"{path}, line {line}: byte {bad.start} (0x{data[bad.start]:02x}) is not UTF-8; "
            "save the file as UTF-8 (in a spreadsheet: CSV UTF-8)"
        )

    reader, start = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True), 1
    try:
        for row in reader:
            if row and len(row) != width:
                return InputError(
                    f"{path}, line {start}: has {len(row)} cells where the header has {width}; "
                    f"mend the line, or quote the cells that hold {mark!r}"
                )

            start = reader.line_num + 1
    except csv.Error as error:
        return InputError(f"{path}, line {start}: {error}; close the quotes, and double those inside a cell")

    return InputError(f"{path}: cannot be read as CSV ({cause}); write it again with one header line and quoted cells")


def _from_parquet(path: Path) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    shards = sorted(p for p in path.rglob("*.parquet") if p.name[0] not in "._") if path.is_dir() else [path]
    if not shards:
        raise InputError(f"{path}: the folder holds no .parquet file; give a file, or a folder of Parquet shards")

    tables: list[Any] = []
    for shard in shards:
        try:
            tables.append(parquet.ParquetFile(shard).read())
        except (pa.ArrowException, OSError) as cause:
            raise InputError(f"{shard}: is no whole Parquet file ({cause}); write or fetch it again") from None

        if set(tables[-1].column_names) != set(tables[0].column_names):
            raise InputError(
                f"{shard}: has the columns {', '.join(tables[-1].column_names)} where {shards[0].name} has "
                f"{', '.join(tables[0].column_names)}; give shards of one table"
            )

    try:
        whole = pa.concat_tables([t.select(tables[0].column_names) for t in tables], promote_options="permissive")
    except pa.ArrowException as cause:
        raise InputError(f"{path}: the shards have columns of different types ({cause}); write them alike") from None

    folder = path if path.is_dir() else path.parent

    return _from_frame(whole.to_pandas(integer_object_nulls=True), str(path), folder)


def _from_sql(source: str) -> Table:
    import sqlalchemy as sa

    address, _, wanted = source.partition("#")
    try:
        url = sa.make_url(address)
        engine = sa.create_engine(url)
    except sa.exc.NoSuchModuleError:
        kind = url.drivername
        raise InputError(f"no database of the kind {kind!r} is known; use sqlite or postgresql+psycopg") from None
    except (sa.exc.ArgumentError, ValueError):
        raise InputError('a database URL looks like "sqlite:///shop.db#events", and this one does not parse') from None
    except ImportError as cause:
        require(str(cause.name), "postgres" if "postgres" in url.drivername else url.get_backend_name())
        raise

    name = url.render_as_string(hide_password=True)
    file = Path(str(url.database)) if url.get_backend_name() == "sqlite" and url.database else None
    if file is not None and not file.is_file() and url.database != ":memory:":
        raise InputError(f"{name}: the file {url.database} does not exist; check the path")

    try:
        with engine.connect() as connection:  # read-only where the database can be, and never committed
            if url.get_backend_name() == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
            elif url.get_backend_name() == "postgresql":
                connection.execution_options(postgresql_readonly=True)

            result = connection.execute(_query(sa.inspect(connection), name, wanted.strip()))
            names, rows = list(result.keys()), result.fetchall()
    except sa.exc.SQLAlchemyError as cause:
        reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        raise InputError(f"{name}: {reason}; check the address and the query after '#'") from None
    finally:
        engine.dispose()

    cells = list(zip(*rows, strict=True)) or [()] * len(names)
    _check_names(names, name)
    frame = pd.DataFrame({n: pd.Series(list(c), dtype=object) for n, c in zip(names, cells, strict=True)})

    return _from_frame(frame.apply(_inferred), f"{name}#{wanted.strip()}")


def _query(inspector: Any, name: str, wanted: str) -> Any:
    import sqlalchemy as sa

    if re.match(r"(select|with)\b", wanted, re.IGNORECASE):
        return sa.text(wanted.replace(":", "\\:"))

    schema, _, table = wanted.rpartition(".")
    known = [*inspector.get_table_names(schema or None), *inspector.get_view_names(schema or None)]
    if table not in known:
        problem = f"has no table {wanted!r}" if wanted else "name a table or a SELECT after '#'"
        raise InputError(f"{name}: {problem}; its tables are {', '.join(sorted(known)) or '(none)'}: add '#TABLE'")

    return sa.select(sa.text("*")).select_from(sa.table(table, schema=schema or None))
