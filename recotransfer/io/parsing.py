"""Parse columns of text or mixed cells into times, numbers and booleans.

Ambiguous forms ("03/04/2025", "1.299") are decided by the column as a whole, and the decision is noted for the report.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.data.moments import LAST_SECOND, are_durations, as_seconds, in_calendar
from recotransfer.errors import InputError

EPOCH_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # units per second
SMALLEST_EPOCH = 1e8  # seconds (March 1973); smaller numbers are day or week numbers or positions, not timestamps
NEARLY_ALL = 0.95  # share of the filled cells that must parse as numbers or dates for the column to be one

_DAY_AND_MONTH = r"^\s*(\d{1,2})([/.\-])(\d{1,2})[/.\-]\d{2}(?:\d{2})?(?!\d)"
_HAS_A_DATE = r"\d{4}|\d[/.\-]\d{1,2}[/.\-]\d{2}"  # keeps a bare "10:30" from being read as today
_ISO_DATE = r"\d{4}-\d{2}-\d{2}"
_HAS_A_ZONE = r"(?:Z|[A-Z]{3,4}|:\d{2}(?:\.\d+)?\s*[+-]\d{2}:?(?:\d{2})?)\s*$"

_NO_NUMBER = {"", "na", "n/a", "nan", "none", "null", "-", "--", "?", "unknown"}
_CURRENCY = re.compile(
    r"(?:US\$|[$€£¥₹₽₩₺]|\b(?:USD|EUR|GBP|JPY|CNY|RMB|INR|CHF|CAD|AUD|SEK|NOK|DKK|PLN|RUB|BRL)\b|kr\b|zł)",
    re.IGNORECASE,
)
_SPACES = re.compile(r"(?<=\d)[\s'\N{RIGHT SINGLE QUOTATION MARK}](?=\d{3}(?!\d))|(?<=^-)\s")  # between thousands
_WITH_SEPARATOR = re.compile(r"[+-]?\d*[.,][\d.,]*(?:[eE][+-]?\d+)?")
_COMMA_GROUPS = re.compile(  # 1,000,000, and 10,00,000 as in India
    r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?|[+-]?\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d*)?"
)
_DOT_GROUPS = re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+(?:,\d*)?")


@dataclass(frozen=True)
class Times:
    """A column parsed as times.

    Attributes:
        seconds: (n,) float64 seconds since 1970, or numbers that only give an order; NaN for empty or unreadable cells.
        bad: (n,) bool, the filled cells that cannot be read.
        notes: messages on assumptions that were made (time zones, units, order of day and month).
    """

    seconds: NDArray[np.float64]
    bad: NDArray[np.bool_]
    notes: tuple[str, ...] = ()


def parse_times(values: pd.Series, time_format: str | None = None) -> Times:
    """The column as times in seconds.

    Understood are dates and datetimes (ISO 8601 and other spellings, also mixed; UTC unless they have a time zone),
    seconds to nanoseconds since 1970 (recognised by their size), numbers such as 20240131, and small numbers, which
    only give an order.

    Args:
        values: the column, of any type.
        time_format: a strptime format such as "%d/%m/%Y %H:%M", or the unit of numbers: "s", "ms", "us", "ns", "order".

    Raises:
        InputError: the order of day and month is ambiguous or mixed; the message suggests a `time_format`.

    >>> parse_times(pd.Series(["1970-01-02", "1970-01-01T00:00:05Z", "86400", "soon"])).seconds.tolist()
    [86400.0, 5.0, 86400.0, nan]
    """
    filled = values.notna().to_numpy()
    notes: list[str] = []

    # Columns that hold dates or durations already need no parsing.
    typed_seconds = as_seconds(values)
    if typed_seconds is not None:
        if are_durations(values):
            notes.append("times are durations, which give the order of events but not their dates")
            return Times(typed_seconds, filled & np.isnan(typed_seconds), tuple(notes))

        zoned = isinstance(values.dtype, pd.DatetimeTZDtype) or all(map(_is_zoned, values[filled].head()))
        if not zoned:
            notes.append("times without a time zone were read as UTC")

        return _within_calendar(typed_seconds, filled, notes)

    if pd.api.types.is_bool_dtype(values):
        return Times(np.full(len(values), np.nan), filled)

    seconds = np.full(len(values), np.nan)
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    numeric = filled & np.isfinite(numbers)
    if time_format is not None and time_format not in (*EPOCH_UNITS, "order"):
        numeric[:] = False  # a strptime format: every cell is read as text

    is_order = False
    if numeric.any():
        seconds[numeric], is_order = _from_numbers(numbers[numeric], time_format, notes)

    text = filled & ~numeric
    if text.any():
        cells = values[text]
        if pd.api.types.is_numeric_dtype(cells):  # such as 20240131 with the format "%Y%m%d"
            cells = pd.Series(numbers[text]).map("{:.0f}".format)

        seconds[text] = _from_text(cells, time_format, notes)

    if is_order:
        return Times(seconds, filled & np.isnan(seconds), tuple(notes))

    return _within_calendar(seconds, filled, notes)


def _is_zoned(value: object) -> bool:
    return getattr(value, "tzinfo", None) is not None


def _within_calendar(seconds: NDArray[np.float64], filled: NDArray[np.bool_], notes: list[str]) -> Times:
    """The times, with those outside the years 1 to 9999 marked as unreadable."""
    seconds = np.where(in_calendar(seconds), seconds, np.nan)
    return Times(seconds, filled & np.isnan(seconds), tuple(notes))


def _from_numbers(numbers: NDArray[np.float64], unit: str | None, notes: list[str]) -> tuple[NDArray[np.float64], bool]:
    """The numbers as seconds since 1970 and False, or unchanged and True if they only give an order."""
    if unit in EPOCH_UNITS:
        return numbers / EPOCH_UNITS[unit], False

    size = np.abs(numbers)
    median = float(np.median(size))
    order_note = "numeric times are not dates; they only give the order of events"
    if unit == "order" or median < 1e7:
        notes.append(order_note)
        return numbers, True

    # Tried before the size decides, by which 20240131 would be an order and 20240131235959 milliseconds since 1970.
    dates = _from_digits(numbers, notes)
    if dates is not None:
        return dates, False

    if median < SMALLEST_EPOCH:
        notes.append(order_note)
        return numbers, True

    # The unit of each number follows from its size, but one unit is far more likely than two: whatever is a date up to
    # the end of 9999 (often a stand-in for "for ever") in the unit of most numbers is read in that unit.
    unit_of_most = min((factor for factor in EPOCH_UNITS.values() if median < 1e11 * factor), default=1e9)
    scale = np.select([size < 1e11, size < 1e14, size < 1e17], [1.0, 1e3, 1e6], 1e9)
    scale[(scale > unit_of_most) & (size <= (LAST_SECOND + 1) * unit_of_most)] = unit_of_most
    units = [name for name, factor in EPOCH_UNITS.items() if (scale == factor).any()]
    notes.append(f"numeric times were read as {' and '.join(units)} since 1970, judging by their size")

    return np.asarray(numbers / scale, np.float64), False


def _from_digits(numbers: NDArray[np.float64], notes: list[str]) -> NDArray[np.float64] | None:
    """Numbers such as 20240131 or 20240131235959 as dates; None unless all are dates, and most from 1900 to 2100."""
    for digits, form in ((8, "%Y%m%d"), (14, "%Y%m%d%H%M%S")):
        low, high = 1900 * 10 ** (digits - 4), 2101 * 10 ** (digits - 4)
        share_recent = ((numbers >= low) & (numbers < high)).mean()
        if share_recent < 0.5 or (numbers != np.floor(numbers)).any() or (numbers < 0).any():
            continue

        codes, distinct = pd.factorize(numbers)
        seconds = [_parse_digits(f"{int(number):0{digits}d}", form) for number in distinct]
        if None not in seconds:
            notes.append(f"times such as {int(numbers[0])} were read as dates ({form}, UTC)")
            return np.array(seconds, np.float64)[codes]

    return None


def _parse_digits(text: str, form: str) -> float | None:
    """Seconds since 1970; None if the text is no date of this form."""
    try:
        return (datetime.strptime(text, form) - datetime(1970, 1, 1)) / timedelta(seconds=1)
    except ValueError:
        return None


def _from_text(values: pd.Series, form: str | None, notes: list[str]) -> NDArray[np.float64]:
    """(n,) seconds since 1970, NaN for text that is not a time; each distinct text is parsed once."""
    codes, distinct = pd.factorize(values.astype(str).str.strip())
    text = pd.Series(distinct, dtype="str")
    stamps = pd.Series(pd.NaT, index=text.index, dtype="datetime64[us, UTC]")
    if form is not None:
        stamps = pd.to_datetime(text, format=form, utc=True, errors="coerce").astype("datetime64[us, UTC]")
    else:
        day_and_month = text.str.extract(_DAY_AND_MONTH)
        ambiguous = day_and_month[0].notna()
        stamps[~ambiguous] = _iso_or_any(text[~ambiguous])
        if ambiguous.any():
            day_first = _day_first(text[ambiguous], day_and_month[ambiguous], notes)
            stamps[ambiguous] = _guessed(text[ambiguous], day_first=day_first)

    naive = stamps.notna() & ~text.str.contains(_HAS_A_ZONE, regex=True)
    if naive.any():
        notes.append(f"times without a time zone, such as {text[naive].iloc[0]!r}, were read as UTC")

    seconds = as_seconds(stamps)
    assert seconds is not None  # stamps are datetimes
    seconds = seconds.copy()
    for i in np.flatnonzero(np.isnan(seconds)) if form is None else ():
        seconds[i] = _by_python(text[i])

    return np.asarray(seconds[codes], np.float64)


def _by_python(text: str) -> float:
    """Seconds since 1970 of an ISO date, NaN for other text. Python reads the years 1 to 9999, pandas 2 does not."""
    try:
        moment = datetime.fromisoformat(text) if re.match(_ISO_DATE, text) else None
    except ValueError:
        moment = None

    if moment is None:
        return np.nan

    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)


def _iso_or_any(text: pd.Series) -> pd.Series:
    """Datetimes in UTC: ISO 8601 first, which is fast, then any other form that contains a date; NaT for the rest."""
    stamps = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
    left = stamps.isna() & text.str.contains(_HAS_A_DATE, regex=True)
    if left.any():
        stamps[left] = _guessed(text[left], day_first=False)

    return stamps.astype("datetime64[us, UTC]")


def _guessed(text: pd.Series, *, day_first: bool) -> pd.Series:
    """Datetimes in the format of the first cell; only cells it does not fit are parsed one by one, which is slow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas warns of unknown zone names and of forms that contradict day_first
        form = pd.tseries.api.guess_datetime_format(str(text.iloc[0]), dayfirst=day_first)
        stamps = pd.to_datetime(text, format=form or "ISO8601", utc=True, errors="coerce").astype("datetime64[us, UTC]")
        left = stamps.isna()
        if left.any():
            stamps[left] = pd.to_datetime(text[left], format="mixed", dayfirst=day_first, utc=True, errors="coerce")

    return stamps


