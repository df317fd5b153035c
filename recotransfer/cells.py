"""What columns and cells mean: roles by name, times, numbers, flags, events, kinds of content.

Nothing here opens a file; `readers.py` loads the sources and builds the carriers from what is found here.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.data import ColumnKind, IdMap
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
_FLAG_NAMES = {"is", "has", "in", "available", "active", "enabled", "instock"}


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


_CATEGORY = set(
    words(
        "brand category categories color colour colours colors genre genres gender season department manufacturer "
        "material type style shop store vendor language country publisher maker usage class group aisle family"
    )
)
_TEXT = set(
    words(
        "title titles name description desc summary text body plot overview abstract headline about content details "
        "subtitle caption question answer review sequence"
    )
)
_IMAGE = set(words("image images img picture pictures photo photos thumbnail thumb jpeg jpg png"))
_DATE = set(words("date time datetime timestamp created updated released published launched"))
_KEY = set(words("id ids uuid guid key sku asin ean upc gtin isbn url link"))
_PRICE = set(words("price cost msrp rrp"))
_IMAGE_FILE = r"\.(?:jpe?g|png|webp|gif|bmp|tiff?)(?:\?.*)?\s*$"
_IMAGE_BYTES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")


def is_price(name: str) -> bool:
    """Whether a column of this name must not be negative."""
    return bool(_PRICE & set(words(name)))


def guess_kind(name: str, values: pd.Series, rows: int) -> ColumnKind | str | None:
    """The kind of a column of items: a `ColumnKind`, "flag" or "date" for what is only carried, None for other ids.

    Args:
        name: the column's name, which decides first.
        values: its cells.
        rows: the number of items.
    """
    named, filled = set(words(name)), values.dropna()
    if not len(filled):
        return None
    if isinstance(filled.iloc[0], bytes):
        return "image" if named & _IMAGE or bytes(filled.iloc[0]).startswith(_IMAGE_BYTES) else None
    if isinstance(filled.iloc[0], (dict, list, np.ndarray)):
        return "image" if named & _IMAGE else None
    if values.dtype.kind == "M" or isinstance(values.dtype, pd.DatetimeTZDtype):
        return "date"
    if pd.api.types.is_bool_dtype(values) or parse_flags(values) is not None:
        return "flag"
    return _kind_of_cells(named, filled, rows)


def _kind_of_cells(named: set[str], filled: pd.Series, rows: int) -> ColumnKind | str | None:
    head, numeric = filled.iloc[:10_000], pd.api.types.is_numeric_dtype(filled)
    cells = head.astype(str)
    files = 0.0 if numeric else cells.str.contains(_IMAGE_FILE, regex=True, case=False).mean()
    if files > (0.5 if named & _IMAGE else NEARLY_ALL):
        return "image"
    distinct = filled.nunique()
    if (named & _KEY or "code" in named) and cells.str.count(" ").median() < 1:
        return "category" if distinct < 0.5 * rows and cells.str.len().median() <= 40 else None
    short = cells.str.len().quantile(0.9) <= 60
    if named & _CATEGORY and short and (distinct < 0.9 * rows or rows < 20):
        return "category"
    _, bad = parse_numbers(head)
    if numeric or 1 - bad.mean() >= (0.5 if named & _PRICE else NEARLY_ALL):
        two = set(pd.to_numeric(filled, errors="coerce").unique()) <= {0, 1}
        return "flag" if two and named & _FLAG_NAMES else "number"
    if (named & _DATE or "at" in named or cells.str.match(r"\d{4}-\d{2}-\d{2}").all()) and _are_dates(head):
        return "date"
    few = distinct <= max(2, min(0.2 * rows, 1000))
    if not named & _TEXT and short and ((rows >= 20 and few) or named & {"size", "model", "format"}):
        return "category"
    return "text"


def _are_dates(values: pd.Series) -> bool:
    try:
        return bool(1 - parse_times(values).bad.mean() >= NEARLY_ALL)
    except InputError:
        return False


def wordiest(columns: pd.DataFrame, names: Sequence[str]) -> str | None:
    """The category that may stand in for a missing title: at least 100 values, most of two words or more."""
    counts = {c: columns[c].nunique() for c in names if columns[c].dropna().astype(str).str.count(" ").median() >= 1}
    best = max(counts, key=lambda c: counts[c], default=None)
    return best if best is not None and counts[best] >= 100 else None


# Usual names in order of trust, without case or separators. Two names of one rank in one table are ambiguous.
_ROLES: dict[str, tuple[str, ...]] = {
    "user": (
        "user userid",
        "customer customerid custid visitor visitorid household householdid householdkey reviewer reviewerid shopper "
        "shopperid buyer buyerid client clientid member memberid account accountid patient patientid subject subjectid",
        "session sessionid username uid",
    ),
    "item": (
        "item itemid",
        "product productid asin sku movie movieid article articleid book bookid isbn track trackid song songid goodsid "
        "listing listingid contentid videoid newsid offerid stockcode businessid recipeid gameid animeid",
        "parentasin prodid pid iid upc ean gtin",
    ),
    "event": ("event eventtype", "behavior behaviour behaviortype behaviourtype action actiontype", "interaction"),
    "time": (
        "timestamp time eventtime unixtime eventtimestamp unixtimestamp unixreviewtime transactiontimestamp",
        "date datetime ts eventdate orderdate purchasedate invoicedate transactiondate reviewtime reviewdate",
        "createdat occurredat",
        "day week",
    ),
    "rating": ("rating ratings", "stars overall score reviewrating bookrating"),
    "weight": ("weight",),
}

_SYNONYMS = {
    "cart": "addtocart addcart cartadd basket addtobasket tocart",
    "purchase": "buy bought transaction order ordered checkout sale paid purchased",
    "view": "pv pageview impression detail detailview productview itemview visit viewed",
    "click": "clicked clickout tap",
    "search": "query searched searchresult",
}
_CANONICAL = {name: kind for kind, names in _SYNONYMS.items() for name in names.split()}
_USUAL_WEIGHTS = {"view": 1.0, "click": 1.0, "search": 1.0, "cart": 3.0, "purchase": 5.0}


@dataclass(frozen=True)
class EventWeights:
    """How events and ratings become weights.

    Attributes:
        weights: weight by kind of event, added to the usual ones (view, click and search 1, cart 3, purchase 5; their
            usual synonyms are known). A weight of 0 leaves a kind out.
        rating_threshold: keep only ratings of at least this, each with weight 1.
        rating_as_weight: the rating is the weight; with a threshold too, only ratings of at least that.
        repeats: "all" keeps every event of a user and item, "sum" merges them into one with their summed weight and the
            time and kind of the latest, "last" keeps the latest alone. Without times the later row is the latest.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    rating_threshold: float | None = None
    rating_as_weight: bool = False
    repeats: Literal["sum", "last", "all"] = "all"

    def __post_init__(self) -> None:
        if self.repeats not in ("sum", "last", "all"):
            raise InputError(f"repeats must be 'sum', 'last' or 'all', got {self.repeats!r}")
        for name, weight in self.weights.items():
            if isinstance(weight, bool) or not np.isfinite(weight):
                raise InputError(f"the weight of event {name!r} must be a finite number, got {weight!r}")

    def table(self) -> dict[str, float]:
        """Weight by kind: the usual kinds, then the given ones."""
        own = {_plain(name): name for name in self.weights}
        usual = {own.get(k, k): float(self.weights.get(own.get(k, k), w)) for k, w in _USUAL_WEIGHTS.items()}
        return {**usual, **{name: float(w) for name, w in self.weights.items()}}

    def kind_of(self, name: str) -> str | None:
        """The kind that an event called `name` counts as, or None."""
        known = {_plain(k): k for k in self.table()}
        return known.get(_plain(name)) or known.get(_CANONICAL.get(_plain(name), ""))


