"""Object detection: places of a picture are items; a label with a typical box size is a user."""

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
    batches,
    check_every_picture_in,
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

# Distances from a box's centre, in units of its height and width.
_CENTRE = 0.12  # up to here a place counts as the centre
_AROUND = 0.25  # from here on it is background; between the two it is left out
_NEAR = 0.7  # up to here background is hard to tell from a box ...
_NEAR_WEIGHT = 3.0  # ... and is drawn this many times as often


def precision_of_boxes(a: Predictions) -> float:
    """Mean average precision over labels, for the predictions of `Detection.evaluate`; NaN without a true box."""
    label_of_slot = np.array([label for label, _ in a.candidates.ids.tolist()], dtype=object)
    precisions = []

    for label in dict.fromkeys(label_of_slot.tolist()):
        truth = a.truth[:, label_of_slot == label]
        scores = a.scores[:, label_of_slot == label]
        detected = np.isfinite(scores)  # the other slots are missed boxes, or empty
        precisions.append(box_precision(scores[detected], truth[detected], int(truth.sum())))

    defined = [value for value in precisions if not np.isnan(value)]

    return float(np.mean(defined)) if defined else float("nan")


BOX_METRICS = {"mAP@.5": precision_of_boxes}


@dataclass(frozen=True)
class Detection:
    """Object detection as a problem: places are items, and the user of a place is the label and shape of its box.

    Shapes are bins of the training boxes' area and aspect ratio, so classifying a place gives both label and box size.
    Places near a centre but not at it are ambiguous and left out; those further away are background.

    Attributes:
        pictures: id -> picture, as `PretrainedImage` takes it.
        boxes: one true box per row: picture, label, xmin, ymin, xmax, ymax in pixels.
        part: picture id -> "train", "valid" or "test"; pictures with any other value are ignored.
        features: gives the vector of each place.
        step: pixels between places.
        shapes: number of area bins per label, and of aspect-ratio bins within each.
        negatives: background places sampled per picture.
        overlap: non-maximum suppression threshold: of two boxes of a label with a larger intersection over union, only
            the better is kept.
        least: smallest score of a box to report.
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
        if missing := [name for name in ("picture", "label", *EDGES) if name not in self.boxes.columns]:
            raise InputError(f"the boxes have no column {missing[0]!r}; they have {list(self.boxes.columns)}")

    @cached_property
    def _boxes_and_sizes(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The boxes with centre `y`, `x`, `height`, `width` and `user`; and the mean height and width of each user.

        Every box, in training or not, gets the user of its label whose mean size is the nearest.
        """
        boxes = self.boxes.reset_index(drop=True)
        boxes = boxes.assign(
            height=boxes["ymax"] - boxes["ymin"],
            width=boxes["xmax"] - boxes["xmin"],
            y=(boxes["ymin"] + boxes["ymax"]) / 2,
            x=(boxes["xmin"] + boxes["xmax"]) / 2,
            part=boxes["picture"].map(parts_of_pictures(self.part)),
        )
        visible = (boxes["height"] >= 1) & (boxes["width"] >= 1)
        boxes = boxes[visible & boxes["part"].isin(experiments.SPLIT_PARTS)].copy()

        train = boxes[boxes["part"] == "train"]
        area = _bins(train["height"] * train["width"], [train["label"]], self.shapes[0])
        aspect = _bins(train["height"] / train["width"], [train["label"], area], self.shapes[1])
        shape = area * self.shapes[1] + aspect
        sizes = train.groupby([train["label"], shape.rename("shape")])[["height", "width"]].mean()
        users = []

        for label, height, width in zip(boxes["label"], boxes["height"], boxes["width"], strict=True):
            if label not in sizes.index:
                raise InputError(f"the label {label!r} has no box in training; leave its boxes out")

            # Logarithms, so that twice as large and half as large are equally far.
            of_label = sizes.loc[label]
            distance = np.abs(np.log(of_label["height"] / height)) + np.abs(np.log(of_label["width"] / width))
            users.append((label, int(distance.idxmin())))

        column = np.empty(len(boxes), dtype=object)  # filled in place: pandas would spread tuples over columns
        column[:] = users

        return boxes.assign(user=column), sizes

    @cached_property
    def problem(self) -> Problem:
        """The problem of telling which box, if any, is centred at each place."""
        rng = np.random.default_rng(self.seed)
        boxes, _ = self._boxes_and_sizes
        boxes_of = dict(tuple(boxes.groupby("picture")))
        sampled = []

        for picture, part in parts_of_pictures(self.part).items():
            if part not in experiments.SPLIT_PARTS:
                continue

            dense = self.features.read(self.pictures[picture])
            where = places(dense.shape, self.step)
            rows, users = _sampled_places(where, boxes_of.get(picture, boxes.iloc[:0]), self.negatives, rng)
            sampled.append((picture, part, where[rows], users, dense.at(where[rows])))

        return problem_of_places("detection", sampled, self.features.name)

    def found(self, task: TransferTask, picture: Any) -> pd.DataFrame:
        """The boxes detected in a picture, best first: columns label, xmin, ymin, xmax, ymax (pixels) and score."""
        _, sizes = self._boxes_and_sizes
        dense = self.features.read(picture)
        where = places(dense.shape, self.step)
        users = task.recommender.events_.users.ids.tolist()
        scores = np.concatenate(
            [scores_of_places(task, dense.at(batch), self.features.name) for batch in batches(where)]
        )
        tables = []

        for label in dict.fromkeys(sizes.index.get_level_values(0)):
            shapes = [at for at, user in enumerate(users) if user[0] == label]
            size = sizes.loc[[users[at] for at in shapes]].to_numpy()
            total = scores[:, shapes].sum(axis=1)
            detected = np.flatnonzero(total >= self.least)

            # A box has the mean size of its label's shapes, weighted by their scores.
            half = (scores[detected][:, shapes, None] * size).sum(axis=1) / total[detected, None] / 2
            edges = np.hstack([(where[detected] - half)[:, ::-1], (where[detected] + half)[:, ::-1]])  # y, x to x, y
            edges = np.clip(edges, 0, [dense.shape[1], dense.shape[0]] * 2)
            tables.append(_merged(edges, total[detected], self.overlap).assign(label=label))

        out = pd.concat(tables, ignore_index=True)[["label", *EDGES, "score"]]

        return out.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)

    def evaluate(self, outcome: Outcome) -> Outcome:
        """The outcome with one query per test picture, evaluated by mAP at an intersection over union of one half.

        Candidates are slots (label, number): each holds a detected box, true if it hits, or a true box that was missed.
        """
        test = [picture for picture, part in parts_of_pictures(self.part).items() if part == "test"]
        tables = [self.found(outcome.task, self.pictures[picture]) for picture in test]
        row = np.repeat(np.arange(len(test)), [len(table) for table in tables])
        detected = pd.concat(tables).assign(picture=[test[at] for at in row])
        labels = sorted(set(self.boxes["label"]))
        matches = box_matches(detected, self.boxes, test, labels)

        return outcome_by_picture(outcome, test, *_slots(matches, labels), BOX_METRICS)


