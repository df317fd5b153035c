"""Feature engineering on tables: item attributes scaled and encoded, and event counts without leakage from the future.

Vectors of text and pictures come from the encoders of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from recotransfer.data import Interactions, Items
from recotransfer.errors import InputError, require

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer


MISSING = "(missing)"
SKEWED = 1.0  # sample skewness above which a column of non-negative numbers is put on a log scale
DAY = 86400.0  # seconds
_SEVERAL = "several:"  # marks the steps of columns that hold several values in one cell


def attribute_transformer(
    items: Items, columns: Sequence[str] | None = None, *, min_frequency: int = 2, max_categories: int = 128
) -> ColumnTransformer:
    """Build an unfitted scikit-learn `ColumnTransformer` for the number and category columns of `items`.

    Fit it on `items.columns`. It returns a dense (n, features) float array, finite for every input, and names its
    columns in `get_feature_names_out()`.

    - Numbers: missing values are replaced by the median and marked in an extra 0/1 column, columns that are
      non-negative and skewed in `items` are put on a log scale (log1p), and all are standardised.
    - Categories: one-hot, with a column for missing values. Values of fewer than `min_frequency` items and those beyond
      `max_categories` share one column, which also stands for values unseen in fit; without it those are all zeros.
    - Categories with several values in one cell ("Comedy|Drama"): a 0/1 column for each of the `max_categories` most
      frequent values.

    Args:
        items: the catalogue; only its kinds and the skewness of its numbers are used here.
        columns: the columns to use, of kind number or category or of bool type; None takes all numbers and categories.
        min_frequency: fewest items of a category value that gets its own column.
        max_categories: most columns per category.

    Raises:
        InputError: the items lack a column, it is of another kind, or no column can be used at all.

    >>> from recotransfer.data import IdMap, Items
    >>> frame = pd.DataFrame({"price": [1.0, None, 3.0], "brand": ["A", "A", "B"]})
    >>> items = Items(IdMap(["x", "y", "z"]), frame, {"price": "number", "brand": "category"})
    >>> attribute_transformer(items, min_frequency=1).fit_transform(items.columns).round(1).tolist()
    [[-1.2, -0.7, 1.0, 0.0], [0.0, 1.4, 1.0, 0.0], [1.2, -0.7, 0.0, 1.0]]
    """
    ColumnTransformer = require("sklearn.compose").ColumnTransformer

    names = _attribute_columns(items, columns)
    numbers = [c for c in names if items.kinds.get(c) != "category"]
    skewed = [c for c in numbers if _is_skewed(items.columns[c])]
    plain = [c for c in numbers if c not in skewed]
    several = [c for c in names if c not in numbers and _holds_several(items.columns[c])]
    single = [c for c in names if c not in numbers and c not in several]
    steps: list[tuple[str, Any, Any]] = []
    if plain:
        steps.append(("number", _number_steps(log=False), plain))

    if skewed:
        steps.append(("log_number", _number_steps(log=True), skewed))

    if single:
        steps.append(("category", _category_steps(min_frequency, max_categories), single))

    steps += [(f"{_SEVERAL}{c}", _values_steps(max_categories), c) for c in several]

    return ColumnTransformer(steps, sparse_threshold=0.0, verbose_feature_names_out=feature_name)


def _attribute_columns(items: Items, columns: Sequence[str] | None) -> list[str]:
    if columns is None:
        names = [str(c) for c in items.columns.columns if items.kinds.get(c) in ("number", "category")]
    else:
        names = [columns] if isinstance(columns, str) else list(columns)

    for name in names:
        if name not in items.columns.columns:
            raise InputError(f"the items have no column {name!r}; they have {list(items.columns.columns)}")
        if items.kinds.get(name) not in ("number", "category") and not pd.api.types.is_bool_dtype(items.columns[name]):
            raise InputError(
                f"column {name!r} is {items.kinds.get(name, 'of no kind')}, not a number or category; "
                "leave it out or set its kind when reading the items"
            )

    if not names:
        raise InputError(
            f"the items have no number or category column, only {list(items.columns.columns)}; "
            "set the kind of a column when reading the items, or encode their text"
        )

    return names


def _number_steps(*, log: bool) -> Any:
    SimpleImputer = require("sklearn.impute").SimpleImputer
    make_pipeline = require("sklearn.pipeline").make_pipeline
    FunctionTransformer = require("sklearn.preprocessing").FunctionTransformer
    StandardScaler = require("sklearn.preprocessing").StandardScaler

    return make_pipeline(
        FunctionTransformer(as_log if log else as_numbers, feature_names_out="one-to-one"),
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
        StandardScaler(),
    )


def _category_steps(min_frequency: int, max_categories: int) -> Any:
    make_pipeline = require("sklearn.pipeline").make_pipeline
    FunctionTransformer = require("sklearn.preprocessing").FunctionTransformer
    OneHotEncoder = require("sklearn.preprocessing").OneHotEncoder

    encoder = OneHotEncoder(
        handle_unknown="infrequent_if_exist",
        min_frequency=min_frequency,
        max_categories=max_categories,
        sparse_output=False,
        dtype=np.float32,
    )

    return make_pipeline(FunctionTransformer(as_labels, feature_names_out="one-to-one"), encoder)


def _values_steps(max_categories: int) -> Any:
    CountVectorizer = require("sklearn.feature_extraction.text").CountVectorizer
    make_pipeline = require("sklearn.pipeline").make_pipeline
    FunctionTransformer = require("sklearn.preprocessing").FunctionTransformer

    # No `min_df` here: a vocabulary that it empties is an error in CountVectorizer, not an empty result.
    counter = CountVectorizer(analyzer=split_values, binary=True, max_features=max_categories, dtype=np.float32)
    return make_pipeline(FunctionTransformer(as_labels, feature_names_out="one-to-one"), counter)


def as_numbers(values: pd.DataFrame) -> pd.DataFrame:
    """The same columns as float64, NaN where a value is not a finite number."""
    columns = {c: pd.to_numeric(values[c], errors="coerce").astype(np.float64) for c in values.columns}
    numbers = pd.DataFrame(columns, index=values.index)
    return numbers.where(np.isfinite(numbers))


def as_log(values: pd.DataFrame) -> pd.DataFrame:
    """log(1 + x) of the columns; negative values, which no column had in fit, count as 0."""
    return as_numbers(values).clip(lower=0.0).transform(np.log1p)


def as_labels(values: Any) -> Any:
    """The same frame or column with every value as text, "(missing)" where there is none."""
    return values.astype(object).where(values.isna(), values.astype(str)).where(values.notna(), MISSING)


def split_values(cell: str) -> list[str]:
    """The values of a cell such as "Comedy|Drama"; a cell of separators only is missing."""
    return [part.strip() for part in cell.split("|") if part.strip()] or [MISSING]


def feature_name(step: str, feature: str) -> str:
    """Name of an output column, such as "price", "brand_Acme" or "genres_Comedy"."""
    return f"{step.removeprefix(_SEVERAL)}_{feature}" if step.startswith(_SEVERAL) else feature


def _is_skewed(column: pd.Series) -> bool:
    """Whether the column is non-negative and its sample skewness exceeds `SKEWED`."""
    if pd.api.types.is_bool_dtype(column):
        return False

    values = as_numbers(column.to_frame()).iloc[:, 0].dropna().to_numpy()
    if len(values) < 3 or values.min() < 0 or values.max() == values.min():
        return False

    standardised = (values - values.mean()) / values.std()
    return bool((standardised**3).mean() > SKEWED)


def _holds_several(column: pd.Series) -> bool:
    """Whether more than 5% of the cells contain a separator; fewer are taken for stray characters."""
    filled = column.dropna().astype(str)
    return bool(len(filled)) and bool(filled.str.contains("|", regex=False).mean() > 0.05)


def clusters(profiles: pd.DataFrame, count: int = 8, *, seed: int = 0) -> NDArray[np.int64]:
    """(rows,) cluster of each row, numbered from the largest: k-means (Lloyd, 1982) on the standardised number columns.

    Missing values count as the column's mean; skewed non-negative columns are put on a log scale.

    Args:
        profiles: one row per user or item.
        count: number of clusters.
        seed: random seed.

    Raises:
        InputError: there is no number column, or `count` is not from 1 to len(profiles).
    """
    KMeans = require("sklearn.cluster").KMeans

    numbers = profiles.select_dtypes("number")
    if not len(numbers.columns):
        raise InputError(f"profiles need a number column to cluster by; they have {list(profiles.columns)}")
    if not 1 <= count <= len(profiles):
        raise InputError(f"count is {count}; give 1 to {len(profiles)} clusters, the number of profiles")

    columns = [np.log1p(numbers[c]) if _is_skewed(numbers[c]) else numbers[c] for c in numbers.columns]
    table = pd.concat(columns, axis=1).astype(np.float64)
    table = ((table - table.mean()) / table.std(ddof=0).replace(0, 1)).fillna(0)
    labels = KMeans(count, n_init=10, random_state=seed).fit_predict(table.to_numpy())

    # Renumber the clusters, because k-means numbers them in arbitrary order.
    by_size = np.argsort(-np.bincount(labels, minlength=count), kind="stable")

    return np.asarray(np.argsort(by_size)[labels], np.int64)


def behaviour_counts(
    interactions: Interactions,
    of: Literal["user", "item"],
    *,
    ids: ArrayLike | pd.Index | None = None,
    at: ArrayLike | None = None,
    windows: Sequence[float | None] = (7.0, 30.0, None),
) -> pd.DataFrame:
    """Count each user's (or item's) events before given moments: one row per moment, int64 counts by event kind.

    An event counts for a moment `t` and a window of `w` days if `t - w <= time < t`. Events at `t` itself are excluded,
    so a row never counts its own event, nor anything that a split by time would hold out. Columns are named
    `user_view_7d`, `user_view_30d`, `user_view_all`; without event kinds `user_event_7d` and so on.

    Args:
        interactions: the log, with times.
        of: whether to count the events of users or of items.
        ids: (n,) users or items, one per row; the counts of unknown ids and ids without events are zero.
        at: (n,) moments in seconds since 1970, or one for all rows. If both `ids` and `at` are None, there is one row
            per event of the log, at its own time; with a single moment alone, one row per user (or item) of the log.
        windows: days to look back; None counts the whole past. Use (None,) if times only give an order.

    Raises:
        InputError: a log without times, `ids` without `at`, lengths that differ, or a window that is not positive.

    >>> from recotransfer.data import Interactions
    >>> log = pd.DataFrame({"user": ["u", "u", "v"], "item": ["a", "b", "a"], "time": [0.0, 86400.0, 86400.0]})
    >>> behaviour_counts(Interactions.from_frame(log, time="time"), "item", windows=(7, None)).to_dict("list")
    {'item_event_7d': [0, 0, 1], 'item_event_all': [0, 0, 1]}
    """
    if of not in ("user", "item"):
        raise InputError(f"of must be 'user' or 'item', got {of!r}")
    if interactions.time is None:
        raise InputError("the interactions have no times, which event counts need; read them with a time column")
    if any(w is not None and not w > 0 for w in windows):
        raise InputError(f"windows must be positive numbers of days, or None for the whole past; got {list(windows)}")

    entity = interactions.user if of == "user" else interactions.item
    who, when = _moments(interactions, of, ids, at)
    kinds = interactions.kinds if interactions.kind is not None else ("event",)
    kind = np.zeros(len(interactions), np.int16) if interactions.kind is None else interactions.kind
    out: dict[str, NDArray[np.int64]] = {}

    for position, name in enumerate(kinds):
        rows = kind == position
        past = _Past(entity[rows], interactions.time[rows])
        for window in windows:
            label = "all" if window is None else f"{window:g}d"
            start = np.full(len(when), -np.inf) if window is None else when - window * DAY
            out[f"{of}_{name}_{label}"] = past.before(who, when) - past.before(who, start)

    return pd.DataFrame(out)


def event_counts(interactions: Interactions, *, windows: Sequence[float | None] = (7.0, 30.0, None)) -> pd.DataFrame:
    """The `behaviour_counts` of each event's user and of its item just before the event, one row per event."""
    sides: tuple[Literal["user", "item"], ...] = ("user", "item")
    return pd.concat([behaviour_counts(interactions, of, windows=windows) for of in sides], axis=1)


