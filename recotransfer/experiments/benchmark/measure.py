"""One model's test lists into tables: rankings, buckets, beyond accuracy, each with intervals over users."""

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


class Question(NamedTuple):
    """Events to predict, and the items to rank (None: all)."""

    truth: Interactions
    allow: IdMap | None


def questions(split: Split) -> dict[str, Question]:
    """What the test asks: "all" is the protocol's own question, the others look at it from one side.

    "warm" and "cold" rank only items with, or without, training events, and ask for those of the truth; they are there
    where the truth holds both. "mixed" asks the protocol's truth among all items, where the protocol itself ranks only
    some.
    """
    out = {"all": Question(split.test, split.test_items)}
    if split.test_items is not None:
        if len(split.test_items) < len(split.test.items):
            out["mixed"] = Question(split.test, None)

        return out

    warm = np.bincount(split.train.item, minlength=len(split.train.items)) > 0
    asked = warm[split.test.item]
    if asked.all() or not asked.any():
        return out

    for name, side, rows in (("warm", warm, asked), ("cold", ~warm, ~asked)):
        ids = IdMap(split.test.items.take(np.flatnonzero(side)))
        out[name] = Question(split.test.select(rows), ids)

    return out


@dataclass(frozen=True)
class Measured:
    """What a variant's lists are worth.

    Attributes:
        tables: JSON-able: "rankings", "popularity", "ages" (timed logs only), "histories", "beyond".
        per_user: one row per ranking and test user of it: columns ranking and user, and one per metric.
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
    """Tables of the lists that answer `questions(split)`.

    Args:
        lists: ranking -> lists, at least max(ks) long.
        split: the protocol.
        ks: list lengths to report; the first is the main one.
        items: for the calibration by category, if a column holds categories.
        vectors: what diversity within a list is measured in.
    """
    asked, k = questions(split), ks[0]
    rankings, per_user = {}, []

    for name, found in lists.items():
        truth = asked[name].truth
        each = metrics.rank_metrics(metrics.hits(found, truth), ks)
        users = truth.users.take(np.unique(truth.user))
        rankings[name] = {"users": len(users), "metrics": {metric: _estimate(v) for metric, v in each.items()}}
        per_user.append(pd.DataFrame({"ranking": name, "user": users, **each}))

    main, truth = lists["all"], asked["all"].truth
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
    """The same as strict JSON has it: null for a number that is none, such as the interval of a single user."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]

    return None if isinstance(value, float) and not math.isfinite(value) else value


def _estimate(values: NDArray[np.float64]) -> dict[str, float | None]:
    return dict(plain(interval(values)._asdict()))


def _bucketed(
    found: Recommendations, truth: Interactions, k: int, buckets: Sequence[tuple[str, NDArray[np.bool_]]]
) -> list[dict[str, Any]]:
    """One row per bucket of true events: how well it was found by lists that were made for all."""
    out = []
    for name, rows in buckets:
        part = truth.select(rows)
        row: dict[str, Any] = {"bucket": name, "pairs": len(part), "users": len(np.unique(part.user))}
        if len(part):
            hit = metrics.hits(found, part)
            row[f"recall@{k}"] = _estimate(metrics.recall(hit, k))
            row[f"ndcg@{k}"] = _estimate(metrics.ndcg(hit, k))

        out.append(row)

    return out


def _by_popularity(found: Recommendations, truth: Interactions, split: Split, k: int) -> list[dict[str, Any]]:
    bucket = metrics.popularity_bucket(metrics.popularity_counts(split.train))[truth.item]
    names = metrics.POPULARITY_BUCKET_NAMES
    return _bucketed(found, truth, k, [(name, bucket == n) for n, name in enumerate(names)])


def _by_history(found: Recommendations, truth: Interactions, split: Split, k: int) -> list[dict[str, Any]]:
    width = len(split.test_history.items)
    pairs = np.unique(split.test_history.user * width + split.test_history.item)
    own = np.bincount(pairs // width, minlength=len(truth.users))[truth.user]
    return _bucketed(found, truth, k, [(name, (own >= low) & (own <= high)) for low, high, name in _HISTORIES])


def _by_age(found: Recommendations, truth: Interactions, split: Split, k: int) -> list[dict[str, Any]] | None:
    """By the time from an item's first known event to the true one; None where times are mere order."""
    known, end = split.test_history, truth.time
    if known.time is None or end is None or not len(known) or np.ptp(known.time) < 2 * _DAY:
        return None

    first = np.full(len(known.items), np.inf)
    for part in (split.train, known):
        np.minimum.at(first, part.item, part.time if part.time is not None else np.inf)

    age = (end - first[truth.item]) / _DAY
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
    at = split.train.items.positions(found.catalogue.ids, missing="negative")
    popularity = np.where(at >= 0, metrics.popularity_counts(split.train)[at], 0)
    out: dict[str, Any] = {
        "coverage": metrics.coverage(found, k),
        "gini": metrics.gini(found, k),
        "average_popularity": metrics.average_popularity(found, popularity, k),
        "novelty": metrics.novelty(found, popularity, len(np.unique(split.train.user)), k),
        "serendipity": metrics.serendipity(found, truth, _expected(found, split, k), k),
    }
    if vectors is not None:
        out["diversity"] = metrics.intra_list_diversity(found, vectors, k)

    if items is not None and (categories := _categories(items, found.catalogue)) is not None:
        out["calibration"] = metrics.calibration(found, split.test_history, categories, k)

    values = {name: np.asarray(value, float) for name, value in out.items()}

    return {f"{name}@{k}": float(np.nanmean(value)) for name, value in values.items() if not np.isnan(value).all()}


def _expected(found: Recommendations, split: Split, k: int) -> Recommendations:
    """What the most popular items would have been for the same users: serendipity is what these do not hold."""
    model = Popularity().fit(split.train)
    allow = None if split.test_items is None else Filter(allow=split.test_items.ids)
    return model.recommend(found.users, k, histories=split.test_history, filter=allow)


def _categories(items: Items, catalogue: IdMap) -> sparse.csr_array | None:
    """(items, values) membership in the first column of categories; None where there is no such column."""
    named = items.of_kind("category")
    if not named:
        return None

    at = items.ids.positions(catalogue.ids, missing="negative")
    codes, _ = pd.factorize(items.columns[named[0]])
    own = np.where(at >= 0, codes[np.maximum(at, 0)], -1)
    rows = np.flatnonzero(own >= 0)
    shape = (len(catalogue), int(codes.max(initial=-1)) + 1)

    return sparse.coo_array((np.ones(len(rows), np.float32), (rows, own[rows])), shape=shape).tocsr()
