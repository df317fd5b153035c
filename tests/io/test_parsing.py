"""Numbers and times as people and programs write them; a column settles what its cells leave open."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from recotransfer.errors import InputError
from recotransfer.io.parsing import parse_numbers, parse_times
from recotransfer.io.readers import read_interactions, read_items

NAN = float("nan")
FIRST, LAST = -62135596800.0, 253402214400.0  # 0001-01-01 and 9999-12-31


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["0,125", "1,250"], [0.125, 1.25]),
        (["0.125", "1.250"], [0.125, 1.25]),
        (["1.299", "899", "2.499"], [1299, 899, 2499]),
        (["1.299", "1299"], [1.299, 1299]),
        (["1.299", "2.499"], [1.299, 2.499]),
        (["1,299", "899"], [1299, 899]),
        (["12.345.678", "5"], [12345678, 5]),
        (["1.234.567,89", "1.000"], [1234567.89, 1000]),
        (["1,234,567.89", "1,000"], [1234567.89, 1000]),
        (["12,5", "1.250"], [12.5, 1250]),
        (["12.5", "1,250"], [12.5, 1250]),
        (["1,00,000", "12.5"], [100000, 12.5]),
        (["1 299,50", "1\u202f000", "2\xa0500,5"], [1299.5, 1000, 2500.5]),
        (["1'299.50", "2\u2019000"], [1299.5, 2000]),
        (["-1,5", "\u22122,5", "+3,25"], [-1.5, -2.5, 3.25]),
        (["1,5e3", "2"], [1500, 2]),
        (["1.5", "12,34", "1,2,3", "1_000"], [1.5, NAN, NAN, NAN]),
        (["12,34", "12,5", "1.2"], [12.34, 12.5, NAN]),
        (["1.299 €", "EUR 2.499,00"], [1299, 2499]),
        ([Decimal("1.299"), 2, "3"], [1.299, 2, 3]),
        (["1,299", "0,5", 7.25], [1.299, 0.5, 7.25]),
        ([dt.timedelta(minutes=1), None], [60, NAN]),
        ([dt.date(2024, 1, 1), None], [NAN, NAN]),
    ],
    ids=str,
)
def test_the_decimal_sign_is_settled_by_the_whole_column(cells, numbers):
    got, bad = parse_numbers(pd.Series(cells, dtype=object))
    np.testing.assert_array_equal(got, numbers)
    assert bad.tolist() == [c is not None and np.isnan(n) for c, n in zip(cells, numbers, strict=True)]


def test_the_choice_of_the_decimal_sign_is_noted_where_there_was_one():
    for cells, words in (
        (["1.299", "899"], ["',' was read as the decimal separator", "'1.299' is 1299", "this is a guess"]),
        (["1.299", "2.499"], ["'.' was read as the decimal separator", "'1.299' is 1.299", "this is a guess"]),
        (["1,5"], ["',' was read as the decimal separator", "'1,5' is 1.5"]),
    ):
        notes = []
        parse_numbers(pd.Series(cells), notes)
        for word in words:
            assert word in notes[0]
    notes = []
    parse_numbers(pd.Series(["1.5", "2", "cheap"]), notes)
    assert not notes


def test_separators_are_read_alike_in_weights_ratings_prices_and_attributes(tmp_path):
    cells = ["0,125", "1.299,5", "2.000"]
    log = pd.DataFrame({"user_id": list("uvw"), "item_id": list("abc"), "weight": cells})
    read = read_interactions(log)
    assert read.data.weight.tolist() == [0.125, 1299.5, 2000]
    assert any(note.startswith("column 'weight': ',' was read as the decimal separator") for note in read.report.notes)
    items = pd.DataFrame({"item_id": list("abc"), "price": cells, "height": cells})
    items.to_csv(tmp_path / "items.csv", sep=";", index=False)
    for source in (items, tmp_path / "items.csv"):
        read = read_items(source)
        for name in ("price", "height"):
            assert read.data.columns[name].tolist() == [0.125, 1299.5, 2000]
            assert any(note.startswith(f"column {name!r}: ',' was") for note in read.report.notes)


def test_semicolons_between_cells_speak_for_decimal_commas(tmp_path):
    (tmp_path / "t.csv").write_text("user_id;item_id;weight\nu;a;1,250\nv;b;2,500\n")
    assert read_interactions(tmp_path / "t.csv").data.weight.tolist() == [1.25, 2.5]


@pytest.mark.parametrize(
    ("cells", "seconds"),
    [
        (["2025-01-01", "9999-12-31"], [1735689600, LAST]),
        (["0001-01-01", "2025-01-01T00:00:00Z"], [FIRST, 1735689600]),
        (["1605-01-16", "1997-06-26"], [-11516947200, 867283200]),
        (["31.12.9999", "13.01.2025"], [LAST, 1736726400]),
        (["12/31/9999", "12/25/2020"], [LAST, 1608854400]),
        (["Dec 31, 9999", "Jan 1, 1400"], [LAST, -17987443200]),
        (["0001-01-01T00:00:00+05:00", "2025-01-01"], [NAN, 1735689600]),
        (["-0044-03-15", "10000-01-01", "2025-01-01"], [NAN, NAN, 1735689600]),
        ([20250101, 99991231], [1735689600, LAST]),
        ([1735689600, 1735689601, int(LAST)], [1735689600, 1735689601, LAST]),
        ([1735689600000, 1735689601000, int(LAST) * 1000], [1735689600, 1735689601, LAST]),
        ([1735689600, 1735689601, 1e30], [1735689600, 1735689601, NAN]),
        ([dt.date(9999, 12, 31), "2025-01-01", None], [LAST, 1735689600, NAN]),
        ([dt.datetime(1, 1, 1), pd.Timestamp("2025-01-01", tz="Asia/Tokyo")], [FIRST, 1735657200]),
        ([dt.timedelta(days=1), dt.timedelta(seconds=5)], [86400, 5]),
        ([pd.NaT, pd.NaT], [NAN, NAN]),
        ([np.datetime64("30000-01-01", "s"), np.datetime64("2025-01-01", "s")], [NAN, 1735689600]),
    ],
    ids=str,
)
def test_dates_of_every_age_are_read_or_marked(cells, seconds):
    times = parse_times(pd.Series(cells, dtype=object))
    np.testing.assert_array_equal(times.seconds, seconds)
    assert times.bad.tolist() == [not pd.isna(c) and np.isnan(s) for c, s in zip(cells, seconds, strict=True)]


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_columns_of_dates_of_every_unit_are_read_in_both_readers(tmp_path, unit):
    moments = pd.Series(np.array(["0001-01-01", "9999-12-31"], f"M8[{unit}]"))
    frame = pd.DataFrame({"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": moments})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    dates = frame.assign(timestamp=[dt.date(1, 1, 1), dt.date(9999, 12, 31)])
    dates.to_parquet(tmp_path / "d.parquet")  # date32
    for source in (frame, dates, tmp_path / "t.parquet", tmp_path / "t.csv", tmp_path / "d.parquet"):
        assert read_interactions(source).data.time.tolist() == [FIRST, LAST]
        kept = read_items(source).data.columns["timestamp"]
        assert kept.astype(str).str[:10].tolist() == ["0001-01-01", "9999-12-31"]


def test_dates_that_no_calendar_has_are_dropped_or_emptied_and_reported():
    cells = ["2025-01-01"] * 30 + ["10000-01-01"]
    ids = [f"a{i}" for i in range(31)]
    items = read_items(pd.DataFrame({"item_id": ids, "available_date": cells}))
    assert items.data.columns["available_date"].isna().tolist() == [False] * 30 + [True]
    assert [(d.reason, d.rows, d.cells) for d in items.report.dropped] == [("not a date", (31,), True)]
    log = read_interactions(pd.DataFrame({"user_id": ids, "item_id": ids, "timestamp": cells}))
    assert [(d.reason, d.rows) for d in log.report.dropped] == [("unreadable time", (31,))]


def test_columns_without_any_time_are_reported_and_no_traceback():
    for empty in (pd.to_datetime([None, None]), [None, None], ["", " "]):
        frame = pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "time": empty})
        with pytest.raises(InputError, match="no event is left"):
            read_interactions(frame)


def test_durations_are_numbers_of_items_and_an_order_of_events():
    spans = pd.to_timedelta([90, 30], "s")
    items = read_items(pd.DataFrame({"item_id": ["a", "b"], "length": spans})).data
    assert items.kinds["length"] == "number"
    assert items.columns["length"].tolist() == [90, 30]
    log = read_interactions(pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "time": spans}))
    assert log.data.time.tolist() == [90, 30]
    assert any("durations" in note for note in log.report.notes)
