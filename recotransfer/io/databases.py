"""Connect to SQL databases and read a table or the result of a query. Reading never changes a database."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from recotransfer.errors import InputError, MissingExtraError
from recotransfer.io.report import check_names

if TYPE_CHECKING:
    import sqlalchemy as sa

# Database -> (default driver where the URL names none, what to pip install for it).
_DRIVERS = {
    "postgresql": ("psycopg", "'recotransfer[postgres]'"),
    "mysql": ("pymysql", "pymysql"),
    "mariadb": ("pymysql", "pymysql"),
    "mssql": ("pyodbc", "pyodbc"),
    "oracle": ("oracledb", "oracledb"),
}
# Databases whose SQLAlchemy dialect comes in a separate package.
_DIALECTS = {
    "awsathena": "PyAthena",
    "bigquery": "sqlalchemy-bigquery",
    "clickhouse": "clickhouse-sqlalchemy",
    "cockroachdb": "sqlalchemy-cockroachdb",
    "databricks": "databricks-sqlalchemy",
    "duckdb": "duckdb-engine",
    "redshift": "sqlalchemy-redshift",
    "snowflake": "snowflake-sqlalchemy",
    "trino": "trino",
}
_QUERY_START = re.compile(r"(select|with|values|table)\b", re.IGNORECASE)
_COMMENT = re.compile(r"\s*(--[^\n]*(\n|$)|/\*.*?\*/)", re.DOTALL)


def split_address(source: str) -> tuple[str, str]:
    """Split a source at its first '#': the database URL, and the table or query to read (empty if there is no '#')."""
    address, _, wanted = source.partition("#")
    return address, wanted.strip()


def connected(address: str) -> sa.Engine:
    """A SQLAlchemy engine for the database URL; no connection is opened yet.

    Raises:
        InputError: the URL is malformed, or names an unknown kind of database.
        MissingExtraError: the database's driver is not installed; the message says what to pip install.
    """
    import sqlalchemy as sa

    if address.startswith("postgres://"):  # an old alias that hosting providers still hand out; SQLAlchemy dropped it
        address = address.replace("postgres://", "postgresql://", 1)

    try:
        url = sa.make_url(address)
    except (sa.exc.ArgumentError, ValueError):
        # The address is not repeated in the message, because it may contain a password.
        raise InputError('malformed database URL; write it like "sqlite:///shop.db#events"') from None

    kind = url.drivername.partition("+")[0]
    driver, package = _DRIVERS.get(kind, ("", ""))
    try:
        return sa.create_engine(url)
    except sa.exc.NoSuchModuleError:
        if kind in _DIALECTS:
            raise MissingExtraError(
                f"{kind} needs a package that is not installed; install it with: pip install {_DIALECTS[kind]}"
            ) from None

        raise InputError(
            f"unknown kind of database {url.drivername!r}; use sqlite, postgresql+psycopg, mysql+pymysql or another "
            "database that SQLAlchemy supports, or export the table as CSV or Parquet"
        ) from None
    except (sa.exc.ArgumentError, ValueError) as cause:
        raise InputError(f"{url.render_as_string(hide_password=True)}: {cause}; check the URL") from None
    except ImportError as cause:
        # SQLAlchemy's own default driver is missing, for example psycopg2; ours may be there.
        if driver and "+" not in url.drivername and importlib.util.find_spec(driver) is not None:
            return sa.create_engine(url.set(drivername=f"{kind}+{driver}"))

        raise MissingExtraError(
            f"{kind} needs a driver that is not installed ({cause}); install one with: pip install "
            f"{package or cause.name}" + (f", and begin the URL with {kind}+{driver}://" if driver else "")
        ) from None


def is_query(wanted: str) -> bool:
    """Whether the text after the '#' is a query rather than the name of a table."""
    return _bare_query(wanted) is not None


def reason_of(cause: Exception) -> str:
    """The first line of the database's own error message."""
    return str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]


