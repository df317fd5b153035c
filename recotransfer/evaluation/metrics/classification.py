"""Metrics of labels and probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recotransfer.arguments import Numbers, checked
from recotransfer.errors import InputError
from recotransfer.evaluation.metrics.ranking import Float, safe_ratio


@checked
def f1(truth: ArrayLike, predicted: ArrayLike, classes: int) -> Float:
    """(classes,) F1 of each class; NaN for a class that is neither true nor predicted, so `np.nanmean` is the macro F1.

    Args:
        truth: (n,) true class positions.
        predicted: (n,) predicted class positions.
        classes: number of classes.
    """
    label, guess = _labels(truth, predicted, classes)
    right = np.bincount(label[label == guess], minlength=classes)
    total = np.bincount(label, minlength=classes) + np.bincount(guess, minlength=classes)

    return safe_ratio(2 * right, total)


@checked
def roc_auc(truth: ArrayLike, scores: Numbers) -> Float:
    """(classes,) area under the ROC curve of each class against the rest, ties counting half.

    NaN for a class that no row has, or every row, so `np.nanmean` is the macro AUC of the others.

    Args:
        truth: (n,) true class positions.
        scores: (n, classes), greater is more likely.
    """
    from scipy.stats import rankdata

    grid = _grid(scores)
    label, _ = _labels(truth, np.zeros(len(grid), int), grid.shape[1])
    own = np.bincount(label, minlength=grid.shape[1])
    ranks = rankdata(grid, axis=0) if len(grid) else grid  # ties share their mean rank
    above = np.bincount(label, ranks[np.arange(len(grid)), label], grid.shape[1]) - own * (own + 1) / 2

    return safe_ratio(above, own * (len(grid) - own))  # the share of pairs in order: Mann and Whitney's U


@checked
def calibration_error(truth: ArrayLike, probabilities: Numbers, bins: int = 15) -> float:
    """Expected calibration error: gap between confidence and accuracy, averaged over bins weighted by size.

    Bins are of equal width in the probability of the top class. A probability on an edge belongs to the bin below it; a
    tie for the top goes to the first class. NaN without rows.
    Guo et al., "On calibration of modern neural networks" (2017).

    Args:
        truth: (n,) true class positions.
        probabilities: (n, classes) rows that sum to 1.
        bins: number of bins.

    Raises:
        InputError: rows that are not probabilities, or fewer than one bin.
    """
    grid = _grid(probabilities)
    if bins < 1:
        raise InputError(f"bins must be at least 1, got {bins}")

    wrong = (grid < 0).any(axis=1) | ~np.isclose(grid.sum(axis=1), 1, atol=1e-3)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise InputError(f"row {at} of the probabilities sums to {grid[at].sum():g} or is negative; give a softmax")

    label, top = _labels(truth, grid.argmax(axis=1), grid.shape[1])
    if not len(grid):
        return float("nan")

    confidence = grid.max(axis=1)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)

    return float(np.abs(np.bincount(place, weights=confidence - (label == top))).sum() / len(grid))


def _labels(truth: ArrayLike, predicted: ArrayLike, classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both as class positions.

    Raises:
        InputError: not flat lists of the same length, or positions of no class.
    """
    sides = []
    for name, side in (("truth", truth), ("predicted", predicted)):
        array = np.asarray(side)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iub"):
            raise InputError(f"{name} must be a flat list of class positions, got {array.dtype} of shape {array.shape}")
        if array.size and not (array.min() >= 0 and array.max() < classes):
            raise InputError(
                f"{name} lies in {array.min()}..{array.max()}, expected class positions in 0..{classes - 1}"
            )

        sides.append(array.astype(np.int64))

    if len(sides[0]) != len(sides[1]):
        raise InputError(f"{len(sides[0])} true classes but {len(sides[1])} rows predicted; give one each")

    return sides[0], sides[1]


def _grid(values: ArrayLike) -> Float:
    out = np.asarray(values, np.float64)
    if out.ndim != 2 or not np.isfinite(out).all():
        raise InputError(f"scores must be finite with shape (n, classes), got shape {out.shape}")

    return out
