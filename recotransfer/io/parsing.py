"""Text cells into times, numbers and booleans."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.data.moments import LAST_SECOND, are_durations, as_seconds, in_calendar
from recotransfer.errors import InputError

EPOCH_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
SMALLEST_EPOCH = 1e8  # seconds; smaller whole numbers (a day or week number, a position) are an order, not a date
NEARLY_ALL = 0.95  # share of the filled cells that must read as numbers or dates for the column to be one
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
_MARKED = re.compile(r"[+-]?\d*[.,][\d.,]*(?:[eE][+-]?\d+)?")
_COMMA_GROUPS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?|[+-]?\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d*)?")  # 1,00,000
_DOT_GROUPS = re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+(?:,\d*)?")


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
    nanoseconds since 1970 recognised by size, numbers like 20240131, and small numbers as a plain order.

    Args:
        values: the column, of any type.
        time_format: a strptime format such as "%d/%m/%Y %H:%M", or the unit of numbers: "s", "ms", "us", "ns", "order".

    Raises:
        InputError: ambiguous order of day and month; the message asks for `time_format`.

    >>> parse_times(pd.Series(["1970-01-02", "1970-01-01T00:00:05Z", "86400", "soon"])).seconds.tolist()
    [86400.0, 5.0, 86400.0, nan]
    """
    filled = values.notna().to_numpy()
    notes: list[str] = []
    typed = as_seconds(values)
    if typed is not None:
        if are_durations(values):
            notes.append("times are durations and were kept as seconds: an order, not dates")
            return Times(typed, filled & np.isnan(typed), tuple(notes))

        zoned = isinstance(values.dtype, pd.DatetimeTZDtype) or all(map(_is_zoned, values[filled].head()))
        if not zoned:
            notes.append("times without a zone were taken as UTC")

        return _within_calendar(typed, filled, notes)

    if pd.api.types.is_bool_dtype(values):
        return Times(np.full(len(values), np.nan), filled)

    seconds = np.full(len(values), np.nan)
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    numeric = filled & np.isfinite(numbers)
    if time_format is not None and time_format not in (*EPOCH_UNITS, "order"):
        numeric[:] = False  # a strptime format: every cell is read as text

    order = False
    if numeric.any():
        read, order = _from_numbers(numbers[numeric], time_format, notes)
        seconds[numeric] = read

    rest = filled & ~numeric
    if rest.any():
        cells = values[rest]
        if pd.api.types.is_numeric_dtype(cells):
            cells = pd.Series(numbers[rest]).map("{:.0f}".format)

        seconds[rest] = _from_text(cells, time_format, notes)

    if order:
        return Times(seconds, filled & np.isnan(seconds), tuple(notes))

    return _within_calendar(seconds, filled, notes)


def _is_zoned(value: Any) -> bool:
    return getattr(value, "tzinfo", None) is not None


def _within_calendar(seconds: NDArray[np.float64], filled: NDArray[np.bool_], notes: list[str]) -> Times:
    """The times, those outside the years 1 to 9999 marked as unreadable."""
    seconds = np.where(in_calendar(seconds), seconds, np.nan)
    return Times(seconds, filled & np.isnan(seconds), tuple(notes))


def _from_numbers(numbers: NDArray[np.float64], unit: str | None, notes: list[str]) -> tuple[NDArray[np.float64], bool]:
    """The numbers as seconds, or as they are where they tell an order only; says which."""
    if unit in EPOCH_UNITS:
        return numbers / EPOCH_UNITS[unit], False

    size = np.abs(numbers)
    middle = float(np.median(size))
    if unit == "order" or middle < 1e7:
        notes.append("times are small numbers and were kept as they are: an order, not dates")
        return numbers, True

    dates = _from_digits(numbers, notes)
    if dates is not None:
        return dates, False

    if middle < SMALLEST_EPOCH:
        notes.append("times are small numbers and were kept as they are: an order, not dates")
        return numbers, True

    # Each number by its size, but up to the end of 9999 in the unit that most have: that is what "for ever" is there.
    unit_of_most = min((f for f in EPOCH_UNITS.values() if middle < 1e11 * f), default=1e9)
    scale = np.select([size < 1e11, size < 1e14, size < 1e17], [1.0, 1e3, 1e6], 1e9)
    scale[(scale > unit_of_most) & (size <= (LAST_SECOND + 1) * unit_of_most)] = unit_of_most
    used = [name for name, factor in EPOCH_UNITS.items() if (scale == factor).any()]
    notes.append(f"numeric times were read as {' and '.join(used)} since 1970, by their size")

    return np.asarray(numbers / scale, np.float64), False


