"""Names of tables, forms of queries and drivers that are missing."""

import importlib.util
import sqlite3

import pytest

from recotransfer.errors import InputError, MissingExtraError
from recotransfer.io.tables import read_table

NAMES = ["with prices", "my.table", "log", "order", "select", "Select All", 'the "best"', "values", "a#b", "äöü", "x:y"]


@pytest.fixture
def shop(tmp_path):
    """A database whose tables hold their own names."""
    with sqlite3.connect(tmp_path / "s.db") as base:
        for name in NAMES:
            quoted = name.replace('"', '""')
            base.execute(f'create table "{quoted}" (user_id, item_id)')
            base.execute(f'insert into "{quoted}" values (?, 2)', (name,))
        base.execute("create view seen as select * from log")
    return f"sqlite:///{tmp_path}/s.db#"


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_any_name_are_read(shop, name):
    assert read_table(shop + name)["user_id"].tolist() == [name]


@pytest.mark.parametrize(
    "wanted",
    [
        "-- note\nselect * from log",
        "/* a note; with\nlines */ SELECT * FROM log;",
        "(select * from log)",
        "((select * from log where item_id in (1, 2)) );",
        "-- one\n-- two\n(select user_id, ')' as sign from log)",
        "with l as (select * from log) select * from l",
        "With\nl AS (select * from log) select * from l",
        "select * from (select * from log) union all select * from log where 0",
        "values ('log', 2)",
        '"log"',
        "[log]",
        "`log`",
        "main.log",
        'main."log"',
        "LOG",
        "seen",
        " log ",
    ],
)
def test_queries_and_names_in_every_usual_form(shop, wanted):
    assert read_table(shop + wanted).iloc[0, 0] == "log"


def test_tables_that_are_not_there_are_named_with_those_that_are(shop):
    with pytest.raises(InputError, match=r"has no table 'main.nix'; its tables are .*with prices"):
        read_table(shop + "main.nix")
    with pytest.raises(InputError, match="name a table or a SELECT"):
        read_table(shop)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://u:secret@h/shop#t", ["mysql", "pip install pymysql", "mysql+pymysql://"]),
        ("mariadb://u:secret@h/shop#t", ["mariadb", "pip install pymysql"]),
        ("oracle://u:secret@h/shop#t", ["oracle", "pip install oracledb"]),
        ("mssql+pyodbc://u:secret@h/shop#t", ["mssql", "pip install pyodbc"]),
        ("snowflake://u:secret@h/shop#t", ["snowflake", "pip install snowflake-sqlalchemy"]),
        ("duckdb:///shop.db#t", ["duckdb", "pip install duckdb-engine"]),
        ("bigquery://project/set#t", ["bigquery", "pip install sqlalchemy-bigquery"]),
        ("clickhouse+native://h/shop#t", ["clickhouse", "pip install clickhouse-sqlalchemy"]),
    ],
)
def test_missing_drivers_are_named_with_their_pip_line(url, words):
    driver = {"mariadb": "pymysql", "mysql": "pymysql", "mssql": "pyodbc"}.get(words[0], words[0])
    if importlib.util.find_spec(driver) is not None:
        pytest.skip(f"{driver} is installed here")
    with pytest.raises(MissingExtraError) as caught:
        read_table(url)
    for word in words:
        assert word in str(caught.value)
    assert "secret" not in str(caught.value)


def test_other_words_for_postgresql_reach_its_driver():
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    for scheme in ("postgres", "postgresql"):
        with pytest.raises(InputError, match=r"postgresql.*check the address"):
            read_table(f"{scheme}://u:secret@127.0.0.1:1/shop#t")
