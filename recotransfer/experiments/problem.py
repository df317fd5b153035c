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
    """A model's scores and the truth, one row per query.

    Attributes:
        queries: (n,) ids of the items to label, or of the subjects to recommend items to.
        candidates: the labels or items that are scored.
        truth: (n, candidates) bool.
        scores: (n, candidates) float32, greater is better; -inf for excluded candidates. A label without a score gets
            the lowest score of its query; for an item without content, all labels get the same score.
        groups: (n,) group of each query (a patient, a picture); bootstrap intervals resample whole groups.
    """

    queries: NDArray[Any]
    candidates: IdMap
    truth: NDArray[np.bool_]
    scores: NDArray[np.float32]
    groups: NDArray[Any]

    def take(self, rows: NDArray[np.int64]) -> Predictions:
        """The predictions of these rows, in this order; rows may repeat."""
        rows = np.asarray(rows, np.int64)
        return Predictions(self.queries[rows], self.candidates, self.truth[rows], self.scores[rows], self.groups[rows])

    @property
    def best(self) -> NDArray[Any]:
        """(n,) the candidate with the greatest score; the first one in a tie."""
        return self.candidates.take(self.scores.argmax(axis=1))

    @property
    def unanswered(self) -> NDArray[np.bool_]:
        """(n,) whether all candidates of a query have the same score; such a query counts as wrong."""
        return np.asarray(self.scores.max(axis=1) == self.scores.min(axis=1))


Metric = Callable[[Predictions], float]


@checked
def accuracy(a: Predictions) -> float:
    """Share of queries whose best candidate is true."""
    return float((a.truth[np.arange(len(a.truth)), a.scores.argmax(axis=1)] & ~a.unanswered).mean())


@checked
def macro_f1(a: Predictions) -> float:
    """Mean F1 over the candidates that occur; each query must have exactly one true candidate."""
    true = a.truth.argmax(axis=1)
    # An unanswered query is given any wrong label, so that ties never count as correct.
    predicted = np.where(a.unanswered, (true + 1) % a.truth.shape[1], a.scores.argmax(axis=1))
    return float(np.nanmean(f1(true, predicted, a.truth.shape[1])))


@checked
def area_under_curve(a: Predictions) -> float:
    """Mean one-vs-rest area under the ROC curve; each query must have exactly one true candidate.

    NaN if all queries have the same true candidate.
    """
    each = roc_auc(a.truth.argmax(axis=1), a.scores)
    return float("nan") if np.isnan(each).all() else float(np.nanmean(each))


@checked
def expected_calibration_error(a: Predictions) -> float:
    """Mean gap between predicted probability and accuracy, smaller is better. The scores must be probabilities."""
    return calibration_error(a.truth.argmax(axis=1), a.scores)


@checked
def mean_average_precision(a: Predictions) -> float:
    """Mean average precision of the ranked candidates; queries without a true candidate are left out."""
    ranked = _truth_by_score(a)
    relevant = ranked.sum(axis=1)
    precision = np.cumsum(ranked, axis=1) / np.arange(1, ranked.shape[1] + 1)
    each = (precision * ranked).sum(axis=1) / np.maximum(relevant, 1)
    return float(each[relevant > 0].mean())


@checked
def mean_reciprocal_rank(a: Predictions) -> float:
    """Mean of 1 / rank of the first true candidate; queries without a true candidate are left out."""
    ranked = _truth_by_score(a)
    return float((1 / (1 + ranked.argmax(axis=1)))[ranked.any(axis=1)].mean())


def _truth_by_score(a: Predictions) -> NDArray[np.bool_]:
    """(n, candidates) truth, each row sorted by descending score."""
    return np.take_along_axis(a.truth, np.argsort(-a.scores, axis=1, kind="stable"), axis=1)


LABEL_METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "macro F1": macro_f1, "AUC": area_under_curve}


@checked_class
@dataclass(frozen=True)
class Problem:
    """Records of a domain as items and relations, with the metrics that evaluate predictions.

    Attributes:
        name: name in tables.
        items: the items of all three parts, with their content.
        split: relations to train on, to choose settings on, and to test on.
        metrics: name -> function of predictions, greater is better; settings are chosen by the first.
        encoders: encoders of the items; None leaves the choice to the task.
        embeddings: vectors of `items`, for content that is not encoded item by item (patches of pictures).
        target: "labels" predicts the labels (users) of each test item, "items" the items of each test user.
        groups: (items or users,) group of each query, in the order of the split's ids; None resamples single queries.
        candidates: for "items", the user-item pairs to rank; None ranks every item that the split ranks.
        unlabelled: items whose content may be used in training without a label; items with a training relation always
            may.
    """

    name: str
    items: Items
    split: Split
    metrics: Mapping[str, Metric]
    encoders: Sequence[Encoder] | None = None
    embeddings: Sequence[Embeddings] | None = None
    target: Literal["labels", "items"] = "labels"
    groups: NDArray[Any] | None = None
    candidates: Interactions | None = None
    unlabelled: IdMap | None = None

    def __post_init__(self) -> None:
        if self.target not in ("labels", "items"):
            raise InputError(f'target must be "labels" or "items", got {self.target!r}')
        if not self.metrics:
            raise InputError(f"the problem {self.name!r} has no metrics; give at least one (settings are chosen by it)")


@checked
def described(items: Items, texts: Mapping[Any, str], column: str) -> tuple[Items, Interactions]:
    """The items plus one description item per subject, and the relation of each subject to its description.

    The description is a class's name or a query's text, for subjects without any items. Recommending from it alone is
    zero-shot classification or retrieval; see `few_shot`. Ids of descriptions are ("about", subject).
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
    """A table with one column of arbitrary values, such as pictures; each array or mapping becomes one cell."""
    cells = np.empty(len(values), dtype=object)  # pandas would take arrays and mappings apart
    for at, value in enumerate(values):
        cells[at] = value

    return pd.DataFrame({name: cells})
