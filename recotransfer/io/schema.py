"""What the columns of a table mean: their roles (user, item, time, ...) and kinds (text, image, category, number).

Both are inferred from the column's name and, where the name leaves it open, from its cells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.arguments import checked_class
from recotransfer.data import ColumnKind
from recotransfer.data.moments import are_durations, as_datetimes, as_seconds
from recotransfer.errors import InputError
from recotransfer.io.parsing import NEARLY_ALL, parse_flags, parse_numbers, parse_times, words

# Words in column names that suggest what the column holds.
_FLAG_WORDS = {"is", "has", "in", "available", "active", "enabled", "instock"}
_CATEGORY_WORDS = set(
    words(
        "brand category categories color colour colours colors genre genres gender season department manufacturer "
        "material type style shop store vendor language country publisher maker usage class group aisle family"
    )
)
_TEXT_WORDS = set(
    words(
        "title titles name description desc summary text body plot overview abstract headline about content details "
        "subtitle caption question answer review sequence"
    )
)
_IMAGE_WORDS = set(words("image images img picture pictures photo photos thumbnail thumb jpeg jpg png"))
_DATE_WORDS = set(words("date time datetime timestamp created updated released published launched"))
_ID_WORDS = set(words("id ids uuid guid key sku asin ean upc gtin isbn url link"))
_PRICE_WORDS = set(words("price cost msrp rrp"))

_IMAGE_FILE = r"\.(?:jpe?g|png|webp|gif|bmp|tiff?)(?:\?.*)?\s*$"
_IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")  # first bytes of image files


def is_price(name: str) -> bool:
    """Whether a column of this name holds prices, which cannot be negative."""
    return bool(_PRICE_WORDS & set(words(name)))


def guess_kind(name: str, values: pd.Series, rows: int) -> ColumnKind | str | None:
    """The kind of an item column: a `ColumnKind`, or "flag", "date" or None (an id, or unknown content).

    Args:
        name: the column's name; it lowers or raises the thresholds for the cells.
        values: the column's cells.
        rows: the number of items.
    """
    name_words = set(words(name))
    filled = values.dropna()
    if not len(filled):
        return None
    if isinstance(filled.iloc[0], bytes):
        return "image" if name_words & _IMAGE_WORDS or filled.iloc[0].startswith(_IMAGE_SIGNATURES) else None
    if isinstance(filled.iloc[0], (dict, list, np.ndarray)):
        return "image" if name_words & _IMAGE_WORDS else None
    if as_seconds(values) is not None:
        return "number" if are_durations(values) else "date"
    if pd.api.types.is_bool_dtype(values) or parse_flags(values) is not None:
        return "flag"

    return _kind_of_cells(name_words, filled, rows)


def _kind_of_cells(name_words: set[str], filled: pd.Series, rows: int) -> ColumnKind | str | None:
    """The kind of a column of text or numbers, from the words of its name and its non-empty cells.

    The order matters: file names and ids would pass as text or categories, and years as dates.
    """
    head = filled.iloc[:10_000]
    cells = head.astype(str)
    numeric = pd.api.types.is_numeric_dtype(filled)

    image_files = 0.0 if numeric else cells.str.contains(_IMAGE_FILE, regex=True, case=False).mean()
    if image_files > (0.5 if name_words & _IMAGE_WORDS else NEARLY_ALL):
        return "image"

    # Ids of the items themselves carry no content, but ids of something shared, such as a brand, are a category.
    distinct = filled.nunique()
    if (name_words & _ID_WORDS or "code" in name_words) and cells.str.count(" ").median() < 1:
        return "category" if distinct < 0.5 * rows and cells.str.len().median() <= 40 else None

    short = cells.str.len().quantile(0.9) <= 60
    if name_words & _CATEGORY_WORDS and short and (distinct < 0.9 * rows or rows < 20):
        return "category"

    _, bad = parse_numbers(head)
    if numeric or 1 - bad.mean() >= (0.5 if name_words & _PRICE_WORDS else NEARLY_ALL):
        binary = set(pd.to_numeric(filled, errors="coerce").unique()) <= {0, 1}
        return "flag" if binary and name_words & _FLAG_WORDS else "number"

    date_name = bool(name_words & _DATE_WORDS) or "at" in name_words  # "added_at"
    if (date_name or cells.str.match(r"\d{4}-\d{2}-\d{2}").all()) and _are_dates(head):
        return "date"

    few = distinct <= max(2, min(0.2 * rows, 1000))
    if not name_words & _TEXT_WORDS and short and ((rows >= 20 and few) or name_words & {"size", "model", "format"}):
        return "category"

    return "text"


def _are_dates(values: pd.Series) -> bool:
    """Whether nearly all cells can be read as dates."""
    try:
        return bool(1 - parse_times(values).bad.mean() >= NEARLY_ALL)
    except InputError:
        return False


def has_dates(name: str, values: pd.Series) -> bool:
    """Whether the column holds dates: typed ones, text in a usual form, or anything readable if its name says so."""
    head = values.dropna().iloc[:1000]
    if not len(head):
        return False
    if as_seconds(head) is not None:
        return not are_durations(head)
    if (_DATE_WORDS | {"ts", "epoch"}) & set(words(name)):
        return _are_dates(head)

    date = r"\s*(?:\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./]\d{1,2}[./]\d{2,4})(?:[T\s].*)?"

    return not pd.api.types.is_numeric_dtype(head) and bool(head.astype(str).str.fullmatch(date).mean() >= NEARLY_ALL)


def wordiest(columns: pd.DataFrame, names: Sequence[str]) -> str | None:
    """The best substitute for a title in a catalogue without text; None if no column is good enough.

    It is the column with the most distinct values, at least 100, of those whose cells mostly have several words.
    """
    counts = {c: columns[c].nunique() for c in names if columns[c].dropna().astype(str).str.count(" ").median() >= 1}
    best = max(counts, key=lambda c: counts[c], default=None)
    return best if best is not None and counts[best] >= 100 else None


# Usual names of each role in lower case without separators, best first. Two columns of one rank are ambiguous.
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

# Event kinds: their synonyms, also without separators, and their usual weights.
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
    """How events and ratings become the weights of interactions.

    Attributes:
        weights: weight by event kind, in addition to the defaults (view, click and search 1, cart 3, purchase 5, also
            under their usual synonyms). Events of weight 0 are dropped.
        rating_threshold: keep only ratings of at least this value, each with weight 1.
        rating_as_weight: use the rating as weight; combined with a threshold, that of the ratings that reach it.
        repeats: what becomes of several events of the same user and item. "all" keeps each; "sum" merges them into one
            with the total weight and the time and kind of the latest; "last" keeps only the latest. Without times, the
            later row is the latest.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    rating_threshold: float | None = None
    rating_as_weight: bool = False
    repeats: Literal["sum", "last", "all"] = "all"

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not np.isfinite(weight):
                raise InputError(f"the weight of event {name!r} must be a finite number, got {weight!r}")

    def table(self) -> dict[str, float]:
        """Weight by event kind: the defaults, overridden and extended by `weights`."""
        # A default given in another spelling, such as "Purchase", is overridden under that spelling.
        spelling = {_plain(name): name for name in self.weights}
        names = {kind: spelling.get(kind, kind) for kind in _USUAL_WEIGHTS}
        usual = {name: float(self.weights.get(name, _USUAL_WEIGHTS[kind])) for kind, name in names.items()}
        return {**usual, **{name: float(weight) for name, weight in self.weights.items()}}

    def kind_of(self, name: str) -> str | None:
        """The kind of an event called `name`, in any spelling or by a synonym; None if it is unknown."""
        kinds = {_plain(kind): kind for kind in self.table()}
        return kinds.get(_plain(name)) or kinds.get(_CANONICAL.get(_plain(name), ""))


