"""What the columns of a table mean: roles (user, item, time, ...) and kinds (text, image, category, number)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.data import ColumnKind
from recotransfer.data.moments import are_durations, as_datetimes, as_seconds
from recotransfer.errors import InputError
from recotransfer.io.parsing import NEARLY_ALL, parse_flags, parse_numbers, parse_times, words

_FLAG_NAMES = {"is", "has", "in", "available", "active", "enabled", "instock"}
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
    """The kind of an item column: a `ColumnKind`, "flag" or "date" for columns without content, None for other ids.

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
    if as_seconds(values) is not None:
        return "number" if are_durations(values) else "date"
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


def has_dates(name: str, values: pd.Series) -> bool:
    """Whether a column holds dates, or is called as if it did."""
    head = values.dropna().iloc[:1000]
    if not len(head):
        return False

    moments = as_seconds(head)
    if moments is not None:
        return not are_durations(head)
    if (_DATE | {"ts", "epoch"}) & set(words(name)):
        return _are_dates(head)

    dated = r"\s*(?:\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./]\d{1,2}[./]\d{2,4})(?:[T\s].*)?"

    return not pd.api.types.is_numeric_dtype(head) and bool(head.astype(str).str.fullmatch(dated).mean() >= NEARLY_ALL)


def wordiest(columns: pd.DataFrame, names: Sequence[str]) -> str | None:
    """The category to use as text when there is no title: at least 100 values, most of two words or more."""
    counts = {c: columns[c].nunique() for c in names if columns[c].dropna().astype(str).str.count(" ").median() >= 1}
    best = max(counts, key=lambda c: counts[c], default=None)
    return best if best is not None and counts[best] >= 100 else None


