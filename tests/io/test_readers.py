import gzip
import shutil
import sqlite3
import subprocess
import uuid
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recotransfer.data import IdMap
from recotransfer.data.matching import match_ids
from recotransfer.errors import InputError, MissingExtraError
from recotransfer.io.parsing import parse_flags, parse_numbers, parse_times
from recotransfer.io.readers import read_interactions, read_items
from recotransfer.io.schema import EventWeights, guess_kind
from recotransfer.io.tables import read_table

EVENTS = """customer_id,sku,event_type,timestamp
ann,007,view,2025-01-01T00:00:00Z
bob,008,addtocart,2025-01-02T00:00:00Z
ann,008,Purchase,2025-01-03T00:00:00Z
,008,view,2025-01-03T00:00:00Z
ann,007,view,2025-01-01T00:00:00Z
bob,999,search,2025-01-04T00:00:00Z
bob,007,view,yesterday
"""
ITEMS = """sku,title,price,brand,in_stock,added_at,photo
007,Red shoe,"$1,299.00",Acme,yes,2025-01-01,a.png
008,,cheap,Acme,no,2025-01-02,b.png
007,Again,1.00,Bolt,no,2025-01-03,a.png
009,Blue hat,-3,Bolt,yes,,
"""
DAY = 86400.0
JAN = 1735689600.0  # 2025-01-01 UTC


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def table_of(log) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user": log.users.take(log.user),
            "item": log.items.take(log.item),
            "weight": log.weight,
            "time": log.time,
            "kind": None if log.kind is None else [log.kinds[k] for k in log.kind],
        }
    )


def same(one, other) -> bool:
    arrays = ("user", "item", "weight", "time", "kind")
    equal = all(np.array_equal(np.asarray(getattr(one, a)), np.asarray(getattr(other, a))) for a in arrays)
    return equal and one.users == other.users and one.items == other.items and one.kinds == other.kinds


def refused(words: list[str], call, *args, error=InputError, **options) -> str:
    with pytest.raises(error) as caught:
        call(*args, **options)
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"
    return message


# --- interactions ---------------------------------------------------------------------------------------------------


def test_events_become_weighted_timed_interactions_and_every_lost_row_is_reported(tmp_path):
    path = write(tmp_path, "events.csv", EVENTS)
    read = read_interactions(path, items=IdMap(["007", "008", "010"]))
    expected = pd.DataFrame(
        {
            "user": ["ann", "bob", "ann"],
            "item": ["007", "008", "008"],
            "weight": np.array([1, 3, 5], np.float32),
            "time": [JAN, JAN + DAY, JAN + 2 * DAY],
            "kind": ["view", "cart", "purchase"],
        }
    )
    pd.testing.assert_frame_equal(table_of(read.data), expected, check_dtype=False)
    assert read.data.items.ids.tolist() == ["007", "008", "010"]
    report = read.report
    assert [(d.reason, d.rows, d.column) for d in report.dropped] == [
        ("missing user id", (5,), "customer_id"),
        ("unreadable time", (8,), "timestamp"),
        ("unknown item", (7,), "sku"),
        ("duplicate row", (6,), None),
    ]
    assert (report.rows_read, report.rows_kept, report.numbering) == (7, 3, "line")
    for word in (
        "events.csv: 7 rows read, 3 kept",
        "line 8",
        "'yesterday'",
        "ISO 8601",
        "'999'",
        "unknown_items='keep'",
    ):
        assert word in str(report)
    assert report.to_json()["dropped"][2]["rows"] == [7]


def test_unknown_items_may_be_kept_and_extend_the_catalogue(tmp_path):
    path = write(tmp_path, "events.csv", EVENTS)
    read = read_interactions(path, items=IdMap(["008"]), users=IdMap(["zoe", "bob"]), unknown_items="keep")
    assert read.data.items.ids.tolist() == ["008", "007", "999"]
    assert read.data.users.ids.tolist() == ["zoe", "bob", "ann"]
    assert read.data.user.tolist() == [2, 1, 2, 1]
    assert read.data.item.tolist() == [1, 0, 0, 2]


