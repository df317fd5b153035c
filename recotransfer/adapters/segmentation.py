"""Semantic segmentation: pixels are items, and their classes are labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recotransfer import experiments
from recotransfer.adapters._places import (
    batches,
    check_every_picture_in,
    outcome_by_picture,
    parts_of_pictures,
    problem_of_places,
    scores_of_places,
)
from recotransfer.data import IdMap
from recotransfer.encoders.image_map import DenseImage, DensePicture, filtered, places
from recotransfer.errors import InputError
from recotransfer.evaluation.metrics import dice, intersection_over_union
from recotransfer.experiments import Outcome, Predictions, Problem
from recotransfer.task import TransferTask

_CONTEXT = (1.0, 2.0, 4.0, 8.0)  # widths in pixels of the filters over earlier predictions
_CUTS = np.arange(0.2, 0.65, 0.05)  # thresholds tried on validation pictures


def dice_of_masks(a: Predictions) -> float:
    """Mean Dice coefficient over pictures, for the predictions of `Segmentation.evaluate`."""
    return float(np.nanmean(a.scores[:, 0]))


def overlap_of_masks(a: Predictions) -> float:
    """Mean intersection over union over pictures, for the predictions of `Segmentation.evaluate`."""
    return float(np.nanmean(a.scores[:, 1]))


MASK_METRICS = {"Dice": dice_of_masks, "IoU": overlap_of_masks}


@dataclass(frozen=True)
class Segmentation:
    """Semantic segmentation as a problem: sampled pixels are items, and the labels in the masks are their users.

    Attributes:
        pictures: id -> picture, as `PretrainedImage` takes it.
        masks: id -> (height, width) label of each pixel.
        part: id -> "train", "valid" or "test"; pictures with any other value are ignored.
        features: gives the vector of each pixel.
        samples: pixels sampled per picture.
        before: fitted tasks whose predictions are further features, each with the pictures that it was trained on;
            made by `in_context`.
        seed: random seed.
    """

    pictures: Mapping[Any, Any]
    masks: Mapping[Any, NDArray[Any]]
    part: Mapping[Any, str]
    features: DenseImage
    samples: int = 2000
    before: tuple[tuple[TransferTask, frozenset[Any]], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_every_picture_in(parts_of_pictures(self.part), pictures=self.pictures, masks=self.masks)

    @cached_property
    def problem(self) -> Problem:
        """The problem of classifying the sampled pixels."""
        rng = np.random.default_rng(self.seed)
        sampled = []

        for picture, part in parts_of_pictures(self.part).items():
            if part not in experiments.SPLIT_PARTS:
                continue

            dense = self._features(self.pictures[picture], picture)
            mask = np.asarray(self.masks[picture])
            if mask.shape != dense.shape:
                raise InputError(
                    f"the mask of {picture!r} has shape {mask.shape} and its picture {dense.shape}; they must agree"
                )

            pixels = np.sort(rng.choice(mask.size, min(self.samples, mask.size), replace=False))
            where = places(dense.shape)[pixels]
            sampled.append((picture, part, where, mask.ravel()[pixels].tolist(), dense.at(where)))

        return problem_of_places("segmentation", sampled, self.features.name)

    def in_context(self, task: TransferTask) -> Segmentation:
        """The same problem with predictions around each pixel among its features (auto-context).

        The training pictures are halved: a copy of the task trained on either half predicts the other, so that no
        picture's features come from its own mask. All other pictures get the mean of both predictions. Tu and Bai,
        "Auto-context and its application to high-level vision tasks and 3D brain image segmentation" (2010).
        """
        train = [picture for picture, part in parts_of_pictures(self.part).items() if part == "train"]
        before = []

        for half, rest in ((train[::2], train[1::2]), (train[1::2], train[::2])):
            part = {**dict.fromkeys(half, "train"), **dict.fromkeys(rest, "test")}
            problem = replace(self, part=part, before=()).problem
            fitted = experiments.run(problem, task, settings=[{}], draws=1).task
            before.append((fitted, frozenset(half)))

        return replace(self, before=tuple(before))

    def _features(self, picture: object, id: object = None) -> DensePicture:
        """The features of a picture, with the predictions of the tasks in `before` that were not trained on this id."""
        dense = self.features.read(picture)
        maps = [self._label_maps(task, dense) for task, trained_on in self.before if id is None or id not in trained_on]
        # The first map is left out: where the scores of a pixel sum to one, as a probe's do, the others determine it.
        context = [filtered(scores[:, :, None], _CONTEXT) for scores in np.mean(maps, axis=0)[1:]] if maps else []
        return DensePicture(dense.shape, (*dense.layers, *context))

    def _label_maps(self, task: TransferTask, dense: DensePicture) -> NDArray[np.float32]:
        """(labels, height, width) scores from the features of a picture."""
        out = [scores_of_places(task, dense.at(where), self.features.name) for where in batches(places(dense.shape))]
        return np.concatenate(out).T.reshape(-1, *dense.shape)

    def shares(self, task: TransferTask, picture: object) -> NDArray[np.float32]:
        """(labels, height, width) score of each label, in the order of the task's users, at each pixel of a picture."""
        return self._label_maps(task, self._features(picture))

    def evaluate(self, outcome: Outcome, label: Any) -> Outcome:
        """The outcome with one query per test picture: Dice and intersection over union of the label's mask.

        A pixel is in the predicted mask if its score reaches a threshold: the one with the best mean Dice on validation
        pictures, or 0.5 without any. It is reported in `settings` as "cut".
        """
        at = int(outcome.task.recommender.events_.users.positions([label])[0])
        parts = parts_of_pictures(self.part)
        test = [picture for picture, part in parts.items() if part == "test"]
        cut, best = 0.5, -1.0
        valid = [
            (self.shares(outcome.task, self.pictures[picture])[at], self.masks[picture] == label)
            for picture, part in parts.items()
            if part == "valid"
        ]

        for value in _CUTS if valid else ():
            mean = float(np.nanmean([dice(truth, scores >= value) for scores, truth in valid]))
            if mean > best:
                cut, best = float(value), mean

        figures = []
        for picture in test:
            truth = self.masks[picture] == label
            predicted = self.shares(outcome.task, self.pictures[picture])[at] >= cut
            figures.append([dice(truth, predicted), intersection_over_union(truth, predicted)])

        outcome = replace(outcome, settings={**outcome.settings, "cut": cut}, valid=best if valid else outcome.valid)
        # The "scores" are the figures themselves, one candidate per metric; the truth is not read.
        candidates, unused = IdMap(list(MASK_METRICS)), np.ones((len(test), 2))

        return outcome_by_picture(outcome, test, candidates, unused, figures, MASK_METRICS)