def _plain(name: str) -> str:
    """The name in lower case without separators: "user_id", "userId" and "User ID" are one name."""
    return re.sub(r"[\W_]", "", name.lower())


@dataclass(frozen=True)
class FoundColumns:
    """Role -> column for the roles that a table has, and notes on choices between several columns."""

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
    """The column of each role: the given one, else the one with the most known ids, else the one with a usual name.

    Args:
        frame: the table.
        table: the kind of table.
        given: role -> column, as set by the caller.
        source: the table's name in messages.
        roles: the roles to look for; by default all that this kind of table can have.
        share_known: role -> a function that returns the share of a column's ids that occur in the other table. Of
            several candidates for a role, the one with the greatest share is chosen.

    Raises:
        InputError: a given role or column does not exist, or a user or item column is missing or ambiguous.
    """
    names = list(frame.columns)
    roles = roles or (("item",) if table == "items" else tuple(_ROLES))
    flag = "--item-column" if table == "items" else "--event-column"
    found = dict(given or {})
    notes: list[str] = []

    for role, name in found.items():
        if role not in roles:
            raise InputError(f"columns names an unknown role {role!r}; the roles of {table} are {', '.join(roles)}")
        if name not in names:
            raise InputError(f"{source}: no column {name!r} for the {role}; its columns are {', '.join(names)}")

    if len(set(found.values())) < len(found):
        raise InputError(f"{source}: columns gives several roles the same column: {found}; name one column per role")

    for role in roles:
        if role in found:
            continue

        free = [name for name in names if name not in found.values()]
        ranks = _ranked(frame[free], role, table)
        best, why = _best(frame, ranks, (share_known or {}).get(role))
        remedy = f'pass columns={{"{role}": ...}} (on the command line: {flag} {role}=NAME)'
        if len(best) > 1:
            raise InputError(f"{source}: the {role} column could be {' or '.join(map(repr, best))}; {remedy}")

        if best:
            found[role] = best[0]
            others = [name for rank in ranks for name in rank if name != best[0]]
            if others:
                notes.append(
                    f"the {role} was read from {best[0]!r}, {why}, not from {', '.join(map(repr, others))}; to choose "
                    f"another column, {remedy}"
                )
        elif role in ("user", "item"):
            raise InputError(f"{source}: found no column for the {role}; its columns are {', '.join(names)}; {remedy}")

    return FoundColumns(found, tuple(notes))