def test_every_source_of_the_same_content_gives_equal_carriers(tmp_path):
    path = write(tmp_path, "events.csv", EVENTS)
    frame = read_table(path)
    frame.to_parquet(tmp_path / "events.parquet")
    (tmp_path / "shards").mkdir()
    frame.iloc[:3].to_parquet(tmp_path / "shards" / "part-0.parquet")
    frame.iloc[3:].to_parquet(tmp_path / "shards" / "part-1.parquet")
    with sqlite3.connect(tmp_path / "shop.db") as db:
        frame.to_sql("events", db, index=False)
    (tmp_path / "events.csv.gz").write_bytes(gzip.compress(EVENTS.encode()))
    write(tmp_path, "events.tsv", EVENTS.replace(",", "\t"))
    write(tmp_path, "semi.csv", "\ufeff" + EVENTS.replace(",", ";").replace("\n", "\r\n"))
    url = f"sqlite:///{tmp_path}/shop.db"
    first = read_interactions(path)
    assert len(first.data) == 4
    for source in [
        frame,
        frame.astype(object).where(frame.notna(), None),
        frame.astype("category"),
        frame.set_index("customer_id"),
        tmp_path / "events.parquet",
        tmp_path / "shards",
        tmp_path / "events.csv.gz",
        str(tmp_path / "events.tsv"),
        tmp_path / "semi.csv",
        f"{url}#events",
        f"{url}#SELECT customer_id AS user, sku, event_type, timestamp FROM events WHERE sku LIKE '%0%' OR 1",
    ]:
        other = read_interactions(source)
        assert same(first.data, other.data), source
        assert [d.reason for d in other.report.dropped] == [d.reason for d in first.report.dropped]


RATINGS = pd.DataFrame({"userId": [1, 1, 2, 2], "movieId": [10, 20, 10, 30], "rating": [4.0, 2.0, None, 5.0]})


@pytest.mark.parametrize(
    ("events", "weights", "lost"),
    [
        (EventWeights(), [1, 1, 1, 1], []),
        (EventWeights(rating_threshold=4), [1, 1], ["missing rating", "rating below 4"]),
        (EventWeights(rating_as_weight=True), [4, 2, 5], ["missing rating"]),
        (EventWeights(rating_threshold=3, rating_as_weight=True), [4, 5], ["missing rating", "rating below 3"]),
    ],
)
def test_ratings_by_threshold_or_as_weights(events, weights, lost):
    read = read_interactions(RATINGS, events=events)
    assert read.data.weight.tolist() == weights
    assert [d.reason for d in read.report.dropped] == lost
    assert read.data.time is None
    assert read.data.kind is None


def test_a_kind_of_weight_zero_is_left_out_and_given_weights_join_the_usual_ones():
    frame = pd.DataFrame(
        {"user": list("abcd"), "item": list("xyxy"), "event": ["view", "wish_list", "Order", "remove"]}
    )
    read = read_interactions(frame, events=EventWeights({"wishlist": 2, "remove": 0, "purchase": 7}))
    assert read.data.weight.tolist() == [1, 2, 7]
    assert read.data.kinds == ("view", "purchase", "wishlist")
    assert [(d.reason, d.rows) for d in read.report.dropped] == [("weight of 0 or less", (4,))]


@pytest.mark.parametrize(
    ("repeats", "rows"),
    [
        ("all", [("a", "x", 5, 3, "purchase"), ("a", "x", 1, 2, "view"), ("a", "y", 1, 1, "view")]),
        ("sum", [("a", "x", 6, 3, "purchase"), ("a", "y", 1, 1, "view")]),
        ("last", [("a", "x", 5, 3, "purchase"), ("a", "y", 1, 1, "view")]),
    ],
)
def test_repeated_events(repeats, rows):
    frame = pd.DataFrame(
        {"user": ["a"] * 4, "item": list("xxyx"), "event": ["buy", "view", "view", "buy"], "time": [3, 2, 1, 3]}
    )
    read = read_interactions(frame, events=EventWeights(repeats=repeats))
    assert (
        list(table_of(read.data)[["user", "item", "weight", "time", "kind"]].itertuples(index=False, name=None)) == rows
    )
    assert read.report.rows_read == read.report.rows_kept + sum(d.count for d in read.report.dropped)


