"""Shared by segmentation and detection: sampled places (pixel locations) of pictures as the items of a problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from recotransfer import experiments
from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.errors import InputError
from recotransfer.experiments import Metric, Outcome, Predictions, Problem
from recotransfer.task import TransferTask

_BATCH = 1 << 16  # places scored at a time, which bounds memory
BACKGROUND = ("background", 0)


def scores_of_places(
    task: TransferTask,
    vectors: NDArray[np.float32],
    source: str,
    *,
    users: Sequence[Any] | None = None,
    blocks: tuple[tuple[str, int], ...] = (),
) -> NDArray[np.float32]:
    """(n, users) scores of the places with these vectors.

    Args:
        task: fitted on a problem of places.
        vectors: (n, width) vectors of the places.
        source: name of what made the vectors.
        users: columns of the result; None is all users of the task, in its order.
        blocks: (modality, width) of the blocks that make up a vector; none is a single block.
    """
    fitted_users = task.recommender.events_.users
    columns = fitted_users if users is None else IdMap(users)
    # New ids must have the type of the catalogue's ids, which are tuples where the task was fitted on places.
    tuples = isinstance(task.recommender.catalogue_.ids[0], tuple)
    out = []

    for rows in batches(vectors):
        ids = IdMap([(at,) for at in range(len(rows))] if tuples else np.arange(len(rows)))
        items = Items(ids, pd.DataFrame(index=range(len(rows))))
        embeddings = [Embeddings(ids, rows, source, blocks=blocks)]
        ranked = task.label(items, len(columns), users=users, embeddings=embeddings)

        # Labels come best first; put each score back into its user's column.
        table = np.zeros(ranked.scores.shape, np.float32)
        column = columns.positions(fitted_users.ids, missing="negative")[ranked.positions]
        np.put_along_axis(table, column, ranked.scores, axis=1)
        out.append(table)

    return np.concatenate(out)


def problem_of_places(
    name: str, sampled: Sequence[tuple[Any, str, NDArray[Any], list[Any], Any]], source: str
) -> Problem:
    """A problem whose items are places and whose users are their labels.

    Args:
        name: name of the problem.
        sampled: per picture its id, part, places (n, 2), labels (n,) and vectors (n, width).
        source: name of what made the vectors.
    """
    ids = IdMap([(picture, *place) for picture, _, where, _, _ in sampled for place in where.tolist()])
    labels = [label for _, _, _, labels_of_picture, _ in sampled for label in labels_of_picture]
    relations = Interactions.from_labels(labels, ids)

    # Places of one picture are alike: they stay in one part, and the bootstrap draws whole pictures.
    picture = np.repeat(np.arange(len(sampled)), [len(where) for _, _, where, _, _ in sampled])
    parts = np.array([part for _, part, _, _, _ in sampled], dtype=object)
    split = experiments.split_items(relations, parts[picture])

    embeddings = [Embeddings(ids, np.concatenate([vectors for _, _, _, _, vectors in sampled]), source)]
    metrics = {"accuracy": experiments.accuracy, "macro F1": experiments.macro_f1}
    items = Items(ids, pd.DataFrame(index=range(len(ids))))

    return Problem(name, items, split, metrics, embeddings=embeddings, groups=picture)


def parts_of_pictures(part: Mapping[Any, str]) -> dict[Any, str]:
    """Picture -> "train", "valid" or "test", from the names that data sets use."""
    return dict(zip(part, experiments.named_parts(list(part.values())).tolist(), strict=True))


def check_every_picture_in(part: Mapping[Any, str], **tables: Mapping[Any, Any]) -> None:
    """Raise `InputError` if a picture of training, validation or test is missing from one of these tables."""
    for name, table in tables.items():
        missing = [
            picture for picture, side in part.items() if side in experiments.SPLIT_PARTS and picture not in table
        ]
        if missing:
            raise InputError(
                f"picture {missing[0]!r} has a part but is not in {name}; add it there, or leave it out of part"
            )


def outcome_by_picture(
    outcome: Outcome,
    pictures: Sequence[Any],
    candidates: IdMap,
    truth: ArrayLike,
    scores: ArrayLike,
    metrics: Mapping[str, Metric],
) -> Outcome:
    """The outcome with one query per picture, and these metrics of it."""
    queries = IdMap(pictures).ids
    predictions = Predictions(queries, candidates, np.asarray(truth, bool), np.asarray(scores, np.float32), queries)
    return experiments.combine_outcomes([replace(outcome, predictions=predictions)], metrics)


def batches(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The rows in batches that bound memory."""
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]