def _plain(name: Any) -> str:
    return re.sub(r"[\W_]", "", str(name).lower())


def find_columns(
    names: Sequence[str],
    table: Literal["items", "interactions"],
    given: Mapping[str, str] | None,
    source: str,
    roles: Sequence[str] | None = None,
) -> dict[str, str]:
    """The column of each role that the table has: the given ones, then those with a usual name.

    `roles` are those looked for, by default all that the table can have.

    Raises:
        InputError: a role or column that does not exist, a needed role that no column fills, or one that two may fill.
    """
    roles = roles or (("item",) if table == "items" else tuple(_ROLES))
    flag = "--item-column" if table == "items" else "--event-column"
    found = dict(given or {})
    for role, name in found.items():
        if role not in roles:
            raise InputError(f"columns names the role {role!r}; {table} have the roles {', '.join(roles)}")
        if name not in names:
            raise InputError(f"{source}: no column {name!r} for the {role}; its columns are {', '.join(names)}")
    if len(set(found.values())) < len(found):
        raise InputError(f"{source}: columns gives one column for several roles: {found}; give each role its own")
    for role in roles:
        free = [n for n in names if n not in found.values()]
        if role in found:
            continue
        fits = _best_fit(free, role, table)
        remedy = f'name it with columns={{"{role}": ...}} (on the command line: {flag} {role}=NAME)'
        if len(fits) > 1:
            raise InputError(f"{source}: the {role} may be in {' or '.join(map(repr, fits))}; {remedy}")
        if fits:
            found[role] = fits[0]
        elif role in ("user", "item"):
            raise InputError(f"{source}: no column looks like the {role}; its columns are {', '.join(names)}; {remedy}")
    return found