def _day_first(text: pd.Series, day_and_month: pd.DataFrame, notes: list[str]) -> bool:
    """Whether dates such as 03/04/2025 start with the day: a number above 12 or dots as separators tell.

    Columns of `day_and_month`: the first number, the separator and the second number.
    """
    first, second = day_and_month[0].astype(int), day_and_month[2].astype(int)
    day_first, month_first = first > 12, second > 12
    if day_first.any() and month_first.any():
        raise InputError(
            f"times mix day-first ({text[day_first].iloc[0]!r}) and month-first ({text[month_first].iloc[0]!r}) dates; "
            'write them in one form, preferably ISO 8601 such as "2025-04-03"'
        )

    if day_first.any() or (day_and_month[1] == ".").all():
        notes.append(f"dates such as {text.iloc[0]!r} were read as day-first")
        return True

    if month_first.any() or (first == second).all():
        return False

    raise InputError(
        f"dates such as {text.iloc[0]!r} could be day-first or month-first, and no row shows which; "
        'pass time_format="%d/%m/%Y" or "%m/%d/%Y" (followed by the time of day if there is one, as in " %H:%M")'
    )


def parse_numbers(
    values: pd.Series, notes: list[str] | None = None, *, decimal_comma: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The column as (n,) float64 numbers, NaN for gaps, and (n,) bool marking filled cells that are not numbers.

    Currency signs and codes, thousands separators and decimal commas are understood. The column as a whole decides
    whether dot or comma is the decimal separator; cells that contradict it are not numbers.

    Args:
        values: the column, of any type. Durations are numbers of seconds; dates are not numbers.
        notes: a message on the choice of the decimal separator is appended to it, if there was a choice.
        decimal_comma: the separator to assume if no cell is unambiguous.

    >>> parse_numbers(pd.Series(["$1,299.00", "15", None, "cheap"]))[0].tolist()
    [1299.0, 15.0, nan, nan]
    >>> parse_numbers(pd.Series(["1.299,00 €", "15,50", "1.000"]))[0].tolist()
    [1299.0, 15.5, 1000.0]
    """
    filled = values.notna().to_numpy().copy()
    seconds = as_seconds(values)
    if seconds is not None:
        if are_durations(values):
            return seconds, filled & np.isnan(seconds)

        return np.full(len(values), np.nan), filled

    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan).copy()
    if not pd.api.types.is_string_dtype(values) and values.dtype != object:
        numbers[~np.isfinite(numbers)] = np.nan
        return numbers, filled & np.isnan(numbers)

    # Text is parsed here and not by pandas, which knows no separators; each distinct text is parsed once.
    is_text = filled if values.dtype != object else np.array([isinstance(value, str) for value in values], bool)
    rows = np.flatnonzero(is_text)
    codes, distinct = pd.factorize(values.iloc[rows])
    cells = [_bare_number(text) for text in distinct]
    comma = _comma_is_decimal(cells, decimal_comma, notes)
    parsed = np.array([_number(cell, comma=comma) for cell in cells], np.float64)
    empty = np.array([cell.lower() in _NO_NUMBER for cell in cells], bool)
    if len(rows):
        numbers[rows] = parsed[codes]
        filled[rows] = ~empty[codes]

    numbers[~np.isfinite(numbers)] = np.nan

    return numbers, filled & np.isnan(numbers)


def _bare_number(text: str) -> str:
    """The cell without currency, and without spaces and apostrophes as thousands separators."""
    bare = _CURRENCY.sub("", text).replace("\N{MINUS SIGN}", "-").strip()
    return _SPACES.sub("", bare)


def _comma_is_decimal(cells: Sequence[str], assumed: bool, notes: list[str] | None) -> bool:
    """Whether the comma is the decimal separator of a column with these distinct cells.

    The unambiguous cells decide by majority; if there are none, `assumed` and the shape of the other cells do.
    """
    separated = [cell.lstrip("+-") for cell in cells if _WITH_SEPARATOR.fullmatch(cell)]
    if not separated:
        return False

    votes = [_decimal_separator(cell) for cell in separated]
    commas, dots = votes.count(","), votes.count(".")
    if commas or dots:
        comma = commas > dots

        # Plain numbers such as 1.5 need no note.
        if comma or any("," in cell or cell.count(".") > 1 for cell in separated):
            separator = "," if comma else "."
            deciding = [cell for cell, vote in zip(separated, votes, strict=True) if vote == separator]
            _note_choice(notes, comma, deciding, "")

        return comma

    # All cells have three digits after their only separator: "1.299" is 1299 or 1.299. A dot separates thousands if the
    # cells without one have three digits at most: who writes 1.299 for 1299 may write 899, but not 1299.
    separators = {sign for cell in separated for sign in ",." if sign in cell}
    if separators == {"."}:
        plain = [cell.lstrip("+-") for cell in cells if re.fullmatch(r"[+-]?\d+", cell)]
        comma = assumed or (any(plain) and all(len(cell) <= 3 for cell in plain))
    else:
        comma = assumed and separators == {","}

    _note_choice(notes, comma, separated, "; this is a guess, so write the numbers in another way if it is wrong")

    return comma


def _note_choice(notes: list[str] | None, comma: bool, cells: Sequence[str], addition: str) -> None:
    """Append a note with the first of the cells that is a number, as an example."""
    example = next((cell for cell in cells if not np.isnan(_number(cell, comma=comma))), None)
    if notes is None or example is None:
        return

    decimal, thousands = (",", ".") if comma else (".", ",")
    notes.append(
        f"{decimal!r} was read as the decimal separator and {thousands!r} as the thousands separator: {example!r} is "
        f"{_number(example, comma=comma):.15g}{addition}"
    )


def _decimal_separator(cell: str) -> str | None:
    """What must be the decimal separator in a cell of digits, dots and commas; None if it could be either.

    A separator that comes last after another one, or that does not separate groups of three digits, is the decimal one;
    one that occurs twice is not.
    """
    last = max(cell.rfind("."), cell.rfind(","))
    sign = cell[last]
    other = "." if sign == "," else ","
    if other in cell:
        return sign if cell.count(sign) == 1 else None
    if cell.count(sign) > 1:
        return other

    before, after = cell[:last], re.match(r"\d*", cell[last + 1 :])
    assert after is not None  # it may be empty
    thousands = len(after[0]) == 3 and 1 <= len(before) <= 3 and not before.startswith("0")

    return None if thousands and cell[last + 4 :] == "" else sign


def _number(cell: str, *, comma: bool) -> float:
    """The cell as a number; NaN if it is not one with these separators."""
    decimal, thousands = (",", ".") if comma else (".", ",")
    grouped = (_DOT_GROUPS if comma else _COMMA_GROUPS).fullmatch(cell)
    if "_" in cell or (thousands in cell and not grouped):
        return np.nan

    try:
        return float(cell.replace(thousands, "").replace(decimal, "."))
    except ValueError:
        return np.nan


_TRUE, _FALSE = {"true", "yes", "y", "t"}, {"false", "no", "n", "f"}


def parse_flags(values: pd.Series) -> pd.Series | None:
    """The column as bool ("boolean" if it has gaps); None if it holds anything but words such as true, false, yes, no.

    Columns of single letters must have both values: "f" alone may stand for female.
    """
    if pd.api.types.is_bool_dtype(values):
        return values

    filled = values.dropna()
    if not len(filled) or pd.api.types.is_numeric_dtype(values) or not filled.map(type).isin([str, bool]).all():
        return None

    distinct = {str(v).strip().lower() for v in filled.unique()}
    letters_only = max(map(len, distinct)) == 1
    if not distinct <= _TRUE | _FALSE or (letters_only and not (distinct & _TRUE and distinct & _FALSE)):
        return None

    flags = values.map(lambda v: str(v).strip().lower() in _TRUE, na_action="ignore").astype("boolean")

    return flags if flags.isna().any() else flags.astype(bool)


def words(name: str) -> list[str]:
    """The lower-case words of a column name: "productDisplayName" is product, display, name."""
    return re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).replace("_", " ").replace("-", " ").lower().split()


def shape(cell: str) -> str:
    """The pattern of a cell: 9 for each run of digits, a for each run of letters, all else unchanged.

    >>> shape("INV-0042/b")
    'a-9/a'
    """
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", cell.strip()))
