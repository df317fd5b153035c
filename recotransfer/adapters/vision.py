"""Vision: pictures with labels, masks or boxes as cases of the core, and answers as masks, boxes and heatmaps again.

Pixels and places of pictures are items with vectors of `DenseImage`, classes are users, and learning is the core's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from recotransfer import cases
from recotransfer.cases import Answers, Case, Outcome
from recotransfer.data import Embeddings, IdMap, Interactions, Items
from recotransfer.dense_metrics import EDGES, Matches, box_matches, box_precision, dice, intersection_over_union
from recotransfer.encoders import Encoder
from recotransfer.encoders.dense import DenseImage, DensePicture, filtered, places
from recotransfer.encoders.image import decode
from recotransfer.errors import InputError
from recotransfer.task import TransferTask

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_BLOCK = 1 << 16  # places asked about at a time
_CONTEXT = (1.0, 2.0, 4.0, 8.0)  # widths of the filters of answers
_CUTS = np.arange(0.2, 0.65, 0.05)  # shares from which on a pixel may belong to a mask
_BACKGROUND = ("background", 0)
_CENTRE, _AROUND, _NEAR, _NEAR_COUNTS = 0.12, 0.25, 0.7, 3.0  # distances from a box's centre, in its sizes


# -- pictures with labels ----------------------------------------------------------------------------------------------


def classification(
    pictures: pd.DataFrame | Sequence[Any],
    labels: Sequence[Any],
    part: ArrayLike,
    *,
    encoders: Sequence[Encoder],
    groups: Sequence[Any] | None = None,
    name: str = "classification",
) -> Case:
    """Which label each picture bears: pictures are items, labels the users who hold them.

    Args:
        pictures: one each, as `PretrainedImage` takes them, or a table with further columns, such as a title.
        labels: one of each; None is unlabelled.
        part: "train", "valid" or "test" of each; rows of other parts are left out.
        encoders: what reads the columns; a list of pictures is the column "image".
        groups: of each, such as who took it: none may stand in two parts, and intervals draw whole ones.
        name: of the case.
    """
    table = pictures if isinstance(pictures, pd.DataFrame) else cases.column(pictures, "image")
    items = Items(IdMap(np.arange(len(table))), table.reset_index(drop=True))
    own = cases.grouped(groups, len(items))
    split = cases.split_items(Interactions.from_labels(labels, items.ids), part, groups=groups)
    return Case(name, items, split, cases.LABEL_METRICS, encoders=encoders, groups=own)


def folder(path: str | Path) -> tuple[list[Path], list[str]]:
    """The pictures below a folder that has a folder for each label, and their labels, in order of name."""
    found = [p for p in sorted(Path(path).glob("*/*")) if p.suffix.lower() in _SUFFIXES]
    if not found:
        raise InputError(f"{path} has no folders with pictures in them; give each label a folder of its own")
    return found, [p.parent.name for p in found]


def heatmap(
    task: TransferTask,
    picture: Any,
    label: Any,
    *,
    dense: DenseImage | None = None,
    cells: int = 8,
    column: str = "image",
) -> NDArray[np.float32]:
    """(rows, columns) how much each part of a picture speaks for a label, in the scale of the task's scores.

    By default it is how far the label's score falls while a part is covered in the picture's mean colour (Zeiler and
    Fergus, "Visualizing and understanding convolutional networks", 2014). With `dense` it is the score of the label at
    each cell of the network's map alone: class activation maps (Zhou et al., "Learning deep features for discriminative
    localization", 2016), for encoders whose vector is the mean of that map.

    Args:
        task: fitted on pictures, with the label among its users.
        picture: what to look at.
        label: the user.
        dense: reads the map that the task's only encoder takes the mean of; None covers parts.
        cells: rows and columns of parts; with `dense`, along the longer edge, and in proportion along the other.
        column: of the items, which holds the picture.
    """
    if dense is not None:
        if len(task.encoders_) != 1:
            raise InputError(f"dense needs a task of one encoder, and this has {len(task.encoders_)}; leave dense out")
        seen = dense.read(picture)
        rows, columns = (-(-edge * cells // max(seen.shape)) for edge in seen.shape)
        where = places((rows, columns)) * np.divide(seen.shape, (rows, columns))
        block = ((task.encoders_[0].block, seen.width),)
        return _asked(task, seen.at(where), dense.name, users=[label], blocks=block).reshape(rows, columns)
    image = np.asarray(decode(picture))
    edges = [np.linspace(0, edge, cells + 1).round().astype(int) for edge in image.shape[:2]]
    copies = [image]
    for row in range(cells):
        for at in range(cells):
            # A part and half of its neighbours: covering less, the network may not notice.
            top, bottom = edges[0][max(row - 1, 0) : row + 3].take([0, -1])
            left, right = edges[1][max(at - 1, 0) : at + 3].take([0, -1])
            covered = image.copy()
            covered[top:bottom, left:right] = image.mean(axis=(0, 1)).astype(np.uint8)
            copies.append(covered)
    items = Items(IdMap(np.arange(len(copies))), cases.column(copies, column))
    found = task.label(items, users=[label]).scores[:, 0]
    return np.asarray((found[0] - found[1:]).reshape(cells, cells))


# -- places of pictures as items ---------------------------------------------------------------------------------------


def _asked(
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
    out = []
    for start in range(0, len(vectors), _BLOCK):
        rows = vectors[start : start + _BLOCK]
        ids = IdMap(np.arange(len(rows)))
        items = Items(ids, pd.DataFrame(index=range(len(rows))))
        found = task.label(items, len(asked), users=users, parts=[Embeddings(ids, rows, source, blocks=blocks)])
        table = np.zeros(found.scores.shape, np.float32)
        at = asked.positions(known.ids, missing="negative")[found.positions]
        np.put_along_axis(table, at, found.scores, axis=1)
        out.append(table)
    return np.concatenate(out)


def _case(name: str, sampled: Sequence[tuple[Any, str, NDArray[Any], list[Any], Any]], source: str) -> Case:
    """A case of places: per picture its id, part, places (n, 2), labels (n,) and vectors (n, width)."""
    ids = IdMap([(picture, *place) for picture, _, where, _, _ in sampled for place in where.tolist()])
    owner = np.repeat(np.arange(len(sampled)), [len(where) for _, _, where, _, _ in sampled])
    labels = [label for _, _, _, some, _ in sampled for label in some]
    relations = Interactions.from_labels(labels, ids)
    parts = np.array([part for _, part, _, _, _ in sampled], dtype=object)
    split = cases.split_items(relations, parts[owner])
    vectors = Embeddings(ids, np.concatenate([v for _, _, _, _, v in sampled]), source)
    metrics = {"accuracy": cases.accuracy, "macro F1": cases.macro_f1}
    return Case(name, Items(ids, pd.DataFrame(index=range(len(ids)))), split, metrics, parts=[vectors], groups=owner)


def _sides(part: Mapping[Any, str]) -> dict[Any, str]:
    """Picture -> "train", "valid" or "test", from the names that data sets use."""
    return dict(zip(part, cases.named_parts(list(part.values())).tolist(), strict=True))


def _check_held(part: Mapping[Any, str], **tables: Mapping[Any, Any]) -> None:
    """Raise `InputError` where a picture of a part is not in each of these tables."""
    for name, table in tables.items():
        if lost := [picture for picture, own in part.items() if own in cases.SIDES and picture not in table]:
            raise InputError(
                f"picture {lost[0]!r} has a part but is not in {name}; add it there, or leave it out of part"
            )


def _judged(
    outcome: Outcome, pictures: Sequence[Any], options: IdMap, truth: Any, scores: Any, metrics: Mapping[str, Any]
) -> Outcome:
    """The outcome with pictures as its units."""
    units = IdMap(pictures).ids
    answers = Answers(units, options, np.asarray(truth, bool), np.asarray(scores, np.float32), units)
    return cases.joined([replace(outcome, answers=answers)], metrics)


# -- masks -------------------------------------------------------------------------------------------------------------


def dice_of_masks(a: Answers) -> float:
    """Mean Dice of pictures, of an outcome that `Segmentation.judged` gave."""
    return float(np.nanmean(a.scores[:, 0]))


def overlap_of_masks(a: Answers) -> float:
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
        before: fitted tasks whose answers are seen too, each with the pictures it has learned from; see `in_context`.
        rng: seed.
    """

    pictures: Mapping[Any, Any]
    masks: Mapping[Any, NDArray[Any]]
    part: Mapping[Any, str]
    features: DenseImage
    samples: int = 2000
    before: tuple[tuple[TransferTask, frozenset[Any]], ...] = ()
    rng: int = 0

    def __post_init__(self) -> None:
        _check_held(_sides(self.part), pictures=self.pictures, masks=self.masks)

    @cached_property
    def case(self) -> Case:
        """Which label each pixel bears."""
        draw = np.random.default_rng(self.rng)
        sampled = []
        for picture, part in _sides(self.part).items():
            if part not in cases.SIDES:
                continue
            seen, mask = self._seen(self.pictures[picture], picture), np.asarray(self.masks[picture])
            if mask.shape != seen.shape:
                raise InputError(f"the mask of {picture!r} is {mask.shape}, its picture {seen.shape}; they must agree")
            pixels = np.sort(draw.choice(mask.size, min(self.samples, mask.size), replace=False))
            where = places(seen.shape)[pixels]
            sampled.append((picture, part, where, mask.ravel()[pixels].tolist(), seen.at(where)))
        return _case("segmentation", sampled, self.features.name)

    def in_context(self, task: TransferTask) -> Segmentation:
        """The same problem, in which a pixel also sees what was answered around it: auto-context.

        The task learns from one half of the training pictures and answers the other, and the other way round; other
        pictures get the mean of both answers. Tu and Bai, "Auto-context and its application to high-level vision tasks
        and 3D brain image segmentation" (2010).
        """
        known = [picture for picture, part in _sides(self.part).items() if part == "train"]
        before = []
        for half, rest in ((known[::2], known[1::2]), (known[1::2], known[::2])):
            part = {**dict.fromkeys(half, "train"), **dict.fromkeys(rest, "test")}
            learned = cases.run(replace(self, part=part, before=()).case, task, settings=[{}], draws=1).task
            before.append((learned, frozenset(half)))
        return replace(self, before=tuple(before))

    def _seen(self, picture: Any, known: Any = None) -> DensePicture:
        """What is seen in a picture, the answers of tasks before that have not learned from it among it."""
        seen = self.features.read(picture)
        told = [self._shares(task, seen) for task, own in self.before if known is None or known not in own]
        context = [filtered(share[:, :, None], _CONTEXT) for share in np.mean(told, axis=0)[1:]] if told else []
        return DensePicture(seen.shape, (*seen.layers, *context))

    def _shares(self, task: TransferTask, seen: DensePicture) -> NDArray[np.float32]:
        out = [_asked(task, seen.at(where), self.features.name) for where in _blocks(places(seen.shape))]
        return np.concatenate(out).T.reshape(-1, *seen.shape)

    def shares(self, task: TransferTask, picture: Any) -> NDArray[np.float32]:
        """(labels, height, width) score of each label, in the order of the task's users, at each pixel of a picture."""
        return self._shares(task, self._seen(picture))

    def judged(self, outcome: Outcome, label: Any) -> Outcome:
        """The outcome with whole test pictures as its units: Dice and intersection over union of the label's mask.

        The share from which on a pixel belongs to the mask is the one with the best mean Dice on validation pictures,
        or one half without any; `settings` tells it as "cut".
        """
        at = int(outcome.task.recommender.events_.users.positions([label])[0])
        test = [picture for picture, part in _sides(self.part).items() if part == "test"]
        cut, best = 0.5, -1.0
        held = [
            (self.shares(outcome.task, self.pictures[p])[at], self.masks[p] == label)
            for p, part in _sides(self.part).items()
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
        return _judged(told, test, IdMap(list(MASK_METRICS)), np.ones((len(test), 2)), figures, MASK_METRICS)


def _blocks(where: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(where), _BLOCK):
        yield where[start : start + _BLOCK]


# -- boxes -------------------------------------------------------------------------------------------------------------


def precision_of_boxes(a: Answers) -> float:
    """Mean over labels of the average precision of boxes, of an outcome that `Detection.judged` gave."""
    label = np.array([option[0] for option in a.options.ids.tolist()], dtype=object)
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
        rng: seed.
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
    rng: int = 0

    def __post_init__(self) -> None:
        _check_held(_sides(self.part), pictures=self.pictures)
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
        b = b.assign(part=b["picture"].map(_sides(self.part)))
        b = b[(b["height"] >= 1) & (b["width"] >= 1) & b["part"].isin(cases.SIDES)].copy()
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
    def case(self) -> Case:
        """Which box's centre each place is, or background."""
        draw = np.random.default_rng(self.rng)
        boxes, _ = self._binned
        by_picture = dict(tuple(boxes.groupby("picture")))
        sampled = []
        for picture, part in _sides(self.part).items():
            if part not in cases.SIDES:
                continue
            seen = self.features.read(self.pictures[picture])
            where = places(seen.shape, self.step)
            rows, users = _centres(where, by_picture.get(picture, boxes.iloc[:0]), self.negatives, draw)
            sampled.append((picture, part, where[rows], users, seen.at(where[rows])))
        return _case("detection", sampled, self.features.name)

    def found(self, task: TransferTask, picture: Any) -> pd.DataFrame:
        """The boxes in a picture, best first: label, xmin, ymin, xmax, ymax and score."""
        _, means = self._binned
        seen = self.features.read(picture)
        where = places(seen.shape, self.step)
        users = task.recommender.events_.users.ids.tolist()
        scores = np.concatenate([_asked(task, seen.at(some), self.features.name) for some in _blocks(where)])
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
        """The outcome with whole test pictures as its units: mAP at an overlap of one half.

        An answer is a slot of a label: a box found, true if it hits, or a true box that no box found hits.
        """
        test = [picture for picture, part in _sides(self.part).items() if part == "test"]
        tables = [self.found(outcome.task, self.pictures[p]) for p in test]
        owner = np.repeat(np.arange(len(test)), [len(t) for t in tables])
        found = pd.concat(tables).assign(picture=[test[at] for at in owner])
        labels = sorted(set(self.boxes["label"]))
        matches = box_matches(found, self.boxes, test, labels)
        return _judged(outcome, test, *_slots(matches, labels), BOX_METRICS)


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
    return rows, [users[at] if at >= 0 else _BACKGROUND for at in user[rows]]


def _merged(edges: NDArray[np.float64], scores: NDArray[np.float32], overlap: float) -> pd.DataFrame:
    """The best of overlapping boxes, each moved to the mean of those that overlap it by half, weighted by score.

    Non-maximum suppression is OpenCV's; the mean is box voting (Gidaris and Komodakis, "Object detection via a
    multi-region and semantic segmentation-aware CNN model", 2015).
    """
    import cv2

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
