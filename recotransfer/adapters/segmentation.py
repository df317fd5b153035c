"""Masks of pictures: every place of a picture is an item, its class a label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recotransfer import experiments
from recotransfer.adapters._places import (
    check_every_picture_in,
    in_blocks,
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

_CONTEXT = (1.0, 2.0, 4.0, 8.0)  # widths of the filters of predictions
_CUTS = np.arange(0.2, 0.65, 0.05)  # shares from which on a pixel may belong to a mask


def dice_of_masks(a: Predictions) -> float:
    """Mean Dice of pictures, of an outcome that `Segmentation.judged` gave."""
    return float(np.nanmean(a.scores[:, 0]))


def overlap_of_masks(a: Predictions) -> float:
    """Mean intersection over union of pictures, of an outcome that `Segmentation.judged` gave."""
    return float(np.nanmean(a.scores[:, 1]))


MASK_METRICS = {"Dice": dice_of_masks, "IoU": overlap_of_masks}


@dataclass(frozen=True)
class Segmentation:
    """Masks of pictures: some pixels of each are items, what the masks say of them are the users who hold them.

    Attributes:
        pictures: id -> picture, as `PretrainedImage` takes it.
        masks: id -> (height, width) the label of each pixel.
        part: id -> "train", "valid" or "test"; other pictures are left out.
        features: what sees the pixels.
        samples: pixels of each picture that become items, drawn by lot.
        before: fitted tasks whose predictions are seen too, each with the pictures it has learned from; see
            `in_context`.
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
        """Which label each pixel bears."""
        draw = np.random.default_rng(self.seed)
        sampled = []

        for picture, part in parts_of_pictures(self.part).items():
            if part not in experiments.SIDES:
                continue

            seen, mask = self._seen(self.pictures[picture], picture), np.asarray(self.masks[picture])
            if mask.shape != seen.shape:
                raise InputError(f"the mask of {picture!r} is {mask.shape}, its picture {seen.shape}; they must agree")

            pixels = np.sort(draw.choice(mask.size, min(self.samples, mask.size), replace=False))
            where = places(seen.shape)[pixels]
            sampled.append((picture, part, where, mask.ravel()[pixels].tolist(), seen.at(where)))

        return problem_of_places("segmentation", sampled, self.features.name)

    def in_context(self, task: TransferTask) -> Segmentation:
        """The same problem, in which a pixel also sees what was answered around it: auto-context.

        The task learns from one half of the training pictures and predictions the other, and the other way round; other
        pictures get the mean of both predictions. Tu and Bai, "Auto-context and its application to high-level vision
        tasks and 3D brain image segmentation" (2010).
        """
        known = [picture for picture, part in parts_of_pictures(self.part).items() if part == "train"]
        before = []

        for half, rest in ((known[::2], known[1::2]), (known[1::2], known[::2])):
            part = {**dict.fromkeys(half, "train"), **dict.fromkeys(rest, "test")}
            learned = experiments.run(replace(self, part=part, before=()).problem, task, settings=[{}], draws=1).task
            before.append((learned, frozenset(half)))

        return replace(self, before=tuple(before))

    def _seen(self, picture: Any, known: Any = None) -> DensePicture:
        """What is seen in a picture, the predictions of tasks before that have not learned from it among it."""
        seen = self.features.read(picture)
        told = [self._shares(task, seen) for task, own in self.before if known is None or known not in own]
        context = [filtered(share[:, :, None], _CONTEXT) for share in np.mean(told, axis=0)[1:]] if told else []
        return DensePicture(seen.shape, (*seen.layers, *context))

    def _shares(self, task: TransferTask, seen: DensePicture) -> NDArray[np.float32]:
        out = [scores_of_places(task, seen.at(where), self.features.name) for where in in_blocks(places(seen.shape))]
        return np.concatenate(out).T.reshape(-1, *seen.shape)

    def shares(self, task: TransferTask, picture: Any) -> NDArray[np.float32]:
        """(labels, height, width) score of each label, in the order of the task's users, at each pixel of a picture."""
        return self._shares(task, self._seen(picture))

    def judged(self, outcome: Outcome, label: Any) -> Outcome:
        """The outcome with whole test pictures as its queries: Dice and intersection over union of the label's mask.

        The share from which on a pixel belongs to the mask is the one with the best mean Dice on validation pictures,
        or one half without any; `settings` tells it as "cut".
        """
        at = int(outcome.task.recommender.events_.users.positions([label])[0])
        test = [picture for picture, part in parts_of_pictures(self.part).items() if part == "test"]
        cut, best = 0.5, -1.0
        held = [
            (self.shares(outcome.task, self.pictures[p])[at], self.masks[p] == label)
            for p, part in parts_of_pictures(self.part).items()
            if part == "valid"
        ]

        for value in _CUTS if held else ():
            mean = float(np.nanmean([dice(truth, share >= value) for share, truth in held]))
            cut, best = (float(value), mean) if mean > best else (cut, best)

        figures = []
        for picture in test:
            found, truth = self.shares(outcome.task, self.pictures[picture])[at] >= cut, self.masks[picture] == label
            figures.append([dice(truth, found), intersection_over_union(truth, found)])

        told = replace(outcome, settings={**outcome.settings, "cut": cut}, valid=best if held else outcome.valid)

        return outcome_by_picture(told, test, IdMap(list(MASK_METRICS)), np.ones((len(test), 2)), figures, MASK_METRICS)
