"""Boxes in pictures: candidate regions are items, classes are labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer import experiments
from recotransfer.adapters._places import (
    BACKGROUND,
    check_every_picture_in,
    in_blocks,
    outcome_by_picture,
    parts_of_pictures,
    problem_of_places,
    scores_of_places,
)
from recotransfer.data import IdMap
from recotransfer.encoders.image_map import DenseImage, places
from recotransfer.errors import InputError, require
from recotransfer.evaluation.metrics import EDGES, Matches, box_matches, box_precision
from recotransfer.experiments import Outcome, Predictions, Problem
from recotransfer.task import TransferTask

_CENTRE, _AROUND, _NEAR, _NEAR_COUNTS = 0.12, 0.25, 0.7, 3.0  # distances from a box's centre, in its sizes


def precision_of_boxes(a: Predictions) -> float:
    """Mean over labels of the average precision of boxes, of an outcome that `Detection.judged` gave."""
    label = np.array([option[0] for option in a.candidates.ids.tolist()], dtype=object)
    each = []

    for one in dict.fromkeys(label.tolist()):
        truth, scores = a.truth[:, label == one], a.scores[:, label == one]
        up = np.isfinite(scores)
        each.append(box_precision(scores[up], truth[up], int(truth.sum())))

    known = [value for value in each if not np.isnan(value)]

    return float(np.mean(known)) if known else float("nan")


BOX_METRICS = {"mAP@.5": precision_of_boxes}


@dataclass(frozen=True)
class Detection:
    """Boxes in pictures: places are items, and a user is a label with a shape of box, whose centre is there.

    Shapes are bins of size and of aspect of the training boxes, so that one question to a place tells label and shape.
    Places between the centre of a box and its surroundings are left out, the rest is background.

    Attributes:
        pictures: id -> picture, as `PretrainedImage` takes it.
        boxes: one true box per row: picture, label, xmin, ymin, xmax, ymax in pixels.
        part: picture id -> "train", "valid" or "test"; other pictures are left out.
        features: what sees the places.
        step: pixels between places.
        shapes: bins of size, and of aspect within each, of the boxes of a label.
        negatives: background places of each picture that become items, drawn by lot.
        overlap: of two boxes of a label that overlap more, the better one is told.
        least: score of a box that is worth telling.
        seed: random seed.
    """

    pictures: Mapping[Any, Any]
    boxes: pd.DataFrame
    part: Mapping[Any, str]
    features: DenseImage
    step: int = 4
    shapes: tuple[int, int] = (3, 2)
    negatives: int = 150
    overlap: float = 0.4
    least: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        check_every_picture_in(parts_of_pictures(self.part), pictures=self.pictures)
        if lost := [name for name in ("picture", "label", *EDGES) if name not in self.boxes.columns]:
            raise InputError(f"the boxes have no column {lost[0]!r}; they have {list(self.boxes.columns)}")

    @cached_property
    def _binned(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Boxes with their middle `y`, `x`, `height`, `width` and `user`; and mean height and width of each user.

        A box outside training bears the user whose shape in training is the nearest.
        """
        b = self.boxes.reset_index(drop=True)
        b = b.assign(height=b["ymax"] - b["ymin"], width=b["xmax"] - b["xmin"])
        b = b.assign(y=(b["ymin"] + b["ymax"]) / 2, x=(b["xmin"] + b["xmax"]) / 2)
        b = b.assign(part=b["picture"].map(parts_of_pictures(self.part)))
        b = b[(b["height"] >= 1) & (b["width"] >= 1) & b["part"].isin(experiments.SIDES)].copy()
        known = b[b["part"] == "train"]
        size = _bins(known["height"] * known["width"], [known["label"]], self.shapes[0])
        shape = size * self.shapes[1] + _bins(known["height"] / known["width"], [known["label"], size], self.shapes[1])
        means = known.groupby([known["label"], shape.rename("shape")])[["height", "width"]].mean()
        users = []

        for label, height, width in zip(b["label"], b["height"], b["width"], strict=True):
            if label not in means.index:
                raise InputError(f"the label {label!r} has no box in training; leave its boxes out")

            mine = means.loc[label]
            miss = np.abs(np.log(mine["height"] / height)) + np.abs(np.log(mine["width"] / width))
            users.append((label, int(miss.idxmin())))

        column = np.empty(len(b), dtype=object)
        column[:] = users

        return b.assign(user=column), means

    @cached_property
    def problem(self) -> Problem:
        """Which box's centre each place is, or background."""
        draw = np.random.default_rng(self.seed)
        boxes, _ = self._binned
        by_picture = dict(tuple(boxes.groupby("picture")))
        sampled = []

        for picture, part in parts_of_pictures(self.part).items():
            if part not in experiments.SIDES:
                continue

            seen = self.features.read(self.pictures[picture])
            where = places(seen.shape, self.step)
            rows, users = _centres(where, by_picture.get(picture, boxes.iloc[:0]), self.negatives, draw)
            sampled.append((picture, part, where[rows], users, seen.at(where[rows])))

        return problem_of_places("detection", sampled, self.features.name)

    def found(self, task: TransferTask, picture: Any) -> pd.DataFrame:
        """The boxes in a picture, best first: label, xmin, ymin, xmax, ymax and score."""
        _, means = self._binned
        seen = self.features.read(picture)
        where = places(seen.shape, self.step)
        users = task.recommender.events_.users.ids.tolist()
        scores = np.concatenate(
            [scores_of_places(task, seen.at(some), self.features.name) for some in in_blocks(where)]
        )
        tables = []

        for label in dict.fromkeys(means.index.get_level_values(0)):
            mine = [at for at, user in enumerate(users) if user[0] == label]
            size = means.loc[[users[at] for at in mine]].to_numpy()
            total = scores[:, mine].sum(axis=1)
            up = np.flatnonzero(total >= self.least)
            half = (scores[up][:, mine, None] * size).sum(axis=1) / total[up, None] / 2
            edges = np.hstack([(where[up] - half)[:, ::-1], (where[up] + half)[:, ::-1]])
            edges = np.clip(edges, 0, [seen.shape[1], seen.shape[0]] * 2)
            tables.append(_merged(edges, total[up], self.overlap).assign(label=label))

        out = pd.concat(tables, ignore_index=True)[["label", *EDGES, "score"]]

        return out.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)

    def judged(self, outcome: Outcome) -> Outcome:
        """The outcome with whole test pictures as its queries: mAP at an overlap of one half.

        An answer is a slot of a label: a box found, true if it hits, or a true box that no box found hits.
        """
        test = [picture for picture, part in parts_of_pictures(self.part).items() if part == "test"]
        tables = [self.found(outcome.task, self.pictures[p]) for p in test]
        owner = np.repeat(np.arange(len(test)), [len(t) for t in tables])
        found = pd.concat(tables).assign(picture=[test[at] for at in owner])
        labels = sorted(set(self.boxes["label"]))
        matches = box_matches(found, self.boxes, test, labels)

        return outcome_by_picture(outcome, test, *_slots(matches, labels), BOX_METRICS)


