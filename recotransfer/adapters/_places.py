"""What masks and boxes share: sampled places of pictures as items of a problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer import experiments
from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.errors import InputError
from recotransfer.experiments import Outcome, Predictions, Problem
from recotransfer.task import TransferTask

_BLOCK = 1 << 16  # places asked about at a time
BACKGROUND = ("background", 0)


def scores_of_places(
    task: TransferTask,
    vectors: NDArray[np.float32],
    source: str,
    *,
    users: Sequence[Any] | None = None,
    blocks: tuple[tuple[str, int], ...] = (),
) -> NDArray[np.float32]:
    """(n, users) scores of places with these vectors."""
    known = task.recommender.events_.users
    asked = known if users is None else IdMap(users)
    tuples = isinstance(task.recommender.catalogue_.ids[0], tuple)  # ids are of the type that the catalogue's are
    out = []

    for start in range(0, len(vectors), _BLOCK):
        rows = vectors[start : start + _BLOCK]
        ids = IdMap([(at,) for at in range(len(rows))] if tuples else np.arange(len(rows)))
        items = Items(ids, pd.DataFrame(index=range(len(rows))))
        found = task.label(items, len(asked), users=users, embeddings=[Embeddings(ids, rows, source, blocks=blocks)])
        table = np.zeros(found.scores.shape, np.float32)
        at = asked.positions(known.ids, missing="negative")[found.positions]
        np.put_along_axis(table, at, found.scores, axis=1)
        out.append(table)

    return np.concatenate(out)


def problem_of_places(
    name: str, sampled: Sequence[tuple[Any, str, NDArray[Any], list[Any], Any]], source: str
) -> Problem:
    """A problem of places: per picture its id, part, places (n, 2), labels (n,) and vectors (n, width)."""
    ids = IdMap([(picture, *place) for picture, _, where, _, _ in sampled for place in where.tolist()])
    owner = np.repeat(np.arange(len(sampled)), [len(where) for _, _, where, _, _ in sampled])
    labels = [label for _, _, _, some, _ in sampled for label in some]
    relations = Interactions.from_labels(labels, ids)
    parts = np.array([part for _, part, _, _, _ in sampled], dtype=object)
    split = experiments.split_items(relations, parts[owner])
    vectors = Embeddings(ids, np.concatenate([v for _, _, _, _, v in sampled]), source)
    metrics = {"accuracy": experiments.accuracy, "macro F1": experiments.macro_f1}

    return Problem(
        name, Items(ids, pd.DataFrame(index=range(len(ids)))), split, metrics, embeddings=[vectors], groups=owner
    )


def parts_of_pictures(part: Mapping[Any, str]) -> dict[Any, str]:
    """Picture -> "train", "valid" or "test", from the names that data sets use."""
    return dict(zip(part, experiments.named_parts(list(part.values())).tolist(), strict=True))


def check_every_picture_in(part: Mapping[Any, str], **tables: Mapping[Any, Any]) -> None:
    """Raise `InputError` where a picture of a part is not in each of these tables."""
    for name, table in tables.items():
        if lost := [picture for picture, own in part.items() if own in experiments.SIDES and picture not in table]:
            raise InputError(
                f"picture {lost[0]!r} has a part but is not in {name}; add it there, or leave it out of part"
            )


def outcome_by_picture(
    outcome: Outcome, pictures: Sequence[Any], candidates: IdMap, truth: Any, scores: Any, metrics: Mapping[str, Any]
) -> Outcome:
    """The outcome with pictures as its queries."""
    queries = IdMap(pictures).ids
    predictions = Predictions(queries, candidates, np.asarray(truth, bool), np.asarray(scores, np.float32), queries)
    return experiments.joined([replace(outcome, predictions=predictions)], metrics)


def in_blocks(where: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The rows in blocks of at most `BLOCK`."""
    for start in range(0, len(where), _BLOCK):
        yield where[start : start + _BLOCK]
