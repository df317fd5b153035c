"""A problem of any domain (`Problem`), its predictions and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.arguments import checked, checked_class
from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.encoders import Encoder
from recotransfer.errors import InputError
from recotransfer.evaluation.metrics import calibration_error, f1, roc_auc
from recotransfer.evaluation.split import Split


@checked_class
@dataclass(frozen=True)
class Predictions:
    """What a model answered, one row per unit asked.

    Attributes:
        queries: (n,) ids of the items whose labels, or the subjects whose items, were asked for.
        candidates: what could be answered: labels or items.
        truth: (n, candidates) bool.
        scores: (n, candidates) float32, greater is better; -inf where an option was not up for choice. A label that got
            no score stands with the lowest of its unit; all labels of a unit without content share alike.
        groups: (n,) queries of one group (a patient, a picture) are drawn together in intervals.
    """

    queries: NDArray[Any]
    candidates: IdMap
    truth: NDArray[np.bool_]
    scores: NDArray[np.float32]
    groups: NDArray[Any]

    def take(self, rows: NDArray[np.int64]) -> Predictions:
        """The predictions at these rows."""
        rows = np.asarray(rows, np.int64)
        return Predictions(self.queries[rows], self.candidates, self.truth[rows], self.scores[rows], self.groups[rows])

    @property
    def best(self) -> NDArray[Any]:
        """(n,) the option with the greatest score, the first of those that share it."""
        return self.candidates.take(self.scores.argmax(axis=1))

    @property
    def unanswered(self) -> NDArray[np.bool_]:
        """(n,) whether nothing is preferred to anything; such a unit counts as wrong."""
        return np.asarray(self.scores.max(axis=1) == self.scores.min(axis=1))


Metric = Callable[[Predictions], float]


@checked
def accuracy(a: Predictions) -> float:
    """Share of queries whose best option is true."""
    return float((a.truth[np.arange(len(a.truth)), a.scores.argmax(axis=1)] & ~a.unanswered).mean())


@checked
def macro_f1(a: Predictions) -> float:
    """Mean F1 over the candidates that occur, of queries with one true option each."""
    true = a.truth.argmax(axis=1)
    told = np.where(a.unanswered, (true + 1) % a.truth.shape[1], a.scores.argmax(axis=1))
    return float(np.nanmean(f1(true, told, a.truth.shape[1])))


@checked
def area_under_curve(a: Predictions) -> float:
    """Mean area under the ROC curve of each option against the rest, of queries with one true option each.

    NaN where all queries have the same.
    """
    each = roc_auc(a.truth.argmax(axis=1), a.scores)
    return float("nan") if np.isnan(each).all() else float(np.nanmean(each))


@checked
def expected_calibration_error(a: Predictions) -> float:
    """Gap between probability and accuracy; smaller is better. The scores must be probabilities."""
    return calibration_error(a.truth.argmax(axis=1), a.scores)


@checked
def mean_average_precision(a: Predictions) -> float:
    """Mean average precision of the ranked candidates over the queries that have a true one."""
    ranked = _ranked(a)
    found = ranked.sum(axis=1)
    precision = np.cumsum(ranked, axis=1) / np.arange(1, ranked.shape[1] + 1)
    each = (precision * ranked).sum(axis=1) / np.maximum(found, 1)
    return float(each[found > 0].mean())


@checked
def mean_reciprocal_rank(a: Predictions) -> float:
    """Mean over queries of 1 / the place of the first true option; queries without a true option do not count."""
    ranked = _ranked(a)
    return float((1 / (1 + ranked.argmax(axis=1)))[ranked.any(axis=1)].mean())


def _ranked(a: Predictions) -> NDArray[np.bool_]:
    """(n, candidates) truth in the order of the scores."""
    return np.take_along_axis(a.truth, np.argsort(-a.scores, axis=1, kind="stable"), axis=1)


LABEL_METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "macro F1": macro_f1, "AUC": area_under_curve}


@checked_class
@dataclass(frozen=True)
class Problem:
    """A problem: records as items and relations, and how predictions are judged.

    Attributes:
        name: what it is called in tables.
        items: everything that has content, of all parts.
        split: relations to learn from, to choose settings by, and to judge on.
        metrics: name -> figure of predictions, greater is better; the first chooses settings.
        encoders: what reads the items; None leaves that to the task.
        embeddings: vectors of `items`, where they do not come from an encoder one item at a time (patches of pictures).
        asks: "labels" asks each item of the test for its users, "items" each user of the test for their items.
        groups: (items or users,) group of each unit, over the split's map; None draws queries one by one.
        candidates: pairs that are up for choice where "items" are asked for; None is every item that the split ranks.
        unlabelled: items that may be looked at without a label; those with a relation in train always are.
    """

    name: str
    items: Items
    split: Split
    metrics: Mapping[str, Metric]
    encoders: Sequence[Encoder] | None = None
    embeddings: Sequence[Embeddings] | None = None
    asks: Literal["labels", "items"] = "labels"
    groups: NDArray[Any] | None = None
    candidates: Interactions | None = None
    unlabelled: IdMap | None = None

    def __post_init__(self) -> None:
        if self.asks not in ("labels", "items"):
            raise InputError(f'asks must be "labels" or "items", got {self.asks!r}')
        if not self.metrics:
            raise InputError(f"the problem {self.name!r} has no metric; name one at least, the first chooses settings")


@checked
def described(items: Items, texts: Mapping[Any, str], column: str) -> tuple[Items, Interactions]:
    """The items and one more for each subject, whose text describes it, with the subject holding its own description.

    A class's name, a question's words: what is known of a subject of whom no item is. Recommending to it from that
    alone is zero-shot classification or retrieval; see `few_shot`. Ids of descriptions are ("about", subject).
    """
    if column not in items.columns.columns:
        raise InputError(f"the items have no column {column!r}; they have {list(items.columns.columns)}")

    about = IdMap([("about", subject) for subject in texts])
    ids = items.ids.union(about)
    more = pd.DataFrame({column: list(texts.values())})
    both = Items(ids, pd.concat([items.columns, more], ignore_index=True), items.kinds)
    users = IdMap(list(texts))
    rows = np.arange(len(users))

    return both, Interactions(users, ids, rows, ids.positions(about.ids), np.ones(len(users), np.float32))


@checked
def column(values: Sequence[Any], name: str) -> pd.DataFrame:
    """A table with one column of any values, such as pictures; arrays and mappings are left whole."""
    cells = np.empty(len(values), dtype=object)
    for at, value in enumerate(values):
        cells[at] = value

    return pd.DataFrame({name: cells})
