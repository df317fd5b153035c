"""Which column is what: the id by name and by use, and what the report says of columns that are not used."""

import numpy as np
import pandas as pd
import pytest

from recotransfer.data import IdMap
from recotransfer.errors import InputError
from recotransfer.io.readers import read_interactions, read_items

TITLES = ["a red mug", "a blue mug", "a green mug"]


@pytest.mark.parametrize(
    ("columns", "key"),
    [
        ({"isbn": ["978-1", "978-2", "978-4"], "item": [0, 1, 2]}, "item"),
        ({"sku": ["x", "y", "z"], "item_id": [0, 1, 2]}, "item_id"),
        ({"item": [3, 4, 5], "item_id": [0, 1, 2]}, "item_id"),
        ({"item": TITLES, "id": [0, 1, 2]}, "id"),
        ({"item": ["mug", "mug", "cup"], "sku": ["x", "y", "z"]}, "sku"),
        ({"product": TITLES, "id": [0, 1, 2]}, "id"),
        ({"id": [3, 4, 5], "asin": ["x", "y", "z"]}, "asin"),
        ({"asin": ["x", "y", "z"], "upc": ["1", "2", "3"]}, "asin"),
    ],
    ids=str,
)
def test_the_roles_own_name_comes_first_then_synonyms(columns, key):
    read = read_items(pd.DataFrame(columns | {"title": TITLES}))
    assert read.data.ids.ids.tolist() == list(columns[key])
    assert f"item = {key!r}" in read.report.notes
    (other,) = set(columns) - {key}
    assert any(f"was read from {key!r}" in note and repr(other) in note for note in read.report.notes)


CATALOGUE = pd.DataFrame(
    {"item_id": [0, 1, 2], "isbn": ["978-1", "978-2", "978-4"], "ean": ["11", "12", "13"], "title": TITLES}
)


@pytest.mark.parametrize(
    ("log", "key"),
    [
        ({"item_id": [0, 1]}, "item_id"),
        ({"item_id": ["978-1", "978-4"]}, "isbn"),
        ({"book_id": ["978-1", "978-4"]}, "isbn"),
        ({"item": [11, 13]}, "ean"),
        ({"item": ["0", "1.0"]}, "item_id"),
        ({"item_id": ["r1", "r2"], "isbn": ["978-1", "978-2"]}, "isbn"),
        ({"item_id": ["what", "else"]}, "item_id"),
    ],
    ids=str,
)
def test_the_column_that_the_log_uses_beats_a_better_name(tmp_path, log, key):
    events = pd.DataFrame({"user_id": ["u", "v"], **log})
    events.to_csv(tmp_path / "log.csv", index=False)
    CATALOGUE.to_csv(tmp_path / "items.csv", index=False)
    for source, used in ((CATALOGUE, events), (tmp_path / "items.csv", tmp_path / "log.csv")):
        read = read_items(source, events=used)
        assert f"item = {key!r}" in read.report.notes
        if "what" not in str(log):
            assert len(read_interactions(used, items=read.data.ids).data) == 2


def test_a_given_column_is_taken_whatever_the_log_uses():
    events = pd.DataFrame({"user": ["u"], "item": ["978-1"]})
    assert read_items(CATALOGUE, columns={"item": "item_id"}, events=events).data.ids.ids.tolist() == [0, 1, 2]
    wide = events.assign(code=[2])
    read = read_items(CATALOGUE, events=wide, event_columns={"item": "code"})
    assert read.data.ids.ids.tolist() == [0, 1, 2]


def test_the_log_is_read_for_the_choice_only_where_there_is_one(monkeypatch):
    from recotransfer.io import readers

    calls = []
    monkeypatch.setattr(readers, "distinct_ids", lambda values: calls.append(1))
    read_items(CATALOGUE[["item_id", "title"]], events="no such file.csv")
    assert not calls


def test_of_several_columns_of_a_log_the_one_that_the_catalogue_knows_is_taken():
    log = pd.DataFrame({"user_id": ["u", "v"], "isbn": ["978-1", "978-2"], "item_id": ["x", "y"]})
    read = read_interactions(log, items=IdMap(["978-1", "978-2"]))
    assert read.data.item.tolist() == [0, 1]
    assert any("read from 'isbn', whose ids occur in the other table" in note for note in read.report.notes)
    assert read_interactions(log, items=IdMap(["x", "y"])).data.item.tolist() == [0, 1]
    both = log.drop(columns="item_id").assign(sku=["x", "y"])
    assert read_interactions(both, items=IdMap(["x", "y"])).data.item.tolist() == [0, 1]
    with pytest.raises(InputError, match="the item column could be 'isbn' or 'sku'"):
        read_interactions(both)


def test_columns_that_nobody_reads_and_times_that_were_not_recognised_are_reported():
    frame = pd.DataFrame(
        {
            "customer_id": ["u", "v"],
            "article_id": ["a", "b"],
            "t_dat": pd.to_datetime(["2024-01-01", "2024-01-02"]),
            "plays": [500, 3],
            "quantity": [9, 1],
        }
    )
    notes = read_interactions(frame).report.notes
    assert any("no time column was found" in n and "'t_dat'" in n and "--event-column time=t_dat" in n for n in notes)
    (unread,) = [n for n in notes if "unused columns" in n]
    assert "t_dat, plays, quantity" in unread
    assert 'columns={"weight": ...}' in unread
    named = read_interactions(frame, columns={"time": "t_dat", "weight": "plays"})
    assert named.data.weight.tolist() == [500, 3]
    assert "unused columns: quantity" in named.report.notes
    assert not any("no time column" in n for n in named.report.notes)


@pytest.mark.parametrize(
    ("name", "cells", "said"),
    [
        ("t_dat", ["2024-01-01", "2024-01-02"], True),
        ("bought", ["3.4.2024", "25.12.2024"], True),
        ("created_ts", [1704067200, 1704153600], True),
        ("when", pd.to_timedelta([1, 2], "D"), False),
        ("note", ["on 2024-01-01", "late"], False),
        ("shop", [1704067200, 1704153600], False),
    ],
)
def test_columns_that_may_hold_times_are_told_from_others(name, cells, said):
    frame = pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"], name: cells})
    notes = read_interactions(frame).report.notes
    assert any("no time column was found" in n and repr(name) in n for n in notes) == said
    assert any("unused columns" in n and name in n for n in notes)


def test_a_log_of_known_columns_alone_has_nothing_to_report():
    frame = pd.DataFrame({"user": ["u"], "item": ["a"], "time": [1.7e9]})
    assert not any("unused columns" in n or "no time column" in n for n in read_interactions(frame).report.notes)
    numbered = frame.assign(**{"Unnamed: 0": np.arange(1)})
    assert not any("unused columns" in n for n in read_interactions(numbered).report.notes)
