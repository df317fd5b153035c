"""Write recommendations to Parquet files and SQL tables, completely or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recotransfer.data import IdMap, Recommendations
from recotransfer.errors import InputError
from recotransfer.io.artifacts import atomic_file, atomic_folder
from recotransfer.io.databases import connected, is_query, reason_of, split_address

if TYPE_CHECKING:
    import sqlalchemy as sa

_BATCH_ROWS = 10_000  # rows per INSERT


def write_recommendations(recommendations: Recommendations | Iterable[Recommendations], target: str | Path) -> int:
    """Write ranked lists, one row per user and item, and return the number of rows.

    The columns are user, item, rank, score and, if the lists have reasons, reason. Existing data at the target is
    replaced once all rows are written; on error it is unchanged. Ids keep their type, but ids of mixed types and UUIDs
    are written as text.

    Args:
        recommendations: the lists, or an iterable of them, such as `BatchJob.lists`, which is written as it is read.
        target: a file that ends in `.parquet`; a folder, for one Parquet file per element of the iterable; or a
            SQLAlchemy URL with a table after '#', such as "sqlite:///shop.db#recs". An existing table must have the
            same columns.

    Raises:
        InputError: the target cannot be written to, or is a table with other columns.
        MissingExtraError: the database's driver is not installed.
    """
    lists = [recommendations] if isinstance(recommendations, Recommendations) else recommendations
    if not isinstance(target, (str, Path)) or not isinstance(lists, Iterable):
        raise InputError(
            "write_recommendations takes Recommendations, and a .parquet file, a folder or a database URL; got "
            f"{type(recommendations).__name__} and {target!r}"
        )

    remaining = iter(lists)
    first = next(remaining, None)
    if not isinstance(first, Recommendations):
        raise InputError("no recommendations to write; give Recommendations, or a non-empty iterable of them")

    # The first element decides the types of all columns, so that all rows fit into one table.
    batches = chain([first], remaining)
    if "://" in str(target):
        return _write_table(batches, first, str(target))

    path = Path(target)
    if path.suffix == ".parquet":
        return _write_file(batches, first, path)

    if path.exists() and not (path.is_dir() and all(p.suffix == ".parquet" for p in path.iterdir())):
        raise InputError(f"{path} holds other files; give a new folder, or a file that ends in .parquet")

    rows = 0
    with atomic_folder(path) as folder:
        for number, batch in enumerate(batches):
            rows += _write_file([batch], first, folder / f"part-{number:05d}.parquet")

    return rows


def database_name(target: str) -> str:
    """The address of a database table without its password, to show in messages."""
    address, table = split_address(target)
    engine = connected(address)

    return f"{engine.url.render_as_string(hide_password=True)}#{table}"


# -- Parquet -----------------------------------------------------------------------------------------------------------


def parquet_schema(users: NDArray[Any], items: IdMap, *, reason: bool) -> pa.Schema:
    """The Arrow schema of recommendations for these users and items, the same for all files of a job."""
    fields = [
        ("user", _type_of(users)),
        ("item", _type_of(items.ids)),
        ("rank", pa.int32()),
        ("score", pa.float32()),
    ]
    return pa.schema([*fields, ("reason", pa.string())] if reason else fields)


def parquet_column(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """The values as a column of type `kind`; any value can become text."""
    return pa.array([str(v) for v in values] if kind == pa.string() else values, kind)


def write_parquet(path: Path, found: Recommendations, schema: pa.Schema) -> None:
    """Write recommendations to one file, atomically; ranks without an item (short lists) are left out."""
    with atomic_file(path) as file:
        pq.write_table(_arrow_table(found, schema), file, compression="zstd", write_page_checksum=True)


def _write_file(batches: Iterable[Recommendations], first: Recommendations, path: Path) -> int:
    schema = parquet_schema(first.users, first.catalogue, reason=first.reason is not None)
    rows = 0
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for batch in batches:
            table = _arrow_table(batch, schema)
            writer.write_table(table)
            rows += table.num_rows

    return rows


def _arrow_table(found: Recommendations, schema: pa.Schema) -> pa.Table:
    frame = found.to_frame()
    columns = [parquet_column(frame[field.name].to_numpy(), field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _type_of(ids: NDArray[Any]) -> pa.DataType:
    """The Arrow type that can hold all ids: their own, bytes, or text."""
    if ids.dtype != object:
        return pa.from_numpy_dtype(ids.dtype)

    return pa.binary() if len(ids) and {type(v) for v in ids} == {bytes} else pa.string()


# -- SQL ---------------------------------------------------------------------------------------------------------------


def _write_table(batches: Iterable[Recommendations], first: Recommendations, target: str) -> int:
    """Replace all rows of a table in one transaction; a missing table is created."""
    import sqlalchemy as sa

    address, wanted = split_address(target)
    engine = connected(address)
    name = engine.url.render_as_string(hide_password=True)
    if not wanted or is_query(wanted):
        engine.dispose()
        raise InputError(f"{name}: name a table to write to after '#', for example {name}#recs")

    _make_ddl_transactional(engine)
    rows = 0
    try:
        with engine.begin() as connection:
            table = _table_for(connection, name, wanted, first)
            connection.execute(table.delete())
            for batch in batches:
                for records in _records(batch, first):
                    connection.execute(table.insert(), records)
                    rows += len(records)
    except sa.exc.SQLAlchemyError as cause:
        raise InputError(
            f"{name}#{wanted}: {reason_of(cause)}; nothing was written, check the address and your permissions there"
        ) from None
    finally:
        engine.dispose()

    return rows


def _make_ddl_transactional(engine: sa.Engine) -> None:
    """Make CREATE TABLE part of the transaction in SQLite, whose Python driver would commit it on its own.

    Source: "Serializable isolation / Savepoints / Transactional DDL" in SQLAlchemy's documentation of SQLite.
    """
    import sqlalchemy as sa

    if engine.dialect.name != "sqlite":
        return

    @sa.event.listens_for(engine, "connect")
    def _disable_implicit_transactions(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _table_for(connection: sa.Connection, name: str, wanted: str, first: Recommendations) -> sa.Table:
    """The table to write to, created if there is none of that name."""
    import sqlalchemy as sa

    inspector = sa.inspect(connection)
    schema, _, table_name = wanted.rpartition(".")
    if not schema or schema not in inspector.get_schema_names():
        schema, table_name = "", wanted

    types: dict[str, sa.types.TypeEngine[Any]] = {
        "user": _sql_type(_type_of(first.users)),
        "item": _sql_type(_type_of(first.catalogue.ids)),
        "rank": sa.Integer(),
        "score": sa.Float(53),
    }
    if first.reason is not None:
        types["reason"] = sa.Text()

    columns = [sa.Column(n, t) for n, t in types.items()]
    quoted = sa.sql.quoted_name(table_name, quote=True)
    table = sa.Table(quoted, sa.MetaData(), *columns, schema=schema or None)
    if not inspector.has_table(table_name, schema=schema or None):
        table.create(connection)
        return table

    existing = [column["name"] for column in inspector.get_columns(table_name, schema=schema or None)]
    if set(existing) != set(types):
        raise InputError(
            f"{name}: the table {wanted!r} has the columns {', '.join(existing)}, and recommendations have "
            f"{', '.join(types)}; name another table"
        )

    return table


def _sql_type(kind: pa.DataType) -> sa.types.TypeEngine[Any]:
    import sqlalchemy as sa

    if kind == pa.string():
        return sa.Text()
    if kind == pa.binary():
        return sa.LargeBinary()

    return sa.BigInteger() if pa.types.is_integer(kind) else sa.Float(53)


def _records(batch: Recommendations, first: Recommendations) -> Iterator[list[dict[str, Any]]]:
    """The rows of the lists as dicts of plain Python values, `_BATCH_ROWS` at a time."""
    frame = batch.to_frame()
    for column, kind in (("user", _type_of(first.users)), ("item", _type_of(first.catalogue.ids))):
        if kind == pa.string():
            frame[column] = pd.Series([str(v) for v in frame[column]], dtype=object)

    frame["score"] = frame["score"].astype(float)
    for start in range(0, len(frame), _BATCH_ROWS):
        chunk = frame.iloc[start : start + _BATCH_ROWS]
        values = (chunk[column].tolist() for column in chunk)  # tolist turns numpy scalars into Python values
        yield [dict(zip(chunk.columns, row, strict=True)) for row in zip(*values, strict=True)]
