"""Whatever can be fitted can be saved, and comes back as it was."""

import datetime as dt
import re
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recotransfer.data import IdMap, Interactions, Items, filter_columns
from recotransfer.errors import ArtifactError, InputError
from recotransfer.io.artifacts import open_artifact, write_artifact
from recotransfer.io.values import check_ids, frame_to_ids, unpack
from recotransfer.recommenders import Popularity
from recotransfer.task import TransferTask

BERLIN = ZoneInfo("Europe/Berlin")
MOMENTS = [
    dt.date(1500, 2, 3),
    dt.datetime(2025, 1, 2, 3, 4, 5, 6),
    dt.datetime(2025, 10, 26, 2, 30, fold=1, tzinfo=BERLIN),
    dt.datetime(2025, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
    dt.time(3, 4),
    dt.timedelta(days=-1, microseconds=5),
    pd.Timestamp("2025-01-02T03:04:05.678901234"),
    pd.Timestamp("2025-01-02", tz="Asia/Tokyo"),
    pd.Timestamp("2025-01-02T00:00+05:30"),
    pd.Timestamp("9000-01-01").as_unit("s"),
    pd.Timedelta("3 days 4ns"),
    np.datetime64("2025-01-02T03:04:05.123456789"),
    np.timedelta64(5, "D"),
]


def saved(tmp_path, fill, read):
    write_artifact(tmp_path / "m", "Thing", fill)
    return read(open_artifact(tmp_path / "m"))


@pytest.mark.parametrize(
    "value", [*MOMENTS, Decimal("1.10"), Decimal("NaN1"), "\ud800", (dt.date(2025, 1, 1), "a")], ids=repr
)
def test_an_id_of_any_common_type_comes_back(tmp_path, value):
    ids = np.fromiter([value, "other", 7], dtype=object, count=3)
    check_ids(ids)
    back = saved(tmp_path, lambda writer: writer.ids("ids", ids), lambda artifact: artifact.ids("ids"))
    assert type(back[0]) is type(value)
    assert repr(back[0]) == repr(value)
    assert back.tolist()[1:] == ["other", 7]
    if hasattr(value, "tzinfo"):
        assert value.tzinfo is None or back[0].utcoffset() == value.utcoffset()


@pytest.mark.parametrize(
    "ids",
    [
        np.array(["2025-01-01", "2025-01-02"], "datetime64[D]"),
        pd.DatetimeIndex(["2025-01-01", "2025-01-02"], tz="UTC"),
        pd.to_timedelta([1, 2], unit="s"),
        np.array([1, 2], np.uint8),
        np.array([1.5, 2.5], np.float32),
        pd.array([1, 2], dtype="Int64"),
        pd.Categorical(["a", "b"]),
        np.array([b"a", b"b"]),
    ],
    ids=lambda ids: str(ids.dtype),
)
def test_a_model_with_ids_of_any_array_type_is_saved(tmp_path, ids):
    users, items = IdMap(ids), IdMap(ids)
    log = Interactions(users, items, np.array([0, 1]), np.array([0, 1]), np.ones(2, np.float32))
    Popularity().fit(log).save(tmp_path / "m")
    back = Popularity.load(tmp_path / "m")
    assert back.recommend(k=2).users.tolist() == Popularity().fit(log).recommend(k=2).users.tolist()
    assert back.catalogue_ == items


@pytest.mark.parametrize(
    "bad", [frozenset({1}), ("about", None), 1j, pd.Period("2025-01"), pd.Interval(0, 1), object], ids=str
)
def test_an_id_that_could_not_be_saved_is_refused_before_the_fit(bad, monkeypatch):
    monkeypatch.setattr(Popularity, "_fit", lambda *_: pytest.fail("the fit began"))
    one = IdMap(np.fromiter([bad], dtype=object, count=1))
    good = IdMap(["a"])
    for users, items in ((one, good), (good, one)):
        log = Interactions(users, items, np.zeros(1, int), np.zeros(1, int), np.ones(1, np.float32))
        with pytest.raises(InputError, match=f"id {re.escape(repr(bad))} of type .* cannot be saved; use str"):
            Popularity().fit(log)
        with pytest.raises(InputError, match="cannot be saved"):
            TransferTask(Popularity(), encoders=[]).fit(Items(items, pd.DataFrame(index=range(1))), log)


def test_kinds_of_later_versions_are_named():
    with pytest.raises(ArtifactError, match="kind 'quaternion' cannot be read; install the version that wrote it"):
        unpack("quaternion", "1")


def test_ids_of_the_first_format_are_read():
    frame = pd.DataFrame(
        {"kind": ["int", "tuple", "uuid"], "text": ["3", '[["str", "a"], ["int", "1"]]', str(UUID(int=1))]}
    )
    assert frame_to_ids(frame).tolist() == [3, ("a", 1), UUID(int=1)]


finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
moments = st.datetimes(timezones=st.sampled_from([None, dt.UTC, BERLIN]), allow_imaginary=False)
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=2)
plain = st.one_of(texts, st.integers(), finite, st.booleans(), st.dates(), moments, decimals)
columns = st.one_of(
    *(
        st.lists(st.one_of(st.none(), kind), min_size=3, max_size=3)
        for kind in (texts, st.integers(), finite, st.dates())
    ),
    *(
        st.lists(st.one_of(st.none(), kind), min_size=3, max_size=3)
        for kind in (moments, decimals, st.booleans(), plain)
    ),
    st.lists(st.one_of(st.none(), st.lists(plain, max_size=3)), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.binary(), st.uuids(), st.times(), st.timedeltas()), min_size=3, max_size=3),
)


