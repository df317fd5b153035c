"""Text cells into times, numbers and booleans."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.errors import InputError

EPOCH_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
SMALLEST_EPOCH = 1e8  # seconds; smaller whole numbers (a day or week number, a position) are an order, not a date
NEARLY_ALL = 0.95  # share of the filled cells that must read as numbers or dates for the column to be one
_DAY_AND_MONTH = r"^\s*(\d{1,2})([/.\-])(\d{1,2})[/.\-]\d{2}(?:\d{2})?(?!\d)"
_HAS_A_DATE = r"\d{4}|\d[/.\-]\d{1,2}[/.\-]\d{2}"  # keeps a bare "10:30" from being read as today
_HAS_A_ZONE = r"(?:Z|[A-Z]{3,4}|:\d{2}(?:\.\d+)?\s*[+-]\d{2}:?(?:\d{2})?)\s*$"
_NO_NUMBER = {"", "na", "n/a", "nan", "none", "null", "-", "--", "?", "unknown"}
_CURRENCY = r"(?:US\$|[$€£¥₹₽₩₺]|\b(?:USD|EUR|GBP|JPY|CNY|RMB|INR|CHF|CAD|AUD|SEK|NOK|DKK|PLN|RUB|BRL)\b|kr\b|zł)"


@dataclass(frozen=True)
class Times:
    """A column read as times.

    Attributes:
        seconds: (n,) float64 seconds since 1970, or the plain order; NaN where a cell is empty or unreadable.
        bad: (n,) bool, the filled cells that could not be read.
        notes: choices made on the way (naive times, units, day before month).
    """

    seconds: NDArray[np.float64]
    bad: NDArray[np.bool_]
    notes: tuple[str, ...] = ()


def parse_times(values: pd.Series, time_format: str | None = None) -> Times:
    """Times in any usual form as seconds.

    Dates and datetimes (ISO 8601 and other spellings, mixed; without a zone they are UTC), seconds, milli-, micro- or
    nanoseconds since 1970 told apart by size, numbers like 20240131, and small numbers as a plain order.

    Args:
        values: the column, of any type.
        time_format: a strptime format such as "%d/%m/%Y %H:%M", or the unit of numbers: "s", "ms", "us", "ns", "order".

    Raises:
        InputError: days and months that cannot be told apart; the message asks for `time_format`.

    >>> parse_times(pd.Series(["1970-01-02", "1970-01-01T00:00:05Z", "86400", "soon"])).seconds.tolist()
    [86400.0, 5.0, 86400.0, nan]
    """
    filled = values.notna().to_numpy()
    notes: list[str] = []
    if isinstance(values.dtype, pd.DatetimeTZDtype) or values.dtype.kind == "M":
        if not isinstance(values.dtype, pd.DatetimeTZDtype):
            notes.append("times without a zone were taken as UTC")

        return Times(_to_seconds(pd.to_datetime(values, utc=True)), np.zeros(len(values), bool), tuple(notes))

    if pd.api.types.is_bool_dtype(values):
        return Times(np.full(len(values), np.nan), filled)

    seconds = np.full(len(values), np.nan)
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    numeric = filled & np.isfinite(numbers)
    if time_format is not None and time_format not in (*EPOCH_UNITS, "order"):
        numeric[:] = False  # a strptime format: every cell is read as text

    if numeric.any():
        seconds[numeric] = _from_numbers(numbers[numeric], time_format, notes)

    rest = filled & ~numeric
    if rest.any():
        cells = values[rest]
        if pd.api.types.is_numeric_dtype(cells):
            cells = pd.Series(numbers[rest]).map("{:.0f}".format)

        seconds[rest] = _from_text(cells, time_format, notes)

    return Times(seconds, filled & np.isnan(seconds), tuple(notes))


def _to_seconds(stamps: Any) -> NDArray[np.float64]:
    elapsed = pd.Series(stamps).reset_index(drop=True) - pd.Timestamp(0, tz="UTC")
    return np.asarray(elapsed / pd.Timedelta(1, "s"), np.float64)


def _from_numbers(numbers: NDArray[np.float64], unit: str | None, notes: list[str]) -> NDArray[np.float64]:
    if unit in EPOCH_UNITS:
        return numbers / EPOCH_UNITS[unit]

    if unit == "order" or np.median(np.abs(numbers)) < 1e7:
        notes.append("times are small numbers and were kept as they are: an order, not dates")
        return numbers

    for digits, form in ((8, "%Y%m%d"), (14, "%Y%m%d%H%M%S")):
        low, high = 1900 * 10 ** (digits - 4), 2101 * 10 ** (digits - 4)
        if (numbers == np.floor(numbers)).all() and ((numbers >= low) & (numbers < high)).all():
            dates = pd.to_datetime(pd.Series(numbers.astype(np.int64).astype(str)), format=form, errors="coerce")
            if dates.notna().all():
                notes.append(f"times like {int(numbers[0])} were read as dates ({form}, UTC)")
                return _to_seconds(dates.dt.tz_localize("UTC"))

    size = np.abs(numbers)
    if np.median(size) < SMALLEST_EPOCH:
        notes.append("times are small numbers and were kept as they are: an order, not dates")
        return numbers

    scale = np.select([size < 1e11, size < 1e14, size < 1e17], [1.0, 1e3, 1e6], 1e9)
    used = [name for name, factor in EPOCH_UNITS.items() if (scale == factor).any()]
    notes.append(f"numeric times were read as {' and '.join(used)} since 1970, by their size")

    return np.asarray(numbers / scale, np.float64)


def _from_text(values: pd.Series, form: str | None, notes: list[str]) -> NDArray[np.float64]:
    codes, distinct = pd.factorize(values.astype(str).str.strip())
    text = pd.Series(distinct, dtype="str")
    stamps = pd.Series(pd.NaT, index=text.index, dtype="datetime64[us, UTC]")
    if form is not None:
        stamps = pd.to_datetime(text, format=form, utc=True, errors="coerce")
    else:
        by_day = text.str.extract(_DAY_AND_MONTH)
        loose = by_day[0].notna()
        stamps[~loose] = _iso_or_any(text[~loose])
        if loose.any():
            stamps[loose] = _guessed(text[loose], day_first=_day_first(text[loose], by_day[loose], notes))

    naive = stamps.notna() & ~text.str.contains(_HAS_A_ZONE, regex=True)
    if naive.any():
        notes.append(f"times without a zone, such as {text[naive].iloc[0]!r}, were taken as UTC")

    seconds = _to_seconds(stamps)

    return np.asarray(seconds[codes], np.float64)


def _iso_or_any(text: pd.Series) -> pd.Series:
    stamps = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
    left = stamps.isna() & text.str.contains(_HAS_A_DATE, regex=True)
    if left.any():
        stamps[left] = _guessed(text[left], day_first=False)

    return stamps.astype("datetime64[us, UTC]")


def _guessed(text: pd.Series, *, day_first: bool) -> pd.Series:
    """The form of the first cell for all, then each left over on its own (slow, so only for the rare ones)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas warns of unknown zone names and of forms that contradict day_first
        form = pd.tseries.api.guess_datetime_format(str(text.iloc[0]), dayfirst=day_first)
        stamps = pd.to_datetime(text, format=form or "ISO8601", utc=True, errors="coerce").astype("datetime64[us, UTC]")
        left = stamps.isna()
        if left.any():
            stamps[left] = pd.to_datetime(text[left], format="mixed", dayfirst=day_first, utc=True, errors="coerce")

    return stamps


