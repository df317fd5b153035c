"""Ids as programs leave them: one user stays one user, or the report says what is mixed; lists of ids in files."""

import sqlite3
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from recotransfer.cli.inputs import filter_of, ids_of
from recotransfer.data import IdMap
from recotransfer.errors import InputError, UnknownIdError
from recotransfer.io.readers import as_known, read_ids, read_interactions, read_items

CATALOGUE = IdMap([1, 2])


def log_of(users, items=None):
    users = pd.Series(users, dtype=object)
    return pd.DataFrame({"user_id": users, "item_id": items if items is not None else [1] * len(users)})


@pytest.mark.parametrize(
    ("cells", "ids"),
    [
        ([5, 5.0, Decimal(5), np.int64(5)], [5]),
        ([Decimal("5.00"), None, Decimal(6)], [5, 6]),
        (["5.0", "6.0", None], ["5", "6"]),
        (["5.0", "6"], ["5", "6"]),
        (["1.0", "1.5"], ["1.0", "1.5"]),
        ([" 5", "5", "6 "], ["5", "6"]),
        (["005", "5"], ["005", "5"]),
        (["nan", "None", "N/A", "null", "NaN", "<NA>", "u"], ["u"]),
        ([float("nan"), 5.0, 6.0], [5, 6]),
        ([True, "x"], [True, "x"]),
    ],
    ids=str,
)
def test_what_programs_did_to_ids_is_undone(cells, ids):
    read = read_interactions(log_of(cells))
    assert read.data.users.ids.tolist() == ids
    assert [type(i) for i in read.data.users.ids.tolist()] == [type(i) for i in ids]


def test_words_for_a_missing_id_are_no_user(tmp_path):
    (tmp_path / "none.csv").write_text("user_id,item_id\nNone,1\nN/A,2\nu,2\n,1\n")
    read = read_interactions(tmp_path / "none.csv", items=CATALOGUE)
    assert read.data.users.ids.tolist() == ["u"]
    assert [(d.reason, d.rows, d.example) for d in read.report.dropped] == [("missing user id", (2, 3, 5), "'None'")]
    kept = read_interactions(log_of(["nan", "u"]), users=IdMap(["nan"]))
    assert kept.data.users.ids.tolist() == ["nan", "u"]


def test_ids_of_two_types_in_one_column_are_named():
    report = read_interactions(log_of([7, "7", "x"])).report
    assert any(
        "'user_id': ids are of mixed types" in n and "7 and '7' count as different ids" in n for n in report.notes
    )
    report = read_items(pd.DataFrame({"item_id": pd.Series([1, "1"], dtype=object), "title": ["a", "b"]})).report
    assert any("'item_id': ids are of mixed types" in note for note in report.notes)
    assert any("leading zeros" in note for note in read_interactions(log_of(["5", "005"])).report.notes)


@pytest.mark.parametrize(
    "cells", [[1, "1", "2"], ["1", "2", "2"], [1.0, 2.0, None], ["1.0", "2.0", "2.0"], [Decimal(1), 2, 2]]
)
def test_a_log_in_another_type_meets_the_catalogue(cells):
    read = read_interactions(log_of(list("uvw"), pd.Series(cells, dtype=object)), items=CATALOGUE)
    assert set(read.data.items.take(read.data.item).tolist()) <= {1, 2}
    assert len(read.data) == pd.Series(cells, dtype=object).notna().sum()


def test_an_update_in_another_type_meets_the_users_of_the_fit():
    for known, new in (
        (["5", "6"], [5, 7]),
        ([5, 6], ["5", "7"]),
        (["5"], [Decimal(5), Decimal(7)]),
        ([5, 6], [5.0, 7.0]),
    ):
        users = read_interactions(log_of(new), users=IdMap(known)).data.users
        assert users.ids.tolist() == [*known, type(known[0])(7)]


