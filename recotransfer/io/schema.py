"""What the columns of a table mean: roles (user, item, time, ...) and kinds (text, image, category, number)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.data import ColumnKind, IdMap
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