def test_equal_rows_without_times_are_kept_and_noted():
    frame = pd.DataFrame({"user": ["a", "a"], "item": ["x", "x"]})
    read = read_interactions(frame)
    assert len(read.data) == 2
    assert "without times" in str(read.report)


def test_ids_keep_their_type_and_integers_with_gaps_stay_integers(tmp_path):
    key = uuid.uuid4()
    for ids in ([3, 1], ["007", "7"], [key, uuid.uuid4()], [(1, 2), (1, 3)], [1, "1"], [2**60 + 1, 2**60 + 3]):
        frame = pd.DataFrame({"user": pd.Series(ids, dtype=object), "item": pd.Series(ids, dtype=object)})
        assert list(read_interactions(frame).data.items.ids) == ids
    gaps = pd.DataFrame({"user": [1.0, None, 3.0], "item": pd.Series([2**60 + 1, 2, 3], dtype="Int64")})
    gaps.to_parquet(tmp_path / "gaps.parquet")
    for source in (gaps, tmp_path / "gaps.parquet"):
        data = read_interactions(source).data
        assert data.users.ids.tolist() == [1, 3]
        assert data.items.ids.tolist() == [2**60 + 1, 3]
        assert data.users.ids.dtype == np.int64


def test_large_integer_ids_with_gaps_survive_sql_and_parquet(tmp_path):
    frame = pd.DataFrame({"user": pd.Series([2**60 + 1, None], dtype="Int64"), "item": ["a", "b"]})
    frame.to_parquet(tmp_path / "t.parquet")
    with sqlite3.connect(tmp_path / "t.db") as db:
        frame.to_sql("t", db, index=False)
    for source in (tmp_path / "t.parquet", f"sqlite:///{tmp_path}/t.db#t"):
        assert read_interactions(source).data.users.ids.tolist() == [2**60 + 1]


@pytest.mark.parametrize(
    ("known", "given", "positions"),
    [
        ([10, 20], ["20", "10", "30"], [1, 0]),
        (["10", "20"], [20, 10, 30], [1, 0]),
        (["10", "20"], ["20.0", "10.0"], [1, 0]),
        ([uuid.UUID(int=1), uuid.UUID(int=2)], [str(uuid.UUID(int=2))], [1]),
        ([str(uuid.UUID(int=1))], [uuid.UUID(int=1)], [0]),
    ],
)
def test_ids_of_another_type_are_converted_when_all_convert_exactly(known, given, positions):
    frame = pd.DataFrame({"user": ["u"] * len(given), "item": pd.Series(given, dtype=object)})
    read = read_interactions(frame, items=IdMap(known))
    assert read.data.item.tolist() == positions
    assert any("converted" in note for note in read.report.notes)


def test_inexact_conversions_are_never_made():
    assert match_ids(["007", "8"], IdMap([7, 8])).ids.tolist() == ["007", 8]
    assert match_ids(["1.5"], IdMap([1])).ids.tolist() == ["1.5"]
    assert match_ids(["no uuid"], IdMap([uuid.UUID(int=1)])).ids.tolist() == ["no uuid"]


# --- items ----------------------------------------------------------------------------------------------------------


