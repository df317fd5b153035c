"""Convert dates, datetimes and durations of any type to seconds and back, for the years 1 to 9999."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

FIRST_SECOND, LAST_SECOND = -62135596800.0, 253402300799.999999  # the years 1 to 9999, the range of Python's dates
_MICROSECONDS, _LAST_MICROSECOND = 1e6, 253402300799_999999


def as_seconds(values: pd.Series) -> NDArray[np.float64] | None:
    """(n,) float64: dates and datetimes as seconds since 1970, durations as seconds; None for any other column.

    Missing cells are NaN. Datetimes without a time zone are taken as UTC, and periods count from their start.

    >>> as_seconds(pd.Series([dt.date(1970, 1, 2), None])).tolist()
    [86400.0, nan]
    >>> as_seconds(pd.Series(["1970-01-02"])) is None
    True
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    if isinstance(values.dtype, pd.PeriodDtype):
        values = values.dt.to_timestamp()
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        values = values.dt.tz_convert("UTC").dt.tz_localize(None)

    kind = values.dtype.kind
    if isinstance(values.dtype, pd.ArrowDtype) and kind in "mM":
        target = pa.timestamp("us") if kind == "M" else pa.duration("us")  # Arrow stores UTC whatever the zone
        return _from_array(pa.array(values).cast(target, safe=False).to_numpy(zero_copy_only=False))
    if kind in "mM":
        return _from_array(values.to_numpy())

    filled = values.dropna()
    kinds = {type(value) for value in filled} if kind == "O" else set()
    if not kinds or not all(issubclass(k, _MOMENTS) for k in kinds):
        return None

    seconds = np.full(len(values), np.nan)
    seconds[values.notna().to_numpy()] = [_seconds_of(value) for value in filled]

    return seconds


def are_durations(values: pd.Series) -> bool:
    """Whether a column that `as_seconds` can convert holds durations rather than dates."""
    if values.dtype.kind in "mM":
        return values.dtype.kind == "m"

    return isinstance(next(iter(values.dropna()), None), (dt.timedelta, np.timedelta64))


_MOMENTS = (dt.date, dt.timedelta, np.datetime64, np.timedelta64, pd.Period)


def in_calendar(seconds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) bool, True where a time lies in the years 1 to 9999."""
    return (seconds >= FIRST_SECOND) & (seconds <= LAST_SECOND)


def as_datetimes(seconds: NDArray[np.float64]) -> pd.Series:
    """Seconds since 1970 as UTC datetimes, to the microsecond; NaT for NaN and outside the years 1 to 9999."""
    valid = in_calendar(seconds)  # False for NaN
    microseconds = np.full(len(seconds), np.iinfo(np.int64).min, np.int64)  # numpy's NaT is the lowest integer
    rounded = np.round(seconds[valid] * _MICROSECONDS).astype(np.int64)
    microseconds[valid] = np.minimum(rounded, _LAST_MICROSECOND)

    return pd.Series(microseconds.view("datetime64[us]")).dt.tz_localize("UTC")


def _from_array(values: NDArray[Any]) -> NDArray[np.float64]:
    """Seconds of a datetime64 or timedelta64 array of any unit."""
    unit, step = np.datetime_data(values.dtype)
    if unit in ("Y", "M"):  # of varying length, so numpy counts their days
        values, unit, step = values.astype(f"{values.dtype.kind}8[D]"), "D", 1

    per_unit = {"W": 604800, "D": 86400, "h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    size = float(per_unit.get(unit, 1e-9) * step)
    counts = values.astype(np.int64)

    # Dividing by a whole number is exact where multiplying by a fraction such as 1e-3 is not.
    with np.errstate(over="ignore"):
        seconds = counts * size if size >= 1 else counts / round(1 / size)
    seconds[np.isnat(values)] = np.nan

    return np.asarray(seconds, np.float64)


def _seconds_of(value: object) -> float:
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return float(_from_array(np.array([value]))[0])
    if isinstance(value, pd.Period):
        value = value.to_timestamp()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, dt.datetime):
        moment = value if value.tzinfo is not None else value.replace(tzinfo=dt.UTC)
        return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) / dt.timedelta(seconds=1)
    if isinstance(value, dt.date):
        return float((value - dt.date(1970, 1, 1)).days * 86400)

    raise TypeError(f"{value!r} is not a date, datetime or duration")
