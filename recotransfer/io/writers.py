"""Recommendations into Parquet files and SQL tables: whole or not at all."""

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

_ROWS_AT_ONCE = 10_000


def write_recommendations(recommendations: Recommendations | Iterable[Recommendations], target: str | Path) -> int:
    """Write ranked lists as rows of user, item, rank, score and, where there are any, reason; returns their number.

    What is at the target already is replaced when all rows are written; on an error it stays as it was. Ids keep
    their type; ids of mixed types, and UUIDs, are written as text.

    Args:
        recommendations: the lists, or several of them, such as those of `BatchJob.lists`, which are then written one
            after the other.
        target: a file that ends in `.parquet`; a folder, for a Parquet file per element; or a SQLAlchemy URL and, after
            '#', a table, such as "sqlite:///shop.db#recs". A table that exists must have the same columns.

    Raises:
        InputError: a target that cannot be written to, or a table with other columns.
        MissingExtraError: the driver of the database is not installed.
    """
    lists = [recommendations] if isinstance(recommendations, Recommendations) else recommendations
    if not isinstance(target, (str, Path)) or not isinstance(lists, Iterable):
        raise InputError(
            "write_recommendations takes Recommendations, and a .parquet file, a folder or a database URL; got "
            f"{type(recommendations).__name__} and {target!r}"
        )

    parts = iter(lists)
    first = next(parts, None)
    if not isinstance(first, Recommendations):
        raise InputError("there are no recommendations to write; give at least one element of Recommendations")

    parts = chain([first], parts)
    if "://" in str(target):
        return _write_table(parts, first, str(target))

    path = Path(target)
    if path.suffix == ".parquet":
        return _write_file(parts, first, path)

    if path.exists() and not (path.is_dir() and all(p.suffix == ".parquet" for p in path.iterdir())):
        raise InputError(f"{path} holds other files; give a new folder, or a file that ends in .parquet")

    rows = 0
    with atomic_folder(path) as folder:
        for number, part in enumerate(parts):
            rows += _write_file([part], first, folder / f"part-{number:05d}.parquet")

    return rows


def database_name(target: str) -> str:
    """The address of a database table without its password."""
    address, table = split_address(target)
    engine = connected(address)

    return f"{engine.url.render_as_string(hide_password=True)}#{table}"


# -- Parquet -----------------------------------------------------------------------------------------------------------


def parquet_schema(users: NDArray[Any], items: IdMap, *, reason: bool) -> pa.Schema:
    """The columns of recommendations for these users and items, one schema for all files of a job."""
    fields = [
        ("user", _type_of(users)),
        ("item", _type_of(items.ids)),
        ("rank", pa.int32()),
        ("score", pa.float32()),
    ]
    return pa.schema([*fields, ("reason", pa.string())] if reason else fields)


def parquet_column(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """The values as a column of this type, text where the type is text."""
    return pa.array([str(v) for v in values] if kind == pa.string() else values, kind)


def write_parquet(path: Path, found: Recommendations, schema: pa.Schema) -> None:
    """Write one table of recommendations atomically; rows without an item are left out."""
    with atomic_file(path) as file:
        pq.write_table(_arrow_table(found, schema), file, compression="zstd", write_page_checksum=True)


def _write_file(parts: Iterable[Recommendations], first: Recommendations, path: Path) -> int:
    schema, rows = parquet_schema(first.users, first.catalogue, reason=first.reason is not None), 0
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for part in parts:
            table = _arrow_table(part, schema)
            writer.write_table(table)
            rows += table.num_rows

    return rows


def _arrow_table(found: Recommendations, schema: pa.Schema) -> pa.Table:
    frame = found.to_frame()
    columns = [parquet_column(frame[field.name].to_numpy(), field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _type_of(ids: NDArray[Any]) -> pa.DataType:
    if ids.dtype != object:
        return pa.from_numpy_dtype(ids.dtype)

    return pa.binary() if len(ids) and {type(v) for v in ids} == {bytes} else pa.string()


# -- SQL ---------------------------------------------------------------------------------------------------------------


def _write_table(parts: Iterable[Recommendations], first: Recommendations, target: str) -> int:
    """Replace the rows of a table in one transaction; a table that is not there is made."""
    import sqlalchemy as sa

    address, wanted = split_address(target)
    engine = connected(address)
    name = engine.url.render_as_string(hide_password=True)
    if not wanted or is_query(wanted):
        engine.dispose()
        raise InputError(f"{name}: name a table to write to after '#', for example {name}#recs")

    _begin_at_once(engine)
    rows = 0
    try:
        with engine.begin() as connection:
            table = _table_for(connection, name, wanted, first)
            connection.execute(table.delete())
            for part in parts:
                for batch in _rows_of(part, first):
                    connection.execute(table.insert(), batch)
                    rows += len(batch)
    except sa.exc.SQLAlchemyError as cause:
        raise InputError(
            f"{name}#{wanted}: {reason_of(cause)}; nothing was written, so check the address and your rights there"
        ) from None
    finally:
        engine.dispose()

    return rows


def _begin_at_once(engine: sa.Engine) -> None:
    """Let SQLite's transactions hold the making of tables too, which its driver would commit by itself."""
    import sqlalchemy as sa

    if engine.dialect.name != "sqlite":
        return

    @sa.event.listens_for(engine, "connect")
    def _leave_transactions_to_us(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _table_for(connection: sa.Connection, name: str, wanted: str, first: Recommendations) -> sa.Table:
    import sqlalchemy as sa

    inspector = sa.inspect(connection)
    schema, _, table_name = wanted.rpartition(".")
    if not schema or schema not in inspector.get_schema_names():
        schema, table_name = "", wanted

    text = {pa.string(): sa.Text(), pa.binary(): sa.LargeBinary()}
    types: dict[str, Any] = {"user": _type_of(first.users), "item": _type_of(first.catalogue.ids)}
    types = {n: text.get(t, sa.BigInteger() if pa.types.is_integer(t) else sa.Float(53)) for n, t in types.items()}
    types |= {"rank": sa.Integer(), "score": sa.Float(53)}
    if first.reason is not None:
        types["reason"] = sa.Text()

    columns = [sa.Column(n, t) for n, t in types.items()]
    quoted = sa.sql.quoted_name(table_name, quote=True)
    table = sa.Table(quoted, sa.MetaData(), *columns, schema=schema or None)
    if not inspector.has_table(table_name, schema=schema or None):
        table.create(connection)
        return table

    there = [column["name"] for column in inspector.get_columns(table_name, schema=schema or None)]
    if set(there) != set(types):
        raise InputError(
            f"{name}: the table {wanted!r} has the columns {', '.join(there)}, and recommendations have "
            f"{', '.join(types)}; name another table"
        )

    return table


def _rows_of(part: Recommendations, first: Recommendations) -> Iterator[list[dict[str, Any]]]:
    """The rows of the lists as plain Python values, some thousands at a time."""
    frame = part.to_frame()
    for column, kind in (("user", _type_of(first.users)), ("item", _type_of(first.catalogue.ids))):
        if kind == pa.string():
            frame[column] = pd.Series([str(v) for v in frame[column]], dtype=object)

    frame["score"] = frame["score"].astype(float)
    for start in range(0, len(frame), _ROWS_AT_ONCE):
        some = frame.iloc[start : start + _ROWS_AT_ONCE]
        values = (some[column].tolist() for column in some)
        yield [dict(zip(some.columns, row, strict=True)) for row in zip(*values, strict=True)]