def test_ids_that_no_conversion_can_join_are_said():
    report = read_interactions(log_of([5, "bob"]), users=IdMap([5])).report
    assert any(
        "ids are of mixed types: known ones are int such as 5" in note and "'bob'" in note for note in report.notes
    )
    with pytest.raises(InputError, match=r"none of its 1 ids is known.*leading zeros"):
        read_interactions(log_of(["u"], ["002"]), items=CATALOGUE)


# -- lists of ids in files ---------------------------------------------------------------------------------------------

ITEMS = IdMap([f"I{i}" for i in range(20)])
USERS = IdMap([f"U{i}" for i in range(5)])


@pytest.mark.parametrize(
    "text",
    [
        "I7\nI8\nI9\n",
        "I7\r\nI8\r\nI9",
        "\ufeffI7\nI8\nI9\n",
        '"I7"\n"I8"\n"I9"\n',
        "item_id\nI7\nI8\nI9\n",
        "blocked items\nI7\nI8\nI9\n",
        "SKU\nI7\nI8\nI9\n",
        "ids\nI7\nI8\nI9\n",
        "\n I7\nI8\n\nI9\nI7\n",
        "item_id,why\nI7,a\nI8,b\nI9,c\n",
    ],
)
def test_lists_of_ids_are_read_with_and_without_a_header(tmp_path, text):
    (tmp_path / "deny.txt").write_text(text)
    assert read_ids(tmp_path / "deny.txt", role="item", known=ITEMS).tolist() == ["I7", "I8", "I9"]


def test_every_flag_takes_a_list_without_a_header(tmp_path):
    (tmp_path / "items.txt").write_text("I7\nI8\n")
    (tmp_path / "users.txt").write_text("U0\n")
    assert ids_of(tmp_path / "users.txt", "user", USERS).tolist() == ["U0"]
    for flag in ("allow", "deny"):
        options = {"allow": None, "deny": None, "where": None, flag: tmp_path / "items.txt"}
        assert list(getattr(filter_of(options, ITEMS), flag)) == ["I7", "I8"]


def test_numbers_without_a_header_are_ids(tmp_path):
    (tmp_path / "users.csv").write_text("100\n101\n")
    for known in (IdMap([100, 101]), IdMap(["100", "101"])):
        got = read_ids(tmp_path / "users.csv", role="user", known=known)
        assert got.tolist() == known.ids.tolist()


@pytest.mark.parametrize("text", ["I99\nI7\n", "I7\nI99\n", "I99\n"])
def test_an_unknown_id_is_named_even_on_the_first_line(tmp_path, text):
    (tmp_path / "deny.txt").write_text(text)
    with pytest.raises(UnknownIdError, match="I99"):
        read_ids(tmp_path / "deny.txt", role="item", known=ITEMS)


def test_lists_without_ids_are_refused(tmp_path):
    (tmp_path / "users.txt").write_text("user_id\n")
    with pytest.raises(InputError, match="no rows"):
        read_ids(tmp_path / "users.txt", role="user", known=USERS)
    (tmp_path / "users.txt").write_text("user_id,age\n,3\n")
    with pytest.raises(InputError, match="no user id is left"):
        read_ids(tmp_path / "users.txt", role="user", known=USERS)


def test_lists_come_from_tables_too(tmp_path):
    frame = pd.DataFrame({"item": ["I7", "I8"]})
    frame.to_parquet(tmp_path / "t.parquet")
    with sqlite3.connect(tmp_path / "t.db") as base:
        frame.to_sql("deny", base, index=False)
    for source in (frame, tmp_path / "t.parquet", f"sqlite:///{tmp_path}/t.db#deny"):
        assert read_ids(source, role="item", known=ITEMS).tolist() == ["I7", "I8"]


def test_words_of_the_command_line_become_known_ids():
    assert as_known(["1", "2", "1"], CATALOGUE).tolist() == [1, 2]
    with pytest.raises(UnknownIdError, match="unknown ids"):
        as_known(["3"], CATALOGUE)
