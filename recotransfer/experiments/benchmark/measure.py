"""Tables from a model's test lists: ranking metrics with intervals over users, by bucket, and beyond accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.data import Embeddings, Filter, IdMap, Interactions, Items, Recommendations
from recotransfer.evaluation import metrics
from recotransfer.evaluation.split import Split
from recotransfer.evaluation.uncertainty import interval
from recotransfer.recommenders import Popularity

_DAY = 86_400.0
_AGES = ((-np.inf, 7, "under a week"), (7, 30, "1-4 weeks"), (30, 180, "1-6 months"), (180, 365, "6-12 months"),
         (365, np.inf, "over a year"))  # fmt: skip
_HISTORIES = ((0, 0, "none"), (1, 2, "1-2"), (3, 5, "3-5"), (6, 10, "6-10"), (11, 20, "11-20"), (21, np.inf, "over 20"))


class Ranking(NamedTuple):
    """One ranking task of the test.

    Attributes:
        truth: the events to predict.
        allow: the items to rank; None is all items.
    """

    truth: Interactions
    allow: IdMap | None


def rankings_of(split: Split) -> dict[str, Ranking]:
    """Name of each ranking -> events to predict and items to rank.

    "all" is the protocol's own ranking. "warm" and "cold" rank only items with, or without, training events, and
    predict only test events of such items; they exist if the test has events of both. "mixed" ranks all items if the
    protocol itself ranks only some of them.
    """
    out = {"all": Ranking(split.test, split.test_items)}
    if split.test_items is not None:
        if len(split.test_items) < len(split.test.items):
            out["mixed"] = Ranking(split.test, None)

        return out

    warm = np.bincount(split.train.item, minlength=len(split.train.items)) > 0
    warm_events = warm[split.test.item]
    if warm_events.all() or not warm_events.any():
        return out

    for name, ranked, rows in (("warm", warm, warm_events), ("cold", ~warm, ~warm_events)):
        ids = IdMap(split.test.items.take(np.flatnonzero(ranked)))
        out[name] = Ranking(split.test.select(rows), ids)

    return out


@dataclass(frozen=True)
class Measured:
    """The test results of one variant.

    Attributes:
        tables: name -> JSON-compatible table: "rankings", "popularity", "ages" (timed logs only), "histories",
            "beyond".
        per_user: one row per ranking and test user, with columns ranking, user and one per metric.
    """

    tables: dict[str, Any]
    per_user: pd.DataFrame


def measure(
    lists: Mapping[str, Recommendations],
    split: Split,
    ks: Sequence[int],
    *,
    items: Items | None = None,
    vectors: Embeddings | None = None,
) -> Measured:
    """Results of the lists made for `rankings_of(split)`.

    Args:
        lists: ranking -> lists of at least max(ks) items.
        split: the protocol.
        ks: list lengths to report; the first is the primary one.
        items: the catalogue; its first category column, if any, is used for calibration.
        vectors: vectors of the items, for the diversity of lists.
    """
    wanted, k = rankings_of(split), ks[0]
    rankings, per_user = {}, []

    for name, recommended in lists.items():
        truth = wanted[name].truth
        each = metrics.rank_metrics(metrics.hits(recommended, truth), ks)
        users = truth.users.take(np.unique(truth.user))
        rankings[name] = {"users": len(users), "metrics": {metric: _estimate(v) for metric, v in each.items()}}
        per_user.append(pd.DataFrame({"ranking": name, "user": users, **each}))

    main, truth = lists["all"], wanted["all"].truth
    tables = {
        "rankings": rankings,
        "popularity": _by_popularity(main, truth, split, k),
        "histories": _by_history(main, truth, split, k),
        "beyond": _beyond(main, truth, split, k, items, vectors),
    }
    if (ages := _by_age(main, truth, split, k)) is not None:
        tables["ages"] = ages

    return Measured(tables, pd.concat(per_user, ignore_index=True))


def plain(value: Any) -> Any:
    """The value for strict JSON: NaN and infinity, such as the interval over a single user, become None."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]

    return None if isinstance(value, float) and not math.isfinite(value) else value


def _estimate(values: NDArray[np.float64]) -> dict[str, float | None]:
    """Mean over users with its interval."""
    return dict(plain(interval(values)._asdict()))