def _from_digits(numbers: NDArray[np.float64], notes: list[str]) -> NDArray[np.float64] | None:
    """Numbers such as 20240131 as dates; None where they are not all dates, or most are not of this age."""
    for digits, form in ((8, "%Y%m%d"), (14, "%Y%m%d%H%M%S")):
        low, high = 1900 * 10 ** (digits - 4), 2101 * 10 ** (digits - 4)
        usual = ((numbers >= low) & (numbers < high)).mean()
        if usual < 0.5 or (numbers != np.floor(numbers)).any() or (numbers < 0).any():
            continue

        codes, distinct = pd.factorize(numbers)
        read = [_digits_read(f"{int(n):0{digits}d}", form) for n in distinct]
        if None not in read:
            notes.append(f"times like {int(numbers[0])} were read as dates ({form}, UTC)")
            return np.array(read, np.float64)[codes]

    return None


def _digits_read(text: str, form: str) -> float | None:
    try:
        return (datetime.strptime(text, form) - datetime(1970, 1, 1)) / timedelta(seconds=1)
    except ValueError:
        return None


def _from_text(values: pd.Series, form: str | None, notes: list[str]) -> NDArray[np.float64]:
    codes, distinct = pd.factorize(values.astype(str).str.strip())
    text = pd.Series(distinct, dtype="str")
    stamps = pd.Series(pd.NaT, index=text.index, dtype="datetime64[us, UTC]")
    if form is not None:
        stamps = pd.to_datetime(text, format=form, utc=True, errors="coerce").astype("datetime64[us, UTC]")
    else:
        by_day = text.str.extract(_DAY_AND_MONTH)
        loose = by_day[0].notna()
        stamps[~loose] = _iso_or_any(text[~loose])
        if loose.any():
            stamps[loose] = _guessed(text[loose], day_first=_day_first(text[loose], by_day[loose], notes))

    naive = stamps.notna() & ~text.str.contains(_HAS_A_ZONE, regex=True)
    if naive.any():
        notes.append(f"times without a zone, such as {text[naive].iloc[0]!r}, were taken as UTC")

    seconds = as_seconds(stamps)
    assert seconds is not None  # stamps are datetimes
    seconds = seconds.copy()
    for i in np.flatnonzero(np.isnan(seconds)) if form is None else ():
        seconds[i] = _by_python(text[i])

    return np.asarray(seconds[codes], np.float64)


def _by_python(text: str) -> float:
    """An ISO date as seconds, NaN for other text; Python reads the years 1 to 9999 where pandas 2 cannot."""
    try:
        moment = datetime.fromisoformat(text) if re.match(_ISO_DATE, text) else None
    except ValueError:
        moment = None

    if moment is None:
        return np.nan

    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)


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