def _bins(values: pd.Series, within: list[pd.Series], count: int) -> pd.Series:
    """The number, from 0, of the bin of each value; the bins of a group are equally filled."""
    groups = values.groupby(within)
    rank = groups.rank(method="first") - 1
    return (rank * count // groups.transform("size")).astype(int)


def _sampled_places(
    where: NDArray[np.float64], boxes: pd.DataFrame, negatives: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], list[Any]]:
    """Rows of the places to learn from, and the user of each: that of the box centred there, or background."""
    nearest = np.full(len(where), -1)  # box of which the place is the centre
    distance = np.full(len(where), np.inf)  # to the nearest centre

    for at, (y, x, height, width) in enumerate(boxes[["y", "x", "height", "width"]].to_numpy()):
        to_box = np.hypot((where[:, 0] - y) / height, (where[:, 1] - x) / width)
        # A box smaller than a step would have no place within reach: it takes the nearest.
        centre = (to_box <= max(_CENTRE, to_box.min())) & (to_box < distance)
        nearest[centre] = at
        distance = np.minimum(distance, to_box)

    rest = np.flatnonzero((distance > _AROUND) & (nearest < 0))
    weight = np.where(distance[rest] < _NEAR, _NEAR_WEIGHT, 1.0)
    count = min(negatives, len(rest))
    background = rng.choice(rest, count, replace=False, p=weight / weight.sum()) if len(rest) else rest
    rows = np.sort(np.concatenate([np.flatnonzero(nearest >= 0), background]))
    users = boxes["user"].tolist()

    return rows, [users[at] if at >= 0 else BACKGROUND for at in nearest[rows]]


def _merged(edges: NDArray[np.float64], scores: NDArray[np.float32], overlap: float) -> pd.DataFrame:
    """The boxes that non-maximum suppression keeps, each averaged with the boxes that it overlaps by more than half.

    Suppression is OpenCV's; the average, weighted by score, is box voting (Gidaris and Komodakis, "Object detection via
    a multi-region and semantic segmentation-aware CNN model", 2015).
    """
    cv2 = require("cv2")

    size = edges[:, 2:] - edges[:, :2]
    kept = cv2.dnn.NMSBoxes(np.hstack([edges[:, :2], size]).tolist(), scores.tolist(), 0.0, overlap)
    best = np.asarray(kept, np.int64).ravel()

    # (kept, boxes) intersection over union
    low = np.maximum(edges[best, None, :2], edges[None, :, :2])
    high = np.minimum(edges[best, None, 2:], edges[None, :, 2:])
    common = np.maximum(high - low, 0).prod(axis=2)
    area = size.prod(axis=1)
    union = area[best, None] + area - common
    votes = np.where(common / np.maximum(union, 1e-9) > 0.5, scores, 0)
    votes[np.arange(len(best)), best] = np.maximum(scores[best], 1e-9)  # a box votes for itself even at score 0
    voted = (votes[:, :, None] * edges).sum(axis=1) / votes.sum(axis=1, keepdims=True)

    return pd.DataFrame(voted, columns=EDGES).assign(score=scores[best])


def _slots(matches: Sequence[Sequence[Matches]], labels: Sequence[Any]) -> tuple[IdMap, NDArray[Any], NDArray[Any]]:
    """Slots (label, number), with truth and scores (pictures, slots): detected boxes first, then missed ones.

    Slots without a detected box score -inf.
    """
    names: list[Any] = []
    truth, scores = [], []

    for label, column in zip(labels, zip(*matches, strict=True), strict=True):
        width = max(len(m.scores) + m.truths - int(m.hit.sum()) for m in column)
        names += [(label, number) for number in range(width)]
        true = np.zeros((len(column), width), bool)
        score = np.full((len(column), width), -np.inf)

        for row, m in enumerate(column):
            count = len(m.scores)
            missed = m.truths - int(m.hit.sum())
            score[row, :count] = m.scores
            true[row, :count] = m.hit
            true[row, count : count + missed] = True

        truth.append(true)
        scores.append(score)

    return IdMap(names), np.hstack(truth), np.hstack(scores)
