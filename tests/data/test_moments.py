"""Dates of every age and type as seconds, in carriers made from frames."""

import datetime as dt

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recotransfer.data import Interactions
from recotransfer.data.moments import as_datetimes, as_seconds
from recotransfer.errors import InputError

FIRST, LAST = -62135596800.0, 253402214400.0  # 0001-01-01 and 9999-12-31
FORMS = {
    **{f"datetime64[{u}]": pd.Series(np.array(["0001-01-01", "9999-12-31"], f"M8[{u}]")) for u in ("s", "ms", "us")},
    "dates": pd.Series([dt.date(1, 1, 1), dt.date(9999, 12, 31)]),
    "datetimes": pd.Series([dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, tzinfo=dt.UTC)], dtype=object),
    "date32": pd.Series(pd.arrays.ArrowExtensionArray(pa.array([dt.date(1, 1, 1), dt.date(9999, 12, 31)]))),
    "numpy scalars": pd.Series([np.datetime64("0001-01-01"), np.datetime64("9999-12-31T00")], dtype=object),
    "zoned": pd.Series(np.array(["0001-01-01", "9999-12-31"], "M8[s]")).dt.tz_localize("UTC"),
}


@pytest.mark.parametrize("column", FORMS.values(), ids=FORMS.keys())
def test_the_first_and_the_last_day_are_read_in_every_type(column):
    assert as_seconds(column).tolist() == [FIRST, LAST]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_units_zones_gaps_periods_categories_and_durations_are_seconds(unit):
    column = pd.Series(pd.to_datetime(["2024-01-01 12:00", None])).astype(f"datetime64[{unit}]")
    noon = 1704110400.0
    np.testing.assert_array_equal(as_seconds(column), [noon, np.nan])
    berlin = column.dt.tz_localize("Europe/Berlin")
    np.testing.assert_array_equal(as_seconds(berlin), [noon - 3600, np.nan])
    np.testing.assert_array_equal(as_seconds(column.astype("category")), [noon, np.nan])
    arrow = pd.Series(pd.arrays.ArrowExtensionArray(pa.array([dt.datetime(2024, 1, 1, 12)], pa.timestamp(unit, "UTC"))))
    assert as_seconds(arrow).tolist() == [noon]
    assert as_seconds(pd.Series(pd.to_timedelta([90], "s")).astype(f"timedelta64[{unit}]")).tolist() == [90]
    assert as_seconds(pd.Series(pd.period_range("2024-01", periods=1, freq="M"))).tolist() == [noon - 43200]


@pytest.mark.parametrize("column", [pd.Series([1]), pd.Series(["2024-01-01"]), pd.Series([None], dtype=object)])
def test_other_columns_are_no_moments(column):
    assert as_seconds(column) is None


def test_seconds_come_back_as_datetimes_and_what_no_calendar_has_is_empty():
    back = as_datetimes(np.array([FIRST, LAST, np.nan, 1e15]))
    assert back.iloc[:2].astype(str).str[:10].tolist() == ["0001-01-01", "9999-12-31"]
    assert back.isna().tolist() == [False, False, True, True]


@pytest.mark.parametrize("column", FORMS.values(), ids=FORMS.keys())
def test_frames_of_events_take_times_of_every_type(column):
    events = Interactions.from_frame(pd.DataFrame({"user": [1, 2], "item": [1, 2], "t": column}), time="t")
    assert events.time.tolist() == [FIRST, LAST]


def test_frames_of_events_name_times_and_weights_that_are_no_numbers():
    frame = pd.DataFrame({"user": [1], "item": [1], "t": ["2024-01-01"], "w": ["1,5"]})
    for options in ({"time": "t"}, {"weight": "w"}):
        with pytest.raises(InputError, match=r"does not hold numbers.*read the frame with read_interactions"):
            Interactions.from_frame(frame, **options)
    with pytest.raises(InputError, match="finite"):
        Interactions.from_frame(frame.assign(t=pd.to_datetime([None])), time="t")
    assert Interactions.from_frame(frame.assign(t=["12"]), time="t").time.tolist() == [12]
