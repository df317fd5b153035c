"""Labels from elsewhere: confident predictions as pseudo-labels, and labels mapped from another label set."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recotransfer.arguments import checked
from recotransfer.data import Embeddings, IdMap, Interactions, Recommendations
from recotransfer.errors import InputError
from recotransfer.numerics.vectors import reciprocal, unit_rows

_DECIMALS = 6  # to which cosines of float32 vectors are compared, so that ties do not depend on rounding


@checked
def pseudo_labels(
    predicted: Recommendations,
    *,
    threshold: float = 0.95,
    adapt: bool = True,
    most: int | None = None,
) -> Interactions:
    """Confident predictions of `Recommender.label` as relations for self-training.

    An item is related to its most probable label if that probability reaches the label's threshold; the weight is the
    probability. FixMatch (Sohn et al., 2020) uses one threshold. With `adapt`, labels with few confident predictions
    have a lower one, so that labels that are hard to learn are not starved: as in FlexMatch (Zhang et al., 2021) it
    follows c / (2 - c), where c is the label's number of confident predictions over that of the most frequent label,
    but never falls below half.

    Args:
        predicted: from `label`, or any lists whose users are items, whose catalogue is the labels and whose scores are
            probabilities.
        threshold: for the label with the most confident predictions.
        adapt: lower the threshold for harder labels.
        most: maximum number of items per label, the most probable first; None keeps all.

    Raises:
        InputError: scores or a threshold that are not probabilities, or `most` below 1.
    """
    if not 0 <= threshold <= 1 or (most is not None and most < 1):
        raise InputError(f"threshold must lie in 0..1 and most be 1 at least, got {threshold} and {most}")

    items = np.flatnonzero(predicted.positions[:, 0] >= 0) if predicted.positions.shape[1] else np.empty(0, np.int64)
    label, score = predicted.positions[items, 0], predicted.scores[items, 0]
    if len(score) and not (score.min() >= 0 and score.max() <= 1 + 1e-6):
        raise InputError(f"scores must be probabilities, got {score.min():.3g} to {score.max():.3g}; take a Probe")

    sure = np.bincount(label[score >= threshold], minlength=len(predicted.catalogue)).astype(float)
    share = sure / max(sure.max(initial=0), 1)
    bar = threshold * (1 + share / (2 - share)) / 2 if adapt and sure.any() else np.full(len(sure), threshold)
    kept = np.flatnonzero(score >= bar.astype(score.dtype)[label])
    if most is not None:
        order = kept[np.lexsort((-score[kept], label[kept]))]
        first = np.searchsorted(label[order], label[order])
        kept = np.sort(order[np.arange(len(order)) - first < most])

    return Interactions(predicted.catalogue, IdMap(predicted.users), label[kept], items[kept], score[kept])


class LabelMap(NamedTuple):
    """A mapping from one label set to another.

    Attributes:
        table: one row per source label: source, target (None where no target is similar enough), likeness.
        relations: the source relations with the target's labels as users, without those of labels that have no target.
    """

    table: pd.DataFrame
    relations: Interactions


@checked
def map_labels(
    source: Interactions,
    target: Interactions | IdMap,
    *,
    names: Embeddings | None = None,
    matching: Literal["nearest", "one-to-one"] = "one-to-one",
    least: float = 0.0,
) -> LabelMap:
    """The source's relations with each label replaced by the most similar label of the target.

    Similarity is the cosine of the embedded label names if `names` is given, else the cosine of the labels' item sets,
    for which both label sets must share some labelled items. "one-to-one" maximises the total similarity while using
    each target at most once (Hungarian method; Kuhn, 1955); "nearest" may map several labels to one target.

    Args:
        source: relations whose users are labels.
        target: relations whose users are the target labels, or just these labels.
        names: vectors of the labels of both sets, by label id.
        matching: whether each target is used at most once.
        least: similarity that a label must exceed to have a target.

    Raises:
        InputError: an unknown `matching`, or neither `names` nor a target with relations.
    """
    if matching not in ("nearest", "one-to-one"):
        raise InputError(f'matching must be "nearest" or "one-to-one", got {matching!r}')

    wanted = target if isinstance(target, IdMap) else target.users
    if names is not None:
        sides = [unit_rows(names.align(ids).vectors) for ids in (source.users, wanted)]
        likeness = np.asarray(sides[0] @ sides[1].T, np.float64)
    elif isinstance(target, IdMap):
        raise InputError("labels are compared by their names or by their items; give names, or target relations")
    else:
        likeness = _cosines_of_items(source, target)

    best = _matched(likeness, matching)
    value = np.where(best >= 0, likeness[np.arange(len(best)), best], 0.0) if likeness.size else np.zeros(len(best))
    best = np.where(np.round(value - least, _DECIMALS) > 0, best, -1)
    table = pd.DataFrame(
        {"source": source.users.ids, "target": pd.Series(wanted.take(best), dtype=object), "likeness": value}
    )
    kept = source.select(best[source.user] >= 0)
    renamed = Interactions(
        wanted, kept.items, best[kept.user], kept.item, kept.weight, kept.time, kept.kind, kept.kinds
    )

    return LabelMap(table, renamed)


def _matched(likeness: NDArray[np.float64], matching: str) -> NDArray[np.int64]:
    """(sources,) position of each source's target; -1 where no target is left."""
    out = np.full(len(likeness), -1, np.int64)
    if not likeness.size:
        return out
    if matching == "nearest":
        return np.asarray(np.round(likeness, _DECIMALS).argmax(axis=1), np.int64)

    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(np.round(likeness, _DECIMALS), maximize=True)
    out[rows] = columns

    return out


def _cosines_of_items(source: Interactions, target: Interactions) -> NDArray[np.float64]:
    """(sources, targets) cosine of the labels' items, n_ij / sqrt(n_i n_j), over the items that both sets label."""
    both = source.items.union(target.items)
    sides = [log.with_items(both).binary_matrix() for log in (source, target)]
    shared = np.logical_and(*(np.asarray(side.sum(axis=0)) > 0 for side in sides)).astype(np.float32)
    scaled = []

    for side in sides:
        side = sparse.csr_array(side * shared[None])
        scaled.append(sparse.diags_array(np.sqrt(reciprocal(side.sum(axis=1)))) @ side)

    return np.asarray((scaled[0] @ scaled[1].T).toarray(), np.float64)
