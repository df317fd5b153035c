"""SQL databases: connections, and tables or queries as frames. Reading never writes to a database."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from recotransfer.errors import InputError, MissingExtraError
from recotransfer.io.report import check_names

if TYPE_CHECKING:
    import sqlalchemy as sa

# Database -> (driver to use where the URL names none, what installs it).
_DRIVERS = {
    "postgresql": ("psycopg", "'recotransfer[postgres]'"),
    "mysql": ("pymysql", "pymysql"),
    "mariadb": ("pymysql", "pymysql"),
    "mssql": ("pyodbc", "pyodbc"),
    "oracle": ("oracledb", "oracledb"),
}
# Databases that SQLAlchemy reaches through a package of their own.
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
_QUERY = re.compile(r"(select|with|values|table)\b", re.IGNORECASE)
_COMMENT = re.compile(r"\s*(--[^\n]*(\n|$)|/\*.*?\*/)", re.DOTALL)


def split_address(source: str) -> tuple[str, str]:
    """The database's URL and what follows the '#': a table or a query."""
    address, _, wanted = source.partition("#")
    return address, wanted.strip()


def connected(address: str) -> sa.Engine:
    """The engine of a database; nothing is opened yet.

    Raises:
        InputError: a URL that does not parse, or an unknown kind of database.
        MissingExtraError: the database's driver is not installed; the message holds the pip line.
    """
    import sqlalchemy as sa

    if address.startswith("postgres://"):
        address = address.replace("postgres://", "postgresql://", 1)

    try:
        url = sa.make_url(address)
    except (sa.exc.ArgumentError, ValueError):
        raise InputError('a database URL looks like "sqlite:///shop.db#events", and this one does not parse') from None

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
            f"no database of the kind {url.drivername!r} is known; use sqlite, postgresql+psycopg, mysql+pymysql or "
            "another database of SQLAlchemy, or export the table as CSV or Parquet"
        ) from None
    except (sa.exc.ArgumentError, ValueError) as cause:
        raise InputError(f"{url.render_as_string(hide_password=True)}: {cause}; check the URL") from None
    except ImportError as cause:
        if driver and "+" not in url.drivername and importlib.util.find_spec(driver) is not None:
            return sa.create_engine(url.set(drivername=f"{kind}+{driver}"))

        raise MissingExtraError(
            f"{kind} needs a driver that is not installed ({cause}); install one with: pip install "
            f"{package or cause.name}" + (f", and write {kind}+{driver}://..." if driver else "")
        ) from None


def is_query(wanted: str) -> bool:
    """Whether what follows the '#' is a query rather than a table's name."""
    return _bare_query(wanted) is not None


def reason_of(cause: Exception) -> str:
    """What the database said, in one line."""
    return str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]


def read_sql(source: str) -> tuple[pd.DataFrame, str]:
    """The table or query after the '#' as a frame of objects, and the source's name without its password."""
    import sqlalchemy as sa

    address, wanted = split_address(source)
    engine = connected(address)
    url = engine.url
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

            result = connection.execute(_statement(sa.inspect(connection), name, wanted))
            names, rows = list(result.keys()), result.fetchall()
    except sa.exc.SQLAlchemyError as cause:
        raise InputError(f"{name}: {reason_of(cause)}; check the address and the query after '#'") from None
    finally:
        engine.dispose()

    cells = list(zip(*rows, strict=True)) or [()] * len(names)
    check_names(names, name)
    frame = pd.DataFrame({n: pd.Series(list(c), dtype=object) for n, c in zip(names, cells, strict=True)})

    return frame, f"{name}#{wanted}"


def _statement(inspector: sa.Inspector, name: str, wanted: str) -> Any:
    """A select of the table of that name, however it is called; otherwise the query itself."""
    import sqlalchemy as sa

    tables = _tables(inspector, None)
    found = _named(tables, wanted)
    if found is not None:
        return _select_all(found, None)

    query = _bare_query(wanted)
    if query is not None:
        return sa.text(query.replace(":", "\\:"))

    schemas = inspector.get_schema_names()
    for dot in (i for i, sign in enumerate(wanted) if sign == "."):
        schema = _named(schemas, wanted[:dot])
        table = _named(_tables(inspector, schema), wanted[dot + 1 :]) if schema is not None else None
        if table is not None:
            return _select_all(table, schema)

    problem = f"has no table {wanted!r}" if wanted else "name a table or a SELECT after '#'"
    raise InputError(f"{name}: {problem}; its tables are {', '.join(sorted(tables)) or '(none)'}: add '#TABLE'")


def _tables(inspector: sa.Inspector, schema: str | None) -> list[str]:
    tables = [*inspector.get_table_names(schema), *inspector.get_view_names(schema)]
    if inspector.dialect.name == "postgresql":
        tables += inspector.get_materialized_view_names(schema)

    return tables


def _named(known: list[str], wanted: str) -> str | None:
    """The matching name in `known`: exactly as written, without its quotes, or in another case; else None."""
    bare = wanted.strip()
    for opened, closed in ('""', "``", "[]", "''"):
        if len(bare) > 2 and bare[0] == opened and bare[-1] == closed:
            bare = bare[1:-1].replace(closed * 2, closed)
            break

    for name in (wanted, bare):
        if name in known:
            return name

    alike = [name for name in known if name.lower() == bare.lower()]

    return alike[0] if len(alike) == 1 else None


def _select_all(table: str, schema: str | None) -> Any:
    import sqlalchemy as sa

    # Quoted in any case: a name may be a reserved word, or hold spaces and dots.
    quoted = sa.sql.quoted_name(table, quote=True)
    named = sa.table(quoted, schema=None if schema is None else sa.sql.quoted_name(schema, quote=True))

    return sa.select(sa.text("*")).select_from(named)


def _bare_query(wanted: str) -> str | None:
    """The query without enclosing brackets or a final semicolon; None if it is not a query."""
    query = wanted.strip().rstrip(";").strip()
    start = query
    while (comment := _COMMENT.match(start)) is not None:
        start = start[comment.end() :].lstrip()

    if start.startswith("(") and _closes_at_the_end(start):
        return _bare_query(start[1:-1])

    inner = start
    while inner.startswith("("):
        inner = inner[1:].lstrip()
        while (comment := _COMMENT.match(inner)) is not None:
            inner = inner[comment.end() :].lstrip()

    return query if _QUERY.match(inner) else None


def _closes_at_the_end(text: str) -> bool:
    """Whether the bracket that opens the text is closed by its last sign; quoted text and comments do not count."""
    plain = re.sub(r"'[^']*'|\"[^\"]*\"|--[^\n]*|/\*.*?\*/", lambda found: "x" * len(found[0]), text, flags=re.DOTALL)
    depth = 0
    for i, sign in enumerate(plain):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return i == len(plain) - 1

    return False