def _best_fit(names: Iterable[str], role: str, table: Literal["items", "interactions"]) -> list[str]:
    plain = {name: _plain(name) for name in names}
    ranks = [set(rank.split()) for rank in _ROLES[role]]
    if table == "items":
        # Beside a plain "id", a column called "product" or "book" holds a title.
        named = {"item", "product", "movie", "article", "book", "track", "song", "listing"}
        ranks = [ranks[0] - named, ranks[1] - named, {"id"}, ranks[2], named, {"index"}]
    fits = ([name for name, p in plain.items() if p in rank] for rank in ranks)
    return next((f for f in fits if f), [])


def flat(values: pd.Series, name: str) -> pd.Series:
    """The column with lists joined to text ("a|b", or "a b" under a name of running text) and {"bytes": ...} opened."""
    first = next(iter(values.dropna()), None)
    if isinstance(first, dict) and isinstance(first.get("bytes"), bytes):
        return values.map(lambda cell: cell.get("bytes"), na_action="ignore")
    texts = isinstance(first, (list, tuple, np.ndarray)) and all(isinstance(part, str) for part in first)
    if texts:  # a list of numbers is a vector or a picture, and stays
        glue = " " if set(words(name)) & _TEXT else "|"
        joined = [None if cell is None or isinstance(cell, float) else glue.join(map(str, cell)) for cell in values]
        return pd.Series(joined, dtype=object)
    return values


def typed(values: pd.Series, kind: ColumnKind | str | None) -> tuple[pd.Series, NDArray[np.bool_]]:
    """The column as its kind wants it, gaps as None or NaN, and (n,) bool marking cells that could not be read."""
    bad = np.zeros(len(values), bool)
    if kind == "number":
        numbers, bad = parse_numbers(values)
        return pd.Series(numbers), bad
    if kind == "flag":
        flags = parse_flags(values)
        return (flags if flags is not None else pd.to_numeric(values).astype("boolean")), bad
    if kind == "date":
        times = parse_times(values)
        return pd.to_datetime(pd.Series(times.seconds), unit="s", utc=True), times.bad
    cells = values.astype(object)
    if kind in ("text", "category"):
        cells = cells.map(lambda cell: None if isinstance(cell, str) and not cell.strip() else cell)
    if kind == "text":
        cells = cells.map(lambda cell: cell if isinstance(cell, str) else str(cell), na_action="ignore")
    return cells.astype(object).where(cells.notna(), None), bad


def clean_ids(values: pd.Series) -> tuple[pd.Series, NDArray[np.bool_]]:
    """The ids as they came, whole floats (gaps made them so) as integers, and (n,) bool marking missing ones."""
    missing = values.isna().to_numpy().copy()
    if values.dtype.kind == "f":
        missing |= ~np.isfinite(values.to_numpy(np.float64, na_value=np.nan))
        whole = values[~missing]
        if len(whole) and (whole == np.floor(whole)).all() and (whole.abs() < 2**53).all():
            values = values.where(~missing).astype("Int64")
    elif isinstance(values.dtype, pd.StringDtype):
        missing |= (values.str.strip() == "").to_numpy(bool, na_value=False)
    elif values.dtype == object:
        missing |= np.array([isinstance(v, str) and not v.strip() for v in values], bool)
    return values, missing


def settled_ids(values: pd.Series) -> pd.Series:
    """Ids without gaps in their plainest type: int64, str, or object where they are mixed."""
    if values.dtype == object:
        kinds = {type(v) for v in values}
        return values.infer_objects() if len(kinds) == 1 else values
    if pd.api.types.is_integer_dtype(values) and (values.dtype.kind != "u" or values.max() < 2**63):
        return values.astype(np.int64)
    return values


def as_known_ids(ids: pd.Index, known: IdMap) -> pd.Index | None:
    """`ids` in the type of `known`, each converted exactly (never "007" to 7); None where that cannot be done."""
    kinds, wanted = {type(v) for v in ids.tolist()}, {type(v) for v in known.ids[:1000].tolist()}
    if len(kinds) != 1 or len(wanted) != 1:
        return None
    to, values = wanted.pop(), list(ids)
    same: list[Any] | None = None
    if to is int and kinds == {str} and all(re.fullmatch(r"(0|-?[1-9]\d{0,17})(\.0+)?", v, re.ASCII) for v in values):
        same = [int(v.split(".")[0]) for v in values]
    elif to is str and kinds <= {int, UUID}:
        same = [str(v) for v in values]
    elif to is str and kinds == {str} and all(re.fullmatch(r"\d+\.0", v, re.ASCII) for v in values):
        same = [v[:-2] for v in values]
    elif to is UUID and kinds == {str}:
        with contextlib.suppress(ValueError):
            same = [UUID(v) for v in values]
    if same is None:
        return None
    index: pd.Index = pd.Index(same)
    return index
