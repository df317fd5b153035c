"""Recommendations into Parquet and SQL: whole or not at all."""

import sqlite3
import uuid

import numpy as np
import pandas as pd
import pytest

from recotransfer.data import IdMap, Reason, Recommendations
from recotransfer.errors import InputError, MissingExtraError
from recotransfer.io.tables import read_table
from recotransfer.io.writers import database_name, write_recommendations

KEYS = [uuid.UUID(int=i) for i in (1, 2)]


def lists(users=("u", "v"), items=(10, 20, 30), reason=False):
    reasons = np.full((2, 2), Reason((("a", 0.7),), {"text": 1.0}), dtype=object) if reason else None
    return Recommendations(
        np.array(users, dtype=object) if isinstance(users[0], (str, uuid.UUID)) else np.array(users),
        IdMap(items),
        np.array([[2, 0], [1, -1]]),
        np.array([[0.5, 0.25], [1.0, -np.inf]], np.float32),
        reasons,
    )


def rows_of(recommendations):
    return recommendations.to_frame().astype(object).to_numpy().tolist()


@pytest.fixture(params=["recs.parquet", "recs", "sqlite:///{}/shop.db#recs", "sqlite:///{}/shop.db#my.recs of today"])
def target(request, tmp_path):
    """A file, a folder, a table and a table of a strange name."""
    name = request.param
    return name.format(tmp_path) if "://" in name else tmp_path / name


@pytest.mark.parametrize("reason", [False, True])
def test_what_is_written_is_read_again(target, reason):
    assert write_recommendations(lists(reason=reason), target) == 3
    back = read_table(target)
    assert list(back) == ["user", "item", "rank", "score", *(["reason"] if reason else [])]
    assert back.astype(object).to_numpy().tolist() == rows_of(lists(reason=reason))
    assert back["item"].dtype == np.int64


def test_several_lists_are_written_one_after_the_other_and_replace_what_was_there(target):
    assert write_recommendations(iter([lists(), lists(users=("w", "x"))]), target) == 6
    assert read_table(target)["user"].tolist() == ["u", "u", "v", "w", "w", "x"]
    assert write_recommendations(lists(users=("y", "z")), target) == 3
    assert read_table(target)["user"].tolist() == ["y", "y", "z"]


def test_an_error_on_the_way_leaves_what_was_there(target, tmp_path):
    def failing():
        yield lists(users=("w", "x"))
        raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed"):
        write_recommendations(failing(), target)
    left = [p.name for p in tmp_path.iterdir() if p.name != "shop.db"]
    assert not left
    if "://" in str(target):
        with pytest.raises(InputError, match="has no table"):
            read_table(target)

    write_recommendations(lists(), target)
    with pytest.raises(RuntimeError, match="the model failed"):
        write_recommendations(failing(), target)
    assert read_table(target)["user"].tolist() == ["u", "u", "v"]


@pytest.mark.parametrize(
    ("users", "items", "written"),
    [
        ((1, 2), ("007", "8", "9"), [[1, "9"], [1, "007"], [2, "8"]]),
        (KEYS, (1, "a", 2.5), [[str(KEYS[0]), "2.5"], [str(KEYS[0]), "1"], [str(KEYS[1]), "a"]]),
        ((2**60 + 1, 2), (0.5, 1.5, 2.5), [[2**60 + 1, 2.5], [2**60 + 1, 0.5], [2, 1.5]]),
    ],
    ids=["text with zeros", "mixed and UUIDs", "great integers and floats"],
)
def test_ids_keep_their_type_where_a_column_has_it(target, users, items, written):
    write_recommendations(lists(users, items), target)
    assert read_table(target)[["user", "item"]].astype(object).to_numpy().tolist() == written


def test_a_table_of_other_columns_and_files_of_others_are_left_alone(tmp_path):
    url = f"sqlite:///{tmp_path}/shop.db"
    with sqlite3.connect(tmp_path / "shop.db") as base:
        pd.DataFrame({"user": ["u"], "age": [3]}).to_sql("recs", base, index=False)
    with pytest.raises(InputError, match=r"'recs' has the columns user, age, and .* user, item, rank, score; name an"):
        write_recommendations(lists(), f"{url}#recs")
    assert read_table(f"{url}#recs")["age"].tolist() == [3]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="mine holds other files"):
        write_recommendations(lists(), tmp_path / "mine")
    with pytest.raises(InputError, match=r"shop\.db holds other files"):
        write_recommendations(lists(), tmp_path / "shop.db")


@pytest.mark.parametrize(
    ("recommendations", "target", "words"),
    [
        (lists(), "sqlite:///shop.db", ["name a table", "#recs"]),
        (lists(), "sqlite:///shop.db#select 1", ["name a table", "#recs"]),
        (lists(), "sqlite:////no/such/folder/shop.db#recs", ["unable to open", "nothing was written"]),
        (lists(), "nosuchdb://h/d#recs", ["nosuchdb"]),
        (lists(), 7, ["database URL", "7"]),
        (lists().to_frame(), "recs.parquet", ["no recommendations"]),
        (None, "recs.parquet", ["NoneType"]),
        ([], "recs.parquet", ["no recommendations"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch, recommendations, target, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        write_recommendations(recommendations, target)
    for word in words:
        assert word in str(caught.value)
    assert not list(tmp_path.glob("recs*"))


def test_addresses_are_shown_without_their_password():
    try:
        assert database_name("postgresql+psycopg://u:secret@h/d#recs") == "postgresql+psycopg://u:***@h/d#recs"
    except MissingExtraError:
        pytest.skip("psycopg is not installed")