def test_items_with_every_kind_of_column(tmp_path):
    path = write(tmp_path, "items.csv", ITEMS)
    (tmp_path / "a.png").write_bytes(b"png")
    read = read_items(path)
    items = read.data
    assert items.ids.ids.tolist() == ["007", "008", "009"]
    assert items.kinds == {"title": "text", "price": "number", "brand": "category", "photo": "image"}
    assert items.columns["title"].tolist() == ["Red shoe", None, "Blue hat"]
    np.testing.assert_array_equal(items.columns["price"], [1299.0, np.nan, np.nan])
    assert items.columns["in_stock"].tolist() == [True, False, True]
    assert items.columns["in_stock"].dtype == bool
    assert items.columns["added_at"].tolist()[:2] == [
        pd.Timestamp("2025-01-01", tz=UTC),
        pd.Timestamp("2025-01-02", tz=UTC),
    ]
    assert items.columns["photo"].tolist() == [str(tmp_path / "a.png"), None, None]
    assert [(d.reason, d.rows, d.column, d.cells) for d in read.report.dropped] == [
        ("duplicate item id", (4,), "sku", False),
        ("not a number", (3,), "price", True),
        ("negative price", (5,), "price", True),
        ("image file not found", (3,), "photo", True),
    ]
    assert (read.report.rows_read, read.report.rows_kept) == (4, 3)
    assert "'cheap'" in str(read.report)


def test_kinds_and_the_image_folder_can_be_set(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"png")
    path = write(tmp_path, "items.csv", ITEMS)
    kinds = {"brand": "text", "price": "category"}
    items = read_items(path, kinds=kinds, image_root=tmp_path / "pictures", columns={"item": "sku"}).data
    assert items.kinds["brand"] == "text"
    assert items.columns["price"].tolist() == ["$1,299.00", "cheap", "-3"]
    assert items.columns["photo"].tolist()[0] == str(tmp_path / "pictures" / "a.png")


def test_items_are_equal_from_every_source(tmp_path):
    path = write(tmp_path, "items.csv", "sku,title,price,brand\n007,Red shoe,12.5,Acme\n008,,3,Bolt\n009,Hat,,Acme\n")
    frame = read_table(path)
    frame.to_parquet(tmp_path / "items.parquet")
    typed = frame.assign(price=[12.5, 3, None])
    with sqlite3.connect(tmp_path / "shop.db") as db:
        typed.to_sql("items", db, index=False)
    first = read_items(path).data
    for source in (frame, typed, tmp_path / "items.parquet", f"sqlite:///{tmp_path}/shop.db#items"):
        other = read_items(source).data
        pd.testing.assert_frame_equal(first.columns, other.columns)
        assert first.ids == other.ids
        assert first.kinds == other.kinds


def test_lists_bytes_and_web_addresses():
    frame = pd.DataFrame(
        {
            "id": [1, 2],
            "genres": [["Drama", "Comedy"], None],
            "image": [b"\xff\xd8\xff0", None],
            "photo": ["https://x/a.jpg", "https://x/b.jpg"],
            "imdb_id": [5, 6],
            "vector": [np.ones(2), None],
        }
    )
    read = read_items(frame)
    assert read.data.kinds == {"genres": "category", "image": "image"}
    assert read.data.columns["genres"].tolist() == ["Drama|Comedy", None]
    assert read.data.columns["image"].tolist() == [b"\xff\xd8\xff0", None]
    assert "URLs" in str(read.report)
    assert "kept, but not used as content: photo, imdb_id, vector" in read.report.notes


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("productDisplayName", ["Red shoe"] * 30, "text"),
        ("articleType", ["Shirts", "Jeans"] * 15, "category"),
        ("manufacturer_id", ["69", "70"] * 15, "category"),
        ("ean", [str(i) for i in range(30)], None),
        ("year", [2011, 2012] * 15, "number"),
        ("cost", ["1,50 €", "2,00 €"], "number"),
        ("fabric", ["wool", "silk"] * 15, "category"),
        ("blurb", [f"A story of {i} people" for i in range(30)], "text"),
        ("cover", [f"c/{i}.JPG" for i in range(3)], "image"),
        ("in_stock", [0, 1, 1], "flag"),
        ("fresh", ["Yes", "no", None], "flag"),
        ("release_date", ["2024-01-01", "2024-05-05"], "date"),
        ("nothing", [None, None], None),
    ],
)
def test_kinds_are_guessed_from_name_and_values(name, values, kind):
    assert guess_kind(name, pd.Series(values), len(values)) == kind