def parse_numbers(
    values: pd.Series, notes: list[str] | None = None, *, decimal_comma: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Numbers as (n,) float64 with NaN for gaps, and (n,) bool marking filled cells that are no number.

    Currency signs and codes, thousands separators and decimal commas are understood; which sign is the decimal one is
    settled by the whole column, and cells that contradict it are no numbers.

    Args:
        values: the column, of any type.
        notes: takes a sentence on the choice of the decimal sign, where there was one to make.
        decimal_comma: what to assume where no cell settles the choice.

    >>> parse_numbers(pd.Series(["$1,299.00", "15", None, "cheap"]))[0].tolist()
    [1299.0, 15.0, nan, nan]
    >>> parse_numbers(pd.Series(["1.299,00 €", "15,50", "1.000"]))[0].tolist()
    [1299.0, 15.5, 1000.0]
    """
    filled = values.notna().to_numpy().copy()
    seconds = as_seconds(values)
    if seconds is not None:  # durations are numbers, of seconds; dates are not
        if are_durations(values):
            return seconds, filled & np.isnan(seconds)

        return np.full(len(values), np.nan), filled

    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan).copy()
    if not pd.api.types.is_string_dtype(values) and values.dtype != object:
        numbers[~np.isfinite(numbers)] = np.nan
        return numbers, filled & np.isnan(numbers)

    text = filled if values.dtype != object else np.array([isinstance(value, str) for value in values], bool)
    rows = np.flatnonzero(text)
    codes, distinct = pd.factorize(values.iloc[rows])
    cells = [_bare_number(text) for text in distinct]
    comma = _comma_is_decimal(cells, decimal_comma, notes)
    read = np.array([_number(cell, comma=comma) for cell in cells], np.float64)
    empty = np.array([cell.lower() in _NO_NUMBER for cell in cells], bool)
    if len(rows):
        numbers[rows] = read[codes]
        filled[rows] = ~empty[codes]

    numbers[~np.isfinite(numbers)] = np.nan

    return numbers, filled & np.isnan(numbers)


def _bare_number(text: str) -> str:
    """The cell without its currency, and without spaces and apostrophes between thousands."""
    bare = _CURRENCY.sub("", text).replace("\N{MINUS SIGN}", "-").strip()
    return _SPACES.sub("", bare)


def _comma_is_decimal(cells: Sequence[str], assumed: bool, notes: list[str] | None) -> bool:
    """Whether the comma is the decimal sign of a column of distinct cells, as those cells show that leave no choice."""
    marked = [cell.lstrip("+-") for cell in cells if _MARKED.fullmatch(cell)]
    if not marked:
        return False

    votes = [_decimal_sign(cell) for cell in marked]
    commas, dots = votes.count(","), votes.count(".")
    if commas or dots:
        comma = commas > dots
        if comma or any("," in cell or cell.count(".") > 1 for cell in marked):
            sign = "," if comma else "."
            shown = [cell for cell, vote in zip(marked, votes, strict=True) if vote == sign]
            _note_choice(notes, comma, shown, "")

        return comma

    # Every marked cell has three digits after its one mark: "1.299" is a number of thousands, or one of thousandths.
    signs = {sign for cell in marked for sign in ",." if sign in cell}
    if signs == {"."}:
        plain = [cell.lstrip("+-") for cell in cells if re.fullmatch(r"[+-]?\d+", cell)]
        grouped = any(plain) and all(len(cell) <= 3 for cell in plain)  # who writes 1.299 for 1299 writes 899 so
        comma = assumed or grouped
    else:
        comma = assumed and signs == {","}

    _note_choice(notes, comma, marked, "; no cell settles it, so write the numbers in another way if this is wrong")

    return comma


def _note_choice(notes: list[str] | None, comma: bool, cells: Sequence[str], also: str) -> None:
    example = next((cell for cell in cells if not np.isnan(_number(cell, comma=comma))), None)
    if notes is None or example is None:
        return

    one, other = (",", ".") if comma else (".", ",")
    notes.append(
        f"{one!r} was read as the decimal sign and {other!r} as a thousands separator: {example!r} is "
        f"{_number(example, comma=comma):.15g}{also}"
    )


def _decimal_sign(cell: str) -> str | None:
    """The sign that must be the decimal one in a cell of digits, dots and commas; None where both may be."""
    last = max(cell.rfind("."), cell.rfind(","))
    sign, other = cell[last], ",."[cell[last] == ","]
    if other in cell:
        return sign if cell.count(sign) == 1 else None
    if cell.count(sign) > 1:
        return other

    before, after = cell[:last], re.match(r"\d*", cell[last + 1 :])
    assert after is not None  # it may be empty
    thousands = len(after[0]) == 3 and 1 <= len(before) <= 3 and not before.startswith("0")

    return None if thousands and cell[last + 4 :] == "" else sign


def _number(cell: str, *, comma: bool) -> float:
    """The cell as a number, NaN where its separators are not those of the column."""
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


def shape(cell: str) -> str:
    """What a cell looks like: 9 for digits, a for letters, other signs as they are.

    >>> shape("INV-0042/b")
    'a-9/a'
    """
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", cell.strip()))
