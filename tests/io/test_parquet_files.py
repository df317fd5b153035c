"""Partitioned folders: their names are columns."""

import pandas as pd
import pytest

from recotransfer.errors import InputError
from recotransfer.io.readers import read_interactions, read_items
from recotransfer.io.tables import read_table

LOG = pd.DataFrame(
    {"user_id": ["u", "v", "w"], "item_id": ["a", "b", "a"], "event_type": ["view", "purchase", "view"]}
)  # fmt: skip


def test_kinds_and_times_come_from_the_names_of_folders(tmp_path):
    dated = LOG.assign(event_date=["2024-01-01", "2024-01-02", "2024-01-02"])
    dated.to_parquet(tmp_path / "log", partition_cols=["event_type", "event_date"])
    read = read_interactions(tmp_path / "log")
    found = {
        read.data.users.ids[u]: (w, read.data.kinds[k], t)
        for u, w, k, t in zip(read.data.user, read.data.weight, read.data.kind, read.data.time, strict=True)
    }
    day = 1704067200.0
    assert found == {"u": (1, "view", day), "v": (5, "purchase", day + 86400), "w": (1, "view", day + 86400)}
    assert "columns from folder names: event_type, event_date" in read.report.notes


def test_folder_names_get_sensible_types(tmp_path):
    frame = pd.DataFrame(
        {"item_id": range(4), "shop": ["007", "8", "7", None], "year": [2023, 2024, 2024, 2023], "tag": ["a b/c=d"] * 4}
    )
    frame.to_parquet(tmp_path / "items", partition_cols=["shop", "year", "tag"])
    table = read_table(tmp_path / "items").sort_values("item_id")
    assert table["year"].tolist() == [2023, 2024, 2024, 2023]
    assert table["shop"].tolist()[:3] == ["007", "8", "7"]
    assert table["shop"].isna().tolist() == [False, False, False, True]
    assert set(table["tag"]) == {"a b/c=d"}
    assert set(read_items(tmp_path / "items").data.columns) == {"shop", "year", "tag"}


def test_year_month_and_day_make_a_date(tmp_path):
    frame = LOG.assign(year=2024, month=[1, 2, 12], day=[1, 29, 31])
    frame.to_parquet(tmp_path / "log", partition_cols=["year", "month", "day"])
    read = read_interactions(tmp_path / "log")
    assert sorted(read.data.time) == [pd.Timestamp(f"2024-{d}").timestamp() for d in ("01-01", "02-29", "12-31")]


def test_writers_own_folders_are_passed_over_and_files_win_over_folders(tmp_path):
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "event_type=purchase").mkdir()
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "_delta_log" / "0.checkpoint.parquet")
    LOG.to_parquet(tmp_path / "event_type=purchase" / "0.parquet")
    assert read_table(tmp_path)["event_type"].tolist() == LOG["event_type"].tolist()


def test_folders_of_several_tables_are_refused(tmp_path):
    LOG.drop(columns="event_type").to_parquet(tmp_path / "0.parquet")
    (tmp_path / "event_type=view").mkdir()
    LOG.drop(columns="event_type").to_parquet(tmp_path / "event_type=view" / "1.parquet")
    with pytest.raises(InputError, match=r"1.parquet: its folders name the columns event_type where .* \(none\)"):
        read_table(tmp_path)