# Usual names in order of trust, without case or separators. Two names of one rank in one table are ambiguous.
_ROLES: dict[str, tuple[str, ...]] = {
    "user": (
        "userid",
        "user",
        "customer customerid custid visitor visitorid household householdid householdkey reviewer reviewerid shopper "
        "shopperid buyer buyerid client clientid member memberid account accountid patient patientid subject subjectid",
        "session sessionid username uid",
    ),
    "item": (
        "itemid",
        "item",
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


@checked_class
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


@dataclass(frozen=True)
class FoundColumns:
    """The column of each role that a table has, and notes on choices between several columns."""

    names: dict[str, str]
    notes: tuple[str, ...]


def find_columns(
    frame: pd.DataFrame,
    table: Literal["items", "interactions"],
    given: Mapping[str, str] | None,
    source: str,
    *,
    roles: Sequence[str] | None = None,
    share_known: Mapping[str, Callable[[pd.Series], float]] | None = None,
) -> FoundColumns:
    """The column of each role: the given one, else the one that holds known ids, else the one with the usual name.

    Args:
        frame: the table.
        table: which kind of table it is.
        given: role -> column, as the caller says.
        source: the table's name in messages.
        roles: those looked for, by default all that the table can have.
        share_known: role -> a function that gives the share of a column's ids that the other table has too. Among
            several columns that may have the role, the one with the greatest share is taken.

    Raises:
        InputError: a role or column that does not exist, a needed role that no column fills, or one that two may fill.
    """
    names = list(frame.columns)
    roles = roles or (("item",) if table == "items" else tuple(_ROLES))
    flag = "--item-column" if table == "items" else "--event-column"
    found = dict(given or {})
    notes: list[str] = []

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

        ranked = _ranked(frame[free], role, table)
        fits, why = _best(frame, ranked, (share_known or {}).get(role))
        remedy = f'name it with columns={{"{role}": ...}} (on the command line: {flag} {role}=NAME)'
        if len(fits) > 1:
            raise InputError(f"{source}: the {role} may be in {' or '.join(map(repr, fits))}; {remedy}")

        if fits:
            found[role] = fits[0]
            others = [name for rank in ranked for name in rank if name != fits[0]]
            if others:
                notes.append(
                    f"the {role} was taken from {fits[0]!r}, {why}, and not from {', '.join(map(repr, others))}; to "
                    f"change that, {remedy}"
                )
        elif role in ("user", "item"):
            raise InputError(f"{source}: no column looks like the {role}; its columns are {', '.join(names)}; {remedy}")

    return FoundColumns(found, tuple(notes))


def id_columns(
    frame: pd.DataFrame, role: Literal["user", "item"], table: Literal["items", "interactions"]
) -> list[str]:
    """All columns that may hold the ids of this role, the likeliest name first."""
    return [name for rank in _ranked(frame, role, table) for name in rank]


def is_role_name(name: str, role: Literal["user", "item"]) -> bool:
    """Whether a column of this name holds the ids of this role, or plainly some ids."""
    plain = _plain(name)
    return plain.removesuffix("s") in {"id", role} or any(plain in rank.split() for rank in _ROLES[role])


def _best(
    frame: pd.DataFrame, ranked: list[list[str]], share_known: Callable[[pd.Series], float] | None
) -> tuple[list[str], str]:
    """The columns that fit best, more than one where nothing tells them apart, and why they do."""
    names = [name for rank in ranked for name in rank]
    by_name = ranked[0] if ranked else []
    if share_known is None or len(names) < 2:
        return by_name, "which has the likeliest name"

    shares = {name: round(share_known(frame[name]), 3) for name in names}
    most = max(shares.values())
    if most == 0 or shares[by_name[0]] == most:
        return [name for name in by_name if shares[name] == most], "which has the likeliest name"

    return [next(name for name in names if shares[name] == most)], "whose ids the other table uses"


def _ranked(frame: pd.DataFrame, role: str, table: Literal["items", "interactions"]) -> list[list[str]]:
    """Columns that may have the role by their names, those of equal trust together, the best first."""
    plain = {name: _plain(name) for name in frame.columns}
    ranks = [set(rank.split()) for rank in _ROLES[role]]
    if table == "items":
        # Beside a plain "id", a column called "product" or "book" holds a title.
        named = {"product", "movie", "article", "book", "track", "song", "listing"}
        own = [{"itemid"}, {"item"}, {"id"}]
        if any(_holds_titles(frame[name]) for name, p in plain.items() if p == "item"):
            own, named = [{"itemid"}, {"id"}], named | {"item"}

        ranks = [*own[:-1], ranks[2] - named, own[-1], ranks[3], named, {"index"}]

    fits = ([name for name, p in plain.items() if p in rank] for rank in ranks)

    return [fit for fit in fits if fit]


def _holds_titles(values: pd.Series) -> bool:
    """Whether the cells are words, or occur again and again, so that they are no ids of a catalogue."""
    filled = values.dropna().astype(str)
    return bool(len(filled)) and (filled.str.count(" ").median() >= 1 or filled.duplicated().mean() > 0.1)


def is_row_number(name: str, values: pd.Series) -> bool:
    """Whether the column only numbers the rows, as the index of a frame does once it was written to a file."""
    plain = _plain(name)
    unnamed = re.fullmatch(r"Unnamed: \d+(\.\d+)*", name) is not None
    if not unnamed and plain not in ("index", "level0", "rowid", "rownames", "rownumber"):
        return False

    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    steps = np.diff(numbers)
    if np.isnan(numbers).any():
        return False

    return bool((steps > 0).all() if unnamed else (steps == 1).all() and numbers[0] in (0, 1))


def flat(values: pd.Series, name: str) -> pd.Series:
    """The column with lists as text ("a|b", or "a b" in a column of running text) and {"bytes": ...} as bytes."""
    first = next(iter(values.dropna()), None)
    if isinstance(first, dict) and isinstance(first.get("bytes"), bytes):
        return values.map(lambda cell: cell.get("bytes"), na_action="ignore")

    texts = isinstance(first, (list, tuple, np.ndarray)) and all(isinstance(part, str) for part in first)
    if texts:  # a list of numbers is a vector or a picture, and stays
        glue = " " if set(words(name)) & _TEXT else "|"
        joined = [None if cell is None or isinstance(cell, float) else glue.join(map(str, cell)) for cell in values]
        return pd.Series(joined, dtype=object)

    return values


def typed(
    values: pd.Series, kind: ColumnKind | str | None, notes: list[str], *, decimal_comma: bool = False
) -> tuple[pd.Series, NDArray[np.bool_]]:
    """The column as its kind wants it, gaps as None or NaN, and (n,) bool marking cells that could not be read.

    `notes` takes sentences on choices that were made; `decimal_comma` is as in `parse_numbers`.
    """
    bad = np.zeros(len(values), bool)
    if kind == "number":
        numbers, bad = parse_numbers(values, notes, decimal_comma=decimal_comma)
        return pd.Series(numbers), bad

    if kind == "flag":
        flags = parse_flags(values)
        return (flags if flags is not None else pd.to_numeric(values).astype("boolean")), bad

    if kind == "date":
        times = parse_times(values)
        return as_datetimes(times.seconds), times.bad

    cells = values.astype(object)
    if kind in ("text", "category"):
        cells = cells.map(lambda cell: None if isinstance(cell, str) and not cell.strip() else cell)

    if kind == "text":
        cells = cells.map(lambda cell: cell if isinstance(cell, str) else str(cell), na_action="ignore")

    return cells.astype(object).where(cells.notna(), None), bad