def test_flags_with_gaps_stay_gaps():
    flags = parse_flags(pd.Series(["yes", None, "FALSE"], dtype=object))
    assert flags.tolist() == [True, pd.NA, False]
    assert parse_flags(pd.Series(["f", "f"])) is None


# --- times and numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "2025-01-01", "2025-01-01T00:00:00Z", "2025-01-01 01:00:00+01:00", "20250101", 20250101, "Jan 1, 2025",
        "2025/01/01", "1 January 2025", "01.01.2025", "01/01/2025 00:00", JAN, int(JAN), JAN * 1e3, int(JAN) * 10**9,
        str(int(JAN * 1e6)), datetime(2025, 1, 1), datetime(2025, 1, 1, tzinfo=UTC), date(2025, 1, 1),
        np.datetime64("2025-01-01"),
    ],
)  # fmt: skip
def test_one_moment_in_every_usual_form(value):
    assert parse_times(pd.Series([value])).seconds.tolist() == [JAN]
    assert parse_times(pd.Series([value, None], dtype=object)).seconds.tolist()[0] == JAN


def test_mixed_forms_orders_and_unreadable_times():
    times = parse_times(pd.Series(["2025-01-01", "Jan 2, 2025 10:00", "1735689600", None, "10:30", "soon"]))
    np.testing.assert_array_equal(times.seconds[:4], [JAN, JAN + DAY + 36000, JAN, np.nan])
    assert times.bad.tolist() == [False, False, False, False, True, True]
    order = parse_times(pd.Series([3, 1, 2]))
    assert order.seconds.tolist() == [3, 1, 2]
    assert "order" in order.notes[0]
    assert parse_times(pd.Series(["1", "2"]), "ms").seconds.tolist() == [0.001, 0.002]


def test_day_and_month_are_told_apart_or_asked_for():
    day_first = parse_times(pd.Series(["03/04/2025", "25/12/2025"]))
    assert day_first.seconds[0] == pd.Timestamp("2025-04-03", tz=UTC).timestamp()
    month_first = parse_times(pd.Series(["03/04/2025", "12/25/2025"]))
    assert month_first.seconds[0] == pd.Timestamp("2025-03-04", tz=UTC).timestamp()
    refused(["03/04/2025", "time_format="], parse_times, pd.Series(["03/04/2025"]))
    refused(["25/12/2025", "12/25/2025", "ISO 8601"], parse_times, pd.Series(["25/12/2025", "12/25/2025"]))
    given_form = parse_times(pd.Series(["03/04/2025"]), "%d/%m/%Y")
    assert given_form.seconds[0] == pd.Timestamp("2025-04-03", tz=UTC).timestamp()


@settings(deadline=None)
@given(st.lists(st.datetimes(datetime(1975, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)), min_size=1))
def test_iso_times_and_epochs_round_trip(moments):
    seconds = [m.timestamp() for m in moments]
    np.testing.assert_allclose(parse_times(pd.Series([m.isoformat() for m in moments])).seconds, seconds, atol=1e-5)
    micro = pd.Series([round(s * 1e6) for s in seconds])
    if all(abs(s) > 1e9 for s in seconds):
        np.testing.assert_allclose(parse_times(micro).seconds, seconds, atol=1e-5)


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["$1,299.00", "15"], [1299, 15]),
        (["1.299,50 €", "1.000"], [1299.5, 1000]),
        (["12,5", "3"], [12.5, 3]),
        (["US$ 5", "CHF 1'200.50", "-2"], [5, 1200.5, -2]),
        (["1 299", "1e3"], [1299, 1000]),
        (["173 1 162", "inf", "$1-$2", "n/a"], [np.nan] * 4),
    ],
)
def test_numbers_as_people_write_them(cells, numbers):
    values, bad = parse_numbers(pd.Series(cells))
    np.testing.assert_array_equal(values, numbers)
    assert bad.tolist() == [np.isnan(n) and c != "n/a" for n, c in zip(numbers, cells, strict=True)]