def _day_first(text: pd.Series, parts: pd.DataFrame, notes: list[str]) -> bool:
    first, second = parts[0].astype(int), parts[2].astype(int)
    day_first, month_first = first > 12, second > 12
    if day_first.any() and month_first.any():
        raise InputError(
            f"times mix day-first ({text[day_first].iloc[0]!r}) and month-first ({text[month_first].iloc[0]!r}); "
            'write them in one form, best of all ISO 8601 such as "2025-04-03"'
        )

    if day_first.any() or (parts[1] == ".").all():
        notes.append(f"dates such as {text.iloc[0]!r} were read day first")
        return True

    if month_first.any() or (first == second).all():
        return False

    raise InputError(
        f"dates such as {text.iloc[0]!r} may be day-first or month-first and no row settles it; "
        'give time_format="%d/%m/%Y" or "%m/%d/%Y" (with the time of day, if there is one, as in " %H:%M")'
    )


def parse_numbers(values: pd.Series) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Numbers as (n,) float64 with NaN for gaps, and (n,) bool marking filled cells that are no number.

    Currency signs and codes, thousands separators and decimal commas are understood; which sign is the decimal one is
    settled by the whole column.

    >>> parse_numbers(pd.Series(["$1,299.00", "15", None, "cheap"]))[0].tolist()
    [1299.0, 15.0, nan, nan]
    >>> parse_numbers(pd.Series(["1.299,00 €", "15,50", "1.000"]))[0].tolist()
    [1299.0, 15.5, 1000.0]
    """
    filled = values.notna().to_numpy().copy()
    text = pd.api.types.is_string_dtype(values) or values.dtype == object
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan).copy()
    if text and (filled & np.isnan(numbers)).any():
        cells = values[filled].astype(str).str.replace(_CURRENCY, "", regex=True, flags=re.IGNORECASE)
        cells = cells.str.strip().str.replace(r"(?<=\d)[\s'](?=\d{3}(?!\d))|(?<=^-)\s", "", regex=True)
        filled[filled] = ~cells.str.lower().isin(_NO_NUMBER).to_numpy()
        cells = cells[~cells.str.lower().isin(_NO_NUMBER)]
        comma_is_decimal = cells.str.contains(r"\.\d{3},|^-?\d+,(?:\d{1,2}|\d{4,})$", regex=True).any()
        if comma_is_decimal and not cells.str.contains(r"\.\d{1,2}$", regex=True).any():
            cells = cells.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
        else:
            cells = cells.str.replace(r"(?<=\d),(?=\d{3}(?!\d))", "", regex=True)

        numbers[filled] = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan)

    numbers[~np.isfinite(numbers)] = np.nan

    return numbers, filled & np.isnan(numbers)


_TRUE, _FALSE = {"true", "yes", "y", "t"}, {"false", "no", "n", "f"}


def parse_flags(values: pd.Series) -> pd.Series | None:
    """The column as bool (or "boolean" where it has gaps), None when it holds anything but true/false, yes/no words."""
    if pd.api.types.is_bool_dtype(values):
        return values

    filled = values.dropna()
    if not len(filled) or pd.api.types.is_numeric_dtype(values) or not filled.map(type).isin([str, bool]).all():
        return None

    seen = {str(v).strip().lower() for v in filled.unique()}
    if not seen <= _TRUE | _FALSE or (max(map(len, seen)) == 1 and not (seen & _TRUE and seen & _FALSE)):
        return None

    flags = values.map(lambda v: str(v).strip().lower() in _TRUE, na_action="ignore").astype("boolean")

    return flags if flags.isna().any() else flags.astype(bool)


def words(name: str) -> list[str]:
    """The lower-case words of a column name: "productDisplayName" is product, display, name."""
    return re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).replace("_", " ").replace("-", " ").lower().split()
