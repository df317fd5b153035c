"""Load tables from CSV, Parquet, DataFrames and SQL databases as frames, with row numbers for messages.

`parsing` converts the cells, `schema` interprets the columns, and `readers` builds `Items` and `Interactions`. Sources
are never written to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import pandas as pd

from recotransfer.arguments import Unchecked
from recotransfer.errors import InputError
from recotransfer.io.csv_files import is_csv, read_csv
from recotransfer.io.databases import read_sql
from recotransfer.io.parquet_files import read_parquet
from recotransfer.io.report import Table, check_names

# Not checked by the decorators, because `load_table` suggests a conversion for each common other type.
Source: TypeAlias = Annotated[str | Path | pd.DataFrame, Unchecked()]

_SUPPORTED = (
    "give CSV (.csv, .tsv, .txt, also .gz), Parquet (.parquet or a folder of them), or a database URL such as "
    '"sqlite:///shop.db#events"'
)
# URL scheme -> a command that downloads from there.
_DOWNLOADS = {
    "s3": "aws s3 cp --recursive",
    "s3a": "aws s3 cp --recursive",
    "gs": "gcloud storage cp -r",
    "gcs": "gcloud storage cp -r",
    "az": "az storage blob download",
    "abfs": "azcopy copy",
    "abfss": "azcopy copy",
    "wasbs": "azcopy copy",
    "hdfs": "hdfs dfs -get",
    "dbfs": "databricks fs cp -r",
    "hf": "hf download",
    "http": "curl -LO",
    "https": "curl -LO",
    "ftp": "curl -O",
    "sftp": "sftp",
}
_OTHER_DATABASES = ("mongodb", "mongodb+srv", "redis", "rediss", "cassandra", "neo4j", "bolt", "kafka", "delta")


def read_table(source: Source) -> pd.DataFrame:
    """The source as a frame with a default index; cells of CSV files stay text, and empty cells are missing.

    Args:
        source: a `.csv`, `.tsv` or `.txt` file (also `.gz`), a `.parquet` file or a folder of them, a DataFrame, or
            `"sqlite:///shop.db#events"`: a SQLAlchemy URL followed by `#` and the name of a table or a SELECT.

    Raises:
        InputError: the source cannot be read; the message names the file, the line and a remedy.
        MissingExtraError: the driver of the database is not installed.
    """
    return load_table(source).frame


def load_table(source: Source) -> Table:
    """The source as in `read_table`, with its name and row numbers for messages."""
    if isinstance(source, pd.DataFrame):
        return _from_frame(source, "DataFrame")

    if not isinstance(source, (str, Path)):
        raise InputError(_wrong_type(source))

    text = str(source)
    if isinstance(source, str) and "://" in source:
        if source.startswith("file://"):
            raise InputError(f"{source}: give the path of the file without file://")

        return _from_url(source)

    path = Path(source)
    if not text.strip():
        raise InputError(f"the path of the table is empty; {_SUPPORTED}")
    if not path.exists():
        _check_scheme(text)
        raise InputError(f"{path} does not exist; check the path")

    if path.is_dir() or path.name.lower().endswith((".parquet", ".pq")):
        frame, notes = read_parquet(path)
        return _from_frame(frame, text, path if path.is_dir() else path.parent, notes)
    if is_csv(path):
        return read_csv(path)

    raise InputError(f"{path}: unsupported file type; {_SUPPORTED}; save a spreadsheet as CSV first")


def _from_url(source: str) -> Table:
    _check_scheme(source)
    frame, name = read_sql(source)
    return _from_frame(frame.apply(_inferred), name)


def _check_scheme(source: str) -> None:
    """Raise `InputError` for the URL of anything but an SQL database.

    `Path("s3://shop/events")` has only one slash left after the colon.
    """
    scheme, separator, _ = source.partition(":/")
    scheme = scheme.lower()
    if not separator:
        return

    if scheme in _DOWNLOADS:
        raise InputError(
            f"{source}: files are not read over the network; download it first (for example with "
            f"{_DOWNLOADS[scheme]}) and give the local path"
        )
    if scheme.startswith("jdbc:"):
        raise InputError(
            'a database URL starts without "jdbc:", for example "postgresql+psycopg://user@host/shop#events"'
        )
    if scheme in _OTHER_DATABASES:
        raise InputError(f"{scheme} is not an SQL database; export the table as CSV or Parquet and give the path")


def _wrong_type(source: object) -> str:
    """The message for an object of an unsupported type, with what to pass instead."""
    kind = f"{type(source).__module__.partition('.')[0]}.{type(source).__qualname__}"
    if hasattr(source, "to_pandas"):
        remedy = "give it as table.to_pandas()"
    elif hasattr(source, "toPandas"):
        remedy = "give it as table.toPandas()"
    elif hasattr(source, "to_dataframe"):
        remedy = "give it as table.to_dataframe()"
    elif hasattr(source, "collect"):
        remedy = "give it as table.collect().to_pandas()"
    elif hasattr(source, "read"):
        remedy = "give the path of the file instead of the open file"
    elif isinstance(source, pd.Series):
        remedy = "give it as series.to_frame()"
    elif isinstance(source, (dict, list, tuple)) or hasattr(source, "__array__"):
        remedy = "give it as pandas.DataFrame(table), with a name for each column"
    elif hasattr(source, "execute") or hasattr(source, "connect"):
        remedy = 'give a database URL such as "sqlite:///shop.db#events", or pandas.read_sql(query, connection)'
    else:
        remedy = _SUPPORTED

    return f"a table cannot be read from an object of type {kind.removeprefix('builtins.')}; {remedy}"


def _from_frame(frame: pd.DataFrame, name: str, folder: Path | None = None, notes: tuple[str, ...] = ()) -> Table:
    """The frame as a table: named index levels become columns, column names text, and cells plain pandas types."""
    if any(level is not None for level in frame.index.names):
        frame = frame.reset_index()

    names = [str(c) for c in frame.columns]
    check_names(names, name)
    if not len(frame):
        raise InputError(f"{name}: has columns but no rows; give a source with rows")

    columns = [frame.iloc[:, i].reset_index(drop=True) for i in range(len(names))]
    plain = dict(zip(names, map(_plain_types, columns), strict=True))

    return Table(pd.DataFrame(plain), name, folder, notes=list(notes))


def _plain_types(column: pd.Series) -> pd.Series:
    """The column in a pandas type instead of a categorical or Arrow type."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _inferred(column.astype(object))
    if not isinstance(column.dtype, pd.ArrowDtype):
        return column

    plain = {"i": "Int64", "u": "UInt64", "f": "float64", "b": "boolean"}.get(column.dtype.kind)

    return _inferred(column.astype(object)) if plain is None else column.astype(pd.api.types.pandas_dtype(plain))


def _inferred(column: pd.Series) -> pd.Series:
    """The column in its most specific type; integers with gaps stay objects, as floats would round large ids."""
    filled = column.dropna().infer_objects()
    return column if len(filled) < len(column) and filled.dtype.kind in "iu" else column.infer_objects()