@settings(deadline=None)
@given(st.lists(st.floats(-1e9, 1e9).map(lambda x: round(x, 2)), min_size=1))
def test_prices_round_trip_through_thousands_separators(prices):
    values, bad = parse_numbers(pd.Series([f"${p:,.2f}" for p in prices]))
    np.testing.assert_allclose(values, prices)
    assert not bad.any()


# --- properties of whole reads --------------------------------------------------------------------------------------

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=12))
def test_any_text_survives_csv_and_row_numbers_are_true(tmp_path, rows):
    frame = pd.DataFrame(rows, columns=["user", "item"])
    frame.to_csv(tmp_path / "t.csv", index=False, quoting=1)
    got = read_table(tmp_path / "t.csv")
    empty = ["", "NULL", "null", "NaN", "nan", "\\N", "<NA>"]
    assert got.astype(object).where(got.notna(), None).to_numpy().tolist() == [
        [None if cell in empty else cell for cell in row] for row in rows
    ]
    text = (tmp_path / "t.csv").read_text("utf-8").split("\n")
    try:
        report = read_interactions(tmp_path / "t.csv").report
    except InputError:
        return  # nothing was left
    assert report.rows_read == len(rows) == report.rows_kept + sum(d.count for d in report.dropped)
    if report.numbering == "line":
        assert all(text[line - 1].startswith('"') for d in report.dropped for line in d.rows)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", b"", ["empty.csv", "is empty", "header"]),
        ("head.csv", b"user,item\n", ["head.csv", "no rows"]),
        ("twice.csv", b"user,item,item\na,b,c\n", ["twice.csv", "'item'", "more than once", "rename"]),
        ("latin.csv", b"user,item\na,b\nc,caf\xe9\n", ["latin.csv, line 3", "0xe9", "not UTF-8", "save the file"]),
        ("wide.csv", b"user,item\na,b\nc,d,e\n", ["wide.csv, line 3", "3 cells", "header has 2", "quote the cells"]),
        ("quote.csv", b'user,item\na,b\nc,"d\ne,f\n', ["quote.csv, line 3", "never closed"]),
        ("quote2.csv", b'user,item\na,b\n"c,d\ne,f\n', ["quote2.csv, line 3", "close the quotes"]),
        ("nohead.csv", b"1,2\n3,4\n", ["nohead.csv, line 1", "looks like data", "header line"]),
        ("book.csv", b"PK\x03\x04abc", ["book.csv", "Excel", "CSV UTF-8"]),
        ("zipped.csv", gzip.compress(b"user,item\na,b\n", mtime=0), ["zipped.csv", "gzip", ".gz"]),
        ("plain.csv.gz", b"user,item\na,b\n", ["plain.csv.gz", "not gzip"]),
        ("cut.csv.gz", gzip.compress(b"user,item\na,b\n" * 99, mtime=0)[:-9], ["cut.csv.gz", "truncated"]),
        ("utf16.csv", "user,item\na,b\n".encode("utf-16"), ["utf16.csv", "UTF-16"]),
        ("page.csv", b"<!doctype html><html>", ["page.csv", "web page", "download"]),
        ("mac.csv", b"user,item\ra,b\r", ["mac.csv", "carriage returns", "line ends"]),
        ("zero.csv", b"user,item\na,\0\n", ["zero.csv", "zero bytes"]),
        ("t.parquet", b"PAR1 cut", ["t.parquet", "not a complete Parquet file", "again"]),
        ("t.xlsx", b"PK", ["t.xlsx", "unsupported file type", "save a spreadsheet as CSV"]),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_with_file_line_and_remedy(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    refused(words, read_interactions, tmp_path / name)


def test_missing_files_folders_and_shards_are_refused(tmp_path):
    refused(["no.csv", "does not exist"], read_table, tmp_path / "no.csv")
    refused(["holds no .parquet"], read_table, tmp_path)
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "0.parquet")
    pd.DataFrame({"b": [1]}).to_parquet(tmp_path / "1.parquet")
    refused(["1.parquet", "columns b where 0.parquet has a"], read_table, tmp_path)
    pd.DataFrame({"a": ["x"]}).to_parquet(tmp_path / "1.parquet")
    refused(["different types"], read_table, tmp_path)
    refused(["DataFrame", "no rows"], read_table, pd.DataFrame({"a": []}))


