"""Metrics of masks and boxes: Dice, intersection over union, average precision of detections."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.arguments import Numbers, checked
from recotransfer.errors import InputError, require
from recotransfer.settings import NonNegativeInt

EDGES = ["xmin", "ymin", "xmax", "ymax"]
_MOST = 100  # boxes counted per label and picture, as in COCO
_RECALLS = np.linspace(0, 1, 101)


@checked
def dice(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks: twice the common pixels over the sum of their pixels; NaN if both are empty.

    >>> dice(np.array([True, True, False]), np.array([True, False, False])).__round__(3)
    0.667
    """
    truth, found = _alike(truth, found)
    return _ratio(2 * np.count_nonzero(truth & found), np.count_nonzero(truth) + np.count_nonzero(found))


@checked
def intersection_over_union(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    """Intersection over union (Jaccard) of two masks; NaN if both are empty."""
    truth, found = _alike(truth, found)
    return _ratio(np.count_nonzero(truth & found), np.count_nonzero(truth | found))


def _alike(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both masks as arrays of truth values, of one shape."""
    truth, found = np.asarray(truth, bool), np.asarray(found, bool)
    if truth.shape != found.shape:
        raise InputError(f"the masks have shapes {truth.shape} and {found.shape}; they must agree")

    return truth, found


def _ratio(top: int | np.integer[Any], bottom: int | np.integer[Any]) -> float:
    return float(top / bottom) if bottom else float("nan")


class Matches(NamedTuple):
    """Detections of one label in one picture: `scores` (n,), `hit` (n,) bool, and the number of true boxes."""

    scores: NDArray[np.float64]
    hit: NDArray[np.bool_]
    truths: int


@checked
def box_matches(
    found: pd.DataFrame, truth: pd.DataFrame, pictures: Sequence[Any], labels: Sequence[Any], *, overlap: float = 0.5
) -> list[list[Matches]]:
    """Per picture and label, which detections hit a true box, each true box at most once, by pycocotools.

    Args:
        found: one detection per row: picture, label, xmin, ymin, xmax, ymax, score.
        truth: the true boxes, without score.
        pictures: ids of the pictures to match.
        labels: the labels to match.
        overlap: smallest intersection over union of a hit.
    """
    COCOeval = require("pycocotools.cocoeval").COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        judge = COCOeval(_coco(truth, pictures, labels), _coco(found, pictures, labels), "bbox")
        judge.params.iouThrs, judge.params.maxDets = np.array([overlap]), [_MOST]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()

    table = [[Matches(np.empty(0), np.empty(0, bool), 0) for _ in labels] for _ in pictures]
    for one in judge.evalImgs:
        if one is not None:
            hit = np.asarray(one["dtMatches"], np.float64).reshape(1, -1)[0] > 0
            table[one["image_id"]][one["category_id"]] = Matches(np.asarray(one["dtScores"]), hit, len(one["gtIds"]))

    return table


@checked
def box_precision(scores: Numbers, hit: Numbers, truths: NonNegativeInt) -> float:
    """Average precision of one label at 101 recall levels, as in COCO for one overlap; NaN without a true box.

    Args:
        scores: (n,) scores of the detections in all pictures.
        hit: (n,) bool, whether each hits a true box.
        truths: number of true boxes.

    Raises:
        InputError: not one `hit` per score.
    """
    score, right = np.asarray(scores, np.float64), np.asarray(hit, bool)
    if score.shape != right.shape or score.ndim != 1:
        raise InputError(
            f"scores have shape {score.shape} and hit {right.shape}; give one flat list of each, alike long"
        )
    if not truths:
        return float("nan")

    order = np.argsort(-score, kind="mergesort")
    hits = np.cumsum(right[order])
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    at = np.searchsorted(hits / truths, _RECALLS, side="left")

    return float(np.append(precision, 0.0)[at].mean())


def _coco(boxes: pd.DataFrame, pictures: Sequence[Any], labels: Sequence[Any]) -> Any:
    """Boxes in the format of pycocotools; ids are positions in `pictures` and `labels`."""
    COCO = require("pycocotools.coco").COCO

    if lost := {"picture", "label", *EDGES} - set(boxes.columns):
        raise InputError(f"the boxes have no column {min(lost)!r}; they have {list(boxes.columns)}")

    image = pd.Index(list(pictures), tupleize_cols=False).get_indexer(boxes["picture"])
    category = pd.Index(list(labels), tupleize_cols=False).get_indexer(boxes["label"])
    edges = boxes[EDGES].to_numpy(np.float64)
    score = boxes["score"].to_numpy(np.float64) if "score" in boxes.columns else np.ones(len(boxes))
    annotations: list[dict[str, Any]] = []

    for at in np.flatnonzero((image >= 0) & (category >= 0)).tolist():
        x, y, right, bottom = edges[at].tolist()
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": int(image[at]),
                "category_id": int(category[at]),
                "bbox": [x, y, right - x, bottom - y],
                "area": (right - x) * (bottom - y),
                "iscrowd": 0,
                "score": float(score[at]),
            }
        )

    out = COCO()
    out.dataset = {
        "images": [{"id": at} for at in range(len(pictures))],
        "categories": [{"id": at} for at in range(len(labels))],
        "annotations": annotations,
    }
    out.createIndex()

    return out