def _bins(values: Any, within: list[Any], count: int) -> Any:
    """Bin, from 0, of each value among those of its group; bins hold as many each."""
    groups = values.groupby(within)
    share = groups.rank(method="first") - 1
    return (share * count // groups.transform("size")).astype(int)


def _centres(
    where: NDArray[np.float64], boxes: pd.DataFrame, negatives: int, draw: np.random.Generator
) -> tuple[NDArray[np.int64], list[Any]]:
    """Which places to learn from, and the user of each: the box whose centre it is, else background."""
    user = np.full(len(where), -1)
    away = np.full(len(where), np.inf)

    for at, (y, x, height, width) in enumerate(boxes[["y", "x", "height", "width"]].to_numpy()):
        far = np.hypot((where[:, 0] - y) / height, (where[:, 1] - x) / width)  # in sizes of the box
        mine = (far <= max(_CENTRE, far.min())) & (far < away)
        user[mine] = at
        away = np.minimum(away, far)

    rest = np.flatnonzero((away > _AROUND) & (user < 0))
    weight = np.where(away[rest] < _NEAR, _NEAR_COUNTS, 1.0)
    lot = draw.choice(rest, min(negatives, len(rest)), replace=False, p=weight / weight.sum()) if len(rest) else rest
    rows = np.sort(np.concatenate([np.flatnonzero(user >= 0), lot]))
    users = boxes["user"].tolist()

    return rows, [users[at] if at >= 0 else BACKGROUND for at in user[rows]]


def _merged(edges: NDArray[np.float64], scores: NDArray[np.float32], overlap: float) -> pd.DataFrame:
    """The best of overlapping boxes, each moved to the mean of those that overlap it by half, weighted by score.

    Non-maximum suppression is OpenCV's; the mean is box voting (Gidaris and Komodakis, "Object detection via a
    multi-region and semantic segmentation-aware CNN model", 2015).
    """
    cv2 = require("cv2")

    size = edges[:, 2:] - edges[:, :2]
    kept = cv2.dnn.NMSBoxes(np.hstack([edges[:, :2], size]).tolist(), scores.tolist(), 0.0, overlap)
    best = np.asarray(kept, np.int64).ravel()
    inner = np.minimum(edges[best, None, 2:], edges[None, :, 2:]) - np.maximum(
        edges[best, None, :2], edges[None, :, :2]
    )
    common = np.maximum(inner, 0).prod(axis=2)
    area = size.prod(axis=1)
    share = common / np.maximum(area[best, None] + area - common, 1e-9)
    votes = np.where(share > 0.5, scores, 0)
    votes[np.arange(len(best)), best] = np.maximum(scores[best], 1e-9)
    voted = (votes[:, :, None] * edges).sum(axis=1) / votes.sum(axis=1, keepdims=True)

    return pd.DataFrame(voted, columns=EDGES).assign(score=scores[best])


def _slots(matches: Sequence[Sequence[Matches]], labels: Sequence[Any]) -> tuple[IdMap, NDArray[Any], NDArray[Any]]:
    """Slots (label, n), and (pictures, slots) whether a true box is in each, and the score of the box found."""
    names: list[Any] = []
    truth, scores = [], []

    for label, column in zip(labels, zip(*matches, strict=True), strict=True):
        width = max(len(m.scores) + m.truths - int(m.hit.sum()) for m in column)
        names += [(label, at) for at in range(width)]
        true, score = np.zeros((len(column), width), bool), np.full((len(column), width), -np.inf)
        for row, m in enumerate(column):
            count = len(m.scores)
            score[row, :count], true[row, :count] = m.scores, m.hit
            true[row, count : count + m.truths - int(m.hit.sum())] = True

        truth.append(true)
        scores.append(score)

    return IdMap(names), np.hstack(truth), np.hstack(scores)