def read_sql(source: str) -> tuple[pd.DataFrame, str]:
    """Read the table or query that follows the '#' of a database URL.

    Returns:
        A frame of dtype object, which keeps the values as the driver returned them, and the source without its
        password, to name it in reports.

    Raises:
        InputError: the database cannot be reached, or has no such table, or rejects the query.
        MissingExtraError: the database's driver is not installed.
    """
    import sqlalchemy as sa

    address, wanted = split_address(source)
    engine = connected(address)
    url = engine.url
    name = url.render_as_string(hide_password=True)

    # SQLite would silently create a missing file.
    file = Path(str(url.database)) if url.get_backend_name() == "sqlite" and url.database else None
    if file is not None and not file.is_file() and url.database != ":memory:":
        raise InputError(f"{name}: the file {url.database} does not exist; check the path")

    try:
        with engine.connect() as connection:  # never committed, and read-only where the database supports it
            if url.get_backend_name() == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
            elif url.get_backend_name() == "postgresql":
                connection.execution_options(postgresql_readonly=True)

            result = connection.execute(_statement(sa.inspect(connection), name, wanted))
            names = list(result.keys())
            rows = result.fetchall()
    except sa.exc.SQLAlchemyError as cause:
        raise InputError(f"{name}: {reason_of(cause)}; check the address and the query after '#'") from None
    finally:
        engine.dispose()

    check_names(names, name)
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    frame = pd.DataFrame({n: pd.Series(list(c), dtype=object) for n, c in zip(names, columns, strict=True)})

    return frame, f"{name}#{wanted}"


def _statement(inspector: sa.Inspector, name: str, wanted: str) -> sa.Executable:
    """A SELECT of the table called `wanted`, or `wanted` itself if it is a query.

    Tables come first, because a table may have a name that reads like a query, such as "values".
    """
    import sqlalchemy as sa

    tables = _tables(inspector, None)
    table = _match_name(tables, wanted)
    if table is not None:
        return _select_all(table, None)

    query = _bare_query(wanted)
    if query is not None:
        return sa.text(query.replace(":", "\\:"))  # a colon would start a bound parameter

    # "schema.table", split at each dot in turn, because both names may contain dots.
    schemas = inspector.get_schema_names()
    for dot in (i for i, character in enumerate(wanted) if character == "."):
        schema = _match_name(schemas, wanted[:dot])
        table = _match_name(_tables(inspector, schema), wanted[dot + 1 :]) if schema is not None else None
        if table is not None:
            return _select_all(table, schema)

    problem = f"has no table {wanted!r}" if wanted else "name a table or a SELECT after '#'"
    raise InputError(f"{name}: {problem}; its tables are {', '.join(sorted(tables)) or '(none)'}: add '#TABLE'")


def _tables(inspector: sa.Inspector, schema: str | None) -> list[str]:
    """Names of the tables and views in a schema; None is the default schema."""
    tables = [*inspector.get_table_names(schema), *inspector.get_view_names(schema)]
    if inspector.dialect.name == "postgresql":
        tables += inspector.get_materialized_view_names(schema)

    return tables


def _match_name(names: list[str], wanted: str) -> str | None:
    """The name that `wanted` stands for: the same text, the text without its quotes, or the only one that differs in
    case; None if there is none.
    """
    bare = wanted.strip()
    for opening, closing in ('""', "``", "[]", "''"):  # of standard SQL, MySQL, SQL Server, and by mistake
        if len(bare) > 2 and bare[0] == opening and bare[-1] == closing:
            bare = bare[1:-1].replace(closing * 2, closing)
            break

    for name in (wanted, bare):
        if name in names:
            return name

    matches = [name for name in names if name.lower() == bare.lower()]

    return matches[0] if len(matches) == 1 else None


def _select_all(table: str, schema: str | None) -> sa.Executable:
    import sqlalchemy as sa

    # Always quoted: a name may be a reserved word, or contain spaces and dots.
    name = sa.sql.quoted_name(table, quote=True)
    source = sa.table(name, schema=None if schema is None else sa.sql.quoted_name(schema, quote=True))

    return sa.select(sa.text("*")).select_from(source)


def _bare_query(wanted: str) -> str | None:
    """The query without enclosing parentheses or a final semicolon; None if the text is not a query."""
    query = wanted.strip().rstrip(";").strip()
    start = _skip_comments(query)
    if start.startswith("(") and _is_enclosed(start):
        return _bare_query(start[1:-1])

    # "(select 1) union (select 2)" is a query whose parentheses must stay.
    inner = start
    while inner.startswith("("):
        inner = _skip_comments(inner[1:].lstrip())

    return query if _QUERY_START.match(inner) else None


def _skip_comments(text: str) -> str:
    """The text without the comments that it begins with."""
    while (comment := _COMMENT.match(text)) is not None:
        text = text[comment.end() :].lstrip()

    return text


def _is_enclosed(text: str) -> bool:
    """Whether the parenthesis that opens the text is closed by its last character.

    Parentheses in quotes and comments do not count.
    """
    masked = re.sub(r"'[^']*'|\"[^\"]*\"|--[^\n]*|/\*.*?\*/", lambda match: "x" * len(match[0]), text, flags=re.DOTALL)
    depth = 0
    for i, character in enumerate(masked):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i == len(masked) - 1

    return False