def id_columns(
    frame: pd.DataFrame, role: Literal["user", "item"], table: Literal["items", "interactions"]
) -> list[str]:
    """All columns that may hold the ids of this role, by rank of their names."""
    return [name for rank in _ranked(frame, role, table) for name in rank]


def is_role_name(name: str, role: Literal["user", "item"]) -> bool:
    """Whether this is a usual name for a column with the ids of this role, or "id" or "ids"."""
    plain = _plain(name)
    return plain.removesuffix("s") in {"id", role} or any(plain in rank.split() for rank in _ROLES[role])


def _best(
    frame: pd.DataFrame, ranks: list[list[str]], share_known: Callable[[pd.Series], float] | None
) -> tuple[list[str], str]:
    """The best candidates, several if they cannot be told apart, and the reason in words."""
    names = [name for rank in ranks for name in rank]
    by_name = ranks[0] if ranks else []
    if share_known is None or len(names) < 2:
        return by_name, "which has the most usual name"

    shares = {name: round(share_known(frame[name]), 3) for name in names}
    most = max(shares.values())
    if most == 0 or shares[by_name[0]] == most:
        return [name for name in by_name if shares[name] == most], "which has the most usual name"

    return [next(name for name in names if shares[name] == most)], "whose ids occur in the other table"


def _ranked(frame: pd.DataFrame, role: str, table: Literal["items", "interactions"]) -> list[list[str]]:
    """The columns with a usual name for the role, grouped by rank, best first."""
    plain_names = {name: _plain(name) for name in frame.columns}
    ranks = [set(rank.split()) for rank in _ROLES[role]]

    # In a catalogue, "id" alone is an item id, and a "product" or "book" next to it is more likely the title.
    if table == "items":
        title_like = {"product", "movie", "article", "book", "track", "song", "listing"}
        exact = [{"itemid"}, {"item"}, {"id"}]
        if any(_holds_titles(frame[name]) for name, plain in plain_names.items() if plain == "item"):
            exact, title_like = [{"itemid"}, {"id"}], title_like | {"item"}

        ranks = [*exact[:-1], ranks[2] - title_like, exact[-1], ranks[3], title_like, {"index"}]

    columns = ([name for name, plain in plain_names.items() if plain in rank] for rank in ranks)

    return [group for group in columns if group]


def _holds_titles(values: pd.Series) -> bool:
    """Whether the cells are titles rather than ids: several words each, or often repeated."""
    filled = values.dropna().astype(str)
    return bool(len(filled)) and (filled.str.count(" ").median() >= 1 or filled.duplicated().mean() > 0.1)


def is_row_number(name: str, values: pd.Series) -> bool:
    """Whether the column only numbers the rows, such as the index that pandas writes to a CSV file.

    The index of a filtered frame has gaps, so columns called "Unnamed: 0" only need to increase.
    """
    plain = _plain(name)
    unnamed = re.fullmatch(r"Unnamed: \d+(\.\d+)*", name) is not None
    if not unnamed and plain not in ("index", "level0", "rowid", "rownames", "rownumber"):
        return False

    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if np.isnan(numbers).any():
        return False

    steps = np.diff(numbers)

    return bool((steps > 0).all() if unnamed else (steps == 1).all() and numbers[0] in (0, 1))


def flat(values: pd.Series, name: str) -> pd.Series:
    """The column with lists of text joined to "a|b" (in text columns "a b"), and {"bytes": ...} replaced by the bytes.

    The latter is how Hugging Face data sets store images.
    """
    first = next(iter(values.dropna()), None)
    if isinstance(first, dict) and isinstance(first.get("bytes"), bytes):
        return values.map(lambda cell: cell.get("bytes"), na_action="ignore")

    # Lists of numbers are vectors or images, and are left as they are.
    if isinstance(first, (list, tuple, np.ndarray)) and all(isinstance(element, str) for element in first):
        separator = " " if set(words(name)) & _TEXT_WORDS else "|"
        texts = [None if cell is None or isinstance(cell, float) else separator.join(map(str, cell)) for cell in values]
        return pd.Series(texts, dtype=object)

    return values


def typed(
    values: pd.Series, kind: ColumnKind | str | None, notes: list[str], *, decimal_comma: bool = False
) -> tuple[pd.Series, NDArray[np.bool_]]:
    """The column converted to its kind, and (n,) bool marking cells that cannot be read. Gaps are None, NaN or NaT.

    Args:
        values: the column.
        kind: as in `guess_kind`.
        notes: messages on ambiguous cells are appended to it.
        decimal_comma: as in `parse_numbers`.
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