class _Past:
    """Events sorted by entity, then time, so that any count is a difference of two binary searches."""

    def __init__(self, entity: NDArray[np.int64], time: NDArray[np.float64]) -> None:
        self.times, rank = np.unique(time, return_inverse=True)
        self.keys = np.sort(entity * (len(self.times) + 1) + rank)

    def before(self, entity: NDArray[np.int64], time: NDArray[np.float64]) -> NDArray[np.int64]:
        """(n,) number of events of each entity strictly before `time`, plus all events of lower entities.

        The latter cancel in differences. For unknown entities, -1, all counts are 0.
        """
        rank = np.searchsorted(self.times, time, side="left")
        at = np.searchsorted(self.keys, entity * (len(self.times) + 1) + rank, side="left")
        return np.where(entity < 0, 0, at)


def _moments(
    interactions: Interactions, of: Literal["user", "item"], ids: ArrayLike | pd.Index | None, at: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The entity (n,) and the moment (n,) of each row of `behaviour_counts`; unknown ids are -1."""
    assert interactions.time is not None  # checked by the caller
    id_map = interactions.users if of == "user" else interactions.items
    if ids is None and at is None:
        return (interactions.user if of == "user" else interactions.item), interactions.time
    if at is None:
        raise InputError("ids without at; give the moment of each id too, in seconds since 1970")

    when = np.asarray(at, np.float64)
    if ids is None and when.ndim:
        raise InputError("several moments but no ids; give one id per moment, or one moment for all ids")

    who = np.arange(len(id_map)) if ids is None else id_map.positions(ids, missing="negative")
    if when.ndim and when.shape != who.shape:
        raise InputError(f"{len(who)} ids but moments of shape {when.shape}; give one moment per id, or one for all")
    if np.isnan(when).any():
        raise InputError(f"moment {int(np.flatnonzero(np.isnan(np.atleast_1d(when)))[0])} is NaN; give seconds")

    return who, np.broadcast_to(when, who.shape)