def _bucketed(
    found: Recommendations, truth: Interactions, k: int, buckets: Sequence[tuple[str, NDArray[np.bool_]]]
) -> list[dict[str, Any]]:
    """One row per bucket of test events: recall and NDCG of the same lists when only these events are relevant."""
    out = []
    for name, rows in buckets:
        events = truth.select(rows)
        row: dict[str, Any] = {"bucket": name, "pairs": len(events), "users": len(np.unique(events.user))}
        if len(events):
            hits = metrics.hits(found, events)
            row[f"recall@{k}"] = _estimate(metrics.recall(hits, k))
            row[f"ndcg@{k}"] = _estimate(metrics.ndcg(hits, k))

        out.append(row)

    return out


def _by_popularity(found: Recommendations, truth: Interactions, split: Split, k: int) -> list[dict[str, Any]]:
    """Results by the number of training users of the item."""
    bucket = metrics.popularity_bucket(metrics.popularity_counts(split.train))[truth.item]
    names = metrics.POPULARITY_BUCKET_NAMES
    return _bucketed(found, truth, k, [(name, bucket == n) for n, name in enumerate(names)])


def _by_history(found: Recommendations, truth: Interactions, split: Split, k: int) -> list[dict[str, Any]]:
    """Results by the number of distinct items in the user's history."""
    width = len(split.test_history.items)
    pairs = np.unique(split.test_history.user * width + split.test_history.item)
    length = np.bincount(pairs // width, minlength=len(truth.users))[truth.user]
    return _bucketed(found, truth, k, [(name, (length >= low) & (length <= high)) for low, high, name in _HISTORIES])


def _by_age(found: Recommendations, truth: Interactions, split: Split, k: int) -> list[dict[str, Any]] | None:
    """Results by the time from an item's first known event to the test event; None if times only give an order."""
    history, time = split.test_history, truth.time
    # A log that spans less than two days probably has positions or sessions for times.
    if history.time is None or time is None or not len(history) or np.ptp(history.time) < 2 * _DAY:
        return None

    first = np.full(len(history.items), np.inf)
    for events in (split.train, history):
        np.minimum.at(first, events.item, events.time if events.time is not None else np.inf)

    age = (time - first[truth.item]) / _DAY
    new = ~np.isfinite(first[truth.item])
    buckets = [("no event yet", new)]
    buckets += [(name, ~new & (age >= low) & (age < high)) for low, high, name in _AGES]

    return _bucketed(found, truth, k, buckets)


def _beyond(
    found: Recommendations,
    truth: Interactions,
    split: Split,
    k: int,
    items: Items | None,
    vectors: Embeddings | None,
) -> dict[str, float]:
    """Means of the metrics beyond accuracy; those that are NaN for every user are left out."""
    at = split.train.items.positions(found.catalogue.ids, missing="negative")
    popularity = np.where(at >= 0, metrics.popularity_counts(split.train)[at], 0)
    out: dict[str, Any] = {
        "coverage": metrics.coverage(found, k),
        "gini": metrics.gini(found, k),
        "average_popularity": metrics.average_popularity(found, popularity, k),
        "novelty": metrics.novelty(found, popularity, len(np.unique(split.train.user)), k),
        "serendipity": metrics.serendipity(found, truth, _most_popular(found, split, k), k),
    }
    if vectors is not None:
        out["diversity"] = metrics.intra_list_diversity(found, vectors, k)

    if items is not None and (categories := _categories(items, found.catalogue)) is not None:
        out["calibration"] = metrics.calibration(found, split.test_history, categories, k)

    values = {name: np.asarray(value, float) for name, value in out.items()}

    return {f"{name}@{k}": float(np.nanmean(value)) for name, value in values.items() if not np.isnan(value).all()}


def _most_popular(found: Recommendations, split: Split, k: int) -> Recommendations:
    """The most popular items for the same users; serendipity counts only hits that are not among these."""
    model = Popularity().fit(split.train)
    allow = None if split.test_items is None else Filter(allow=split.test_items.ids)
    return model.recommend(found.users, k, histories=split.test_history, filter=allow)


def _categories(items: Items, catalogue: IdMap) -> sparse.csr_array | None:
    """(items, categories) one-hot matrix of the first category column; None if there is no such column."""
    columns = items.of_kind("category")
    if not columns:
        return None

    at = items.ids.positions(catalogue.ids, missing="negative")
    codes, _ = pd.factorize(items.columns[columns[0]])
    category = np.where(at >= 0, codes[np.maximum(at, 0)], -1)
    rows = np.flatnonzero(category >= 0)
    shape = (len(catalogue), int(codes.max(initial=-1)) + 1)

    return sparse.coo_array((np.ones(len(rows), np.float32), (rows, category[rows])), shape=shape).tocsr()