def test_columns_that_cannot_be_found_are_asked_for():
    frame = pd.DataFrame({"who": ["a"], "item": ["x"]})
    refused(["the user", "who, item", 'columns={"user": ...}', "--event-column user=NAME"], read_interactions, frame)
    assert len(read_interactions(frame, columns={"user": "who"}).data) == 1
    both = pd.DataFrame({"customer": ["a"], "visitor_id": ["b"], "item": ["x"]})
    refused(["'customer' or 'visitor_id'", 'columns={"user": ...}'], read_interactions, both)
    refused(["no column 'nix'", "who, item"], read_interactions, frame, columns={"user": "nix"})
    refused(["several roles"], read_interactions, frame, columns={"user": "item", "item": "item"})
    refused(["role 'buyer'", "user, item, event"], read_interactions, frame, columns={"buyer": "who"})
    refused(["kinds names ['x']"], read_items, frame, kinds={"x": "text"})
    refused(["kinds must be", "'words'"], read_items, frame, kinds={"who": "words"})


def test_unknown_events_ids_and_empty_results_are_explained(tmp_path):
    path = write(tmp_path, "e.csv", "user,item,event,time\na,x,view,1\nb,y,wish,2\n")
    refused(["e.csv", "'event'", "'wish' (1 rows, first on line 3)", "EventWeights(weights="], read_interactions, path)
    ok = EventWeights({"wish": 1})
    words = ["e.csv", "column 'item'", "'x', 'y'", "1, 2", "ids of the catalogue"]
    refused(words, read_interactions, path, events=ok, items=IdMap([1, 2]))
    refused(words, read_interactions, path, events=ok, items=IdMap([1, 2]), unknown_items="keep")
    lost = write(tmp_path, "lost.csv", "user,item,time\n,x,1\nb,y,soon\n")
    refused(["no event is left", "missing user id", "line 2", "unreadable time", "line 3"], read_interactions, lost)
    slash = write(tmp_path, "s.csv", "user,item,date\na,x,03/04/2025\n")
    refused(["s.csv", "column 'date'", "03/04/2025", "time_format"], read_interactions, slash)
    assert read_interactions(slash, time_format="%m/%d/%Y").data.time[0] == pd.Timestamp("2025-03-04").timestamp()
    refused(["need a rating column"], read_interactions, path, events=EventWeights({"wish": 1}, rating_threshold=4))
    refused(["repeats", "'first'"], EventWeights, repeats="first")
    refused(["'view'", "nan"], EventWeights, {"view": float("nan")})
    refused(["unknown_items", "'skip'"], read_interactions, path, unknown_items="skip")


def test_lines_are_counted_through_cells_of_several_lines_and_rows_where_lines_are_empty(tmp_path):
    path = write(tmp_path, "t.csv", 'user,item,note\na,x,"one\ntwo"\n,y,z\nb,x,"three\n\nfour"\n,x,\n')
    assert read_interactions(path).report.dropped[0].rows == (4, 8)
    path = write(tmp_path, "t.csv", "user,item\na,x\n\n,y\n\n")
    report = read_interactions(path).report
    assert (report.numbering, report.dropped[0].rows) == ("row", (2,))


def test_databases_that_cannot_be_read_are_explained(tmp_path):
    path = tmp_path / "shop.db"
    refused(["shop.db does not exist"], read_table, f"sqlite:///{path}#events")
    assert not path.exists()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE events (user, item)")
        db.execute("CREATE TABLE goods (id)")
        db.execute("INSERT INTO goods VALUES (1)")
    refused(["events, goods", "#TABLE"], read_table, f"sqlite:///{path}")
    refused(["no table 'event'", "events, goods"], read_table, f"sqlite:///{path}#event")
    refused(["no rows"], read_table, f"sqlite:///{path}#events")
    refused(["no such column: x", "query after '#'"], read_table, f"sqlite:///{path}#SELECT x FROM goods")
    refused(["readonly"], read_table, f"sqlite:///{path}#WITH g AS (SELECT 1) DELETE FROM goods")
    refused(["nosuchdb"], read_table, "nosuchdb://host/db#t")
    refused(["pip install", "MySQLdb"], read_table, "mysql://u:secret@host/db#t", error=MissingExtraError)
    assert read_table(f"sqlite:///{path}#SELECT id, ':x' AS colon FROM goods").to_dict("list") == {
        "id": [1],
        "colon": [":x"],
    }
    message = refused(["postgresql"], read_table, "postgresql+psycopg://u:secret@127.0.0.1:1/db#t")
    assert "secret" not in message


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