def same(one, other):
    """Equal cells of equal types; one missing cell is as good as another."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, list) or isinstance(other, list):
        return False
    return (pd.isna(one) and pd.isna(other)) or (one == other and isinstance(other, bool) == isinstance(one, bool))


@settings(deadline=None, max_examples=60)
@given(columns, st.booleans())
def test_columns_that_filters_read_come_back(tmp_path_factory, cells, category):
    column = pd.Series(np.fromiter(cells, dtype=object, count=3), name="column")
    if category and column.map(lambda cell: cell is None or isinstance(cell, str)).all():
        column = column.astype("category")
    items = Items(IdMap(range(3)), column.to_frame())
    frame = filter_columns(items, items.ids)
    back = saved(
        tmp_path_factory.mktemp("table"), lambda writer: writer.table("t", frame), lambda artifact: artifact.table("t")
    )
    assert list(back) == list(frame)
    for name in frame:
        assert all(map(same, frame[name].tolist(), back[name].tolist())), (frame[name].tolist(), back[name].tolist())


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(pd.period_range("2025-01", periods=3, freq="M")),
        pd.Series(pd.interval_range(0, 3)),
        pd.Series([1j, 2, None]),
        pd.Series(pd.arrays.SparseArray([0, 0, 1])),
        pd.Series(pd.Categorical([1, "a", None])),
        pd.Series([1, 2, 3], dtype="float16"),
        pd.Series(["2025-01-01", None, "2025-01-03"], dtype="datetime64[ns, Europe/Berlin]"),
        pd.Series([1, None, 3], dtype="Int8"),
        pd.Series([np.float32(1.5), np.int64(2), None], dtype=object),
        pd.Series([np.array([1, 2]), None, np.array([])], dtype=object),
        pd.Series([Decimal("1e50"), Decimal("1.123456789"), None]),
        pd.Series([{"a": 1}, None, {}], dtype=object),
    ],
    ids=lambda column: f"{column.dtype} {column[0]!r}",
)
def test_a_model_with_columns_of_any_type_is_saved(tmp_path, column):
    ids = IdMap(["a", "b", "c"])
    items = Items(ids, column.to_frame("column"))
    log = Interactions(IdMap(["u"]), ids, np.zeros(3, int), np.arange(3), np.ones(3, np.float32))
    model = Popularity().fit(log, columns=items)
    model.save(tmp_path / "m")
    back = Popularity.load(tmp_path / "m").item_columns_
    assert list(back) == list(model.item_columns_)
    for name in back:
        assert all(map(same, model.item_columns_[name].tolist(), back[name].tolist()))


def test_lists_are_filtered_by_after_loading(tmp_path):
    from recotransfer.data import Filter

    ids = IdMap(["a", "b", "c"])
    items = Items(ids, pd.DataFrame({"tags": [["vegan"], ["meat", "hot"], None]}))
    log = Interactions(IdMap(["u"]), ids, np.zeros(3, int), np.arange(3), np.ones(3, np.float32))
    Popularity().fit(log, columns=items).save(tmp_path / "m")
    found = Popularity.load(tmp_path / "m").recommend(k=3, exclude_seen=False, filter=Filter(where='has(tags, "hot")'))
    assert [item for item in found.items[0].tolist() if item is not None] == ["b"]