def _postgres_tool(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """The URL of a throw-away server on a socket in a folder of its own."""
    import os
    import pwd
    import tempfile

    pytest.importorskip("psycopg", reason="psycopg is not installed")
    initdb, control = _postgres_tool("initdb"), _postgres_tool("pg_ctl")
    if not initdb or not control:
        pytest.skip("no PostgreSQL server is installed (initdb and pg_ctl)")
    run_as: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a socket path must be short, so not under pytest's own folder
    if os.geteuid() == 0:
        owner = next((u for u in ("postgres", "nobody") if u in {p.pw_name for p in pwd.getpwall()}), None)
        if owner is None or not shutil.which("runuser"):
            pytest.skip("PostgreSQL refuses to run as root and there is no other user to run it")
        run_as = ["runuser", "-u", owner, "--"]
        shutil.chown(folder, owner)
    data, options = folder / "data", f"-c listen_addresses= -k {folder}"
    try:
        start = [control, "-D", str(data), "-w", "-t", "30", "-l", str(folder / "log"), "-o", options, "start"]
        for command in ([initdb, "-D", str(data), "-U", "shop", "-A", "trust", "-N"], start):
            subprocess.run([*run_as, *command], check=True, stdout=subprocess.DEVNULL, cwd=folder, timeout=60)
        yield f"postgresql+psycopg://shop@/postgres?host={folder}"
    finally:
        subprocess.run([*run_as, control, "-D", str(data), "-m", "immediate", "stop"], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def test_postgresql_reads_like_the_other_sources(postgres, tmp_path):
    frame = read_table(write(tmp_path, "events.csv", EVENTS))
    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        frame.to_sql("events", connection, index=False)
        connection.execute(sa.text("CREATE SCHEMA shop"))
        connection.execute(
            sa.text("CREATE TABLE shop.goods (id uuid, price numeric(9, 2), added timestamptz, tags text[])")
        )
        connection.execute(
            sa.text(
                "INSERT INTO shop.goods VALUES (:id, 12.50, '2025-01-01T00:00Z', '{red,new}'), (:b, NULL, NULL, NULL)"
            ),
            {"id": uuid.UUID(int=1), "b": uuid.UUID(int=2)},
        )
    engine.dispose()
    first = read_interactions(tmp_path / "events.csv")
    assert same(first.data, read_interactions(f"{postgres}#events").data)
    query = "SELECT *, sku::text AS item_id FROM events WHERE sku LIKE '%0%' OR true"
    assert same(first.data, read_interactions(f"{postgres}#{query}").data)
    items = read_items(f"{postgres}#shop.goods").data
    assert items.ids.ids.tolist() == [uuid.UUID(int=1), uuid.UUID(int=2)]
    np.testing.assert_array_equal(items.columns["price"], [12.5, np.nan])
    assert items.columns["tags"].tolist() == ["red|new", None]
    assert items.columns["added"][0] == pd.Timestamp("2025-01-01", tz=UTC)
    refused(["no table 'nix'", "events"], read_table, f"{postgres}#nix")
    refused(["column", "nix", "query after"], read_table, f"{postgres}#SELECT nix FROM events")
    refused(["read-only"], read_table, f"{postgres}#WITH gone AS (DELETE FROM events RETURNING sku) SELECT * FROM gone")
    assert len(read_table(f"{postgres}#events")) == len(frame)
